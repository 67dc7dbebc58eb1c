"""The page in headless Chromium, against a running service."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from bench.page import FLAGS

ROOT = Path(__file__).parents[2]
FAKE = ROOT / "tests" / "service" / "fake_serve.py"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SMALL = {"width": 640, "height": 560}
"""Where there is much to draw, by a processor."""


def start(folder: Path, *command: str, **settings: str) -> tuple[subprocess.Popen[bytes], str]:
    """A whole service in a process of its own, and its address, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = Path(tempfile.mkdtemp(prefix="sl", dir=folder))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCENELIFT_")}
    environment |= {
        "XDG_RUNTIME_DIR": tempfile.mkdtemp(prefix="sl"),
        "SCENELIFT_DATA_DIR": str(run),
        "SCENELIFT_PORT": str(port),
        "SCENELIFT_WORKER_METRICS_PORT": "0",
        "PYTHONPATH": str(ROOT),
        **settings,
    }
    process = subprocess.Popen((sys.executable, *command), env=environment, stdout=subprocess.DEVNULL, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert process.poll() is None, "the service has ended"
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                break
        except httpx.TransportError:
            pass
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    return process, address


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(30)


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a service whose model is a fake: quick, and told by the photos' names what to do."""
    process, address = start(tmp_path_factory.mktemp("fake"), str(FAKE))
    yield address
    stop(process)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the tests of a file: while it is there an event loop runs, and the service's tests want their own."""
    with sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        found = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip("Chromium is not installed")
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A browser's window, and what went wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.faults: list[str] = []
        """What the page threw, and what the browser complained of."""
        self.expected = ""
        """Pattern of complaints that this test provokes."""
        self.hosts: set[str] = set()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._said)
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))

    def _said(self, message: ConsoleMessage) -> None:
        # What the service refuses the page tells its visitor; that the browser notes it too is no fault.
        refused = re.search("the server responded with a status of 4", message.text)
        if message.type == "error" and not refused and not re.search(self.expected or "$.", message.text):
            self.faults.append(message.text)

    def wait_for_scene(self, seconds: float = 60) -> None:
        """Until the viewer draws."""
        # Not wait_for_function: that evaluates text, which the page's policy forbids.
        expect(self.page.locator("scenelift-viewer:state(ready)")).to_be_visible(timeout=1e3 * seconds)

    def shown(self) -> Any:
        """What the viewer draws: representation, total, drawn."""
        return self.page.evaluate("document.querySelector('scenelift-viewer').shown")

    def show(self, representation: str) -> None:
        """Choose what the scene is shown as, and wait until it is."""
        self.page.get_by_role("radio", name=representation.capitalize()).check(force=True)
        for _ in range(600):
            if self.shown()["representation"] == representation:
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{representation} are not shown")

    def picture(self) -> NDArray[np.uint8]:
        """(H, W, 3) the scene as it is seen."""
        png = self.page.evaluate(
            """async () => {
                const reader = new FileReader();
                reader.readAsDataURL(await document.querySelector("scenelift-viewer").screenshot());
                await new Promise((resolve) => reader.addEventListener("load", resolve));
                return reader.result.split(",")[1];
            }"""
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Open windows, each of a visitor of their own. In none of them may anything go wrong unexpectedly."""
    visits: list[Visit] = []

    def open_window(address: str, **options: Any) -> Visit:
        context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce"} | options)
        context.set_default_timeout(30_000)
        visit = Visit(context.new_page())
        visits.append(visit)
        visit.page.goto(address)
        return visit

    yield open_window
    for visit in visits:
        visit.page.context.close()
    for visit in visits:
        assert visit.hosts <= {"127.0.0.1", ""}, "something was loaded from elsewhere"
        assert visit.faults == []
