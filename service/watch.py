"""One ear for all: an API process listens once for changes of jobs and wakes whoever waits for one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator

import structlog
from redis.exceptions import RedisError

from service.jobs import EVENTS, Queue
from service.schemas import FINAL, JobDocument

log = structlog.get_logger()

POLL_SECONDS = 2.0
"""A job is looked at so often even when nothing is heard: messages may be lost, queue positions are not published."""


class Watcher:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.stopping = False

    async def run(self) -> None:
        """Listen, for ever."""
        while True:
            try:
                async for job in self._queue.listen(EVENTS):
                    for event in self._waiting.get(job, ()):
                        event.set()
            except (RedisError, OSError) as error:
                log.warning("cannot hear changes of jobs", error=str(error))
                await asyncio.sleep(POLL_SECONDS / 4)

    def stop(self) -> None:
        """Let everyone who waits go."""
        self.stopping = True
        for events in list(self._waiting.values()):
            for event in events:
                event.set()

    async def documents(self, job: str) -> AsyncIterator[JobDocument]:
        """The job's document now and at every change; ends with its final one, when it is gone, or at `stop`."""
        event = asyncio.Event()
        self._waiting[job].add(event)
        last = None
        try:
            while True:
                event.clear()
                try:
                    document = await self._queue.document(job)
                except (RedisError, OSError):
                    if self.stopping:
                        return
                    await asyncio.sleep(POLL_SECONDS / 4)
                    continue
                if document is None:
                    return
                if document != last:
                    yield document
                    last = document
                if document.status in FINAL or self.stopping:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), POLL_SECONDS)
        finally:
            self._waiting[job].discard(event)
            if not self._waiting[job]:
                del self._waiting[job]

    async def finished(self, job: str, seconds: float) -> JobDocument | None:
        """The job's document as soon as it is final, else the latest after so many seconds; None where it is gone."""
        latest: JobDocument | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for document in self.documents(job):
                    latest = document
        return latest
