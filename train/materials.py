"""Procedural materials: each function draws one square sRGB picture (n, n, 3) u8 from a seeded generator.

Everything is made here from noise and shapes, so nothing is owed to anybody. Repeating materials wrap at their
borders (noise is shaped in the Fourier domain, patterns have whole periods); pictures, rugs and book spines are meant
to be fitted to a face.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from model.types import Float32, UInt8

Colour = tuple[float, float, float]
"""sRGB, 0 to 1."""


def noise(rng: np.random.Generator, n: int, power: float = 1.0, stretch: float = 1.0, low: float = 1.0) -> Float32:
    """(n, n) wrapping noise, mean 0 and deviation 1, amplitude 1 / frequency^power above `low` cycles.

    `stretch` > 1 draws it out along x, as wood grain is.
    """
    fy, fx = np.fft.fftfreq(n, 1 / n)[:, None], np.fft.rfftfreq(n, 1 / n)[None]
    frequency = np.hypot(fx * stretch, fy)
    gain = np.where(frequency >= min(low, n / 4), 1 / np.maximum(frequency, 1e-9) ** power, 0)
    phase = rng.spawn(1)[0].uniform(0, 2 * np.pi, gain.shape)
    field = np.fft.irfft2(gain * np.exp(1j * phase), s=(n, n))
    return (field / field.std()).astype(np.float32)


def hue(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    """A random colour with saturation and value in the given ranges."""
    return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))


# What people buy: ochre, terracotta, sage, teal, navy, dusty rose, cream, greys, olive, brick, sky, plum.
_HOME = np.array(
    [
        (0.80, 0.62, 0.28), (0.74, 0.42, 0.29), (0.58, 0.66, 0.52), (0.22, 0.46, 0.48), (0.17, 0.24, 0.40),
        (0.78, 0.58, 0.56), (0.90, 0.85, 0.74), (0.62, 0.61, 0.60), (0.42, 0.44, 0.27), (0.55, 0.24, 0.20),
        (0.55, 0.68, 0.78), (0.38, 0.25, 0.34), (0.30, 0.31, 0.33), (0.85, 0.80, 0.72),
    ]
)  # fmt: skip


def homely(rng: np.random.Generator) -> Colour:
    """A colour that people furnish with, a little off its neighbours'."""
    return tuple(
        float(v) for v in np.clip(_HOME[rng.integers(len(_HOME))] * rng.normal(1, 0.08) + rng.normal(0, 0.02, 3), 0, 1)
    )


def _paint(colour: Colour, shade: Float32) -> Float32:
    """A colour times a shade (n, n) about 1."""
    return np.asarray(colour, dtype=np.float32) * shade[..., None]


def _finish(picture: Float32) -> UInt8:
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blend(below: Float32, above: Float32, mask: Float32) -> Float32:
    return below + (above - below) * mask[..., None]


def wood(rng: np.random.Generator, n: int, colour: Colour, planks: int = 1) -> UInt8:
    """Grain along x; with `planks` > 1 a floor of boards of different tone, joints staggered."""
    rows = np.arange(n) * planks // n
    shift = rng.integers(0, n, planks)[rows]
    grain = noise(rng, n, 1.1, 14, 2) * 0.6 + noise(rng, n, 0.3, 40, 20) * 0.5
    bend = noise(rng, n, 2.0, 5)
    rings = np.sin(2 * np.pi * (np.arange(n)[:, None] / n * 10 * max(planks / 3, 1) + bend * 1.3))
    knots = np.maximum(noise(rng, n, 1.6, 2, 4) - 2.2, 0)
    shade = 1 + 0.07 * grain + 0.06 * rings - 0.25 * knots
    columns = (np.arange(n)[None] + shift[:, None]) % n
    shade = np.take_along_axis(shade, columns, axis=1)
    picture = _paint(colour, shade)
    if planks > 1:
        board = (columns * 2 // n + 2 * rows[:, None]) % (2 * planks)
        tone = rng.normal(1, 0.1, (2 * planks, 1)) + rng.normal(0, 0.015, (2 * planks, 3))
        picture = picture * tone[board].astype(np.float32)
        step = n // planks
        joint = (np.arange(n) % step < max(2, n // 400))[:, None] | (columns % (n // 2) < max(2, n // 400))
        picture *= 1 - 0.5 * joint[..., None]
    return _finish(picture)


def brick(rng: np.random.Generator, n: int, colour: Colour, rows: int = 12) -> UInt8:
    """Running bond with rough mortar; rows must be even so that it wraps."""
    edge = noise(rng, n, 1.2, 1, 8) * n / 900
    y = (np.arange(n)[:, None] + edge) % n
    row = (y * rows / n).astype(int) % rows
    x = (np.arange(n)[None] + edge + (row % 2) * n / rows) % n
    column = (x * rows / 2 / n).astype(int) % (rows // 2)
    tone = rng.normal(1, 0.14, (rows, rows // 2, 1)) + rng.normal(0, 0.04, (rows, rows // 2, 3))
    face = 1 + 0.1 * noise(rng, n, 0.8, 1, 10) + 0.08 * noise(rng, n, 0.2, 1, 60)
    picture = _paint(colour, face) * tone[row, column]
    gap = np.minimum(
        np.minimum(y * rows / n % 1, 1 - y * rows / n % 1),
        2 * np.minimum(x * rows / 2 / n % 1, 1 - x * rows / 2 / n % 1),
    )
    mortar = _paint((0.72, 0.7, 0.66), 1 + 0.08 * noise(rng, n, 0.4, 1, 20))
    return _finish(_blend(picture, mortar, np.clip((0.09 - gap) * 40, 0, 1)))


def tiles(rng: np.random.Generator, n: int, colour: Colour, count: int = 4) -> UInt8:
    """Square ceramic or stone tiles, veined, with grout; some carry a second colour."""
    index = np.arange(n) * count // n
    tone = rng.normal(1, 0.05, (count, count, 1)) + rng.normal(0, 0.015, (count, count, 3))
    veins = np.abs(noise(rng, n, 1.4, 1, 2))
    shade = 1 - 0.16 * np.exp(-veins * 6) + 0.05 * noise(rng, n, 1.0, 1, 3) + 0.025 * noise(rng, n, 0.2, 1, 40)
    picture = _paint(colour, shade) * tone[index[:, None], index[None]]
    if rng.uniform() < 0.4:
        second = np.asarray(hue(rng, (0.1, 0.5), (0.25, 0.6))) / np.maximum(colour, 0.05)
        picture = np.where(((index[:, None] + index[None]) % 2 == 0)[..., None], picture * second, picture)
    cell = np.arange(n) * count / n % 1
    edge = np.minimum(cell, 1 - cell)
    gap = np.minimum(edge[:, None], edge[None])
    grout = _paint((0.5, 0.49, 0.47), 1 + 0.08 * noise(rng, n, 0.3, 1, 20))
    return _finish(_blend(picture, grout, np.clip((0.012 - gap) * 300, 0, 1)))


def plaster(rng: np.random.Generator, n: int, colour: Colour, roughness: float = 1.0) -> UInt8:
    """A painted wall: faint clouds, roller marks and specks. With `roughness` 0 nearly plain."""
    shade = (
        1
        + 0.008 * noise(rng, n, 1.5)
        + roughness * (0.02 * noise(rng, n, 0.6, 1, 8) + 0.012 * noise(rng, n, 0.0, 1, 8))
    )
    specks = np.maximum(noise(rng, n, 0.5, 1, 16) - 3.1, 0) * roughness
    return _finish(_paint(colour, shade - 0.2 * specks))


def stone(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Marble or terrazzo-like: veins and grains of other tones."""
    veins = np.exp(-np.abs(noise(rng, n, 1.6, 1, 2)) * 9)
    grains = noise(rng, n, 0.9, 1, 24)
    picture = _paint(colour, 1 + 0.05 * noise(rng, n, 1.2) - 0.3 * veins)
    other = np.asarray(hue(rng, (0.1, 0.4), (0.2, 0.9)), dtype=np.float32)
    return _finish(_blend(picture, np.broadcast_to(other, picture.shape), np.clip((grains - 1.4) * 3, 0, 0.8)))


def fabric(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Woven cloth: plain, striped or checked, threads visible close by."""
    t = np.arange(n) * 2 * np.pi / n
    threads = n // 8
    weave = np.sin(threads * t)[:, None] * np.sin(threads * t)[None]
    shade = 1 + 0.1 * weave + 0.08 * noise(rng, n, 0.15, 1, 30) + 0.05 * noise(rng, n, 1.3, 1, 2)
    picture = _paint(colour, shade)
    style = rng.integers(3)
    if style:
        count = int(rng.integers(4, 11))
        widths = np.repeat(rng.integers(0, 3, count), np.diff(np.linspace(0, n, count + 1).astype(int)))
        palette = np.array([colour, homely(rng), hue(rng, (0.0, 0.12), (0.75, 0.95))], dtype=np.float32)
        stripes = palette[widths]
        base = stripes[:, None] if style == 1 else (stripes[:, None] + stripes[None]) / 2
        picture = np.broadcast_to(base, picture.shape) * shade[..., None]
    return _finish(picture)


def carpet(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Loop pile: strong fine grain over soft clouds, two yarns mixed."""
    yarn = np.asarray(homely(rng), dtype=np.float32)
    shade = 1 + 0.16 * noise(rng, n, 0.1, 1, 30) + 0.05 * noise(rng, n, 1.2)
    mix = np.clip(noise(rng, n, 0.7, 1, 6) - 0.4, 0, 1)
    return _finish(
        _blend(np.broadcast_to(np.asarray(colour, dtype=np.float32), (n, n, 3)), np.broadcast_to(yarn, (n, n, 3)), mix)
        * shade[..., None]
    )


def wallpaper(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """A mirrored motif in half-drop repeat, as damask is, on faint stripes."""
    m = n // 4
    field = cv2.resize(noise(rng, 64, 1.4, 1, 2), (m, m), interpolation=cv2.INTER_CUBIC)
    field = field + field[:, ::-1]
    y, x = np.mgrid[-1 : 1 : m * 1j, -1 : 1 : m * 1j]
    motif = 1 / (1 + np.exp(-(field + 1.6 - 3.2 * np.hypot(x * 1.1, y)) * 12))
    column = np.concatenate([motif] * 4)
    dropped = np.roll(column, m // 2, axis=0)
    mask = np.concatenate([column, dropped, column, dropped], axis=1).astype(np.float32)
    tone = 1 + 0.02 * noise(rng, n, 0.3, 1, 20)
    above = np.asarray(hue(rng, (0.1, 0.5), (0.4, 0.9)), dtype=np.float32)
    picture = _blend(
        np.broadcast_to(np.asarray(colour, dtype=np.float32), (n, n, 3)), np.broadcast_to(above, (n, n, 3)), mask * 0.7
    )
    return _finish(picture * tone[..., None])


def leaves(rng: np.random.Generator, n: int) -> UInt8:
    """A leaf: midrib, side veins, mottling. Fitted to a flat ellipsoid."""
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j].astype(np.float32)
    veins = np.exp(-np.abs(x) * 40) + 0.5 * np.exp(-np.abs(np.sin((y + np.abs(x) * 0.7) * 14)) * 8)
    shade = 1 + 0.12 * noise(rng, n, 1.0, 1, 3) + 0.35 * veins
    return _finish(_paint((0.2, rng.uniform(0.36, 0.5), 0.14), shade))


def metal(rng: np.random.Generator, n: int, colour: Colour) -> UInt8:
    """Brushed or lacquered metal: faint streaks."""
    return _finish(_paint(colour, 1 + 0.035 * noise(rng, n, 0.4, 30, 10) + 0.02 * noise(rng, n, 1.5)))


def rug(rng: np.random.Generator, n: int) -> UInt8:
    """A woven carpet with nested borders and a field of motifs, four times mirrored."""
    palette = np.array([homely(rng), homely(rng), (0.88, 0.83, 0.72), homely(rng)], dtype=np.float32)
    m = n // 2
    quarter = np.zeros((m, m), dtype=np.int64)
    y, x = np.mgrid[0:m, 0:m]
    fields = [cv2.resize(noise(rng, 64, 1.0, 1, 3), (m, m), interpolation=cv2.INTER_CUBIC) for _ in range(2)]
    quarter[fields[0] > 0.5] = 1
    quarter[fields[1] > 0.9] = 2
    diamonds = (np.abs((x * 10 / m) % 2 - 1) + np.abs((y * 10 / m) % 2 - 1)) < 0.5
    quarter[diamonds] = 3
    edge = np.minimum(x, y)
    for limit, colour in ((0.24, 2), (0.225, 0), (0.2, 1), (0.06, 3), (0.03, 2)):
        quarter[edge < limit * m] = colour
    zigzag = (np.abs((np.maximum(x, y) * 24 / m) % 2 - 1) * 0.1 * m + 0.08 * m) > edge
    quarter[zigzag & (edge > 0.06 * m) & (edge < 0.2 * m)] = 2
    half = np.concatenate([quarter, quarter[:, ::-1]], axis=1)
    index = np.concatenate([half, half[::-1]], axis=0)
    shade = 1 + 0.12 * noise(rng, n, 0.1, 1, 20) + 0.06 * noise(rng, n, 1.0, 6, 4)
    return _finish(palette[index] * shade[..., None])


def painting(rng: np.random.Generator, n: int) -> UInt8:
    """A framed picture: a landscape, an abstract of planes, or a still life of discs; brush strokes over all."""
    canvas = np.empty((n, n, 3), dtype=np.float32)
    canvas[:] = hue(rng, (0.1, 0.5), (0.5, 0.95))
    style = rng.integers(3)
    if style == 0:
        y = np.linspace(0, 1, n, dtype=np.float32)[:, None, None]
        canvas = (
            np.asarray(hue(rng, (0.3, 0.7), (0.6, 0.9)), dtype=np.float32) * (1 - y)
            + np.asarray((0.98, 0.85, 0.65), dtype=np.float32) * y
        )
        canvas = np.ascontiguousarray(np.broadcast_to(canvas, (n, n, 3)))
        cv2.circle(
            canvas,
            tuple(int(v) for v in rng.uniform(0.2, 0.5, 2) * n),
            int(n * rng.uniform(0.04, 0.09)),
            (1.0, 0.95, 0.8),
            -1,
            cv2.LINE_AA,
        )
        for layer in range(5):
            height = n * (0.4 + 0.13 * layer + 0.07 * noise(rng, n, 1.4)[0] * (1 - layer / 8))
            ground = np.asarray(hue(rng, (0.2, 0.6), (0.25, 0.7)), dtype=np.float32) * (1 - 0.1 * layer)
            canvas = np.where((np.arange(n)[:, None] > height[None])[..., None], ground, canvas)
        for _ in range(40):
            x, y0 = rng.uniform(0, n), rng.uniform(0.72, 1) * n
            cv2.ellipse(
                canvas,
                (int(x), int(y0)),
                (int(n * 0.012), int(n * rng.uniform(0.02, 0.06))),
                0,
                0,
                360,
                hue(rng, (0.3, 0.8), (0.15, 0.5)),
                -1,
                cv2.LINE_AA,
            )
    else:
        canvas = np.ascontiguousarray(canvas)
        for _ in range(int(rng.integers(14, 40))):
            colour, at, size = (
                homely(rng) if rng.uniform() < 0.8 else hue(rng, (0.5, 0.9), (0.5, 0.95)),
                rng.uniform(0, n, 2),
                rng.uniform(0.03, 0.22, 2) * n,
            )
            if style == 1:
                box = cv2.boxPoints((tuple(at), tuple(size * 1.6), float(rng.uniform(0, 180))))
                cv2.fillPoly(canvas, [box.astype(np.int32)], colour, cv2.LINE_AA)
            else:
                cv2.ellipse(
                    canvas,
                    (int(at[0]), int(at[1])),
                    (int(size[0]), int(size[1])),
                    float(rng.uniform(0, 180)),
                    0,
                    360,
                    colour,
                    -1,
                    cv2.LINE_AA,
                )
            if rng.uniform() < 0.4:
                end = at + rng.normal(0, 0.25 * n, 2)
                cv2.line(
                    canvas,
                    (int(at[0]), int(at[1])),
                    (int(end[0]), int(end[1])),
                    hue(rng, (0, 0.5), (0, 0.4)),
                    max(1, n // 150),
                    cv2.LINE_AA,
                )
    strokes = 1 + 0.07 * noise(rng, n, 0.6, 4, 8) + 0.05 * noise(rng, n, 0.2, 1, 40)
    return _finish(canvas * strokes[..., None])


def print_sheet(rng: np.random.Generator, n: int) -> UInt8:
    """A printed page or poster: a picture above, lines of words below."""
    sheet = np.empty((n, n, 3), dtype=np.float32)
    sheet[:] = hue(rng, (0.0, 0.15), (0.85, 0.97))
    top = int(n * rng.uniform(0.3, 0.55))
    picture = painting(rng, 256).astype(np.float32) / 255
    sheet[n // 16 : top, n // 16 : -n // 16] = cv2.resize(
        picture, (n - n // 16 - n // 16, top - n // 16), interpolation=cv2.INTER_LINEAR
    )
    y, ink = top + n // 14, hue(rng, (0, 0.6), (0.05, 0.35))
    while y < n * 0.95:
        height = max(2, int(n * rng.choice([0.012, 0.012, 0.012, 0.04])))
        x = n // 14
        while x < n * 0.85:
            width = int(height * rng.uniform(1, 5))
            for letter in range(x, x + width, max(2, int(height * 0.7))):
                tall = height if rng.uniform() < 0.35 else int(height * 0.65)
                sheet[y - tall : y, letter : letter + max(1, int(height * 0.45))] = ink
            x += width + height
        y += int(height * 2)
    return _finish(sheet)


def spines(rng: np.random.Generator, n: int, count: int = 8) -> UInt8:
    """count x count book spines in one picture, each its own colour, bands, title and label."""
    sheet, m = np.empty((n, n, 3), dtype=np.float32), n // count
    for index in range(count * count):
        spine = np.empty((m, m, 3), dtype=np.float32)
        cover = homely(rng) if rng.uniform() < 0.7 else hue(rng, (0.3, 0.85), (0.15, 0.85))
        spine[:] = cover
        ink = hue(rng, (0.0, 0.5), (0.75, 1.0)) if sum(cover) < 1.5 else hue(rng, (0.2, 0.8), (0.05, 0.3))
        for at in rng.uniform(0.03, 0.97, int(rng.integers(1, 5))):
            spine[int(at * m) : int(at * m) + max(1, int(m * rng.uniform(0.01, 0.05)))] = ink
        if rng.uniform() < 0.4:
            a, b = np.sort(rng.uniform(0.1, 0.9, 2))
            spine[int(a * m) : int(b * m)] = hue(rng, (0.1, 0.8), (0.3, 0.95))
        y, end = int(m * rng.uniform(0.12, 0.3)), int(m * rng.uniform(0.6, 0.85))
        wide = rng.uniform(0.3, 0.7) * m
        left, right = int((m - wide) / 2), int((m + wide) / 2)
        while y < end:
            step = int(m * rng.uniform(0.015, 0.04)) + 1
            if rng.uniform() < 0.85:
                spine[y : y + step, left : right - int(rng.uniform(0, 0.3) * wide)] = ink
            y += step + max(1, m // 50)
        worn = 1 + 0.05 * noise(rng, m, 1.0, 1, 2) if m >= 16 else 1.0
        i, j = divmod(index, count)
        sheet[i * m : (i + 1) * m, j * m : (j + 1) * m] = spine * np.asarray(worn)[..., None]
    return _finish(sheet)


def outdoors(rng: np.random.Generator, n: int) -> UInt8:
    """What a window shows: sky, clouds, trees, a house or two, a little hazy."""
    y = np.linspace(0, 1, n, dtype=np.float32)[:, None]
    clouds = np.clip(noise(rng, n, 1.6, 2, 2) * 0.5 + 0.4, 0, 1)
    sky = _blend(
        np.asarray((0.55, 0.72, 0.93), dtype=np.float32) + 0.25 * y[..., None] * np.ones((n, n, 1), dtype=np.float32),
        np.ones((n, n, 3), dtype=np.float32),
        clouds,
    )
    for _ in range(3):
        x, top, wide = rng.uniform(0, 0.9), rng.uniform(0.45, 0.65), rng.uniform(0.1, 0.22)
        a, b = int(x * n), int(min(x + wide, 1) * n)
        sky[int(top * n) :, a:b] = homely(rng)
        for row in np.arange(top + 0.04, 0.95, 0.09):
            for column in np.arange(x + 0.02, min(x + wide, 1) - 0.03, 0.06):
                sky[int(row * n) : int((row + 0.05) * n), int(column * n) : int((column + 0.03) * n)] = 0.35
    trees = 0.72 + 0.06 * noise(rng, n, 1.2)[0]
    edge = y > trees[None] + 0.02 * noise(rng, n, 0.8, 1, 8)
    green = _paint((0.34, 0.47, 0.25), 1 + 0.25 * noise(rng, n, 0.8, 1, 6))
    return _finish(np.where(edge[..., None], green, sky))


GLOSS = {
    wood: (0.04, 0.25),
    metal: (0.4, 0.3),
    tiles: (0.05, 0.08),
    stone: (0.05, 0.12),
    leaves: (0.03, 0.35),
    spines: (0.03, 0.3),
    painting: (0.04, 0.03),
}
"""Of what is not matt: the share mirrored head on, and how far that strays in radians; paintings hang behind glass."""
