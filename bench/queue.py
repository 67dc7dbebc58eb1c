"""What a job costs the queue's server: `python -m bench.queue` writes docs/bench/queue.json.

A real server, the API and a worker, each with connections as in production; the model answers at once, so that all that
is counted is the queue's own work. Commands inside scripts are counted too; a round trip is one read of the server's.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import redis
import structlog

from service.keys import Keys
from service.settings import Settings
from service.storage import Storage
from tests.service.support import SMALL, Server, ended, form, serving, working

RESULT = Path(__file__).parents[1] / "docs" / "bench" / "queue.json"
JOBS, TOGETHER, POLLS, WAITING = 100, 4, 50, 200
IDLE_SECONDS = 10.0


def totals(server: Any) -> dict[str, float]:
    """What the server has done since it started."""
    found = server.info("everything")
    return {
        "commands": sum(row["calls"] for name, row in found.items() if name.startswith("cmdstat_")),
        "round_trips": found["total_reads_processed"],
        "bytes_in": found["total_net_input_bytes"],
        "bytes_out": found["total_net_output_bytes"],
        "log_bytes": found["aof_current_size"],
        "cpu_ms": 1e3 * (found["used_cpu_user"] + found["used_cpu_sys"]),
    }


def rate(before: dict[str, float], after: dict[str, float], count: float) -> dict[str, float]:
    return {name: round((after[name] - before[name]) / count, 2) for name in before}


async def measure(server: Any, settings: Settings, key: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with working(settings), serving(settings) as client:
        client.headers["Authorization"] = f"Bearer {key}"

        async def one(wait: str) -> str:
            answer = await client.post("/reconstruct", files=form(), data=SMALL, headers={"Prefer": wait})
            answer.raise_for_status()
            job: str = answer.json()["id"]
            return job

        job = await one("wait=60")
        before = totals(server)
        await asyncio.sleep(IDLE_SECONDS)
        found["idle, a second"] = rate(before, totals(server), IDLE_SECONDS)

        limit = asyncio.Semaphore(TOGETHER)

        async def next_one(wait: str) -> str:
            async with limit:
                return await one(wait)

        for name, wait in (("a job whose caller waits", "wait=60"), ("a job that is asked for until it has ended", "")):
            before = totals(server)
            jobs = await asyncio.gather(*(next_one(wait) for _ in range(JOBS)))
            for job in jobs:
                await ended(client, job)
            found[name] = rate(before, totals(server), JOBS)

        before = totals(server)
        for _ in range(POLLS):
            await client.get(f"/jobs/{job}")
        found["GET /jobs/{id}"] = rate(before, totals(server), POLLS)
        found["bytes of a record"] = server.memory_usage(f"{{scenelift}}:job:{job}")
    patient = settings.model_copy(update={"require_worker": False, "queue_limit": 10 * WAITING})
    patient = patient.model_copy(update={"jobs_per_key": 10 * WAITING})
    async with serving(patient) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        for _ in range(WAITING):
            (await client.post("/reconstruct", files=form(), data=SMALL)).raise_for_status()
        before = totals(server)
        for _ in range(10):
            (await client.post("/reconstruct", files=form(), data=SMALL)).raise_for_status()
        found[f"POST /reconstruct with {WAITING} jobs waiting"] = rate(before, totals(server), 10)
    return found


async def main() -> None:
    structlog.configure(processors=[_silent])
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        folder = Path(name)
        queue = Server(folder)
        queue.start()
        settings = Settings(
            _env_file=None,
            data_dir=folder / "service",
            redis_url=queue.url,
            worker_metrics_port=0,
            requests_per_second=1000,
            requests_burst=10_000,
        )
        _, key = await Keys(Storage(settings.data_dir)).create("bench")
        server = redis.Redis.from_url(queue.url)
        try:
            found = await measure(server, settings, key)
        finally:
            server.close()
            queue.kill()
    about = {"cpu": platform.machine(), "cores": os.cpu_count(), "jobs": JOBS, "photos": 2, "together": TOGETHER}
    RESULT.write_text(json.dumps(about | found, indent=1) + "\n")
    print(RESULT.read_text())


def _silent(*_: object) -> Any:
    raise structlog.DropEvent


if __name__ == "__main__":
    asyncio.run(main())
