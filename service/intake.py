"""Every way in: whatever a request names its photos by ends as a list of photos to be read."""

from __future__ import annotations

import asyncio
import functools
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import IO, Literal

from service import archive, video
from service.errors import Problem, mebibytes
from service.fetch import Fetcher
from service.images import Source
from service.incoming import Incoming, Upload
from service.settings import Settings
from service.uploads import Wish

TURN_SECONDS = 60.0
"""How long a video waits for those before it: a request does not hang for as long as others send films."""


@dataclass(frozen=True, slots=True)
class Intake:
    """What the ways in need."""

    settings: Settings
    incoming: Incoming
    fetcher: Fetcher
    films: asyncio.Semaphore
    """One for each film that may be decoded at the same time."""

    async def photos(self, wish: Wish, key: str, most: int, stack: AsyncExitStack) -> list[Source]:
        """The photos that a request of an API key sent or named, in order, to be read until the stack is closed; of a
        video, at most `most`. Raises `Problem`."""
        if wish.uploads:
            return await self._uploaded(wish, key, most, stack)
        if wish.urls:
            fetched = await self.fetcher.fetch_all(wish.urls)
            for _, file in fetched:
                stack.callback(file.close)
            return [_source(name, file) for name, file in fetched]
        if wish.archive is not None:
            return await asyncio.to_thread(archive.photos, wish.archive.file, self.settings)
        if wish.video is not None:
            return await self._filmed(wish.video.file, wish.frames, most, stack)
        return [_source(file.filename or "", file.file) for file in wish.images]

    async def _filmed(self, film: IO[bytes], wished: int | None, most: int, stack: AsyncExitStack) -> list[Source]:
        """The frames of a video that are worth reconstructing from."""
        limits = frame_limits(self.settings, wished, most)
        try:
            await asyncio.wait_for(self.films.acquire(), TURN_SECONDS)
        except TimeoutError as error:
            raise Problem(
                429, "too-many-videos", "Other videos are being looked at.", "Try again later.", retry_after=30
            ) from error
        try:
            frames = await asyncio.to_thread(video.frames, film, limits)
        finally:
            self.films.release()
        stack.callback(frames.close)
        return await asyncio.to_thread(archive.photos, frames, self.settings)

    async def _uploaded(self, wish: Wish, key: str, most: int, stack: AsyncExitStack) -> list[Source]:
        """Resumable uploads: photos, or one archive or video."""
        uploads = await _found(wish.uploads, key, self.settings, self.incoming)
        files: list[IO[bytes]] = []
        for upload in uploads:
            try:
                files.append(await self.incoming.open(upload))
            except FileNotFoundError as error:
                raise _unknown(upload.id) from error
            stack.callback(files[-1].close)
        if len(files) == 1:
            head = files[0].read(64)
            files[0].seek(0)
            match kind(head):
                case "archive":
                    return await asyncio.to_thread(archive.photos, files[0], self.settings)
                case "video":
                    return await self._filmed(files[0], wish.frames, most, stack)
        most_bytes = self.settings.max_file_bytes
        for upload in uploads:
            if upload.length > most_bytes:
                raise Problem(
                    413,
                    "file-too-large",
                    f"The photo of upload {upload.id} is larger than {mebibytes(most_bytes)}.",
                    "Send the photo at a lower resolution, or as JPEG.",
                )
        return [_source(upload.name, file) for upload, file in zip(uploads, files, strict=True)]


def kind(head: bytes) -> Literal["archive", "video", "photo"]:
    """What a file is, by its first bytes, where nobody says it. Whether it really is that its reader tells."""
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        return "archive"
    return "video" if video.demuxer(head) else "photo"


def frame_limits(settings: Settings, wished: int | None, most: int) -> video.Limits:
    """How a video is decoded. Problem 422 where more frames are wished for than the model takes."""
    most = min(most, settings.max_photos)
    if wished is not None and wished > most:
        raise Problem(422, "invalid-field", f"frames: At most {most} can be taken.", "Ask for fewer.")
    return video.Limits(
        wished or min(video.USUAL, most), settings.max_video_seconds, settings.max_pixels, settings.video_cpu_seconds
    )


async def _found(ids: tuple[str, ...], key: str, settings: Settings, incoming: Incoming) -> list[Upload]:
    """The uploads' records. Raises Problem where one is unknown, incomplete or named twice, or all are too much."""
    found: list[Upload] = []
    if len(ids) > settings.max_photos:
        raise Problem(422, "too-many-photos", f"{len(ids)} uploads are too many: at most {settings.max_photos}.")
    for id in ids:
        upload = await incoming.get(id, key)
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
            f"The uploads are together larger than {mebibytes(settings.max_body_bytes)}.",
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
