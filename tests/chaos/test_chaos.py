"""No accepted job is lost, stuck, ended twice or served in halves, whatever is killed: see trial.py."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.chaos.house import House
from tests.chaos.trial import Plan, Trial
from tests.service.support import SMALL, ended, form


@pytest.mark.slow
async def test_every_accepted_job_ends_once_and_whole_through_kills():
    house = House(lease_seconds=2.0, sweep_seconds=1.0)
    plan = Plan(seed=4, jobs=60, kills=6, holds=1, copies=1, jumps=2 if house.can_move_clock else 0)
    try:
        report = await Trial(house, plan).run(patience=45)
    finally:
        house.end()
    assert report.faults == []
    assert report.done.total() == len(plan.deeds())
    assert report.counts["jobs succeeded"] > plan.jobs / 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    mounted = subprocess.run(("mount", "-t", "tmpfs", "-o", "size=16m", "none", str(tmp_path)), capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(("umount", "--lazy", str(tmp_path)), check=True)


@pytest.mark.slow
async def test_a_full_disk_takes_no_new_job_and_loses_none(small_disk):
    """Photos, results and the queue's log share a disk that fills up while jobs run, and is cleared again."""
    house = House(small_disk / "data", workers=1, lease_seconds=2.0, min_free_bytes=1 << 20)
    ballast = small_disk / "ballast"
    client = httpx.AsyncClient(base_url=house.address, timeout=30)
    try:
        house.start()
        await ready(client)
        slow = [await client.post("/reconstruct", files=form("slow.jpg", "b.jpg"), data=SMALL) for _ in range(2)]
        jobs = [answer.json()["id"] for answer in slow]
        fill(ballast)
        answers = [await client.post("/reconstruct", files=form(), data=SMALL) for _ in range(3)]
        assert {answer.status_code for answer in answers} <= {503, 507}
        assert (await client.get("/livez")).status_code == 200
        await asyncio.sleep(4)  # for longer than a job takes
        ballast.unlink()
        documents = [await ended(client, job, 60) for job in jobs]
        assert [document["status"] for document in documents] == ["succeeded"] * 2
        for file in (file for document in documents for file in document["files"]):
            assert len((await client.get(file["url"])).content) == file["bytes"]
        await ready(client)
        again = await client.post("/reconstruct", files=form(), data=SMALL)
        assert (await ended(client, again.json()["id"], 60))["status"] == "succeeded"
        assert house.queue.runs
    finally:
        await client.aclose()
        house.end()


def fill(ballast: Path) -> None:
    """Write a file until there is no room for one byte more."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(512)):
            pass


async def ready(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
