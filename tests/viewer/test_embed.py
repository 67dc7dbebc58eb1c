"""The viewer on pages of other sites: as the element, and in a frame."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.service.support import jpeg
from tests.viewer.conftest import FAKE, ROOT, SMALL, Visit, start, stop

Window = Callable[..., Visit]
Publish = Callable[[str], str]


@pytest.fixture(scope="module")
def publish() -> Iterator[Publish]:
    """Put a page on another site; answers with its address."""
    pages: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = self.path.removeprefix("/")
            self.send_response(200 if page.isdigit() else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            if page.isdigit():
                self.wfile.write(pages[int(page)].encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    def put(html: str) -> str:
        pages.append(html)
        return f"http://127.0.0.1:{server.server_port}/{len(pages) - 1}"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield put
    server.shutdown()
    server.server_close()


def element(service: str, **attributes: str) -> str:
    """HTML of a small page with a scene of the service's gallery."""
    given = {"src": f"{service}/static/gallery/living-room/job.json", "representation": "points"} | attributes
    written = " ".join(f'{name}="{value}"' for name, value in given.items())
    return f"""<!doctype html><script type="module" src="{service}/static/scenelift-viewer.js"></script>
        <style>scenelift-viewer {{ width: 480px; height: 360px; }}</style>
        <scenelift-viewer {written}></scenelift-viewer>"""


def test_what_the_docs_show_works_for_a_job_with_a_link(tmp_path: Path, publish: Publish, visit: Window) -> None:
    site = publish("").rpartition("/")[0]
    process, service = start(tmp_path, str(FAKE), SCENELIFT_CORS_ORIGINS=site)
    try:
        photos = [("images", (f"{seed}.jpg", jpeg(seed))) for seed in (1, 2)]
        job = httpx.post(f"{service}/reconstruct", files=photos, headers={"Prefer": "wait=60"}).json()
        token = httpx.post(f"{service}/jobs/{job['id']}/links").json()["token"]
        blocks = re.findall(r"```html\n(.*?)```", (ROOT / "docs" / "embed.md").read_text(), re.DOTALL)
        frame, page = (
            block.replace("https://scenes.example.org", service).replace("ID", job["id"]).replace("TOKEN", token)
            for block in blocks
        )
        window = visit(publish(page), viewport=SMALL)
        expect(window.page.locator("#line")).to_have_text(re.compile(r"\d+ points from 2 photos"))
        window = visit(publish(frame), viewport=SMALL)
        inside = window.page.frame_locator("iframe")
        expect(inside.locator("scenelift-viewer:state(ready)")).to_be_visible()
        expect(inside.get_by_role("link", name="Scenelift")).to_have_attribute("target", "_blank")
    finally:
        stop(process)


def test_a_scene_waits_to_be_asked_for(fake: str, publish: Publish, visit: Window) -> None:
    window = visit("about:blank", viewport=SMALL)
    asked: list[str] = []
    window.page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    window.page.goto(publish(element(fake, autoload="false")))
    play = window.page.get_by_role("button", name="Open the scene")
    expect(play).to_be_visible()
    assert "preview.webp" in asked
    assert "scene.ply" not in asked
    play.click()
    window.wait_for_scene()
    assert "scene.ply" in asked


def test_taken_out_of_its_page_it_gives_the_graphics_back(fake: str, publish: Publish, visit: Window) -> None:
    window = visit(publish(element(fake)), viewport=SMALL)
    window.wait_for_scene()
    page = window.page
    page.evaluate(
        """() => {
            window.viewer = document.querySelector("scenelift-viewer");
            window.canvas = viewer.shadowRoot.querySelector("canvas");
            document.body.append(viewer);
        }"""
    )
    assert page.evaluate("viewer.state === 'ready' && canvas.isConnected"), "moved, it keeps its scene"
    page.evaluate("viewer.remove()")
    assert page.evaluate("[viewer.state, canvas.getContext('webgl2').isContextLost()]") == ["empty", True]
    page.evaluate("document.body.append(viewer)")
    window.wait_for_scene()


def test_a_host_sees_what_happens_and_can_change_it(fake: str, publish: Publish, visit: Window) -> None:
    window = visit(publish(element(fake, background="#ff0000")), viewport=SMALL)
    window.wait_for_scene()
    page = window.page
    picture = window.picture()
    assert (picture == (255, 0, 0)).all(axis=2).mean() > 0.01
    page.evaluate(
        """() => {
            const viewer = document.querySelector("scenelift-viewer");
            window.told = [];
            viewer.addEventListener("error", (event) => told.push(event.detail.status, event.detail.message));
            viewer.controls = "none";
        }"""
    )
    expect(page.get_by_role("button", name="Settings")).to_be_hidden()
    gone = {"type": "unknown-job", "status": 404, "detail": "There is no such job."}
    page.route(
        "**/gone", lambda route: route.fulfill(status=404, json=gone, headers={"Access-Control-Allow-Origin": "*"})
    )
    page.evaluate("document.querySelector('scenelift-viewer').src += '/gone'")
    expect(page.get_by_text("This scene is not here.").first).to_be_visible()
    assert page.evaluate("told") == [404, "This scene is not here."]
    assert page.evaluate("document.querySelector('scenelift-viewer').screenshot().catch((error) => error.name)") == (
        "InvalidStateError"
    )


def test_everything_can_be_done_with_the_keyboard(fake: str, publish: Publish, visit: Window) -> None:
    window = visit(publish(element(fake)), viewport=SMALL)
    window.wait_for_scene()
    page = window.page
    focused = "document.activeElement.shadowRoot.activeElement"

    page.get_by_role("button", name="Settings").press("Enter")
    expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Settings")).to_be_hidden()
    assert page.evaluate(f"{focused}.ariaLabel") == "Settings"

    # The rarer tools are in a menu here; the keyboard comes back to its button.
    page.get_by_role("button", name="More tools").press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate(f"{focused}.ariaLabel") == "More tools"

    page.get_by_role("application").focus()
    page.keyboard.press(".")
    expect(page.get_by_text("Seen from where 1.jpg was taken.").first).to_be_attached()
    page.keyboard.press("p")
    photos = page.get_by_role("group", name="Photos")
    photos.get_by_role("button", name="Photo 1 of 7").press("ArrowRight")
    expect(photos.get_by_role("button", name="Photo 2 of 7")).to_be_focused()
    expect(page.get_by_text("Seen from where 2.jpg was taken.").first).to_be_attached()
