"""What operators see of a request and of its job: ids, lines in the log, series, traces."""

from __future__ import annotations

import asyncio
import re
import socket
import stat
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from service import machine, traces
from service.jobs import Queue
from service.schemas import Options
from service.traces import Traces, from_environment
from tests.service.support import SMALL, ended, form, serving, working

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def series(text: str) -> dict[str, float]:
    rows = (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
    return {name: float(value) for name, _, value in rows}


def worker_series(worker) -> dict[str, float]:
    return series(generate_latest(worker._metrics.registry).decode())


async def post(client, *names, headers=None) -> dict:
    return (await client.post("/reconstruct", files=form(*names), data=SMALL, headers=headers)).json()


@pytest.fixture
def told() -> Iterator[list[dict]]:
    """What is logged."""
    lines: list[dict] = []

    def keep(_logger, _method, line):
        lines.append(dict(line))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep], cache_logger_on_first_use=False)
    yield lines
    structlog.configure(**before)


# ---------------------------------------------------------------- ids and logs


async def test_every_answer_has_the_id_of_its_request(settings, monkeypatch):
    async def broken(*_):
        raise RuntimeError("a bug")

    async with serving(settings) as client:
        for wished in ("my-id_1.2", "a" * 64):
            assert (await client.get("/livez", headers={"X-Request-Id": wished})).headers["x-request-id"] == wished
        made = set()
        for wished in (None, "", "a" * 65, "a b", "é".encode(), 'x"y', "a;b"):
            headers = {} if wished is None else {"X-Request-Id": wished}
            made.add((await client.get("/nowhere", headers=headers)).headers["x-request-id"])
        assert len(made) == 7
        assert all(re.fullmatch("[0-9a-f]{16}", id) for id in made)
        monkeypatch.setattr(Queue, "workers", broken)
        answer = await client.get("/workers", headers={"X-Request-Id": "broken-one"})
        assert (answer.status_code, answer.headers.get_list("x-request-id")) == (500, ["broken-one"])


async def test_a_request_and_its_job_are_followed_through_api_and_worker(settings, told):
    async with working(settings), serving(settings) as client:
        job = (await post(client, headers={"X-Request-Id": "from-the-gateway"}))["id"]
        await ended(client, job)
        await client.get(f"/jobs/{job}?word=secret", headers={"X-Request-Id": "another"})
    ours = [line for line in told if line.get("request") == "from-the-gateway"]
    assert sorted(line["event"] for line in ours) == ["answered", "job accepted", "job ended", "job taken"]
    assert all(line["job"] == job for line in ours)
    (answered,) = [line for line in ours if line["event"] == "answered"]
    assert (answered["method"], answered["route"], answered["status"]) == ("POST", "/reconstruct", 202)
    assert answered["ms"] > 0 < answered["bytes"]
    (other,) = [line for line in told if line.get("request") == "another"]
    assert (other["route"], other["job"]) == ("/jobs/{id}", job)
    assert "secret" not in str(told)


async def test_what_a_request_leaves_behind_is_not_the_next_ones(settings, told):
    async with working(settings), serving(settings) as client:
        await post(client)
        await client.get("/models")
        await client.get("/livez")
        await client.get("/nowhere")
    (models,) = [line for line in told if line.get("route") == "/models"]
    assert "job" not in models
    assert not [line for line in told if line.get("route") == "/livez"], "probes are not worth a line"
    assert [line["problem"] for line in told if line.get("status") == 404] == ["not-found"]


# ---------------------------------------------------------------- series


async def test_refusals_are_counted_by_reason(settings):
    async with working(settings), serving(settings) as client:
        await client.post("/reconstruct", files=form("a.jpg"))
        await client.post("/reconstruct", files=[("images", ("a.jpg", b"no photo", "image/jpeg"))] * 2)
        await client.post("/reconstruct", content=b"x")
        await post(client)
        found = series((await client.get("/metrics")).text)
    for reason in ("too-few-photos", "not-an-image", "not-multipart"):
        assert found[f'scenelift_refusals_total{{reason="{reason}",route="/reconstruct"}}'] == 1
    assert found['scenelift_jobs_accepted_total{model="fake"}'] == 1
    assert found['scenelift_http_seconds_count{route="/reconstruct",status="4xx"}'] == 3
    assert found['scenelift_http_seconds_count{route="/reconstruct",status="2xx"}'] == 1


async def test_callers_cannot_make_series(settings):
    """Labels have values that we chose: what callers choose would fill Prometheus's memory."""
    async with serving(settings) as client:
        await client.get("/livez")
        for word in ("PROPFIND", "MKCOL", "BREW"):
            await client.request(word, "/livez")
            await client.get(f"/{word}")
            await client.get(f"/jobs/{word}")
        text = (await client.get("/metrics")).text
    assert not re.search("PROPFIND|MKCOL|BREW", text)
    assert 'method="other"' in text


async def test_the_wait_of_a_job_that_nobody_takes_is_seen(settings):
    patient = settings.model_copy(update={"require_worker": False})
    async with serving(patient) as client:
        assert series((await client.get("/metrics")).text)["scenelift_queue_oldest_seconds"] == 0
        first = (await post(client))["id"]
        await asyncio.sleep(0.3)
        await post(client)
        text = series((await client.get("/metrics")).text)
        assert 0.3 <= text["scenelift_queue_oldest_seconds"] < 30
        await client.post(f"/jobs/{first}/cancel")
        async with working(patient):
            while series((await client.get("/metrics")).text)["scenelift_queue_oldest_seconds"]:
                await asyncio.sleep(0.05)
        assert series((await client.get("/metrics")).text)["scenelift_jobs_withdrawn_total"] == 1


async def test_stages_are_timed_however_a_job_ends(settings):
    async with working(settings) as worker, serving(settings) as client:
        for name in ("good", "refuse"):
            job = (await post(client, f"{name}.jpg", "b.jpg"))["id"]
            await ended(client, job)
        while worker._flights:
            await asyncio.sleep(0.01)
        found = worker_series(worker)
    for stage in ("queue", "load", "forward"):
        assert found[f'scenelift_stage_seconds_count{{stage="{stage}"}}'] == 2
    assert found['scenelift_stage_seconds_count{stage="store"}'] == 1
    for status in ("succeeded", "failed"):
        assert found[f'scenelift_jobs_total{{model="fake",status="{status}"}}'] == 1


async def test_a_job_that_is_given_up_counts_as_failed(settings):
    queue = Queue(settings.model_copy(update={"max_attempts": 1}))
    await queue.join()
    await queue.enqueue("A" * 22, "fake", Options(), [])
    ((entry, job),) = await queue.read(queue._redis, "gone", 1, 100)
    await queue.take(entry, job, "gone")
    await queue.close()
    async with working(settings.model_copy(update={"max_attempts": 1, "lease_seconds": 0.4})) as worker:
        deadline = time.monotonic() + 10
        while 'scenelift_jobs_total{model="unknown",status="failed"}' not in worker_series(worker):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("row", "use"), [("NVIDIA H200, 143771, 1024, 37", 0.37), ("NVIDIA A100, MIG 1g, 40960, 10, [N/A]", None)]
)
def test_a_gpu_says_how_busy_it_is(tmp_path, monkeypatch, row, use):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{row}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = machine.describe("cuda")
    assert (found.name, found.use) == (row.rsplit(",", 3)[0], use)
    assert found.memory_used < found.memory_total
    assert machine.describe("cpu").use is None


# ---------------------------------------------------------------- traces


@pytest.fixture
def collector(monkeypatch) -> Iterator[list]:
    """A collector of traces: the spans that it was sent, each with the part of the service that sent it."""
    spans: list = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                (part,) = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                spans.extend((part, span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield spans
        server.shutdown()
        thread.join()


async def test_one_trace_goes_from_the_request_to_the_last_file(settings, collector):
    async with working(settings), serving(settings) as client:
        began = time.time_ns()
        job = (await post(client, headers={"traceparent": PARENT}))["id"]
        await ended(client, job)
    spans = {span.name: (part, span) for part, span in collector if span.trace_id.hex() in PARENT}
    assert set(spans) == {"POST /reconstruct", "job", "queue", "load", "wait", "forward", "finish", "store"}
    part, request = spans["POST /reconstruct"]
    assert (part, request.parent_span_id.hex()) == ("scenelift-api", PARENT.split("-")[2])
    part, whole = spans["job"]
    assert (part, whole.parent_span_id) == ("scenelift-worker", request.span_id)
    attributes = {a.key: a.value for a in whole.attributes}
    assert attributes["scenelift.job"].string_value == job
    assert attributes["scenelift.status"].string_value == "succeeded"
    stages = [span for _, span in spans.values() if span not in (request, whole)]
    assert all(stage.parent_span_id == whole.span_id for stage in stages)
    slack = 50_000_000  # the queue's clock and the worker's are read at different moments
    for stage in stages:
        assert began - slack < whole.start_time_unix_nano <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= whole.end_time_unix_nano + slack
    order = sorted(stages, key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in order] == ["queue", "load", "wait", "forward", "finish", "store"]
    assert "token" not in str(collector)


async def test_a_collector_that_is_away_stops_no_job(settings, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with working(settings), serving(settings) as client:
        assert (await ended(client, (await post(client))["id"]))["status"] == "succeeded"


def test_a_collector_that_does_not_answer_holds_no_end_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(traces, "CLOSE_SECONDS", 0.2)
        ours = from_environment("worker")
        ours.begin("one").end()
        began = time.monotonic()
        ours.close()
        assert 0.1 < time.monotonic() - began < 2


def test_spans_of_what_went_wrong_say_so():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    ours = Traces(provider)
    first = ours.begin("one", kind="server", parent="nonsense", at=1.5)
    first.end(2.5, name="ONE", failed=True, attributes={"a": 1})
    ours.begin("two", parent=first.traceparent).end()
    one, two = exporter.get_finished_spans()
    assert (one.name, one.start_time, one.end_time, one.attributes["a"]) == ("ONE", 1_500_000_000, 2_500_000_000, 1)
    assert (one.parent, one.status.is_ok, two.status.is_ok) == (None, False, True)
    assert two.parent.span_id == one.context.span_id
    ours.close()


def test_without_an_endpoint_there_is_nothing(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    none = from_environment("api")
    span = none.begin("one", parent=PARENT)
    span.end(failed=True, attributes={"a": 1})
    assert (span.traceparent, none.begin("two").traceparent) == ("", "")
    none.close()
