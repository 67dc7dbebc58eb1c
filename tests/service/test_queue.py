from __future__ import annotations

import asyncio
import time

import pytest
import redis

from service.jobs import CANCELS, EVENTS, GROUP, STREAM, Queue, connect
from service.schemas import Options

PHOTOS = [{"name": "a.jpg", "width": 4, "height": 3}, {"name": "b.jpg", "width": 4, "height": 3}]


@pytest.fixture
async def queue(queue):
    await queue.join()
    return queue


@pytest.fixture
def raw(settings):
    client = redis.Redis.from_url(settings.queue_url, decode_responses=True)
    yield client
    client.close()


async def add(queue, *jobs, **more):
    return [await queue.enqueue(job, "fake", Options(), PHOTOS, **more) for job in jobs]


async def read(queue, settings, worker="w", room=10):
    reader = connect(settings.queue_url, blocking=True)
    try:
        return await queue.read(reader, worker, room, 20)
    finally:
        await reader.aclose()


async def test_jobs_come_in_order_and_end_once(queue, settings, raw):
    await add(queue, "a", "b")
    assert (await queue.document("a")).queue_position == 0
    assert (await queue.document("b")).queue_position == 1
    assert await queue.depth() == (2, 2)
    entries = await read(queue, settings)
    assert [job for _, job in entries] == ["a", "b"]
    taken = await queue.take(*entries[0], "w")
    assert (taken.id, taken.attempt, taken.photos) == ("a", 1, PHOTOS)
    running = await queue.document("a")
    assert (running.status, running.queue_position) == ("running", None)
    assert running.started_at >= running.created_at
    assert await queue.finish("a", "w", 1, "succeeded", {"warnings": ["careful"], "metrics": {"seconds": 1.5}})
    done = await queue.document("a")
    assert (done.status, done.progress, done.warnings, done.metrics) == ("succeeded", 1, ["careful"], {"seconds": 1.5})
    assert (done.expires_at - done.finished_at).total_seconds() == settings.result_seconds
    assert 0 < raw.ttl("{scenelift}:job:a") <= settings.result_seconds
    assert raw.ttl("{scenelift}:job:b") == -1
    assert await queue.depth() == (1, 0)
    assert await queue.finish("a", "w", 1, "succeeded", {}), "the same end again is fine"
    assert not await queue.finish("a", "w", 1, "failed", {})
    assert (await queue.document("a")).status == "succeeded"


async def test_a_full_queue_refuses(queue, settings):
    small = Queue(settings.model_copy(update={"queue_limit": 2}))
    assert [verdict for verdict, _ in await add(small, "a", "b", "c")] == ["new", "new", "full"]
    assert await queue.document("c") is None
    await small.close()


async def test_an_idempotency_key_makes_one_job(queue):
    first = await asyncio.gather(
        *(queue.enqueue(job, "fake", Options(), PHOTOS, idempotency_key="k", fingerprint="f") for job in "abcdefgh")
    )
    assert sorted(verdict for verdict, _ in first) == ["new"] + ["same"] * 7
    assert len({job for _, job in first}) == 1
    assert await queue.depth() == (1, 1)
    assert (await add(queue, "i", idempotency_key="k", fingerprint="other"))[0][0] == "conflict"
    assert await queue.made("k") is not None
    assert await queue.made("l") is None
    await queue.forget(first[0][1])
    assert await queue.made("k") is None
    assert await add(queue, "j", idempotency_key="k", fingerprint="f") == [("new", "j")]


async def test_an_expired_lease_is_claimed_and_the_late_worker_refused(queue, settings):
    await add(queue, "a")
    ((entry, job),) = await read(queue, settings, "first")
    await queue.take(entry, job, "first")
    assert await queue.renew("a", "first", 1) == 1
    assert not await queue.overdue()
    assert await queue.claim("second") is None
    await asyncio.sleep(settings.lease_seconds + 0.05)
    assert await queue.overdue()
    assert await queue.claim("second") == (entry, "a")
    assert (await queue.take(entry, job, "second")).attempt == 2
    assert await queue.renew("a", "first", 1) == 0
    assert not await queue.progress("a", "first", 1, "late", 0.9)
    assert not await queue.finish("a", "first", 1, "succeeded", {})
    assert not await queue.release("a", "first", 1, refund=False)
    assert await queue.finish("a", "second", 2, "succeeded", {})
    assert await queue.depth() == (0, 0)


async def test_renewal_keeps_a_job(queue, settings):
    await add(queue, "a")
    ((entry, job),) = await read(queue, settings)
    await queue.take(entry, job, "w")
    until = time.monotonic() + 1.5 * settings.lease_seconds
    while time.monotonic() < until:
        assert await queue.renew("a", "w", 1) == 1
        assert await queue.claim("thief") is None
        await asyncio.sleep(settings.lease_seconds / 5)


async def test_what_another_worker_claimed_cannot_be_taken(queue, settings):
    await add(queue, "a")
    ((entry, job),) = await read(queue, settings, "paused")
    await queue.hand_back(entry, "paused")
    assert await queue.claim("quick") == (entry, "a")
    assert await queue.take(entry, job, "paused") == "lost"
    assert (await queue.take(entry, job, "quick")).attempt == 1


async def test_a_job_that_kills_workers_is_convicted(queue, settings):
    await add(queue, "a")
    ((entry, job),) = await read(queue, settings)
    for attempt in (1, 2, 3):
        assert (await queue.take(entry, job, "w")).attempt == attempt
        await queue.hand_back(entry, "w")
        assert await queue.claim("w") == (entry, "a")
    assert await queue.take(entry, job, "w") == "convicted"
    failed = await queue.document("a")
    assert (failed.status, failed.error.type) == ("failed", "worker-crashed")
    assert await queue.depth() == (0, 0)


async def test_a_released_job_is_claimed_at_once_and_a_refund_keeps_the_count(queue, settings):
    await add(queue, "a")
    ((entry, job),) = await read(queue, settings)
    await queue.take(entry, job, "w")
    assert await queue.release("a", "w", 1, refund=True)
    assert (await queue.document("a")).status == "queued"
    assert await queue.claim("v") == (entry, "a")
    assert (await queue.take(entry, job, "v")).attempt == 1
    assert await queue.release("a", "v", 1, refund=False)
    assert await queue.claim("v") == (entry, "a")
    assert (await queue.take(entry, job, "v")).attempt == 2


async def test_cancelling(queue, settings, raw):
    await add(queue, "a", "b")
    assert await queue.cancel("nobody") == "unknown"
    assert await queue.cancel("a") == "queued"
    assert (await queue.document("a")).status == "canceled"
    assert raw.xinfo_groups(STREAM)[0]["lag"] == 2, "deleting undelivered entries would blind autoscalers"
    entries = await read(queue, settings)
    assert await queue.take(*entries[0], "w") == "gone"
    await queue.take(*entries[1], "w")
    assert await queue.cancel("b") == "running"
    assert (await queue.document("b")).status == "running"
    assert await queue.renew("b", "w", 1) == 2
    assert await queue.finish("b", "w", 1, "canceled", {})
    assert await queue.cancel("b") == "canceled"
    assert raw.xinfo_groups(STREAM)[0]["lag"] == 0
    assert await queue.depth() == (0, 0)


async def test_a_cancelled_job_of_a_dead_worker_is_not_done_again(queue, settings):
    await add(queue, "a")
    ((entry, job),) = await read(queue, settings, "dead")
    await queue.take(entry, job, "dead")
    await queue.cancel("a")
    await asyncio.sleep(settings.lease_seconds + 0.05)
    assert await queue.claim("w") == (entry, "a")
    assert await queue.take(entry, job, "w") == "gone"
    assert (await queue.document("a")).status == "canceled"


async def test_a_deleted_job_leaves_no_entry(queue, settings):
    await add(queue, "a")
    await queue.forget("a")
    ((entry, job),) = await read(queue, settings)
    assert await queue.take(entry, job, "w") == "gone"
    assert await queue.depth() == (0, 0)
    assert await queue.missing(["a", "b"]) == ["a", "b"]


async def test_a_second_entry_of_a_job_takes_it_from_nobody(queue, settings, raw):
    """Delivered twice, a job goes on where it is, costs no attempt, and the second entry is gone at once."""
    await add(queue, "a")
    ((entry, job),) = await read(queue, settings, "first")
    await queue.take(entry, job, "first")
    raw.xadd(STREAM, {"id": "a"})
    ((again, job),) = await read(queue, settings, "second")
    assert await queue.take(again, job, "second") == "lost"
    assert raw.xpending(STREAM, GROUP)["pending"] == 1
    assert (await queue.renew("a", "first", 1), await queue.attempt("a")) == (1, 1)
    assert await queue.finish("a", "first", 1, "succeeded", {})
    assert await queue.depth() == (0, 0)


async def test_a_job_whose_entry_is_gone_is_done_by_another(queue, settings, raw):
    await add(queue, "a")
    raw.delete(STREAM)
    await queue.join()
    raw.xadd(STREAM, {"id": "a"})
    ((entry, job),) = await read(queue, settings)
    assert (await queue.take(entry, job, "w")).attempt == 1
    assert await queue.renew("a", "w", 1) == 1
    assert await queue.finish("a", "w", 1, "succeeded", {})
    assert await queue.depth() == (0, 0)


async def test_changes_are_published(queue, settings):
    heard = []

    async def listen(channel):
        async for message in queue.listen(channel):
            heard.append((channel, message))

    tasks = [asyncio.create_task(listen(channel)) for channel in (EVENTS, CANCELS)]
    while len(heard) < 2:
        await asyncio.sleep(0.01)
    heard.clear()
    await add(queue, "a")
    ((entry, job),) = await read(queue, settings)
    await queue.take(entry, job, "w")
    await queue.progress("a", "w", 1, "matching", 0.25)
    assert ((d := await queue.document("a")).stage, d.progress) == ("matching", 0.25)
    await queue.cancel("a")
    await queue.finish("a", "w", 1, "canceled", {})
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    assert heard.count((EVENTS, "a")) == 4
    assert heard.count((CANCELS, "a")) == 1


async def test_dead_consumers_are_forgotten_unless_they_hold_jobs(queue, settings, raw):
    await add(queue, "a", "b")
    await read(queue, settings, "holder", room=1)
    ((entry, job),) = await read(queue, settings, "finisher", room=1)
    await queue.take(entry, job, "finisher")
    await queue.finish(job, "finisher", 1, "succeeded", {})
    await asyncio.sleep(0.02)
    assert await queue.prune(idle_seconds=3600) == 0
    assert await queue.prune(idle_seconds=0.01) == 1
    assert [consumer["name"] for consumer in raw.xinfo_consumers(STREAM, GROUP)] == ["holder"]


async def test_one_worker_sweeps_at_a_time(queue):
    assert await queue.turn_to_sweep()
    assert not await queue.turn_to_sweep()


async def test_a_thousand_jobs_on_many_workers_are_each_done_once(settings):
    """Under contention, with leases so short that entries are claimed while they are being worked on."""
    quick = settings.model_copy(update={"queue_limit": 2000, "lease_seconds": 0.05, "max_attempts": 1000})
    queue = Queue(quick)
    await queue.join()
    jobs = [f"job{i}" for i in range(300)]
    await add(queue, *jobs)
    ended = []

    async def work(name, pause):
        reader = connect(quick.queue_url, blocking=True)
        while len(ended) < len(jobs):
            claimed = await queue.claim(name)
            for entry, job in [claimed] if claimed else await queue.read(reader, name, 3, 10):
                taken = await queue.take(entry, job, name)
                if isinstance(taken, str):
                    continue
                await asyncio.sleep(pause)
                if await queue.finish(job, name, taken.attempt, "succeeded", {}):
                    ended.append(job)
        await reader.aclose()

    await asyncio.gather(*(work(f"w{i}", 0.1 if i == 0 else 0.001) for i in range(4)))
    assert sorted(ended) == sorted(jobs)
    assert await queue.depth() == (0, 0)
    await queue.close()
