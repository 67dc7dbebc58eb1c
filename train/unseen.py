"""Rooms of other materials and other furniture than training ever sees: for evaluation alone.

Nothing here is made by `train.materials`' pictures or `train.furniture`'s pieces, and nothing that trains may import
this: what a network scores here, it does not owe to having learned the furniture by heart. The shell, the way
furniture is set out, and the light are those of `train.scenes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from model.types import Float32, Float64, UInt8
from train.furniture import Piece, Workshop, moved, tilt_by, yaw_by
from train.materials import Colour, hue, noise
from train.render import CYLINDER, Light, Solid

_STREET = np.array([(0.93, 0.33, 0.22), (0.98, 0.76, 0.18), (0.11, 0.6, 0.53), (0.16, 0.42, 0.72), (0.63, 0.33, 0.6)])
"""Louder than what `train.materials` paints with."""


def loud(rng: np.random.Generator) -> Colour:
    """A colour of toys and signs, or black or white."""
    if rng.uniform() < 0.25:
        return (0.12, 0.12, 0.13) if rng.uniform() < 0.5 else (0.94, 0.94, 0.92)
    return tuple(float(v) for v in np.clip(_STREET[rng.integers(5)] * rng.uniform(0.7, 1.05), 0, 1))


def _bytes(picture: Float32) -> UInt8:
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _grid(n: int) -> tuple[Float64, Float64]:
    """y and x from 0 to 1 at pixel centres, (n, n) each."""
    y, x = np.mgrid[0:n, 0:n]
    return (y + 0.5) / n, (x + 0.5) / n


def _cells(rng: np.random.Generator, n: int, count: int) -> tuple[np.ndarray, Float64]:
    """Of `count` random points that wrap: which is nearest (n, n), and how much nearer than the next, in widths."""
    y, x = _grid(n)
    first, second = np.full((n, n), 9.0), np.full((n, n), 9.0)
    index = np.zeros((n, n), dtype=np.int64)
    for k, (cy, cx) in enumerate(rng.uniform(size=(count, 2))):
        dy, dx = np.abs(y - cy), np.abs(x - cx)
        distance = np.hypot(np.minimum(dy, 1 - dy), np.minimum(dx, 1 - dx))
        nearer = distance < first
        second = np.where(nearer, first, np.minimum(second, distance))
        index[nearer] = k
        first = np.minimum(first, distance)
    return index, second - first


# ---------------------------------------------------------------- materials


def basket(rng: np.random.Generator, n: int, colour: Colour, cells: int = 6, strips: int = 4) -> UInt8:
    """Parquet of squares of strips, every other square turned; cells must be even so that it wraps."""
    y, x = _grid(n)
    turned = (np.floor(y * cells) + np.floor(x * cells)) % 2 == 1
    across, along = np.where(turned, x, y), np.where(turned, y, x)
    strip = np.floor(across * cells * strips).astype(int) % (cells * strips)
    block = np.floor(along * cells).astype(int)
    tone = rng.normal(1, 0.13, (cells * strips, cells, 1)) * rng.normal(1, 0.02, (cells * strips, cells, 3))
    fibre = noise(rng, n, 0.5, 12, 8)
    shade = 1 + 0.06 * np.where(turned, fibre.T, fibre)
    joint = np.abs((across * cells * strips) % 1 - 0.5) > 0.46
    joint |= np.abs((along * cells) % 1 - 0.5) > 0.49
    picture = np.asarray(colour) * tone[strip, block] * shade[..., None]
    return _bytes(picture * (1 - 0.55 * joint[..., None]))


def diamonds(rng: np.random.Generator, n: int, colour: Colour, rows: int = 6) -> UInt8:
    """Square tiles laid on their corners, in two or three glazes."""
    y, x = _grid(n)
    palette = np.array([colour, loud(rng), hue(rng, (0, 0.1), (0.8, 0.95))])
    best, index = np.full((n, n), 9.0), np.zeros((n, n), dtype=int)
    glazes = rng.choice(3, size=(2, rows, rows), p=[0.6, 0.2, 0.2])
    second = best.copy()
    for half in (0, 1):
        row, column = np.floor(y * rows + half / 2), np.floor(x * rows + half / 2)
        distance = np.hypot((y * rows + half / 2) % 1 - 0.5, ((x * rows + half / 2) % 1 - 0.5) * 1.0)
        nearer = distance < best
        second = np.where(nearer, best, np.minimum(second, distance))
        glaze = glazes[half, row.astype(int) % rows, column.astype(int) % rows]
        index = np.where(nearer, glaze, index)
        best = np.minimum(best, distance)
    grout = second - best < 0.05
    picture = palette[index] * (1 + 0.03 * noise(rng, n, 0.8, 1, 6))[..., None]
    return _bytes(np.where(grout[..., None], 0.82, picture))


def terrazzo(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Chips of stone in a ground."""
    chip, rim = _cells(rng, n, 160)
    tones = np.array([loud(rng), hue(rng, (0.1, 0.4), (0.3, 0.9)), (0.25, 0.25, 0.27)])[rng.integers(0, 3, 160)]
    stays = (rng.uniform(0.012, 0.06, 160)[chip] < rim) & (rng.uniform(size=160) < 0.6)[chip]
    picture = np.where(stays[..., None], tones[chip], np.asarray(colour))
    return _bytes(picture * (1 + 0.03 * noise(rng, n, 0.6, 1, 8))[..., None])


def concrete(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Cast panels with tie holes, stains and pores."""
    y, x = _grid(n)
    shade = 1 + 0.05 * noise(rng, n, 1.3, 0.4) + 0.03 * noise(rng, n, 0.4, 1, 10)
    shade -= 0.25 * (noise(rng, n, 0.3, 1, 12) > 2.6)
    joint = (np.minimum(y % 0.5, 0.5 - y % 0.5) < 0.004) | (np.minimum(x, 1 - x) < 0.003)
    holes = np.hypot((y * 2) % 1 - 0.5, (x * 4) % 1 - 0.5) * [[1]] < 0.05
    return _bytes(np.asarray(colour) * (shade * (1 - 0.4 * joint) * (1 - 0.6 * holes))[..., None])


def chipboard(rng: np.random.Generator, n: int) -> UInt8:
    """Pressed strands of wood, at all angles."""
    picture = np.full((n, n, 3), (0.7, 0.52, 0.33), dtype=np.float32)
    for _ in range(500):
        at, size = rng.uniform(0, n, 2), (rng.uniform(0.03, 0.12) * n, rng.uniform(0.006, 0.025) * n)
        tint = np.array((0.82, 0.64, 0.42)) * rng.uniform(0.65, 1.15)
        angle = float(rng.uniform(0, 180))
        for dy in (-n, 0, n):
            for dx in (-n, 0, n):
                if abs(at[0] + dx - n / 2) < 0.65 * n and abs(at[1] + dy - n / 2) < 0.65 * n:
                    box = cv2.boxPoints(((at[0] + dx, at[1] + dy), size, angle)).astype(np.int32)
                    cv2.fillPoly(picture, [box], tuple(float(v) for v in tint), cv2.LINE_AA)
    return _bytes(picture * (1 + 0.05 * noise(rng, n, 0.3, 1, 20))[..., None])


def knit(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Stitches like rows of V, with a band of another yarn."""
    y, x = _grid(n)
    stitches = 24
    slope = np.abs((x * stitches) % 1 - 0.5)
    ridge = 0.5 + 0.5 * np.cos(2 * math.pi * (y * stitches - 1.2 * slope))
    yarn = np.where(((np.floor(y * stitches - 1.2 * slope) % 8) < rng.integers(2, 5))[..., None], colour, loud(rng))
    shade = (0.62 + 0.4 * ridge) * (1 - 0.35 * (slope > 0.44)) + 0.03 * noise(rng, n, 0.2, 1, 20)
    return _bytes(yarn * shade[..., None])


def zigzag(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Cloth or paper with broken stripes."""
    y, x = _grid(n)
    bands = 4 * int(rng.integers(1, 3))
    phase = y * bands + np.abs((x * bands) % 1 - 0.5)
    palette = np.array([colour, loud(rng), (0.93, 0.91, 0.86), loud(rng)])
    return _bytes(palette[np.floor(phase * 2).astype(int) % 4] * (1 + 0.04 * noise(rng, n, 0.2, 1, 20))[..., None])


def spotted(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Rings and blots as on a big cat, or dots in rows."""
    if rng.uniform() < 0.5:
        field = noise(rng, n, 0.9, 1, 6)
        blots = (np.abs(field - 0.9) < 0.45)[..., None]
        picture = np.where(blots, 0.2 * np.asarray(colour), np.asarray(colour) * 0.8 + 0.2)
    else:
        y, x = _grid(n)
        shifted = x * 6 + 0.5 * (np.floor(y * 6) % 2)
        dots = np.hypot((y * 6) % 1 - 0.5, shifted % 1 - 0.5) < rng.uniform(0.2, 0.35)
        picture = np.where(dots[..., None], loud(rng), np.asarray(colour))
    return _bytes(picture * (1 + 0.04 * noise(rng, n, 0.2, 1, 20))[..., None])


def scales(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Overlapping fans of concentric rings, row over row."""
    y, x = _grid(n)
    across, picture = 6, np.zeros((n, n, 3))
    ink = np.asarray(loud(rng))
    for row in range(2 * across + 4):
        cy = (row - 1) / (2 * across)
        shifted = (x * across + 0.5 * (row % 2)) % 1 - 0.5
        radius = np.hypot((y - cy) * across, shifted) * 2
        fan = (radius < 1) & (y <= cy + 0.5)
        ring = (np.floor(radius * 5) % 2 == 0)[..., None]
        picture = np.where(fan[..., None] & (picture.sum(-1, keepdims=True) == 0), np.where(ring, colour, ink), picture)
    return _bytes(np.maximum(picture, 0.02) * (1 + 0.03 * noise(rng, n, 0.4, 1, 10))[..., None])


def zinc(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Galvanised sheet: large crystals, each a little lighter or darker."""
    crystal, _ = _cells(rng, n, 90)
    return _bytes(np.asarray(colour) * (rng.normal(1, 0.09, 90)[crystal] + 0.02 * noise(rng, n, 0.2, 6, 20))[..., None])


def poster(rng: np.random.Generator, n: int) -> UInt8:
    """Printed: a map's contours, rings, a chart of bars, or a code of squares."""
    y, x = _grid(n)
    paper, ink, other = np.asarray(hue(rng, (0, 0.15), (0.85, 1))), np.asarray(loud(rng)), np.asarray(loud(rng))
    style = rng.integers(4)
    if style == 0:
        height = noise(rng, n, 1.9, 1, 1)
        line = (np.abs((height * 4) % 1 - 0.5) > 0.42)[..., None]
        picture = np.where(line, ink, np.where((height < -0.8)[..., None], (0.55, 0.75, 0.9), paper))
    elif style == 1:
        distance = np.hypot(y - rng.uniform(0.3, 0.7), x - rng.uniform(0.3, 0.7))
        picture = np.where((np.floor(distance * rng.uniform(8, 20)) % 2 == 0)[..., None], ink, other)
    elif style == 2:
        bars = rng.uniform(0.1, 0.85, int(rng.integers(5, 12)))
        column = np.minimum((x * len(bars)).astype(int), len(bars) - 1)
        bar = (y > 1 - bars[column]) & (np.abs((x * len(bars)) % 1 - 0.5) < 0.36)
        picture = np.where(bar[..., None], np.where((column % 2 == 0)[..., None], ink, other), paper)
        picture = np.where((np.abs((y * 8) % 1) < 0.04)[..., None], picture * 0.8, picture)
    else:
        code = rng.uniform(size=(21, 21)) < 0.5
        for i, j in ((0, 0), (0, 14), (14, 0)):
            ring = np.maximum(*np.abs(np.mgrid[-3:4, -3:4]))
            code[i : i + 7, j : j + 7] = ring != 2
        cell = np.minimum((np.stack([y, x]) * 23).astype(int) - 1, 21).clip(-1)
        inside = ((cell >= 0) & (cell < 21)).all(0)
        dark = inside & code[np.clip(cell[0], 0, 20), np.clip(cell[1], 0, 20)]
        picture = np.where(dark[..., None], ink * 0.5, paper)
    return _bytes(picture)


def shore(rng: np.random.Generator, n: int) -> UInt8:
    """What a window shows: hills behind water, an evening sky, a sail."""
    y, x = _grid(n)
    sky = np.array((0.98, 0.72, 0.5)) * y[..., None] + np.array((0.45, 0.6, 0.85)) * (1 - y[..., None])
    ridge = 0.5 - 0.08 * np.abs(noise(rng, n, 1.5)[0])
    picture = np.where((y > ridge[None])[..., None], (0.35, 0.36, 0.5), sky)
    water = np.array((0.3, 0.45, 0.55)) + 0.12 * (noise(rng, n, 0.6, 0.15, 3) > 0.8)[..., None]
    picture = np.where((y > 0.56)[..., None], water, picture)
    at = rng.uniform(0.2, 0.8)
    sail = (y < 0.62) & (y > 0.5) & (np.abs(x - at) < (y - 0.5) * 0.3)
    return _bytes(np.where(sail[..., None], (0.97, 0.95, 0.9), picture))


def keys(_: np.random.Generator, n: int) -> UInt8:
    """Two octaves of a keyboard, seen from above."""
    y, x = _grid(n)
    white = np.where(np.abs((x * 14) % 1 - 0.5) > 0.46, 0.35, 0.95)
    octave = (x * 14) % 7
    black = np.zeros_like(x, dtype=bool)
    for at in (1, 2, 4, 5, 6):
        black |= np.abs(octave - at) < 0.3
    return _bytes(np.repeat(np.where(black & (y < 0.62), 0.06, white)[..., None], 3, axis=2))


# ---------------------------------------------------------------- furniture


class Storeroom(Workshop):
    """A room's kitchen, music, toys and tools; pieces as in `train.furniture`, out of the wall along +y."""

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        super().__init__(rng, side)
        self.boards = [self.add(chipboard, 1, 1.0), self.add(basket, 1, 0.5, (0.45, 0.3, 0.2), 4, 3)]
        self.cloths = [
            self.add(make, 1, metres, loud(rng))
            for make, metres in ((knit, 0.5), (zigzag, 0.6), (spotted, 0.5), (knit, 0.4))
        ]
        self.paints = [self.add(terrazzo, 1, 0.6, loud(rng)), self.add(concrete, 1, 1.6, loud(rng))]
        self.steel = self.add(zinc, 1, 0.8, (0.62, 0.64, 0.66))
        self.black = self.add(concrete, 0.5, 0.5, (0.1, 0.1, 0.11))
        self.glaze = self.add(diamonds, 1, 0.4, loud(rng))
        self.posters = [self.add(poster, 1, 0) for _ in range(5)]
        self.keys = self.add(keys, 0.5, 0)
        self.view = self.add(shore, 0.5, 0)
        self.white = self.add(concrete, 0.5, 2.0, (0.92, 0.92, 0.93))
        grounds = ((basket, 1.2, (0.55, 0.4, 0.27)), (diamonds, 0.9, (0.7, 0.72, 0.7)), (terrazzo, 1.0, (0.85,) * 3))
        make, metres, colour = grounds[rng.integers(3)]
        self.floor = self.add(make, 1, metres, colour)
        plain = self.add(concrete, 1, 2.4, hue(rng, (0.0, 0.1), (0.6, 0.85)))
        papers = ((scales, 0.9), (zigzag, 1.0), (terrazzo, 0.9))
        paper, metres = papers[rng.integers(3)]
        self.walls = [plain, plain, self.add(paper, 1, metres, loud(rng)), plain]

    def along_walls(self) -> tuple[list[Callable[[], Piece]], list[Callable[[], Piece]]]:
        first = [self.kitchen, self.fridge, self.piano, self.hearth, self.screen, self.bean_bag, self.steps, self.easel]
        return [*first, self.crates], [self.crates, self.ladder_shelf, self.barrel]

    def in_the_middle(self) -> list[Callable[[], Piece]]:
        return [self.round_table, self.round_table, self.bench]

    def disc(self, x: float, y: float, z: float, r: float, thick: float, texture: int, **more: object) -> Solid:
        """A round plate that faces +y."""
        centre, half = np.array([x, y, z]), np.array([r, r, thick / 2])
        return Solid(CYLINDER, centre, half, texture, tilt_by(math.pi / 2), **more)  # type: ignore[arg-type]

    # ------------------------------------------------------------ small things

    def bottle(self, x: float, y: float, z: float) -> list[Solid]:
        r, h, tint = self.rng.uniform(0.03, 0.045), self.rng.uniform(0.14, 0.22), loud(self.rng)
        return [
            self.tube(x, y, r, z, z + h, self.white, tint=tint),
            self.ball(x, y, z + h, (r, r, r), self.white, tint=tint),
            self.tube(x, y, r * 0.35, z + h, z + h + 0.09, self.white, tint=tint),
        ]

    def blocks(self, x: float, y: float, z: float) -> list[Solid]:
        """Toy bricks in a leaning tower."""
        out = []
        for _ in range(self.rng.integers(3, 7)):
            a, turn = self.rng.uniform(0.03, 0.05), yaw_by(float(self.rng.uniform(0, 1.5)))
            texture = self.pick([*self.posters, self.white])
            out.append(self.box(x - a, x + a, y - a, y + a, z, z + 2 * a, texture, tint=loud(self.rng), rotation=turn))
            z += 2 * a
        return out

    def balls(self, x: float, y: float, z: float) -> list[Solid]:
        r = self.rng.uniform(0.05, 0.11)
        return [self.ball(x, y, z + r, (r, r, r), self.pick(self.cloths))]

    def plates(self, x: float, y: float, z: float) -> list[Solid]:
        return [
            self.tube(x, y, 0.09 + 0.03 * (k % 2), z + 0.02 * k, z + 0.02 * k + 0.012, self.glaze)
            for k in range(self.rng.integers(2, 7))
        ]

    def lantern(self, x: float, y: float, z: float) -> list[Solid]:
        posts = [(sx, sy) for sx in (-0.06, 0.06) for sy in (-0.06, 0.06)]
        out = [
            self.box(x + a - 0.006, x + a + 0.006, y + b - 0.006, y + b + 0.006, z, z + 0.2, self.black)
            for a, b in posts
        ]
        out.append(self.box(x - 0.08, x + 0.08, y - 0.08, y + 0.08, z + 0.2, z + 0.22, self.black))
        return [*out, self.tube(x, y, 0.03, z, z + 0.1, self.white, tint=loud(self.rng))]

    def clock(self, x: float, y: float, z: float) -> list[Solid]:
        r = self.rng.uniform(0.07, 0.12)
        return [
            self.disc(x, y, z + r, r, 0.05, self.black),
            self.disc(x, y + 0.027, z + r, r * 0.88, 0.006, self.white),
        ]

    def things(self, x0: float, x1: float, y0: float, y1: float, z: float, room_above: float = 1.0) -> list[Solid]:  # noqa: ARG002
        makers = [self.bottle, self.blocks, self.balls, self.plates, self.lantern, self.clock]
        out, x = [], x0 + float(self.rng.uniform(0.1, 0.2))
        while x < x1 - 0.1:
            y = float(self.rng.uniform(y0 + 0.1, max(y1 - 0.1, y0 + 0.11)))
            out += makers[self.rng.integers(len(makers))](x, y, z)
            x += float(self.rng.uniform(0.22, 0.45))
        return out

    # ------------------------------------------------------------ along walls

    def kitchen(self) -> Piece:
        """Cupboards under a worktop with a hob and a tap, tiles behind."""
        rng, front = self.rng, self.pick(self.paints + self.boards)
        units = int(rng.integers(3, 5))
        w, d, h = units * 0.6, 0.6, 0.9
        body = [
            self.box(-w / 2, w / 2, 0, d - 0.04, 0.1, h - 0.04, self.white),
            self.box(-w / 2 - 0.01, w / 2 + 0.01, 0, d, h - 0.04, h, self.pick(self.paints)),
            self.box(-w / 2, w / 2, 0, 0.012, h, h + 0.55, self.glaze),
        ]
        for k in range(units):
            x0 = -w / 2 + 0.6 * k
            body.append(self.box(x0 + 0.01, x0 + 0.59, d - 0.04, d - 0.015, 0.12, h - 0.06, front))
            body.append(self.box(x0 + 0.1, x0 + 0.5, d - 0.015, d + 0.01, h - 0.13, h - 0.115, self.steel))
        rings = [(-w / 2 + 0.18 + 0.24 * i, 0.18 + 0.22 * j) for i in (0, 1) for j in (0, 1)]
        body += [self.tube(x, y, 0.09, h, h + 0.006, self.black) for x, y in rings]
        sink = w / 2 - 0.4
        tap = [
            self.box(sink - 0.22, sink + 0.22, 0.12, 0.5, h, h + 0.004, self.steel),
            self.tube(sink, 0.1, 0.014, h, h + 0.28, self.steel),
            self.box(sink - 0.012, sink + 0.012, 0.1, 0.28, h + 0.27, h + 0.29, self.steel),
        ]
        return Piece([body, tap, self.things(-w / 2 + 0.6, sink - 0.25, 0.05, d - 0.1, h)], w, d, h + 0.55)

    def fridge(self) -> Piece:
        tint, h = loud(self.rng), float(self.rng.uniform(1.5, 1.9))
        body = [
            self.box(-0.32, 0.32, 0, 0.6, 0.03, h, self.steel, tint=tint),
            self.box(-0.32, 0.32, 0.6, 0.64, 0.03, h * 0.62, self.steel, tint=tint),
            self.box(-0.32, 0.32, 0.6, 0.64, h * 0.635, h, self.steel, tint=tint),
            self.tube(0.26, 0.67, 0.012, h * 0.35, h * 0.58, self.black),
            self.tube(0.26, 0.67, 0.012, h * 0.68, h * 0.85, self.black),
        ]
        note = [
            self.box(x, x + 0.12, 0.64, 0.643, z, z + 0.15, self.pick(self.posters))
            for x, z in zip(self.rng.uniform(-0.28, 0.1, 4), self.rng.uniform(0.9, h - 0.2, 4))
        ]
        return Piece([body, note, self.things(-0.3, 0.3, 0.1, 0.5, h)], 0.68, 0.66, h + 0.2)

    def piano(self) -> Piece:
        body = [
            self.box(-0.72, 0.72, 0.02, 0.4, 0.1, 1.2, self.black),
            self.box(-0.76, 0.76, 0, 0.44, 1.2, 1.24, self.black),
            self.box(-0.72, 0.72, 0.4, 0.62, 0.62, 0.7, self.black),
            self.box(-0.64, 0.64, 0.42, 0.6, 0.7, 0.715, self.keys),
            self.box(-0.3, 0.3, 0.4, 0.43, 0.86, 1.1, self.pick(self.posters), rotation=tilt_by(0.15)),
        ]
        body += [self.box(x - 0.03, x + 0.03, 0.54, 0.6, 0, 0.62, self.black) for x in (-0.68, 0.68)]
        stool = [
            self.tube(0, 0.95, 0.17, 0.46, 0.52, self.pick(self.cloths)),
            self.tube(0, 0.95, 0.04, 0, 0.46, self.steel),
        ]
        return Piece([body, stool, self.things(-0.7, 0.7, 0.0, 0.35, 1.24)], 1.55, 1.0, 1.4)

    def hearth(self) -> Piece:
        stone = self.pick(self.paints)
        body = [
            self.box(-0.65, -0.38, 0, 0.35, 0, 0.95, stone),
            self.box(0.38, 0.65, 0, 0.35, 0, 0.95, stone),
            self.box(-0.38, 0.38, 0, 0.35, 0.68, 0.95, stone),
            self.box(-0.38, 0.38, 0, 0.02, 0, 0.68, self.black),
            self.box(-0.75, 0.75, 0, 0.42, 0.95, 1.01, self.pick(self.boards)),
            self.box(-0.45, 0.45, 0, 0.25, 1.01, 2.2, stone),
        ]
        logs = []
        for x, z in ((-0.18, 0.09), (0.02, 0.09), (0.2, 0.09), (-0.08, 0.23), (0.11, 0.23)):
            logs.append(self.disc(x, 0.17, z, 0.075, 0.28, self.boards[1]))
        return Piece([body, logs, self.things(-0.75, -0.45, 0.05, 0.4, 1.01)], 1.5, 0.45, 2.2)

    def screen(self) -> Piece:
        """A television on a low board with loudspeakers."""
        w, board = float(self.rng.uniform(1.3, 1.8)), self.pick(self.boards)
        body = [
            self.box(-w / 2, w / 2, 0.03, 0.43, 0.12, 0.45, board),
            *[self.tube(x, y, 0.02, 0, 0.12, self.black) for x in (-w / 2 + 0.1, w / 2 - 0.1) for y in (0.1, 0.36)],
            self.box(-0.5, 0.5, 0.18, 0.22, 0.53, 1.1, self.black),
            self.box(-0.48, 0.48, 0.22, 0.223, 0.55, 1.08, self.pick(self.posters)),
            self.box(-0.15, 0.15, 0.12, 0.3, 0.45, 0.465, self.black),
            self.tube(0, 0.2, 0.03, 0.46, 0.54, self.black),
        ]
        speakers = []
        for x in (-w / 2 - 0.18, w / 2 + 0.18):
            speakers.append(self.box(x - 0.12, x + 0.12, 0.05, 0.32, 0, 0.9, board))
            speakers += [
                self.disc(x, 0.325, z, r, 0.02, self.steel) for z, r in ((0.3, 0.09), (0.55, 0.06), (0.72, 0.03))
            ]
        return Piece([body, speakers], w + 0.65, 0.45, 1.1)

    def bean_bag(self) -> Piece:
        r = float(self.rng.uniform(0.38, 0.5))
        bag = self.ball(0, r + 0.05, 0.26, (r, r, 0.26), self.pick(self.cloths))
        back = self.ball(0, r - 0.12, 0.48, (r * 0.75, r * 0.5, 0.3), self.pick(self.cloths), rotation=tilt_by(0.4))
        return Piece([[bag, back]], 2 * r, 2 * r + 0.1, 0.8)

    def steps(self) -> Piece:
        """A stair along the wall that ends nowhere, things on its steps."""
        board, tread = self.pick(self.boards), self.pick(self.paints)
        solids, on_them = [], []
        for k in range(5):
            x = -0.6 + 0.24 * k
            solids.append(self.box(x, x + 0.24, 0.02, 0.7, 0, 0.2 * (k + 1) - 0.03, board))
            solids.append(self.box(x - 0.02, x + 0.24, 0, 0.72, 0.2 * (k + 1) - 0.03, 0.2 * (k + 1), tread))
            if self.rng.uniform() < 0.5:
                on_them += self.balls(x + 0.12, 0.2, 0.2 * (k + 1))
        return Piece([solids, on_them], 1.25, 0.75, 1.2)

    def easel(self) -> Piece:
        legs = [
            self.box(x - 0.015, x + 0.015, 0.3, 0.33, 0, 1.7, self.boards[0], rotation=tilt_by(-0.12))
            for x in (-0.3, 0.3)
        ]
        canvas = self.box(-0.36, 0.36, 0.36, 0.38, 0.75, 1.5, self.pick(self.posters), rotation=tilt_by(-0.12))
        ledge = self.box(-0.38, 0.38, 0.33, 0.42, 0.7, 0.73, self.boards[0])
        pots = [self.tube(x, 0.15, 0.06, 0, 0.15, self.white, tint=loud(self.rng)) for x in (-0.3, -0.12, 0.1)]
        return Piece([[*legs, canvas, ledge], pots], 0.9, 0.6, 1.7)

    def crates(self) -> Piece:
        solids, z = [], 0.0
        for _ in range(self.rng.integers(2, 5)):
            w, d, h = (float(v) for v in self.rng.uniform((0.22, 0.18, 0.2), (0.4, 0.26, 0.38)))
            turn = yaw_by(float(self.rng.uniform(-0.25, 0.25)))
            solids.append(self.box(-w, w, 0.32 - d, 0.32 + d, z, z + h, self.pick(self.boards), rotation=turn))
            band = self.box(
                -w * 1.01,
                w * 1.01,
                0.32 - d * 1.01,
                0.32 + d * 1.01,
                z + h * 0.4,
                z + h * 0.55,
                self.steel,
                rotation=turn,
            )
            solids.append(band)
            z += h
        return Piece([solids, self.things(-0.15, 0.2, 0.2, 0.5, z)], 0.85, 0.62, z + 0.2)

    def ladder_shelf(self) -> Piece:
        lean = tilt_by(0.16)
        rails = [self.box(x - 0.02, x + 0.02, 0.16, 0.2, 0, 1.9, self.boards[0], rotation=lean) for x in (-0.4, 0.4)]
        groups = [rails]
        for k in range(4):
            z = 0.35 + 0.42 * k
            deep = 0.36 - 0.07 * k
            rails.append(self.box(-0.4, 0.4, 0.02, deep, z, z + 0.025, self.pick(self.paints)))
            groups.append(self.things(-0.4, 0.4, 0.0, deep, z + 0.025))
        return Piece(groups, 0.85, 0.4, 1.9)

    def barrel(self) -> Piece:
        r, h = float(self.rng.uniform(0.22, 0.3)), float(self.rng.uniform(0.6, 0.8))
        staves = [
            self.tube(
                0,
                0.35,
                r * (1.0 + 0.12 * math.sin(math.pi * (k + 0.5) / 5)),
                h * k / 5,
                h * (k + 1) / 5,
                self.boards[1],
            )
            for k in range(5)
        ]
        hoops = [self.tube(0, 0.35, r * 1.14, h * z, h * z + 0.03, self.steel) for z in (0.25, 0.7)]
        return Piece([[*staves, *hoops], self.things(-r, r, 0.3, 0.4, h)], 0.7, 0.7, h)

    # ------------------------------------------------------------ elsewhere

    def round_table(self) -> Piece:
        """A round top on one foot, stools around it, on a round mat."""
        rng, r, h = self.rng, float(self.rng.uniform(0.5, 0.7)), 0.74
        mat = self.tube(0, 0, r + 0.5, 0, 0.01, self.pick(self.cloths))
        table = [
            self.tube(0, 0, r, h - 0.03, h, self.pick(self.boards)),
            self.tube(0, 0, 0.05, 0.03, h - 0.03, self.steel),
            self.tube(0, 0, 0.28, 0.01, 0.03, self.steel),
        ]
        stools = []
        for k in range(int(rng.integers(2, 5))):
            angle, far = k * 1.9 + float(rng.uniform(0, 0.6)), r + float(rng.uniform(0.0, 0.25))
            seat = [self.tube(0, 0, 0.17, 0.42, 0.47, self.pick(self.cloths))]
            seat += [
                self.tube(a, b, 0.012, 0.01, 0.42, self.black) for a, b in ((0.12, 0.0), (-0.06, 0.1), (-0.06, -0.1))
            ]
            stools += moved(seat, angle, (far * math.cos(angle), far * math.sin(angle), 0))
        on_it = self.things(-r * 0.75, r * 0.75, -r * 0.4, 0.05, h) + self.things(-r * 0.6, r * 0.6, 0.1, r * 0.5, h)
        return Piece([[mat], table, stools, on_it], 2 * r, 2 * r, h)

    def bench(self) -> Piece:
        """A carpenter's bench with a vice and drawers."""
        w, d, h = 1.5, 0.6, 0.82
        top = [
            self.box(-w / 2, w / 2, -d / 2, d / 2, h - 0.08, h, self.boards[0]),
            self.box(-w / 2 + 0.1, -0.1, -d / 2 + 0.05, d / 2 - 0.05, 0.25, h - 0.08, self.steel),
            self.box(w / 2 - 0.05, w / 2 + 0.05, -0.15, 0.15, h - 0.2, h, self.black),
        ]
        top += [
            self.box(x - 0.04, x + 0.04, y - 0.04, y + 0.04, 0, h - 0.08, self.boards[1])
            for x in (-0.68, 0.68)
            for y in (-0.24, 0.24)
        ]
        return Piece([top, self.things(-w / 2, w / 2, -d / 2, d / 2, h)], w, d, h)

    def door(self) -> Piece:
        """A sliding door of boards on a rail."""
        planks = [
            self.box(-0.48 + 0.16 * k, -0.33 + 0.16 * k, 0.03, 0.06, 0.02, 2.05, self.boards[k % 2]) for k in range(6)
        ]
        iron = [
            self.box(-0.7, 0.5, 0.02, 0.05, 2.1, 2.14, self.black),
            self.box(-0.48, 0.48, 0.06, 0.07, 0.9, 1.02, self.steel),
        ]
        return Piece([[*planks, *iron]], 1.2, 0.8, 2.2)

    def picture(self, w: float, h: float) -> Piece:
        """A poster on a board, or a round mirror-like plate."""
        if self.rng.uniform() < 0.25:
            r = min(w, h) / 2
            return Piece(
                [[self.disc(0, 0.015, r, r, 0.03, self.black), self.disc(0, 0.032, r, r * 0.9, 0.004, self.glaze)]],
                2 * r,
                0.03,
                2 * r,
            )
        sheet = self.box(-w / 2, w / 2, 0.01, 0.014, 0, h, self.pick(self.posters))
        return Piece(
            [[self.box(-w / 2 - 0.02, w / 2 + 0.02, 0, 0.01, -0.02, h + 0.02, self.pick(self.boards)), sheet]],
            w,
            0.03,
            h,
        )

    def wall_board(self) -> Piece:
        """Hooks with bags, on a rail."""
        w = float(self.rng.uniform(0.6, 1.0))
        rail = [self.box(-w / 2, w / 2, 0, 0.03, 0.3, 0.36, self.pick(self.boards))]
        for x in np.arange(-w / 2 + 0.12, w / 2 - 0.05, 0.24):
            rail.append(self.box(x - 0.008, x + 0.008, 0.03, 0.09, 0.32, 0.335, self.black))
            rail.append(self.ball(float(x), 0.09, 0.12, (0.09, 0.06, 0.2), self.pick(self.cloths)))
        return Piece([rail], w, 0.16, 0.4)

    def window(self, w: float, h: float) -> Piece:
        """A window on the water with slats before its upper part."""
        glass = self.box(-w / 2, w / 2, 0.002, 0.01, 0, h, self.view, emission=1.0)
        bars = [self.box(x - 0.025, x + 0.025, 0.01, 0.05, 0, h, self.black) for x in (-w / 2, -w / 6, w / 6, w / 2)]
        bars += [self.box(-w / 2, w / 2, 0.01, 0.05, z - 0.025, z + 0.025, self.black) for z in (0.0, h)]
        open_to = float(self.rng.uniform(0.4, 0.85)) * h
        slats = [
            self.box(
                -w / 2 - 0.04, w / 2 + 0.04, 0.06, 0.1, z, z + 0.012, self.pick(self.paints), rotation=tilt_by(0.5)
            )
            for z in np.arange(open_to, h, 0.07)
        ]
        sill = [self.box(-w / 2 - 0.05, w / 2 + 0.05, 0, 0.22, -0.06, -0.03, self.pick(self.boards))]
        sill += self.things(-w / 2, w / 2, 0.04, 0.2, -0.03)
        day = np.array([1.0, 0.93, 0.82]) * w * h * 1.2
        light = Light(
            np.array([0, 0.03, h / 2]), np.array([w / 2, 0, 0]), np.array([0, 0, h / 2]), np.array([0.0, 1.0, 0.0]), day
        )
        return Piece([[glass, *bars], slats, sill], w + 0.4, 0.25, h, [light])

    def pendant(self, height: float) -> Piece:
        """Three bulbs on a beam."""
        z, solids, lights = height - float(self.rng.uniform(0.4, 0.6)), [], []
        solids.append(self.box(-0.5, 0.5, -0.02, 0.02, z, z + 0.03, self.black))
        solids += [self.tube(x, 0, 0.005, z, height, self.black) for x in (-0.4, 0.4)]
        for x in (-0.38, 0.0, 0.38):
            solids.append(self.tube(x, 0, 0.035, z - 0.06, z, self.steel))
            solids.append(
                self.ball(x, 0, z - 0.11, (0.055, 0.055, 0.06), self.white, tint=(1.0, 0.95, 0.85), emission=0.9)
            )
            at = np.array([x, 0, z - 0.11])
            lights.append(
                Light(
                    at, np.array([0.05, 0, 0]), np.array([0, 0.05, 0]), np.zeros(3), np.array([1.0, 0.9, 0.75]) * 0.45
                )
            )
        return Piece([solids], 1.0, 0.2, height, lights)
