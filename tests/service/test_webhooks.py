"""Receivers listen on loopback, which is allowed here; where it is not, a table resolves and nobody is asked."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import redis
from typer.testing import CliRunner

from service import webhooks
from service.cli import app as command_line
from service.errors import Problem
from service.jobs import OUTBOX, Queue, connect, end_task
from service.schemas import Options
from service.storage import Storage
from service.webhooks import Webhooks, signing_secret
from tests.service.support import SMALL, as_environment, ended, form, serving, working

PHOTOS = [{"name": "a.jpg", "width": 4, "height": 3}] * 2
PUBLIC = "93.184.216.34"


class Receiver:
    """Answers with the statuses it is given, the last for ever, and keeps what it got."""

    def __init__(self, *statuses: int, headers: str = "") -> None:
        self.statuses = list(statuses or (204,))
        self.headers = headers
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.url = ""
        self.connections: list[asyncio.StreamWriter] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        pairs = (line.split(": ", 1) for line in head.strip().split("\r\n")[1:])
        headers = {name.lower(): value for name, value in pairs}
        self.got.append((headers, await reader.readexactly(int(headers["content-length"]))))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        writer.write(f"HTTP/1.1 {status} Fine\r\n{self.headers}Content-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        self.connections.append(writer)


@asynccontextmanager
async def receiving(*statuses: int, headers: str = "") -> AsyncIterator[Receiver]:
    receiver = Receiver(*statuses, headers=headers)
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?token=private"
    async with server:
        yield receiver
    for connection in receiver.connections:  # else some are open yet when the loop ends
        with contextlib.suppress(OSError):
            await connection.wait_closed()


@pytest.fixture
def settings(settings, monkeypatch):
    monkeypatch.setattr(webhooks, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(webhooks, "PAUSES", (0.02,) * 5)
    return settings.model_copy(update={"webhook_private": True, "require_worker": False})


@pytest.fixture
async def queue(queue):
    await queue.join()
    return queue


async def add(queue: Queue, job: str, url: str) -> None:
    assert await queue.enqueue(job, "fake", Options(), PHOTOS, webhook=url) == ("new", job)


async def told(queue: Queue, job: str, *states: str, seconds: float = 10) -> dict:
    """The delivery, once it is in one of these states."""
    deadline = time.monotonic() + seconds
    while True:
        found = (await queue.document(job)).webhook.model_dump()
        if found["state"] in states:
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.01)


@asynccontextmanager
async def sending(settings, queue, **parts) -> AsyncIterator[Webhooks]:
    sender = Webhooks(settings, queue, Storage(settings.data_dir), **parts)
    task = asyncio.create_task(sender.run())
    yield sender
    await end_task(task)


def signed(headers: dict[str, str], body: bytes, secret: str) -> bool:
    """As a receiver checks it, from the specification."""
    message = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), message, hashlib.sha256).digest()
    return headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


async def test_the_end_of_a_job_is_told_and_signed(settings):
    async with receiving() as receiver, working(settings), serving(settings) as client:
        fields = SMALL | {"webhook_url": receiver.url}
        posted = (await client.post("/reconstruct", files=form(), data=fields)).json()
        assert posted["webhook"] == {
            "url": receiver.url.partition("?")[0],
            "state": posted["webhook"]["state"],
            "tries": 0,
            "last_status": None,
        }
        job = posted["id"]
        assert (await ended(client, job))["status"] == "succeeded"
        state = await told(client.app.state.backend.queue, job, "delivered")
        assert (state["tries"], state["last_status"]) == (1, 204)
        ((headers, body),) = receiver.got
        event = json.loads(body)
        assert event["type"] == "job.succeeded"
        assert (event["data"]["id"], event["timestamp"]) == (job, event["data"]["finished_at"])
        assert [file["name"] for file in event["data"]["files"]] == ["cameras.json", "scene.splat"]
        assert b"token=private" not in body
        assert headers["content-type"] == "application/json"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
        secret = await signing_secret(settings, Storage(settings.data_dir))
        assert signed(headers, body, secret)
        assert not signed(headers, body + b" ", secret)

        again = await client.post(f"/jobs/{job}/webhook")
        assert (again.status_code, again.json()["webhook"]["state"]) == (202, "pending")
        assert 'scenelift_webhooks_total{outcome="delivered"} 1.0' in (await client.get("/metrics")).text
        await told(client.app.state.backend.queue, job, "delivered")
        assert [headers["webhook-id"] for headers, _ in receiver.got] == [headers["webhook-id"]] * 2

        links = (await client.post(f"/jobs/{job}/links")).json()
        assert (await client.get(links["links"]["self"])).json()["webhook"] is None, "a link shows no webhook"


async def test_a_webhook_belongs_to_the_request_of_an_idempotency_key(settings):
    async with receiving() as receiver, serving(settings) as client:
        answers = [
            await client.post("/reconstruct", files=form(), data=SMALL | hook, headers={"Idempotency-Key": "k"})
            for hook in ({"webhook_url": receiver.url}, {"webhook_url": receiver.url}, {})
        ]
        assert [answer.status_code for answer in answers] == [202, 202, 409]
        job = answers[0].json()["id"]
        assert (await client.post(f"/jobs/{job}/webhook")).json()["type"] == "not-finished"
        await client.post(f"/jobs/{job}/cancel")
        await told(client.app.state.backend.queue, job, "delivered")
        assert [json.loads(body)["type"] for _, body in receiver.got] == ["job.canceled"]
        bare = (await client.post("/reconstruct", files=form(), data=SMALL)).json()
        assert bare["webhook"] is None
        assert (await client.post(f"/jobs/{bare['id']}/webhook")).json()["type"] == "no-webhook"


@pytest.mark.parametrize(
    ("statuses", "state", "tries"),
    [
        ((500, 503, 200), "delivered", 3),
        ((500,), "failed", 6),
        ((410,), "failed", 1),
        ((302, 201), "delivered", 2),
        ((404, 299), "delivered", 2),
    ],
)
async def test_tries_go_on_until_it_is_taken_or_given_up(settings, queue, statuses, state, tries):
    async with (
        receiving() as elsewhere,
        receiving(*statuses, headers=f"Location: {elsewhere.url}\r\n") as receiver,
        sending(settings, queue),
    ):
        await add(queue, "a", receiver.url)
        await queue.cancel("a")
        found = await told(queue, "a", "delivered", "failed")
        assert (found["state"], found["tries"], found["last_status"]) == (state, tries, statuses[-1])
        assert len(receiver.got) == tries
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
        assert elsewhere.got == [], "redirects are not followed"
        assert await queue.due(1.0) is None


async def test_tries_are_further_and_further_apart_by_chance(settings, queue, monkeypatch):
    monkeypatch.setattr(webhooks, "PAUSES", (100.0, 400.0))
    async with receiving(500) as receiver, sending(settings, queue):
        pauses = []
        for job in "abcdefgh":
            await add(queue, job, receiver.url)
            await queue.cancel(job)
        async with asyncio.timeout(10):
            while len(receiver.got) < 8 or len(pauses) < 8:
                await asyncio.sleep(0.02)
                raw = connect(settings.queue_url)
                scores = await raw.zrange(OUTBOX, 0, -1, withscores=True)
                await raw.aclose()
                pauses = [due - time.time() for _, due in scores if due - time.time() > webhooks.LEASE_SECONDS + 1]
    assert all(70 < pause < 130 for pause in pauses)
    assert max(pauses) - min(pauses) > 1


async def test_every_way_to_end_is_told(settings, queue):
    """Failed, canceled while it ran, and convicted of killing its workers."""
    reader = connect(settings.queue_url, blocking=True)
    strict = Queue(settings.model_copy(update={"max_attempts": 1}))
    async with receiving() as receiver:
        for job in ("failed", "canceled", "convicted"):
            await add(queue, job, receiver.url)
        entries = dict(reversed(pair) for pair in await queue.read(reader, "w", 9, 20))
        for job, entry in entries.items():
            await strict.take(entry, job, "w")
        assert await queue.due(1.0) is None, "nothing is told before the end"
        error = {"type": "x", "detail": "It did not work."}
        assert await queue.finish("failed", "w", 1, "failed", {"error": error})
        assert await queue.finish("canceled", "w", 1, "canceled", {})
        assert await strict.take(entries["convicted"], "convicted", "w") == "convicted"
        async with sending(settings, queue):
            for job in entries:
                await told(queue, job, "delivered")
        assert sorted(json.loads(body)["type"] for _, body in receiver.got) == [
            "job.canceled",
            "job.failed",
            "job.failed",
        ]
    await strict.close()
    await reader.aclose()


async def test_what_a_dead_sender_had_in_hand_another_sends(settings, queue):
    async with receiving() as receiver:
        await add(queue, "a", receiver.url)
        await queue.cancel("a")
        late = await queue.due(0.1)
        assert (late.job, late.tries) == ("a", 0)
        assert await queue.due(0.1) is None, "one at a time"
        await asyncio.sleep(0.15)
        now = await queue.due(5.0)
        assert not await queue.settle(late, "failed", 500), "its turn is over"
        assert await queue.settle(now, "pending", None, 0.0)
        assert (await queue.document("a")).webhook.model_dump(exclude={"url"}) == {
            "state": "pending",
            "tries": 1,
            "last_status": None,
        }
        async with sending(settings, queue), sending(settings, queue):
            await told(queue, "a", "delivered")
        assert len(receiver.got) == 1


async def test_of_a_removed_job_nothing_is_told(settings, queue):
    async with receiving() as receiver:
        for job in ("before", "meanwhile", "here"):
            await add(queue, job, receiver.url)
        await queue.cancel("before")
        await queue.cancel("meanwhile")
        await queue.forget("before")
        due = await queue.due(5.0)
        assert due.job == "meanwhile"
        await queue.forget("meanwhile")
        assert not await queue.settle(due, "pending", 500, 1.0)
        await queue.cancel("here")
        async with sending(settings, queue):
            await told(queue, "here", "delivered")
        assert [json.loads(body)["data"]["id"] for _, body in receiver.got] == ["here"]
        raw = redis.Redis.from_url(settings.queue_url)
        assert raw.zcard(OUTBOX) == raw.exists("{scenelift}:job:meanwhile") == 0
        raw.close()


NAMES = {
    "hooks.example": [PUBLIC],
    "loop.example": ["127.0.0.1"],
    "mixed.example": [PUBLIC, "10.0.0.5"],
    "meta.example": ["169.254.169.254"],
    "six.example": ["::ffff:192.168.1.1"],
}


async def resolve(host: str, port: int) -> list[str]:
    try:
        return NAMES[host]
    except KeyError:
        raise socket.gaierror(-2, "unknown") from None


class Internet(httpx.AsyncBaseTransport):
    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return httpx.Response(200)


@pytest.mark.parametrize(
    "url",
    [
        *(f"https://{name}/hook" for name in NAMES if name != "hooks.example"),
        "https://unknown.example/hook",
        "http://hooks.example/hook",
        "https://user:word@hooks.example/hook",
        "ftp://hooks.example/hook",
        "file:///etc/passwd",
        "hooks.example",
        "https://",
        "https://hooks.example/" + "a" * 3000,
        "https://hooks.example:99999/",
    ],
)
async def test_what_leads_inside_is_refused_at_once_and_at_every_try(settings, queue, url):
    public = settings.model_copy(update={"webhook_private": False})
    web = Internet()
    async with sending(public, queue, resolve=resolve, transport=web) as sender:
        with pytest.raises(Problem) as caught:
            await sender.check(url)
        assert (caught.value.status, caught.value.kind) == (422, "webhook-refused")
        if url.startswith("https://") and url.split("/")[2] in NAMES and len(url) < 100:
            await add(queue, "a", url)  # as if its name had led outside then
            await queue.cancel("a")
            assert (await told(queue, "a", "failed"))["last_status"] is None
    assert web.asked == []


async def test_the_address_that_was_checked_is_the_one_connected_to(settings, queue):
    web = Internet()
    public = settings.model_copy(update={"webhook_private": False})
    async with sending(public, queue, resolve=resolve, transport=web) as sender:
        await sender.check("https://hooks.example/hook?a=1")
        await add(queue, "a", "https://hooks.example/hook?a=1")
        await queue.cancel("a")
        await told(queue, "a", "delivered")
    (request,) = web.asked
    assert str(request.url) == f"https://{PUBLIC}/hook?a=1"
    assert (request.headers["host"], request.extensions["sni_hostname"]) == ("hooks.example", "hooks.example")


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "https://localhost/", "https://[::1]/", "https://2130706433/"])
async def test_the_api_refuses_private_addresses_and_keeps_nothing(settings, url):
    async with serving(settings.model_copy(update={"webhook_private": False})) as client:
        answer = await client.post("/reconstruct", files=form(), data=SMALL | {"webhook_url": url})
        assert (answer.status_code, answer.json()["type"]) == (422, "webhook-refused")
        assert await client.app.state.backend.queue.depth() == (0, 0)


async def test_there_is_one_secret_made_once_and_told_by_the_command_line(settings, monkeypatch):
    storage = Storage(settings.data_dir)
    made = await asyncio.gather(*(signing_secret(settings, storage) for _ in range(8)))
    assert len(set(made)) == 1
    assert len(base64.b64decode(made[0].removeprefix("whsec_"))) == 32
    for name, value in as_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert (await asyncio.to_thread(CliRunner().invoke, command_line, ["webhooks", "secret"])).stdout.strip() == made[0]
    given = "whsec_" + base64.b64encode(b"k" * 24).decode()
    assert await signing_secret(settings.model_copy(update={"webhook_secret": given}), storage) == given
