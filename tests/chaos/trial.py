"""Load on a service that is being tormented, and a referee: every job that was accepted ends exactly once, whole.

What is killed, and when, follows from the seed: moments are counted in accepted jobs, so that each is under load on a
machine of any speed.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.jobs import GROUP, PREFIX, STREAM
from service.schemas import FINAL
from tests.chaos.house import House, Process
from tests.service.support import form

T = TypeVar("T")

OUTPUTS = ("cameras.json", "scene.ply", "scene.splat")
PHOTOS = {
    "plain": ("a.jpg", "b.jpg"),
    "long": ("steady.jpg", "b.jpg"),
    "refused": ("refuse.jpg", "b.jpg"),
    "cancelled": ("steady.jpg", "c.jpg"),
}
"""Kinds of jobs, by what the fake model makes of their photos' names."""
SHARES = {"plain": 75, "long": 15, "refused": 5, "cancelled": 5}
RECORD = ("status", "finished_at", "attempts", "files", "error")
"""What of a record may not change once the job has ended."""
SENDERS, READERS = 12, 3
LOOK_SECONDS = 0.05
"""Time between two looks at the records of jobs that have not ended; the others are looked at every twentieth time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens in a trial."""

    seed: int
    jobs: int
    kills: int
    """kill -9 of a worker, of the queue's server and of the API, in turn."""
    holds: int
    """SIGSTOP of a worker for longer than its lease."""
    copies: int
    """Entries of accepted jobs that are put into the stream once more."""
    jumps: int
    """Of the clock of the queue's server: an hour forward and a moment back, in turn."""

    def deeds(self) -> list[tuple[int, str]]:
        """What is done once so many jobs were accepted, in order."""
        kinds = [*itertools.islice(itertools.cycle(("kill worker", "kill queue", "kill api")), self.kills)]
        kinds += ["hold worker"] * self.holds + ["copy entries"] * self.copies
        kinds += [*itertools.islice(itertools.cycle(("clock forward", "clock back")), self.jumps)]
        chance = random.Random(self.seed)
        chance.shuffle(kinds)
        moments = sorted(chance.choices(range(self.jobs // 20, self.jobs - self.jobs // 20), k=len(kinds)))
        return list(zip(moments, kinds))


@dataclass(slots=True)
class Seen:
    """An accepted job, as it was seen from outside."""

    kind: str
    end: dict[str, str] | None = None
    """Its record when it was first seen to have ended."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Report:
    faults: list[str] = field(default_factory=list)
    """What may never be."""
    done: Counter[str] = field(default_factory=Counter)
    """What was done to the service."""
    counts: dict[str, int] = field(default_factory=dict)
    """What happened meanwhile, in words."""
    seconds: float = 0.0


class Trial:
    def __init__(self, house: House, plan: Plan) -> None:
        self._house = house
        self._plan = plan
        self._chance = random.Random(plan.seed + 1)
        self._jobs: dict[str, Seen] = {}
        self._numbers = iter(range(plan.jobs))
        self._counts: Counter[str] = Counter()
        self._client = httpx.AsyncClient(base_url=house.address, timeout=30)
        self._redis: Any = Redis.from_url(
            house.settings.queue_url, decode_responses=True, protocol=2, socket_timeout=5, retry=Retry(NoBackoff(), 0)
        )
        self.report = Report()

    async def run(self, *, patience: float) -> Report:
        """The whole trial; whatever is waited for may take `patience` seconds."""
        began = time.monotonic()
        self._house.start()
        await self._until(self._ready, patience, "the service does not become ready")
        beside = [asyncio.create_task(loop) for loop in (self._watch(), *(self._read() for _ in range(READERS)))]
        senders = [asyncio.create_task(self._send_all()) for _ in range(SENDERS)]
        try:
            await self._torment(patience)
            await asyncio.wait(senders, timeout=patience)
            await self._until(self._all_ended, patience, "jobs are stuck")
            await self._judge(patience)
        finally:
            for task in (*beside, *senders):
                task.cancel()
            for outcome in await asyncio.gather(*beside, *senders, return_exceptions=True):
                if isinstance(outcome, Exception):
                    self._fault(f"the trial itself: {outcome!r}")
            await self._client.aclose()
            await self._redis.aclose()
        self.report.seconds = time.monotonic() - began
        return self.report

    def _fault(self, what: str) -> None:
        self.report.faults.append(what)

    async def _until(self, condition: Callable[[], Awaitable[bool]], seconds: float, otherwise: str) -> None:
        deadline = time.monotonic() + seconds
        while not await condition():
            if time.monotonic() > deadline:
                self._fault(otherwise)
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _ready(self) -> bool:
        try:
            return (await self._client.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async def _accepted(self, jobs: int) -> bool:
        return len(self._jobs) >= jobs

    async def _all_ended(self) -> bool:
        return len(self._jobs) == self._plan.jobs and all(seen.end for seen in self._jobs.values())

    # Load

    async def _send_all(self) -> None:
        """Job after job, each until it has ended: as many as there are senders are always under way."""
        for number in self._numbers:
            (kind,) = self._chance.choices(list(SHARES), SHARES.values())
            twice = self._chance.random() < 0.1
            job = await self._post(number, kind)
            if job in self._jobs:
                self._fault(f"request {number} got the job of another: {job}")
            seen = self._jobs.setdefault(job, Seen(kind))
            if twice and await self._post(number, kind) != job:
                self._fault(f"request {number} made a second job when it was sent again")
            if kind == "cancelled":
                await asyncio.sleep(0.1)
                await self._steady(lambda job=job: self._client.post(f"/jobs/{job}/cancel"))
            await seen.ended.wait()

    async def _post(self, number: int, kind: str) -> str:
        """Send a request until it is accepted. Its Idempotency-Key makes one job of all tries."""
        fields = {"outputs": ",".join(OUTPUTS), "reference": "0"}
        headers = {"Idempotency-Key": f"{self._plan.seed}-{number}"}
        answer = await self._steady(
            lambda: self._client.post("/reconstruct", files=form(*PHOTOS[kind]), data=fields, headers=headers)
        )
        return answer.json()["id"]

    async def _steady(self, request: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """Ask until there is an answer; the service may only be away or busy."""
        while True:
            try:
                answer = await request()
            except httpx.TransportError:
                self._counts["requests cut off or refused a connection"] += 1
            else:
                if answer.status_code not in (429, 503):
                    if answer.status_code >= 400:
                        self._fault(f"{answer.request.method} {answer.url.path}: {answer.status_code} {answer.text}")
                    return answer
                self._counts[f"requests answered {answer.status_code}"] += 1
            await asyncio.sleep(0.1)

    async def _read(self) -> None:
        """Fetch files of any job at any time: whatever is served is whole, and what was promised."""
        while True:
            await asyncio.sleep(0.02)
            if not self._jobs:
                continue
            job = self._chance.choice(list(self._jobs))
            name = self._chance.choice(OUTPUTS)
            promised = self._jobs[job].end
            try:
                answer = await self._client.get(f"/jobs/{job}/files/{name}")
            except httpx.TransportError:
                self._counts["downloads cut off or refused a connection"] += 1
                continue
            if answer.status_code == 200:
                self._counts["files read while jobs ran, each compared with its checksum"] += 1
                if f'"{hashlib.sha256(answer.content).hexdigest()}"' != answer.headers["etag"]:
                    self._fault(f"{name} of {job} was served other than whole")
            elif answer.status_code == 404 and promised is not None and promised["status"] == "succeeded":
                self._fault(f"{name} of {job} is not there though the job succeeded")
            elif answer.status_code not in (404, 503):
                self._fault(f"GET {name} of {job}: {answer.status_code} {answer.text}")

    async def _watch(self) -> None:
        """Look at every record again and again: what has ended stays as it is."""
        for turn in itertools.count():
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look([job for job, seen in self._jobs.items() if turn % 20 == 0 or seen.end is None])
            except (RedisError, OSError):
                continue

    async def _look(self, jobs: list[str]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(f"{PREFIX}:job:{job}", *RECORD)
            records = await pipe.execute()
        for job, values in zip(jobs, records):
            seen, record = self._jobs[job], dict(zip(RECORD, values))
            if seen.end is not None and record != seen.end:
                self._fault(f"{job} had ended as {seen.end}, then was {record}")
                seen.end = record
            if record["status"] is None:
                self._fault(f"the record of {job} is lost")
            elif record["status"] in FINAL and seen.end is None:
                seen.end = record
                seen.ended.set()

    # Torment

    async def _torment(self, patience: float) -> None:
        """Do every deed at its moment."""
        for moment, deed in self._plan.deeds():
            await self._until(lambda moment=moment: self._accepted(moment), patience, "no more jobs are accepted")
            await asyncio.sleep(self._chance.uniform(0, 0.3))
            await self._do(deed)
            self.report.done[deed] += 1

    async def _do(self, deed: str) -> None:
        house, chance = self._house, self._chance
        worker = chance.choice(house.workers)
        if deed in ("kill worker", "hold worker"):
            await self._ask(lambda: self._at_work(worker))
        match deed:
            case "kill worker" | "kill queue" | "kill api":
                victim = {"kill worker": worker, "kill queue": house.queue, "kill api": house.api}[deed]
                if not victim.runs:
                    self._fault(f"{deed}: it had ended of itself, see its log:\n{victim.log.read_text()[-2000:]}")
                victim.kill()
                await asyncio.sleep(chance.uniform(0, 1))
                victim.start()
            case "hold worker":
                worker.hold()
                await asyncio.sleep(house.settings.lease_seconds * 1.5)
                worker.release()
            case "copy entries":
                for job in chance.choices(list(self._jobs), k=3) + list(self._jobs)[-3:]:
                    await self._ask(lambda job=job: self._redis.xadd(STREAM, {"id": job}))
            case "clock forward":
                house.move_clock(3600)
            case "clock back":
                house.move_clock(-2)

    async def _at_work(self, worker: Process) -> None:
        """Wait until the worker has a job, or for so long as one comes to every worker that lives."""
        for _ in range(100):
            pending = await self._redis.xpending(STREAM, GROUP)
            if any(f"-{worker.pid}-" in consumer["name"] for consumer in pending["consumers"]):
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask the queue's server, for as long as it may be starting."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return await question()
            except (RedisError, OSError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(LOOK_SECONDS)

    # The referee

    async def _judge(self, patience: float) -> None:
        house, report = self._house, self.report
        await self._until(self._queue_empty, patience, "entries stay in the queue")
        await self._until(self._ready, patience, "the service is not ready again")
        await self._look(list(self._jobs))
        records = [key async for key in self._redis.scan_iter(f"{PREFIX}:job:*", count=1000)]
        if len(records) != self._plan.jobs:
            self._fault(f"{self._plan.jobs} requests made {len(records)} jobs")
        for job, seen in self._jobs.items():
            if seen.end is not None:
                await self._judge_job(job, seen)
        for job, times in house.said("job ended").items():
            if times > 1:
                self._fault(f"{times} workers ended {job}")
        for process in house.processes:
            if not process.runs:
                self._fault(f"a process has ended of itself, see its log:\n{process.log.read_text()[-2000:]}")
        await self._judge_uploads(patience)
        ends = [seen.end for seen in self._jobs.values() if seen.end is not None]
        report.counts = {f"jobs {status}": count for status, count in Counter(e["status"] for e in ends).items()}
        report.counts |= {
            "jobs that took more than one attempt": sum(int(end["attempts"]) > 1 for end in ends),
            "ends refused because the job was another worker's by then": house.said("job was another's").total(),
            "attempts given up because the lease was lost": house.said("lost the lease of a job").total(),
            "entries found to be of no job to do": house.said("nothing to do").total(),
            **dict(sorted(self._counts.items())),
        }

    async def _queue_empty(self) -> bool:
        """Copies of entries may wait for a lease to run out."""
        pending = await self._redis.xpending(STREAM, GROUP)
        return not pending["pending"] and not await self._redis.xlen(STREAM)

    async def _judge_job(self, job: str, seen: Seen) -> None:
        """The end that this kind of job may have, and every file whole."""
        status, error = seen.end["status"], json.loads(seen.end["error"] or "{}").get("type")
        if error == "worker-crashed":
            self._counts["jobs given up after three attempts that each lost their worker"] += 1
            if int(seen.end["attempts"]) <= self._house.settings.max_attempts:
                self._fault(f"{job} was given up too early")
            return
        allowed = {"refused": (("failed", "cannot-reconstruct"),), "cancelled": (("canceled", None),)}
        if (status, error) not in allowed.get(seen.kind, ()) and (status, error) != ("succeeded", None):
            self._fault(f"{job} ({seen.kind}) ended as {status} {error}")
        if seen.kind == "refused" and status == "succeeded":
            self._fault(f"{job} cannot have succeeded")
        document = (await self._steady(lambda: self._client.get(f"/jobs/{job}"))).json()
        if status == "succeeded" and {file["name"] for file in document["files"]} != set(OUTPUTS):
            self._fault(f"{job} has the files {document['files']}")
        for file in document["files"]:
            served = (await self._steady(lambda url=file["url"]: self._client.get(url))).content
            if (len(served), hashlib.sha256(served).hexdigest()) != (file["bytes"], file["sha256"]):
                self._fault(f"{file['name']} of {job} is not what its document says")

    async def _judge_uploads(self, patience: float) -> None:
        """No photo outlives its job: what killed processes left is swept, once it is old enough."""
        left = self._house.uploads()
        self._counts["photos left by killed processes, then swept"] = len(left)
        for path in left:
            os.utime(path, (1, 1))

        async def swept() -> bool:
            return not self._house.uploads()

        await self._until(swept, patience, "photos stay on disk")
        if left := self._house.uploads():
            self._fault(f"such as {left[:5]}")
