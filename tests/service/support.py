"""What the service's tests share: a real queue server, a real HTTP server, photos."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import redis
import uvicorn
from PIL import Image

from service.app import create_app
from service.models import Catalogue
from service.settings import Settings
from service.supervisor import server_command
from service.worker import Worker
from tests.service.fake_model import FakeCatalogue, FakeModel


class Server:
    """The queue server, with the command that `scenelift serve` uses, so that tests can kill and restart it."""

    def __init__(self, folder: Path) -> None:
        os.environ["XDG_RUNTIME_DIR"] = str(folder)
        settings = Settings(data_dir=folder / "data", _env_file=None)
        (folder / "data").mkdir()
        self.url = settings.queue_url
        self._command = server_command(settings)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + 10
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        client.close()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def jpeg(seed: int = 0, size: tuple[int, int] = (96, 72)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped(contents: dict[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file of contents by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def form(*names: str) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Photos for httpx' `files`."""
    return [("images", (name, jpeg(i), "image/jpeg")) for i, name in enumerate(names or ("a.jpg", "b.jpg"))]


SMALL = {"outputs": "cameras.json,scene.splat"}
"""Few and quick outputs."""


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The API on a port of its own, and a client of it."""
    config = uvicorn.Config(
        create_app(settings), port=0, log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        client.app = config.app
        yield client
    config.app.state.backend.watcher.stop()
    server.should_exit = True
    await task


@asynccontextmanager
async def working(settings: Settings, *models: FakeModel, catalogue: Catalogue | None = None) -> AsyncIterator[Worker]:
    """A worker in this process, ready: of a catalogue, or of fake models."""
    worker = Worker(settings, catalogue or FakeCatalogue(*models))
    task = asyncio.create_task(worker.run())
    while not worker._healthy():
        await asyncio.sleep(0.01)
    await worker._beat()  # the API goes by heartbeats, and the last one may be from before
    yield worker
    worker.stop()
    assert await task == 0


def as_environment(settings: Settings) -> dict[str, str]:
    return {f"SCENELIFT_{name.upper()}": str(value) for name, value in settings.model_dump().items()}


def stored(settings: Settings) -> list[str]:
    """Every photo and result on disk."""
    parts = [settings.data_dir / part for part in ("incoming", "uploads", "jobs")]
    # os.walk passes over folders that go while it looks.
    files = [Path(folder) / name for part in parts for folder, _, names in os.walk(part) for name in names]
    return sorted(str(path.relative_to(settings.data_dir)) for path in files)


async def ended(client: httpx.AsyncClient, job: str, seconds: float = 20) -> dict:
    """The job's final document."""
    deadline = time.monotonic() + seconds
    while True:
        document = (await client.get(f"/jobs/{job}")).json()
        if document["status"] in ("succeeded", "failed", "canceled"):
            return document
        assert time.monotonic() < deadline, document
        await asyncio.sleep(0.02)


async def settled(settings: Settings, seconds: float = 5) -> list[str]:
    """Every file on disk, once a worker has removed the photos of jobs that have ended, or after so long."""
    deadline = time.monotonic() + seconds
    while any(path.startswith("uploads/") for path in stored(settings)) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return stored(settings)
