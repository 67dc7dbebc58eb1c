"""Which part of a photo a network sees (upstream's loaders, stated in the golden notes).

By one of two rules: a square, or a given long side and, along both sides, whole patches.
"""

from __future__ import annotations

Size = tuple[int, int]
Box = tuple[int, int, int, int]

PATCH = 16


def square_crop(width: int, height: int, side: int) -> tuple[Size, Box]:
    """Size to resize a width x height photo to, and the centre crop (left, top, right, bottom) of the resized photo.

    The short edge becomes about `side`; rounding may leave the crop a pixel or two off `side` for extreme shapes.
    """
    long_edge = round(side * max(width / height, height / width))
    scale = long_edge / max(width, height)
    resized = (round(width * scale), round(height * scale))
    centre = (resized[0] // 2, resized[1] // 2)
    half = min(centre)
    return resized, (centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)


def long_side_crop(width: int, height: int, side: int) -> tuple[Size, Box]:
    """The same for a network that sees photos of their own shape: the long edge becomes `side`, a multiple of 64.

    Both edges are cut to multiples of 16, at least 16; of a square photo 4:3 is left.
    """
    scale = side / max(width, height)
    resized = (max(PATCH, round(width * scale)), max(PATCH, round(height * scale)))
    half_width, half_height = (edge // PATCH * PATCH // 2 for edge in resized)
    if resized[0] == resized[1]:
        half_height = 3 * half_width // 4
    centre = (resized[0] // 2, resized[1] // 2)
    return resized, (
        centre[0] - half_width,
        centre[1] - half_height,
        centre[0] + half_width,
        centre[1] + half_height,
    )


def square_crop_in_original(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """The square crop (left, top, right, bottom) in pixels of the original photo."""
    return _in_original(width, height, *square_crop(width, height, side))


def long_side_crop_in_original(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """The crop of a given long side (left, top, right, bottom) in pixels of the original photo."""
    return _in_original(width, height, *long_side_crop(width, height, side))


def _in_original(width: int, height: int, resized: Size, box: Box) -> tuple[float, float, float, float]:
    (rw, rh), (left, top, right, bottom) = resized, box
    return left * width / rw, top * height / rh, right * width / rw, bottom * height / rh
