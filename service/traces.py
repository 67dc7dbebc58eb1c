"""Traces by OpenTelemetry, as an option: where OTEL_EXPORTER_OTLP_ENDPOINT is set, and `scenelift[otel]` installed.

A trace is one job's, from the request that made it to its last file. Its context crosses the queue in the job's record,
as the `traceparent` of W3C's Trace Context. Sampling, headers, resource attributes: OpenTelemetry's own OTEL_*
variables. Without an endpoint nothing of OpenTelemetry is imported, and a span is one object that does nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from threading import Thread
from typing import Any, Literal

import structlog

log = structlog.get_logger()

CLOSE_SECONDS = 2.0
"""Time at the end for a collector to answer: by itself OpenTelemetry waits for 20 s, and a process that is told to stop
with it."""

Attributes = Mapping[str, str | int | float]


class Span:
    """Something that has begun. Without traces it does nothing, and its `traceparent` is empty."""

    def __init__(self, inner: Any = None) -> None:
        self._inner = inner

    @property
    def traceparent(self) -> str:
        """The span's name in W3C's words: whoever has it may go on with the trace elsewhere."""
        if self._inner is None:
            return ""
        context = self._inner.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(
        self, at: float | None = None, *, name: str = "", failed: bool = False, attributes: Attributes | None = None
    ) -> None:
        """It has ended, at the Unix time `at` or now. `name` replaces the one it began with."""
        if self._inner is None:
            return
        from opentelemetry.trace import StatusCode

        if name:
            self._inner.update_name(name)
        if failed:
            self._inner.set_status(StatusCode.ERROR)
        self._inner.set_attributes(attributes or {})
        self._inner.end(_nanoseconds(at))


class Traces:
    """Where spans come from. `provider`: OpenTelemetry's TracerProvider; None: there are no traces."""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("scenelift") if provider is not None else None

    def begin(
        self,
        name: str,
        *,
        kind: Literal["server", "consumer", "internal"] = "internal",
        parent: str = "",
        at: float | None = None,
    ) -> Span:
        """A span that begins at the Unix time `at`, or now, within `parent`, a traceparent. One that makes no sense, as
        a caller may send, begins a new trace."""
        if self._tracer is None:
            return Span()
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())
        return Span(self._tracer.start_span(name, context, SpanKind[kind.upper()], start_time=_nanoseconds(at)))

    def close(self) -> None:
        """Send what has not been sent yet, in CLOSE_SECONDS at most; blocks for so long."""
        if self._provider is not None:
            last = Thread(target=self._provider.shutdown, daemon=True)
            last.start()
            last.join(CLOSE_SECONDS)


def from_environment(part: Literal["api", "worker"]) -> Traces:
    """Traces of a part of the service, as the environment says. What is missing is logged: it stops nobody's jobs."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return Traces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("there are no traces", reason="OpenTelemetry is not installed: pip install 'scenelift[otel]'")
        return Traces()
    name = os.environ.get("OTEL_SERVICE_NAME") or f"scenelift-{part}"
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)


def _nanoseconds(at: float | None) -> int:
    return round((time.time() if at is None else at) * 1e9)
