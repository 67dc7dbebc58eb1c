from __future__ import annotations

import asyncio
import base64
import hashlib
import os

import httpx
import pytest

from service import incoming, keys, uploads
from service.incoming import Incoming
from service.keys import Keys
from service.storage import Storage
from tests.service.filmed import film, walk
from tests.service.support import SMALL, ended, jpeg, serving, settled, stored, working, zipped

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {"Content-Type": "application/offset+octet-stream"}


@pytest.fixture
async def client(settings):
    async with serving(settings.model_copy(update={"require_worker": False})) as client:
        yield client


async def create(client: httpx.AsyncClient, length: int, name: str = "", **extra: str) -> str:
    metadata = {"Upload-Metadata": f"filename {base64.b64encode(name.encode()).decode()}"} if name else {}
    answer = await client.post("/uploads", headers=TUS | {"Upload-Length": str(length)} | metadata | extra)
    assert answer.status_code == 201, answer.text
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert answer.headers["upload-expires"].endswith("GMT")
    return answer.headers["location"]


async def patch(client: httpx.AsyncClient, url: str, offset: int, data, **extra: str) -> httpx.Response:
    return await client.patch(url, content=data, headers=TUS | BYTES | {"Upload-Offset": str(offset)} | extra)


async def offset(client: httpx.AsyncClient, url: str) -> int:
    answer = await client.head(url, headers=TUS)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    return int(answer.headers["upload-offset"])


async def upload(client: httpx.AsyncClient, data: bytes, name: str = "") -> str:
    """A whole file in two parts; its id."""
    url = await create(client, len(data), name)
    for start, end in ((0, len(data) // 3), (len(data) // 3, len(data))):
        assert (await patch(client, url, start, data[start:end])).status_code == 204
    return url.rpartition("/")[2]


def refusal(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["tus-resumable"] == "1.0.0"
    return answer.status_code, answer.json()["type"]


async def whole(settings, id: str) -> bytes:
    found = Incoming(settings, Storage(settings.data_dir))
    with await found.open(await found.get(id, "")) as file:
        data = file.read()
    await found.close()
    return data


async def test_what_is_spoken_is_told(client, settings):
    answer = await client.options("/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
    assert answer.headers["tus-max-size"] == str(settings.max_body_bytes)
    assert {"creation", "expiration", "termination"} <= set(answer.headers["tus-extension"].split(","))
    old = await client.post("/uploads", headers={"Upload-Length": "5", "Tus-Resumable": "0.2.2"})
    assert refusal(old) == (412, "unknown-protocol")
    assert old.headers["tus-version"] == "1.0.0"
    assert refusal(await client.post("/uploads", headers={"Upload-Length": "5"})) == (412, "unknown-protocol")


async def test_a_file_arrives_in_parts(client, settings):
    data = os.urandom((3 << 20) + 17)
    url = await create(client, len(data), "weg ä.bin")
    head = await client.head(url, headers=TUS)
    assert (head.headers["upload-length"], head.headers["upload-offset"]) == (str(len(data)), "0")
    assert "filename" in head.headers["upload-metadata"]
    for start, end in ((0, 5), (5, 2_900_000), (2_900_000, len(data))):
        answer = await patch(client, url, start, data[start:end])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(end))
        assert await offset(client, url) == end
    assert await whole(settings, url.rpartition("/")[2]) == data
    assert refusal(await patch(client, url, len(data), b"x")) == (413, "file-too-large")


async def test_an_interrupted_body_counts_as_far_as_it_came(client, settings):
    data = os.urandom(300_000)
    url = await create(client, len(data))

    async def broken():
        yield data[:200_000]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await patch(client, url, 0, broken())
    while (arrived := await offset(client, url)) == 0:
        await asyncio.sleep(0.02)
    while (answer := await patch(client, url, arrived, data[arrived:])).status_code == 423:
        await asyncio.sleep(0.02)
    assert answer.status_code == 204
    assert await whole(settings, url.rpartition("/")[2]) == data


async def test_a_stalled_body_lets_others_go_on(client, monkeypatch):
    monkeypatch.setattr(uploads, "STALL_SECONDS", 0.3)
    url = await create(client, 10)
    go_on = asyncio.Event()

    async def stalled():
        yield b"12345"
        await go_on.wait()
        yield b"67890"

    slow = asyncio.create_task(patch(client, url, 0, stalled()))
    while await offset(client, url) != 5:
        await asyncio.sleep(0.02)
    answer = await patch(client, url, 5, b"67890")
    go_on.set()
    assert answer.status_code == 204 or refusal(answer) == (423, "upload-locked")
    assert (await slow).status_code == 408


async def test_a_wrong_offset_and_a_second_appender_are_refused(client):
    url = await create(client, 100)
    wrong = await patch(client, url, 7, b"x")
    assert refusal(wrong) == (409, "wrong-offset")
    assert wrong.headers["upload-offset"] == "0"
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow():
        yield b"x" * 40
        started.set()
        await go_on.wait()
        yield b"x" * 60

    first = asyncio.create_task(patch(client, url, 0, slow()))
    await started.wait()
    await asyncio.sleep(0.1)
    assert refusal(await patch(client, url, 0, b"y" * 100)) == (423, "upload-locked")
    assert refusal(await client.delete(url, headers=TUS)) == (423, "upload-locked")
    go_on.set()
    assert (await first).headers["upload-offset"] == "100"


async def test_of_many_at_one_offset_one_appends(client, settings):
    url = await create(client, 1000)
    bodies = [bytes([i]) * 1000 for i in range(8)]
    answers = await asyncio.gather(*(patch(client, url, 0, body) for body in bodies))
    assert sorted(answer.status_code for answer in answers)[0] == 204
    assert all(answer.status_code in (204, 409, 423) for answer in answers)
    (winner,) = [body for body, answer in zip(bodies, answers) if answer.status_code == 204]
    assert await whole(settings, url.rpartition("/")[2]) == winner


async def test_whoever_lost_the_lock_adds_nothing(settings):
    found = Incoming(settings, Storage(settings.data_dir))
    begun = await found.create("", 10, "")
    async with found.appending(begun.id) as late:
        part = await late.write(b"late")
        await found._redis.delete(f"{{scenelift}}:upload:{begun.id}:lock")
        async with found.appending(begun.id) as early:
            await early.commit([await early.write(b"0123456789")])
            with pytest.raises(incoming.Problem, match="taken over"):
                await late.commit([part])
        assert (await found.get(begun.id, "")).offset == 10
    assert await whole(settings, begun.id) == b"0123456789"
    await found.close()


async def test_checksums(client, settings):
    data = os.urandom(5_000_000 // 2)
    url = await create(client, len(data))
    for algorithm in ("sha1", "sha256"):
        wrong = base64.b64encode(hashlib.new(algorithm, b"other").digest()).decode()
        answer = await patch(client, url, 0, data, **{"Upload-Checksum": f"{algorithm} {wrong}"})
        assert refusal(answer) == (460, "checksum-mismatch")
    assert await offset(client, url) == 0
    assert stored(settings) == [], "what was refused takes no room"
    right = base64.b64encode(hashlib.sha1(data).digest()).decode()
    assert (await patch(client, url, 0, data, **{"Upload-Checksum": f"sha1 {right}"})).status_code == 204
    assert await whole(settings, url.rpartition("/")[2]) == data
    for checksum in ("crc32 AAAA", "sha1 AAAA", "sha1 ?", "sha1"):
        answer = await patch(client, url, 0, b"", **{"Upload-Checksum": checksum})
        assert refusal(answer)[0] == 400


async def test_creation_with_the_first_bytes_and_overridden_methods(client, settings):
    headers = TUS | BYTES | {"Upload-Length": "10"}
    answer = await client.post("/uploads", content=b"01234", headers=headers)
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "5")
    url = answer.headers["location"]
    override = TUS | BYTES | {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "5"}
    assert (await client.post(url, content=b"56789", headers=override)).status_code == 204
    assert await whole(settings, url.rpartition("/")[2]) == b"0123456789"
    assert refusal(await client.post(url, headers=TUS)) == (405, "method-not-allowed")
    assert (await client.post(url, headers=TUS | {"X-HTTP-Method-Override": "DELETE"})).status_code == 204
    assert (await client.head(url, headers=TUS)).status_code == 404


async def test_termination_removes_what_has_arrived(client, settings):
    url = await create(client, 10)
    await patch(client, url, 0, b"01234")
    assert len(stored(settings)) == 1
    assert (await client.delete(url, headers=TUS)).status_code == 204
    assert refusal(await client.delete(url, headers=TUS)) == (404, "unknown-upload")
    assert stored(settings) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Length": str(1 << 40)}, 413),
        ({"Upload-Length": "-1"}, 422),
        ({"Upload-Length": "many"}, 422),
        ({"Upload-Length": "9" * 5000}, 422),
        ({"Upload-Defer-Length": "1"}, 422),
        ({"Upload-Length": "5", "Upload-Metadata": "filename ?"}, 400),
        ({"Upload-Length": "5", "Upload-Metadata": "filename YQ==,,"}, 400),
        ({"Upload-Length": "5", "Upload-Metadata": "filename " + "YQ" * 2000}, 413),
    ],
)
async def test_what_cannot_begin_is_refused(client, headers, status):
    answer = await client.post("/uploads", headers=TUS | headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_uploads_are_few_and_small_together(settings):
    few = settings.model_copy(update={"resumable_limit": 2, "resumable_bytes": 1000})
    async with serving(few) as client:
        url = await create(client, 600)
        refused = await client.post("/uploads", headers=TUS | {"Upload-Length": "500"})
        assert refusal(refused) == (429, "too-many-uploads")
        assert refused.headers["retry-after"]
        await create(client, 400)
        assert refusal(await client.post("/uploads", headers=TUS | {"Upload-Length": "0"}))[0] == 429
        await client.delete(url, headers=TUS)
        await create(client, 600)


async def test_anothers_upload_is_as_unknown_as_one_that_never_was(settings, monkeypatch):
    monkeypatch.setattr(keys, "FRESH_SECONDS", 0.0)
    ring = Keys(Storage(settings.data_dir))
    alice, bob = [{"Authorization": f"Bearer {(await ring.create(name))[1]}"} for name in ("alice", "bob")]
    few = settings.model_copy(update={"require_worker": False, "uploads_per_key": 2})
    async with serving(few) as client:
        begun = await client.post("/uploads", headers=TUS | alice | {"Upload-Length": "5"})
        url = begun.headers["location"]
        for request in ("HEAD", "PATCH", "DELETE", "POST"):
            headers = TUS | BYTES | {"Upload-Offset": "0", "X-HTTP-Method-Override": "DELETE"}
            assert (await client.request(request, url, headers=headers | bob)).status_code == 404
            assert (await client.request(request, url, headers=headers)).status_code == 401
        assert (await patch(client, url, 0, b"12345", **alice)).status_code == 204
        named = {"uploads": url.rpartition("/")[2], "model": "geometry"}
        answer = await client.post("/reconstruct", data=named, files=NO_FILES, headers=bob)
        assert (answer.status_code, answer.json()["type"]) == (422, "unknown-upload")
        answers = [await client.post("/uploads", headers=TUS | alice | {"Upload-Length": "5"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 429]
        assert (await client.post("/uploads", headers=TUS | bob | {"Upload-Length": "5"})).status_code == 201
        assert (await client.post("/uploads", headers=TUS | {"Upload-Length": "5"})).status_code == 401


async def test_abandoned_uploads_are_swept(settings):
    brief = settings.model_copy(update={"resumable_seconds": 1, "resumable_limit": 1, "sweep_seconds": 0.2})
    async with working(brief), serving(brief) as client:
        url = await create(client, 10)
        await patch(client, url, 0, b"01234")
        assert len(stored(settings)) == 1
        while stored(settings):
            await asyncio.sleep(0.1)
        assert (await client.head(url, headers=TUS)).status_code == 404
        await create(client, 10)


async def test_a_job_from_uploads(api, settings):
    ids = [await upload(api, jpeg(i, (96, 72 + i)), f"{i} ä.jpg") for i in (2, 1)]
    answer = await api.post("/reconstruct", data=SMALL | {"uploads": ",".join(ids)}, files=NO_FILES)
    assert answer.status_code == 202, answer.text
    assert [(view["name"], view["height"]) for view in answer.json()["views"]] == [("2 ä.jpg", 74), ("1 ä.jpg", 73)]
    assert (await ended(api, answer.json()["id"]))["status"] == "succeeded"
    assert all(path.startswith("jobs/") for path in await settled(settings)), "the uploads are used up"
    again = await api.post("/reconstruct", data=SMALL | {"uploads": ids}, files=NO_FILES)
    assert (again.status_code, again.json()["type"]) == (422, "unknown-upload")


NO_FILES = [("reference", (None, "0"))]
"""Lets httpx send a multipart form."""


async def test_a_second_try_with_uploads_finds_the_first_ones_job(client):
    ids = [await upload(client, jpeg(i)) for i in range(2)]
    key = {"Idempotency-Key": "7"}
    fields = SMALL | {"uploads": ids, "model": "geometry"}
    first, second = [await client.post("/reconstruct", data=fields, files=NO_FILES, headers=key) for _ in range(2)]
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    other = await client.post("/reconstruct", data=fields | {"uploads": ids[::-1]}, files=NO_FILES, headers=key)
    assert (other.status_code, other.json()["type"]) == (409, "idempotency-conflict")


async def test_one_upload_may_be_an_archive_or_a_video(client):
    id = await upload(client, zipped({"2.jpg": jpeg(), "10.jpg": jpeg(1)}), "room.zip")
    answer = await client.post("/reconstruct", data={"uploads": id, "model": "geometry"}, files=NO_FILES)
    assert [view["name"] for view in answer.json()["views"]] == ["2.jpg", "10.jpg"]
    id = await upload(client, film(walk()), "walk.mp4")
    fields = {"uploads": id, "model": "geometry", "frames": "3"}
    answer = await client.post("/reconstruct", data=fields, files=NO_FILES)
    assert [view["width"] for view in answer.json()["views"]] == [320] * 3


async def test_uploads_that_cannot_be_used_are_refused_and_kept(client, settings):
    good, bad = await upload(client, jpeg()), await upload(client, b"dear diary", "notes.txt")
    begun = (await create(client, 10)).rpartition("/")[2]

    async def refused(*ids: str) -> tuple[int, str]:
        answer = await client.post("/reconstruct", data={"uploads": ids, "model": "geometry"}, files=NO_FILES)
        return answer.status_code, answer.json()["type"]

    assert await refused(good, bad) == (415, "not-an-image")
    assert await refused(good, begun) == (409, "upload-incomplete")
    assert await refused(good, good) == (422, "invalid-field")
    assert await refused(good) == (422, "too-few-photos")
    for id in ("A" * 22, "../../etc", f"{good}:parts", "*", "ä" * 900):
        assert await refused(good, id) == (422, "unknown-upload")
    large = [await upload(client, bytes(settings.max_body_bytes // 2 + 1)) for _ in range(2)]
    assert await refused(*large) == (413, "body-too-large")
    assert await refused(large[0], good) == (413, "file-too-large")
    assert not [path for path in stored(settings) if not path.startswith("incoming/")]
    assert await whole(settings, good) == jpeg()
