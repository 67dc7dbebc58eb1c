from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from redis.exceptions import ConnectionError as RedisConnectionError

from service import uploads
from service.cli import openapi_text
from service.jobs import Queue
from service.routes import Backend
from service.storage import Storage
from service.uploads import FIELDS, FILES
from tests.service.support import SMALL, ended, form, jpeg, serving, settled, stored, working


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def files(*contents: bytes, name: str = "photo.jpg"):
    return [("images", (name, content, "image/jpeg")) for content in contents]


async def post(client, *names, **fields):
    answer = await client.post("/reconstruct", files=form(*names), data=SMALL | fields)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def is_problem(answer: httpx.Response, status: int, kind: str) -> bool:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["detail"].endswith("."), body
    assert body["title"]
    assert (answer.status_code, body["status"], body["type"]) == (status, status, kind), body
    assert not any(word in answer.text for word in ("Traceback", "/tmp", "/work", ".py"))
    return True


async def test_a_job_from_photos_to_files(api, settings):
    answer = await api.post("/reconstruct", files=form("one.jpg", "../../zwei ä.jpg"), data=SMALL)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"] == f"/jobs/{job['id']}"
    assert answer.headers["retry-after"]
    assert [view["name"] for view in job["views"]] == ["one.jpg", "zwei ä.jpg"]
    assert [(view["width"], view["height"], view["focal"]) for view in job["views"]] == [(96, 72, None)] * 2
    done = await ended(api, job["id"])
    assert (done["status"], done["progress"], done["error"]) == ("succeeded", 1, None)
    assert done["created_at"] < done["started_at"] < done["finished_at"] < done["expires_at"]
    assert [view["focal"] for view in done["views"]] == [96, 96]
    assert [file["name"] for file in done["files"]] == ["cameras.json", "scene.splat"]
    assert done["warnings"] == ["A warning."]
    assert done["low_confidence"] is False
    assert done["metrics"]["batch_size"] == 1
    assert done["metrics"]["forward_seconds"] > 0
    for file in done["files"]:
        content = (await api.get(file["url"])).content
        assert len(content) == file["bytes"]
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert stored(settings) == [f"jobs/{job['id']}/1/{name}" for name in ("cameras.json", "scene.splat")]


async def test_files_have_types_tags_and_ranges(api):
    job = await post(api)
    (_, splat) = (await ended(api, job))["files"]
    url, size = splat["url"], splat["bytes"]
    whole = await api.get(url)
    content = whole.content
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["content-length"] == str(size)
    assert whole.headers["etag"] == f'"{splat["sha256"]}"'
    assert (await api.get(f"/jobs/{job}/files/cameras.json")).headers["content-type"] == "application/json"
    head = await api.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
    ranged = await api.head(url, headers={"Range": "bytes=0-9"})
    assert (ranged.status_code, ranged.headers["content-length"]) == (200, str(size)), "ranges are of GET alone"
    kept = re.fullmatch(r"private, max-age=(\d+), immutable", whole.headers["cache-control"])
    seconds = api.app.state.backend.settings.result_seconds
    assert seconds - 60 < int(kept[1]) <= seconds, "as long as its job"
    tag = whole.headers["etag"]
    for header in (tag, f'"other", W/{tag}', "*"):
        assert (await api.get(url, headers={"If-None-Match": header})).status_code == 304
    assert (await api.get(url, headers={"If-None-Match": '"other"'})).status_code == 200

    for header, start, end in (
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, size),
        ("bytes=-32", size - 32, size),
        (f"bytes=10-{size * 2}", 10, size),
        (f"bytes=-{size * 2}", 0, size),
        ("bytes=5-5", 5, 6),
    ):
        part = await api.get(url, headers={"Range": header})
        assert part.status_code == 206, header
        assert part.content == content[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert part.headers["content-length"] == str(end - start)
    for header in (f"bytes={size}-", "bytes=-0"):
        outside = await api.get(url, headers={"Range": header})
        assert is_problem(outside, 416, "range-not-satisfiable")
        assert outside.headers["content-range"] == f"bytes */{size}"
    for header in ("bytes=0-1,4-5", "lines=1-2", "bytes=9-3", "bytes=-", "bytes=a-b"):
        assert (await api.get(url, headers={"Range": header})).content == content, header
    stale = await api.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, content)
    fresh = await api.get(url, headers={"Range": "bytes=0-9", "If-Range": tag})
    assert (fresh.status_code, fresh.content) == (206, content[:10])
    assert is_problem(await api.get(f"/jobs/{job}/files/scene.glb"), 404, "unknown-file")


async def test_all_files_in_one_zip(api):
    job = await post(api)
    done = await ended(api, job)
    answer = await api.get(f"/jobs/{job}/files/all.zip")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        found = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
    assert found == {file["name"]: file["sha256"] for file in done["files"]}
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["cache-control"].startswith("private, ")
    assert (await api.get(f"/jobs/{job}/files/all.zip")).content == answer.content, "its tag is that of its bytes"
    head = await api.head(f"/jobs/{job}/files/all.zip")
    assert (head.status_code, head.content) == (200, b"")
    assert {head.headers[name] == answer.headers[name] for name in ("content-length", "etag")} == {True}
    known = {"If-None-Match": answer.headers["etag"]}
    assert (await api.get(f"/jobs/{job}/files/all.zip", headers=known)).status_code == 304


async def events(client: httpx.AsyncClient, job: str) -> list[dict]:
    found = []
    async with client.stream("GET", f"/jobs/{job}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("event:"):
                assert line == "event: status"
            if line.startswith("data:"):
                found.append(json.loads(line.removeprefix("data:")))
    return found


async def test_events_tell_every_change_and_end(api):
    job = await post(api, "slow a.jpg", "b.jpg")
    heard, again = await asyncio.gather(events(api, job), events(api, job))
    statuses = [document["status"] for document in heard]
    assert statuses[-1] == again[-1]["status"] == "succeeded"
    assert "running" in statuses
    assert statuses == sorted(statuses, key=["queued", "running", "succeeded"].index)
    progress = [document["progress"] for document in heard]
    assert progress == sorted(progress)
    assert len({p for p in progress if 0.05 < p < 0.85}) >= 5
    assert "forward" in {document["stage"] for document in heard}
    (only,) = await events(api, job)
    assert only == heard[-1]
    assert is_problem(await api.get("/jobs/AAAAAAAAAAAAAAAAAAAAAA/events"), 404, "unknown-job")


async def test_waiting_for_the_end(api):
    quick = await api.post("/reconstruct", files=form(), data=SMALL, headers={"Prefer": "respond-async, wait=20"})
    assert (quick.status_code, quick.json()["status"]) == (200, "succeeded")
    assert quick.headers["preference-applied"] == "wait=20"
    slow = await api.post("/reconstruct", files=form("slow.jpg", "b.jpg"), data=SMALL, headers={"Prefer": "wait=1"})
    assert (slow.status_code, slow.json()["status"]) == (202, "running")


async def test_the_reference_is_chosen_on_request(api):
    """The photo that overlaps with both others becomes the origin; the record and the file say which it is."""
    wall = np.asarray(Image.open(io.BytesIO(jpeg(size=(900, 240)))))
    photos = []
    for left in (0, 500, 250):
        buffer = io.BytesIO()
        Image.fromarray(wall[:, left : left + 400]).save(buffer, "JPEG", quality=95)
        photos.append(buffer.getvalue())
    answer = await api.post(
        "/reconstruct", files=files(*photos), data=SMALL | {"reference": "auto"}, headers={"Prefer": "wait=20"}
    )
    document = answer.json()
    assert (document["status"], document["options"]["reference"]) == ("succeeded", "auto")
    assert [view["reference"] for view in document["views"]] == [False, False, True]
    cameras = await api.get(f"/jobs/{document['id']}/files/cameras.json")
    assert cameras.json()["reference"] == 2


async def test_cancelling_jobs(api, settings):
    running = await post(api, "slow.jpg", "b.jpg")
    async for document in stream(api, running):
        if document["stage"] == "forward":
            break
    answer = await api.post(f"/jobs/{running}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert (await api.post(f"/jobs/{running}/cancel")).json()["status"] == "canceled"
    done = await post(api)
    await ended(api, done)
    assert (await api.post(f"/jobs/{done}/cancel")).json()["status"] == "succeeded"
    assert all(path.startswith(f"jobs/{done}/") for path in stored(settings))
    assert is_problem(await api.post("/jobs/AAAAAAAAAAAAAAAAAAAAAA/cancel"), 404, "unknown-job")


async def stream(client, job):
    async with client.stream("GET", f"/jobs/{job}/events") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


async def test_deleting_jobs(api, settings):
    done, running = await post(api), await post(api, "slow.jpg", "b.jpg")
    await ended(api, done)
    for job in (done, running):
        assert (await api.delete(f"/jobs/{job}")).status_code == 204
        assert is_problem(await api.get(f"/jobs/{job}"), 404, "unknown-job")
        assert is_problem(await api.get(f"/jobs/{job}/files/scene.splat"), 404, "unknown-job")
        assert is_problem(await api.delete(f"/jobs/{job}"), 404, "unknown-job")
    assert stored(settings) == []


async def test_a_failed_job_says_why_and_the_worker_goes_on(api, settings):
    cases = {
        "nan": ("cannot-reconstruct", "not numbers"),
        "refuse": ("cannot-reconstruct", "different places"),
        "raise": ("internal-error", "Something went wrong"),
    }
    jobs = {name: await post(api, f"{name}.jpg", "b.jpg") for name in cases}
    for name, (kind, words) in cases.items():
        document = await ended(api, jobs[name])
        assert document["status"] == "failed"
        assert document["error"]["type"] == kind
        assert words in document["error"]["detail"]
        assert document["error"]["suggestion"]
        assert "passwd" not in json.dumps(document)
        assert is_problem(await api.get(f"/jobs/{jobs[name]}/files/all.zip"), 404, "unknown-file")
    assert (await ended(api, await post(api)))["status"] == "succeeded"
    assert not [path for path in await settled(settings) if path.startswith("uploads")]


@pytest.mark.parametrize(
    ("photos", "fields", "status", "kind", "words"),
    [
        (files(jpeg()), {}, 422, "too-few-photos", "at least 2"),
        (files(), {"model": "fake"}, 422, "too-few-photos", "at least 2"),
        (files(jpeg(), b""), {}, 415, "not-an-image", "photo.jpg is empty"),
        (files(jpeg(), b"dear diary"), {}, 415, "not-an-image", "photo.jpg"),
        (files(jpeg(), jpeg(size=(640, 480))[:1500]), {}, 422, "damaged-image", "photo.jpg"),
        (files(jpeg(), png_header(30_000, 30_000)), {}, 413, "too-many-pixels", "30000 × 30000"),
        (files(*[jpeg()] * 65), {}, 422, "too-many-photos", "at most 64"),
        (files(*[jpeg()] * 200), {}, 422, "too-many-parts", "parts"),
        (files(*[jpeg()] * 9), {}, 422, "too-many-photos", "fake takes at most 8"),
        (files(jpeg(), b"\xff\xd8" * (600 << 10)), {}, 413, "file-too-large", "1 MiB"),
        (files(*[b"\xff\xd8" * (500 << 10)] * 5), {}, 413, "body-too-large", "4 MiB"),
        (form(), {"model": "gpt"}, 422, "unknown-model", "'gpt'"),
        (form(), {"outputs": "scene.ply,scene.obj"}, 422, "unknown-output", "'scene.obj'"),
        (form(), {"mesh": "1"}, 422, "unknown-field", "'mesh'"),
        (form(), {"max_points": "many"}, 422, "invalid-field", "max_points"),
        (form(), {"max_points": "1"}, 422, "invalid-field", "max_points"),
        (form(), {"confidence_percentile": "nan"}, 422, "invalid-field", "confidence_percentile"),
        (form(), {"reference": "2"}, 422, "invalid-field", "reference"),
        (form(), {"reference": "-1"}, 422, "invalid-field", "reference: Input should be"),
        (form(), {"reference": "first"}, 422, "invalid-field", "reference: Input should be"),
        (form(), {"reference": ["0", "1"]}, 422, "invalid-field", "more than once"),
        (form(), {"focal": "both"}, 422, "invalid-field", "focal"),
        (form(), {"focal": "-3"}, 422, "invalid-field", "focal"),
        (form(), {"focal": "nan"}, 422, "invalid-field", "focal"),
        (form(), {"images": "none"}, 422, "invalid-field", "images"),
        ([*form(), ("model", ("m.jpg", jpeg(), "image/jpeg"))], {}, 422, "invalid-field", "model"),
        ([*form(), ("photo", ("m.jpg", jpeg(), "image/jpeg"))], {}, 422, "unknown-field", "'photo'"),
    ],
)
async def test_what_is_wrong_is_refused_clearly(settings, photos, fields, status, kind, words):
    async with working(settings), serving(settings) as client:
        answer = await client.post("/reconstruct", files=photos or None, data=fields)
        if not photos:  # then httpx sends no multipart form
            answer = await client.post("/reconstruct", files=[("model", (None, "fake"))])
        assert is_problem(answer, status, kind)
        assert words in answer.json()["detail"] + answer.json().get("suggestion", "")
        assert (await client.get("/health")).json()["queue"]["depth"] == 0
    assert stored(settings) == []


async def test_refusals_name_what_there_is(api):
    model = await api.post("/reconstruct", files=form(), data={"model": "gpt"})
    assert "fake" in model.json()["suggestion"]
    output = await api.post("/reconstruct", files=form(), data={"outputs": "scene.obj"})
    assert "scene.ply" in output.json()["suggestion"]
    field = await api.post("/reconstruct", files=form(), data={"mesh": "1"})
    assert "max_points" in field.json()["suggestion"]


async def trickle(client: httpx.AsyncClient, headers: dict[str, str], parts: AsyncIterator[bytes]) -> tuple[str, int]:
    """Send a body until the answer comes, however much there would be; the answer's text and the bytes sent."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join(["POST /reconstruct HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())
    answer = asyncio.create_task(reader.readuntil(b"}"))
    sent = 0
    async for part in parts:
        if answer.done():
            break
        writer.write(b"%x\r\n%s\r\n" % (len(part), part) if "Transfer-Encoding" in headers else part)
        await writer.drain()
        sent += len(part)
    text = (await asyncio.wait_for(answer, 10)).decode()
    writer.close()
    return text, sent


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


async def test_a_body_over_the_limit_is_refused_while_it_streams(api, settings):
    async def endless():
        while True:
            yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
            for _ in range(7):
                yield b"x" * (1 << 17)
                await asyncio.sleep(0)
            yield b"\r\n"

    text, sent = await trickle(api, MULTIPART | {"Transfer-Encoding": "chunked"}, endless())
    assert "413" in text.splitlines()[0]
    assert '"body-too-large"' in text
    assert sent < settings.max_body_bytes + (16 << 20), "what lies in the sockets' buffers comes on top"
    honest, sent = await trickle(api, MULTIPART | {"Content-Length": str(500 << 20)}, nothing())
    assert '"body-too-large"' in honest
    assert sent == 0
    assert stored(settings) == []


async def nothing():
    for part in ():
        yield part


async def test_what_is_no_form_is_refused(api):
    assert is_problem(await api.post("/reconstruct", json={"images": []}), 415, "not-multipart")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert is_problem(
        await api.post("/reconstruct", content=b"--c\r\nnonsense", headers=headers), 400, "malformed-form"
    )
    no_boundary = {"Content-Type": "multipart/form-data"}
    assert is_problem(await api.post("/reconstruct", content=b"x", headers=no_boundary), 400, "malformed-form")


async def no_models(self):
    return []


async def test_the_same_request_makes_one_job(api, settings, monkeypatch):
    key = {"Idempotency-Key": "5f1c"}
    first = await api.post("/reconstruct", files=form(), data=SMALL, headers=key)
    second = await api.post("/reconstruct", files=form(), data=SMALL, headers=key)
    assert second.status_code in (200, 202)
    assert first.json()["id"] == second.json()["id"]
    other_photos = await api.post("/reconstruct", files=form("c.jpg", "d.jpg"), data=SMALL, headers=key)
    assert is_problem(other_photos, 409, "idempotency-conflict")
    other_options = await api.post("/reconstruct", files=form(), data=SMALL | {"reference": "1"}, headers=key)
    assert is_problem(other_options, 409, "idempotency-conflict")
    without = await api.post("/reconstruct", files=form(), data=SMALL)
    assert without.json()["id"] != first.json()["id"]
    monkeypatch.setattr(Backend, "models", no_models)
    again = await api.post("/reconstruct", files=form(), data=SMALL, headers=key)
    assert again.json()["id"] == first.json()["id"], "whatever is served by now"
    for job in (first, without):
        await ended(api, job.json()["id"])
    assert not [path for path in await settled(settings) if path.startswith("uploads")]


async def test_a_full_queue_is_429_before_the_body_is_read(settings):
    few = settings.model_copy(update={"queue_limit": 2, "require_worker": False})
    async with serving(few) as client:
        for _ in range(2):
            await post(client, model="geometry")
        text, _ = await trickle(client, MULTIPART | {"Content-Length": str(1 << 20)}, nothing())
        assert "429" in text.splitlines()[0]
        assert '"queue-full"' in text
        assert "retry-after: " in text.lower()
        position = [
            (await client.get(f"/jobs/{path.parent.name}")).json()["queue_position"]
            for path in sorted((few.data_dir / "uploads").glob("*/0"), key=lambda path: path.stat().st_mtime_ns)
        ]
        assert position == [0, 1]


async def test_a_body_that_does_not_come_gives_its_place_back(settings, monkeypatch):
    """Nothing for long, or a little for ever."""

    async def drops(pause):
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
        while True:
            await asyncio.sleep(pause)
            yield b"x"

    one = settings.model_copy(update={"max_uploads": 1, "require_worker": False})
    chunked = MULTIPART | {"Transfer-Encoding": "chunked"}
    monkeypatch.setattr(uploads, "STALL_SECONDS", 0.5)
    async with serving(one) as client:
        text, _ = await trickle(client, chunked, drops(2))
        assert "408" in text.splitlines()[0]
        assert "Nothing arrived" in text
        assert (await client.post("/reconstruct", files=form(), data=SMALL)).status_code == 202
    async with serving(one.model_copy(update={"upload_seconds": 0.4})) as client:
        text, _ = await trickle(client, chunked, drops(0.05))
        assert "408" in text.splitlines()[0]
        assert "took too long" in text
    assert len({path.split("/")[1] for path in stored(settings)}) == 1


async def test_uploads_are_bounded(settings):
    one = settings.model_copy(update={"max_uploads": 1, "require_worker": False})
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow_body():
        yield b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
        started.set()
        await go_on.wait()
        yield b"geometry\r\n--b--\r\n"

    async with serving(one) as client:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        first = asyncio.create_task(client.post("/reconstruct", content=slow_body(), headers=headers))
        await started.wait()
        await asyncio.sleep(0.1)
        second = await client.post("/reconstruct", files=form())
        assert is_problem(second, 429, "too-many-uploads")
        assert second.headers["retry-after"]
        go_on.set()
        assert is_problem(await first, 422, "too-few-photos")
        assert (await client.post("/reconstruct", files=form(), data={"model": "geometry"})).status_code == 202


async def test_an_interrupted_upload_leaves_nothing(settings):
    async with working(settings), serving(settings) as client:
        url = client.base_url
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST /reconstruct HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        part = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n' + jpeg()
        writer.write(head.encode() + b"Content-Length: 100000\r\n\r\n" + part)
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.1)
        assert stored(settings) == []
        assert await ended(client, await post(client))


async def test_without_a_worker_there_is_no_service(settings):
    async with serving(settings) as client:
        answer = await client.post("/reconstruct", files=form())
        assert is_problem(answer, 503, "no-worker")
        assert answer.headers["retry-after"]
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert "no worker" in ready.json()["reasons"][0]
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/models")).json()["models"][0]["name"] == "geometry"


async def test_who_is_there_and_ready(api):
    assert (await api.get("/livez")).status_code == 200
    assert (await api.get("/readyz")).json() == {"ready": True, "reasons": []}
    health = (await api.get("/health")).json()
    assert health["queue"]["depth"] == 0
    (worker,) = (await api.get("/workers")).json()["workers"]
    assert health["workers"][0]["id"] == worker["id"]
    assert (worker["state"], worker["engine"]) == ("ready", "cpu")
    assert worker["last_check"]["ok"] is True
    assert 0 < worker["device"]["memory_used"] < worker["device"]["memory_total"]
    (model,) = (await api.get("/models")).json()["models"]
    assert (model["name"], model["default"], model["max_batch"]) == ("fake", True, 8)


async def test_metrics_count_requests_by_route(api):
    await ended(api, await post(api))
    await api.get("/nowhere")
    text = (await api.get("/metrics")).text
    assert 'scenelift_http_requests_total{method="POST",route="/reconstruct",status="202"} 1.0' in text
    assert 'route="/jobs/{id}"' in text
    assert 'route="unmatched",status="404"} 1.0' in text
    assert "scenelift_queue_depth 0.0" in text
    while 'scenelift_workers{state="busy"} 1.0' in text:  # at its last heartbeat
        await asyncio.sleep(0.05)
        text = (await api.get("/metrics")).text
    assert 'scenelift_workers{state="ready"} 1.0' in text


async def test_every_error_is_a_problem(api):
    assert is_problem(await api.get("/nowhere"), 404, "not-found")
    assert is_problem(await api.put("/jobs/x"), 405, "method-not-allowed")
    for job in ("x", "A" * 22, "..%2f..%2fetc", "A" * 5000):
        assert is_problem(await api.get(f"/jobs/{job}"), 404, "unknown-job" if "%" not in job else "not-found")
    key = {"Idempotency-Key": "k" * 300}
    assert is_problem(await api.post("/reconstruct", files=form(), headers=key), 422, "invalid-request")


async def test_the_queue_being_away_is_said(settings):
    async with serving(settings.model_copy(update={"redis_url": "unix:///nowhere.sock"})) as client:
        for answer in (await client.get("/jobs/" + "A" * 22), await client.post("/reconstruct", files=form())):
            assert is_problem(answer, 503, "queue-unreachable")
            assert answer.headers["retry-after"]
        assert (await client.get("/readyz")).json()["reasons"] == ["The queue cannot be reached."]
        assert (await client.get("/health")).json()["queue"] is None
        assert (await client.get("/livez")).status_code == 200


async def test_a_job_whose_acceptance_was_never_heard_of_is_done(api, monkeypatch):
    """The connection to the queue breaks just after the job was queued: its photos stay, and a second try finds it."""
    enqueue = Queue.enqueue

    async def cut_off(self, *arguments, **more):
        monkeypatch.setattr(Queue, "enqueue", enqueue)
        await enqueue(self, *arguments, **more)
        raise RedisConnectionError

    monkeypatch.setattr(Queue, "enqueue", cut_off)
    request = {"files": form(), "data": SMALL, "headers": {"Idempotency-Key": "k"}}
    assert is_problem(await api.post("/reconstruct", **request), 503, "queue-unreachable")
    again = await api.post("/reconstruct", **request)
    assert again.status_code in (200, 202)
    assert (await ended(api, again.json()["id"]))["status"] == "succeeded"


async def test_a_full_disk_takes_no_photos(api, settings, monkeypatch):
    async def full(self, path, data):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(Storage, "put", full)
    assert is_problem(await api.post("/reconstruct", files=form(), data=SMALL), 507, "disk-full")
    assert stored(settings) == []


async def test_a_bug_is_a_problem_without_a_trace(settings, monkeypatch):
    async def broken(self, job):
        raise RuntimeError("at /etc/secret")

    monkeypatch.setattr(Queue, "document", broken)
    async with serving(settings) as client:
        answer = await client.get("/jobs/" + "A" * 22)
        assert is_problem(answer, 500, "internal-error")
        assert "secret" not in answer.text


async def test_job_ids_cannot_be_guessed(settings):
    many = settings.model_copy(update={"require_worker": False})
    async with serving(many) as client:
        ids = {await post(client, model="geometry") for _ in range(5)}
    assert len(ids) == 5
    assert all(len(job) == 22 for job in ids)


async def test_stopping_ends_what_waits(settings):
    async with serving(settings.model_copy(update={"require_worker": False})) as client:
        job = await post(client, model="geometry")
        listening = asyncio.create_task(events(client, job))
        waiting = asyncio.create_task(
            client.post("/reconstruct", files=form(), data={"model": "geometry"}, headers={"Prefer": "wait=60"})
        )
        await asyncio.sleep(0.3)
        client.app.state.backend.watcher.stop()
        assert [document["status"] for document in await listening] == ["queued"]
        assert (await waiting).status_code == 202
        assert is_problem(await client.post("/reconstruct", files=form()), 503, "draining")
        assert (await client.get("/readyz")).json()["reasons"] == ["This server is stopping."]


def test_the_committed_description_is_this_one():
    committed = Path(__file__).parents[2] / "openapi.json"
    assert committed.read_text() == openapi_text(), "run: scenelift openapi -o openapi.json"


def test_the_description_tells_of_the_form():
    description = json.loads(openapi_text())
    form = description["paths"]["/reconstruct"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {*FILES, *FIELDS}
    assert "ProblemDocument" in description["components"]["schemas"]


async def test_photos_of_every_size_and_turn(api):
    buffer = io.BytesIO()
    image = Image.new("RGB", (200, 100), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(buffer, "JPEG", exif=exif)
    answer = await api.post("/reconstruct", files=files(buffer.getvalue(), jpeg()), data=SMALL)
    assert [(view["width"], view["height"]) for view in answer.json()["views"]] == [(100, 200), (96, 72)]
    assert (await ended(api, answer.json()["id"]))["status"] == "succeeded"
