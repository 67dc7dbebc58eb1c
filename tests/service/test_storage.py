from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from service.storage import CHUNK, Storage, _write, result_path, upload_path


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "data")


async def test_what_is_put_is_got_whole_and_in_ranges(storage):
    data = os.urandom(3 * CHUNK + 5)
    await storage.put("jobs/a/1/scene.ply", data)
    assert await storage.get("jobs/a/1/scene.ply") == data
    assert await storage.exists("jobs/a/1/scene.ply")
    chunks = [chunk async for chunk in storage.stream("jobs/a/1/scene.ply", 7, len(data) - 3)]
    assert b"".join(chunks) == data[7:-3]
    assert max(map(len, chunks)) <= CHUNK


async def test_what_is_missing_is_said(storage):
    with pytest.raises(FileNotFoundError):
        await storage.get("jobs/a/1/scene.ply")
    assert not await storage.exists("jobs/a/1/scene.ply")
    await storage.remove("jobs/a")


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


async def test_what_a_killed_write_left_is_scrapped_once_it_is_old(storage, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        patch.setattr(Path, "unlink", killed)  # a process that is killed tidies nothing up
        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path / "data", upload_path("a", 0), b"half a photo", os.replace)

    def on_disk():
        return [path for path in (tmp_path / "data").rglob("*") if path.is_file()]

    (left,) = on_disk()
    await storage.scrap(older_than=60)
    assert on_disk() == [left], "it may still be being written"
    os.utime(left, (1, 1))
    await storage.scrap(older_than=60)
    assert on_disk() == []


async def test_a_zip_streams_in_chunks(storage):
    sizes = {"scene.ply": 24 * CHUNK + 1, "empty.bin": 0, "cameras.json": 10}
    contents = {name: os.urandom(size) for name, size in sizes.items()}
    for name, data in contents.items():
        await storage.put(f"jobs/a/1/{name}", data)
    archive = io.BytesIO()
    async for chunk in storage.zip([(name, f"jobs/a/1/{name}", size) for name, size in sizes.items()]):
        assert len(chunk) <= 2 * CHUNK
        archive.write(chunk)
    with zipfile.ZipFile(archive) as found:
        assert found.testzip() is None
        assert {name: found.read(name) for name in found.namelist()} == contents
