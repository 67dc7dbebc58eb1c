"""The HTTP interface: thin. Each route asks the queue or the storage and shapes the answer."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError

from service import uploads
from service.access import Caller, TheCaller, make_token, visitor, welcome
from service.errors import Problem, disk_full, draining, unknown_job
from service.headers import matches
from service.incoming import Incoming
from service.intake import Intake
from service.jobs import JOB_ID, Queue
from service.metrics import ApiMetrics
from service.models import GEOMETRY, Registry
from service.schemas import (
    DEFAULT_OUTPUTS,
    FINAL,
    OUTPUTS,
    FileDocument,
    HealthDocument,
    JobDocument,
    LinkDocument,
    ModelDocument,
    ModelEntry,
    ModelsDocument,
    Options,
    QueueDocument,
    ReadinessDocument,
    WorkerDocument,
    WorkersDocument,
)
from service.settings import Settings
from service.storage import Storage, has_room, result_path, zip_size
from service.watch import Watcher
from service.webhooks import Webhooks

log = structlog.get_logger()

LONGEST_WAIT = 300.0
"""Seconds that `Prefer: wait` may ask for."""
CANCEL_WAIT = 2.0
"""Seconds that an answer waits for the worker to confirm a cancellation."""
ARCHIVE = "all.zip"


@dataclass(slots=True)
class Backend:
    """What the routes work with."""

    settings: Settings
    queue: Queue
    storage: Storage
    incoming: Incoming
    intake: Intake
    registry: Registry
    watcher: Watcher
    webhooks: Webhooks
    metrics: ApiMetrics
    places: asyncio.Semaphore
    """One for each photo that may be looked at at the same time."""
    receiving: Counter[str] = field(default_factory=Counter)
    """Jobs whose photos are being received, by API key."""
    bodies: Counter[str] = field(default_factory=Counter)
    """Bodies that are being received, of jobs and of resumable uploads, by API key."""

    async def models(self) -> list[ModelDocument]:
        """What the living workers serve; without one, what is installed here. Exactly one is the default."""
        entries = {entry.name: entry for worker in await self.queue.workers() for entry in worker.models}
        if not entries:
            entries = {info.name: ModelEntry(**asdict(info)) for info in await asyncio.to_thread(self.registry.infos)}
        default = self.registry.default()
        if default not in entries:
            default = GEOMETRY.name if GEOMETRY.name in entries else next(iter(entries))
        return [ModelDocument(**entry.model_dump(), default=name == default) for name, entry in entries.items()]

    async def readiness(self) -> tuple[list[str], list[WorkerDocument]]:
        """Why no job can be taken and done now (nothing: it can), and the workers."""
        if self.watcher.stopping:
            return ["This server is stopping."], []
        try:
            workers = await self.queue.workers()
        except (RedisError, OSError):
            return ["The queue cannot be reached."], []
        if not await asyncio.to_thread(has_room, self.settings):
            return ["The disk is full."], workers
        if not self.settings.require_worker:  # they come when there are jobs
            return [], workers
        if not workers:
            return ["There is no worker."], workers
        if not any(worker.state in ("ready", "busy") for worker in workers):
            return [f"No worker is ready: {', '.join(sorted(map(_state, workers)))}."], workers
        return [], workers

    @asynccontextmanager
    async def place(self, caller: Caller, idempotency_key: str | None) -> AsyncIterator[None]:
        """Room for one more job of the caller, before it is read. Problem 429, 503 or 507 where there is none."""
        if self.watcher.stopping:
            raise draining()
        known = idempotency_key is not None and await self.queue.made(idempotency_key, caller.key) is not None
        if not known:
            if self.settings.require_worker and not await self.queue.workers():
                raise Problem(503, "no-worker", "No worker is running.", "Try again soon.", retry_after=5)
            depth, _ = await self.queue.depth()
            if depth + self.receiving.total() >= self.settings.queue_limit:
                raise queue_full()
            if caller.key:
                held = await self.queue.held(caller.key)
                if held + self.receiving[caller.key] >= self.settings.jobs_per_key:
                    raise too_many_jobs(self.settings)
        async with self.receive(caller):
            self.receiving[caller.key] += 1
            try:
                yield
            finally:
                self.receiving[caller.key] -= 1

    @asynccontextmanager
    async def receive(self, caller: Caller) -> AsyncIterator[None]:
        """Room for one more body of the caller. Raises Problem 429 or 507 where there is none."""
        if not await asyncio.to_thread(has_room, self.settings):
            raise disk_full()
        most = self.settings.max_uploads
        # No key can take all places: however slowly it fills them, others go on.
        if self.bodies.total() >= most or (caller.key and self.bodies[caller.key] >= math.ceil(most / 2)):
            raise Problem(
                429, "too-many-uploads", "Too many uploads are running.", "Try again in a moment.", retry_after=2
            )
        self.bodies[caller.key] += 1
        try:
            yield
        finally:
            self.bodies[caller.key] -= 1


def _state(worker: WorkerDocument) -> str:
    if worker.building is None or worker.state != "starting":
        return worker.state
    return f"{worker.state} (its engine is being built, {100 * worker.building.progress:.0f} %)"


def queue_full() -> Problem:
    return Problem(429, "queue-full", "The queue is full.", "Try again later.", retry_after=10)


def too_many_jobs(settings: Settings) -> Problem:
    most = settings.jobs_per_key
    return Problem(
        429,
        "too-many-jobs",
        f"This API key has {most} jobs waiting or running, as many as it may.",
        "Wait for some of them to end, or cancel some.",
        retry_after=5,
        headers={"RateLimit-Policy": f'"jobs";q={most}', "RateLimit": '"jobs";r=0'},
    )


def backend(request: Request) -> Backend:
    found: Backend = request.app.state.backend
    return found


async def job_document(id: str, request: Request, caller: TheCaller) -> JobDocument:
    """The job of the address. Problem 404 where it is unknown, or another's than the caller's."""
    document = await backend(request).queue.document(id, caller.key) if JOB_ID.fullmatch(id) else None
    if document is None:
        raise unknown_job()
    structlog.contextvars.bind_contextvars(job=id)
    return document


TheBackend = Annotated[Backend, Depends(backend)]
TheJob = Annotated[JobDocument, Depends(job_document)]

_problem = {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {"description": "What went wrong", "content": {"application/problem+json": _problem}}
}
router = APIRouter(responses=PROBLEMS)
_properties = Options.model_json_schema()["properties"]
_FORM = {
    "type": "object",
    "oneOf": [{"required": [way]} for way in uploads.WAYS],
    "additionalProperties": False,
    "properties": {
        "images": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 2,
            "description": "Photos of one place: JPEG, PNG, WebP, HEIC, AVIF, TIFF or BMP.",
        },
        "archive": {
            "type": "string",
            "format": "binary",
            "description": "Or one zip file of them, taken in the natural order of their names.",
        },
        "video": {
            "type": "string",
            "format": "binary",
            "description": "Or a video: MP4, MOV, WebM or MKV. Sharp frames between which the camera moves are taken.",
        },
        "frames": {"type": "integer", "minimum": 2, "description": "Frames to take of the video, at most."},
        "uploads": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Or ids of resumable uploads, comma-separated or repeated: photos, an archive, a video.",
        },
        "image_urls": {
            "type": "array",
            "items": {"type": "string", "format": "uri"},
            "description": "Or addresses of photos, repeated or with spaces between, where this service fetches any.",
        },
        "webhook_url": {
            "type": "string",
            "format": "uri",
            "description": "Address that is told, in a signed POST (Standard Webhooks), when the job has ended.",
        },
        "model": {"type": "string", "description": "One of GET /models; without it the default one."},
        **{name: {k: v for k, v in schema.items() if k != "default"} for name, schema in _properties.items()},
        "outputs": {
            "type": "array",
            "items": {"type": "string", "enum": list(OUTPUTS)},
            "description": f"Result files wanted, comma-separated or repeated; else {', '.join(DEFAULT_OUTPUTS)}.",
        },
    },
}


@router.post(
    "/reconstruct",
    status_code=202,
    responses={200: {"model": JobDocument, "description": "The job has already ended"}},
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
)
async def reconstruct(
    request: Request,
    response: Response,
    backend: TheBackend,
    caller: TheCaller,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    prefer: Annotated[str, Header(description="`wait=N`: answer when the job has ended, or after N seconds")] = "",
) -> JobDocument:
    """Queue a reconstruction of at least two photos of one place."""
    wait = _wished_wait(prefer)
    async with backend.place(caller, idempotency_key):
        job = await _accept(request, backend, caller, idempotency_key)
    document = await backend.watcher.finished(job, wait) if wait else await backend.queue.document(job)
    if document is None:
        raise unknown_job()
    if wait:
        response.headers["Preference-Applied"] = f"wait={wait:g}"
    response.headers["Location"] = document.links.self
    response.status_code = 200 if document.status in FINAL else 202
    _hint(response, document)
    return document


async def _accept(request: Request, backend: Backend, caller: Caller, idempotency_key: str | None) -> str:
    """Receive, check, store, enqueue; nothing is left behind where any of it fails."""
    job = secrets.token_urlsafe(16)
    kept = False
    structlog.contextvars.bind_contextvars(job=job)
    async with AsyncExitStack() as stack:
        form = await uploads.read_form(request, backend.settings)
        stack.push_async_callback(form.close)
        wish = uploads.read_fields(form)
        fingerprint = ""
        if idempotency_key is not None:
            fingerprint = await asyncio.to_thread(wish.fingerprint)
            made = await backend.queue.made(idempotency_key, caller.key)
            if made is not None:
                if made[1] != fingerprint:
                    raise idempotency_conflict()
                return made[0]
        if wish.webhook:
            await backend.webhooks.check(wish.webhook)
        models = await backend.models()
        model = choose_model(models, wish.model)
        try:
            photos = await backend.intake.photos(wish, caller.key, model.max_views, stack)
            uploads.check_count(len(photos), wish.options, backend.settings)
            check_views(model, len(photos), models)
            stored = await uploads.store(job, photos, backend.settings, backend.storage, backend.places)
            kept = True  # from here on the job may be queued, whatever breaks: photos of none are swept
            verdict, found = await backend.queue.enqueue(
                job,
                model.name,
                wish.options,
                stored,
                key=caller.key,
                idempotency_key=idempotency_key,
                fingerprint=fingerprint,
                request=request.state.request_id,
                traceparent=request.state.traceparent,
                webhook=wish.webhook,
            )
            kept = verdict == "new"
        finally:
            if not kept:
                await asyncio.shield(backend.storage.remove(f"uploads/{job}"))
    if verdict == "full":
        raise queue_full()
    if verdict == "held":
        raise too_many_jobs(backend.settings)
    if verdict == "conflict":
        raise idempotency_conflict()
    structlog.contextvars.bind_contextvars(job=found)
    if kept:
        backend.metrics.accepted.labels(model.name).inc()
        log.info("job accepted", model=model.name, photos=len(stored))
        with suppress(RedisError, OSError):  # the job is accepted: what stays is swept
            for upload in wish.uploads:
                await backend.incoming.remove(upload)
    return found


def idempotency_conflict() -> Problem:
    return Problem(
        409,
        "idempotency-conflict",
        "This Idempotency-Key was used for another request.",
        "Use a new key for a new request.",
    )


def choose_model(models: list[ModelDocument], name: str | None) -> ModelDocument:
    """The model to use. Problem 422 where it is unknown."""
    chosen = next((model for model in models if (model.default if name is None else model.name == name)), None)
    if chosen is None:
        known = ", ".join(model.name for model in models)
        raise Problem(422, "unknown-model", f"There is no model {str(name)[:40]!r}.", f"The models are {known}.")
    return chosen


def check_views(chosen: ModelDocument, photos: int, models: list[ModelDocument]) -> None:
    """Problem 422 where the chosen model cannot take so many photos."""
    if photos < chosen.min_views:
        raise Problem(422, "too-few-photos", f"{chosen.name} needs at least {chosen.min_views} photos.")
    if photos > chosen.max_views:
        roomy = ", ".join(model.name for model in models if photos <= model.max_views)
        instead = f", or a model that takes {photos}: {roomy}" if roomy else ""
        raise Problem(
            422,
            "too-many-photos",
            f"{chosen.name} takes at most {chosen.max_views} photos.",
            f"Choose photos that overlap and together show the whole place{instead}.",
        )


def _wished_wait(prefer: str) -> float:
    """Seconds that `Prefer` (RFC 7240) asks to wait; what else it asks for is ignored, as it may be."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", prefer)
    return min(float(found[1]), LONGEST_WAIT) if found else 0.0


def _hint(response: Response, document: JobDocument) -> None:
    """When to ask again."""
    if document.status not in FINAL:
        response.headers["Retry-After"] = "1" if document.status == "running" else "2"


@router.get("/jobs/{id}")
async def get_job(response: Response, job: TheJob, caller: TheCaller) -> JobDocument:
    """A job's document."""
    _hint(response, job)
    response.headers["Cache-Control"] = "no-store"
    return caller.sees(job)


@router.get("/jobs/{id}/events", response_class=EventSourceResponse)
async def job_events(
    request: Request, job: TheJob, backend: TheBackend, caller: TheCaller
) -> AsyncIterator[ServerSentEvent]:
    """Server-Sent Events: `status` with the job's document at once and at every change; ends after the final one."""
    async for document in backend.watcher.documents(job.id):
        if not await welcome(request):
            return
        yield ServerSentEvent(event="status", raw_data=caller.sees(document).model_dump_json(), retry=2000)


@router.post("/jobs/{id}/cancel")
async def cancel_job(job: TheJob, backend: TheBackend) -> JobDocument:
    """Cancel a queued or running job. One that has already ended stays as it is."""
    await _cancel(job, backend)
    return await backend.queue.document(job.id) or job


@router.post("/jobs/{id}/webhook", status_code=202)
async def replay_webhook(job: TheJob, backend: TheBackend) -> JobDocument:
    """Tell the job's end to its webhook once more, with all tries anew and the same `webhook-id`."""
    match await backend.queue.replay(job.id):
        case "none":
            raise Problem(409, "no-webhook", "The job has no webhook.", "Send webhook_url with the photos.")
        case "unfinished":
            raise Problem(409, "not-finished", "The job has not ended.", "Its webhook is told when it has.")
    return await backend.queue.document(job.id) or job


@router.post("/jobs/{id}/links", status_code=201)
async def make_link(
    response: Response,
    job: TheJob,
    backend: TheBackend,
    seconds: Annotated[int, Query(ge=1, le=604_800, description="For how long")] = 3600,
) -> LinkDocument:
    """Addresses that let whoever has them read this job and its files, for a time, without a key."""
    secret = await backend.queue.link_secret(job.id, secrets.token_hex(32))
    if secret is None:
        raise unknown_job()
    token, expiry = make_token(job.id, secret, seconds)
    seen = Caller(token=token).sees(job)
    response.headers["Cache-Control"] = "no-store"
    return LinkDocument(
        expires_at=datetime.fromtimestamp(expiry, UTC),
        token=token,
        # Behind the `#`: it is sent to no server when the page is fetched.
        page=f"/view/{job.id}#token={token}",
        links=seen.links,
        files=seen.files,
    )


@router.delete("/jobs/{id}/links", status_code=204)
async def delete_links(job: TheJob, backend: TheBackend) -> None:
    """Take every link to the job back."""
    await backend.queue.unlink(job.id)


@router.delete("/jobs/{id}", status_code=204)
async def delete_job(job: TheJob, backend: TheBackend) -> None:
    """Cancel a job where needed, and remove it with all its files."""
    await _cancel(job, backend)
    await backend.queue.forget(job.id)
    await backend.storage.remove(f"uploads/{job.id}")
    await backend.storage.remove(f"jobs/{job.id}")


async def _cancel(job: JobDocument, backend: Backend) -> None:
    before = await backend.queue.cancel(job.id)
    if before == "queued":
        backend.metrics.withdrawn.inc()
        await backend.storage.remove(f"uploads/{job.id}")
    elif before == "running":
        await backend.watcher.finished(job.id, CANCEL_WAIT)


@router.head("/jobs/{id}/files/all.zip", include_in_schema=False)
@router.get("/jobs/{id}/files/all.zip", response_class=StreamingResponse)
async def get_archive(request: Request, job: TheJob, backend: TheBackend) -> Response:
    """Every result of the job in one zip file, streamed."""
    if not job.files:
        raise no_file(job)
    # The same files make the same zip, byte by byte.
    etag = f'"{hashlib.sha256("".join(file.name + file.sha256 for file in job.files).encode()).hexdigest()}"'
    headers = _kept(job, etag, f"scenelift-{job.id[:8]}.zip")
    if matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    headers["Accept-Ranges"] = "none"
    attempt = await backend.queue.attempt(job.id)
    entries = [(file.name, result_path(job.id, attempt, file.name), file.bytes) for file in job.files]
    if size := zip_size(entries):
        headers["Content-Length"] = str(size)
    if request.method == "HEAD":
        return Response(headers=headers, media_type="application/zip")
    return StreamingResponse(backend.storage.zip(entries), headers=headers, media_type="application/zip")


@router.head("/jobs/{id}/files/{name}", include_in_schema=False)
@router.get("/jobs/{id}/files/{name}", response_class=StreamingResponse)
async def get_file(request: Request, name: str, job: TheJob, backend: TheBackend) -> Response:
    """One result, whole or a range of it."""
    file = next((file for file in job.files if file.name == name), None)
    if file is None:
        raise no_file(job)
    etag = f'"{file.sha256}"'
    headers = _kept(job, etag, file.name) | {"Accept-Ranges": "bytes"}
    if matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    path = result_path(job.id, await backend.queue.attempt(job.id), file.name)
    if backend.settings.storage_redirect and request.method == "GET":
        link = await backend.storage.link(path)
        if link is not None:
            return RedirectResponse(link, 307, {"Cache-Control": "no-store"})
    start, end, status = 0, file.bytes, 200
    wished = request.headers.get("range") if request.method == "GET" else None  # RFC 9110, 14.2: of no other method
    if wished is not None and request.headers.get("if-range", etag) == etag:
        found = _range(wished, file)
        if found is not None:
            (start, end), status = found, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=file.content_type)
    if not await backend.storage.exists(path):
        raise no_file(job)
    return StreamingResponse(backend.storage.stream(path, start, end), status, headers, media_type=file.content_type)


def _kept(job: JobDocument, etag: str, name: str) -> dict[str, str]:
    """How long an answer may be kept: it never changes, but goes with its job, and is its owner's alone."""
    left = (job.expires_at - datetime.now(UTC)).total_seconds() if job.expires_at is not None else 0.0
    return {
        "ETag": etag,
        "Cache-Control": f"private, max-age={max(0, int(left))}, immutable",
        "Content-Disposition": f'attachment; filename="{name}"',
    }


def no_file(job: JobDocument) -> Problem:
    if job.status in FINAL:
        return Problem(404, "unknown-file", "The job has no such file.", "The job's document lists its files.")
    return Problem(404, "not-finished", "The job has no files yet.", "Wait until its status is succeeded.")


def _range(header: str, file: FileDocument) -> tuple[int, int] | None:
    """[start, end) of a `Range` header (RFC 9110, 14.1.2); None: not one range of bytes, to be ignored.

    Raises Problem 416 where the range lies outside the file.
    """
    found = re.fullmatch(r"bytes\s*=\s*(\d*)\s*-\s*(\d*)", header.strip())
    if found is None or (not found[1] and not found[2]):
        return None
    if not found[1]:
        start, end = max(0, file.bytes - int(found[2])), file.bytes
    else:
        start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else file.bytes, file.bytes)
        if found[2] and int(found[2]) < start:
            return None
    if start >= end:
        raise Problem(
            416,
            "range-not-satisfiable",
            f"{file.name} has {file.bytes} bytes.",
            headers={"Content-Range": f"bytes */{file.bytes}"},
        )
    return start, end


@router.get("/models")
async def get_models(backend: TheBackend) -> ModelsDocument:
    """The served models."""
    return ModelsDocument(models=await backend.models())


@router.get("/workers")
async def get_workers(backend: TheBackend) -> WorkersDocument:
    """The workers, as their last heartbeats tell."""
    return WorkersDocument(workers=await backend.queue.workers())


@router.get("/livez")
async def livez() -> dict[str, bool]:
    """The process answers; nothing else is touched."""
    return {"live": True}


@router.get("/readyz", responses={503: {"model": ReadinessDocument, "description": "Not ready, and why"}})
async def readyz(response: Response, backend: TheBackend) -> ReadinessDocument:
    """Whether jobs can be taken and done."""
    reasons, _ = await backend.readiness()
    response.status_code = 503 if reasons else 200
    return ReadinessDocument(ready=not reasons, reasons=reasons)


@router.get("/health", responses={503: {"model": HealthDocument, "description": "Not ready, and why"}})
async def health(request: Request, response: Response, backend: TheBackend) -> HealthDocument:
    """Readiness, the queue's depth and, for who may see them, the workers in one document."""
    reasons, workers = await backend.readiness()
    try:
        depth, waiting = await backend.queue.depth()
        queue = QueueDocument(depth=depth, waiting=waiting, limit=backend.settings.queue_limit)
    except (RedisError, OSError):
        queue = None
    response.status_code = 503 if reasons else 200
    known = await visitor(request) is not None
    return HealthDocument(ready=not reasons, reasons=reasons, queue=queue, workers=workers if known else None)


@router.get("/metrics", response_class=Response)
async def get_metrics(backend: TheBackend) -> Response:
    """For Prometheus."""
    metrics = backend.metrics
    depth, waiting, oldest, workers = math.nan, math.nan, math.nan, []
    try:
        depth, waiting = await backend.queue.depth()
        oldest = await backend.queue.oldest()
        workers = await backend.queue.workers()
        metrics.queue.set(1)
    except (RedisError, OSError):
        metrics.queue.set(0)
    metrics.depth.set(depth)
    metrics.waiting.set(waiting)
    metrics.oldest.set(oldest)
    for state in ("starting", "ready", "busy", "draining", "unhealthy"):
        metrics.workers.labels(state).set(sum(worker.state == state for worker in workers))
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
