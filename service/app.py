"""The API process: its parts put together, and every error as problem details."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from types import FrameType

import structlog
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Match

from service import pages, tus
from service.access import Guard, caller, describe
from service.errors import Problem, disk_full
from service.fetch import Fetcher
from service.headers import HEADERS, Hardened, docs_page
from service.incoming import Incoming
from service.intake import Intake
from service.jobs import Queue, end_task
from service.keys import Keys
from service.metrics import ApiMetrics
from service.models import Registry
from service.observed import Observed
from service.routes import Backend, router
from service.schemas import ProblemDocument
from service.settings import Settings
from service.storage import Storage, lacks_room
from service.traces import from_environment
from service.watch import Watcher
from service.webhooks import Webhooks

log = structlog.get_logger()

DESCRIPTION = "A handful of photos in; a coloured point cloud, cameras and Gaussians out."
ROUTERS = (router, tus.router, pages.router)


def create_app(settings: Settings) -> FastAPI:
    """The API over the queue and the storage that the settings name."""
    metrics = ApiMetrics()
    traces = from_environment("api")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue = Queue(settings)
        watcher = Watcher(queue)
        storage = Storage.of(settings)
        incoming = Incoming(settings, storage)
        app.state.pages = await asyncio.to_thread(pages.built)
        app.state.guard = Guard(settings, queue, Keys(storage))
        webhooks = Webhooks(settings, queue, storage, metrics=metrics)
        app.state.backend = Backend(
            settings=settings,
            queue=queue,
            storage=storage,
            incoming=incoming,
            intake=Intake(settings, incoming, Fetcher(settings), films=asyncio.Semaphore(1)),
            registry=Registry(settings.models_dir),
            watcher=watcher,
            webhooks=webhooks,
            metrics=metrics,
            places=asyncio.Semaphore(settings.decode_threads),
        )
        tasks = [asyncio.create_task(loop) for loop in (watcher.run(), webhooks.run())]
        try:
            yield
        finally:
            watcher.stop()
            for task in tasks:
                await end_task(task)
            await incoming.close()
            await queue.close()
            await asyncio.to_thread(traces.close)

    app = FastAPI(
        title="Scenelift",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=lifespan,
        dependencies=[Depends(caller)],
        docs_url=None,
        redoc_url=None,
    )
    for part in ROUTERS:
        app.include_router(part)
    app.add_api_route("/docs", docs_page, include_in_schema=False)
    # Keys are sent on purpose, never by a browser of itself: no credentials in CORS's sense, so `*` may be exposed.
    app.add_middleware(
        CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
    )
    app.add_middleware(Hardened)
    app.add_middleware(Observed, metrics=metrics, traces=traces)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(RedisError, _no_queue)
    app.add_exception_handler(OSError, _no_storage)
    app.add_exception_handler(Exception, _unexpected)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def serve(settings: Settings) -> None:
    """Run the API until it is told to stop."""
    # Uploads spool here, and leave no name behind: a disk of known size, not whatever holds /tmp.
    spool = settings.data_dir / "tmp"
    spool.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(spool)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        server_header=False,
    )
    _Server(config, app).run()


class _Server(uvicorn.Server):
    """uvicorn, but whoever waits for a job is let go when it is to stop: else it would wait for them."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, *arguments: object, **keywords: object) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(*arguments, **keywords)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._app.state.backend.watcher.stop)
        super().handle_exit(sig, frame)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - how Starlette types its handlers
    request.state.problem = error.kind
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == 404:
        problem = Problem(404, "not-found", "There is nothing at this address.", "GET /docs lists what there is.")
    elif error.status_code == 405:
        # Starlette names the methods of the first route of this address alone, and the application keeps its routers'.
        routes = [*request.app.routes, *(route for part in ROUTERS for route in part.routes)]
        here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
        allowed = ", ".join(sorted({method for route in here for method in getattr(route, "methods", None) or ()}))
        problem = Problem(
            405, "method-not-allowed", f"{request.method} cannot be used here.", headers={"Allow": allowed}
        )
    else:
        problem = Problem(error.status_code, "bad-request", str(error.detail), headers=dict(error.headers or {}))
    return await _problem(request, problem)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return await _problem(request, Problem(422, "invalid-request", f"{place}: {first['msg']}."))


async def _no_queue(request: Request, error: Exception) -> Response:
    log.error("the queue cannot be reached", error=str(error))
    problem = Problem(503, "queue-unreachable", "The queue cannot be reached.", "Try again soon.", retry_after=2)
    return await _problem(request, problem)


async def _no_storage(request: Request, error: Exception) -> Response:
    log.error("a file or the storage cannot be read or written", exc_info=error)
    if isinstance(error, OSError) and lacks_room(error):
        return await _problem(request, disk_full())
    problem = Problem(503, "storage-failed", "The storage cannot be reached.", "Try again soon.", retry_after=5)
    return await _problem(request, problem)


async def _unexpected(request: Request, _error: Exception) -> Response:
    # Starlette answers this outside of every middleware.
    headers = HEADERS | {"X-Request-Id": request.state.request_id}
    return Problem(500, "internal-error", "Something went wrong inside the service.", headers=headers).response()


def _openapi(app: FastAPI) -> dict[str, object]:
    """FastAPI's description, with the problem document that every route refers to."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["components"]["schemas"]["ProblemDocument"] = ProblemDocument.model_json_schema()
        for path in schema["paths"].values():
            for operation in path.values():
                # What FastAPI would say of invalid requests; ours are problems, which `default` describes.
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        describe(schema)
        app.openapi_schema = schema
    return app.openapi_schema
