from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager

import pytest

from service.batcher import Batcher


class Recorder:
    """A forward pass that doubles numbers and remembers what it was given."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.seconds = seconds

    def __call__(self, items):
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if any(item < 0 for item in items):
            raise RuntimeError("poison")
        return [ValueError("odd") if item == 1300 else 2 * item for item in items]


@asynccontextmanager
async def running(forward, window=0.02):
    batcher = Batcher(forward, window)
    task = asyncio.create_task(batcher.run())
    yield batcher
    task.cancel()
    batcher.close()


async def loaded(item, seconds=0.0):
    await asyncio.sleep(seconds)
    return item


async def test_jobs_of_one_shape_share_passes_and_others_do_not():
    forward = Recorder(0.02)
    async with running(forward) as batcher:
        answers = await asyncio.gather(*(batcher.submit(i % 2, loaded(i), 4) for i in range(16)))
    assert [answer for answer, _ in answers] == [2 * i for i in range(16)]
    assert all(len({item % 2 for item in batch}) == 1 for batch in forward.batches)
    assert [len(batch) for batch in forward.batches] == [4, 4, 4, 4]
    assert {shared for _, shared in answers} == {4}
    assert len(forward.threads) == 1


async def test_a_pass_waits_for_jobs_that_are_loading():
    forward = Recorder()
    async with running(forward) as batcher:
        await asyncio.gather(*(batcher.submit("a", loaded(i, 0.1 * i), 8) for i in range(3)))
    assert forward.batches == [[0, 1, 2]]


async def test_a_pass_of_one_does_not_wait():
    forward = Recorder()
    async with running(forward, window=5) as batcher:
        began = time.monotonic()
        await batcher.submit("a", loaded(1), 1)
    assert time.monotonic() - began < 1


async def test_a_failing_job_does_not_fail_its_neighbours():
    forward = Recorder()
    async with running(forward) as batcher:
        answers = await asyncio.gather(
            *(batcher.submit("a", loaded(i), 4) for i in (1, -1, 2, 1300)), return_exceptions=True
        )
    assert answers[0] == (2, 1)
    assert answers[2] == (4, 1)
    assert isinstance(answers[1], RuntimeError)
    assert isinstance(answers[3], ValueError)
    assert len(forward.batches) == 5


async def test_loading_that_fails_takes_no_one_with_it():
    async def broken():
        raise OSError("gone")

    forward = Recorder()
    async with running(forward) as batcher:
        answers = await asyncio.gather(
            batcher.submit("a", loaded(1), 4), batcher.submit("a", broken(), 4), return_exceptions=True
        )
    assert answers[0] == (2, 1)
    assert isinstance(answers[1], OSError)


async def test_a_cancelled_job_is_left_out():
    forward = Recorder(0.1)
    async with running(forward) as batcher:
        first = asyncio.create_task(batcher.submit("a", loaded(1), 1))
        await asyncio.sleep(0.03)
        second = asyncio.create_task(batcher.submit("a", loaded(2), 1))
        third = asyncio.create_task(batcher.submit("a", loaded(3), 1))
        await asyncio.sleep(0.03)
        second.cancel()
        assert await first == (2, 1)
        assert await third == (6, 1)
        with pytest.raises(asyncio.CancelledError):
            await second
    assert forward.batches == [[1], [3]]


async def test_a_pass_that_nobody_waits_for_is_noticed():
    forward = Recorder(0.3)
    async with running(forward) as batcher:
        job = asyncio.create_task(batcher.submit("a", loaded(1), 1))
        await asyncio.sleep(0.1)
        assert batcher.running == 1
        assert batcher.abandoned_for() == 0
        job.cancel()
        await asyncio.sleep(0)
        batcher.abandoned_for()
        await asyncio.sleep(0.05)
        assert 0.03 < batcher.abandoned_for() < 0.3
        await asyncio.sleep(0.3)
        assert batcher.running == 0
        assert batcher.abandoned_for() == 0
