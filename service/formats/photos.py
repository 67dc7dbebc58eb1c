"""The job's photos in one picture, small: what the page shows in the cameras' frusta, whoever looks."""

from __future__ import annotations

import io
import math

from PIL import Image

from model.types import Views

CELL = 384
BETWEEN = (128, 128, 128)
"""Where no photo is: grey, so that a photo's edge does not bleed into white or black when it is scaled down."""


def encode(views: Views) -> memoryview:
    """photos.webp: ceil(sqrt(N)) columns of cells of 384 x 384 pixels, filled row by row.

    Each photo is upright, scaled down or up until it fits its cell, `fitted` tells to what size, and lies at the cell's
    top left corner.
    """
    columns = math.ceil(math.sqrt(len(views)))
    atlas = Image.new("RGB", (columns * CELL, math.ceil(len(views) / columns) * CELL), BETWEEN)
    for index, view in enumerate(views.views):
        photo = Image.fromarray(view.image).resize(fitted(*view.original_size), reducing_gap=2.0)
        atlas.paste(photo, (index % columns * CELL, index // columns * CELL))
    buffer = io.BytesIO()
    atlas.save(buffer, "WEBP", quality=80, method=2)
    return buffer.getbuffer()


def fitted(width: int, height: int) -> tuple[int, int]:
    """Width and height in pixels, at least 1, that a photo of this original size has in its cell."""
    scale = CELL / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))
