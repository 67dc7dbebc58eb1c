"""What containers and clusters ask: is this worker's container healthy, may jobs come, does the queue answer."""

from __future__ import annotations

import asyncio
import os
import sys

import httpx
import pytest
from prometheus_client import generate_latest

from service.jobs import Queue
from tests.service.support import as_environment, form, serving, working

AWAY = {"redis_url": "unix:///nowhere.sock"}


async def healthcheck(settings) -> tuple[int, str]:
    """The command that a container runs: its exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "healthcheck"),
        env=os.environ | as_environment(settings),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode().strip()


async def test_a_working_worker_is_healthy(settings):
    async with working(settings):
        assert await healthcheck(settings) == (0, "ready")
    assert await healthcheck(settings) == (1, "no worker on this machine")


async def test_without_the_queue_a_worker_is_not_healthy(settings):
    assert await healthcheck(settings.model_copy(update=AWAY)) == (1, "the queue cannot be reached")


@pytest.mark.parametrize(("state", "code"), [("starting", 1), ("unhealthy", 1), ("busy", 0), ("draining", 0)])
async def test_health_is_what_the_heartbeat_says(settings, state, code):
    async with working(settings) as worker:
        document = worker._describe()
    queue = Queue(settings)
    await queue.heartbeat(document.model_copy(update={"state": state}))
    await queue.heartbeat(document.model_copy(update={"id": "another", "host": "elsewhere", "state": "ready"}))
    await queue.close()
    assert await healthcheck(settings) == (code, state)


async def test_where_workers_scale_to_zero_jobs_may_come_without_any(settings):
    async with serving(settings) as client:
        assert (await client.get("/readyz")).json()["reasons"] == ["There is no worker."]
    zero = settings.model_copy(update={"require_worker": False})
    async with serving(zero) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/reconstruct", files=form(), data={"model": "geometry"})).status_code == 202
    async with serving(zero.model_copy(update=AWAY)) as client:
        assert (await client.get("/readyz")).status_code == 503


async def test_metrics_outlive_the_queue(settings):
    async with serving(settings) as client:
        assert "scenelift_queue_up 1.0" in (await client.get("/metrics")).text
    async with serving(settings.model_copy(update=AWAY)) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == httpx.codes.OK
    assert "scenelift_queue_up 0.0" in answer.text
    assert "scenelift_queue_depth NaN" in answer.text


async def test_a_worker_tells_the_memory_of_its_device(settings):
    async with working(settings) as worker:
        text = generate_latest(worker._metrics.registry).decode()
    told = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if "device_memory_bytes{" in line}
    assert 0 < told['scenelift_device_memory_bytes{kind="used"}'] < told['scenelift_device_memory_bytes{kind="total"}']
