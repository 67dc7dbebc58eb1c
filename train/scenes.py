"""Furnished rooms from a seed, hand-held cameras in them, and the example photos of the README.

    python -m train.scenes docs/example        renders the example photos, with their focal length in EXIF

A room is a floor plan filled by simple rules: along each wall pieces of furniture with gaps, pictures above the low
ones, windows with curtains, a table on a rug in the middle, things on every top.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from model.types import Float64
from train.furniture import Kit, Piece, Workshop
from train.render import Light, Room, Solid, build, cast, intrinsics, render


def make_room(
    seed: int,
    *,
    texture_side: int = 1024,
    light_cell: float = 0.08,
    light_samples: int = 32,
    workshop: type[Workshop] = Kit,
    varied: bool = False,
) -> Room:
    """A furnished room of 3.6 to 5.5 m by 3.4 to 4.8 m. The same seed and settings give the same room.

    texture_side: pixels of a material's picture, a power of two (256 is enough for views of about 200 pixels).
    light_cell, light_samples: see `render.build`; coarser is faster.
    workshop: where materials and furniture come from.
    varied: as training needs them: 3 to 6.5 m by 3 to 6 m, some with corners cut off, pillars or beams, furniture that
        stands free and askew, things on the floor, every lamp and window as bright as it happens to be, or at night.
    """
    rng = np.random.default_rng([seed, 0])
    kit = workshop(rng, texture_side)
    width, depth, height = float(rng.uniform(3.6, 5.5)), float(rng.uniform(3.4, 4.8)), float(rng.uniform(2.4, 2.8))
    luck = np.random.default_rng([seed, 2])
    if varied:
        width, depth, height = (float(v) for v in luck.uniform((3.0, 3.0, 2.35), (6.5, 6.0, 3.2)))
    t = 0.1
    walls = list(rng.permutation(kit.walls))
    shell = [
        [kit.box(-t, width + t, -t, depth + t, -t, 0, kit.floor)],
        [kit.box(-t, width + t, -t, depth + t, height, height + t, kit.white)],
        [kit.box(-t, width + t, -t, 0, 0, height, walls[0])],
        [kit.box(width, width + t, -t, depth + t, 0, height, walls[1])],
        [kit.box(-t, width + t, depth, depth + t, 0, height, walls[2])],
        [kit.box(-t, 0, -t, depth + t, 0, height, walls[3])],
        [kit.box(0, width, 0, 0.015, 0, 0.09, kit.white), kit.box(0, width, depth - 0.015, depth, 0, 0.09, kit.white)],
        [kit.box(0, 0.015, 0, depth, 0, 0.09, kit.white), kit.box(width - 0.015, width, 0, depth, 0, 0.09, kit.white)],
    ]
    groups, lights = list(shell), []
    taken: list[tuple[float, float, float, float]] = []

    def place(piece: Piece, yaw: float, x: float, y: float, z: float = 0.0) -> None:
        placed = piece.moved(yaw, (x, y, z))
        groups.extend(placed.solids)
        lights.extend(placed.lights)

    if varied:
        _build_in(kit, luck, (width, depth, height), groups, taken)

    # The walls by the yaw that turns a piece's +y into the room: south, east, north, west.
    sides = [(0.0, width, lambda s: (s, 0.0)), (math.pi / 2, depth, lambda s: (width, s))]
    sides += [(math.pi, width, lambda s: (width - s, depth)), (-math.pi / 2, depth, lambda s: (0.0, depth - s))]
    order = rng.permutation(4)
    first, more = kit.along_walls()
    menu = [first[k] for k in rng.permutation(len(first))] + more
    for rank, index in enumerate(order):
        yaw, length, at = sides[index]
        low: list[tuple[float, float, float]] = []
        if rank < 2:
            window = kit.window(float(rng.uniform(1.1, min(1.9, length - 1.8))), float(rng.uniform(1.1, 1.4)))
            middle = float(rng.uniform(0.45, 0.55)) * length
            place(window, yaw, *at(middle), 0.9)
            low.append((middle - window.width / 2, middle + window.width / 2, 9.0))
        s = float(rng.uniform(0.05, 0.3))
        if rank == 2:
            door = kit.door()
            place(door, yaw, *at(s + 0.55))
            low.append((s, s + 1.1, 9.0))
            s += 1.15
        while menu and s < length - 0.5:
            piece = menu[0]()
            a, b = s, s + piece.width
            under_window = any(a < q and b > p for p, q, top in low if top == 9.0)
            corners = np.array([at(a), at(b)])
            inward = np.array([-math.sin(yaw), math.cos(yaw)]) * piece.depth
            every = np.concatenate([corners, corners + inward])
            box = (*every.min(0), *every.max(0))
            blocked = any(_meets(box, other) for other in taken)
            if b > length - 0.05 or blocked or (under_window and piece.height > 0.86):
                # Try the next piece a little further on.
                menu.append(menu.pop(0))
                s += 0.25
                continue
            menu.pop(0)
            place(piece, yaw, *at((a + b) / 2))
            taken.append(box)
            low.append((a, b, piece.height))
            s = b + float(rng.uniform(0.03, 0.4))
        _decorate(kit, rng, low, length, height, lambda piece, s, z, yaw=yaw, at=at: place(piece, yaw, *at(s), z))

    middle = _centre(kit, rng, (width, depth), taken, place)
    place(kit.pendant(height), 0.0, *middle)
    if varied:
        _strew(kit, luck, (width, depth), taken, place)
        groups, lights = _lit(luck, groups, lights)
    return build(groups, kit.textures, lights, (width, depth, height), cell=light_cell, samples=light_samples)


def _centre(
    kit: Workshop,
    rng: np.random.Generator,
    floor: tuple[float, float],
    taken: list[tuple[float, float, float, float]],
    place: Callable[[Piece, float, float, float], None],
) -> tuple[float, float]:
    """Put a table where the walls' furniture leaves room for one; its place, or else the room's middle."""
    makers = kit.in_the_middle()
    for make in [makers[k] for k in rng.permutation(3)]:
        piece = make()
        for _ in range(12):
            x, y = (float(side * rng.uniform(0.38, 0.62)) for side in floor)
            turned = rng.uniform() < (0.8 if floor[0] < floor[1] else 0.2)
            reach = (piece.depth / 2, piece.width / 2) if turned else (piece.width / 2, piece.depth / 2)
            box = (x - reach[0], y - reach[1], x + reach[0], y + reach[1])
            if not any(_meets(box, other) for other in taken):
                place(piece, (math.pi / 2 if turned else 0.0) + float(rng.normal(0, 0.05)), x, y)
                return x, y
    return floor[0] / 2, floor[1] / 2


def _build_in(
    kit: Workshop,
    luck: np.random.Generator,
    size: tuple[float, float, float],
    groups: list[list[Solid]],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Cut off a corner of the room, put up pillars, draw beams below the ceiling: each in some rooms."""
    width, depth, height = size
    if luck.uniform() < 0.4:
        w, d = luck.uniform(0.12, 0.33) * width, luck.uniform(0.12, 0.33) * depth
        x, y = (0.0 if luck.uniform() < 0.5 else side - cut for side, cut in ((width, w), (depth, d)))
        taken.append((x, y, x + w, y + d))
        groups.append([kit.box(x, x + w, y, y + d, 0, height, kit.walls[luck.integers(4)])])
    for _ in range(int(luck.choice([0, 0, 1, 2]))):
        (x, y), r = luck.uniform(0.2, 0.8, 2) * (width, depth), luck.uniform(0.1, 0.22)
        taken.append((x - r, y - r, x + r, y + r))
        wall = kit.walls[luck.integers(4)]
        round_one = luck.uniform() < 0.5
        groups.append(
            [kit.tube(x, y, r, 0, height, wall) if round_one else kit.box(x - r, x + r, y - r, y + r, 0, height, wall)]
        )
    if luck.uniform() < 0.25:
        thick, timber = luck.uniform(0.06, 0.14), kit.floor
        beams = np.arange(luck.uniform(0.2, 0.8), depth, luck.uniform(0.6, 1.2))
        groups += [[kit.box(0, width, y, y + thick, height - 1.4 * thick, height, timber)] for y in beams]


def _strew(
    kit: Workshop,
    luck: np.random.Generator,
    floor: tuple[float, float],
    taken: list[tuple[float, float, float, float]],
    place: Callable[[Piece, float, float, float], None],
) -> None:
    """Furniture that stands free, turned as it was left, and things on the floor, where there is room for them."""
    first, more = kit.along_walls()
    for _ in range(luck.integers(5)):
        piece, yaw = (first + more)[luck.integers(len(first + more))](), float(luck.uniform(0, 2 * math.pi))
        c, s = math.cos(yaw), math.sin(yaw)
        corners = np.array([[x, y] for x in (-piece.width / 2, piece.width / 2) for y in (0, piece.depth)])
        corners = corners @ [[c, s], [-s, c]]
        for _ in range(8):
            at = luck.uniform(0.3, np.array(floor) - 0.3)
            box = (*(corners.min(0) + at), *(corners.max(0) + at))
            within = min(box[:2]) > 0.05 and box[2] < floor[0] - 0.05 and box[3] < floor[1] - 0.05
            if within and not any(_meets(box, other) for other in taken):
                place(piece, yaw, float(at[0]), float(at[1]))
                taken.append(box)
                break
    for _ in range(luck.integers(4)):
        x, y = (float(v) for v in luck.uniform(0.4, np.array(floor) - 0.4))
        if not any(_meets((x - 0.2, y - 0.2, x + 0.2, y + 0.2), other) for other in taken):
            place(Piece([kit.things(-0.3, 0.3, -0.2, 0.2, 0.0)], 0.6, 0.4, 0.3), float(luck.uniform(0, 6.28)), x, y)


def _lit(
    luck: np.random.Generator, groups: list[list[Solid]], lights: list[Light]
) -> tuple[list[list[Solid]], list[Light]]:
    """The same room at another hour, some lamps off, and in other tints."""
    night, day = luck.uniform() < 0.2, luck.uniform(0.5, 1.4)
    shining = []
    for light in lights:
        from_window = bool(light.normal.any())
        strength = (0.02 if night else day) if from_window else luck.uniform(0.5, 1.5) * (night or luck.uniform() < 0.7)
        shining.append(replace(light, colour=light.colour * strength * np.exp(luck.normal(0, 0.05, 3))))
    changed = []
    for group in groups:
        tint = np.exp(luck.normal(0, 0.08, 3))
        changed.append(
            [
                replace(
                    solid,
                    tint=tuple(float(v) for v in tint * solid.tint) if solid.emission == 0 else solid.tint,
                    emission=solid.emission * (0.04 if night and solid.emission == 1 else 1.0),
                )
                for solid in group
            ]
        )
    return changed, shining


def _meets(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two footprints (low x, low y, high x, high y) overlap."""
    return a[0] < b[2] and a[2] > b[0] and a[1] < b[3] and a[3] > b[1]


def _decorate(
    kit: Workshop,
    rng: np.random.Generator,
    low: list[tuple[float, float, float]],
    length: float,
    height: float,
    hang: Callable[[Piece, float, float], None],
) -> None:
    """Pictures and boards on the free parts of a wall; `low` holds (from, to, height) of what stands there."""
    s = 0.25
    while s < length - 0.4:
        kind = rng.uniform()
        if kind < 0.75:
            piece = kit.picture(float(rng.uniform(0.3, 0.85)), float(rng.uniform(0.35, 0.75)))
        else:
            piece = kit.wall_board()
        a, b = s, s + piece.width
        top = max([q for p, r, q in low if a < r + 0.05 and b > p - 0.05], default=0.0)
        z = max(top + 0.2, float(rng.uniform(1.2, 1.4)))
        if b < length - 0.1 and z + piece.height < height - 0.1:
            hang(piece, (a + b) / 2, z)
            s = b + float(rng.uniform(0.1, 0.5))
        else:
            s += 0.2


def overlap(room: Room, first: Float64, second: Float64, K: Float64, size: tuple[int, int]) -> float:
    """Share of the first camera's pixels whose point the second camera sees too (in its picture and not hidden)."""
    points, valid, _ = cast(room, first, K, size)
    _, _, depth = cast(room, second, K, size)
    local = (points[valid] - second[:3, 3]) @ second[:3, :3]
    z = np.maximum(local[:, 2], 1e-6)
    x, y = K[0, 0] * local[:, 0] / z + K[0, 2], K[1, 1] * local[:, 1] / z + K[1, 2]
    inside = (local[:, 2] > 0.05) & (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
    seen = depth[y[inside].astype(int), x[inside].astype(int)]
    # On the coarse grid that is cast here a pixel spans some centimetres of a slanted wall, hence 5 %.
    return float((np.abs(seen / z[inside] - 1) < 0.05).sum() / max(points.shape[0] * points.shape[1], 1))


def make_cameras(
    room: Room,
    views: int,
    seed: int,
    *,
    step: tuple[float, float] = (0.25, 0.6),
    shared: tuple[float, float] = (0.45, 0.92),
    focal: float = 0.8,
    aspect: float = 4 / 3,
) -> Float64:
    """(views, 4, 4) camera_to_world of somebody who walks along and photographs a part of the room.

    Neighbours stand `step` metres apart (from, to) and the later one shares `shared` of its picture (from, to;
    checked by reprojection against exact depth) with the one before. No camera stands inside or close before
    furniture.
    Raises ValueError where the room gives no such walk.
    """
    rng = np.random.default_rng([seed, 1])
    size = (40, round(40 / aspect))
    K = intrinsics(size, focal)
    for _ in range(100):
        poses = _walk(room, views, rng, step, shared, K, size)
        if len(poses) == views:
            return np.stack(poses)
    raise ValueError(f"found no walk with {views} views in this room")


def _walk(
    room: Room,
    views: int,
    rng: np.random.Generator,
    step: tuple[float, float],
    shared: tuple[float, float],
    K: Float64,
    size: tuple[int, int],
) -> list[Float64]:
    """One try at a walk around something worth a picture; shorter than `views` where it got stuck."""
    extent = np.array(room.size)
    target = np.array([*(rng.uniform(0.3, 0.7, 2) * extent[:2]), rng.uniform(0.6, 1.1)])
    sense, poses = rng.choice([-1.0, 1.0]), []
    for _ in range(12 * views):
        if poses:
            away = poses[-1][:2, 3] - target[:2]
            tangent = sense * np.array([-away[1], away[0]]) / (np.linalg.norm(away) + 1e-9)
            heading = tangent + rng.normal(0, 0.4, 2)
            ground = poses[-1][:2, 3] + rng.uniform(*step) * heading / np.linalg.norm(heading)
            up = float(np.clip(poses[-1][2, 3] + rng.normal(0, 0.08), 1.2, 1.75))
        else:
            ground, up = rng.uniform(0.3, extent[:2] - 0.3), float(rng.uniform(1.3, 1.65))
        position = np.array([*ground, up])
        if not 1.3 < np.linalg.norm(ground - target[:2]) < 3.6 or not free(room, position):
            continue
        pose = look_at(position, target + rng.normal(0, 0.15, 3), float(rng.normal(0, 0.03)))
        _, _, depth = cast(room, pose, K, size)
        if depth.min() < 0.45 or np.median(depth) < 1.3:
            continue
        if poses and not shared[0] <= overlap(room, pose, poses[-1], K, size) <= shared[1]:
            continue
        poses.append(pose)
        if len(poses) == views:
            break
    return poses


def free(room: Room, position: Float64) -> bool:
    """Whether a head fits here: 0.25 m from the walls, outside of the bounds of everything that stands in the room."""
    if (position < 0.25).any() or (position > np.array(room.size) - 0.25).any():
        return False
    low, high = room.scene.bounds[:, :3] - 0.15, room.scene.bounds[:, 3:] + 0.15
    return not ((position > low) & (position < high)).all(axis=1).any()


def look_at(position: Float64, target: Float64, roll: float = 0.0) -> Float64:
    """(4, 4) camera_to_world at a position, looking at a target, turned by `roll` radians about the view direction."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = math.cos(roll), math.sin(roll)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([c * right + s * down, c * down - s * right, forward], axis=1)
    pose[:3, 3] = position
    return pose


EXAMPLE_ROOM, EXAMPLE_WALK = 24, 1
EXAMPLE_SIZE = (1280, 960)
EXAMPLE_FOCAL_35MM = 28
"""As EXIF tells it: in millimetres for a film frame of the same diagonal."""


def write_example(folder: Path, views: int = 6) -> list[Path]:
    """Photograph the example room into JPEG files with the EXIF that a phone would write; their paths."""
    room = make_room(EXAMPLE_ROOM, texture_side=1024, light_cell=0.05, light_samples=64)
    focal = EXAMPLE_FOCAL_35MM * math.hypot(*EXAMPLE_SIZE) / math.hypot(36, 24) / max(EXAMPLE_SIZE)
    poses = make_cameras(room, views, EXAMPLE_WALK, focal=focal)
    K = intrinsics(EXAMPLE_SIZE, focal)
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Scenelift", "Rendered room"
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.FocalLengthIn35mmFilm] = EXAMPLE_FOCAL_35MM
    details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight] = EXAMPLE_SIZE
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index + 1}.jpg" for index in range(views)]
    for index, (path, pose) in enumerate(zip(paths, poses, strict=True)):
        photo = render(room, pose, K, EXAMPLE_SIZE, rng=np.random.default_rng([EXAMPLE_ROOM, 2, index]))
        Image.fromarray(photo.rgb).save(path, quality=88, exif=exif, optimize=True)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the example photos.")
    parser.add_argument("folder", type=Path)
    for path in write_example(parser.parse_args().folder):
        print(path, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
