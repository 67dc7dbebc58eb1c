"""Photos from addresses, of hosts that the settings list and of no other.

Whoever names an address may mean to reach what only this machine can: each host is resolved here, every address that
it resolves to must be one of the public Internet, and the connection goes to the very address that was looked at, so
that no second answer of a name server counts. The same for every redirect. Nothing is opened before that.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import IO, cast
from urllib.parse import unquote

import httpx

from service.errors import Problem, mebibytes
from service.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Numeric addresses of a host and port. Raises OSError where there are none."""

REDIRECTS = 3
TOGETHER = 4
"""Photos of one request that are fetched at the same time."""
LONGEST = 2048
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that end in an IPv4 address and lead there (RFC 6052)."""
_PROTOCOLS = ipaddress.IPv4Network("192.0.0.0/24")
"""Kept for protocols (RFC 6890), which older versions of Python take for global in part."""


class Fetcher:
    """Fetches what requests name, within the settings' limits."""

    def __init__(
        self, settings: Settings, resolve: Resolve | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`resolve` and `transport` are the system's where they are not given."""
        self._settings = settings
        self._resolve = resolve or _resolve
        self._transport = transport
        self._schemes = ("https", "http") if settings.image_url_http else ("https",)
        self._hosts = [host.strip().lower() for host in settings.image_url_hosts.split(",") if host.strip()]

    async def fetch_all(self, urls: Sequence[str]) -> list[tuple[str, IO[bytes]]]:
        """The files at these addresses with their names, in order; the caller closes them. Raises the Problem of the
        first that cannot be had, once none is being fetched any more."""
        if not self._hosts:
            raise Problem(
                422, "no-image-urls", "Photos are not fetched from addresses here.", "Send the photos themselves."
            )
        if len(urls) > self._settings.max_photos:
            raise Problem(
                422,
                "too-many-photos",
                f"{len(urls)} photos are too many: at most {self._settings.max_photos} are taken.",
                "Choose photos that overlap and together show the whole place.",
            )
        targets = [self._listed(url, f"image_urls: address {i + 1}") for i, url in enumerate(urls)]
        turns, left = asyncio.Semaphore(TOGETHER), [self._settings.max_body_bytes]
        # One connection a request: those that are kept are told apart by address, while their certificates name hosts.
        transport = self._transport or httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))
        # Proxies of the environment would resolve names anew: none is asked.
        async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=10.0) as client:

            async def one(index: int, target: httpx.URL) -> tuple[str, IO[bytes]]:
                async with turns:
                    return await self._fetch(client, f"image_urls: address {index + 1}", target, left)

            tasks = [asyncio.create_task(one(i, target)) for i, target in enumerate(targets)]
            late: set[asyncio.Task[tuple[str, IO[bytes]]]] = set(tasks)
            try:
                _, late = await asyncio.wait(tasks, timeout=self._settings.image_url_seconds)
            finally:
                for task in late:
                    task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        files = [answer for answer in answers if not isinstance(answer, BaseException)]
        if len(files) < len(urls):
            for _, file in files:
                file.close()
            if late:
                seconds = self._settings.image_url_seconds
                raise Problem(422, "address-failed", f"The photos could not be fetched within {seconds:g} s.")
            raise next(answer for answer in answers if isinstance(answer, BaseException))
        return files

    async def _fetch(
        self, client: httpx.AsyncClient, what: str, target: httpx.URL, left: list[int]
    ) -> tuple[str, IO[bytes]]:
        file = cast(IO[bytes], tempfile.SpooledTemporaryFile(max_size=1 << 20))  # noqa: SIM115 - handed to the caller
        try:
            name = await self._follow(client, what, target, file, left)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            file.close()
            raise Problem(422, "address-failed", f"{what} cannot be fetched.", "Check it, or send photos.") from error
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return name, file

    async def _follow(
        self, client: httpx.AsyncClient, what: str, target: httpx.URL, file: IO[bytes], left: list[int]
    ) -> str:
        """Fetch into `file`, redirects followed; the name that the last address ends in."""
        for _ in range(REDIRECTS + 1):
            address = await self._checked(target, what)
            headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
            request = pinned(client, "GET", target, address, headers)
            response = await client.send(request, stream=True, follow_redirects=False)
            try:
                if response.has_redirect_location:
                    target = self._listed(str(target.join(response.headers["location"])), what)
                    continue
                if response.status_code != 200 or response.headers.get("content-encoding", "identity") != "identity":
                    raise Problem(
                        422, "address-failed", f"{what} answers {response.status_code}, no photo.", "Check the address."
                    )
                await self._save(response, what, file, left)
            finally:
                await response.aclose()
            return unquote(target.path.rpartition("/")[2])
        raise Problem(422, "address-failed", f"{what} redirects more than {REDIRECTS} times.")

    def _listed(self, url: str, what: str) -> httpx.URL:
        """The address, where the settings list its host. Raises Problem."""
        try:
            target = httpx.URL(url) if len(url) <= LONGEST else httpx.URL("")
        except (httpx.InvalidURL, ValueError):
            target = httpx.URL("")
        if target.scheme not in self._schemes or not target.host or target.userinfo:
            raise Problem(
                422, "address-refused", f"{what} is no {' or '.join(self._schemes)} address, or holds a password."
            )
        host = target.raw_host.decode().lower().removesuffix(".")
        place = host if target.port is None else f"{host}:{target.port}"
        if not any(place == known or (known.startswith("*.") and place.endswith(known[1:])) for known in self._hosts):
            raise Problem(
                422,
                "address-refused",
                f"{what} is not on a host that photos are fetched from.",
                f"The hosts are {', '.join(self._hosts)}.",
            )
        return target

    async def _checked(self, target: httpx.URL, what: str) -> Address:
        """What to connect to. Raises Problem where any address of the host leads elsewhere than outside."""
        address = await locate(target, self._resolve)
        if address is None:
            raise Problem(422, "address-refused", f"{what} is not on the public Internet.")
        return address

    async def _save(self, response: httpx.Response, what: str, file: IO[bytes], left: list[int]) -> None:
        """Up to the limits on one photo and on all of a request. `left` holds what all of them may still have."""
        received = 0
        async for chunk in response.aiter_raw(1 << 16):
            received += len(chunk)
            left[0] -= len(chunk)
            if received > self._settings.max_file_bytes or left[0] < 0:
                most = self._settings.max_file_bytes if left[0] >= 0 else self._settings.max_body_bytes
                raise Problem(413, "file-too-large", f"{what} has more than {mebibytes(most)}.")
            await asyncio.to_thread(file.write, chunk)


async def locate(target: httpx.URL, resolve: Resolve | None = None, *, private: bool = False) -> Address | None:
    """What to connect to; None where any address of the host leads inside, unless `private` ones may be.
    OSError where the host has no address."""
    port = target.port or {"https": 443, "http": 80}[target.scheme]
    try:
        found = await (resolve or _resolve)(target.raw_host.decode(), port)
    except UnicodeError as error:  # what no name server can be asked for
        raise OSError("no name of a host") from error
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    if not addresses or not (private or all(is_public(address) for address in addresses)):
        return None
    return addresses[0]


def pinned(
    client: httpx.AsyncClient,
    method: str,
    target: httpx.URL,
    address: Address,
    headers: Mapping[str, str],
    content: bytes | None = None,
) -> httpx.Request:
    """A request that goes to the very address that was looked at, and asks there for the target's host."""
    return client.build_request(
        method,
        target.copy_with(host=str(address), fragment=None),
        headers={"Host": target.netloc.decode(), **headers},
        content=content,
        extensions={"sni_hostname": target.raw_host.decode().removesuffix(".")},
    )


def is_public(address: Address) -> bool:
    """Whether an address is one of the public Internet; of one that holds an IPv4 address, whether that is."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address in _PROTOCOLS)


async def _resolve(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]
