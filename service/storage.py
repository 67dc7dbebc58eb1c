"""Photos and results: objects in a folder or a bucket. Every path is made of generated ids, indices and known names."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import secrets
import shutil
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import obstore
from obstore.store import LocalStore, S3Store
from typing_extensions import Buffer

from service.schemas import OUTPUTS
from service.settings import Settings

if TYPE_CHECKING:
    from obstore import Attributes
    from obstore.store import RetryConfig

CHUNK = 1 << 20
"""Bytes read at a time: what a download holds in memory."""
DRAFTS = "drafts"
"""Where files are written before they appear, on the same file system."""
TRIES = 5
LINK_SECONDS = 300
RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
"""Of requests to a bucket: shorter than obstore's own three minutes, as somebody waits."""


class Storage:
    """`incoming/<upload>/<part>`, `uploads/<job>/<index>`, `jobs/<job>/<attempt>/<file>`, `keys/<id>.json` and
    `webhooks/secret` under one folder, or one prefix of a bucket.

    Writes are atomic and outlast a loss of power: what is there has been told to the disk, not to its cache alone.
    """

    def __init__(self, folder: Path, url: str = "") -> None:
        """In `folder`, or in the bucket that `url` names (`s3://bucket/prefix`), with what the environment says of it
        (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT`, ...)."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = None if url else folder
        self._store: LocalStore | S3Store
        if url:
            self._store = S3Store.from_url(url, retry_config=RETRIES)
        else:
            self._store = LocalStore(folder, automatic_cleanup=True)

    @classmethod
    def of(cls, settings: Settings) -> Storage:
        """Where the settings say."""
        return cls(settings.data_dir, settings.storage_url)

    async def put(self, path: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object whole: it appears complete or not at all. OSError where the disk is full or gone."""
        if self._folder is not None:
            await asyncio.to_thread(_write, self._folder, path, data, os.replace)
            return
        content = bytes(data) if isinstance(data, bytearray) else data
        with _os_errors(path):
            await obstore.put_async(self._store, path, content, attributes=_attributes(path))

    async def create(self, path: str, data: bytes) -> bool:
        """Write an object whole where there is none yet; False where there is one, which stays."""
        try:
            if self._folder is not None:
                await asyncio.to_thread(_write, self._folder, path, data, os.link)
            else:
                with _os_errors(path):
                    await obstore.put_async(self._store, path, data, mode="create")
        except FileExistsError:
            return False
        return True

    async def link(self, path: str) -> str | None:
        """An address of the bucket from which anybody may read the object for LINK_SECONDS; None of a folder."""
        if isinstance(self._store, LocalStore):
            return None
        with _os_errors(path):
            return await obstore.sign_async(self._store, "GET", path, timedelta(seconds=LINK_SECONDS))

    async def get(self, path: str) -> bytes:
        """A whole object. FileNotFoundError where there is none."""
        with _os_errors(path):
            result = await obstore.get_async(self._store, path)
            return bytes(await result.bytes_async())

    async def stream(self, path: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes [start, end) of an object, a chunk at a time. FileNotFoundError where there is none."""
        for at in range(start, end, CHUNK):
            with _os_errors(path):
                chunk = await obstore.get_range_async(self._store, path, start=at, end=min(at + CHUNK, end))
            yield bytes(chunk)

    async def exists(self, path: str) -> bool:
        try:
            with _os_errors(path):
                await obstore.head_async(self._store, path)
        except FileNotFoundError:
            return False
        return True

    async def delete(self, path: str) -> None:
        """Remove one object; nothing there is fine."""
        with _os_errors(path), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._store, path)

    async def remove(self, prefix: str) -> None:
        """Remove everything under `prefix`; nothing there is fine."""
        with _os_errors(prefix):
            async for page in obstore.list(self._store, prefix):
                for found in page:
                    await self.delete(found["path"])

    async def names(self, folder: str) -> list[str]:
        """Names of the objects right under `folder`."""
        with _os_errors(folder):
            found = await obstore.list_with_delimiter_async(self._store, folder)
        return [entry["path"].rpartition("/")[2] for entry in found["objects"]]

    async def jobs(self, part: str, *, older_than: float = 0.0) -> list[str]:
        """Ids of the jobs (of `incoming`, uploads) with objects in `part`, all of them older than so many seconds."""
        newest: dict[str, datetime] = {}
        with _os_errors(part):
            async for page in obstore.list(self._store, part):
                for found in page:
                    job = found["path"].split("/")[1]
                    newest[job] = max(found["last_modified"], newest.get(job, found["last_modified"]))
        limit = datetime.now(UTC) - timedelta(seconds=older_than)
        return [job for job, changed in newest.items() if changed <= limit]

    async def remove_drafts(self, *, older_than: float) -> None:
        """Remove what writers that were killed have left half-written, so many seconds ago."""
        if self._folder is not None:
            await asyncio.to_thread(_remove_drafts, self._folder / DRAFTS, time.time() - older_than)

    async def zip(self, entries: Sequence[tuple[str, str, int]]) -> AsyncIterator[bytes]:
        """Stream a zip of (name, path, bytes) entries: stored, not compressed, holding one chunk at a time."""
        sink = _Sink()
        with zipfile.ZipFile(cast(IO[bytes], sink), "w", zipfile.ZIP_STORED) as archive:
            for name, path, size in entries:
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=size >= 1 << 31) as member:
                    async for chunk in self.stream(path, 0, size):
                        await asyncio.to_thread(member.write, chunk)  # the checksum of a chunk takes a moment
                        yield sink.take()
        yield sink.take()


def has_room(settings: Settings) -> bool:
    """Whether the disk has more free bytes than are to stay free."""
    return shutil.disk_usage(settings.data_dir).free >= settings.min_free_bytes


def lacks_room(error: OSError) -> bool:
    """Whether it says that there is no room left; others may make some."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _attributes(path: str) -> Attributes:
    """What a bucket tells of an object to those who read it there."""
    name = path.rpartition("/")[2]
    kind = OUTPUTS.get(name, "application/octet-stream")
    return {"Content-Type": kind, "Content-Disposition": f'attachment; filename="{name}"'}


def _write(folder: Path, path: str, data: bytes | bytearray | memoryview, appear: Callable[[Path, Path], None]) -> None:
    """Write a file, wait until it lies on the disk, then let it `appear` under its name, and wait for that too.

    obstore's own writes do neither wait.
    """
    target, draft = folder / path, folder / DRAFTS / secrets.token_hex(8)
    try:
        for _ in range(TRIES):
            with contextlib.suppress(FileNotFoundError):  # a removal took an empty folder away in between
                _make_folder(draft.parent)
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                _make_folder(target.parent)
                appear(draft, target)
                _sync_folder(target.parent)
                return
        raise FileNotFoundError(path)
    finally:
        draft.unlink(missing_ok=True)


def _remove_drafts(folder: Path, before: float) -> None:
    for draft in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has just appeared
            if draft.stat().st_mtime < before:
                draft.unlink()


def _make_folder(folder: Path) -> None:
    """A folder with all above it, each of them entered on the disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """The store's own errors as what they are: the disk's, or the network's. A missing object already is one."""
    try:
        yield
    except obstore.exceptions.AlreadyExistsError as error:
        raise FileExistsError(path) from error
    except obstore.exceptions.BaseError as error:
        raise OSError(f"storage failed at {path}") from error


class _Sink(io.RawIOBase):
    """A file that zipfile can only append to, and whose bytes are taken away as they come."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        self._waiting += data
        return memoryview(data).nbytes

    def take(self) -> bytes:
        taken = bytes(self._waiting)
        self._waiting.clear()
        return taken


def zip_size(entries: Sequence[tuple[str, str, int]]) -> int | None:
    """Bytes of what `Storage.zip` streams; None from 2 GiB on, where its headers grow.

    PKWARE's APPNOTE 4.3: a member has a header of 30 bytes, one of 46 in the directory, each with its name, and a
    descriptor of 16 after its data; the end has 22.
    """
    size = 22 + sum(30 + 46 + 16 + 2 * len(name.encode()) + size for name, _, size in entries)
    return size if size < 1 << 31 else None


def incoming_path(upload: str, part: str) -> str:
    return f"incoming/{upload}/{part}"


def upload_path(job: str, index: int) -> str:
    return f"uploads/{job}/{index}"


def result_path(job: str, attempt: int, name: str) -> str:
    return f"jobs/{job}/{attempt}/{name}"
