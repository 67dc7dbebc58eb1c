"""Jobs of one shape into one forward pass. One thread computes; what feeds it outlives whatever a pass raises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
T = TypeVar("T")

PATIENCE = 1.0
"""Seconds, at most, that a loaded job waits for jobs of its shape that are still loading."""


@dataclass(slots=True)
class _Entry(Generic[Item, Result]):
    item: Item
    answer: asyncio.Future[tuple[Result, int]]
    since: float


@dataclass(slots=True)
class _Group(Generic[Item, Result]):
    """Jobs that may share a pass."""

    limit: int
    loading: int = 0
    waiting: list[_Entry[Item, Result]] = field(default_factory=list)


class Batcher(Generic[Item, Result]):
    """`forward(items)` answers each item with a result or an exception, in order, and runs on one thread alone."""

    def __init__(self, forward: Callable[[Sequence[Item]], Sequence[Result | Exception]], window: float) -> None:
        self._forward = forward
        self._window = window
        self._groups: dict[Hashable, _Group[Item, Result]] = {}
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._running: list[_Entry[Item, Result]] = []
        self._abandoned_at: float | None = None

    @property
    def running(self) -> int:
        """Jobs in the pass that runs now."""
        return len(self._running)

    def abandoned_for(self) -> float:
        """Seconds for which a pass has gone on that nobody waits for any more; 0 where there is none."""
        if not self._running or not all(entry.answer.done() for entry in self._running):
            self._abandoned_at = None
            return 0.0
        self._abandoned_at = self._abandoned_at or time.monotonic()
        return time.monotonic() - self._abandoned_at

    async def submit(self, key: Hashable, loading: Awaitable[Item], limit: int) -> tuple[Result, int]:
        """Load an item and pass it on with others of its `key`, at most `limit` in one pass.

        Answers the result and how many jobs shared the pass; raises what loading or the pass raised for this item.
        Cancelling the call takes the item out.
        """
        group = self._groups.setdefault(key, _Group(limit))
        group.loading += 1
        try:
            item = await loading
        finally:
            group.loading -= 1
            self._changed.set()
        entry: _Entry[Item, Result] = _Entry(item, asyncio.get_running_loop().create_future(), time.monotonic())
        group.waiting.append(entry)
        return await entry.answer

    async def on_thread(self, function: Callable[..., T], *args: object) -> T:
        """Run something else on the thread that computes, between passes."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def run(self) -> None:
        """Feed the thread, for ever."""
        while True:
            self._changed.clear()
            batch, wait = self._next(time.monotonic())
            if batch:
                self._running, self._abandoned_at = batch, None
                try:
                    await self._pass(batch)
                finally:
                    self._running = []
                continue
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    def close(self) -> None:
        """Start nothing more; a pass that runs is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next(self, now: float) -> tuple[list[_Entry[Item, Result]], float | None]:
        """The oldest group that is ready to go, or how long until one may be."""
        for key, group in list(self._groups.items()):
            group.waiting = [entry for entry in group.waiting if not entry.answer.done()]
            if not group.waiting and not group.loading:
                del self._groups[key]
        groups = sorted((g for g in self._groups.values() if g.waiting), key=lambda g: g.waiting[0].since)
        waits = []
        for group in groups:
            left = (PATIENCE if group.loading else self._window) - (now - group.waiting[0].since)
            if len(group.waiting) >= group.limit or left <= 0:
                batch, group.waiting = group.waiting[: group.limit], group.waiting[group.limit :]
                return batch, None
            waits.append(left)
        return [], min(waits, default=None)

    async def _pass(self, batch: list[_Entry[Item, Result]]) -> None:
        """One pass; when it fails as a whole, each job alone, so that one job's fault is not its neighbours'."""
        try:
            answers = await self.on_thread(self._forward, [entry.item for entry in batch])
        except Exception as error:
            waiting = [entry for entry in batch if not entry.answer.done()]
            if len(batch) > 1:
                for entry in waiting:
                    self._running = [entry]
                    await self._pass([entry])
            elif waiting:
                batch[0].answer.set_exception(error)
            return
        for entry, answer in zip(batch, answers, strict=True):
            if entry.answer.done():
                continue
            if isinstance(answer, Exception):
                entry.answer.set_exception(answer)
            else:
                entry.answer.set_result((answer, len(batch)))
