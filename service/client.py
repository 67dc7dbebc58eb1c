"""A client of the service, for programs: `Scenelift`, and `AsyncScenelift` to be awaited.

    with Scenelift("http://127.0.0.1:8000") as service:
        job = service.reconstruct(["one.jpg", "two.jpg", "three.jpg"])
        job.wait(on_progress=lambda document: print(document.stage, document.progress))
        job.download("scene")

What is said to the service is written once, as coroutines over a wire. Over the blocking wire nothing ever suspends, so
that one step runs such a coroutine to its end, without an event loop: that is all that makes `Scenelift`.

Of this package it needs the documents, and what tells a film by its first bytes. It follows no address that an answer
names, but for the redirect of a file to its bucket (without the key), and takes no name from there as a path.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.utils
import hashlib
import io
import math
import os
import random
import re
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Protocol, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from service.schemas import (
    FINAL,
    FileDocument,
    HealthDocument,
    JobDocument,
    LinkDocument,
    ModelDocument,
    ModelsDocument,
    ProblemDocument,
    Status,
    WorkerDocument,
    WorkersDocument,
)
from service.video import demuxer

Photo = str | os.PathLike[str] | bytes
"""A file's path, or its content."""
Photos = Photo | Iterable[Photo]
"""Photos of one place, in order; or one zip file of them, or one video."""
Heard = Callable[[JobDocument], object]
"""Called with a job's document at every change."""
Counted = Callable[[int, int], object]
"""Called with the bytes that have been sent or received, and with how many there are."""

ADDRESS = "http://127.0.0.1:8000"
RETRIES = 8
"""Tries after the first that got nowhere: with the pauses between them half a minute, in which a service restarts."""
FIRST_PAUSE, LAST_PAUSE = 0.5, 8.0
"""Seconds, doubled from try to try; up to half of each is left out, by chance."""
LONGEST_PAUSE = 60.0
"""A service that asks to be left alone for longer (`Retry-After`) is not waited for."""
SILENCE = 20.0
"""Seconds after which a stream of events without any, not even a ping (15 s), is given up."""
POLL_SECONDS = 2.0
"""Between two looks at a job where the answer names no time."""
RESUMABLE_BYTES = 32 << 20
"""More than that is sent by resumable uploads."""
CHUNK = 1 << 16
_PATIENCE = httpx.Timeout(30.0, connect=10.0)
_LOOKED_AT = httpx.Timeout(30.0, connect=10.0, read=900.0)
"""For photos: the answer comes when all have been looked at, a video for minutes."""
_HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
PASSING = frozenset((429, 502, 503, 504))
"""Answers after which a request is made again, as after a broken connection."""
_TUS = {"Tus-Resumable": "1.0.0"}

T = TypeVar("T")
Part = tuple[str, tuple[str | None, str | IO[bytes]]]
"""Of a form, as httpx takes them: the field, the file's name where it is one, and the content."""
Document = TypeVar("Document", bound=BaseModel)


class Wishes(TypedDict, total=False):
    """How to reconstruct: the keywords of `reconstruct`. What is left out, or None, is as the service has it."""

    model: str | None
    """One of `models()`."""
    confidence_percentile: float
    """Share, in percent, of the least sure pixels to leave out."""
    outputs: Sequence[str]
    """Names of the result files wanted."""
    max_points: int
    reference: int | Literal["auto"]
    """Index of the photo whose camera is the origin; `auto`: of the one that sees most of the others."""
    focal: Literal["shared", "per-view"] | float
    """One focal length for the photos of one camera, or one a photo; a number: in pixels of the originals."""
    frames: int | None
    """Frames to take of a video, at most."""
    webhook_url: str | None
    """Address that is told of the job's end."""
    idempotency_key: str | None
    """The same key and the same photos make the same job, also in another process. Without one each call makes its own,
    for its tries. Such a request is sent in one piece, however large."""
    on_upload: Counted | None
    """Called while bytes are sent; from the start again where they have to be sent again."""


class SceneliftError(Exception):
    """The root of what the client raises. Its text is one sentence, and one on what to do where the service has it."""


class ServiceError(SceneliftError):
    """The service refused, with problem details (RFC 9457)."""

    def __init__(self, problem: ProblemDocument, retry_after: float | None = None) -> None:
        super().__init__(f"{problem.detail} {problem.suggestion}".strip())
        self.status = problem.status
        """The HTTP status."""
        self.type = problem.type
        """A stable slug: `queue-full`, `not-an-image`, ..."""
        self.title = problem.title
        self.detail = problem.detail
        self.suggestion = problem.suggestion
        self.retry_after = retry_after
        """Seconds after which it may be tried again, where the answer says it."""


class Unreachable(SceneliftError, ConnectionError):  # noqa: N818 - what happened
    """No answer came, or not all of it. What httpx said is the cause."""


class UnexpectedAnswer(SceneliftError):  # noqa: N818
    """What answered is not Scenelift, or of another version; or a file is not what it was said to be."""


class JobFailed(SceneliftError):  # noqa: N818
    """The job ended without a scene. `document.error` says why."""

    def __init__(self, document: JobDocument) -> None:
        error = document.error
        super().__init__(f"{error.detail} {error.suggestion}".strip() if error else "The job failed.")
        self.document = document


class JobCanceled(SceneliftError):  # noqa: N818
    """The job was canceled."""

    def __init__(self, document: JobDocument) -> None:
        super().__init__("The job was canceled.")
        self.document = document


class Timeout(SceneliftError, TimeoutError):  # noqa: N818
    """The job had not ended in the time that was given. It goes on."""


class _Wire(Protocol):
    """What differs between the two clients."""

    @property
    def client(self) -> httpx.Client | httpx.AsyncClient: ...

    async def send(self, request: httpx.Request, follow: bool) -> httpx.Response:
        """The answer, its body to be read with the async methods."""

    async def pause(self, seconds: float) -> None: ...

    async def aside(self, work: Callable[..., T], *arguments: object) -> T:
        """What `work` returns, which reads files for long."""

    async def close(self) -> None: ...


class _Blocking:
    """Async in name alone: nothing here suspends."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    async def send(self, request: httpx.Request, follow: bool) -> httpx.Response:
        response = self.client.send(request, stream=True, follow_redirects=follow)
        assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - how httpx types it
        response.stream = _Steady(response.stream)
        return response

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    async def aside(self, work: Callable[..., T], *arguments: object) -> T:
        return work(*arguments)

    async def close(self) -> None:
        self.client.close()


class _Suspending:
    """On an event loop of asyncio."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def send(self, request: httpx.Request, follow: bool) -> httpx.Response:
        return await self.client.send(request, stream=True, follow_redirects=follow)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def aside(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.to_thread(work, *arguments)

    async def close(self) -> None:
        await self.client.aclose()


class _Steady(httpx.AsyncByteStream):
    """A blocking stream, read as an async one that never suspends."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        self._stream.close()


def _now(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine over the blocking wire returns."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("The blocking client was suspended. This is a bug.")


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that is read while it is sent, and counted; for either wire."""

    def __init__(self, chunks: Iterable[bytes], sent: int, total: int, tell: Counted | None) -> None:
        self._chunks, self._sent, self._total, self._tell = chunks, sent, total, tell

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            yield chunk
            self._count(chunk)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = iter(self._chunks)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:  # a disk may be slow
            yield chunk
            self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self._sent += len(chunk)
        if self._tell is not None:
            self._tell(self._sent, self._total)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file to send, open."""

    name: str
    file: IO[bytes]
    size: int

    @property
    def field(self) -> Literal["images", "archive", "video"]:
        """What it is sent as where it is the only one."""
        self.file.seek(0)
        head = self.file.read(64)
        self.file.seek(0)
        if head[:4] in (b"PK\3\4", b"PK\5\6"):
            return "archive"
        return "video" if demuxer(head) else "images"

    def chunks(self, start: int) -> Iterator[bytes]:
        self.file.seek(start)
        while chunk := self.file.read(CHUNK):
            yield chunk


def _opened(photos: Photos, stack: contextlib.ExitStack) -> list[_Source]:
    """The files, open until the stack is closed. Raises OSError."""
    sources: list[_Source] = []
    for photo in [photos] if isinstance(photos, str | bytes | os.PathLike) else photos:
        file: IO[bytes]
        if isinstance(photo, bytes):
            name, file = f"photo {len(sources) + 1}", io.BytesIO(photo)
        else:
            # What is no text in a name is none in a request either.
            name = Path(photo).name.encode(errors="replace").decode()
            file = Path(photo).open("rb")  # noqa: SIM115 - the stack closes it
        stack.enter_context(file)
        sources.append(_Source(name, file, file.seek(0, os.SEEK_END)))
    return sources


class _Trials:
    """How often what fails is tried again, and after which pause."""

    def __init__(self, wire: _Wire, retries: int, ends: float = math.inf) -> None:
        self._wire, self._retries, self._ends = wire, retries, ends
        self._failed = 0

    def succeed(self) -> None:
        """It got further: the next failure is the first."""
        self._failed = 0

    async def rest(self, problem: SceneliftError, passing: Collection[int] = PASSING) -> None:
        """The pause before the next try. Raises the problem where there is to be none, Timeout where it would be too
        late."""
        self._failed += 1
        pause = min(LAST_PAUSE, FIRST_PAUSE * 2.0 ** (self._failed - 1)) * random.uniform(0.5, 1)  # noqa: S311
        if isinstance(problem, ServiceError):
            passes = problem.status in passing
            pause = max(pause, problem.retry_after or 0)
        else:
            passes = not isinstance(problem.__cause__, _HOPELESS)
        if not passes or self._failed > self._retries or pause > max(LONGEST_PAUSE, LAST_PAUSE):
            raise problem
        await self._wire.pause(min(pause, _left(self._ends)))


class _Service:
    """What is said to the service. Raises SceneliftError.

    Each request may be made again when nobody knows what became of it: photos go with an Idempotency-Key and parts of
    uploads with their offset, canceling and deleting twice is as good as once, and of an upload that was begun twice an
    empty one stays behind, until it expires.
    """

    def __init__(self, wire: _Wire, retries: int) -> None:
        self.wire = wire
        self._retries = retries

    def _trials(self, ends: float = math.inf) -> _Trials:
        return _Trials(self.wire, self._retries, ends)

    def _request(self, method: str, path: str, body: _Body | None = None, **parts: Any) -> httpx.Request:
        """A request to a path below the service's address."""
        request = self.wire.client.build_request(method, path, **parts)
        if body is not None:
            request.stream = body
        return request

    async def _open(
        self, request: httpx.Request, *, fine: Collection[int] = (), follow: bool = False
    ) -> httpx.Response:
        """The answer to one try, its body unread. Raises ServiceError unless it is 2xx or one of those that are fine,
        and Unreachable."""
        try:
            response = await self.wire.send(request, follow)
            if response.is_success or response.status_code in fine:
                return response
            try:
                await response.aread()
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            raise _unreachable(error) from error
        raise _refusal(response)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        fine: Collection[int] = (),
        ends: float = math.inf,
        **parts: Any,
    ) -> httpx.Response:
        """The answer, read whole, after as many tries as it takes, or as are allowed."""
        trials = self._trials(ends)
        while True:
            limits = {"timeout": min(30.0, _left(ends))} if ends < math.inf else {}
            try:
                return await self._whole(self._request(method, path, **(parts | limits)), fine)
            except (ServiceError, Unreachable) as problem:
                await trials.rest(problem)

    async def _whole(self, request: httpx.Request, fine: Collection[int] = ()) -> httpx.Response:
        response = await self._open(request, fine=fine)
        try:
            await response.aread()
        except httpx.RequestError as error:
            raise _unreachable(error) from error
        finally:
            await response.aclose()
        return response

    async def get(self, kind: type[Document], path: str, fine: Collection[int] = ()) -> Document:
        return _document(kind, await self._ask("GET", path, fine=fine))

    async def job(self, id: str) -> JobDocument:
        return await self.get(JobDocument, _job_path(id))

    async def cancel(self, id: str) -> JobDocument:
        return _document(JobDocument, await self._ask("POST", f"{_job_path(id)}/cancel"))

    async def delete(self, id: str) -> None:
        # 404: it is gone, which is what was asked for. Perhaps an earlier try did it.
        await self._ask("DELETE", _job_path(id), fine=(404,))

    async def share(self, id: str, seconds: int) -> LinkDocument:
        answer = await self._ask("POST", f"{_job_path(id)}/links", params={"seconds": seconds})
        link = _document(LinkDocument, answer)
        base = str(self.wire.client.base_url).rstrip("/")
        links = link.links.model_copy(update={name: base + url for name, url in link.links.model_dump().items()})
        files = [file.model_copy(update={"url": base + file.url}) for file in link.files]
        return link.model_copy(update={"page": base + link.page, "links": links, "files": files})

    async def reconstruct(self, photos: Photos, wishes: Wishes) -> JobDocument:
        fields: dict[str, Any] = {name: value for name, value in wishes.items() if value is not None}
        tell: Counted | None = fields.pop("on_upload", None)
        given: str | None = fields.pop("idempotency_key", None)
        fields |= {"outputs": ",".join(fields["outputs"])} if "outputs" in fields else {}
        parts: list[Part] = [(name, (None, str(value))) for name, value in fields.items()]
        headers = {"Idempotency-Key": given or uuid.uuid4().hex}
        with contextlib.ExitStack() as stack:
            sources = await self.wire.aside(_opened, photos, stack)
            # Ids of uploads are part of a request, and new every time: who names a key wants requests to be alike.
            if given is None and sum(source.size for source in sources) > RESUMABLE_BYTES:
                return await self._send_uploads(sources, parts, headers, tell)
            field = sources[0].field if len(sources) == 1 else "images"
            parts += [(field, (source.name, source.file)) for source in sources]
            return await self._send_form(parts, headers, tell)

    async def _send_uploads(
        self, sources: Sequence[_Source], parts: Sequence[Part], headers: Mapping[str, str], tell: Counted | None
    ) -> JobDocument:
        """A job of files that are uploaded first, one by one; where it is refused they are removed."""
        ids: list[str] = []
        sent, total = 0, sum(source.size for source in sources)
        try:
            for source in sources:
                ids.append(await self._create_upload(source))
                await self._upload(ids[-1], source, sent, total, tell)
                sent += source.size
            return await self._send_form([*parts, ("uploads", (None, ",".join(ids)))], headers, None)
        except ServiceError:
            for id in ids:
                with contextlib.suppress(SceneliftError):
                    await self._whole(self._request("DELETE", _upload_path(id), headers=_TUS))
            raise

    async def _send_form(self, parts: Sequence[Part], headers: Mapping[str, str], tell: Counted | None) -> JobDocument:
        trials = self._trials()
        while True:
            request = self._request("POST", "reconstruct", files=parts, headers=headers, timeout=_LOOKED_AT)
            assert isinstance(request.stream, httpx.SyncByteStream)  # noqa: S101 - how httpx types it
            request.stream = _Body(request.stream, 0, int(request.headers["content-length"]), tell)
            try:
                return _document(JobDocument, await self._whole(request))
            except (ServiceError, Unreachable) as problem:
                await trials.rest(problem)  # the key makes it safe

    async def _create_upload(self, source: _Source) -> str:
        name = base64.b64encode(source.name.encode()).decode()
        headers = _TUS | {"Upload-Length": str(source.size), "Upload-Metadata": f"filename {name}"}
        answer = await self._ask("POST", "uploads", headers=headers)
        return str(answer.headers.get("location", "")).rpartition("/")[2]

    async def _upload(self, id: str, source: _Source, sent: int, total: int, tell: Counted | None) -> None:
        """A whole file by tus (https://tus.io/protocols/resumable-upload), from wherever the service has it."""
        path, offset, trials = _upload_path(id), 0, self._trials()
        while offset < source.size:
            headers = _TUS | {
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(source.size - offset),
                "Upload-Offset": str(offset),
            }
            body = _Body(source.chunks(offset), sent + offset, total, tell)
            try:
                await self._whole(self._request("PATCH", path, body, headers=headers, timeout=_LOOKED_AT))
                return
            except (ServiceError, Unreachable) as problem:
                # Too slow for one request; elsewhere by now; or the broken request has not been noticed there yet.
                await trials.rest(problem, PASSING | {408, 409, 423})
            answer = await self._ask("HEAD", path, headers=_TUS)
            arrived = answer.headers.get("upload-offset", "")
            if not arrived.isdigit():
                raise UnexpectedAnswer("The answer does not tell how much of the upload has arrived.")
            if int(arrived) > offset:
                trials.succeed()
            offset = int(arrived)

    async def documents(self, id: str, ends: float) -> AsyncGenerator[JobDocument, None]:
        """The job's document, now and at every change, for as long as it is asked for. Raises Timeout."""
        for way in (self._heard, self._polled):
            async with contextlib.aclosing(way(id, ends)) as documents:
                async for document in documents:
                    yield document

    async def _heard(self, id: str, ends: float) -> AsyncGenerator[JobDocument, None]:
        """From the stream of its events, opened anew where it breaks; it ends where one brings nothing at all."""
        trials, heard = self._trials(ends), True
        while heard:
            silence, heard = min(SILENCE, _left(ends)), False
            try:
                async with contextlib.aclosing(self._events(id, silence)) as events:
                    async for document in events:
                        heard = True
                        trials.succeed()
                        yield document
                        if _left(ends) < silence - 1:
                            break  # how long it may be silent cannot be changed while it is open
                    else:
                        raise Unreachable("The stream of the job's events ended before the job.")
            except (ServiceError, Unreachable) as problem:
                if heard:
                    await trials.rest(problem)

    async def _polled(self, id: str, ends: float) -> AsyncGenerator[JobDocument, None]:
        """By asking again and again, as often as the service says."""
        while True:
            answer = await self._ask("GET", _job_path(id), ends=ends)
            yield _document(JobDocument, answer)
            pause = (_retry_after(answer) or POLL_SECONDS) * random.uniform(1, 1.1)  # noqa: S311 - not all at once
            await self.wire.pause(min(pause, _left(ends)))

    async def _events(self, id: str, silence: float) -> AsyncGenerator[JobDocument, None]:
        """The documents of one stream of events (https://html.spec.whatwg.org/multipage/server-sent-events.html); none
        where the answer is none."""
        timeout = httpx.Timeout(silence, connect=min(10.0, silence))
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        response = await self._open(self._request("GET", f"{_job_path(id)}/events", headers=headers, timeout=timeout))
        try:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                return
            name, data = "", b""
            async with contextlib.aclosing(_lines(response)) as lines:
                async for line in lines:
                    field, _, value = line.partition(b":")
                    value = value.removeprefix(b" ")
                    if field == b"event":
                        name = value.decode(errors="replace")
                    elif field == b"data":
                        data += value + b"\n"
                    elif not line:
                        if name == "status":
                            yield _parsed(JobDocument, data)
                        name, data = "", b""
        except httpx.RequestError as error:
            raise _unreachable(error) from error
        finally:
            await response.aclose()

    async def download(
        self, document: JobDocument, folder: Path, names: Sequence[str], tell: Counted | None
    ) -> list[Path]:
        """The paths of the files that are named, or of all, which are there whole."""
        known = {file.name: file for file in document.files}
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            raise SceneliftError(f"The job has no file {unknown!r}; it has {', '.join(known) or 'none'}.")
        wanted = [known[name] for name in names or known]
        for file in wanted:
            # What a service names is nothing to trust a file system with.
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", file.name):
                raise UnexpectedAnswer(f"The service names a file {file.name!r}, which is not a plain name.")
        folder.mkdir(parents=True, exist_ok=True)
        done, total = 0, sum(file.bytes for file in wanted)

        def count(here: int) -> None:
            if tell is not None:
                tell(done + here, total)

        for file in wanted:
            if not await self.wire.aside(_holds, folder / file.name, file):
                await self._fetch(document.id, file, folder / file.name, count)
            count(file.bytes)
            done += file.bytes
        return [folder / file.name for file in wanted]

    async def _fetch(self, id: str, file: FileDocument, target: Path, count: Callable[[int], None]) -> None:
        """One file, from where an earlier try stopped. It has its name once it is whole."""
        part = target.with_name(f".{file.name}.{hashlib.sha256(file.sha256.encode()).hexdigest()[:16]}.part")
        trials, damaged = self._trials(), False
        while True:
            begun = part.stat().st_size if part.exists() else 0
            try:
                if begun < file.bytes or not part.exists():
                    await self._append(id, file, part, begun, count)
            except (ServiceError, Unreachable) as problem:
                if part.exists() and part.stat().st_size > begun:
                    trials.succeed()
                await trials.rest(problem, PASSING | {416})
                continue
            if await self.wire.aside(_holds, part, file):
                part.replace(target)
                return
            part.unlink()
            if damaged:
                raise UnexpectedAnswer(f"{file.name} did not arrive as the job's document says, twice.")
            damaged = True  # perhaps of an interrupted try: once more, from the start

    async def _append(self, id: str, file: FileDocument, part: Path, begun: int, count: Callable[[int], None]) -> None:
        """What is missing of a file, as far as it comes."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
        path = f"{_job_path(id)}/files/{quote(file.name, safe='')}"
        response = await self._open(self._request("GET", path, headers=headers), follow=True)
        try:
            resumed = response.headers.get("content-range", "").startswith(f"bytes {begun}-") and begun
            here = begun if resumed else 0
            with part.open("ab" if resumed else "wb") as out:
                async for chunk in response.aiter_raw():
                    here += len(chunk)
                    if here > file.bytes:
                        return
                    out.write(chunk)
                    count(here)
        except httpx.RequestError as error:
            raise _unreachable(error) from error
        finally:
            await response.aclose()


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The lines of a stream of events, without their ends; a last one that has no end is none."""
    buffer = b""
    async for chunk in response.aiter_bytes():
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")


def _holds(path: Path, file: FileDocument) -> bool:
    """Whether the whole file is there."""
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _job_path(id: str) -> str:
    return f"jobs/{quote(id, safe='')}"


def _upload_path(id: str) -> str:
    return f"uploads/{quote(id, safe='')}"


def _unreachable(error: httpx.RequestError) -> Unreachable:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        what = "cannot be reached"
    else:
        what = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "broke the connection"
    url = error.request.url
    return Unreachable(f"{url.scheme}://{url.netloc.decode()} {what} ({error or type(error).__name__}).")


def _refusal(response: httpx.Response) -> ServiceError:
    try:
        problem = ProblemDocument.model_validate_json(response.content, extra="ignore")
    except ValidationError:  # a proxy's page
        said = f"{response.status_code} {response.reason_phrase}".strip()
        problem = ProblemDocument(
            type="about:blank", title=said, status=response.status_code, detail=f"The service answered {said}."
        )
    return ServiceError(problem, _retry_after(response))


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of `Retry-After` (RFC 9110, 10.2.3), a number or a date."""
    given = response.headers.get("retry-after", "")
    if re.fullmatch(r"[0-9]{1,9}", given):
        return float(given)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _document(kind: type[Document], response: httpx.Response) -> Document:
    return _parsed(kind, response.content)


def _parsed(kind: type[Document], data: bytes) -> Document:
    try:
        return kind.model_validate_json(data, extra="ignore")
    except ValidationError as error:
        raise UnexpectedAnswer(
            "What answered is not Scenelift, or of a version that this client is not for."
        ) from error


def _left(ends: float) -> float:
    """Seconds until then. Raises Timeout where there are none."""
    left = ends - time.monotonic()
    if left <= 0:
        raise Timeout("The job had not ended in the time that was given.")
    return left


class _Handle:
    """A job, and what was last heard of it."""

    def __init__(self, service: _Service, document: JobDocument) -> None:
        self._service = service
        self.document = document
        """As of the last answer."""

    @property
    def id(self) -> str:
        return self.document.id

    @property
    def status(self) -> Status:
        return self.document.status

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.status}>"

    async def _refresh(self) -> None:
        self.document = await self._service.job(self.id)

    async def _wait(self, timeout: float | None, on_progress: Heard | None) -> None:
        ends = math.inf if timeout is None else time.monotonic() + timeout
        if self.status not in FINAL:
            last = None
            async with contextlib.aclosing(self._service.documents(self.id, ends)) as documents:
                async for document in documents:
                    self.document = document
                    if on_progress is not None and document != last:
                        on_progress(document)
                    if document.status in FINAL:
                        break
                    last = document
        if self.status == "failed":
            raise JobFailed(self.document)
        if self.status == "canceled":
            raise JobCanceled(self.document)

    async def _cancel(self) -> None:
        self.document = await self._service.cancel(self.id)

    async def _download(self, folder: str | os.PathLike[str], names: Sequence[str], tell: Counted | None) -> list[Path]:
        if self.status not in FINAL:
            await self._refresh()
        return await self._service.download(self.document, Path(folder), names, tell)


class Job(_Handle):
    """A job of `Scenelift`. `document` is what was last heard of it. Methods raise SceneliftError."""

    def refresh(self) -> Self:
        """Ask how it stands."""
        _now(self._refresh())
        return self

    def wait(self, *, timeout: float | None = None, on_progress: Heard | None = None) -> Self:
        """Wait until it has succeeded, for `timeout` seconds at most (a second more or less). `on_progress` is called
        with its document at every change.

        Raises JobFailed, JobCanceled, and Timeout: it may be waited for again.
        """
        _now(self._wait(timeout, on_progress))
        return self

    def cancel(self) -> Self:
        """Stop it. One that has ended stays as it is."""
        _now(self._cancel())
        return self

    def delete(self) -> None:
        """Stop it where needed, and remove it and all its files from the service."""
        _now(self._service.delete(self.id))

    def share(self, seconds: int = 3600) -> LinkDocument:
        """Addresses, whole ones, that let whoever has them read the job without a key, for up to a week."""
        return _now(self._service.share(self.id, seconds))

    def download(self, folder: str | os.PathLike[str], *names: str, on_progress: Counted | None = None) -> list[Path]:
        """Write its files, those that are named or all, into a folder, which is made where needed; their paths.

        A file has its name once it is whole and has the SHA-256 that the job's document says. What breaks off goes on
        where it stopped, also in a later call; what is there already is not fetched again. Raises OSError too.
        """
        return _now(self._download(folder, names, on_progress))


class AsyncJob(_Handle):
    """A job of `AsyncScenelift`: a `Job` whose methods are awaited."""

    async def refresh(self) -> Self:
        """As `Job.refresh`."""
        await self._refresh()
        return self

    async def wait(self, *, timeout: float | None = None, on_progress: Heard | None = None) -> Self:
        """As `Job.wait`."""
        await self._wait(timeout, on_progress)
        return self

    async def cancel(self) -> Self:
        """As `Job.cancel`."""
        await self._cancel()
        return self

    async def delete(self) -> None:
        """As `Job.delete`."""
        await self._service.delete(self.id)

    async def share(self, seconds: int = 3600) -> LinkDocument:
        """As `Job.share`."""
        return await self._service.share(self.id, seconds)

    async def download(
        self, folder: str | os.PathLike[str], *names: str, on_progress: Counted | None = None
    ) -> list[Path]:
        """As `Job.download`."""
        return await self._download(folder, names, on_progress)


def _headers(api_key: str | None) -> dict[str, str]:
    key = os.environ.get("SCENELIFT_API_KEY", "") if api_key is None else api_key
    return {"User-Agent": "scenelift-python/0.1.0"} | ({"Authorization": f"Bearer {key}"} if key else {})


class Scenelift:
    """A Scenelift service. May be used by several threads. Methods raise SceneliftError.

    Where the connection breaks, or the service is busy (429, 502, 503, 504), a request is made again, at most `retries`
    times and not before `Retry-After` says. None does harm twice: photos that are sent again make the same job.
    """

    def __init__(self, base_url: str = ADDRESS, api_key: str | None = None, *, retries: int = RETRIES) -> None:
        """`api_key`: by default the environment's SCENELIFT_API_KEY; "": none."""
        client = httpx.Client(base_url=base_url, headers=_headers(api_key), timeout=_PATIENCE)
        self._service = _Service(_Blocking(client), retries)

    def reconstruct(self, photos: Photos, **wishes: Unpack[Wishes]) -> Job:
        """Send photos, read from disk while they are sent; the job that the service makes of them. The keywords are
        those of `Wishes`.

        Raises ServiceError where the service does not take them, OSError where they cannot be read.
        """
        return Job(self._service, _now(self._service.reconstruct(photos, wishes)))

    def job(self, id: str) -> Job:
        """A job by its id."""
        return Job(self._service, _now(self._service.job(id)))

    def models(self) -> list[ModelDocument]:
        """The models that jobs may name."""
        return _now(self._service.get(ModelsDocument, "models")).models

    def health(self) -> HealthDocument:
        """Whether jobs can be done, and why not. That they cannot raises nothing."""
        return _now(self._service.get(HealthDocument, "health", fine=(503,)))

    def workers(self) -> list[WorkerDocument]:
        """The workers, as their last heartbeats tell."""
        return _now(self._service.get(WorkersDocument, "workers")).workers

    def close(self) -> None:
        """Close its connections."""
        _now(self._service.wire.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncScenelift:
    """A `Scenelift` whose methods are awaited, on an event loop of asyncio. Callbacks are called on it, and not
    awaited."""

    def __init__(self, base_url: str = ADDRESS, api_key: str | None = None, *, retries: int = RETRIES) -> None:
        """As `Scenelift`."""
        client = httpx.AsyncClient(base_url=base_url, headers=_headers(api_key), timeout=_PATIENCE)
        self._service = _Service(_Suspending(client), retries)

    async def reconstruct(self, photos: Photos, **wishes: Unpack[Wishes]) -> AsyncJob:
        """As `Scenelift.reconstruct`."""
        return AsyncJob(self._service, await self._service.reconstruct(photos, wishes))

    async def job(self, id: str) -> AsyncJob:
        """As `Scenelift.job`."""
        return AsyncJob(self._service, await self._service.job(id))

    async def models(self) -> list[ModelDocument]:
        """As `Scenelift.models`."""
        return (await self._service.get(ModelsDocument, "models")).models

    async def health(self) -> HealthDocument:
        """As `Scenelift.health`."""
        return await self._service.get(HealthDocument, "health", fine=(503,))

    async def workers(self) -> list[WorkerDocument]:
        """As `Scenelift.workers`."""
        return (await self._service.get(WorkersDocument, "workers")).workers

    async def close(self) -> None:
        """As `Scenelift.close`."""
        await self._service.wire.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
