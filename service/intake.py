"""Every way in: whatever a request names its photos by ends as a list of photos to be read."""

from __future__ import annotations

import asyncio
import functools
from contextlib import AsyncExitStack
from typing import IO, Literal

from service import archive
from service.errors import Problem
from service.images import Source
from service.incoming import Incoming, Upload
from service.settings import Settings
from service.uploads import Wish


async def photos(wish: Wish, settings: Settings, incoming: Incoming, stack: AsyncExitStack) -> list[Source]:
    """The photos that a request sent or named, in order, to be read until the stack is closed. Raises `Problem`."""
    if wish.uploads:
        return await _uploaded(await _found(wish.uploads, settings, incoming), settings, incoming, stack)
    if wish.archive is not None:
        return await asyncio.to_thread(archive.photos, wish.archive.file, settings)
    return [_source(file.filename or "", file.file) for file in wish.images]


def kind(head: bytes) -> Literal["archive", "photo"]:
    """What a file is, by its first bytes, where nobody says it. Whether it really is that its reader tells."""
    return "archive" if head[:4] in (b"PK\3\4", b"PK\5\6") else "photo"


async def _uploaded(
    uploads: list[Upload], settings: Settings, incoming: Incoming, stack: AsyncExitStack
) -> list[Source]:
    files: list[IO[bytes]] = []
    for upload in uploads:
        try:
            files.append(await incoming.open(upload))
        except FileNotFoundError as error:
            raise _unknown(upload.id) from error
        stack.callback(files[-1].close)
    if len(files) == 1:
        head = files[0].read(64)
        files[0].seek(0)
        if kind(head) == "archive":
            return await asyncio.to_thread(archive.photos, files[0], settings)
    for upload in uploads:
        if upload.length > settings.max_file_bytes:
            raise Problem(
                413,
                "file-too-large",
                f"The photo of upload {upload.id} is larger than {settings.max_file_bytes / (1 << 20):.4g} MiB.",
                "Send the photo at a lower resolution, or as JPEG.",
            )
    return [_source(upload.name, file) for upload, file in zip(uploads, files, strict=True)]


async def _found(ids: tuple[str, ...], settings: Settings, incoming: Incoming) -> list[Upload]:
    """The uploads' records. Raises Problem where one is unknown, incomplete or named twice, or all are too much."""
    found: list[Upload] = []
    if len(ids) > settings.max_photos:
        raise Problem(422, "too-many-photos", f"{len(ids)} uploads are too many: at most {settings.max_photos}.")
    for id in ids:
        upload = await incoming.get(id)
        if upload is None:
            raise _unknown(id)
        if upload.offset < upload.length:
            raise Problem(
                409,
                "upload-incomplete",
                f"Of upload {id} {upload.offset} of {upload.length} bytes have arrived.",
                "Send the rest first.",
            )
        found.append(upload)
    if len(set(ids)) < len(ids):
        raise Problem(422, "invalid-field", "The field uploads names one upload twice.")
    if sum(upload.length for upload in found) > settings.max_body_bytes:
        raise Problem(
            413,
            "body-too-large",
            f"The uploads are together larger than {settings.max_body_bytes / (1 << 20):.4g} MiB.",
            "Send fewer photos, or smaller ones.",
        )
    return found


def _unknown(id: str) -> Problem:
    return Problem(
        422,
        "unknown-upload",
        f"There is no upload {id[:40]!r}.",
        "Uploads are removed once they are part of a job, or some time after their last part.",
    )


def _source(name: str, file: IO[bytes]) -> Source:
    return Source(name, functools.partial(_read, file))


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
