"""Who may do what: every request's caller, before anything else of it is looked at.

Every route asks for a caller but those in PUBLIC; a new one is closed until it is named there. A caller is

- an API key (`Authorization: Bearer sk_...` or `X-API-Key`): sees and does everything with its own jobs. Another's are
  unknown to it, as are those that do not exist;
- the bearer of a link (`?token=...`): reads one job and its files, for a time, as the key that made the link;
- where no key has ever been made, anybody on this machine, or with SCENELIFT_OPEN=1 anybody at all.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, Request
from redis.exceptions import RedisError

from service.errors import Problem
from service.jobs import JOB_ID, Queue
from service.keys import Keys
from service.schemas import JobDocument
from service.settings import Settings

log = structlog.get_logger()

PUBLIC = frozenset(("/", "/view/{id}", "/static/{path:path}", "/docs", "/livez", "/readyz", "/health"))
"""Routes without a caller. They tell nothing of jobs, and /health tells of workers only to callers."""
LINKED = frozenset(("/jobs/{id}", "/jobs/{id}/events", "/jobs/{id}/files/all.zip", "/jobs/{id}/files/{name}"))
"""Routes that a link opens, to GET and HEAD alone."""
WRONG_PER_MINUTE = 10
"""Wrong keys and links of one address that are answered 401; more are 429."""

_TOKEN = re.compile(r"([0-9]{1,11})\.([A-Za-z0-9_-]{43})")


class ExposedError(Exception):
    """The service would be open to whoever can reach it, and nobody said that it may be."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and so whose jobs there are."""

    key: str = ""
    """Id of their API key; "" where none is needed."""
    token: str = ""
    """Of the link that they came by."""

    def sees(self, document: JobDocument) -> JobDocument:
        """The document with addresses that work for this caller: those of a link's bearer carry its token."""
        return _with_token(document, self.token) if self.token else document


class Guard:
    """Tells who asks, and holds them to their limits."""

    def __init__(self, settings: Settings, queue: Queue, keys: Keys) -> None:
        self._settings = settings
        self._queue = queue
        self._keys = keys

    def lets_all(self, path: str) -> bool:
        """Whether a route has no caller."""
        return path in PUBLIC or (path == "/metrics" and self._settings.metrics_open)

    async def admit(self, request: Request) -> Caller:
        """The caller, with one request less to spend. Raises Problem 401, 403 or 429."""
        caller = await self.identify(request)
        if caller.token:
            await self._spend(f"link:{request.path_params['id']}", request)
        elif caller.key:
            await self._spend(f"key:{caller.key}", request)
        return caller

    async def identify(self, request: Request) -> Caller:
        """The caller. Raises Problem 401 or 403, and 429 where too many wrong keys came from there."""
        given = _given_key(request.headers)
        if given is not None:
            key = await self._keys.find(given)
            if key is None:
                raise await self._wrong(request, "The API key is unknown or revoked.")
            return Caller(key.id)
        token = request.query_params.get("token")
        if token is not None and request.scope["route"].path in LINKED and request.method in ("GET", "HEAD"):
            return await self._bearer(request, token)
        if await self._keys.exist():
            raise _unauthorized("An API key is needed here.", "Send it as `Authorization: Bearer sk_...`.")
        self._refuse_strangers(request)
        return Caller()

    async def _bearer(self, request: Request, token: str) -> Caller:
        job = request.path_params["id"]
        found = await self._queue.linked(job) if JOB_ID.fullmatch(job) else None
        # A link is worth as much as the key of its job: revoking that takes back what it gave away.
        if (
            found is None
            or not token_holds(token, job, found[1])
            or (found[0] and not await self._keys.alive(found[0]))
        ):
            raise await self._wrong(request, "The link is not valid any more, or never was.")
        return Caller(found[0], token)

    def _refuse_strangers(self, request: Request) -> None:
        """Where there are no keys. What reaches this machine by a proxy comes from afar, or asks for another name; so
        does a page whose name was made to lead here. Pages from elsewhere can send forms, but tell where they are from.
        """
        host = request.headers.get("host", "")
        near = request.client is not None and is_loopback(request.client.host) and is_loopback(_name(host))
        if not (near or self._settings.open):
            raise Problem(
                403,
                "local-only",
                "Without API keys only programs on the service's own machine are answered.",
                "Make a key on that machine with `scenelift keys create NAME`.",
            )
        origin = request.headers.get("origin")
        if (
            origin is not None
            and origin.partition("://")[2] != host
            and not {"*", origin} & set(self._settings.origins)
        ):
            raise Problem(
                403,
                "foreign-page",
                "Pages from elsewhere may not call this service.",
                "SCENELIFT_CORS_ORIGINS lists those that may.",
            )

    async def _spend(self, who: str, request: Request) -> None:
        rate, most = self._settings.requests_per_second, self._settings.requests_burst
        try:
            taken, left = await self._queue.spend(who, rate, most)
        except (RedisError, OSError):
            return  # what would cost anything is answered 503 while the queue is away; /metrics is to tell of it
        request.state.headers = {
            "RateLimit-Policy": f'"requests";q={most};w={math.ceil(most / rate)}',
            "RateLimit": f'"requests";r={math.floor(left)};t={math.ceil((most - left) / rate)}',
        }
        if not taken:
            raise Problem(
                429,
                "too-many-requests",
                f"More than {rate:g} requests a second are too many.",
                "Listen to a job's events instead of asking again and again.",
                retry_after=max(1, math.ceil((1 - left) / rate)),
            )

    async def _wrong(self, request: Request, detail: str) -> Problem:
        """What a wrong key or link is answered. Right ones from the same address are still taken: its other users have
        done nothing, and 256 random bits are not found by trying."""
        rate = WRONG_PER_MINUTE / 60
        address = _network(request.client.host if request.client else "")
        try:
            taken, left = await self._queue.spend(f"wrong:{address}", rate, WRONG_PER_MINUTE)
        except (RedisError, OSError):
            taken, left = True, 0.0
        if taken:
            log.warning("wrong key or link", address=address)
            return _unauthorized(detail, error=', error="invalid_token"')
        return Problem(
            429,
            "too-many-wrong-keys",
            "Too many wrong keys came from this address.",
            "Try again later, with the right one.",
            retry_after=max(1, math.ceil((1 - left) / rate)),
        )


async def caller(request: Request) -> Caller:
    """Who asks. Every route has this dependency, through the application."""
    guard: Guard = request.app.state.guard
    return Caller() if guard.lets_all(request.scope["route"].path) else await guard.admit(request)


async def visitor(request: Request) -> Caller | None:
    """Who asks a public route, or None: nobody that is known."""
    guard: Guard = request.app.state.guard
    try:
        return await guard.admit(request)
    except (Problem, RedisError, OSError):
        return None


async def welcome(request: Request) -> bool:
    """Whether the caller of an answer that goes on may have more of it: nothing was revoked and no link has expired."""
    guard: Guard = request.app.state.guard
    try:
        await guard.identify(request)
    except (Problem, RedisError, OSError):
        return False
    return True


TheCaller = Annotated[Caller, Depends(caller)]


async def refuse_exposure(settings: Settings, keys: Keys) -> bool:
    """Whether there are keys. ExposedError where there are none, the address is public, and nobody said it may be."""
    keyed = await keys.exist()
    if not (keyed or settings.open or is_loopback(settings.host)):
        raise ExposedError(
            f"There are no API keys, so {settings.host} would be open to whoever reaches it: make one with "
            "`scenelift keys create NAME`, or set SCENELIFT_OPEN=1 if that is meant."
        )
    return keyed


def make_token(job: str, secret: str, seconds: int) -> tuple[str, int]:
    """A link's token, `<expiry>.<HMAC>`, and its expiry in seconds since 1970.

    The HMAC (SHA-256, RFC 2104) is over the job and the expiry, keyed with a secret that lies in the job's own record:
    links end with their job, and there is no secret of the whole service to keep, to rotate or to lose.
    """
    expiry = int(time.time()) + seconds
    return f"{expiry}.{_signature(job, secret, str(expiry))}", expiry


def token_holds(token: str, job: str, secret: str) -> bool:
    """Whether the token is one of this job that has not expired."""
    found = _TOKEN.fullmatch(token)
    if found is None or not hmac.compare_digest(found[2], _signature(job, secret, found[1])):
        return False
    return int(found[1]) > time.time()


def _signature(job: str, secret: str, expiry: str) -> str:
    digest = hmac.digest(secret.encode(), f"{job}\n{expiry}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _with_token(document: JobDocument, token: str) -> JobDocument:
    def open_to(url: str) -> str:
        return f"{url}?token={token}"

    links = document.links
    readable = {name: open_to(getattr(links, name)) for name in ("self", "events", "files")}
    files = [file.model_copy(update={"url": open_to(file.url)}) for file in document.files]
    # Whom its owner tells of it is nothing to those who may look at it.
    return document.model_copy(update={"links": links.model_copy(update=readable), "files": files, "webhook": None})


def _given_key(headers: Mapping[str, str]) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _unauthorized(detail: str, suggestion: str = "", error: str = "") -> Problem:
    """RFC 6750, 3: how to ask, and, where a key was sent, that it is the wrong one."""
    challenge = f'Bearer realm="scenelift"{error}'
    return Problem(401, "unauthorized", detail, suggestion, headers={"WWW-Authenticate": challenge})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server there: a loopback address, or `localhost`."""
    address = _ip(host)
    return address.is_loopback if address is not None else host == "localhost"


def _network(host: str) -> str:
    """Whom an address belongs to: of IPv6 its /64, of which one customer has all."""
    address = _ip(host)
    if isinstance(address, ipaddress.IPv6Address):
        return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address or "unknown")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, where `host` is one; IPv4 as such, also where it comes mapped into IPv6."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def describe(schema: dict[str, Any]) -> None:
    """Add to an OpenAPI description who may call what."""
    schema["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, made by `scenelift keys create NAME`."},
        "keyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
        "link": {
            "type": "apiKey",
            "in": "query",
            "name": "token",
            "description": "A link's token, from `POST /jobs/{id}/links`: reads that one job.",
        },
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if path not in PUBLIC:
                link: list[dict[str, list[str]]] = [{"link": []}] if path in LINKED and method == "get" else []
                # The last: where no key has been made, none is asked for.
                operation["security"] = [{"key": []}, {"keyHeader": []}, *link, {}]
