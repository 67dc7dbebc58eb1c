"""That the scene is drawn from where it says, and measured as it is: what is seen is compared with files of the job."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect

from tests.viewer.conftest import ROOT, SMALL, Visit

Window = Callable[..., Visit]
CELL = 384
"""Side in pixels of a photo's cell in photos.webp."""


@pytest.fixture
def example(fake: str, visit: Window) -> tuple[Visit, dict[str, bytes]]:
    """The gallery's first scene, opened, and its files."""
    window = visit(fake, viewport=SMALL)
    window.page.locator("#gallery").get_by_role("link").first.click()
    window.wait_for_scene(90)
    folder = ROOT / "service/static/gallery" / window.page.url.partition("example=")[2]
    return window, {path.name: path.read_bytes() for path in folder.iterdir()}


def thumbnail(image: Image.Image) -> NDArray[np.float64]:
    """Grey, 48 x 36, of even mean and contrast."""
    grey = np.asarray(image.convert("L").resize((48, 36), Image.Resampling.BOX), np.float64)
    return (grey - grey.mean()) / grey.std()


def photo_of(files: dict[str, bytes], view: int) -> Image.Image:
    views = json.loads(files["cameras.json"])["views"]
    columns = math.ceil(math.sqrt(len(views)))
    width, height = views[view]["width"], views[view]["height"]
    left, top = view % columns * CELL, view // columns * CELL
    scale = CELL / max(width, height)
    atlas = Image.open(io.BytesIO(files["photos.webp"]))
    return atlas.crop((left, top, left + round(width * scale), top + round(height * scale)))


def middle(picture: NDArray[np.uint8], width: float, height: float) -> Image.Image:
    """The largest part of a picture, at its middle, that has the shape of a photo."""
    scale = min(picture.shape[1] / width, picture.shape[0] / height)
    wide, high = width * scale / 2, height * scale / 2
    x, y = picture.shape[1] / 2, picture.shape[0] / 2
    return Image.fromarray(picture).crop((round(x - wide), round(y - high), round(x + wide), round(y + high)))


def click_canvas(page: Page, x: float, y: float) -> None:
    """Click at shares of the canvas' width and height."""
    box = page.locator("scenelift-viewer canvas").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


@pytest.mark.slow
def test_from_where_a_photo_was_taken_the_scene_looks_like_it(example: tuple[Visit, dict[str, bytes]]) -> None:
    window, files = example
    window.show("mesh")
    window.page.get_by_role("button", name="Photos", exact=True).click()
    photos = [photo_of(files, view) for view in range(len(json.loads(files["cameras.json"])["views"]))]
    likeness = np.zeros((len(photos), len(photos)))
    for view, photo in enumerate(photos):
        window.page.get_by_role("button", name=re.compile(f"^Photo {view + 1} of")).click()
        window.page.wait_for_timeout(200)
        seen = thumbnail(middle(window.picture(), *photo.size))
        likeness[view] = [(seen * thumbnail(other)).mean() for other in photos]
    assert np.median(likeness.diagonal()) > 0.6, likeness.round(2)
    # Each place shows its own photo rather than another one's.
    assert (likeness.argmax(axis=1) == np.arange(len(photos))).mean() > 0.7, likeness.round(2)


@pytest.mark.slow
def test_two_clicks_measure_and_escape_clears(example: tuple[Visit, dict[str, bytes]]) -> None:
    page = example[0].page
    page.locator("scenelift-viewer canvas").press("m")
    lengths = []
    for ends in ((0.4, 0.6), (0.4, 0.5), (0.4, 0.6)):
        for x in ends:
            click_canvas(page, x, 0.3)
        said = page.get_by_text(re.compile(r"^[\d.]+ units$"))
        expect(said).to_be_visible()
        lengths.append(float(said.inner_text().split()[0]))
    assert lengths[0] == lengths[2] != lengths[1], "the same two places are as far apart, others are not"
    page.locator("scenelift-viewer canvas").press("Escape")
    expect(page.get_by_text("Choose two points to measure between.").first).to_be_visible()
