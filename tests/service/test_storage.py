from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import logging
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator

import httpx
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from service.pages import File
from service.storage import CHUNK, Storage, result_path, upload_path, zip_size
from tests.service.support import SMALL, ended, form, serving, settled, stored, working


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server of buckets on loopback."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bucket(s3, monkeypatch) -> str:
    """The URL of an empty bucket's prefix."""
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("REGION", "us-east-1"), ("ENDPOINT", s3)):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert httpx.post(f"{s3}/moto-api/reset", timeout=60).status_code == 200
    assert httpx.put(f"{s3}/scenes", timeout=60).status_code == 200
    return "s3://scenes/of/mine"


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "data")


@pytest.fixture(params=["folder", "bucket"])
def either(request, tmp_path):
    """Storage in a folder, and in a bucket."""
    return Storage(tmp_path / "data", request.getfixturevalue("bucket") if request.param == "bucket" else "")


async def test_what_is_put_is_got_whole_and_in_ranges(either):
    data = os.urandom(3 * CHUNK + 5)
    await either.put("jobs/a/1/scene.ply", data)
    assert await either.get("jobs/a/1/scene.ply") == data
    assert await either.exists("jobs/a/1/scene.ply")
    chunks = [chunk async for chunk in either.stream("jobs/a/1/scene.ply", 7, len(data) - 3)]
    assert b"".join(chunks) == data[7:-3]
    assert max(map(len, chunks)) <= CHUNK


async def test_what_is_missing_is_said(either):
    with pytest.raises(FileNotFoundError):
        await either.get("jobs/a/1/scene.ply")
    assert not await either.exists("jobs/a/1/scene.ply")
    await either.remove("jobs/a")


async def test_removal_takes_one_job_and_its_empty_folders(storage, tmp_path):
    for path in (upload_path("a", 0), upload_path("a", 1), upload_path("ab", 0), result_path("a", 1, "scene.ply")):
        await storage.put(path, b"x")
    await storage.remove("uploads/a")
    assert sorted(await storage.jobs("uploads")) == ["ab"]
    assert sorted(await storage.jobs("jobs")) == ["a"]
    assert not (tmp_path / "data" / "uploads" / "a").exists()


async def test_age_counts_from_a_jobs_newest_object(storage, tmp_path):
    await storage.put(upload_path("a", 0), b"x")
    await storage.put(upload_path("a", 1), b"x")
    old = tmp_path / "data" / "uploads" / "a" / "0"
    os.utime(old, (1, 1))
    assert await storage.jobs("uploads", older_than=60) == []
    os.utime(old.with_name("1"), (1, 1))
    assert await storage.jobs("uploads", older_than=60) == ["a"]


async def test_a_full_disk_is_an_oserror(storage, tmp_path):
    (tmp_path / "data" / "jobs").write_bytes(b"a file where a folder must be")
    with pytest.raises(OSError):
        await storage.put("jobs/a/1/scene.ply", b"x")


async def test_a_zip_streams_in_chunks(either):
    sizes = {"scene.ply": 8 * CHUNK + 1, "empty.bin": 0, "cameras.json": 10}
    contents = {name: os.urandom(size) for name, size in sizes.items()}
    for name, data in contents.items():
        await either.put(f"jobs/a/1/{name}", data)
    archive = io.BytesIO()
    async for chunk in either.zip([(name, f"jobs/a/1/{name}", size) for name, size in sizes.items()]):
        assert len(chunk) <= 2 * CHUNK
        archive.write(chunk)
    assert archive.tell() == zip_size([(name, "", size) for name, size in sizes.items()])
    with zipfile.ZipFile(archive) as found:
        assert {entry.compress_type for entry in found.infolist()} == {zipfile.ZIP_STORED}
        assert found.testzip() is None
        assert {name: found.read(name) for name in found.namelist()} == contents


async def test_a_removal_takes_one_folder_and_no_other(either):
    for path in (upload_path("a", 0), upload_path("a", 1), upload_path("ab", 0), result_path("a", 1, "scene.ply")):
        await either.put(path, bytearray(b"x"))
    assert sorted(await either.names("uploads/a")) == ["0", "1"]
    await either.remove("uploads/a")
    await either.delete("uploads/a/0")
    assert await either.jobs("uploads") == ["ab"]
    assert await either.jobs("jobs") == ["a"]


async def test_of_many_that_create_an_object_one_does(either):
    made = await asyncio.gather(*(either.create("webhooks/secret", bytes([i])) for i in range(8)))
    assert sorted(made) == [False] * 7 + [True]
    assert await either.get("webhooks/secret") == bytes([made.index(True)])


async def test_a_bucket_that_is_away_is_an_oserror(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("service.storage.RETRIES", {"max_retries": 0})
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    storage = Storage(tmp_path / "data", bucket)
    for call in (storage.get("keys/a"), storage.put("keys/a", b""), storage.exists("keys/a"), storage.names("keys")):
        with pytest.raises(OSError):
            await call


async def test_what_is_written_lies_on_the_disk_before_it_appears(storage, tmp_path, monkeypatch):
    """The file, its name, and the names of the folders that were made for it."""
    events = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        fsync(descriptor)
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def replaced(source, target):
        replace(source, target)
        events.append("appears")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    await storage.put("jobs/a/1/scene.ply", b"x")
    data = str((tmp_path / "data").resolve())
    before, after = events[: events.index("appears")], events[events.index("appears") + 1 :]
    assert f"{data}/drafts/" in before[1]
    assert before[2:] == [data, f"{data}/jobs", f"{data}/jobs/a"]
    assert after == [f"{data}/jobs/a/1"]
    assert os.listdir(f"{data}/drafts") == []


async def test_a_write_that_fails_leaves_what_was_there(storage, tmp_path, monkeypatch):
    await storage.put("jobs/a/1/scene.ply", b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        await storage.put("jobs/a/1/scene.ply", b"new")
    assert caught.value.errno == errno.ENOSPC
    assert await storage.get("jobs/a/1/scene.ply") == b"old"
    assert os.listdir(tmp_path / "data" / "drafts") == []


async def test_what_a_killed_writer_left_is_swept(settings):
    left = settings.data_dir / "drafts" / "left"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    left.with_name("young").write_bytes(b"half")
    os.utime(left, (1, 1))
    async with working(settings):
        async with asyncio.timeout(10):
            while left.exists():
                await asyncio.sleep(0.02)
    assert os.listdir(left.parent) == ["young"]


async def test_a_job_with_its_files_in_a_bucket(settings, bucket):
    settings = settings.model_copy(update={"storage_url": bucket, "storage_redirect": True})
    async with working(settings), serving(settings) as client:
        job = (await client.post("/reconstruct", files=form(), data=SMALL)).json()["id"]
        done = await ended(client, job)
        assert done["status"] == "succeeded"
        assert await settled(settings) == [], "nothing of it is here"
        file = done["files"][0]
        sent = await client.get(file["url"])
        assert (sent.status_code, sent.headers["cache-control"]) == (307, "no-store")
        client.app.state.pages = {"index.html": File("index.html", b"<p>")}
        origin = str(httpx.URL(sent.headers["location"]).copy_with(raw_path=b"")).rstrip("/")
        assert f"connect-src 'self' {origin} " in (await client.get("/")).headers["content-security-policy"]
        async with httpx.AsyncClient() as anybody:
            got = await anybody.get(sent.headers["location"])
            part = await anybody.get(sent.headers["location"], headers={"Range": "bytes=0-9"})
        assert hashlib.sha256(got.content).hexdigest() == file["sha256"]
        assert got.headers["content-type"] == file["content_type"]
        assert got.headers["content-disposition"] == f'attachment; filename="{file["name"]}"'
        assert (part.status_code, part.content) == (206, got.content[:10])
        head = await client.head(file["url"])
        assert (head.status_code, head.headers["content-length"]) == (200, str(file["bytes"]))
        archive = await client.get(f"/jobs/{job}/files/all.zip")
        assert len(zipfile.ZipFile(io.BytesIO(archive.content)).namelist()) == 2
        assert (await client.delete(f"/jobs/{job}")).status_code == 204
        async with httpx.AsyncClient() as anybody:
            assert (await anybody.get(sent.headers["location"])).status_code == 404
        assert await Storage.of(settings).jobs("jobs") == []


async def test_a_full_disk_takes_no_jobs_and_loses_none(settings, monkeypatch):
    """What was accepted before goes on once there is room again."""
    free = 2 << 20
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=free))
    async with working(settings), serving(settings) as client:
        refused = await client.post("/reconstruct", files=form(), data=SMALL)
        assert (refused.status_code, refused.json()["type"], refused.headers["retry-after"]) == (507, "disk-full", "60")
        tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "3", "Content-Type": "application/offset+octet-stream"}
        assert (await client.post("/uploads", headers=tus, content=b"abc")).status_code == 507
        assert (await client.get("/readyz")).json()["reasons"] == ["The disk is full."]
        assert stored(settings) == []
        async with serving(settings.model_copy(update={"min_free_bytes": 1 << 20})) as modest:
            job = (await modest.post("/reconstruct", files=form(), data=SMALL)).json()["id"]
        await asyncio.sleep(0.3)
        assert (await client.get(f"/jobs/{job}")).json()["status"] == "queued"
        free = 1 << 40
        assert (await ended(client, job))["status"] == "succeeded"


async def test_a_job_that_fills_the_disk_waits_for_room(settings, monkeypatch):
    free, writes = [1 << 40], []
    usage, put = shutil.disk_usage, Storage.put
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=free[0]))

    async def filled(self, path, data):
        if path.startswith("jobs/") and len(writes) < settings.max_attempts + 2:
            writes.append(path)
            free[0] = 1
            asyncio.get_running_loop().call_later(0.05, free.__setitem__, 0, 1 << 40)
            raise OSError(errno.ENOSPC, "No space left on device")
        await put(self, path, data)

    monkeypatch.setattr(Storage, "put", filled)
    async with working(settings), serving(settings) as client:
        job = (await client.post("/reconstruct", files=form(), data=SMALL)).json()["id"]
        assert (await ended(client, job))["status"] == "succeeded"
        assert len(writes) == settings.max_attempts + 2
