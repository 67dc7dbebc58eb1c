from __future__ import annotations

import gzip
import json

import httpx
import pytest

from service import pages
from service.keys import Keys
from service.storage import Storage
from tests.service.support import serving

JOB = "abcdefghijklmnopqrstuv"
SCRIPT = b"export const scene = 'a scene';\n" * 200
BUILT = {
    "index.html": b"<!doctype html><title>Scenelift</title>",
    "view.html": b"<!doctype html><title>A scene</title>",
    "scenelift-viewer.js": SCRIPT,
    "assets/index-DkJ3f9a_.js": SCRIPT,
    "assets/splat-aB3_-9Zq.wasm": b"\0asm" + bytes(500),
    "gallery/loft/job.json": json.dumps({"status": "succeeded"}).encode(),
    "gallery/loft/scene.ply": b"ply\n" + bytes(100),
}


@pytest.fixture
def built(tmp_path):
    folder = tmp_path / "static"
    for name, content in BUILT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (tmp_path / "secret").write_text("nobody's")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path, target_is_directory=True)
    return pages.read(folder)


@pytest.fixture
async def site(settings, built):
    """The service with a page, and with a key, so that everything which is not public answers 401."""
    await Keys(Storage.of(settings)).create("somebody")
    async with serving(settings) as client:
        client.app.state.pages = built
        yield client


def policy(answer: httpx.Response) -> dict[str, str]:
    parts = (part.strip().partition(" ") for part in answer.headers["content-security-policy"].split(";"))
    return {name: value for name, _, value in parts}


async def test_the_page_is_there_for_everybody_and_lets_nothing_else_run(site):
    page = await site.get("/")
    assert (page.status_code, page.content) == (200, BUILT["index.html"])
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    rules = policy(page)
    assert rules["default-src"] == rules["style-src"] == "'self'"
    assert rules["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert rules["frame-ancestors"] == rules["object-src"] == rules["base-uri"] == "'none'"
    assert "access-control-allow-origin" not in page.headers
    assert (await site.get("/models")).status_code == 401


async def test_a_scene_alone_may_be_framed_and_tells_nothing_of_jobs(site):
    view = await site.get(f"/view/{JOB}", params={"token": "1.x"})
    assert view.content == BUILT["view.html"], "whether there is such a job or not"
    assert policy(view)["frame-ancestors"] == "*"
    assert policy(view) | {"frame-ancestors": "'none'"} == policy(await site.get("/"))
    assert view.headers["cross-origin-resource-policy"] == "cross-origin"
    assert (await site.get("/view/loft")).content == BUILT["view.html"], "the gallery's have names"
    for wrong in ("short", f"{JOB}x", "<script>", "loft%2fscene.ply", ""):
        answer = await site.get(f"/view/{wrong}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), wrong


@pytest.mark.parametrize(
    ("name", "kind", "kept"),
    [
        ("scenelift-viewer.js", "text/javascript; charset=utf-8", "no-cache"),
        ("assets/index-DkJ3f9a_.js", "text/javascript; charset=utf-8", "public, max-age=31536000, immutable"),
        ("assets/splat-aB3_-9Zq.wasm", "application/wasm", "public, max-age=31536000, immutable"),
        ("gallery/loft/job.json", "application/json", "no-cache"),
        ("gallery/loft/scene.ply", "application/vnd.ply", "no-cache"),
    ],
)
async def test_files_of_the_page_may_be_kept_and_used_elsewhere(site, name, kind, kept):
    answer = await site.get(f"/static/{name}", headers={"Origin": "https://elsewhere.example"})
    assert (answer.status_code, answer.content) == (200, BUILT[name])
    assert answer.headers["content-type"] == kind
    assert answer.headers["cache-control"] == kept
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    again = await site.get(f"/static/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == kept
    head = await site.head(f"/static/{name}")
    assert (head.status_code, head.content) == (200, b"")
    assert {head.headers[key] for key in ("etag", "content-length")} == {
        answer.headers[key] for key in ("etag", "content-length")
    }


async def test_text_is_compressed_for_those_who_take_it(site):
    async def get(name: str, encodings: str) -> httpx.Response:
        return await site.send(site.build_request("GET", name, headers={"Accept-Encoding": encodings}), stream=True)

    for encodings, zipped in [
        ("gzip, br", True),
        ("*", True),
        ("gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("br", False),
    ]:
        answer = await get("/static/scenelift-viewer.js", encodings)
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
        assert ("content-encoding" in answer.headers) == zipped, encodings
        assert "Accept-Encoding" in answer.headers["vary"]
        assert (gzip.decompress(raw) if zipped else raw) == SCRIPT
        assert len(raw) == int(answer.headers["content-length"])
    one, other = [(await get("/static/scenelift-viewer.js", how)).headers["etag"] for how in ("gzip", "identity")]
    assert one != other, "what differs byte by byte has tags that differ"
    assert "content-encoding" not in (await get("/static/gallery/loft/scene.ply", "gzip")).headers


async def test_addresses_lead_to_the_page_alone(site, tmp_path):
    for path in (
        "link",
        "up/secret",
        "../secret",
        "..%2fsecret",
        "%2e%2e/secret",
        "assets/../../secret",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "gallery",
        "gallery/",
        "",
        "index.html",
        "view.html",
        "assets%00",
    ):
        raw = site.base_url.copy_with(raw_path=f"/static/{path}".encode())
        answer = await site.get(raw)
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert "nobody" not in answer.text
    refused = await site.post("/static/scenelift-viewer.js")
    assert refused.status_code == 405
    assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_without_a_page_there_is_a_way_to_the_description(settings):
    async with serving(settings) as client:
        client.app.state.pages = {}
        page = await client.get("/")
        assert page.status_code == 200
        assert 'href="/docs"' in page.text
        assert policy(page)["script-src"] == "'self' 'wasm-unsafe-eval'"
        assert (await client.get(f"/view/{JOB}")).status_code == 404
