"""What strangers send ends in a clear answer: no 5xx, no hang, no file where none belongs, no memory beyond a bound."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from starlette.datastructures import FormData

from service import images  # noqa: F401 - its formats are what the corpus is written in
from service.errors import Problem
from service.schemas import OUTPUTS
from service.uploads import FIELDS, FILES, Wish, read_fields
from tests.service.hostile import corpus
from tests.service.support import as_environment, form

SECONDS = 60.0
"""The longest that one answer may take; a film is a process of its own, on a machine that does much else."""
GROWTH = 100 << 20
"""Bytes by which the API may grow over the whole corpus."""


@pytest.fixture
async def server(settings, tmp_path) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """The API in a process and a folder of its own, and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    limits = {
        "port": port,
        "require_worker": False,
        "queue_limit": 9999,
        "max_pixels": 2_000_000,
        "video_cpu_seconds": 5,
        "resumable_limit": 4,
    }
    (tmp_path / "cwd").mkdir()
    environment = as_environment(settings.model_copy(update=limits)) | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TMPDIR": str(tmp_path / "cwd"),
    }
    process = subprocess.Popen(
        (sys.executable, "-m", "service", "api"),
        cwd=tmp_path / "cwd",
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
            deadline = time.monotonic() + 30
            while True:
                try:
                    await client.get("/livez")
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
            yield client, process.pid
    finally:
        process.terminate()
        process.wait()


def peak_memory(pid: int) -> int:
    """The most bytes that the process ever had in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


async def as_it_is(client: httpx.AsyncClient, data: bytes) -> int:
    """Send bytes; the status of the answer, 0 where the connection was closed without one."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        writer.write(data)
        writer.write_eof()
        head = await asyncio.wait_for(reader.read(100), SECONDS)
        return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_hostile_uploads_and_requests(server, settings, tmp_path):
    client, pid = server
    for _ in range(3):
        assert (await client.post("/reconstruct", files=form())).status_code == 202
    before = peak_memory(pid)
    turns = asyncio.Semaphore(4)
    answers: dict[str, int] = {}
    accepted: set[str] = set()

    async def send(name: str, request: dict | bytes) -> None:
        async with turns:
            if isinstance(request, bytes):
                answers[name] = await as_it_is(client, request)
                return
            try:
                answer = await client.request(**request)
            except (httpx.RemoteProtocolError, httpx.NetworkError):  # hung up on, as it may be
                answers[name] = 0
                return
            except httpx.TimeoutException:
                answers[name] = 599
                return
            answers[name] = answer.status_code
            if "problem" in answer.headers.get("content-type", "") and answer.content:
                text = answer.text
                assert answer.json()["detail"].endswith("."), (name, text)
                assert not any(word in text for word in ("Traceback", str(tmp_path), ".py")), (name, text)
            if answer.status_code == 202:
                accepted.add(answer.json()["id"])

    await asyncio.gather(*(send(name, request) for name, request in corpus()))
    assert len(answers) >= 400
    assert {name: status for name, status in answers.items() if status >= 500} == {}
    kinds = Counter(name.split()[0] for name, status in answers.items() if status >= 400)
    assert all(kinds[kind] >= 5 for kind in ("image", "archive", "film", "field", "file", "multipart", "request")), (
        kinds
    )
    assert peak_memory(pid) - before < GROWTH

    await asyncio.sleep(0.2)
    assert list((tmp_path / "cwd").rglob("*")) == []
    assert {path.name for path in tmp_path.iterdir()} == {"cwd", "data"}
    data = settings.data_dir
    assert [*(data / "tmp").rglob("*"), *(data / "drafts").rglob("*")] == []
    assert {path.name for path in data.iterdir()} <= {"uploads", "incoming", "tmp", "drafts"}
    assert {path.name for path in (data / "uploads").iterdir()} >= accepted
    assert len(list((data / "uploads").iterdir())) == len(accepted) + 3
    assert (await client.post("/reconstruct", files=form())).status_code == 202


TEXTS = st.one_of(st.text(max_size=20), st.floats().map(str), st.integers().map(str), st.sampled_from(list(OUTPUTS)))


@examples(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([*FILES, *FIELDS, "other"]), TEXTS), max_size=4))
def test_any_fields_are_a_wish_or_a_problem(fields):
    def read() -> Wish | Problem:
        try:
            return read_fields(FormData(fields))
        except Problem as problem:
            return problem

    answer = read()
    if isinstance(answer, Problem):
        assert answer.status == 422
        assert answer.detail.endswith(".")
    else:
        assert answer.frames is None or answer.frames >= 2
        assert 0 <= answer.options.confidence_percentile <= 99
        assert set(answer.options.outputs) <= set(OUTPUTS)
        assert answer.fingerprint() == read().fingerprint()
