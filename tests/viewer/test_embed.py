"""Scenes on pages of other sites, and for people who do not see or do not use a mouse."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.service.support import form
from tests.viewer.conftest import FAKE, ROOT, Visit, start, stop

Window = Callable[..., Visit]
GUIDE = (ROOT / "docs" / "embed.md").read_text(encoding="utf-8")
AXE = ROOT / "viewer" / "node_modules" / "axe-core" / "axe.min.js"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """What is asked of it does not matter."""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and its address: another site than the service."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_guides_examples_show_a_scene(
    elsewhere: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory, visit: Window
) -> None:
    folder, site = elsewhere
    process, address = start(tmp_path_factory.mktemp("cors"), str(FAKE), SCENELIFT_CORS_ORIGINS=site)
    try:
        job = httpx.post(f"{address}/reconstruct", files=form(), headers={"Prefer": "wait=30"}).json()["id"]
        token = httpx.post(f"{address}/jobs/{job}/links").json()["token"]
        frame, page = re.findall(r"```html\n(.*?)```", GUIDE, re.DOTALL)
        for name, text in (("frame.html", f"<!doctype html><body>{frame}</body>"), ("element.html", page)):
            filled = text.replace("https://scenes.example.org", address).replace("TOKEN", token)
            filled = re.sub(r"/ID\b", f"/{job}", filled)
            (folder / name).write_text(filled, encoding="utf-8")

        element = visit(f"{site}/element.html")
        element.wait_for_scene()
        assert element.shown()["total"] > 0
        expect(element.page.locator("#line")).to_contain_text("2 photos")

        framed = visit(f"{site}/frame.html").page
        expect(framed.frame_locator("iframe").locator("scenelift-viewer:state(ready)")).to_be_visible(timeout=60_000)
    finally:
        stop(process)


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
