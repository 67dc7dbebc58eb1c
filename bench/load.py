"""Many jobs at once: `python -m bench.load` writes docs/bench/load.json and load.md.

With a network: the whole service runs as its users run it (`scenelift serve`), on a small one with random weights.
64 jobs of 4 photos, all at once against one by one: jobs a second, jobs a forward pass, and how long `GET /jobs/{id}`
takes beside the work. With an instant one (`python -m bench.load instant` for this part alone) what is left is the
service itself: 1,000 jobs of 2 small photos, how long POST and GET take, and the API's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from tests.chaos.house import House

RESULT = Path(__file__).parents[1] / "docs" / "bench" / "load.json"
INSTANT_JOBS = 1000
CLIENTS = 16
MODEL = "small"
SQUARE = 128
PHOTOS = 4
SIZE = (1600, 1200)
FIELDS = {"outputs": "scene.ply,cameras.json"}
POLL_SECONDS = 0.02


def export_model(folder: str) -> None:
    """A small network with random weights, as an artifact; in a process of its own, for torch's memory's sake."""
    import torch

    from export.onnx_graph import export_onnx
    from model.config import ModelConfig
    from tests.tiny import tiny_network

    network = tiny_network(ModelConfig(192, 6, 3, 192, 4, 3, paths=1, skip_channels=64, gaussian_width=192))
    with torch.no_grad():  # points well in front of the camera, or no scene would come of them
        for points in (network.reference_head.points, network.head.points):
            points.proj.weight.mul_(0.2)
            points.proj.bias.zero_()[2 * 16**2 : 3 * 16**2] = 1.0
            points.skip_proj[-1].norm.weight.mul_(0.2)
            points.skip_proj[-1].norm.bias.zero_()
    export_onnx(network, Path(folder) / MODEL, MODEL, "Apache-2.0", square=SQUARE)


def photos() -> list[tuple[str, tuple[str, bytes, str]]]:
    """JPEGs with as much detail as photos have."""
    random = np.random.default_rng(0)
    found = []
    for index in range(PHOTOS):
        coarse = Image.fromarray(random.integers(0, 256, (75, 100, 3), np.uint8)).resize(SIZE)
        noisy = np.asarray(coarse, np.int16) + random.integers(-8, 9, (SIZE[1], SIZE[0], 1), np.int16)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        found.append(("images", (f"{index}.jpg", buffer.getvalue(), "image/jpeg")))
    return found


async def reconstruct(client: httpx.AsyncClient, files: list[Any]) -> dict[str, Any]:
    """One job from its photos to its end."""
    answer = await client.post("/reconstruct", files=files, data=FIELDS, headers={"Prefer": "wait=300"})
    answer.raise_for_status()
    job: dict[str, Any] = answer.json()
    if job["status"] != "succeeded":
        raise RuntimeError(f"a job ended as {job['status']}: {job['error']}")
    return job


async def watch(client: httpx.AsyncClient, job: str, stop: asyncio.Event) -> list[float]:
    """Seconds that `GET /jobs/{id}` takes, again and again."""
    seconds = []
    while not stop.is_set():
        began = time.perf_counter()
        (await client.get(f"/jobs/{job}")).raise_for_status()
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(POLL_SECONDS)
    return seconds


async def measure(address: str, jobs: int) -> dict[str, Any]:
    files = photos()
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client,
        httpx.AsyncClient(base_url=address, timeout=600) as watcher,
    ):
        first = await reconstruct(client, files)
        idle_stop = asyncio.Event()
        idle = asyncio.create_task(watch(watcher, first["id"], idle_stop))
        await asyncio.sleep(2)
        idle_stop.set()
        idle_seconds = await idle

        began = time.perf_counter()
        for _ in range(jobs):
            await reconstruct(client, files)
        alone = time.perf_counter() - began

        stop = asyncio.Event()
        watching = asyncio.create_task(watch(watcher, first["id"], stop))
        began = time.perf_counter()
        done = await asyncio.gather(*(reconstruct(client, files) for _ in range(jobs)))
        together = time.perf_counter() - began
        stop.set()
        busy_seconds = await watching
    sizes = [job["metrics"]["batch_size"] for job in done]
    return {
        "jobs": jobs,
        "photos_per_job": PHOTOS,
        "photo_pixels": list(SIZE),
        "photo_bytes": sum(len(file[1][1]) for file in files) // PHOTOS,
        "one_by_one_jobs_per_second": jobs / alone,
        "at_once_jobs_per_second": jobs / together,
        "ratio": alone / together,
        "mean_batch": jobs / sum(1 / size for size in sizes),
        "largest_batch": max(sizes),
        "get_job_idle_ms": percentiles(idle_seconds),
        "get_job_under_load_ms": percentiles(busy_seconds),
    }


async def measure_instant(jobs: int) -> dict[str, Any]:
    """The service with a model that answers at once."""
    house = House(workers=1, queue_limit=2 * jobs)
    async with httpx.AsyncClient(base_url=house.address, timeout=60) as client:
        try:
            house.start()
            deadline = time.monotonic() + 60
            while not await is_ready(client):
                if time.monotonic() > deadline:
                    raise RuntimeError("the service does not become ready")
                await asyncio.sleep(0.1)
            api = psutil.Process(house.api.pid)
            memory = {"0": api.memory_info().rss}
            photos = small_photos()
            ids: list[str] = []

            async def post() -> None:
                answer = await client.post("/reconstruct", files=photos, data={"outputs": "cameras.json"})
                answer.raise_for_status()
                ids.append(answer.json()["id"])
                if len(ids) % (jobs // 5) == 0:
                    memory[str(len(ids))] = api.memory_info().rss

            async def get() -> None:
                (await client.get(f"/jobs/{ids[len(ids) // 2]}")).raise_for_status()

            began = time.monotonic()
            posts = await timed(post, jobs)
            while (await client.get("/health")).json()["queue"]["depth"]:
                await asyncio.sleep(0.05)
            seconds = time.monotonic() - began
            gets = await timed(get, 2 * jobs)
            ends = [(await client.get(f"/jobs/{id}")).json()["status"] for id in ids]
            if ends != ["succeeded"] * jobs:
                raise RuntimeError("not every job succeeded")
            memory["after GETs"] = api.memory_info().rss
        finally:
            house.end()
    return {
        "jobs": jobs,
        "clients": CLIENTS,
        "jobs_per_second": jobs / seconds,
        "post": posts,
        "get": gets,
        "api_memory_mib": {when: rss / (1 << 20) for when, rss in memory.items()},
    }


async def is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


def small_photos() -> list[tuple[str, tuple[str, bytes, str]]]:
    found = []
    for index in range(2):
        buffer = io.BytesIO()
        Image.new("RGB", (96, 72), (40 * index, 90, 160)).save(buffer, "JPEG")
        found.append(("images", (f"{index}.jpg", buffer.getvalue(), "image/jpeg")))
    return found


async def timed(request: Callable[[], Awaitable[None]], count: int) -> dict[str, float]:
    """Requests a second of some clients at once, and how long each takes."""
    numbers, seconds = iter(range(count)), []

    async def ask() -> None:
        for _ in numbers:
            began = time.perf_counter()
            await request()
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    return {"per_second": count / (time.perf_counter() - began)} | percentiles(seconds)


def percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"requests": len(seconds), "p50": 1e3 * cuts[49], "p99": 1e3 * cuts[98], "max": 1e3 * max(seconds)}


def serve(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the service on a free port and wait until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "SCENELIFT_DATA_DIR": str(folder),
        "SCENELIFT_PORT": str(port),
        "SCENELIFT_WORKER_METRICS_PORT": "0",
    }
    process = subprocess.Popen(
        (sys.executable, "-m", "service", "serve"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return process, address
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline or process.poll() is not None:
            process.terminate()
            raise RuntimeError("the service does not become ready")
        time.sleep(0.1)


def measure_network(jobs: int) -> dict[str, Any]:
    """The service with a small network."""
    with tempfile.TemporaryDirectory(prefix="scenelift-load-") as temporary:
        folder = Path(temporary)
        models = folder / "models"
        models.mkdir()
        exporting = multiprocessing.get_context("spawn").Process(target=export_model, args=(str(models),))
        exporting.start()
        exporting.join()
        (models / "default").write_text(MODEL)
        process, address = serve(folder)
        try:
            return asyncio.run(measure(address, jobs))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def table(figures: dict[str, Any]) -> str:
    """What was measured, to be read."""
    lines = [f"# The service under load\n\n`python -m bench.load`, {figures['machine']}, Python {figures['python']}."]
    if "jobs" in figures:
        busy, idle = figures["get_job_under_load_ms"], figures["get_job_idle_ms"]
        lines += [
            f"\n## A small network: {figures['jobs']} jobs of {PHOTOS} photos\n\n| | |\n| --- | ---: |",
            f"| one by one | {figures['one_by_one_jobs_per_second']:.2f} jobs/s |",
            f"| all at once | {figures['at_once_jobs_per_second']:.2f} jobs/s, {figures['ratio']:.2f} times |",
            f"| jobs a pass | {figures['mean_batch']:.2f}, at most {figures['largest_batch']:.0f} |",
            f"| `GET /jobs/{{id}}` under load | {_spread(busy)} |",
            f"| `GET /jobs/{{id}}` idle | {_spread(idle)} |",
        ]
    if "instant" in figures:
        instant = figures["instant"]
        memory = instant["api_memory_mib"]
        lines += [
            f"\n## An instant network: {instant['jobs']} jobs of 2 small photos, {instant['clients']} clients",
            "\nOne API process, one worker, the queue's server and the clients share the machine.",
            "\n| | requests/s | |\n| --- | ---: | --- |",
            f"| `POST /reconstruct` | {instant['post']['per_second']:.0f} | {_spread(instant['post'])} |",
            f"| `GET /jobs/{{id}}` | {instant['get']['per_second']:.0f} | {_spread(instant['get'])} |",
            f"| jobs from photos to end | {instant['jobs_per_second']:.0f} | |",
            "\nMemory of the API process (MiB) after so many jobs: "
            + ", ".join(f"{when}: {mib:.1f}" for when, mib in memory.items())
            + ".",
        ]
    return "\n".join(lines) + "\n"


def _spread(figures: dict[str, float]) -> str:
    return f"{figures['p50']:.1f} ms p50, {figures['p99']:.1f} p99, {figures['max']:.1f} max"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["network", "instant"], help="network, instant or both")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    known |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version()}
    if "network" in arguments.parts:
        known |= measure_network(arguments.jobs)
    if "instant" in arguments.parts:
        known["instant"] = asyncio.run(measure_instant(INSTANT_JOBS))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(known, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(table(known))
    print(table(known))


if __name__ == "__main__":
    main()
