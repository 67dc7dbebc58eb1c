"""Which part of a photo a network of square input sees (upstream's loader, stated in the golden notes)."""

from __future__ import annotations

Size = tuple[int, int]
Box = tuple[int, int, int, int]


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


def square_crop_in_original(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """The same crop (left, top, right, bottom) in pixels of the original photo."""
    (rw, rh), (left, top, right, bottom) = square_crop(width, height, side)
    return left * width / rw, top * height / rh, right * width / rw, bottom * height / rh
