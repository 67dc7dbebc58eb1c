"""Webhooks: a signed POST to the address that a job was sent with, once the job has ended.

Standard Webhooks (https://www.standardwebhooks.com): `webhook-id`, the same at every try, `webhook-timestamp`, and
`webhook-signature`: `v1,` and the base64 of the HMAC-SHA256 of `<id>.<timestamp>.<body>`.

The script that ends a job puts it into the outbox. Every API process sends from there, each job with a lease that
outlasts one try: what a process that dies had in hand another sends, so an end is told at least once. Where a name
leads is looked at before every try, and the connection goes to the address that was looked at (see fetch.py).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time

import httpx
import structlog
from redis.exceptions import RedisError

from service.errors import Problem
from service.fetch import LONGEST, Resolve, locate, pinned
from service.jobs import Due, Queue
from service.metrics import ApiMetrics
from service.schemas import JobDocument
from service.settings import Settings
from service.storage import Storage

log = structlog.get_logger()

SECRET = "webhooks/secret"  # noqa: S105 - where it lies
TOGETHER = 32
"""Webhooks that one process sends at the same time, so that a slow receiver holds nobody up."""
SECONDS = 10.0
"""For one try, from asking for the name to the status of the answer."""
LEASE_SECONDS = 3 * SECONDS
POLL_SECONDS = 1.0
PAUSES = (10.0, 40.0, 160.0, 640.0, 2560.0)
"""Seconds between the tries, about an hour together; each is up to a quarter longer or shorter, by chance."""


class Webhooks:
    """Sends what is due, for as long as `run` does."""

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        storage: Storage,
        resolve: Resolve | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        metrics: ApiMetrics | None = None,
    ) -> None:
        """`resolve` and `transport` are the system's where they are not given."""
        self._settings = settings
        self._queue = queue
        self._storage = storage
        self._resolve = resolve
        self._transport = transport
        self._metrics = metrics or ApiMetrics()
        self._places = asyncio.Semaphore(TOGETHER)

    async def check(self, url: str) -> None:
        """Problem 422 where no webhook is sent to this address."""
        private = self._settings.webhook_private
        target = _parse(url)
        if target is None or target.scheme not in (("https", "http") if private else ("https",)):
            wanted = "http or https" if private else "https"
            raise Problem(422, "webhook-refused", f"webhook_url is no {wanted} address, or holds a password.")
        try:
            async with asyncio.timeout(SECONDS):
                address = await locate(target, self._resolve, private=private)
        except OSError as error:
            raise Problem(422, "webhook-refused", "The host of webhook_url is unknown.", "Check it.") from error
        if address is None:
            raise Problem(422, "webhook-refused", "webhook_url is not on the public Internet.")

    async def run(self) -> None:
        """Send, for ever."""
        # One connection a request: those that are kept are told apart by address, while their certificates name hosts.
        transport = self._transport or httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))
        # Proxies of the environment would resolve names anew: none is asked.
        async with (
            httpx.AsyncClient(transport=transport, trust_env=False, timeout=SECONDS) as client,
            asyncio.TaskGroup() as tasks,
        ):
            while True:
                await self._places.acquire()
                try:
                    due = await self._queue.due(LEASE_SECONDS)
                except (RedisError, OSError) as error:
                    log.warning("cannot look for webhooks", error=str(error))
                    due = None
                if due is None:
                    self._places.release()
                    await asyncio.sleep(POLL_SECONDS)
                else:
                    tasks.create_task(self._deliver(client, due))

    async def _deliver(self, client: httpx.AsyncClient, due: Due) -> None:
        """One try. Nothing escapes: what is not settled is due again when its lease has run out."""
        try:
            document = await self._queue.document(due.job)
            if document is None:  # removed, and with it whatever there was to tell
                await self._queue.settle(due, "failed", None)
                return
            secret = await signing_secret(self._settings, self._storage)
            status = await self._send(client, due.url, document, secret)
            if status is not None and 200 <= status < 300:
                outcome = "delivered"
                await self._queue.settle(due, "delivered", status)
            elif status == 410 or due.tries >= len(PAUSES):  # gone: its owner wants no more
                outcome = "failed"
                await self._queue.settle(due, "failed", status)
            else:
                outcome = "put off"
                pause = PAUSES[due.tries] * (0.75 + secrets.randbelow(1000) / 2000)
                await self._queue.settle(due, "pending", status, pause)
            self._metrics.webhooks.labels(outcome).inc()
            log.info("webhook sent", job=due.job, attempt=due.tries + 1, status=status)
        except Exception as error:
            log.warning("a webhook was not sent", job=due.job, error=repr(error))
        finally:
            self._places.release()

    async def _send(self, client: httpx.AsyncClient, url: str, document: JobDocument, secret: str) -> int | None:
        """The status of the answer, whose body nobody reads; None where there is no answer."""
        target = httpx.URL(url)
        body = payload(document)
        headers = {"Content-Type": "application/json", "User-Agent": "Scenelift"}
        headers |= sign(f"msg_{document.id}", int(time.time()), body, secret)
        try:
            async with asyncio.timeout(SECONDS):
                address = await locate(target, self._resolve, private=self._settings.webhook_private)
                if address is None:
                    return None
                request = pinned(client, "POST", target, address, headers, body)
                response = await client.send(request, stream=True, follow_redirects=False)
                await response.aclose()
                return response.status_code
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            return None


def payload(document: JobDocument) -> bytes:
    """What is sent: `type` (`job.succeeded`, `job.failed`, `job.canceled`), `timestamp`, and the job as `data`."""
    data = document.model_dump(mode="json")
    event = {"type": f"job.{document.status}", "timestamp": data["finished_at"], "data": data}
    return json.dumps(event, ensure_ascii=False).encode()


def sign(id: str, timestamp: int, body: bytes, secret: str) -> dict[str, str]:
    """The headers by which a receiver knows who sent a message, when, and whether it has seen it before."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


async def signing_secret(settings: Settings, storage: Storage) -> str:
    """The installation's secret: that of the settings, else one that is made once, by whoever comes first, and kept in
    storage, beside the keys."""
    if settings.webhook_secret:
        return settings.webhook_secret
    try:
        return (await storage.get(SECRET)).decode()
    except FileNotFoundError:
        await storage.create(SECRET, b"whsec_" + base64.b64encode(secrets.token_bytes(32)))
        return (await storage.get(SECRET)).decode()


def _parse(url: str) -> httpx.URL | None:
    try:
        target = httpx.URL(url) if len(url) <= LONGEST else httpx.URL("")
    except (httpx.InvalidURL, ValueError):
        return None
    usual = target.port is None or 0 < target.port < 1 << 16
    return target if target.host and usual and not target.userinfo else None
