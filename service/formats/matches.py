"""Matches between photos: the pixels that show the same point, as arrays and as a picture."""

from __future__ import annotations

import colorsys
import io
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model.types import Float32, Scene
from service.formats.tracks import Tracks

HEIGHT = 540
"""Pixels of the picture's height; both photos are brought to it."""
GAP = 12
LINES = 80
"""Matches drawn: with more, none can be followed."""
SMOOTHING = 2
"""The picture is drawn so many times larger, then reduced."""


def encode(scene: Scene, tracks: Tracks) -> memoryview:
    """matches.npz, one row a match, pairs in order: pairs (M, 2) int32 view indices i < j; first, second (M, 2) float32
    pixels of the ORIGINAL photos i and j; point (M,) int32, equal where several pairs see one point; names (N,)."""
    pairs, first, second, point = [], [], [], []
    for a, b in combinations(range(len(tracks.views)), 2):
        both = _seen_by(tracks, a, b)
        pairs.append(np.tile(np.array([[tracks.views[a].index, tracks.views[b].index]], np.int32), (len(both), 1)))
        first.append(_in_original(scene, tracks, a, both))
        second.append(_in_original(scene, tracks, b, both))
        point.append(both.astype(np.int32))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        pairs=np.concatenate([np.zeros((0, 2), np.int32), *pairs]),
        first=np.concatenate([np.zeros((0, 2), np.float32), *first]),
        second=np.concatenate([np.zeros((0, 2), np.float32), *second]),
        point=np.concatenate([np.zeros(0, np.int32), *point]),
        names=np.array([view.name for view in scene.views.views]),
    )
    return buffer.getbuffer()


def encode_picture(tracks: Tracks) -> memoryview:
    """matches.webp: the two photos with most matches side by side, lines between some of them."""
    a, b = max(combinations(range(len(tracks.views)), 2), key=lambda pair: len(_seen_by(tracks, *pair)), default=(0, 0))
    height = SMOOTHING * HEIGHT
    photos = []
    for number in (a, b):
        view = tracks.views[number]
        photos.append(Image.fromarray(view.image).resize((round(height * view.size[0] / view.size[1]), height)))
    shift = photos[0].width + SMOOTHING * GAP
    picture = Image.new("RGB", (shift + photos[1].width, height), "white")
    picture.paste(photos[0], (0, 0))
    picture.paste(photos[1], (shift, 0))
    both = _seen_by(tracks, a, b)
    ends = []
    for number, left in ((a, 0), (b, shift)):
        ends.append(tracks.observed[number, both] * height / tracks.views[number].size[1] + (left, 0))
    # Shuffled, so that they lie all over the photos; coloured from left to right, so that crossed ones stand out.
    drawn = np.random.default_rng(0).permutation(len(both))[:LINES]
    draw = ImageDraw.Draw(picture)
    for number in drawn:
        colour = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(ends[0][number, 0] / photos[0].width, 1, 1))
        draw.line([tuple(end[number]) for end in ends], colour, SMOOTHING)
        for x, y in (end[number] for end in ends):
            draw.circle((x, y), 3 * SMOOTHING, colour, "black")
    buffer = io.BytesIO()
    picture.reduce(SMOOTHING).save(buffer, "WEBP", quality=85, method=2)
    return buffer.getbuffer()


def _seen_by(tracks: Tracks, a: int, b: int) -> NDArray[np.intp]:
    return np.flatnonzero(np.isfinite(tracks.observed[[a, b], :, 0]).all(axis=0))


def _in_original(scene: Scene, tracks: Tracks, number: int, points: NDArray[np.intp]) -> Float32:
    view = tracks.views[number]
    factor = np.divide(scene.views.views[view.index].original_size, view.size)
    pixels: Float32 = (tracks.observed[number, points] * factor).astype(np.float32)
    return pixels
