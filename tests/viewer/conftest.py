"""The page in headless Chromium, against a running service."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FAKE = Path(__file__).parents[1] / "service" / "fake_serve.py"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
FLAGS = (
    "--no-sandbox",
    # No GPU is needed: WebGL by SwiftShader.
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    # Nothing is asked of anybody but the service.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)


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
        "PYTHONPATH": str(Path(__file__).parents[2]),
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


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
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
        self.hosts: set[str] = set()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))
