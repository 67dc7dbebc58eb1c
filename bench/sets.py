"""What accuracy is measured on: photos whose cameras and points are known.

rooms    rendered rooms furnished as in training, of seeds that training does not draw
unseen   rendered rooms of materials and furniture that training never sees (`train.unseen`)
FOLDER   posed frames with depth of one's own (`train.frames`)
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from model.types import Float64, UInt8, View
from service.images import load_view
from train.furniture import Kit, Workshop
from train.render import Room, cast, intrinsics, render
from train.scenes import make_cameras, make_room
from train.unseen import Storeroom

SIZE = (640, 480)
FOCAL_35MM = 28
FOCAL = FOCAL_35MM * float(np.hypot(*SIZE) / np.hypot(36, 24)) / max(SIZE)
MOST_VIEWS = 12
"""Every room has one walk of so many; fewer views are its first ones."""
FIRST_ROOM = 100
"""Seeds from here on are the bench's own."""
WALK: dict[str, Any] = {"step": (0.35, 0.8), "shared": (0.35, 0.85), "focal": FOCAL}
"""Sparser than the example photos: neighbours are 0.35 to 0.8 m apart and share 35 to 85 % of the picture."""
NOVEL_SIZE = (320, 240)
NOVEL = 3
"""Pictures, at most, that nobody took."""
WORKSHOPS: dict[str, type[Workshop]] = {"rooms": Kit, "unseen": Storeroom}

Truth = Callable[[Float64, tuple[int, int]], tuple[Float64, np.ndarray]]
"""Of crops (N, 4) in pixels of the photos and a grid (H, W): points (N, H, W, 3) in view 0's frame at the centres of
the grid's cells, and where they are known."""


@dataclass(frozen=True, slots=True)
class Novel:
    """A picture that is to be told from the photos."""

    rgb: UInt8
    """(h, w, 3)."""
    K: Float64
    camera_to_world: Float64


@dataclass(frozen=True, slots=True)
class PosedSet:
    """N photos of one place and what is known of them."""

    number: int
    """Of the room, or of the draw from a folder."""
    photos: tuple[View, ...]
    camera_to_world: Float64
    """(N, 4, 4)."""
    truth: Truth
    novel: tuple[Novel, ...]


def posed_sets(name: str, numbers: Sequence[int], counts: Sequence[int]) -> Iterator[PosedSet]:
    """For each number and each count of views one set of `rooms`, `unseen` or a folder of frames."""
    for number in numbers:
        yield from _of_room(name, number, counts) if name in WORKSHOPS else _of_frames(Path(name), number, counts)


def _of_room(name: str, number: int, counts: Sequence[int]) -> Iterator[PosedSet]:
    seed = FIRST_ROOM + number
    room = make_room(seed, workshop=WORKSHOPS[name])
    poses = make_cameras(room, MOST_VIEWS, seed, **WALK)
    photos = photograph(room, poses[: max(counts)], seed)
    for count in counts:
        yield PosedSet(
            number, photos[:count], poses[:count], partial(truth, room, poses[:count]), _novel(room, poses[:count])
        )


def _novel(room: Room, poses: Float64) -> tuple[Novel, ...]:
    """Pictures from half way between neighbours, spread over the walk; not from within furniture."""
    K = intrinsics(NOVEL_SIZE, FOCAL)
    found = []
    for one, two in itertools.pairwise(poses):
        middle = (one + two) / 2
        middle[:3, :3] = Rotation.from_matrix(np.stack([one, two])[:, :3, :3]).mean().as_matrix()
        if cast(room, middle, K, NOVEL_SIZE)[2].min() > 0.25:
            found.append(middle)
    chosen = np.unique(np.linspace(0, len(found) - 1, min(NOVEL, len(found))).astype(int))
    return tuple(Novel(render(room, found[k], K, NOVEL_SIZE).rgb, K, found[k]) for k in chosen)


def _of_frames(folder: Path, number: int, counts: Sequence[int]) -> Iterator[PosedSet]:
    from train.frames import open_frames, read

    frames = open_frames(folder)
    for count in counts:
        # The last two of a draw are held out: like all, they overlap with one that was drawn before.
        drawn = [read(frame, SIZE) for frame in frames.choose([FIRST_ROOM + number, count], count + 2, SIZE)]
        views, held = drawn[:count], drawn[count:]
        photos = tuple(
            View(f"{index}.jpg", view.rgb, SIZE, float(view.intrinsics[0, 0]), "frames")
            for index, view in enumerate(views)
        )
        poses = np.stack([view.camera_to_world for view in views])
        lenses = np.stack([view.intrinsics for view in views])
        novel = tuple(
            Novel(
                np.asarray(Image.fromarray(view.rgb).resize(NOVEL_SIZE, Image.Resampling.BOX)), K, view.camera_to_world
            )
            for view, K in ((view, np.diag([0.5, 0.5, 1]) @ view.intrinsics) for view in held)
        )
        depth = np.stack([view.depth for view in views])
        yield PosedSet(number, photos, poses, partial(_measured, depth, lenses, poses), novel)


def seen_by(photos: Sequence[View], square: int | None, long_side: int | None) -> tuple[View, ...]:
    """The photos as the service hands them to a network that sees squares, or crops of so long a side."""
    if square is None and long_side is None:
        return tuple(photos)
    cut = []
    for photo in photos:
        file = io.BytesIO()
        Image.fromarray(photo.image).save(file, "PNG", compress_level=1)
        cut.append(replace(photo, crop=load_view("photo.png", file.getvalue(), square, long_side).crop))
    return tuple(cut)


def photograph(room: Room, poses: Float64, seed: int) -> tuple[View, ...]:
    """Photos of SIZE at poses (N, 4, 4), with noise and uneven exposure, as a phone with EXIF would take them."""
    K = intrinsics(SIZE, FOCAL)
    return tuple(
        View(
            name=f"{index}.jpg",
            image=render(room, pose, K, SIZE, rng=np.random.default_rng([seed, index])).rgb,
            original_size=SIZE,
            exif_focal=float(K[0, 0]),
            camera="rendered",
        )
        for index, pose in enumerate(poses)
    )


def truth(room: Room, poses: Float64, crops: Float64, grid: tuple[int, int]) -> tuple[Float64, np.ndarray]:
    """Points (N, H, W, 3) in view 0's frame at the centres of the cells of `crops`, and where there are some."""
    points, valid = [], []
    to_reference = np.linalg.inv(poses[0])
    for pose, (left, top, right, bottom) in zip(poses, crops):
        K = intrinsics(SIZE, FOCAL)
        K[:2, 2] -= left, top
        K[:2] *= [[grid[1] / (right - left)], [grid[0] / (bottom - top)]]
        world, seen, _ = cast(room, pose, K, (grid[1], grid[0]))
        points.append(world @ to_reference[:3, :3].T + to_reference[:3, 3])
        valid.append(seen)
    return np.stack(points), np.stack(valid)


def _measured(
    depth: np.ndarray, K: Float64, poses: Float64, crops: Float64, grid: tuple[int, int]
) -> tuple[Float64, np.ndarray]:
    """The same from depth maps (N, h, w): the nearest pixel's, taken along the ray through the cell's centre."""
    points, valid = [], []
    to_reference = np.linalg.inv(poses[0])
    h, w = depth.shape[1:]
    for z, k, pose, (left, top, right, bottom) in zip(depth, K, poses, crops):
        x = left + (np.arange(grid[1]) + 0.5) / grid[1] * (right - left)
        y = (top + (np.arange(grid[0]) + 0.5) / grid[0] * (bottom - top))[:, None]
        inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        there = np.where(inside, z[np.clip(y, 0, h - 1).astype(int), np.clip(x, 0, w - 1).astype(int)], 0)
        rays = np.stack(np.broadcast_arrays((x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], 1.0), axis=-1)
        turn = to_reference @ pose
        points.append(rays * there[..., None] @ turn[:3, :3].T + turn[:3, 3])
        valid.append(there > 0)
    return np.stack(points), np.stack(valid)
