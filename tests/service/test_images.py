from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import unicodedata
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from model.types import WORKING_SIDE
from service.errors import Problem
from service.images import FORMATS, NAME_LENGTH, display_name, inspect, load_view

MANY = 10**8
LOSSLESS = {"PNG", "TIFF", "BMP"}


def smooth(width: int, height: int) -> np.ndarray:
    """A picture without symmetry, smooth enough to survive lossy formats: (height, width, 3) uint8."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    return np.stack([255 * x, 255 * y, 127 + 120 * np.sin(7 * x + 3 * y)], -1).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int | None = None, base: dict | None = None, **tags) -> Image.Exif:
    """EXIF with `tags` (names of ExifTags.Base) in the Exif directory and `base` in the main one."""
    block = Image.Exif()
    for name, value in (base or {}).items():
        block[ExifTags.Base[name]] = value
    if orientation is not None:
        block[ExifTags.Base.Orientation] = orientation
    block.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base[name]: value for name, value in tags.items()})
    return block


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_checked_and_loaded(format):
    picture = smooth(180, 120)
    data = encode(picture, format, **({} if format in LOSSLESS else {"quality": 95}))
    photo = inspect("a.x", data, max_pixels=MANY)
    assert (photo.width, photo.height, photo.format, photo.bytes) == (180, 120, format, len(data))
    assert photo.exif_focal is None
    assert photo.camera == ""
    view = load_view("a.x", data, None)
    difference = np.abs(view.image.astype(int) - picture)
    assert difference.max() == 0 if format in LOSSLESS else difference.mean() < 3
    assert view.original_size == (180, 120)
    assert view.crop is None


@settings(max_examples=25, deadline=None)
@given(st.integers(64, 400), st.integers(64, 400), st.sampled_from([32, 63, 64, 224]))
def test_square_has_exactly_the_side_asked_for(width, height, side):
    view = load_view("a.bmp", encode(np.full((height, width, 3), 90, np.uint8), "BMP"), side)
    assert view.crop.shape == (side, side, 3)
    assert (view.crop == 90).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(64, 400), st.integers(64, 400), st.sampled_from([64, 128, 512]))
def test_long_side_is_exactly_the_one_asked_for_and_patches_are_whole(width, height, side):
    view = load_view("a.bmp", encode(np.full((height, width, 3), 90, np.uint8), "BMP"), None, side)
    assert max(view.crop.shape) == side
    assert all(edge >= 16 and edge % 16 == 0 for edge in view.crop.shape[:2])
    assert (view.crop == 90).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(format, orientation):
    upright = smooth(160, 96)
    # EXIF: what the stored first row and first column show of the upright picture.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a[:, ::-1].transpose(1, 0, 2),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[::-1].transpose(1, 0, 2),
    }[orientation](upright)
    data = encode(np.ascontiguousarray(stored), format, exif=exif(orientation).tobytes())
    photo = inspect("a", data, max_pixels=MANY)
    assert (photo.width, photo.height) == (160, 96)
    for size in ({"square": 64}, {"square": None, "long_side": 64}):
        view = load_view("a", data, **size)
        assert view.original_size == (160, 96)
        assert np.abs(view.image.astype(int) - upright).mean() < 4
        plain = load_view("a", encode(upright), **size)
        assert view.crop.shape == plain.crop.shape
        assert np.abs(view.crop.astype(int) - plain.crop).mean() < 4


def test_modes_become_rgb():
    grey = np.tile(np.arange(256, dtype=np.uint8), (80, 1))
    expected = np.stack([grey] * 3, -1)

    def loaded(image: Image.Image, format: str = "PNG", **options) -> np.ndarray:
        return load_view("a", encode(image, format, **options), None).image

    np.testing.assert_array_equal(loaded(Image.fromarray(grey)), expected)
    np.testing.assert_array_equal(loaded(Image.fromarray(grey).convert("P")), expected)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    np.testing.assert_array_equal(loaded(deep), expected)
    np.testing.assert_array_equal(loaded(deep, "TIFF"), expected)
    np.testing.assert_array_equal(loaded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"), expected)
    np.testing.assert_array_equal(loaded(Image.fromarray(grey.astype(np.int32) * 257), "TIFF"), expected)
    two = Image.fromarray((grey > 127).astype(np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(loaded(two), np.where(expected > 127, 255, 0))
    cmyk = loaded(Image.fromarray(expected).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(cmyk.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparency_lies_over_white(format):
    picture = np.zeros((70, 80, 4), np.uint8)
    picture[:, 40:] = (200, 10, 10, 255)
    picture[:, :20, 3] = 0
    picture[:, 20:40, 3] = 128
    image = load_view("a", encode(picture, format, **({"lossless": True} if format == "WEBP" else {})), None).image
    assert (image[:, :20] == 255).all()
    np.testing.assert_allclose(image[:, 20:40], 127, atol=1)
    assert (image[:, 40:] == (200, 10, 10)).all()


def test_transparent_palette_and_colour_key_lie_over_white():
    palette = Image.fromarray(np.zeros((70, 80), np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(1, (40, 0, 80, 70))
    image = load_view("a", encode(palette, transparency=0), None).image
    assert (image[0, 0] == 255).all()
    assert (image[0, 79] == (200, 100, 50)).all()
    key = Image.new("RGB", (80, 70), (1, 2, 3))
    key.paste((9, 9, 9), (40, 0, 80, 70))
    image = load_view("a", encode(key, transparency=(1, 2, 3)), None).image
    assert (image[0, 0] == 255).all()
    assert (image[0, 79] == 9).all()


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (80, 70), colour) for colour in ("red", "blue")]
    for format in ("PNG", "WEBP", "TIFF"):
        data = encode(
            frames[0],
            format,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if format == "WEBP" else {}),
        )
        assert inspect("a", data, max_pixels=MANY).width == 80
        assert (load_view("a", data, None).image[0, 0] == (255, 0, 0)).all()


def test_multi_picture_jpeg_of_phones_is_a_jpeg():
    data = encode(Image.fromarray(smooth(200, 100)), "MPO", save_all=True, append_images=[Image.new("RGB", (20, 10))])
    assert inspect("a.jpg", data, max_pixels=MANY).format == "JPEG"
    assert load_view("a.jpg", data, None).image.shape == (100, 200, 3)


@pytest.mark.parametrize(("format", "size"), [("JPEG", (3300, 2000)), ("JPEG", (2501, 3601)), ("PNG", (1900, 1000))])
def test_working_copy_is_bounded_and_registered_with_the_original(format, size):
    width, height = size
    view = load_view("a", encode(smooth(width, height), format, **({"quality": 95} if format == "JPEG" else {})), None)
    h, w = view.image.shape[:2]
    assert max(h, w) == WORKING_SIDE
    assert (w, h) == (round(width * WORKING_SIDE / max(size)), round(height * WORKING_SIDE / max(size)))
    assert view.original_size == size
    # Red and green are the original pixel's x and y: a shift by one working pixel would be 0.16 grey levels.
    x = (np.arange(w) + 0.5) * width / w - 0.5
    y = (np.arange(h) + 0.5) * height / h - 0.5
    inner = slice(20, -20)
    red = view.image[inner, inner, 0].mean(0) - (255 * x / max(size) - 0.5)[inner]
    green = view.image[inner, inner, 1].mean(1) - (255 * y / max(size) - 0.5)[inner]
    assert abs(red.mean()) < 0.12
    assert abs(green.mean()) < 0.12


@pytest.mark.parametrize("cut", [3, 10, 100, 700, 0.3, 0.7, -2, -1])
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "HEIF", "AVIF", "TIFF", "BMP"])
def test_a_photo_cut_off_is_refused_by_name(format, cut):
    data = encode(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8), format)
    end = int(cut * len(data)) if isinstance(cut, float) else cut
    for call in (
        lambda: inspect("Höfe 3.jpg", data[:end], max_pixels=MANY),
        lambda: load_view("Höfe 3.jpg", data[:end], 64),
    ):
        with pytest.raises(Problem) as caught:
            call()
        assert caught.value.status in ((415, 422) if end < 12 else (422,))
        assert caught.value.detail.startswith("Höfe 3.jpg is ")
        assert caught.value.suggestion


def test_a_png_cut_off_inside_its_pixels_is_refused():
    data = encode(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    with pytest.raises(Problem, match=r"a\.png is cut off") as caught:
        inspect("a.png", data[: len(data) // 2], max_pixels=MANY)
    assert caught.value.status == 422


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"%PDF-1.7",
        b"\0" * 4096,
        encode(smooth(90, 90), "GIF"),
        b"<svg xmlns='x'/>",
        b"\0\0\0\x18ftypisom",
    ],
)
def test_not_an_image(data):
    with pytest.raises(Problem) as caught:
        inspect("notes.txt", data, max_pixels=MANY)
    assert caught.value.status == 415
    assert "notes.txt" in caught.value.detail


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_a_bomb_is_refused_before_it_is_decoded(side):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Problem) as caught:
        inspect("bomb.png", png_header(side, side), max_pixels=MANY)
    assert caught.value.status in (413, 422)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_pixel_limit_is_the_callers():
    data = encode(smooth(300, 200))
    assert inspect("a", data, max_pixels=60_000).width == 300
    with pytest.raises(Problem, match="300 × 200") as caught:
        inspect("a", data, max_pixels=59_999)
    assert caught.value.status == 413


@pytest.mark.parametrize("size", [(63, 500), (500, 63), (1, 1), (100, 4000)])
def test_too_small_or_too_narrow(size):
    with pytest.raises(Problem) as caught:
        inspect("a", encode(np.zeros((size[1], size[0], 3), np.uint8)), max_pixels=MANY)
    assert caught.value.status == 422


def test_a_jpeg_of_endless_scans_is_refused():
    data = encode(smooth(100, 100), "JPEG", progressive=True)
    with pytest.raises(Problem):
        inspect("a", data[:-2] + b"\xff\xda\0\0" * 5000 + data[-2:], max_pixels=MANY)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_hostile_bytes_end_in_a_problem_or_a_photo(format, draw):
    tags = exif(6, {"Make": "x", "XResolution": 3.0}, FocalLength=4.2, FocalLengthIn35mmFilm=26)
    data = bytearray(encode(smooth(96, 72), format, **({} if format == "BMP" else {"exif": tags.tobytes()})))
    # Half of the changes in the first bytes, where headers and EXIF are.
    for _ in range(draw.draw(st.integers(1, 12))):
        end = draw.draw(st.sampled_from([min(400, len(data)), len(data)]))
        data[draw.draw(st.integers(0, end - 1))] = draw.draw(st.integers(0, 255))

    def outcome(call):
        try:
            return call()
        except Problem as problem:
            return problem

    photo = outcome(lambda: inspect("a", bytes(data), max_pixels=10**6))
    view = outcome(lambda: load_view("a", bytes(data), 32))
    if isinstance(photo, Problem):
        assert photo.status in (413, 415, 422)
    else:
        assert photo.width * photo.height <= 10**6
        assert isinstance(view, Problem) or view.original_size == (photo.width, photo.height)


def test_focal_from_the_35_mm_equivalent_keeps_the_diagonal():
    tags = exif(FocalLengthIn35mmFilm=26, FocalLength=4.2, ExifImageWidth=400, ExifImageHeight=300)
    photo = inspect("a", encode(smooth(400, 300), "JPEG", exif=tags), max_pixels=MANY)
    assert photo.exif_focal == pytest.approx(26 * 500 / 43.2666, rel=1e-5)
    # On a 3:2 picture the convention by width says the same.
    photo = inspect("a", encode(smooth(360, 240), "JPEG", exif=exif(FocalLengthIn35mmFilm=26)), max_pixels=MANY)
    assert photo.exif_focal == pytest.approx(26 / 36 * 360)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("resolution", "unit"), [(5080.0, 2), (2000.0, 3), (200.0, 4), (0.2, 5)])
def test_focal_from_the_sensor(orientation, resolution, unit):
    tags = exif(
        orientation,
        FocalLength=2.5,
        FocalPlaneXResolution=resolution,
        FocalPlaneResolutionUnit=unit,
        ExifImageWidth=800,
        ExifImageHeight=600,
    )
    # 200 pixels a millimetre at 800 wide, and this copy was scaled to half.
    data = encode(smooth(400, 300), "JPEG", exif=tags)
    assert inspect("a", data, max_pixels=MANY).exif_focal == pytest.approx(2.5 * 200 / 2, rel=1e-6)
    assert load_view("a", data, None).exif_focal == pytest.approx(250, rel=1e-6)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"FocalLength": 4.2},
        {"FocalLength": 4.2, "FocalPlaneXResolution": 2000.0},
        {"FocalLengthIn35mmFilm": 0},
        {"FocalLengthIn35mmFilm": 5},
        {"FocalLengthIn35mmFilm": 900},
        {"FocalLengthIn35mmFilm": 26, "ExifImageWidth": 400, "ExifImageHeight": 400},
        {"FocalLengthIn35mmFilm": 26, "ExifImageWidth": 1600, "ExifImageHeight": 900},
    ],
    ids=["nothing", "no sensor", "no recorded size", "zero", "too short", "too long", "cropped", "cropped and scaled"],
)
def test_doubtful_focal_is_none(tags):
    assert inspect("a", encode(smooth(400, 300), "JPEG", exif=exif(**tags)), max_pixels=MANY).exif_focal is None


def test_camera_names_make_model_and_lens():
    base = {"Make": "Ācme\0", "Model": " X-1\x07 "}
    data = encode(smooth(90, 90), "JPEG", exif=exif(None, base, LensModel="35mm F1.8/F2"))
    assert inspect("a", data, max_pixels=MANY).camera.endswith("|X-1|35mm F1.8/F2")
    data = encode(smooth(90, 90), "JPEG", exif=exif(None, {"Model": "m" * 5000}))
    assert len(load_view("a", data, None).camera) < 100


@pytest.mark.parametrize(
    ("given_name", "shown"),
    [
        ("photo.jpg", "photo.jpg"),
        ("C:\\My Photos\\1.jpg", "1.jpg"),
        ("../../etc/passwd", "passwd"),
        ("写真 №3.heic", "写真 №3.heic"),
        ("ناحیه.png", "ناحیه.png"),
        ("a\r\nSet-Cookie: x\x1b[31m.jpg", "aSet-Cookie: x[31m.jpg"),
        ("gpj.\u202eevil.jpg", "gpj.evil.jpg"),
        ("e\u200b\u0301.png", "é.png"),
        ("Screenshot 10.30\u202fAM.png", "Screenshot 10.30 AM.png"),
        ("", "photo"),
        ("\udcff\0", "photo"),
    ],
)
def test_display_name(given_name, shown):
    assert display_name(given_name) == shown
    assert load_view(given_name, encode(smooth(70, 70)), None).name == shown


@given(st.text(max_size=400))
def test_display_name_is_printable_and_short(name):
    shown = display_name(name)
    assert 0 < len(shown) <= NAME_LENGTH
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Co", "Zl", "Zp") for c in shown)
    assert display_name(shown) == shown


def test_long_names_keep_their_ending():
    assert display_name("x" * 500 + ".heic").endswith("x….heic")


@pytest.mark.slow
def test_48_megapixels_stay_bounded(tmp_path):
    """In a process of its own, since peak memory never falls."""
    program = """
import resource, sys
from service.images import inspect, load_view
data = open(sys.argv[1], "rb").read()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
base = peak()
assert inspect("a", data, max_pixels=10**8).width == 8000
assert load_view("a", data, None).image.shape == (1200, 1600, 3)
light = peak() - base
assert load_view("a", data, 224).crop.shape == (224, 224, 3)
print(light, peak() - base)
"""
    Image.fromarray(smooth(8000, 6000)).save(tmp_path / "large.jpg", quality=90)
    command = [sys.executable, "-c", program, tmp_path / "large.jpg"]
    root = Path(__file__).parents[2]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    light, full = map(float, output.split())
    assert light < 150
    assert full < 900


def test_threads_decode_side_by_side():
    photos = [encode(smooth(200 + 8 * i, 160), format) for i, format in enumerate(FORMATS * 3)]
    expected = [load_view("a", data, 64) for data in photos]
    with ThreadPoolExecutor(4) as pool:
        for alone, together in zip(expected, pool.map(lambda data: load_view("a", data, 64), photos)):
            np.testing.assert_array_equal(together.image, alone.image)
            np.testing.assert_array_equal(together.crop, alone.crop)
