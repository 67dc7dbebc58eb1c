"""Each request as operators see it: an id of its own, a line in the log, counts, and a span where traces are wanted.

What is told of it is bounded and harmless: methods, routes and kinds of problems that there are, and never a query
string, which may hold a link's token.
"""

from __future__ import annotations

import re
import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import ApiMetrics
from service.traces import Traces

log = structlog.get_logger()

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a caller's X-Request-Id may look like; of any other, one of ours takes the place."""
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
QUIET = frozenset(("/livez", "/readyz", "/metrics"))
"""What machines ask every few seconds: it is counted, and logged only where it fails."""


class Observed:
    """The outermost layer. Leaves `request_id` in the request's state, and reads from there the `problem` that it was
    answered with."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics, traces: Traces) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        wished = headers.get("x-request-id", "")
        id = wished if REQUEST_ID.fullmatch(wished) else secrets.token_hex(8)
        method = scope["method"] if scope["method"] in METHODS else "other"
        span = self._traces.begin(method, kind="server", parent=headers.get("traceparent", ""))
        state = scope.setdefault("state", {})
        state["request_id"], state["traceparent"] = id, span.traceparent
        # Of this request's task: what is logged while it is answered, here or in a route, carries its id.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request=id)
        began = time.perf_counter()
        status, sent = 500, 0

        async def observed(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = id
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "unmatched")
            problem = state.get("problem")
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(route, f"{status // 100}xx").observe(seconds)
            if problem:
                self._metrics.refusals.labels(route, problem).inc()
            if route not in QUIET or status >= 400:
                fields = {"problem": problem} if problem else {}
                milliseconds = round(1000 * seconds, 1)
                log.info("answered", method=method, route=route, status=status, ms=milliseconds, bytes=sent, **fields)
            span.end(
                name=f"{method} {route}",
                failed=status >= 500,
                attributes={
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": status,
                    "scenelift.request": id,
                },
            )
