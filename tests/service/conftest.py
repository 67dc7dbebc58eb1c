"""A real queue server, real files, a real HTTP server; only the model is a fake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis
import structlog

from service.jobs import Queue
from service.settings import Settings
from tests.service.support import Server, as_environment, serving, working

structlog.configure(
    processors=[structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="sl"))
    folder.chmod(0o700)
    before = os.environ.get("XDG_RUNTIME_DIR")
    server = Server(folder)
    if before is None:
        del os.environ["XDG_RUNTIME_DIR"]
    else:
        os.environ["XDG_RUNTIME_DIR"] = before
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture
def settings(server: Server, tmp_path: Path) -> Settings:
    """Settings of an empty service, with short leases."""
    client = redis.Redis.from_url(server.url)
    client.flushall()
    client.close()
    return Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        redis_url=server.url,
        worker_metrics_port=0,
        lease_seconds=1.0,
        drain_seconds=5.0,
        max_file_bytes=1 << 20,
        max_body_bytes=4 << 20,
    )


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[Queue]:
    queue = Queue(settings)
    yield queue
    await queue.close()


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The API and a ready worker."""
    async with working(settings), serving(settings) as client:
        yield client


@pytest.fixture
def spawn(settings: Settings) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start a worker in a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            (sys.executable, str(Path(__file__).with_name("fake_model.py"))), env=os.environ | as_environment(settings)
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
