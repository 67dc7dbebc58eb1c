"""The worker under everything that goes wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import time
from collections import Counter

import pytest
import redis

from service import machine
from service.jobs import GROUP, STREAM, connect
from service.schemas import Options
from service.storage import Storage, upload_path
from service.worker import Flight, Stopped, Worker
from tests.service.fake_model import FakeCatalogue, FakeModel
from tests.service.support import jpeg, settled, stored, working

OPTIONS = Options(outputs=("cameras.json",))


@pytest.fixture
def raw(settings):
    client = redis.Redis.from_url(settings.queue_url, decode_responses=True)
    yield client
    client.close()


async def submit(queue, settings, job, *names, model="fake", options=OPTIONS):
    """Queue a job of photos with these names, as the API does."""
    storage = Storage(settings.data_dir)
    names = names or ("a.jpg", "b.jpg")
    for index in range(len(names)):
        await storage.put(upload_path(job, index), jpeg(index))
    photos = [{"name": name, "width": 96, "height": 72} for name in names]
    assert await queue.enqueue(job, model, options, photos) == ("new", job)


async def end(queue, *jobs, seconds=30):
    deadline = time.monotonic() + seconds
    documents = {}
    while True:
        documents = {job: await queue.document(job) for job in jobs}
        if all(document.finished_at for document in documents.values()):
            return documents[jobs[0]] if len(jobs) == 1 else documents
        assert time.monotonic() < deadline, {job: (d.status, d.stage) for job, d in documents.items()}
        await asyncio.sleep(0.02)


async def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_jobs_of_one_shape_share_passes(queue, settings):
    jobs = {f"two{i}": ("a.jpg", "b.jpg") for i in range(8)} | {f"three{i}": ("a", "b", "c") for i in range(8)}
    for job, names in jobs.items():
        await submit(queue, settings, job, *names)
    model = FakeModel()
    async with working(settings, model):
        documents = await end(queue, *jobs)
    assert {document.status for document in documents.values()} == {"succeeded"}
    assert sum(model.batches) == 16
    assert len(model.batches) <= 6
    assert max(document.metrics["batch_size"] for document in documents.values()) >= 4


async def test_a_model_of_one_job_a_pass_gets_one(queue, settings):
    for i in range(3):
        await submit(queue, settings, f"job{i}", model="single")
    model = FakeModel("single", max_batch=1)
    async with working(settings, model):
        await end(queue, "job0", "job1", "job2")
    assert model.batches == [1, 1, 1]


async def test_one_jobs_fault_is_not_its_neighbours(queue, settings):
    names = ("good", "nan", "raise", "fine", "refuse", "well")
    for name in names:
        await submit(queue, settings, name, f"{name}.jpg", "b.jpg")
    async with working(settings):
        documents = await end(queue, *names)
    statuses = {name: document.status for name, document in documents.items()}
    assert statuses == {name: "failed" if name in ("nan", "raise", "refuse") else "succeeded" for name in names}
    assert documents["good"].metrics["batch_size"] >= 1
    assert not [path for path in stored(settings) if path.startswith("uploads")]
    assert not [path for path in stored(settings) if path.split("/")[1] in ("nan", "raise", "refuse")]


async def test_out_of_memory_is_tried_again_and_then_said(queue, settings):
    await submit(queue, settings, "big", "oom.jpg", "b.jpg")
    await submit(queue, settings, "small")
    async with working(settings):
        documents = await end(queue, "big", "small")
    assert documents["small"].status == "succeeded"
    assert (documents["big"].status, documents["big"].error.type) == ("failed", "out-of-memory")
    assert await queue.attempt("big") == settings.max_attempts


async def test_photos_that_are_gone_fail_the_job(queue, settings):
    await submit(queue, settings, "lost")
    shutil.rmtree(settings.data_dir / "uploads" / "lost")
    async with working(settings):
        failed = await end(queue, "lost")
    assert (failed.status, failed.error.type) == ("failed", "storage-failed")
    assert str(settings.data_dir) not in failed.error.detail


async def test_a_full_disk_is_waited_for(queue, settings, monkeypatch):
    """As often as it takes, without another try at the job."""
    put, refused = Storage.put, []

    async def full(self, path, data):
        if len(refused) > settings.max_attempts:
            await put(self, path, data)
        else:
            refused.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")

    await submit(queue, settings, "job")
    monkeypatch.setattr(Storage, "put", full)
    monkeypatch.setattr("service.worker.RETRY_SECONDS", 0.05)
    async with working(settings):
        assert (await end(queue, "job")).status == "succeeded"
    assert stored(settings) == ["jobs/job/1/cameras.json"]
    assert len(refused) == settings.max_attempts + 1


async def test_a_photo_that_rots_fails_the_job(queue, settings):
    await submit(queue, settings, "rotten")
    (settings.data_dir / "uploads" / "rotten" / "1").write_bytes(jpeg()[:200])
    async with working(settings):
        failed = await end(queue, "rotten")
    assert (failed.status, failed.error.type) == ("failed", "damaged-image")
    assert "b.jpg" in failed.error.detail


async def test_a_model_that_is_gone_fails_the_job(queue, settings):
    await submit(queue, settings, "old", model="retired")
    async with working(settings):
        failed = await end(queue, "old")
    assert "retired" in failed.error.detail


async def test_a_running_job_is_cancelled_at_once_and_the_pass_with_it(queue, settings):
    await submit(queue, settings, "slow", "slow.jpg", "b.jpg")
    model = FakeModel()
    async with working(settings, model) as worker:

        async def computing():
            return (await queue.document("slow")).stage == "forward"

        await until(computing)
        began = time.monotonic()
        await queue.cancel("slow")
        canceled = await end(queue, "slow")
        assert time.monotonic() - began < 0.5
        assert canceled.status == "canceled"

        async def idle():
            return worker._batcher.running == 0

        await until(idle, 1)
        await submit(queue, settings, "next")
        assert (await end(queue, "next")).status == "succeeded"
    assert model.batches == [1], "the cancelled pass was not computed to its end"
    assert not [path for path in stored(settings) if "slow" in path]


async def test_a_cancelled_neighbour_does_not_stop_the_pass(queue, settings):
    for job in ("stay", "leave"):
        await submit(queue, settings, job, "slow.jpg", "b.jpg")
    async with working(settings):

        async def computing():
            return (await queue.document("leave")).stage == "forward"

        await until(computing)
        await queue.cancel("leave")
        documents = await end(queue, "stay", "leave")
    assert {job: document.status for job, document in documents.items()} == {"stay": "succeeded", "leave": "canceled"}


async def test_a_cancellation_that_comes_too_late_takes_nothing_away(queue, settings, monkeypatch):
    """While the end is being written, a request to stop and a renewal that finds the job ended change nothing."""
    await submit(queue, settings, "job")
    async with working(settings) as worker:
        finish, writing = worker._queue.finish, asyncio.Event()

        async def slow_finish(*arguments):
            writing.set()
            await asyncio.sleep(0.2)
            answer = await finish(*arguments)
            await asyncio.sleep(2 * settings.lease_seconds / 3)
            return answer

        monkeypatch.setattr(worker._queue, "finish", slow_finish)
        await writing.wait()
        assert await queue.cancel("job") == "running"
        assert (await end(queue, "job")).status == "succeeded"
    assert stored(settings) == ["jobs/job/1/cameras.json"]


async def test_a_job_may_not_run_for_ever(queue, settings):
    short = settings.model_copy(update={"job_seconds": 0.3})
    await submit(queue, settings, "slow", "slow.jpg", "b.jpg")
    async with working(short):
        failed = await end(queue, "slow")
    assert (failed.status, failed.error.type) == ("failed", "took-too-long")


async def test_a_model_that_hangs_ends_the_worker(queue, settings):
    """A thread cannot be ended; a process can, and is started again by whoever runs it."""
    short = settings.model_copy(update={"job_seconds": 0.3, "check_deadline_seconds": 0.5})
    await submit(queue, settings, "hung", "hang.jpg", "b.jpg")
    worker = Worker(short, FakeCatalogue())
    code = asyncio.create_task(worker.run())
    failed = await end(queue, "hung")
    assert failed.error.type == "took-too-long"
    assert await asyncio.wait_for(code, 10) == 1


async def test_a_lost_device_ends_the_worker_and_not_the_job(queue, settings):
    """A process that lost its GPU never gets it back; the next one does the job."""
    await submit(queue, settings, "job", "lost.jpg", "b.jpg")
    for _ in range(settings.max_attempts):
        assert (await queue.document("job")).status == "queued"
        assert await asyncio.wait_for(Worker(settings, FakeCatalogue()).run(), 20) == 1
    failed = await queue.document("job")
    assert (failed.status, failed.error.type) == ("failed", "device-failed")


async def test_stopping_ends_what_runs_and_gives_back_the_rest(queue, settings):
    hasty = settings.model_copy(update={"drain_seconds": 0.5})
    worker = Worker(hasty, FakeCatalogue(FakeModel(max_batch=1)))
    running = asyncio.create_task(worker.run())
    await submit(queue, settings, "first", "slow.jpg", "b.jpg")
    await submit(queue, settings, "second")

    async def computing():
        return (await queue.document("first")).stage == "forward"

    await until(computing)
    worker.stop()
    assert await running == 0
    assert [(await queue.document(job)).status for job in ("first", "second")] == ["queued", "queued"]
    assert await queue.workers() == []
    async with working(settings):
        documents = await end(queue, "first", "second")
    assert {document.status for document in documents.values()} == {"succeeded"}
    assert await queue.attempt("first") == 1, "giving a job back is no failed try"


async def test_stopping_does_not_wait_for_a_dead_workers_job_either(queue, settings):
    hasty = settings.model_copy(update={"drain_seconds": 0.2})
    await queue.join()
    await submit(queue, settings, "job", "slow.jpg", "b.jpg")
    reader = connect(settings.queue_url, blocking=True)
    ((entry, job),) = await queue.read(reader, "dead", 1, 100)
    await reader.aclose()
    await queue.take(entry, job, "dead")
    await asyncio.sleep(settings.lease_seconds)
    worker = Worker(hasty, FakeCatalogue())
    running = asyncio.create_task(worker.run())

    async def computing():
        return (await queue.document("job")).stage == "forward"

    await until(computing)
    worker.stop()
    assert await asyncio.wait_for(running, 2) == 0
    assert (await queue.document("job")).status == "queued"


async def test_a_broken_heartbeat_costs_no_job(queue, settings, monkeypatch):
    """Telling who is here fails in every way; leases are kept all the same."""

    def broken(device):
        raise ValueError(device)

    await submit(queue, settings, "job", "slow.jpg", "b.jpg")
    async with working(settings):
        monkeypatch.setattr(machine, "describe", broken)
        assert (await end(queue, "job")).status == "succeeded"
    assert await queue.attempt("job") == 1


async def test_a_model_that_is_added_later_is_served(queue, settings):
    catalogue = FakeCatalogue()
    worker = Worker(settings, catalogue)
    running = asyncio.create_task(worker.run())
    await until(queue.workers)
    catalogue.models["late"] = FakeModel("late")
    await submit(queue, settings, "job", model="late")
    assert (await end(queue, "job")).status == "succeeded"
    worker.stop()
    assert await running == 0


async def test_a_drain_lets_running_jobs_end(queue, settings):
    worker = Worker(settings, FakeCatalogue())
    running = asyncio.create_task(worker.run())
    await submit(queue, settings, "job", "steady.jpg", "b.jpg")

    async def computing():
        return (await queue.document("job")).stage == "forward"

    await until(computing)
    worker.stop()

    async def draining():
        return [found.state for found in await queue.workers()] == ["draining"]

    await until(draining, 2)
    assert await running == 0
    assert (await queue.document("job")).status == "succeeded"


async def test_a_worker_process_drains_at_sigterm(queue, settings, spawn):
    await submit(queue, settings, "job", "slow.jpg", "b.jpg")
    process = spawn()

    async def computing():
        return (await queue.document("job")).stage == "forward"

    await until(computing)
    process.terminate()
    assert await asyncio.to_thread(process.wait, 20) == 0
    assert (await queue.document("job")).status == "succeeded"


async def test_a_broken_model_makes_the_worker_unhealthy(queue, settings):
    class Broken(FakeModel):
        def warm_up(self) -> None:
            raise RuntimeError("values that are not finite, in /secret/path")

    await submit(queue, settings, "job")
    worker = Worker(settings, FakeCatalogue(Broken()))
    running = asyncio.create_task(worker.run())

    async def unhealthy():
        return [found.state for found in await queue.workers()] == ["unhealthy"]

    await until(unhealthy)
    (found,) = await queue.workers()
    assert found.last_check.ok is False
    assert "RuntimeError" in found.last_check.detail
    assert "/secret" not in found.last_check.detail
    await asyncio.sleep(0.3)
    assert (await queue.document("job")).status == "queued", "jobs wait for a worker that is well"
    worker.stop()
    assert await running == 0


async def test_expired_jobs_leave_no_files(queue, settings):
    short = settings.model_copy(update={"result_seconds": 3, "sweep_seconds": 0.2})
    await submit(queue, settings, "brief")
    fresh = upload_path("being-sent", 0)
    stale = upload_path("never-sent", 0)
    for path in (fresh, stale):
        await Storage(settings.data_dir).put(path, b"x")
    os.utime(settings.data_dir / stale, (1, 1))
    async with working(short):
        assert (await end(queue, "brief")).status == "succeeded"
        assert "jobs/brief/1/cameras.json" in stored(settings)

        async def swept():
            return stored(settings) == [fresh]

        await until(swept, 10)
    assert await queue.document("brief") is None


async def test_photos_that_a_dying_worker_left_are_swept(queue, settings):
    """Killed between a job's end and the removal of its photos."""
    for job in ("done", "waiting"):
        await submit(queue, settings, job, model="none" if job == "waiting" else "fake")
    reader = connect(settings.queue_url, blocking=True)
    await queue.join()
    ((entry, job),) = await queue.read(reader, "dead", 1, 100)
    await reader.aclose()
    await queue.take(entry, job, "dead")
    assert await queue.finish(job, "dead", 1, "canceled", {})
    for path in stored(settings):
        os.utime(settings.data_dir / path, (1, 1))
    worker = Worker(settings, FakeCatalogue())
    await worker._sweep()
    assert stored(settings) == ["uploads/waiting/0", "uploads/waiting/1"]
    await worker._leave()


async def test_the_queue_may_go_and_come_back(queue, settings, server):
    """kill -9 of the queue's server: its log brings every job back, and the worker stays up."""
    jobs = [f"job{i}" for i in range(20)]
    for job in jobs:
        await submit(queue, settings, job)
    await asyncio.sleep(1.5)  # what it syncs every second
    model = FakeModel(max_batch=2)
    async with working(settings, model) as worker:

        async def some_done():
            return worker._done >= 4

        await until(some_done)
        server.kill()
        await asyncio.sleep(1.2)
        server.start()
        documents = await end(queue, *jobs)
    assert Counter(document.status for document in documents.values()) == {"succeeded": 20}
    for job in jobs:
        attempt = await queue.attempt(job)
        assert [path for path in stored(settings) if f"/{job}/" in path] == [f"jobs/{job}/{attempt}/cameras.json"]


@pytest.mark.parametrize("poison", [False, True])
async def test_a_killed_workers_jobs_end_exactly_once(queue, settings, spawn, raw, poison):
    """kill -9 of a worker with 8 jobs in flight, beside a second worker; or 8 jobs of which one kills every worker."""
    await queue.join()
    jobs = [f"job{i}" for i in range(8)]
    for job in jobs:
        name = "crash" if poison and job == "job3" else "steady"
        await submit(queue, settings, job, f"{name}.jpg", "b.jpg")
    first = spawn()

    if poison:
        workers = [first]
        while not (await queue.document("job3")).finished_at:
            if workers[-1].poll() is not None:
                assert workers[-1].returncode == -signal.SIGKILL
                workers.append(spawn())
            await asyncio.sleep(0.05)
        assert len(workers) == 1 + settings.max_attempts
    else:

        async def in_flight():
            return raw.xpending(STREAM, GROUP)["pending"] == 8

        await until(in_flight)

        async def all_running():
            return {(await queue.document(job)).status for job in jobs} == {"running"}

        await until(all_running)
        os.kill(first.pid, signal.SIGKILL)
        spawn()
        spawn()
    documents = await end(queue, *jobs, seconds=60)
    statuses = Counter(document.status for document in documents.values())
    assert statuses == ({"succeeded": 7, "failed": 1} if poison else {"succeeded": 8})
    if poison:
        assert documents["job3"].error.type == "worker-crashed"
    assert raw.xlen(STREAM) == 0
    assert raw.xpending(STREAM, GROUP)["pending"] == 0
    for job in jobs:
        wanted = [f"jobs/{job}/{await queue.attempt(job)}/cameras.json"] if documents[job].files else []
        assert [path for path in await settled(settings) if f"/{job}/" in path] == wanted


def test_progress_never_goes_back_and_ends_where_it_should():
    flight = Flight(job=None, entry="0-1")
    progress = flight.between(0.0, 0.8, stages=3)
    seen = []
    for stage in ("match", "pose", "dense", "more", "yet more"):
        for share in (0.0, 0.5, 1.0, -1.0, 2.0):
            progress(stage, share)
            seen.append(flight.progress)
    assert seen == sorted(seen)
    assert seen[2] == pytest.approx(0.8 / 3)
    assert max(seen) == pytest.approx(0.8)
    flight.stop = "cancelled"
    with pytest.raises(Stopped):
        progress("match", 0.1)


async def test_a_worker_leaves_though_a_cancellation_is_dropped(settings, monkeypatch):
    """As Python 3.11 drops one that meets the answer of the queue's server."""
    dropped = []

    async def publish(self):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if dropped:
                raise
            dropped.append(True)

    monkeypatch.setattr(Worker, "_publish", publish)
    worker = Worker(settings, FakeCatalogue())
    running = asyncio.create_task(worker.run())
    while not worker._healthy():
        await asyncio.sleep(0.01)
    worker.stop()
    done, _ = await asyncio.wait([running], timeout=10)
    assert done, "it hangs"
    assert dropped
