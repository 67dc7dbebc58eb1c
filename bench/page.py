"""The page: bytes to fetch, when it can be used, when a scene is seen. In headless Chromium, cold each time.

`python -m bench.page` starts a service of its own, opens its examples, and writes docs/bench/page.{json,md}. Loopback
is no network: bytes are what counts there. WebGL is drawn by the processor, without a GPU: an upper bound of every time
that has a frame in it.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "service" / "static"
OUT = ROOT / "docs" / "bench" / "page"
RUNS = 5
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
"""Of a headless Chromium."""

TIMES = """() => {
    const [page] = performance.getEntriesByType("navigation");
    const files = performance.getEntriesByType("resource");
    const sum = (entries) => entries.reduce((bytes, entry) => bytes + entry.encodedBodySize, 0);
    return {
        usable: page.domContentLoadedEventEnd,
        last_byte: Math.max(...files.map((file) => file.responseEnd)),
        gallery: sum(files.filter((file) => /gallery/.test(file.name))),
        code: sum(files.filter((file) => !/gallery/.test(file.name))) + page.encodedBodySize,
        files: files.length + 1,
    };
}"""


@contextmanager
def service() -> Iterator[str]:
    """Address of a whole service on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = {"DATA_DIR": folder, "PORT": str(port), "WORKER_METRICS_PORT": "0"}
        environment = os.environ | {f"SCENELIFT_{name}": value for name, value in settings.items()}
        process = subprocess.Popen(
            (sys.executable, "-m", "service", "serve"), env=environment, stdout=subprocess.DEVNULL
        )
        address = f"http://127.0.0.1:{port}"
        try:
            _wait(f"{address}/readyz")
            yield address
        finally:
            process.terminate()
            process.wait()


def _wait(address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(address)
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise TimeoutError(address)


def sizes() -> list[dict[str, Any]]:
    """Every page, script and style sheet: bytes, and bytes as they are sent."""
    files = sorted(path for pattern in ("*.html", "*.js", "assets/*") for path in STATIC.glob(pattern))
    return [
        {
            "file": str(path.relative_to(STATIC)),
            "bytes": path.stat().st_size,
            "gzip": len(gzip.compress(path.read_bytes())),
        }
        for path in files
    ]


def cold(browser: Browser, address: str, scene: bool) -> dict[str, float]:
    """One visit without a cache: milliseconds from the start of the navigation, and bytes."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    times: dict[str, float] = {}
    if scene:
        page.wait_for_selector("scenelift-viewer:state(ready)", timeout=120_000)
        times["first_frame"] = page.evaluate("performance.now()")
    page.wait_for_load_state("networkidle")
    times |= page.evaluate(TIMES)
    page.close()
    return times


def main() -> None:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    examples = json.loads((STATIC / "gallery" / "index.json").read_text())
    visits: dict[str, list[dict[str, float]]] = {}
    with service() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        version = browser.version
        addresses = {"/": address} | {f"/?example={e['name']}": f"{address}/?example={e['name']}" for e in examples}
        for _ in range(RUNS):
            for name, url in addresses.items():
                visits.setdefault(name, []).append(cold(browser, url, scene=name != "/"))
        browser.close()
    rows = [
        {"page": name} | {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in visits.items()
    ]
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "chromium": version, "runs": RUNS}
    report = {"on": machine, "files": sizes(), "visits": rows}
    OUT.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    OUT.with_suffix(".md").write_text(table(report))
    print(table(report))


def table(report: dict[str, Any]) -> str:
    on = report["on"]
    lines = [
        "# The page",
        "",
        f"`python -m bench.page`: headless Chromium {on['chromium'].partition('.')[0]}, {on['machine']},",
        f"{on['cores']} cores, no GPU (WebGL drawn by the processor, so every frame is an upper bound), loopback,",
        f"nothing cached; medians of {on['runs']} visits. Bytes are those sent; times are",
        "milliseconds from the start of the navigation.",
        "",
        "| page | files | code and style, kB | gallery, kB | usable | last byte of the scene | first frame |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["visits"]:
        sent = f"{row['files']:.0f} | {row['code'] / 1e3:.0f} | {row['gallery'] / 1e3:.0f} | {row['usable']:.0f}"
        frame = f"{row['last_byte']:.0f} | {row['first_frame']:.0f}" if "first_frame" in row else "|"
        lines.append(f"| `{row['page']}` | {sent} | {frame} |")
    lines += ["", "| file | kB | kB as sent |", "| --- | --- | --- |"]
    lines += [
        f"| `{file['file']}` | {file['bytes'] / 1e3:.0f} | {file['gzip'] / 1e3:.0f} |" for file in report["files"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
