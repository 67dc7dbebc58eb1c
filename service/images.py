"""Bytes to checked, upright RGB. Hostile bytes end in a `Problem` that names the file, never in another exception."""

from __future__ import annotations

import io
import math
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pillow_heif
from PIL import ExifTags, Image

from model.geometry.crop import Box, Size, long_side_crop, square_crop
from model.types import WORKING_SIDE, Float64, UInt8, View
from service.errors import Problem

FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "BMP")
"""Pillow's names of what is taken; everything else is refused before it is parsed."""
ACCEPTED = "JPEG, PNG, WebP, HEIC, AVIF, TIFF or BMP"

SMALLEST_SIDE = 64
"""Pixels the short side must have in the working copy: below it there is nothing to match."""
MOST_SCANS = 200
"""Progressive JPEGs have about ten scans; thousands of empty ones are a way to burn CPU with a small file."""
NAME_LENGTH = 120

# Once, at import. Pillow's own bomb check warns or raises at fixed sizes; `inspect` checks against its caller's.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")
pillow_heif.register_heif_opener()

_FLIPS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what turns the picture upright."""


@dataclass(frozen=True, slots=True)
class Source:
    """A photo that was sent, by whatever way, and is still to be read and checked."""

    name: str
    """The file's name as it came: to be shown through `display_name` alone."""
    read: Callable[[], bytes]
    """The whole file, at most the caller's limit of bytes. It may take a while, and raise `Problem`."""


@dataclass(frozen=True, slots=True)
class Photo:
    """What a photo says about itself, after its pixels were seen to decode."""

    name: str
    """The file's name, fit to be shown."""
    width: int
    """Pixels of the upright image."""
    height: int
    format: str
    """One of `FORMATS`."""
    bytes: int
    """Size of the file."""
    exif_focal: float | None
    """Focal length in pixels of the original image, where EXIF has a plausible one."""
    camera: str
    """Make, model and lens from EXIF, `|` between; empty where it has none of them."""


def display_name(name: str) -> str:
    """A file's name as text to show: no folder, no control or direction-changing characters, at most `NAME_LENGTH`.

    Letters of every script stay. Not fit to be a path.
    """
    name = _printable(name.replace("\\", "/").rpartition("/")[2]).strip()
    if len(name) > NAME_LENGTH:
        stem, dot, suffix = name.rpartition(".")
        suffix = dot + suffix if stem and len(suffix) < 10 else ""
        name = name[: NAME_LENGTH - 1 - len(suffix)] + "…" + suffix
    return name or "photo"


def inspect(name: str, data: bytes, *, max_pixels: int) -> Photo:
    """Check that `data` is a photo that really decodes, at the least cost (a JPEG at an eighth of its size).

    Raises `Problem`: 415 not an image of a known format, 413 more than `max_pixels`, 422 cut off, damaged or too small.
    """
    shown = display_name(name)
    image = _open(shown, data)
    width, height = image.size
    if width * height > max_pixels:
        raise Problem(
            413,
            "too-many-pixels",
            f"{shown} has {width} × {height} pixels; at most {max_pixels / 1e6:.4g} megapixels are taken.",
            "Send it at a lower resolution: the reconstruction does not need more.",
        )
    image.draft("RGB", (1, 1))
    _load(shown, data, image)
    exif = _Exif(image)
    if min(width, height) * min(1.0, WORKING_SIDE / max(width, height)) < SMALLEST_SIDE:
        raise Problem(
            422,
            "image-too-small",
            f"{shown} has {width} × {height} pixels: too small or too narrow to reconstruct from.",
            f"Send photos with at least {SMALLEST_SIDE} pixels on each side, better 640 or more.",
        )
    if exif.orientation >= 5:
        width, height = height, width
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    return Photo(shown, width, height, kind, len(data), exif.focal(width, height), exif.camera())


def load_view(name: str, data: bytes, square: int | None, long_side: int | None = None) -> View:
    """Decode one photo upright: EXIF orientation applied, transparency over white, 16-bit scaled to 8, ICC ignored.

    With `square` or `long_side` the whole photo is decoded and `View.crop` is what such a network sees, upstream's
    bit for bit; an odd square, which the rule cannot give, is reached by resizing the crop by one pixel.
    Without them a JPEG is decoded at the smallest of its eighths that still covers the working size.
    Raises `Problem` (415, 422) as `inspect` does; the limit on pixels is `inspect`'s alone.
    """
    shown = display_name(name)
    image = _open(shown, data)
    width, height = image.size
    scale = min(1.0, WORKING_SIDE / max(width, height))
    working = max(1, round(width * scale)), max(1, round(height * scale))
    reduced = image.draft("RGB", working) if square is None and long_side is None else None
    _load(shown, data, image)
    exif = _Exif(image)
    try:
        image = _rgb(image)
        # A reduced JPEG is rounded up to whole pixels: the box names the part of them that the photo covers.
        box = (0, 0, *image.size) if reduced is None else reduced[1]
        small = image.resize(working, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
        crop = None
        if square is not None:
            crop = _square(_upright(image, exif.orientation), square)
        elif long_side is not None:
            upright = _upright(image, exif.orientation)
            crop = _cropped(upright, *long_side_crop(*upright.size, long_side))
        small = _upright(small, exif.orientation)
    except Exception as error:
        raise _damaged(shown) from error
    if exif.orientation >= 5:
        width, height = height, width
    seen = None if crop is None else np.asarray(crop)
    return View(shown, np.asarray(small), (width, height), exif.focal(width, height), exif.camera(), seen)


def _printable(text: str) -> str:
    """`text` composed (NFC), every space plain, without control, format and private characters (but for joiners)."""
    kinds = ((c, unicodedata.category(c)[0]) for c in text)
    text = "".join(" " if kind == "Z" else c for c, kind in kinds if kind != "C" or c in "\u200c\u200d")
    return unicodedata.normalize("NFC", text)


def _open(shown: str, data: bytes) -> Image.Image:
    """The image's header, its format known and its pixels still undecoded."""
    if not data:
        raise Problem(415, "not-an-image", f"{shown} is empty (0 bytes).", "Check the file and send it again.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        if _claims_to_be_an_image(data):
            raise _damaged(shown) from error
        raise Problem(
            415, "not-an-image", f"{shown} is not an image this service can read.", f"Send {ACCEPTED} files."
        ) from error
    # A marker's bytes cannot occur inside JPEG's coded data (it stuffs a zero after every 0xFF): this counts scans.
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MOST_SCANS:
        raise _damaged(shown)
    return image


def _load(shown: str, data: bytes, image: Image.Image) -> None:
    """Decode the first frame's pixels."""
    try:
        image.load()
    except Exception as error:
        text = str(error).lower()
        if "truncated" in text or "end of file" in text or "unexpected end" in text:
            raise Problem(
                422,
                "damaged-image",
                f"{shown} is cut off: its end is missing after {len(data):,} bytes.",
                "The file was probably not copied or uploaded completely: send it again.",
            ) from error
        raise _damaged(shown) from error


def _damaged(shown: str) -> Problem:
    return Problem(
        422,
        "damaged-image",
        f"{shown} is damaged or cut off and cannot be decoded.",
        "Save the photo again, or leave it out.",
    )


def _claims_to_be_an_image(data: bytes) -> bool:
    brands = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
    return (
        data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"BM"))
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
        or (data[4:8] == b"ftyp" and data[8:12] in brands)
    )


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_FLIPS[orientation]) if orientation in _FLIPS else image


def _rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bit(np.asarray(image, np.float64), image.mode)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _eight_bit(grey: Float64, mode: str) -> UInt8:
    """(h, w) deep grey scaled to 0 to 255, not clipped as Pillow's `convert` does.

    White is 65535 for 16 bits; 32-bit and floating point files do not say what it is: the first usual one that holds.
    """
    grey = np.nan_to_num(grey, posinf=0, neginf=0)
    usual = {"F": (1, 255, 65535), "I": (65535,)}.get(mode, (65535,))
    white = next((value for value in usual if grey.max() <= value), grey.max())
    return np.clip(np.rint(grey * (255 / white)), 0, 255).astype(np.uint8)


def _square(image: Image.Image, side: int) -> Image.Image:
    image = _cropped(image, *square_crop(*image.size, side))
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, size: Size, box: Box) -> Image.Image:
    """The `box` of the image resized to `size`, resampled as upstream does."""
    shrinks = max(image.size) > max(size)
    return image.resize(size, Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC).crop(box)


class _Exif:
    """The few EXIF values that matter, read without trust: whatever is malformed counts as missing."""

    def __init__(self, image: Image.Image) -> None:
        # After `load`: a PNG may keep EXIF behind its pixels, and Pillow turns a TIFF upright itself while decoding.
        try:
            exif = image.getexif()
            self._values = dict(exif)
            self._values.update(exif.get_ifd(ExifTags.IFD.Exif))
        except Exception:
            self._values = {}
        orientation = self._values.get(ExifTags.Base.Orientation)
        self.orientation = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1

    def camera(self) -> str:
        tags = (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.LensModel)
        parts = [self._values.get(tag) for tag in tags]
        texts = [_printable(part)[:60].strip() if isinstance(part, str) else "" for part in parts]
        return "|".join(texts) if any(texts) else ""

    def focal(self, width: int, height: int) -> float | None:
        """Focal length in pixels of the upright width x height image, or None.

        The 35 mm equivalent is taken to keep the diagonal (CIPA DCG-001; a film frame's is 43.27 mm), so
        f = f35 * diagonal / 43.27. Without it f = FocalLength * FocalPlaneXResolution, in pixels of the recorded size.
        Where the recorded size (PixelXDimension, PixelYDimension) has another shape than the image, the image was
        cropped and neither holds; a recorded size of the same shape means that it was scaled, which both survive.
        """
        long_side = max(width, height)
        recorded = sorted((self._number(ExifTags.Base.ExifImageWidth), self._number(ExifTags.Base.ExifImageHeight)))
        if recorded[0] > 0 and not math.isclose(
            recorded[0] / recorded[1], min(width, height) / long_side, rel_tol=0.005
        ):
            return None
        focal = self._number(ExifTags.Base.FocalLengthIn35mmFilm) * math.hypot(width, height) / math.hypot(36, 24)
        if not focal:
            millimetres = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}.get(
                int(self._number(ExifTags.Base.FocalPlaneResolutionUnit)) or 2, 0.0
            )
            if recorded[0] > 0 and millimetres:
                per_millimetre = self._number(ExifTags.Base.FocalPlaneXResolution) / millimetres
                focal = self._number(ExifTags.Base.FocalLength) * per_millimetre * long_side / recorded[1]
        return focal if 0.3 * long_side <= focal <= 10 * long_side else None

    def _number(self, tag: int) -> float:
        """The tag's value, or 0 where it is missing, malformed or not positive."""
        try:
            value = float(self._values[tag])
        except Exception:
            return 0.0
        return value if math.isfinite(value) and value > 0 else 0.0
