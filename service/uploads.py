"""The body of `POST /reconstruct`: read within its limits while it streams; its photos, checked, into storage."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import BinaryIO

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service import images
from service.errors import Problem, mebibytes
from service.schemas import OUTPUTS, Options
from service.settings import Settings
from service.storage import Storage, upload_path

FILES = ("images", "archive", "video")
FIELDS = ("uploads", "image_urls", "model", "frames", "webhook_url", *Options.model_fields)
WAYS = (*FILES, "uploads", "image_urls")
"""The parts of a form that hold photos or name them."""
MOST_FIELDS = 32
"""Parts of a form beside its photos."""
FIELD_BYTES = 4096
STALL_SECONDS = 20.0
"""A body that brings nothing for so long is given up."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a form says. Its photos came in exactly one way."""

    model: str | None
    """The model's name where one was given."""
    options: Options
    images: tuple[UploadFile, ...] = ()
    archive: UploadFile | None = None
    video: UploadFile | None = None
    uploads: tuple[str, ...] = ()
    """Ids of resumable uploads."""
    urls: tuple[str, ...] = ()
    """Addresses of photos."""
    frames: int | None = None
    """How many frames to take of a video, at most, where that was given."""
    webhook: str = ""
    """Address that is told of the job's end."""

    def fingerprint(self) -> str:
        """The same for the same request, whatever its multipart boundary, and whatever is served by now. Reads its
        files."""
        files = [file for file in (*self.images, self.archive, self.video) if file is not None]
        sent = [(file.filename, _digest(file.file)) for file in files]
        asked = [self.model, self.options.model_dump(mode="json"), self.uploads, self.urls, self.frames, self.webhook]
        return hashlib.sha256(json.dumps([sent, asked]).encode()).hexdigest()


class _Parser(MultiPartParser):
    """Starlette's parser, with limits on each photo and on their number."""

    def __init__(self, request: Request, settings: Settings) -> None:
        super().__init__(request.headers, _limited(request, settings), max_part_size=FIELD_BYTES)
        self._most_bytes = settings.max_file_bytes
        self._whole_body = False
        """Whether the part may fill the body: an archive's photos are measured when it is opened."""
        self._most_parts = settings.max_photos + MOST_FIELDS
        self._parts = self._bytes = 0

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._parts += 1
        self._bytes = 0
        if self._parts > self._most_parts:
            raise Problem(422, "too-many-parts", f"The form has more than {self._most_parts} parts.")

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        self._whole_body = self._current_part.field_name in FILES[1:]

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._bytes += end - start
        if self._bytes > self._most_bytes and not self._whole_body:
            raise Problem(
                413,
                "file-too-large",
                f"Part {self._parts} of the form is larger than {mebibytes(self._most_bytes)}.",
                "Send the photo at a lower resolution, or as JPEG.",
            )
        super().on_part_data(data, start, end)


async def read_form(request: Request, settings: Settings) -> FormData:
    """The form; the caller closes it."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(
            415,
            "not-multipart",
            "Photos come as multipart/form-data.",
            "Try: curl -F images=@one.jpg -F images=@two.jpg ...",
        )
    try:
        return await _Parser(request, settings).parse()
    except MultiPartException as error:
        raise Problem(400, "malformed-form", f"The form cannot be read: {error.message}") from error
    except UnicodeError as error:  # a charset such as punycode, which has errors of its own
        raise Problem(400, "malformed-form", "The form cannot be read in the charset that it names.") from error
    except ClientDisconnect as error:
        raise Problem(400, "upload-interrupted", "The connection was closed during the upload.") from error


def read_fields(form: FormData) -> Wish:
    """What is asked for. Raises Problem 422 for what makes no sense."""
    files: dict[str, list[UploadFile]] = {}
    fields: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if name in FILES and isinstance(value, UploadFile):
            files.setdefault(name, []).append(value)
        elif name in FIELDS and isinstance(value, str):
            fields.setdefault(name, []).append(value)
        elif name in FILES or name in FIELDS:
            wanted = "files: send files" if name in FILES else "text: send no file"
            raise Problem(422, "invalid-field", f"The field {name} holds {wanted} in it.")
        else:
            raise Problem(
                422,
                "unknown-field",
                f"There is no field {name[:40]!r}.",
                f"The fields are images (files, repeated), archive or video (a file), {', '.join(FIELDS)}.",
            )
    outputs, resumed = (_listed(fields.pop(name, [])) for name in ("outputs", "uploads"))
    urls = [url for text in fields.pop("image_urls", []) for url in text.split()]
    named = {"uploads": resumed, "image_urls": urls}
    ways = [*files, *(name for name, items in named.items() if items)]
    if len(ways) > 1:
        raise Problem(
            422, "mixed-photos", f"The photos come in {len(ways)} ways: {', '.join(ways)}.", "Send them in one of them."
        )
    repeated = next((name for name, values in (fields | files).items() if len(values) > 1 and name != "images"), None)
    if repeated:
        raise Problem(422, "invalid-field", f"The field {repeated} is given more than once.")
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown:
        raise Problem(
            422, "unknown-output", f"There is no output {unknown[0][:40]!r}.", f"The outputs are {', '.join(OUTPUTS)}."
        )
    values: dict[str, object] = {name: values[0] for name, values in fields.items()}
    model = str(values.pop("model", "")).strip() or None
    webhook = str(values.pop("webhook_url", "")).strip()
    frames = _frames(str(values.pop("frames", "")).strip(), ways)
    try:
        options = Options.model_validate(values | {"outputs": tuple(dict.fromkeys(outputs))})
    except ValidationError as error:
        first = error.errors()[0]
        raise Problem(422, "invalid-field", f"{first['loc'][0]}: {first['msg']}.") from error
    return Wish(
        model,
        options,
        images=tuple(files.get("images", ())),
        archive=next(iter(files.get("archive", ())), None),
        video=next(iter(files.get("video", ())), None),
        uploads=tuple(resumed),
        urls=tuple(urls),
        frames=frames,
        webhook=webhook,
    )


def _frames(text: str, ways: list[str]) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 2 <= int(text[:5]) <= 9999):
        raise Problem(422, "invalid-field", "frames: Input should be a number of frames, at least 2.")
    if ways and ways[0] not in ("video", "uploads"):
        raise Problem(422, "invalid-field", "frames: Only a video has frames to choose from.")
    return int(text)


def _listed(texts: list[str]) -> list[str]:
    """What is given comma-separated, repeated, or both."""
    return [item.strip() for text in texts for item in text.split(",") if item.strip()]


def check_count(photos: int, options: Options, settings: Settings) -> None:
    """Raises Problem 422 where so many photos cannot be one job."""
    if photos < 2:
        raise Problem(
            422,
            "too-few-photos",
            f"{photos} photo{'s' * (photos != 1)} cannot be reconstructed: at least 2 are needed.",
            "Send photos of the same place from different points, as repeated `images` fields.",
        )
    if photos > settings.max_photos:
        raise Problem(
            422,
            "too-many-photos",
            f"{photos} photos are too many: at most {settings.max_photos} are taken.",
            "Choose photos that overlap and together show the whole place.",
        )
    if options.reference != "auto" and options.reference >= photos:
        raise Problem(
            422,
            "invalid-field",
            f"reference: photo {options.reference} does not exist: the {photos} photos are numbered from 0.",
        )


async def store(
    job: str, photos: list[images.Source], settings: Settings, storage: Storage, places: asyncio.Semaphore
) -> list[dict[str, object]]:
    """Check every photo, off the event loop, and put it into storage; what its job says of each. Raises the Problem of
    the first that is not fit.

    `places` bounds how many photos are decoded, and in memory, at a time.
    """

    async def keep(index: int, source: images.Source) -> images.Photo:
        async with places:
            photo, data = await asyncio.to_thread(_look, source, settings.max_pixels)
            await storage.put(upload_path(job, index), data)
            return photo

    answers = await asyncio.gather(*(keep(i, source) for i, source in enumerate(photos)), return_exceptions=True)
    kept = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        kept.append({"name": answer.name, "width": answer.width, "height": answer.height})
    return kept


def _look(source: images.Source, max_pixels: int) -> tuple[images.Photo, bytes]:
    data = source.read()
    return images.inspect(source.name, data, max_pixels=max_pixels), data


def _digest(file: BinaryIO) -> str:
    """SHA-256 of a file, which is left at its beginning."""
    file.seek(0)
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    file.seek(0)
    return digest.hexdigest()


async def body(request: Request, settings: Settings) -> AsyncGenerator[bytes, None]:
    """The body, as it comes. Problem 408 where nothing comes for long, or it takes too long: others want the place."""
    stream, ends = request.stream(), time.monotonic() + settings.upload_seconds
    while True:
        left = ends - time.monotonic()
        try:
            async with asyncio.timeout(min(STALL_SECONDS, left)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            why = "Nothing arrived for too long." if left > STALL_SECONDS else "The upload took too long."
            advice = "On a slow network send resumable uploads: they go on where they stopped."
            raise Problem(408, "upload-stalled", why, advice) from error
        yield chunk


async def _limited(request: Request, settings: Settings) -> AsyncGenerator[bytes, None]:
    """The body, up to the limit."""
    most = settings.max_body_bytes
    too_large = Problem(
        413, "body-too-large", f"The request is larger than {mebibytes(most)}.", "Send fewer photos, or smaller ones."
    )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large
    received = 0
    async for chunk in body(request, settings):
        received += len(chunk)
        if received > most:
            raise too_large
        yield chunk
