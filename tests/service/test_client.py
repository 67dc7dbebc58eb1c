"""The client against the running service; against a relay that breaks what it carries; against a service that lies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from service import client as module
from service.client import (
    ADDRESS,
    AsyncScenelift,
    JobCanceled,
    JobFailed,
    Scenelift,
    SceneliftError,
    ServiceError,
    Timeout,
    UnexpectedAnswer,
    Unreachable,
    Wishes,
)
from service.keys import Keys
from service.storage import Storage
from service.uploads import FIELDS
from tests.service.support import ended, jpeg, serving, settled, stored, working, zipped

ROOT = Path(__file__).parents[2]
FEW = ["cameras.json", "scene.splat"]
"""Outputs that are few and quick."""


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.delenv("SCENELIFT_API_KEY", raising=False)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)


@pytest.fixture
async def service(api) -> AsyncIterator[AsyncScenelift]:
    async with AsyncScenelift(str(api.base_url)) as service:
        yield service


def photos(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names or ("a.jpg", "b.jpg")]
    for i, path in enumerate(paths):
        path.write_bytes(jpeg(i))
    return paths


async def test_the_whole_way_blocking(api, tmp_path):
    """In a thread, as the service runs on this loop."""
    documents, sent, received = [], [], []

    def whole_way():
        with Scenelift(str(api.base_url)) as service:
            assert service.health().ready
            assert [model.name for model in service.models()] == ["fake"]
            assert [worker.state for worker in service.workers()] == ["ready"]
            job = service.reconstruct(
                photos(tmp_path, "steady.jpg", "b.jpg"),
                model="fake",
                confidence_percentile=5,
                outputs=FEW,
                max_points=2000,
                reference="auto",
                focal=70.5,
                on_upload=lambda *done: sent.append(done),
            )
            assert job.wait(on_progress=documents.append, timeout=20) is job
            paths = job.download(tmp_path / "scene", on_progress=lambda *done: received.append(done))
            link = job.share(60)
            linked = httpx.get(link.links.self), httpx.get(link.files[0].url)
            assert service.job(job.id).refresh().document == job.document
            job.delete()
            with pytest.raises(ServiceError, match="no such job") as gone:
                service.job(job.id)
            assert (gone.value.status, gone.value.type, gone.value.title) == (404, "unknown-job", "Unknown job")
            job.delete()  # is as gone as before
            return job.document, paths, linked

    document, paths, linked = await asyncio.to_thread(whole_way)
    assert document.status == "succeeded"
    assert document.options.model_dump() == {
        "confidence_percentile": 5.0,
        "outputs": tuple(FEW),
        "max_points": 2000,
        "reference": "auto",
        "focal": 70.5,
    }
    assert [view.name for view in document.views] == ["steady.jpg", "b.jpg"]
    heard = [document.progress for document in documents]
    assert len(heard) > 3
    assert heard == sorted(heard)
    assert documents[-1] == document
    assert paths == [tmp_path / "scene" / name for name in FEW]
    assert sorted(path.name for path in (tmp_path / "scene").iterdir()) == FEW, "no part is left"
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert digests == [file.sha256 for file in document.files]
    assert linked[0].json()["id"] == document.id
    assert linked[1].content == paths[0].read_bytes()
    for steps, total in ((sent, sent[0][1]), (received, sum(file.bytes for file in document.files))):
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1] == (total, total)


async def test_the_whole_way_awaited(service, tmp_path):
    documents = []
    assert (await service.health()).queue.depth == 0
    assert [model.default for model in await service.models()] == [True]
    assert len(await service.workers()) == 1
    job = await service.reconstruct([jpeg(1), jpeg(2), str(*photos(tmp_path, "c.jpg"))], outputs=FEW)
    await job.wait(on_progress=documents.append)
    assert documents[-1] == job.document == (await service.job(job.id)).document
    assert [view.name for view in job.document.views] == ["photo 1", "photo 2", "c.jpg"]
    (path,) = await job.download(str(tmp_path / "out" / "deep"), "scene.splat")
    assert path == tmp_path / "out" / "deep" / "scene.splat"
    with pytest.raises(SceneliftError, match=r"no file 'scene\.obj'; it has cameras\.json, scene\.splat\."):
        await job.download(tmp_path, "scene.obj")
    link = await job.share()
    assert link.links.files.startswith("http://127.0.0.1:")
    await job.delete()


class Relay:
    """Between a client and the service: carries what they say, but for what it is told to do to coming requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.url = ""
        self.requests: list[tuple[str, dict[str, str]]] = []
        """The first line without the version, and the headers, of all that came."""
        self.bodies: list[bytes] = []
        self.plans: list[tuple[str, str | bytes | int | float]] = []
        """For the next request whose line starts so: an answer to give instead (bytes), or to begin and never to end
        (str); how many bytes of the answer (int) or how much of the body (float, a share) to carry before the
        connection is cut."""

    def asked(self, *starts: str) -> list[dict[str, str]]:
        """The headers of requests."""
        return [headers for line, headers in self.requests if line.startswith(starts)]

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self._port)
        left = [1 << 40]
        answers = asyncio.create_task(self._answers(back, writer, left))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *pairs = head.decode().strip().split("\r\n")
                headers = {name.lower(): value for name, value in (pair.split(": ", 1) for pair in pairs)}
                line = line.rpartition(" ")[0]
                self.requests.append((line, headers))
                plan = next((plan for plan in self.plans if line.startswith(plan[0])), None)
                if plan is not None:
                    self.plans.remove(plan)
                what = plan and plan[1]
                size = int(headers.get("content-length", 0))
                if isinstance(what, float):
                    forth.write(head + await reader.readexactly(int(what * size)))
                    await forth.drain()
                    await asyncio.sleep(0.2)  # the server drops what it has not read when it hears of the end
                    break
                body = await reader.readexactly(size)
                self.bodies.append(body)
                if isinstance(what, bytes):
                    writer.write(what)
                    break
                if isinstance(what, str):
                    writer.write(what.encode())
                    await reader.read()  # until the client has enough of it
                    break
                if what is not None:
                    left[0] = what
                forth.write(head + body)
        await asyncio.sleep(0)
        for end in (writer, forth):
            with contextlib.suppress(ConnectionError):
                end.close()
                await end.wait_closed()
        await answers

    async def _answers(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await back.read(4096):
                writer.write(chunk[: left[0]])
                await writer.drain()
                left[0] -= len(chunk)
                if left[0] <= 0:
                    break
        writer.close()


@pytest.fixture
async def relay(api) -> AsyncIterator[Relay]:
    relay = Relay(api.base_url.port)
    server = await asyncio.start_server(relay.carry, "127.0.0.1", 0)
    relay.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield relay
    server.close()
    await server.wait_closed()


@pytest.fixture
async def relayed(relay) -> AsyncIterator[AsyncScenelift]:
    async with AsyncScenelift(relay.url) as service:
        yield service


def answer(status: str, body: object = "", *headers: str) -> bytes:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    length = (
        () if any(header.startswith("Content-Length") for header in headers) else (f"Content-Length: {len(content)}",)
    )
    head = (f"HTTP/1.1 {status}", *length, "Connection: close", *headers)
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


async def test_what_is_refused_is_said_in_a_sentence(service, relay, tmp_path):
    (photo,) = photos(tmp_path, "one.jpg")
    with pytest.raises(ServiceError, match=r"^1 photo cannot be .*: at least 2 are needed\. Send photos") as refused:
        await service.reconstruct(photo)
    assert (refused.value.status, refused.value.type) == (422, "too-few-photos")
    assert refused.value.suggestion.startswith("Send photos")
    with pytest.raises(ServiceError, match="no field 'colour'"):
        await service.reconstruct([photo, photo], colour="red")
    with pytest.raises(FileNotFoundError):
        await service.reconstruct([photo, tmp_path / "two.jpg"])
    relay.plans = [("GET /models", answer("404 Not Found", "<h1>A proxy's page</h1>"))]
    async with AsyncScenelift(relay.url) as relayed:
        with pytest.raises(ServiceError, match=r"^The service answered 404 Not Found\.$"):
            await relayed.models()
        relay.plans = [("GET /models", answer("200 OK", "<h1>Log in</h1>"))]
        with pytest.raises(UnexpectedAnswer, match="not Scenelift"):
            await relayed.models()
    async with AsyncScenelift("http://127.0.0.1:9", retries=1) as nobody:
        with pytest.raises(Unreachable, match=r"^http://127\.0\.0\.1:9 cannot be reached \(.*\)\.$") as nothing:
            await nobody.models()
        assert isinstance(nothing.value, SceneliftError | ConnectionError)


async def test_ends_that_are_no_success(service, tmp_path):
    job = await service.reconstruct(photos(tmp_path, "refuse.jpg", "b.jpg"))
    with pytest.raises(JobFailed, match=r"^These photos show different places\. Photograph one place\.$") as failed:
        await job.wait()
    assert failed.value.document == job.document
    assert job.status == "failed"
    job = await service.reconstruct(photos(tmp_path, "slow.jpg", "b.jpg"))
    began = asyncio.get_running_loop().time()
    with pytest.raises(Timeout, match="had not ended"):
        await job.wait(timeout=0.3)
    assert 0.3 <= asyncio.get_running_loop().time() - began < 2.5
    assert job.status in ("queued", "running")
    assert (await job.cancel()).status == "canceled"
    with pytest.raises(JobCanceled):
        await job.wait()
    with pytest.raises(JobCanceled):
        await (await service.job(job.id)).wait()


async def test_keys(api, settings, monkeypatch):
    _, key = await Keys(Storage.of(settings)).create("tests")
    monkeypatch.setenv("SCENELIFT_API_KEY", key)
    async with AsyncScenelift(str(api.base_url)) as service:
        assert (await service.health()).workers
    for wrong in ("sk_wrong", ""):
        async with AsyncScenelift(str(api.base_url), wrong) as service:
            with pytest.raises(ServiceError) as refused:
                await service.models()
            assert (refused.value.status, refused.value.type) == (401, "unauthorized")


async def test_one_job_however_often_it_had_to_be_sent(relay, relayed, settings, tmp_path, monkeypatch):
    post, sent = "POST /reconstruct", []
    busy, pauses = answer("429 Too Many Requests", "", "Retry-After: 7"), []

    async def pause(_: object, seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(module._Suspending, "pause", pause)
    relay.plans = [(post, 0.5), (post, busy), (post, answer("502 Bad Gateway")), (post, 0), (post, 20)]
    job = await relayed.reconstruct(photos(tmp_path), outputs=FEW, on_upload=lambda *done: sent.append(done))
    await job.wait()
    tries = relay.asked(post)
    assert len(tries) == 6
    assert pauses[1] == 7
    assert all(0.005 * 2**i <= seconds <= 0.01 * 2**i for i, seconds in enumerate(pauses[:5]) if i != 1), pauses
    assert len({headers["idempotency-key"] for headers in tries}) == 1
    assert await settled(settings) == [f"jobs/{job.id}/1/{name}" for name in FEW], "of one job alone"
    assert sent[-1] == (int(tries[-1]["content-length"]),) * 2
    again = await relayed.reconstruct(photos(tmp_path), outputs=FEW)
    assert again.id != job.id
    assert relay.asked(post)[-1]["idempotency-key"] != tries[0]["idempotency-key"]


async def test_what_is_not_tried_again(relay, relayed):
    relay.plans = [("GET /models", answer("500 Oh"))]
    relay.plans += [("GET /workers", answer("503 Service Unavailable", "", "Retry-After: 7200"))]
    with pytest.raises(ServiceError, match="answered 500"):
        await relayed.models()
    with pytest.raises(ServiceError, match="answered 503") as long:
        await relayed.workers()
    assert long.value.retry_after == 7200
    relay.plans = [("GET /jobs/x", answer("504 Late"))] * 9
    async with AsyncScenelift(relay.url, retries=3) as service:
        with pytest.raises(ServiceError, match="answered 504"):
            await service.job("x")
    assert [len(relay.asked(f"GET /{path}")) for path in ("models", "workers", "jobs/x")] == [1, 1, 4]


async def test_a_wait_outlives_its_stream(relay, relayed, tmp_path):
    job = await relayed.reconstruct(photos(tmp_path, "steady.jpg", "b.jpg"), outputs=FEW)
    relay.plans = [("GET /jobs", 1500)]  # in the second event, or the end of the first
    await job.wait(timeout=20)
    assert job.status == "succeeded"
    assert len(relay.asked(f"GET /jobs/{job.id}/events")) == 2
    assert not relay.asked(f"GET /jobs/{job.id} ")


async def test_a_wait_asks_where_no_stream_comes_through(api, relay, relayed, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.3)
    silent = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: nothing"
    page, forbidden = answer("200 OK", "<p>No streams"), answer("403 Forbidden")
    for name, blocked in (("a", page), ("b", forbidden), ("c", silent), ("steady", 0)):
        job = await relayed.reconstruct(photos(tmp_path, name, "d.jpg"), outputs=FEW)
        relay.plans = [(f"GET /jobs/{job.id}/events", blocked)]
        if name != "steady":
            await ended(api, job.id)
        before, heard = len(relay.requests), []
        await job.wait(timeout=20, on_progress=heard.append)
        assert heard[-1].status == "succeeded"
        asked = [line.removeprefix(f"GET /jobs/{job.id}") for line, _ in relay.requests[before:]]
        assert asked == ["/events"] + [""] * (len(asked) - 1)
        assert 2 <= len(asked) <= 4, "not more often than the service wants"


async def test_a_job_that_goes_ends_the_wait(service, api, tmp_path):
    job = await service.reconstruct(photos(tmp_path, "slow.jpg", "b.jpg"))
    gone = asyncio.create_task(job.wait())
    await asyncio.sleep(0.1)
    assert (await api.delete(f"/jobs/{job.id}")).status_code == 204
    with pytest.raises((ServiceError, JobCanceled)):
        await gone


async def test_downloads_go_on_where_they_broke(relay, relayed, api, tmp_path):
    job = await (await relayed.reconstruct(photos(tmp_path), outputs=FEW)).wait()
    url, target = f"GET /jobs/{job.id}/files/scene.splat", tmp_path / "out" / "scene.splat"
    content = (await api.get(url[4:])).content
    relay.plans = [(url, 20_000), (url, 0), (url, answer("503 Busy")), (url, 30_000)]
    counted = []
    assert await job.download(target.parent, "scene.splat", on_progress=lambda *done: counted.append(done)) == [target]
    assert target.read_bytes() == content
    begun = [int(headers.get("range", "bytes=0-")[6:-1]) for headers in relay.asked(url)]
    assert begun[0] == 0
    assert 0 < begun[1] == begun[2] == begun[3] < begun[4], begun
    assert [done for done, _ in counted] == sorted(done for done, _ in counted), "nothing was fetched twice"
    assert counted[-1] == (len(content), len(content))
    assert list(target.parent.iterdir()) == [target]
    await job.download(target.parent, "scene.splat")
    assert len(relay.asked(url)) == 5, "what is there is not fetched again"

    target.write_bytes(b"\0" * len(content))
    async with AsyncScenelift(relay.url, retries=0) as hasty:
        relay.plans = [(url, 20_000)]
        with pytest.raises(Unreachable, match="broke the connection"):
            await (await hasty.job(job.id)).download(target.parent)
        assert target.read_bytes() == b"\0" * len(content), "half a file has no name of its own"
        (part,) = target.parent.glob(".scene.splat.*.part")
        assert content.startswith(part.read_bytes())
        part.write_bytes(b"spoilt" + part.read_bytes()[6:])
        await (await hasty.job(job.id)).download(target.parent)
    assert target.read_bytes() == content
    assert sorted(path.name for path in target.parent.iterdir()) == FEW


async def test_a_file_may_lie_in_a_bucket(relay, api, settings, tmp_path):
    """Where its link needs no key, and is not to have it."""
    _, key = await Keys(Storage.of(settings)).create("tests")
    bucket = await asyncio.start_server(relay.carry, "127.0.0.1", 0)
    link = f"http://127.0.0.1:{bucket.sockets[0].getsockname()[1]}/bucket/1?signed"
    async with AsyncScenelift(relay.url, key) as service:
        job = await (await service.reconstruct(photos(tmp_path), outputs=FEW)).wait()
        url = f"/jobs/{job.id}/files/cameras.json"
        content = (await api.get(url, headers={"X-API-Key": key})).text
        relay.plans = [(f"GET {url}", answer("307 There", "", f"Location: {link}"))] * 2
        relay.plans += [("GET /bucket", answer("200 OK", content[:50], f"Content-Length: {len(content)}"))]
        relay.plans += [("GET /bucket", answer("206 Part", content[50:], f"Content-Range: bytes 50-{len(content)}/*"))]
        (path,) = await job.download(tmp_path, "cameras.json")
    bucket.close()
    assert path.read_text() == content
    assert [headers.get("range") for headers in relay.asked("GET /bucket")] == [None, "bytes=50-"]
    assert all("authorization" in headers for headers in relay.asked(f"GET {url}"))
    assert not any("authorization" in headers for headers in relay.asked("GET /bucket"))


async def test_a_file_that_is_not_what_it_should_be_gets_no_name(relay, relayed, tmp_path):
    job = await (await relayed.reconstruct(photos(tmp_path), outputs=FEW)).wait()
    url, size = f"GET /jobs/{job.id}/files/scene.splat", job.document.files[1].bytes
    for lie in ("x" * size, "x" * (size + 9), "short"):
        relay.plans = [(url, answer("200 OK", lie))] * 2
        with pytest.raises(UnexpectedAnswer, match=r"scene\.splat did not arrive"):
            await job.download(tmp_path / "out", "scene.splat")
        assert not list((tmp_path / "out").iterdir())


async def test_hostile_names_are_no_paths(relay, relayed, tmp_path):
    job = await (await relayed.reconstruct(photos(tmp_path), outputs=FEW)).wait()
    document = job.document.model_dump(mode="json")
    home = tmp_path / "a" / "home"
    home.mkdir(parents=True)
    for name in ("../evil.ply", "/etc/evil.ply", "..", "a/b.ply", "a\\b.ply", ".bashrc", "c:evil", "nul\0", "e\n", ""):
        document["files"][0]["name"] = name
        relay.plans = [("GET /jobs", answer("200 OK", document))]
        hostile = await relayed.job(job.id)
        asked = len(relay.requests)
        with pytest.raises(UnexpectedAnswer, match="not a plain name"):
            await hostile.download(home / "scene")
        assert list((tmp_path / "a").rglob("*")) == [home], name
        assert len(relay.requests) == asked


async def test_large_photos_go_on_where_they_broke(relay, relayed, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RESUMABLE_BYTES", 1000)
    paths, sent = photos(tmp_path, "a.jpg", "b ä.jpg"), []
    past = "Retry-After: Sun, 22 Nov 2015 08:49:37 GMT"
    relay.plans = [("POST /up", 0), ("PATCH", 0.5), ("PATCH", 0), ("HEAD", answer("503 Busy", "", past))]
    job = await relayed.reconstruct(paths, outputs=FEW, on_upload=lambda *done: sent.append(done))
    await job.wait()
    assert [view.name for view in job.document.views] == ["a.jpg", "b ä.jpg"]
    sizes = [path.stat().st_size for path in paths]
    assert sent[-1] == (sum(sizes), sum(sizes))
    offsets = [int(headers["upload-offset"]) for headers in relay.asked("PATCH")]
    assert any(0 < offset < sizes[0] for offset in offsets), "half of the first had arrived, and was not sent again"
    assert await settled(settings) == [f"jobs/{job.id}/1/{name}" for name in FEW], "the uploads are used up"
    with pytest.raises(ServiceError, match="There is no output"):
        await relayed.reconstruct(paths, outputs=["scene.obj"])
    assert len(stored(settings)) == 2, "nor does anything stay of what was refused"


async def test_a_key_of_ones_own_makes_one_job(service, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RESUMABLE_BYTES", 1000)
    paths = photos(tmp_path)
    first, second = [await service.reconstruct(paths, outputs=FEW, idempotency_key="mine") for _ in range(2)]
    assert first.id == second.id
    with pytest.raises(ServiceError) as conflict:
        await service.reconstruct(paths, max_points=5000, idempotency_key="mine")
    assert conflict.value.type == "idempotency-conflict"


async def test_archives_and_videos_are_told_apart(relay, relayed, tmp_path):
    archive = zipped({"1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    job = await relayed.reconstruct(archive, outputs=FEW)
    assert [view.name for view in job.document.views] == ["1.jpg", "2.jpg"]
    film = tmp_path / "walk.mp4"
    film.write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    relay.plans = [("POST", answer("422 No"))]
    with pytest.raises(ServiceError):
        await relayed.reconstruct([film], frames=5)
    assert b'name="video"; filename="walk.mp4"' in relay.bodies[-1]
    assert b'name="frames"\r\n\r\n5' in relay.bodies[-1]


def test_there_is_a_keyword_for_every_field():
    ours = {"idempotency_key", "on_upload"}
    assert set(Wishes.__annotations__) == set(FIELDS) - {"uploads", "image_urls"} | ours


def test_the_client_is_light():
    program = (
        "import sys, service.client\n"
        "print(*sorted({'fastapi', 'numpy', 'redis', 'PIL', 'obstore', 'uvicorn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("\n", 0), result.stderr


async def test_the_examples_run(api, tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    photos(tmp_path / "photos", "1.jpg", "2.jpg", "3.jpg")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "client.md").read_text().replace(ADDRESS, str(api.base_url))
    first, second = (compile(code, "client.md", "exec") for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    await asyncio.to_thread(exec, first, {})
    assert sorted(path.name for path in Path("scene").iterdir()) == ["cameras.json", "scene.glb"]
    printed = capsys.readouterr().out
    assert "100% " in printed
    (link,) = re.findall(r"for an hour: (\S+)", printed)
    page, token = link.split("#token=")
    assert (await api.get(page)).headers["content-type"].startswith("text/html")
    job = page.rpartition("/")[2]
    assert (await api.get(f"/jobs/{job}", params={"token": token})).json()["status"] == "succeeded"
    await asyncio.to_thread(exec, second, {})
    assert Path("scene/scene.ply").read_bytes().startswith(b"ply")


@pytest.fixture
def browser_page() -> Iterator[tuple[str, list[str]]]:
    """Where docs/browser.html is served from, and where it takes its service to be: to be set before it is opened."""
    service: list[str] = []

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = (ROOT / "docs" / "browser.html").read_text().replace(ADDRESS, service[0]).encode()
            self.send_response(200 if self.path == "/" else 404)
            self.end_headers()
            self.wfile.write(page if self.path == "/" else b"")

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", service
        server.shutdown()
        thread.join()


async def test_the_browser_example(settings, browser_page, tmp_path):
    playwright = pytest.importorskip("playwright.async_api", reason="Playwright, which drives the browser, is not here")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium to open the page with")
    playwright.expect.set_options(timeout=30_000)
    origin, service = browser_page
    async with (
        working(settings),
        serving(settings.model_copy(update={"cors_origins": origin})) as api,
        playwright.async_playwright() as driver,
    ):
        service.append(str(api.base_url))
        options = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
        browser = await driver.chromium.launch(executable_path=chromium, args=options)
        page = await browser.new_page(viewport={"width": 480, "height": 640})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(origin)
        text, preview = page.locator("#text"), page.locator("#preview")

        await page.set_input_files("#photos", photos(tmp_path, "alone.jpg"))
        await playwright.expect(text).to_contain_text("1 photo cannot be reconstructed: at least 2 are needed. Send")
        await page.set_input_files("#photos", photos(tmp_path, "refuse.jpg", "b.jpg"))
        await playwright.expect(text).to_have_text("These photos show different places. Photograph one place.")
        assert await preview.is_hidden()

        await page.evaluate(
            "new MutationObserver(() => (window.seen ??= []).push(bar.value)).observe(bar, { attributes: true })"
        )
        await page.set_input_files("#photos", photos(tmp_path, "steady.jpg", "b.jpg", "c.jpg"))
        await playwright.expect(text).to_have_text("succeeded")
        await playwright.expect(preview).to_be_visible()
        await page.wait_for_function("preview.naturalWidth > 0")
        seen = await page.evaluate("seen")
        assert seen[-1] == 1
        assert len(set(seen)) > 3, "the progress was shown as it came"
        if folder := os.environ.get("SCENELIFT_TESTS_PICTURES"):
            await page.screenshot(path=Path(folder) / "browser-example.png")
        assert {str(httpx.URL(url).join("/")).rstrip("/") for url in asked} == {origin, service[0]}, (
            "nothing from elsewhere"
        )
        await browser.close()
