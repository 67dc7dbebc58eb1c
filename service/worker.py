"""Take jobs from the queue, reconstruct, write, finish. Every job that it begins ends; no job's exception ends it.

One event loop does the talking. Photos are decoded and files are made on a few threads, the forward pass runs on one of
its own: decoding, computing and writing of different jobs overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, TypeVar

import structlog
from prometheus_client import start_http_server
from redis.exceptions import RedisError

from export.contract import ArtifactError
from model.types import DeviceLost, ModelInfo, Prediction, Progress, ReconstructionError, Views
from service import images, logs, machine, pipeline
from service.batcher import Batcher
from service.engines import Workshop
from service.errors import Problem
from service.jobs import CANCELS, Queue, Taken, connect, end_task
from service.metrics import WorkerMetrics
from service.models import Catalogue, ServedModel
from service.schemas import OUTPUTS, CheckDocument, ModelEntry, Status, WorkerDocument
from service.settings import Settings
from service.storage import Storage, has_room, lacks_room, result_path, upload_path
from service.traces import from_environment

log = structlog.get_logger()
T = TypeVar("T")

LOADED, COMPUTED, FINISHED = 0.05, 0.85, 0.97
"""Shares of a job's progress that have passed once its photos are decoded, its model has run, its files are made."""
PUBLISH_SECONDS = 0.2
"""Time between two looks at the jobs' progress: nobody watches faster."""
UPLOAD_GRACE_SECONDS = 3600.0
"""Photos without a job are an upload that still goes on, for so long at most."""
RECHECK_SECONDS = 30.0
"""Pause after a deep check that failed."""
RETRY_SECONDS = 0.5
"""Pause after the queue's server did not answer."""

Stop = Literal["", "cancelled", "lost", "overtime", "drained"]


class Stopped(Exception):  # noqa: N818 - no error: the way out of a model whose answer nobody waits for any more
    """Raised by a progress callback."""


@dataclass(slots=True, eq=False)
class Flight:
    """A job that this worker is doing."""

    job: Taken
    entry: str
    stage: str = "loading"
    progress: float = 0.0
    published: tuple[str, float] = ("loading", 0.0)
    stop: Stop = ""
    ending: bool = False
    """Whether its end is being written: too late to stop it."""
    computed: bool = False
    """Whether the forward pass is behind it."""
    began: float = field(default_factory=time.monotonic)
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    """When each stage that is over began and ended, by the monotonic clock."""
    status: Status | None = None
    """How it has ended, where this worker has ended it."""
    task: asyncio.Task[None] | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds a stage."""
        return {stage: ended - began for stage, (began, ended) in self.stages.items()}

    def report(self, stage: str, progress: float) -> None:
        """Called from any thread. Raises Stopped once the job is to stop."""
        if self.stop:
            raise Stopped
        self.stage, self.progress = stage, max(self.progress, progress)

    def between(self, low: float, high: float, *, stages: int) -> Progress:
        """A progress callback for a part of the job that spans `low` to `high` in about so many stages.

        Each new stage takes an equal share of what is left, so that more of them than expected still go forward.
        """
        stage_now, start, end = "", low, low

        def progress(stage: str, fraction: float) -> None:
            nonlocal stage_now, start, end, stages
            if stage != stage_now:
                stage_now, start = stage, end
                end = start + (high - start) / (stages if stages > 0 else 2)
                stages -= 1
            self.report(stage, start + (end - start) * min(max(fraction, 0.0), 1.0))

        return progress


Item = tuple[Flight, Views]
Answer = tuple[Prediction, Views]


class Worker:
    """One process's worth of reconstructing."""

    def __init__(self, settings: Settings, catalogue: Catalogue, *, opened: Callable[[], None] = lambda: None) -> None:
        """`opened` is called after a model was opened, on whatever thread did that."""
        self._opened = opened
        self._settings = settings
        self._catalogue = catalogue
        self._queue = Queue(settings)
        self._storage = Storage.of(settings)
        self._batcher: Batcher[Item, Answer] = Batcher(self._forward, settings.batch_window_seconds)
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._finishers = ThreadPoolExecutor(settings.finish_threads, thread_name_prefix="finish")
        self._metrics = WorkerMetrics()
        self._traces = from_environment("worker")
        self._infos: dict[str, ModelInfo] = {}
        self._models: dict[str, ServedModel] = {}
        self._offered: set[str] = set()
        """Engines that were there when their model was opened, or is to be opened anew."""
        self._renewed: set[str] = set()
        """Models to open anew: an engine has come for them."""
        self._flights: dict[str, Flight] = {}
        self._landed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._broken = asyncio.Event()
        self._check: CheckDocument | None = None
        self._started_at = datetime.now(UTC)
        self._done = self._failed = 0
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._workshop = Workshop(self._queue, self.id, settings.lease_seconds)

    def stop(self) -> None:
        """Take nothing more, end what runs, leave."""
        self._stopping.set()

    async def run(self) -> int:
        """Work until `stop`. Answers the process's exit code: 0, or 1 where the model hangs or its device is lost, and
        only an end helps."""
        if self._settings.worker_metrics_port:
            try:
                start_http_server(
                    self._settings.worker_metrics_port, self._settings.host, registry=self._metrics.registry
                )
            except OSError as error:
                log.warning("no metrics port", port=self._settings.worker_metrics_port, error=str(error))
        lease = self._settings.lease_seconds
        loops = (
            self._batcher.run(),
            self._keep(self._renew, lease / 3),
            self._keep(self._beat, lease / 3),
            self._keep(self._publish, PUBLISH_SECONDS),
            self._keep(self._hear_cancels, RETRY_SECONDS),
            self._keep(self._check_often, RETRY_SECONDS),
            self._keep(self._sweep, self._settings.sweep_seconds),
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._leave)
            for loop in loops:
                stack.push_async_callback(end_task, asyncio.create_task(loop))
            pull = asyncio.create_task(self._pull())
            stack.push_async_callback(end_task, pull)
            log.info("worker started", worker=self.id)
            await _first(self._stopping, self._broken)
            if self._stopping.is_set():
                log.info("worker drains", jobs=len(self._flights))
                await self._drain(pull)
        return 1 if self._broken.is_set() else 0

    async def _leave(self) -> None:
        """Close what is open; no thread is waited for."""
        self._batcher.close()
        for threads in (self._decoders, self._finishers):
            threads.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(RedisError, OSError):
            await self._queue.leave(self.id)
        await self._queue.close()
        await asyncio.to_thread(self._traces.close)
        log.info("worker left", worker=self.id)

    # Taking jobs

    async def _pull(self) -> None:
        """Read new entries as there is room; between reads, see to entries whose worker is gone."""
        reader = connect(self._settings.queue_url, blocking=True)
        pause = min(1.0, self._settings.lease_seconds / 4)
        look_again = 0.0
        joined = False
        try:
            while not self._stopping.is_set():
                try:
                    if not joined:
                        await self._queue.join()
                        joined = True
                    if not self._healthy():
                        await asyncio.sleep(pause / 10)
                        continue
                    if not await asyncio.to_thread(has_room, self._settings):
                        log.warning("the disk is full: no jobs are taken")
                        await asyncio.sleep(pause)
                        continue
                    if time.monotonic() >= look_again:
                        await self._redo()
                        look_again = time.monotonic() + self._settings.lease_seconds / 4
                    room = self._room()
                    if room == 0:
                        await self._landing(pause)
                        continue
                    for entry, job in await self._queue.read(reader, self.id, room, int(1000 * pause)):
                        if self._stopping.is_set() or not self._healthy():
                            await self._queue.hand_back(entry, self.id)
                        else:
                            await self._take(entry, job)
                except Exception as error:
                    log.warning("could not take jobs", error=repr(error))
                    joined = False
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            await reader.aclose()

    async def _landing(self, seconds: float) -> None:
        """Wait until a job ends or leaves the model, for so long at most."""
        self._landed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._landed.wait(), seconds)

    def _healthy(self) -> bool:
        return self._check is not None and self._check.ok

    def _room(self) -> int:
        """How many jobs to read: while one pass computes the next is loaded; no more is kept from other workers.

        The first job tells its model, which tells how many more are worth having.
        """
        ahead = [flight for flight in self._flights.values() if not flight.computed]
        if not ahead:
            return 1 if len(self._flights) < 4 * self._settings.finish_threads else 0
        most = min(self._batch_limit(flight.job.model) for flight in ahead)
        return max(0, (2 * most if most > 1 else 1) - len(ahead))

    def _batch_limit(self, model: str) -> int:
        return self._infos[model].max_batch if model in self._infos else 1

    async def _redo(self) -> None:
        """Do the jobs of workers that are gone, one at a time and nothing beside it: if a job is what kills workers,
        it must not take others down, nor have their tries counted."""
        if not await self._queue.overdue():
            return
        while self._flights and not self._stopping.is_set():
            await self._landing(0.5)
        while self._healthy() and not self._stopping.is_set() and (claimed := await self._queue.claim(self.id)):
            flight = await self._take(*claimed)
            if flight is not None and flight.task is not None:
                await asyncio.wait([flight.task])

    async def _take(self, entry: str, job: str) -> Flight | None:
        taken = await self._queue.take(entry, job, self.id)
        if isinstance(taken, str):
            log.info("nothing to do", job=job, reason=taken)
            if taken == "convicted":
                self._metrics.jobs.labels("unknown", "failed").inc()
            if taken != "lost":
                await self._storage.remove(f"uploads/{job}")
            return None
        flight = Flight(taken, entry)
        flight.stages["queue"] = (flight.began - max(0.0, taken.started_at - taken.created_at), flight.began)
        self._flights[job] = flight
        self._metrics.running.set(len(self._flights))
        flight.task = asyncio.create_task(self._fly(flight))
        return flight

    # One job

    async def _fly(self, flight: Flight) -> None:
        """A job from its photos to its end. Nothing escapes."""
        job = flight.job
        # Of this task: what is logged on the job's way carries its id, and that of the request that made it.
        structlog.contextvars.bind_contextvars(job=job.id, request=job.request)
        log.info("job taken", attempt=job.attempt, model=job.model, waited=round(flight.seconds["queue"], 3))
        try:
            await self._reconstruct(flight)
        except asyncio.CancelledError:
            await self._stopped(flight)
        except Stopped:
            await self._stopped(flight)
        except ReconstructionError as error:
            await self._fail(flight, "cannot-reconstruct", error.detail, error.suggestion)
        except Problem as error:
            await self._fail(flight, error.kind, error.detail, error.suggestion)
        except Exception as error:
            await self._stumble(flight, error)
        finally:
            self._flights.pop(job.id, None)
            self._metrics.running.set(len(self._flights))
            self._landed.set()
            self._tell(flight)

    def _tell(self, flight: Flight) -> None:
        """Where a job's time went, however it ended."""
        job = flight.job
        for stage, value in flight.seconds.items():
            self._metrics.stages.labels(stage).observe(value)
        clock = time.time() - time.monotonic()
        created = clock + flight.stages["queue"][0]
        whole = self._traces.begin("job", kind="consumer", parent=job.traceparent, at=created)
        for stage, (began, ended) in flight.stages.items():
            self._traces.begin(stage, parent=whole.traceparent, at=clock + began).end(clock + ended)
        whole.end(
            failed=flight.status == "failed",
            attributes={
                "scenelift.job": job.id,
                "scenelift.request": job.request,
                "scenelift.model": job.model,
                "scenelift.photos": len(job.photos),
                "scenelift.attempt": job.attempt,
                "scenelift.status": flight.status or "left",
            },
        )

    async def _reconstruct(self, flight: Flight) -> None:
        job = flight.job
        if job.model not in self._infos:
            await asyncio.to_thread(self._refresh)
        if job.model not in self._infos:
            raise ReconstructionError(
                f"The model {job.model} is not served any more.", "Choose one that GET /models lists."
            )
        info = self._infos[job.model]
        # Jobs of one pass have one reference: which it is, `auto` leaves open until the photos are loaded.
        reference = job.id if job.options.reference == "auto" else job.options.reference
        key = (job.model, len(job.photos), reference, job.options.focal)
        (prediction, views), shared = await self._batcher.submit(key, self._load(flight, info), info.max_batch)
        flight.computed = True
        self._landed.set()
        with _clock(flight, "finish"):
            outcome, files = await self._on(self._finishers, _finish, flight, prediction, views)
        with _clock(flight, "store"):
            flight.report("storing", FINISHED)
            for name, data in outcome.files.items():
                await self._put(result_path(job.id, job.attempt, name), data)
        seconds = outcome.metrics | flight.seconds
        measured = {f"{stage}_seconds": round(value, 4) for stage, value in seconds.items()}
        await self._end(
            flight,
            "succeeded",
            files=files,
            views=outcome.views,
            warnings=outcome.warnings,
            low_confidence=outcome.low_confidence,
            metrics=measured | {"batch_size": shared},
        )

    async def _put(self, path: str, data: bytes | bytearray | memoryview) -> None:
        """Write a file. A full disk is waited for, for as long as the job may run: it has been computed already."""
        while True:
            try:
                return await self._storage.put(path, data)
            except OSError as error:
                if not lacks_room(error):
                    raise
                log.warning("the disk is full", path=path)
            await asyncio.sleep(RETRY_SECONDS)

    async def _load(self, flight: Flight, info: ModelInfo) -> Item:
        """The job's photos, decoded one after the other: other jobs' share the threads."""
        job = flight.job
        photos = []
        with _clock(flight, "load"):
            for index, photo in enumerate(job.photos):
                flight.report("loading", LOADED * index / len(job.photos))
                data = await self._storage.get(upload_path(job.id, index))
                arguments = (photo["name"], data, info.square, info.long_side)
                photos.append(await self._on(self._decoders, images.load_view, *arguments))
            views = await self._on(
                self._decoders, pipeline.gather, photos, job.options, lambda _: flight.report("choosing", LOADED)
            )
        flight.report("waiting", LOADED)
        return flight, views

    def _forward(self, batch: Sequence[Item]) -> list[Answer | Exception]:
        """One pass, on the thread that computes."""
        model = self._open(batch[0][0].job.model)
        flights = [flight for flight, _ in batch]
        callbacks = [flight.between(LOADED, COMPUTED, stages=model.info.stages) for flight in flights]

        def progress(stage: str, fraction: float) -> None:
            """A pass goes on for as long as any of its jobs is still wanted."""
            wanted = 0
            for callback in callbacks:
                with contextlib.suppress(Stopped):
                    callback(stage, fraction)
                    wanted += 1
            if not wanted:
                raise Stopped

        began = time.monotonic()
        answers = model.run([views for _, views in batch], progress)
        for flight in flights:
            flight.stages |= {"wait": (flight.stages["load"][1], began), "forward": (began, time.monotonic())}
        self._metrics.batch.observe(len(batch))
        return [
            answer if isinstance(answer, Exception) else (answer, views)
            for answer, (_, views) in zip(answers, batch, strict=True)
        ]

    def _open(self, name: str) -> ServedModel:
        """The model, loaded and warm; on the thread that computes."""
        if name in self._renewed:
            self._renewed.discard(name)
            self._models.pop(name, None)
        if name not in self._models:
            model = self._catalogue.open(name)
            self._opened()
            model.warm_up()
            self._models[name] = model
        return self._models[name]

    async def _on(self, threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

    # How a job ends

    async def _end(self, flight: Flight, status: Status, **fields: Any) -> None:
        """Write the job's end. A job that is not this worker's any more leaves no trace of the attempt."""
        job = flight.job
        flight.ending = True
        while True:
            try:
                mine = await self._queue.finish(job.id, self.id, job.attempt, status, fields)
                break
            except (RedisError, OSError) as error:
                log.warning("could not write a job's end", job=job.id, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
        log.info("job ended" if mine else "job was another's", job=job.id, status=status, attempt=job.attempt)
        if mine:
            flight.status = status
            self._done += status == "succeeded"
            self._failed += status == "failed"
            self._metrics.jobs.labels(job.model, status).inc()
            await self._tidy(f"uploads/{job.id}")
        if not mine or status != "succeeded":
            await self._tidy(f"jobs/{job.id}/{job.attempt}")

    async def _tidy(self, prefix: str) -> None:
        """Remove files; what cannot be removed now is swept later."""
        try:
            await self._storage.remove(prefix)
        except OSError as error:
            log.warning("could not remove files", error=str(error))

    async def _fail(self, flight: Flight, kind: str, detail: str, suggestion: str = "") -> None:
        await self._end(flight, "failed", error={"type": kind, "detail": detail, "suggestion": suggestion})

    async def _stopped(self, flight: Flight) -> None:
        match flight.stop:
            case "cancelled":
                await self._end(flight, "canceled")
            case "overtime":
                seconds = self._settings.job_seconds
                await self._fail(
                    flight, "took-too-long", f"The job ran for more than {seconds:g} s.", "Try fewer photos."
                )
            case "drained":
                await self._release(flight, refund=True)
            case _:
                log.warning("lost the lease of a job", job=flight.job.id)
                await self._tidy(f"jobs/{flight.job.id}/{flight.job.attempt}")

    async def _stumble(self, flight: Flight, error: Exception) -> None:
        """An error of ours or of the machine: the machine's may pass, so the job gets another try, bounded."""
        job = flight.job
        if isinstance(error, DeviceLost):  # before the job is put back: not to be taken by this worker again
            self._check = CheckDocument(at=datetime.now(UTC), ok=False, seconds=0.0, detail="its device is lost")
        if not _may_pass(error):
            log.error("job failed", job=job.id, exc_info=error)
            await self._fail(
                flight, "internal-error", "Something went wrong inside the service.", "Report the job's id."
            )
        elif job.attempt < self._settings.max_attempts:
            log.warning("job is put back", job=job.id, attempt=job.attempt, error=repr(error))
            self._metrics.retries.inc()
            await self._release(flight, refund=False)
        elif _out_of_memory(error):
            detail = "The photos need more memory than the worker has."
            await self._fail(flight, "out-of-memory", detail, "Try fewer photos.")
        elif isinstance(error, DeviceLost):
            await self._fail(flight, "device-failed", "The worker's GPU failed, again and again.", "Try again later.")
        else:
            log.error("job failed", job=job.id, exc_info=error)
            await self._fail(
                flight, "storage-failed", "The worker could not read or write the job's files.", "Try again."
            )
        if isinstance(error, DeviceLost):
            self._broken.set()

    async def _release(self, flight: Flight, *, refund: bool) -> None:
        job = flight.job
        try:
            await self._queue.release(job.id, self.id, job.attempt, refund=refund)
        except (RedisError, OSError) as error:
            log.warning("could not put a job back: its lease will run out", job=job.id, error=str(error))
        await self._tidy(f"jobs/{job.id}/{job.attempt}")

    def _stop_flight(self, job: str, reason: Stop) -> None:
        """Stop a job: at once as its user sees it, and its thread at the next report of progress."""
        flight = self._flights.get(job)
        if flight is not None and not (flight.stop or flight.ending) and flight.task is not None:
            flight.stop = reason
            flight.task.cancel()

    async def _drain(self, pull: asyncio.Task[None]) -> None:
        """Let running jobs end in the time there is; put the others back."""
        deadline = time.monotonic() + self._settings.drain_seconds
        await self._attempt(self._beat)
        while (self._flights or not pull.done()) and time.monotonic() < deadline:
            await self._landing(0.1)
        late = [flight.task for flight in self._flights.values() if flight.task is not None]
        for job in list(self._flights):
            self._stop_flight(job, "drained")
        await asyncio.wait([pull, *late], timeout=5.0)

    # Loops beside the jobs

    async def _keep(self, step: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Do a step again and again, for ever."""
        while True:
            await self._attempt(step)
            await asyncio.sleep(seconds)

    @staticmethod
    async def _attempt(step: Callable[[], Awaitable[None]]) -> None:
        """Do a step. What it raises is logged alone: without these steps the worker would lose its jobs."""
        try:
            await step()
        except (RedisError, OSError) as error:
            log.warning("the queue or the storage does not answer", doing=step.__name__, error=str(error))
        except Exception as error:
            log.error("a step failed", doing=step.__name__, exc_info=error)

    async def _renew(self) -> None:
        """Renew the leases, and stop what is not to go on."""
        if self._batcher.abandoned_for() > self._settings.check_deadline_seconds:
            log.critical("the model does not come back from a stopped job: this worker ends")
            self._broken.set()
        for flight in list(self._flights.values()):
            if time.monotonic() - flight.began > self._settings.job_seconds:
                self._stop_flight(flight.job.id, "overtime")
            kept = await self._queue.renew(flight.job.id, self.id, flight.job.attempt)
            if kept != 1:
                self._stop_flight(flight.job.id, "cancelled" if kept else "lost")

    async def _beat(self) -> None:
        """Tell who is here."""
        document = await asyncio.to_thread(self._describe)
        self._metrics.memory.labels("used").set(document.device.memory_used)
        self._metrics.memory.labels("total").set(document.device.memory_total)
        self._metrics.use.set(math.nan if document.device.use is None else document.device.use)
        await self._queue.heartbeat(document)

    def _refresh(self) -> None:
        """Look again at which models there are: they may be added while we run."""
        opened = {name: self._workshop.explain(model.info) for name, model in self._models.copy().items()}
        self._infos = {info.name: info for info in self._catalogue.infos()} | opened

    def _describe(self) -> WorkerDocument:
        self._refresh()
        default = self._infos.get(self._catalogue.default())
        state: Literal["starting", "ready", "busy", "draining", "unhealthy"]
        if self._stopping.is_set():
            state = "draining"
        elif self._check is None:
            state = "starting"
        elif not self._check.ok:
            state = "unhealthy"
        else:
            state = "busy" if self._flights else "ready"
        return WorkerDocument(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=machine.describe(default.device if default else "cpu"),
            engine=default.engine if default else "cpu",
            models=[ModelEntry(**asdict(info)) for info in self._infos.values()],
            state=state,
            batch=self._batcher.running,
            jobs_running=len(self._flights),
            jobs_done=self._done,
            jobs_failed=self._failed,
            started_at=self._started_at,
            last_heartbeat=datetime.now(UTC),
            last_check=self._check,
            building=self._workshop.building,
        )

    async def _publish(self) -> None:
        """Tell how far the jobs are."""
        for flight in list(self._flights.values()):
            now = (flight.stage, round(flight.progress, 2))
            if now != flight.published:
                flight.published = now
                await self._queue.progress(flight.job.id, self.id, flight.job.attempt, *now)

    async def _hear_cancels(self) -> None:
        """Stop jobs the moment their user asks. What is missed here, the next renewal tells."""
        async for job in self._queue.listen(CANCELS):
            self._stop_flight(job, "cancelled")

    async def _check_often(self) -> None:
        """A real tiny forward pass at the start and then whenever the worker is idle for long: only what has just
        computed is known to compute. A device that fails is tried again; one that hangs ends the worker."""
        await self._attempt(self._provide_engines)
        name, deadline = self._catalogue.default(), self._settings.check_deadline_seconds
        began = time.monotonic()
        check = asyncio.create_task(self._batcher.on_thread(self._warm, name))
        done, _ = await asyncio.wait([check], timeout=deadline)
        cause = check.exception() if done else None
        detail = ""
        if not done:
            detail = f"{name} did not answer in {deadline:g} s"
        elif isinstance(cause, ArtifactError):  # made for readers
            detail = f"{name} failed: {self._workshop.lacking(name) or cause}"
        elif cause is not None:
            detail = f"{name} failed: {type(cause).__name__}"  # no more: the world reads it
        seconds = round(time.monotonic() - began, 3)
        self._check = CheckDocument(at=datetime.now(UTC), ok=not detail, seconds=seconds, detail=detail)
        if detail:
            log.error("deep check failed", detail=detail, exc_info=cause)
        else:
            log.info("deep check passed", model=name, seconds=seconds)
        await self._attempt(self._beat)
        if not done or isinstance(cause, DeviceLost):
            self._broken.set()
        await asyncio.sleep(RECHECK_SECONDS if detail else self._settings.check_interval_seconds)
        while self._flights and self._healthy():
            await asyncio.sleep(1.0)

    def _warm(self, name: str) -> None:
        self._refresh()
        known = self._models.get(name)
        model = self._open(name)
        if model is known:
            model.warm_up()

    async def _provide_engines(self) -> None:
        """Have missing engines built: at the start before any model is opened, of models that come later while no job
        runs. A model whose engine has come since it was opened is opened anew."""
        for engine in await asyncio.to_thread(self._catalogue.engines):
            if await self._workshop.provide(engine, self._alone) and engine.name not in self._offered:
                self._offered.add(engine.name)
                opened = self._models.get(engine.model)
                if opened is not None and opened.info.engine != "tensorrt":
                    self._renewed.add(engine.model)

    async def _alone(self) -> None:
        """Take no more jobs until the next deep check; comes back once none runs."""
        self._check = None
        await asyncio.sleep(RETRY_SECONDS)  # for a job that is just being taken
        while self._flights:
            await self._landing(1.0)

    async def _sweep(self) -> None:
        """Remove the files of jobs and of uploads whose record has expired, photos that never became a job, and those
        of jobs that have ended, which a worker that died then could not remove."""
        if not await self._queue.turn_to_sweep():
            return
        queue = self._queue
        kinds: tuple[tuple[str, float, Callable[[list[str]], Awaitable[list[str]]]], ...] = (
            ("jobs", 0.0, queue.missing),
            ("uploads", UPLOAD_GRACE_SECONDS, queue.over),
            ("incoming", 0.0, lambda ids: queue.missing(ids, "upload")),
        )
        for part, age, unwanted in kinds:
            for id in await unwanted(await self._storage.jobs(part, older_than=age)):
                await self._storage.remove(f"{part}/{id}")
                log.info("swept", part=part, id=id)
        await self._storage.remove_drafts(older_than=UPLOAD_GRACE_SECONDS)
        await self._queue.prune()


def _finish(flight: Flight, prediction: Prediction, views: Views) -> tuple[pipeline.Outcome, list[dict[str, Any]]]:
    """The job's files, and what the record says about them; on a thread."""
    progress = flight.between(COMPUTED, FINISHED, stages=3)
    outcome = pipeline.finish(prediction, views, flight.job.options, progress)
    files = [
        {
            "name": name,
            "bytes": memoryview(data).nbytes,
            "content_type": OUTPUTS[name],
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for name, data in outcome.files.items()
    ]
    return outcome, files


def _out_of_memory(error: Exception) -> bool:
    """Libraries say it in many ways; a message is all that they have in common."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "failed to allocate", "bad allocation", "bad_alloc")
    )


def _may_pass(error: Exception) -> bool:
    return isinstance(error, OSError | DeviceLost) or _out_of_memory(error)


@contextlib.contextmanager
def _clock(flight: Flight, stage: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        flight.stages[stage] = (began, time.monotonic())


async def _first(*events: asyncio.Event) -> None:
    """Wait until any of the events is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def run(settings: Settings, catalogue: Catalogue) -> NoReturn:
    """A worker process: until SIGTERM or SIGINT, which let running jobs end."""
    logs.configure(json=settings.log_json)

    async def work() -> int:
        loop = asyncio.get_running_loop()

        def arm() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, worker.stop)

        def opened() -> None:
            """Again: pycolmap, where it is loaded for a model, makes SIGTERM a crash with a stack trace."""
            loop.call_soon_threadsafe(arm)

        worker = Worker(settings, catalogue, opened=opened)
        arm()
        return await worker.run()

    code = asyncio.run(work())
    sys.stderr.flush()
    # A model that is still in a pass nobody waits for would be waited for at a normal exit.
    os._exit(code)
