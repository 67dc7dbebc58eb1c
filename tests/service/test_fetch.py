"""Nothing here leaves the machine: names are resolved by a table, and answers come from a function or from loopback."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

import httpx
import pytest

from service.errors import Problem
from service.fetch import Fetcher, is_public
from service.settings import Settings
from tests.service.support import SMALL, ended, jpeg, serving, settled, working

PUBLIC = "93.184.216.34"
NAMES = {
    "photos.example": [PUBLIC],
    "six.example": ["2606:2800:220:1:248:1893:25c8:1946"],
    "cdn.photos.example": ["8.8.8.8"],
    "loop.example": ["127.0.0.1"],
    "mixed.example": [PUBLIC, "10.0.0.5"],
    "meta.example": ["169.254.169.254"],
    "mapped.example": ["::ffff:192.168.1.1"],
}
HOSTS = ",".join([*NAMES, "*.wild.example", "odd.example:8443"])
LIMITS = Settings(
    _env_file=None, image_url_hosts=HOSTS, max_file_bytes=100_000, max_body_bytes=150_000, image_url_seconds=2
)


class Internet(httpx.AsyncBaseTransport):
    """Answers by host and path, and remembers what was asked of whom."""

    def __init__(self, **answers: httpx.Response) -> None:
        self.answers = answers
        self.asked: list[httpx.Request] = []
        self.names: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.names.append(host)
        if host not in NAMES:
            raise socket.gaierror(-2, "unknown")
        return NAMES[host]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.get(request.url.path.strip("/").replace(".", "_"), httpx.Response(404))
        if answer.status_code == 408:
            await asyncio.sleep(60)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))

    async def fetch(self, *urls: str, settings: Settings = LIMITS) -> list[tuple[str, bytes]]:
        found = []
        for name, file in await Fetcher(settings, self.resolve, self).fetch_all(urls):
            with file:
                found.append((name, file.read()))
        return found

    async def refuses(self, *urls: str, settings: Settings = LIMITS) -> Problem:
        with pytest.raises(Problem) as caught:
            await self.fetch(*urls, settings=settings)
        assert caught.value.detail.endswith(".")
        return caught.value


def to(location: str, status: int = 302) -> httpx.Response:
    return httpx.Response(status, headers={"Location": location})


async def test_the_address_that_was_checked_is_the_one_connected_to():
    web = Internet(a_jpg=httpx.Response(200, content=b"a"), b_jpg=httpx.Response(200, content=b"b"))
    urls = ("https://photos.example/a.jpg?size=1#top", "https://SIX.example/b.jpg")
    assert await web.fetch(*urls) == [("a.jpg", b"a"), ("b.jpg", b"b")]
    first, second = sorted(web.asked, key=lambda request: request.url.path)
    assert (first.url.host, first.headers["host"]) == (PUBLIC, "photos.example")
    assert (second.url.host, second.headers["host"]) == (NAMES["six.example"][0], "six.example")
    assert first.extensions["sni_hostname"] == "photos.example"
    assert str(first.url) == f"https://{PUBLIC}/a.jpg?size=1"
    assert first.headers["accept-encoding"] == "identity"
    assert "cookie" not in first.headers


@pytest.mark.parametrize(
    "url",
    [
        "https://loop.example/a.jpg",
        "https://mixed.example/a.jpg",
        "https://meta.example/latest/meta-data/",
        "https://mapped.example/a.jpg",
        "https://other.example/a.jpg",
        "https://photos.example.evil.example/a.jpg",
        "https://evil-photos.example/a.jpg",
        "https://wild.example/a.jpg",
        "https://127.0.0.1/a.jpg",
        "https://[::1]/a.jpg",
        "https://2130706433/a.jpg",
        "https://0x7f.1/a.jpg",
        "https://user:word@photos.example/a.jpg",
        "https://photos.example@127.0.0.1/a.jpg",
        "https://photos.example:22/a.jpg",
        "https://odd.example/a.jpg",
        "http://photos.example/a.jpg",
        "ftp://photos.example/a.jpg",
        "file:///etc/passwd",
        "//photos.example/a.jpg",
        "photos.example/a.jpg",
        "https://",
        "https:///a.jpg",
        "https://photos.example/" + "a" * 3000,
        "https://photos.example:99999/",
        "https://[::1/",
        "https://photos.example\\@127.0.0.1/",
        "https://photos。example/a.jpg" + "\x00",
    ],
)
async def test_what_leads_elsewhere_is_refused_and_nothing_is_opened(url):
    web = Internet()
    assert (await web.refuses(url)).kind == "address-refused"
    assert web.asked == []


@pytest.mark.parametrize(
    "location",
    [
        "https://loop.example/a.jpg",
        "https://meta.example/latest/",
        "https://127.0.0.1/",
        "http://photos.example/a.jpg",
        "//127.0.0.1/",
        "file:///etc/passwd",
        "https://other.example/",
    ],
)
async def test_redirects_are_checked_anew(location):
    web = Internet(start=to(location))
    assert (await web.refuses("https://photos.example/start")).kind == "address-refused"
    assert [request.url.host for request in web.asked] == [PUBLIC]


async def test_redirects_are_followed_to_a_bound():
    web = Internet(start=to("/next"), next=to("https://cdn.photos.example/a.jpg", 307), a_jpg=httpx.Response(200))
    assert (await web.fetch("https://photos.example/start"))[0][0] == "a.jpg"
    assert [request.headers["host"] for request in web.asked] == ["photos.example"] * 2 + ["cdn.photos.example"]
    assert "redirects more than" in (await Internet(x=to("/x")).refuses("https://photos.example/x")).detail


async def test_a_name_that_changes_its_mind_gains_nothing():
    """DNS rebinding: the second answer is never asked for."""
    web = Internet(a_jpg=httpx.Response(200, content=b"a"))
    await web.fetch("https://photos.example/a.jpg")
    assert web.names == ["photos.example"]
    assert web.asked[0].url.host == PUBLIC


async def test_sizes_times_and_answers_are_bounded():
    half, large = httpx.Response(200, content=bytes(80_000)), httpx.Response(200, content=bytes(100_001))
    web = Internet(half=half, large=large, slow=httpx.Response(408), gone=httpx.Response(410))
    web.answers["packed"] = httpx.Response(200, headers={"Content-Encoding": "br"}, content=b"x")
    at = "https://photos.example/"
    assert (await web.refuses(at + "large")).kind == "file-too-large"
    assert (await web.refuses(at + "half", at + "half")).status == 413
    assert (await web.refuses(at + "half", at + "gone")).detail == "image_urls: address 2 answers 410, no photo."
    assert (await web.refuses(at + "packed")).kind == "address-failed"
    brief = LIMITS.model_copy(update={"image_url_seconds": 0.1})
    assert "within 0.1 s" in (await web.refuses(at + "half", at + "slow", settings=brief)).detail
    assert (await web.refuses("https://a.wild.example/x")).kind == "address-failed", "no such name"
    assert (await web.refuses(*[at + "half"] * 65)).kind == "too-many-photos"


async def test_none_are_fetched_unless_hosts_are_listed():
    web = Internet()
    nobody = LIMITS.model_copy(update={"image_url_hosts": " "})
    assert (await web.refuses("https://photos.example/a.jpg", settings=nobody)).kind == "no-image-urls"
    assert web.names == web.asked == []


INSIDE = """0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 127.255.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.8
192.0.2.1 192.168.0.1 198.18.0.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1
::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::a00:1 64:ff9b:1::1 2002:7f00:1:: 2002:a00:1:: fe80::1 fec0::1 fc00::1
2001:0:4136:e378:8000:63bf:3fff:fdd2 fd00:ec2::254 ff02::1 2001:db8::1 100::1"""


def test_addresses_that_are_not_public():
    assert [text for text in INSIDE.split() if is_public(ipaddress.ip_address(text))] == []
    outside = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
    assert all(is_public(ipaddress.ip_address(text)) for text in outside)


class Rerouted(httpx.AsyncHTTPTransport):
    """Real connections, to a port of this machine whatever address was to be connected to."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert ipaddress.ip_address(request.url.host).is_global
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)


async def test_a_job_from_addresses(settings):
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head)
        body = jpeg(len(asked))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    listed = settings.model_copy(update={"image_url_hosts": "photos.example", "image_url_http": True})
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with working(listed), serving(listed) as client, server:
        web = Internet()
        fetcher = Fetcher(listed, web.resolve, Rerouted(server.sockets[0].getsockname()[1]))
        object.__setattr__(client.app.state.backend.intake, "fetcher", fetcher)
        urls = "http://photos.example/a%20b.jpg\n http://photos.example/2.jpg"
        answered = await client.post("/reconstruct", data=SMALL | {"image_urls": urls}, files=[("focal", (None, "9"))])
        assert answered.status_code == 202, answered.text
        assert [view["name"] for view in answered.json()["views"]] == ["a b.jpg", "2.jpg"]
        assert all("Host: photos.example\r\n" in head for head in asked)
        assert (await ended(client, answered.json()["id"]))["status"] == "succeeded"
        inside = {"image_urls": ["http://127.0.0.1/", "http://169.254.169.254/latest"]}
        refused = await client.post("/reconstruct", data=inside, files=[("focal", (None, "9"))])
        assert (refused.status_code, refused.json()["type"]) == (422, "address-refused")
    assert len(asked) == 2
    assert all(path.startswith("jobs/") for path in await settled(settings))


async def test_by_default_no_address_is_fetched(settings):
    async with serving(settings.model_copy(update={"require_worker": False})) as client:
        answer = await client.post(
            "/reconstruct", data={"image_urls": "http://127.0.0.1:6379/"}, files=[("model", (None, "geometry"))]
        )
        assert (answer.status_code, answer.json()["type"]) == (422, "no-image-urls")
