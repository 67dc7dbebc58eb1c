"""Furniture: pieces built of solids in a frame of their own, from the materials of one room.

A piece's frame: x along the wall to the right as seen from the wall, y out of the wall into the room, z up, metres, the
origin on the floor at the wall.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from model.types import Float64, UInt8
from train import materials
from train.render import BOX, CYLINDER, ELLIPSOID, Light, Solid, Texture

WHITE = (1.0, 1.0, 1.0)
MATT = (0.0, 0.5)


def yaw_by(angle: float) -> Float64:
    """(3, 3) rotation about z."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def tilt_by(angle: float) -> Float64:
    """(3, 3) rotation about x."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])


def moved(solids: list[Solid], yaw: float, to: tuple[float, float, float]) -> list[Solid]:
    """The same solids turned about z by `yaw` radians, then shifted."""
    turn, shift = yaw_by(yaw), np.array(to, dtype=np.float64)
    return [replace(solid, centre=turn @ solid.centre + shift, rotation=turn @ solid.rotation) for solid in solids]


@dataclass(frozen=True)
class Piece:
    """A piece of furniture in its own frame, and the room it takes."""

    solids: list[list[Solid]]
    """Groups of solids that stand together."""
    width: float
    depth: float
    height: float
    lights: list[Light] = field(default_factory=list)

    def moved(self, yaw: float, to: tuple[float, float, float]) -> Piece:
        """The same piece turned about z by `yaw` radians, its origin at `to`."""
        turn, shift = yaw_by(yaw), np.array(to, dtype=np.float64)
        lights = [
            replace(x, centre=turn @ x.centre + shift, u=turn @ x.u, v=turn @ x.v, normal=turn @ x.normal)
            for x in self.lights
        ]
        return replace(self, solids=[moved(group, yaw, to) for group in self.solids if group], lights=lights)


class Workshop:
    """What rooms are furnished with: materials, tools to build with them, and the pieces that `train.scenes` asks for.

    Every random choice comes from `rng`. side: pixels of a material's picture.
    """

    floor: int
    white: int
    walls: list[int]
    """Textures of the room's shell; four walls."""

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        self.rng = rng
        self.side = side
        self.textures: list[Texture] = []

    def along_walls(self) -> tuple[list[Callable[[], Piece]], list[Callable[[], Piece]]]:
        """Makers of what stands at walls: those that come first, in any order, and those that fill what is left."""
        raise NotImplementedError

    def in_the_middle(self) -> list[Callable[[], Piece]]:
        """Three makers of what stands free, the origin its middle."""
        raise NotImplementedError

    def things(self, x0: float, x1: float, y0: float, y1: float, z: float, room_above: float = 1.0) -> list[Solid]:
        """A few things side by side on a top that spans [x0, x1] x [y0, y1] at height z."""
        raise NotImplementedError

    def window(self, w: float, h: float) -> Piece:
        raise NotImplementedError

    def door(self) -> Piece:
        raise NotImplementedError

    def picture(self, w: float, h: float) -> Piece:
        raise NotImplementedError

    def wall_board(self) -> Piece:
        raise NotImplementedError

    def pendant(self, height: float) -> Piece:
        """A lamp that hangs from the ceiling `height` up; the frame's origin is on the floor below it."""
        raise NotImplementedError

    def add(self, make: Callable[..., UInt8], detail: float, metres: float, *arguments: object) -> int:
        """Draw a material with its own generator, so that a room's layout does not depend on `side`; its index."""
        image = make(self.rng.spawn(1)[0], int(self.side * detail), *arguments)
        self.textures.append(Texture(image, metres, materials.GLOSS.get(make, MATT)))
        return len(self.textures) - 1

    def pick(self, options: list[int]) -> int:
        return options[self.rng.integers(len(options))]

    def solid(
        self,
        kind: int,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
        texture: int,
        tint: tuple[float, float, float] = WHITE,
        *,
        uv: tuple[float, float, float, float] | None = None,
        rotation: Float64 | None = None,
        emission: float = 0.0,
    ) -> Solid:
        """The solid that fills the box from low to high (before it is turned about its centre)."""
        a, b = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
        if uv is None:
            fitted = self.textures[texture].metres == 0
            uv = (0, 0, 1, 1) if fitted else (float(self.rng.uniform()), float(self.rng.uniform()), 1, 1)
        turn = np.eye(3) if rotation is None else rotation
        return Solid(kind, (a + b) / 2, np.maximum((b - a) / 2, 1e-3), texture, turn, uv, tint, emission)

    def box(self, x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, texture: int, **more: Any) -> Solid:
        return self.solid(BOX, (x0, y0, z0), (x1, y1, z1), texture, **more)

    def tube(self, x: float, y: float, radius: float, z0: float, z1: float, texture: int, **more: Any) -> Solid:
        return self.solid(
            CYLINDER,
            (x - radius, y - radius, z0),
            (x + radius, y + radius, z1),
            texture,
            **more,
        )

    def ball(self, x: float, y: float, z: float, radii: tuple[float, float, float], texture: int, **more: Any) -> Solid:
        low, high = (x - radii[0], y - radii[1], z - radii[2]), (x + radii[0], y + radii[1], z + radii[2])
        return self.solid(ELLIPSOID, low, high, texture, **more)


class Kit(Workshop):
    """One room's materials and furniture, as training sees them."""

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        super().__init__(rng, side)
        brown = np.array([0.6, 0.42, 0.27])
        # Darker and redder, or lighter and paler.
        tone = [tuple(float(v) for v in brown ** rng.uniform(0.5, 1.7)) for _ in range(3)]
        home = partial(materials.homely, rng)
        self.woods = [self.add(materials.wood, 1, rng.uniform(0.9, 1.4), t) for t in tone]
        self.fabrics = [self.add(materials.fabric, 1, rng.uniform(0.3, 0.6), home()) for _ in range(4)]
        self.lacquers = [self.add(materials.plaster, 1, 1.5, home(), 0.4) for _ in range(2)]
        self.metal = self.add(materials.metal, 0.5, 0.6, (0.55, 0.55, 0.57))
        self.dark = self.add(materials.metal, 0.5, 0.6, (0.12, 0.12, 0.13))
        self.stone = self.add(materials.stone, 1, 0.7, materials.hue(rng, (0.0, 0.2), (0.6, 0.9)))
        self.leaf = self.add(materials.leaves, 0.25, 0)
        self.spines = self.add(materials.spines, 2, 0)
        self.pictures = [self.add(materials.painting, 1, 0) for _ in range(4)]
        self.prints = [self.add(materials.print_sheet, 1, 0) for _ in range(3)]
        self.rug = self.add(materials.rug, 1, 0)
        self.sky = self.add(materials.outdoors, 0.5, 0)
        self.white = self.add(materials.plaster, 0.5, 1.5, (0.93, 0.92, 0.9), 0.3)
        kind = rng.integers(4)
        if kind < 2:
            self.floor = self.add(materials.wood, 2, 1.8, tuple(float(v) for v in brown * rng.uniform(0.7, 1.4)), 12)
        elif kind == 2:
            self.floor = self.add(materials.tiles, 1, 1.6, materials.hue(rng, (0.0, 0.15), (0.6, 0.9)), 4)
        else:
            self.floor = self.add(materials.carpet, 1, 0.8, home())
        plain = self.add(materials.plaster, 1, 1.2, materials.hue(rng, (0.03, 0.2), (0.8, 0.95)), 0.5)
        accent = [
            (materials.brick, 0.9, (0.6, 0.33, 0.24)),
            (materials.wallpaper, 1.1, home()),
            (materials.plaster, 1.2, home(), 1.5),
        ][rng.integers(3)]
        self.walls = [plain, plain, plain, self.add(accent[0], 1, *accent[1:])]

    def along_walls(self) -> tuple[list[Callable[[], Piece]], list[Callable[[], Piece]]]:
        first = [self.shelf, self.sofa, self.bed, self.wardrobe, self.desk, self.chest, self.shelf, self.plant]
        return [*first, self.floor_lamp], [self.chest, self.shelf, self.plant]

    def in_the_middle(self) -> list[Callable[[], Piece]]:
        return [self.dining, self.dining, self.lounge]

    def tone(self) -> tuple[float, float, float]:
        return materials.homely(self.rng)

    # ------------------------------------------------------------ things that stand on tops

    def books(self, x0: float, x1: float, y0: float, z0: float, tallest: float, deep: float) -> list[Solid]:
        """A row of books, spines to +y, with now and then a gap."""
        rng, row, x = self.rng, [], x0
        while True:
            thick, tall = rng.uniform(0.015, 0.05), tallest * rng.uniform(0.65, 0.97)
            if x + thick > x1:
                return row
            if rng.uniform() < 0.06:
                x += rng.uniform(0.03, 0.15)
                continue
            i, j = rng.integers(8, size=2)
            spine = (j / 8 + 0.002, i / 8 + 0.002, 0.121, 0.121)
            y1 = y0 + deep * rng.uniform(0.75, 1.0)
            row.append(self.box(x, x + thick, y0, y1, z0, z0 + tall, self.spines, uv=spine))
            x += thick + 0.001

    def pile(self, x: float, y: float, z: float) -> list[Solid]:
        """Books or magazines lying on each other, a cover on top."""
        rng, stack = self.rng, []
        for _ in range(rng.integers(1, 5)):
            w, d, h = rng.uniform(0.1, 0.15), rng.uniform(0.08, 0.11), rng.uniform(0.012, 0.04)
            cover = self.pick(self.prints + self.pictures)
            stack.append(self.box(x - w, x + w, y - d, y + d, z, z + h, cover, rotation=yaw_by(rng.uniform(-0.5, 0.5))))
            z += h
        return stack

    def mug(self, x: float, y: float, z: float) -> list[Solid]:
        r, tint = self.rng.uniform(0.035, 0.05), self.tone()
        handle = self.box(x + r, x + r + 0.03, y - 0.006, y + 0.006, z + 0.02, z + 0.08, self.white, tint=tint)
        return [self.tube(x, y, r, z, z + 0.1, self.stone, tint=tint), handle]

    def bowl(self, x: float, y: float, z: float) -> list[Solid]:
        rng = self.rng
        fruit = [
            self.ball(
                x + 0.07 * math.cos(a),
                y + 0.07 * math.sin(a),
                z + 0.085,
                (0.04, 0.04, 0.038),
                self.stone,
                tint=self.tone(),
            )
            for a in rng.uniform(0, 6.28) + np.arange(5) * 1.256
        ]
        return [self.tube(x, y, 0.13, z, z + 0.06, self.pick(self.woods)), *fruit]

    def vase(self, x: float, y: float, z: float) -> list[Solid]:
        rng, r, h = self.rng, self.rng.uniform(0.04, 0.06), self.rng.uniform(0.14, 0.24)
        return [
            self.tube(x, y, r, z, z + h, self.stone, tint=self.tone()),
            *self.foliage(x, y, z + h, rng.uniform(0.12, 0.2), 9),
        ]

    def foliage(self, x: float, y: float, z: float, reach: float, count: int) -> list[Solid]:
        """Leaves that rise from a point, flat ellipsoids at all angles."""
        rng, out = self.rng, []
        for k in range(count):
            turn, lift = k * 2.4 + rng.uniform(-0.3, 0.3), rng.uniform(0.2, 1.2)
            along = np.array([math.cos(turn) * math.cos(lift), math.sin(turn) * math.cos(lift), math.sin(lift)])
            side = np.array([-math.sin(turn), math.cos(turn), 0])
            length = reach * rng.uniform(0.7, 1.1)
            centre = np.array([x, y, z]) + along * length
            rotation = np.stack([side, np.cross(along, side), along], axis=1)
            half = np.array([length * 0.3, 0.004, length * 0.75])
            shade = float(rng.uniform(0.7, 1.3))
            out.append(Solid(ELLIPSOID, centre, half, self.leaf, rotation, (0, 0, 1, 1), (shade, shade, shade * 0.9)))
        return out

    def carton(self, x: float, y: float, z: float) -> list[Solid]:
        w, d, h = self.rng.uniform(0.06, 0.13), self.rng.uniform(0.05, 0.09), self.rng.uniform(0.1, 0.22)
        turn = yaw_by(self.rng.uniform(-0.6, 0.6))
        return [self.box(x - w, x + w, y - d, y + d, z, z + h, self.pick(self.prints), tint=self.tone(), rotation=turn)]

    def laptop(self, x: float, y: float, z: float) -> list[Solid]:
        lid = tilt_by(-0.3)
        return [
            self.box(x - 0.16, x + 0.16, y - 0.02, y + 0.2, z, z + 0.015, self.dark),
            self.box(
                x - 0.16, x + 0.16, y - 0.065, y - 0.055, z + 0.01, z + 0.22, self.pick(self.prints), rotation=lid
            ),
        ]

    def frame(self, x: float, y: float, z: float) -> list[Solid]:
        w, h, lean = self.rng.uniform(0.06, 0.1), self.rng.uniform(0.08, 0.13), tilt_by(-0.15)
        picture = self.pick(self.pictures)
        return [
            self.box(x - w, x + w, y - 0.01, y, z, z + 2 * h, self.pick(self.woods), rotation=lean),
            self.box(
                x - w * 0.85, x + w * 0.85, y + 0.002, y + 0.006, z + 0.02, z + 2 * h - 0.02, picture, rotation=lean
            ),
        ]

    def things(self, x0: float, x1: float, y0: float, y1: float, z: float, room_above: float = 1.0) -> list[Solid]:
        makers: list[Callable[[float, float, float], list[Solid]]] = [
            self.pile,
            self.mug,
            self.carton,
            self.frame,
            self.pile,
        ]
        if room_above > 0.5:
            makers += [self.vase, self.bowl, self.laptop]
        out, x = [], x0 + self.rng.uniform(0.12, 0.25)
        while x < x1 - 0.12:
            out += makers[self.rng.integers(len(makers))](
                x, float(self.rng.uniform(y0 + 0.1, max(y1 - 0.12, y0 + 0.11))), z
            )
            x += self.rng.uniform(0.26, 0.5)
        return out

    # ------------------------------------------------------------ furniture

    def shelf(self) -> Piece:
        """A bookcase: sides, back, boards, rows of books and things."""
        rng, wood = self.rng, self.pick(self.woods + self.lacquers)
        w, d, h = rng.uniform(0.8, 1.6), rng.uniform(0.26, 0.34), rng.uniform(1.4, 2.1)
        count = int(h / 0.36)
        frame = [
            self.box(-w / 2, -w / 2 + 0.03, 0, d, 0, h, wood),
            self.box(w / 2 - 0.03, w / 2, 0, d, 0, h, wood),
            self.box(-w / 2, w / 2, 0, 0.015, 0, h, wood),
            self.box(-w / 2, w / 2, 0, d, h, h + 0.025, wood),
        ]
        groups = [frame, self.things(-w / 2, w / 2, 0, d, h + 0.025, 0.3)]
        for k in range(count):
            z = 0.06 + k * (h - 0.06) / count
            frame.append(self.box(-w / 2 + 0.03, w / 2 - 0.03, 0.015, d, z - 0.025, z, wood))
            if rng.uniform() < 0.82:
                full = rng.uniform(0.6, 1.0) * (w - 0.08)
                groups.append(
                    self.books(-w / 2 + 0.04, -w / 2 + 0.04 + full, 0.03, z, (h - 0.06) / count - 0.04, d - 0.06)
                )
                if full < w - 0.35:
                    groups[-1] += self.things(-w / 2 + full, w / 2, 0.02, d, z, 0.25)
            else:
                groups.append(self.things(-w / 2 + 0.03, w / 2 - 0.03, 0.02, d, z, 0.25))
        return Piece(groups, w, d, h + 0.2)

    def chest(self) -> Piece:
        """A chest of drawers with things on it."""
        rng, wood, front = self.rng, self.pick(self.woods), self.pick(self.woods + self.lacquers)
        w, d, h, rows, cols = (
            rng.uniform(0.8, 1.4),
            rng.uniform(0.4, 0.5),
            rng.uniform(0.7, 1.0),
            int(rng.integers(2, 5)),
            int(rng.integers(1, 4)),
        )
        body = [
            self.box(-w / 2, w / 2, 0, d, 0.08, h, wood),
            self.box(-w / 2 - 0.02, w / 2 + 0.02, 0, d + 0.02, h, h + 0.03, wood),
        ]
        body += [
            self.box(sx * (w / 2 - 0.08) - 0.03, sx * (w / 2 - 0.08) + 0.03, y - 0.03, y + 0.03, 0, 0.08, wood)
            for sx in (-1, 1)
            for y in (0.05, d - 0.05)
        ]
        for i in range(rows):
            for j in range(cols):
                x0, x1 = -w / 2 + w * j / cols + 0.015, -w / 2 + w * (j + 1) / cols - 0.015
                z0, z1 = 0.08 + (h - 0.08) * i / rows + 0.015, 0.08 + (h - 0.08) * (i + 1) / rows - 0.01
                body.append(self.box(x0, x1, d, d + 0.015, z0, z1, front))
                body.append(self.ball((x0 + x1) / 2, d + 0.03, (z0 + z1) / 2, (0.018, 0.018, 0.018), self.metal))
        return Piece([body, self.things(-w / 2, w / 2, 0, d, h + 0.03)], w, d, h)

    def wardrobe(self) -> Piece:
        """A cupboard with two or three doors."""
        rng, wood = self.rng, self.pick(self.woods + self.lacquers)
        doors, h, d = int(rng.integers(2, 4)), rng.uniform(1.8, 2.15), 0.58
        w = doors * rng.uniform(0.42, 0.52)
        body = [self.box(-w / 2, w / 2, 0, d, 0, h, wood)]
        for k in range(doors):
            x0, x1 = -w / 2 + w * k / doors + 0.008, -w / 2 + w * (k + 1) / doors - 0.008
            body.append(self.box(x0, x1, d, d + 0.02, 0.08, h - 0.03, wood))
            body.append(self.box(x0 + 0.07, x1 - 0.07, d + 0.02, d + 0.028, 0.16, h * 0.45, wood))
            body.append(self.box(x0 + 0.07, x1 - 0.07, d + 0.02, d + 0.028, h * 0.5, h - 0.12, wood))
            side = x1 - 0.035 if k % 2 == 0 else x0 + 0.035
            body.append(self.tube(side, d + 0.035, 0.008, h * 0.44, h * 0.54, self.metal))
        return Piece([body, self.carton(-w / 4, d / 2, h) + self.carton(w / 4, d / 2, h)], w, d, h)

    def table_top(self, w: float, d: float, h: float, y0: float) -> list[Solid]:
        wood = self.pick(self.woods)
        legs = [(sx * (w / 2 - 0.06), y) for sx in (-1, 1) for y in (y0 + 0.06, y0 + d - 0.06)]
        out = [self.box(-w / 2, w / 2, y0, y0 + d, h - 0.035, h, wood)]
        out.append(self.box(-w / 2 + 0.06, w / 2 - 0.06, y0 + 0.05, y0 + d - 0.05, h - 0.11, h - 0.035, wood))
        if self.rng.uniform() < 0.5:
            return out + [self.tube(x, y, 0.025, 0, h - 0.035, wood) for x, y in legs]
        return out + [self.box(x - 0.03, x + 0.03, y - 0.03, y + 0.03, 0, h - 0.035, wood) for x, y in legs]

    def chair(self, x: float, y: float, yaw: float) -> list[Solid]:
        """A chair that faces -y before it is turned."""
        wood, seat = self.pick(self.woods), self.pick(self.fabrics)
        solids = [self.box(-0.21, 0.21, -0.21, 0.21, 0.44, 0.48, seat)]
        solids += [self.box(sx * 0.19 - 0.018, sx * 0.19 + 0.018, -0.2, -0.164, 0, 0.44, wood) for sx in (-1, 1)]
        solids += [self.box(sx * 0.19 - 0.018, sx * 0.19 + 0.018, 0.17, 0.206, 0, 0.95, wood) for sx in (-1, 1)]
        solids += [self.box(-0.18, 0.18, 0.18, 0.2, z, z + 0.07, wood) for z in (0.58, 0.71, 0.85)]
        return moved(solids, yaw, (x, y, 0))

    def desk(self) -> Piece:
        rng = self.rng
        w, d, h = rng.uniform(1.1, 1.6), rng.uniform(0.6, 0.75), 0.74
        things = self.things(-w / 2, w / 2, 0.05, d, h)
        return Piece(
            [
                self.table_top(w, d, h, 0.02),
                things,
                self.chair(rng.uniform(-0.2, 0.2), d + 0.15, rng.uniform(-0.5, 0.5)),
            ],
            w,
            d + 0.4,
            h,
        )

    def bed(self) -> Piece:
        """A bed, its head at the wall: mattress, blanket, cushions, head board."""
        rng, wood, cloth = self.rng, self.pick(self.woods), self.pick(self.fabrics)
        w, d = rng.uniform(0.95, 1.6), 2.05
        body = [
            self.box(-w / 2, w / 2, 0.03, d, 0.12, 0.3, wood),
            self.box(-w / 2, w / 2, 0, 0.04, 0, rng.uniform(0.8, 1.1), wood),
            self.box(-w / 2 + 0.02, w / 2 - 0.02, 0.04, d - 0.02, 0.3, 0.47, self.white),
            self.box(-w / 2 - 0.01, w / 2 + 0.01, 0.75, d + 0.01, 0.24, 0.5, cloth),
        ]
        body += [
            self.box(sx * (w / 2 - 0.05) - 0.03, sx * (w / 2 - 0.05) + 0.03, y - 0.03, y + 0.03, 0, 0.12, wood)
            for sx in (-1, 1)
            for y in (0.1, d - 0.1)
        ]
        count = 1 if w < 1.2 else 2
        for k in range(count):
            x = (k - (count - 1) / 2) * w / count
            body.append(self.ball(x, 0.32, 0.53, (0.3, 0.2, 0.1), self.white))
            body.append(
                self.ball(
                    x + rng.uniform(-0.1, 0.1),
                    0.5,
                    0.6,
                    (0.19, 0.09, 0.17),
                    self.pick(self.fabrics),
                    rotation=tilt_by(0.5),
                )
            )
        return Piece([body], w, d, 1.0)

    def sofa(self) -> Piece:
        rng, cloth = self.rng, self.pick(self.fabrics)
        w, d = rng.uniform(1.5, 2.1), 0.85
        body = [
            self.box(-w / 2, w / 2, 0.02, d, 0.1, 0.28, cloth),
            self.box(-w / 2, w / 2, 0.02, 0.24, 0.28, 0.82, cloth),
            self.box(-w / 2, -w / 2 + 0.18, 0.02, d, 0.28, 0.6, cloth),
            self.box(w / 2 - 0.18, w / 2, 0.02, d, 0.28, 0.6, cloth),
        ]
        seats = 2 if w < 1.8 else 3
        for k in range(seats):
            x0 = -w / 2 + 0.185 + (w - 0.37) * k / seats
            body.append(self.box(x0 + 0.005, x0 + (w - 0.37) / seats - 0.005, 0.24, d + 0.01, 0.28, 0.44, cloth))
        for x in rng.uniform(-w / 2 + 0.35, w / 2 - 0.35, int(rng.integers(1, 4))):
            cloth, turn = self.pick(self.fabrics), yaw_by(rng.uniform(-0.4, 0.4)) @ tilt_by(0.3)
            body += [self.ball(x, 0.35, 0.6, (0.21, 0.08, 0.2), cloth, rotation=turn)]
        body += [
            self.tube(sx * (w / 2 - 0.08), y, 0.025, 0, 0.1, self.pick(self.woods))
            for sx in (-1, 1)
            for y in (0.1, d - 0.08)
        ]
        return Piece([body], w, d, 0.85)

    def plant(self) -> Piece:
        r, tall = self.rng.uniform(0.13, 0.2), self.rng.uniform(0.3, 0.45)
        pot = [
            self.tube(0, 0.3, r, 0, tall, self.stone, tint=self.tone()),
            self.tube(0, 0.3, r * 0.9, tall, tall + 0.005, self.dark),
        ]
        stem = self.tube(0, 0.3, 0.012, tall, tall + 0.4, self.pick(self.woods))
        leaves = self.foliage(0, 0.3, tall, 0.26, 10) + self.foliage(0, 0.3, tall + 0.35, 0.24, 12)
        return Piece([[*pot, stem], leaves], 0.6, 0.6, 1.3)

    def floor_lamp(self) -> Piece:
        h, warm = self.rng.uniform(1.4, 1.6), np.array([1.0, 0.8, 0.55])
        solids = [
            self.tube(0, 0.25, 0.14, 0, 0.025, self.dark),
            self.tube(0, 0.25, 0.012, 0.025, h, self.dark),
            self.tube(0, 0.25, 0.17, h - 0.02, h + 0.24, self.white, tint=(1.0, 0.88, 0.7), emission=0.7),
        ]
        bulb = Light(
            np.array([0, 0.25, h + 0.1]), np.array([0.12, 0, 0]), np.array([0, 0.12, 0]), np.zeros(3), warm * 0.35
        )
        return Piece([solids], 0.5, 0.5, h + 0.3, [bulb])

    def door(self) -> Piece:
        paint = self.pick(self.lacquers + self.woods)
        solids = [
            self.box(-0.5, -0.42, 0, 0.03, 0, 2.08, self.white),
            self.box(0.42, 0.5, 0, 0.03, 0, 2.08, self.white),
            self.box(-0.5, 0.5, 0, 0.03, 2.0, 2.08, self.white),
            self.box(-0.42, 0.42, 0, 0.015, 0, 2.0, paint),
            self.box(-0.3, 0.3, 0.015, 0.022, 0.2, 0.85, paint),
            self.box(-0.3, 0.3, 0.015, 0.022, 1.05, 1.85, paint),
            self.box(0.26, 0.38, 0.04, 0.055, 0.99, 1.01, self.metal),
        ]
        return Piece([solids], 1.0, 0.8, 2.1)

    def picture(self, w: float, h: float) -> Piece:
        image, wood = self.pick(self.pictures + self.prints), self.pick([*self.woods, self.dark])
        mount = self.rng.uniform(0.02, 0.05)
        solids = [
            self.box(-w / 2, w / 2, 0, 0.022, 0, h, wood),
            self.box(-w / 2 + 0.018, w / 2 - 0.018, 0.022, 0.024, 0.018, h - 0.018, self.white),
            self.box(-w / 2 + mount, w / 2 - mount, 0.024, 0.026, mount, h - mount, image),
        ]
        return Piece([solids], w, 0.03, h)

    def wall_board(self) -> Piece:
        """A board on the wall with books and things."""
        w, d = self.rng.uniform(0.6, 1.1), 0.22
        books = self.books(-w / 2 + 0.02, self.rng.uniform(-0.1, w / 2), 0.01, 0.025, 0.26, 0.17)
        return Piece([[self.box(-w / 2, w / 2, 0, d, 0, 0.025, self.pick(self.woods))], books], w, d, 0.35)

    def window(self, w: float, h: float) -> Piece:
        """A window that shines, its frame, sill, radiator and curtains."""
        glass = self.box(-w / 2, w / 2, 0.002, 0.01, 0, h, self.sky, emission=1.0)
        bars = [self.box(x - 0.03, x + 0.03, 0.01, 0.05, 0, h, self.white) for x in (-w / 2, 0.0, w / 2)]
        bars += [self.box(-w / 2, w / 2, 0.01, 0.05, z - 0.03, z + 0.03, self.white) for z in (0.0, h * 0.68, h)]
        sill = [self.box(-w / 2 - 0.08, w / 2 + 0.08, 0, 0.2, -0.06, -0.03, self.stone)]
        sill += self.things(-w / 2, w / 2, 0.02, 0.2, -0.03, 0.3) if self.rng.uniform() < 0.6 else []
        radiator = [
            self.box(x, x + 0.06, 0.04, 0.1, -0.75, -0.15, self.white)
            for x in np.arange(-w / 2 + 0.05, w / 2 - 0.05, 0.075)
        ]
        cloth, folds = self.pick(self.fabrics), []
        for sx in (-1, 1):
            for k in range(6):
                x = sx * (w / 2 + 0.28 - 0.075 * k)
                r = self.rng.uniform(0.038, 0.055)
                folds.append(self.tube(x, 0.13 + 0.012 * (k % 2), r, -0.8, h + 0.12, cloth))
        folds.append(self.box(-w / 2 - 0.4, w / 2 + 0.4, 0.12, 0.145, h + 0.12, h + 0.145, self.dark))
        day = np.array([0.92, 0.97, 1.0]) * w * h * 1.3
        light = Light(
            np.array([0, 0.03, h / 2]), np.array([w / 2, 0, 0]), np.array([0, 0, h / 2]), np.array([0.0, 1.0, 0.0]), day
        )
        return Piece([[glass, *bars], sill, radiator, folds], w + 0.9, 0.25, h, [light])

    def dining(self) -> Piece:
        """A table on a rug with chairs around and things on it; the frame's origin is its middle."""
        rng = self.rng
        w, d, h = rng.uniform(1.2, 1.7), rng.uniform(0.75, 0.95), 0.75
        groups = [
            [self.box(-w / 2 - 0.5, w / 2 + 0.5, -d / 2 - 0.5, d / 2 + 0.5, 0, 0.008, self.rug)],
            self.table_top(w, d, h, -d / 2),
        ]
        groups.append(self.things(-w / 2, w / 2, -d / 2, 0.05, h) + self.things(-w / 2, w / 2, 0.0, d / 2, h))
        for side, yaw in ((1, 0.0), (-1, math.pi)):
            for x in rng.permutation([-w / 4, w / 4])[: rng.integers(1, 3)]:
                away = d / 2 + rng.uniform(0.0, 0.25)
                groups.append(self.chair(float(x), side * away, yaw + float(rng.uniform(-0.35, 0.35))))
        return Piece(groups, w + 0.2, d + 0.7, h)

    def lounge(self) -> Piece:
        """A low table on a rug; the frame's origin is its middle."""
        rng = self.rng
        w, d, h = rng.uniform(0.9, 1.2), rng.uniform(0.55, 0.7), 0.42
        rug = self.box(-w / 2 - 0.5, w / 2 + 0.5, -d / 2 - 0.5, d / 2 + 0.5, 0, 0.008, self.rug)
        stool = [self.tube(w / 2 + 0.25, rng.uniform(-0.3, 0.3), 0.2, 0.008, 0.42, self.pick(self.fabrics))]
        return Piece(
            [[rug], self.table_top(w, d, h, -d / 2), self.things(-w / 2, w / 2, -d / 2, d / 2, h), stool], w + 0.6, d, h
        )

    def pendant(self, height: float) -> Piece:
        z, warm = height - self.rng.uniform(0.5, 0.8), np.array([1.0, 0.87, 0.7])
        solids = [
            self.tube(0, 0, 0.006, z, height, self.dark),
            self.tube(0, 0, 0.05, height - 0.03, height, self.white),
            self.ball(0, 0, z - 0.1, (0.17, 0.17, 0.14), self.white, tint=(1.0, 0.93, 0.82), emission=0.8),
        ]
        bulb = Light(np.array([0, 0, z - 0.1]), np.array([0.14, 0, 0]), np.array([0, 0.14, 0]), np.zeros(3), warm * 1.3)
        return Piece([solids], 0.4, 0.4, height, [bulb])
