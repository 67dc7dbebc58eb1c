"""What visitors of the page do, in a real browser, with a service that really runs."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.service.support import form, jpeg, zipped
from tests.viewer.conftest import FAKE, PHONE, ROOT, SMALL, Visit, start, stop

Window = Callable[..., Visit]
AXE = ROOT / "viewer" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a service with the geometric model."""
    process, address = start(tmp_path_factory.mktemp("real"), "-m", "service", "serve")
    yield address
    stop(process)


def drop(page: Page, files: dict[str, bytes]) -> None:
    """Drop files onto the middle of the page, as a hand would."""
    page.evaluate(
        """(files) => {
            const carried = new DataTransfer();
            for (const [name, content] of files) {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                carried.items.add(new File([bytes], name));
            }
            const target = document.elementFromPoint(innerWidth / 2, innerHeight / 2);
            for (const type of ["dragenter", "dragover", "drop"])
                target.dispatchEvent(new DragEvent(type, { dataTransfer: carried, bubbles: true, cancelable: true }));
        }""",
        [[name, base64.b64encode(content).decode()] for name, content in files.items()],
    )


def photos(*names: str) -> dict[str, bytes]:
    return {name: jpeg(seed) for seed, name in enumerate(names or ("1.jpg", "2.jpg"))}


def make(page: Page) -> None:
    page.get_by_role("button", name="Make the scene").click()


def job_of(page: Page) -> str:
    """Id of the job that the page's address names."""
    expect(page).to_have_url(re.compile(r"\?job="))
    return page.url.partition("?job=")[2]


def colours(picture: np.ndarray) -> np.ndarray:
    """Shares of 64 colours, of what is not the even ground behind the scene."""
    bins = (picture.reshape(-1, 3) // 64).astype(int) @ [16, 4, 1]
    counts = np.bincount(bins, minlength=64).astype(float)
    counts[np.argmax(counts)] = 0
    return counts / counts.sum()


def likeness(picture: np.ndarray, preview: Image.Image) -> float:
    """Share of the colours that both have."""
    return float(np.minimum(colours(picture), colours(np.asarray(preview))).sum())


def covered(picture: np.ndarray) -> float:
    """Share of the picture that is not the even ground behind the scene."""
    values, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return float((np.abs(picture.astype(int) - values[np.argmax(counts)]).max(axis=-1) > 12).mean())


@pytest.mark.slow
def test_photos_become_a_scene_to_walk_around_in(real: str, visit: Window) -> None:
    window = visit(real, viewport=SMALL)
    page = window.page
    example = {name: (ROOT / "docs/example" / name).read_bytes() for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg")}
    drop(page, example)
    expect(page.locator("#summary", has_text="4 photos, ")).to_be_visible()
    make(page)
    expect(page.get_by_role("progressbar")).to_be_visible()
    window.wait_for_scene(120)
    job = httpx.get(f"{real}/jobs/{job_of(page)}").json()
    preview = Image.open(io.BytesIO(httpx.get(f"{real}/jobs/{job['id']}/files/preview.webp").content)).convert("RGB")

    picture = window.picture()
    assert picture.std() > 25, "the canvas is blank"
    alike = likeness(picture, preview)
    assert alike > 0.6, f"{alike:.2f} of the colours are the preview's"

    page.get_by_role("button", name="Downloads").click()
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("cameras.json")).click()
    assert '"camera_to_world"' in Path(download.value.path()).read_text()


@pytest.mark.slow
def test_an_example_is_shown_in_three_ways_turned_and_thinned(fake: str, visit: Window) -> None:
    window = visit(fake, viewport=SMALL)
    page = window.page
    page.locator("#gallery").get_by_role("link").first.click()
    window.wait_for_scene(90)
    name = page.url.partition("example=")[2]
    preview = Image.open(ROOT / "service/static/gallery" / name / "preview.webp").convert("RGB")
    for representation in ("gaussians", "mesh", "points"):
        window.show(representation)
        shown = window.shown()
        assert 0 < shown["drawn"] <= shown["total"]
        picture = window.picture()
        # The same things are to be seen as on the preview, if not from quite the same place.
        alike = likeness(picture, preview)
        assert alike > 0.6, f"{representation}: {alike:.2f} of the colours are the preview's"

    before = window.picture()
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("slider", name=re.compile("least sure")).fill("80")
    page.wait_for_timeout(500)
    assert covered(window.picture()) < 0.8 * covered(before), "fewer points leave more of the ground to be seen"
    page.keyboard.press("Escape")

    page.locator("canvas").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(500)
    assert np.abs(window.picture().astype(int) - before).mean() > 5, "arrow keys turn the scene"


def test_what_the_model_cannot_do_is_said_and_the_photos_stay(fake: str, visit: Window) -> None:
    page = visit(fake).page
    drop(page, photos("refuse.jpg", "2.jpg"))
    make(page)
    expect(page.get_by_text("These photos show different places.")).to_be_visible()
    expect(page.get_by_text("Photograph one place.")).to_be_visible()
    page.get_by_role("button", name="Change the photos").click()
    expect(page.locator("#summary", has_text="2 photos, ")).to_be_visible()


def test_a_photo_that_is_none_is_marked_and_can_be_taken_out(fake: str, visit: Window) -> None:
    window = visit(fake)
    page = window.page
    drop(page, photos("1.jpg", "2.jpg") | {"broken.jpg": b"not a photo at all"})
    make(page)
    expect(page.get_by_role("listitem").filter(has_text="broken.jpg").locator(".fault")).to_contain_text("broken.jpg")
    page.get_by_role("button", name="Remove broken.jpg").click()
    make(page)
    window.wait_for_scene()


def test_files_that_are_no_photos_are_not_taken(fake: str, visit: Window) -> None:
    page = visit(fake).page
    drop(page, {"letter.docx": b"PK", "1.jpg": jpeg()})
    expect(page.get_by_text(re.compile(r"Not taken.*letter\.docx")).first).to_be_visible()
    expect(page.get_by_text("Add one more photo of the same place.")).to_be_visible()
    expect(page.get_by_role("button", name="Make the scene")).to_be_disabled()


def test_photos_are_put_in_order_and_taken_out(fake: str, visit: Window) -> None:
    window = visit(fake)
    page = window.page
    drop(page, photos("1.jpg", "2.jpg", "3.jpg"))
    page.get_by_role("button", name="Move 1.jpg one place later").click()
    page.get_by_role("button", name="Remove 3.jpg").click()
    make(page)
    window.wait_for_scene()
    assert [view["name"] for view in httpx.get(f"{fake}/jobs/{job_of(page)}").json()["views"]] == ["2.jpg", "1.jpg"]


def test_a_zip_file_makes_a_scene(fake: str, visit: Window) -> None:
    window = visit(fake)
    drop(window.page, {"photos.zip": zipped(photos("a.jpg", "b.jpg", "c.jpg"))})
    make(window.page)
    window.wait_for_scene()
    expect(window.page.get_by_role("heading", name="Scene of 3 photos")).to_be_visible()


def test_a_job_survives_a_reload_and_can_be_cancelled(fake: str, visit: Window) -> None:
    page = visit(fake).page
    drop(page, photos("slow.jpg", "2.jpg"))
    make(page)
    job = job_of(page)
    page.reload()
    bar = page.get_by_role("progressbar")
    expect(bar).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(bar).to_be_hidden()
    assert httpx.get(f"{fake}/jobs/{job}").json()["status"] == "canceled"


def test_cancelled_at_once_the_photos_are_still_there(fake: str, visit: Window) -> None:
    page = visit(fake).page
    drop(page, photos("slow.jpg", "2.jpg"))
    make(page)
    job_of(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#summary", has_text="2 photos, ")).to_be_visible()


def test_without_events_the_page_asks_again_and_again(fake: str, visit: Window) -> None:
    window = visit(fake)
    window.page.route("**/events*", lambda route: route.fulfill(status=502))
    window.expected = "a status of 502"
    drop(window.page, photos("steady.jpg", "2.jpg"))
    make(window.page)
    window.wait_for_scene()


def test_a_link_shows_the_scene_to_someone_else(fake: str, visit: Window) -> None:
    window = visit(fake)
    page = window.page
    drop(page, photos())
    make(page)
    window.wait_for_scene()
    page.get_by_role("button", name="Share").click()
    page.get_by_role("button", name="Make a link").click()
    field = page.get_by_role("textbox", name="The link")
    expect(field).to_have_value(re.compile(r"/view/.*token="))
    friend = visit(field.input_value())
    friend.wait_for_scene()
    assert friend.shown()["total"] > 0
    wrong = visit(re.sub(r"token=.", "token=9", field.input_value()))
    expect(wrong.page.get_by_text("The link is not valid any more, or never was.").first).to_be_visible()


def test_recent_scenes_are_found_again_until_they_are_gone(fake: str, visit: Window) -> None:
    window = visit(fake)
    page = window.page
    drop(page, photos())
    make(page)
    window.wait_for_scene()
    job = job_of(page)
    page.get_by_role("link", name="Scenelift").first.click()
    entry = page.locator("#recent").get_by_role("link").first
    expect(entry).to_be_visible()
    entry.click()
    assert job_of(page) == job
    httpx.delete(f"{fake}/jobs/{job}")
    page.reload()
    expect(page.get_by_role("heading", name="This scene is not here any more")).to_be_visible()


def test_a_page_asks_for_the_key_where_one_is_needed(tmp_path: Path, visit: Window) -> None:
    process, address = start(tmp_path, str(FAKE))
    try:
        folder = next(path for path in tmp_path.iterdir() if path.is_dir())
        said = subprocess.run(
            (sys.executable, "-m", "service", "keys", "create", "page"),
            env={"SCENELIFT_DATA_DIR": str(folder), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        key = re.search(r"sk_\S+", said)[0]
        page_window = visit(address)
        page = page_window.page
        drop(page, photos())
        make(page)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("API key").fill("sk_wrong")
        dialog.get_by_role("button", name="Use this key").click()
        expect(dialog.get_by_text("The service does not know this key.")).to_be_visible()
        dialog.get_by_label("API key").fill(key)
        dialog.get_by_role("button", name="Use this key").click()
        expect(dialog).to_be_hidden()
        page_window.wait_for_scene()
    finally:
        stop(process)


@pytest.mark.parametrize("viewport", [PHONE, {"width": 320, "height": 600}, {"width": 820, "height": 1180}])
def test_nothing_is_wider_than_the_window(fake: str, visit: Window, viewport: dict[str, int]) -> None:
    window = visit(fake, viewport=viewport, has_touch=True)
    page = window.page

    def fits() -> bool:
        return page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    assert fits()
    drop(page, photos())
    expect(page.locator("#summary", has_text="2 photos, ")).to_be_visible()
    assert fits()
    make(page)
    window.wait_for_scene()
    assert fits()
    box = page.locator("canvas").bounding_box()
    assert box is not None
    assert box["width"] <= viewport["width"]
    assert box["height"] <= viewport["height"]
    small = page.evaluate(
        """() => [...document.querySelector("scenelift-viewer").shadowRoot.querySelectorAll("button"),
                 ...document.querySelectorAll("button")]
            .filter((button) => button.checkVisibility() && button.getBoundingClientRect().height < 40)
            .map((button) => button.outerHTML)"""
    )
    assert small == [], "a finger would miss them"


def test_without_webgl_there_is_a_picture_and_there_are_the_files(fake: str, visit: Window) -> None:
    window = visit(fake)
    page = window.page
    page.add_init_script(
        """const context = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
            return /webgl/.test(kind) ? null : context.call(this, kind, ...rest);
        };"""
    )
    page.reload()
    window.expected = "Error creating WebGL context"
    drop(page, photos())
    make(page)
    expect(page.locator("scenelift-viewer:state(still)")).to_be_visible()
    expect(page.get_by_text("This browser cannot draw in 3D").first).to_be_visible()
    page.get_by_role("button", name="Downloads").click()
    expect(page.get_by_role("link", name=re.compile("scene.ply"))).to_be_visible()


def test_a_service_that_is_not_there_is_said(tmp_path: Path, visit: Window) -> None:
    process, address = start(tmp_path, str(FAKE))
    window = visit(address)
    stop(process)
    window.expected = "ERR_CONNECTION_REFUSED"
    drop(window.page, photos())
    make(window.page)
    expect(window.page.get_by_text("The service cannot be reached.").first).to_be_visible()
    window.page.get_by_role("button", name="Cancel").click()
    expect(window.page.locator("#summary", has_text="2 photos, ")).to_be_visible()


def test_other_sites_may_frame_scenes_alone(fake: str) -> None:
    assert "frame-ancestors 'none'" in httpx.get(fake).headers["content-security-policy"]
    job = "A" * 22
    policy = httpx.get(f"{fake}/view/{job}").headers["content-security-policy"]
    assert "frame-ancestors *" in policy
    assert "unsafe-inline" not in policy


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(fake: str, visit: Window, scheme: str) -> None:
    window = visit(fake, color_scheme=scheme)
    page = window.page

    def broken() -> list[str]:
        page.evaluate(AXE.read_text(encoding="utf-8"))
        rules = page.evaluate("axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'] })")
        return [f"{rule['id']}: {node['html']}" for rule in rules["violations"] for node in rule["nodes"]]

    expect(page.locator("#gallery").get_by_role("link").first).to_be_visible()
    assert broken() == []
    job = httpx.post(f"{fake}/reconstruct", files=form(), headers={"Prefer": "wait=30"}).json()["id"]
    page.goto(f"{fake}/?job={job}")
    window.wait_for_scene()
    assert broken() == []
    for panel in ("Settings", "Downloads", "About"):
        page.get_by_role("button", name=panel).click()
        assert broken() == []
    page.goto(f"{fake}/?job={'A' * 22}")
    expect(page.get_by_role("heading", name="This scene is not here any more")).to_be_visible()
    assert broken() == []
