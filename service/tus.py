"""Resumable uploads over HTTP: the tus protocol 1.0.0 (https://tus.io/protocols/resumable-upload), its core and the
extensions below. What has arrived whole is named in the field `uploads` of `POST /reconstruct`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from email.utils import formatdate
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from service.access import Caller, TheCaller
from service.errors import Problem, draining, mebibytes
from service.incoming import Upload
from service.routes import PROBLEMS, Backend, TheBackend
from service.uploads import body

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,termination,checksum"
CHECKSUMS = ("sha1", "sha256")
BODY = "application/offset+octet-stream"
PART_BYTES = 2 << 20
"""What a request holds in memory before it is stored."""
PART_SECONDS = 5.0
"""What has arrived is stored so often, so that an interruption costs a slow client no more."""
METADATA_BYTES = 2048
CHECKSUM_MISMATCH = 460


class _TusRoute(APIRoute):
    """Answers name the protocol's version, refusals among them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_tus(request: Request) -> Response:
            try:
                response = await handle(request)
            except Problem as problem:
                problem.headers["Tus-Resumable"] = VERSION
                raise
            response.headers["Tus-Resumable"] = VERSION
            return response

        return handle_tus


async def _same_version(request: Request, tus_resumable: Annotated[str, Header(description=VERSION)] = "") -> None:
    """Raises Problem 412 where a request speaks another version of the protocol, or none."""
    if tus_resumable != VERSION and request.method != "OPTIONS":
        raise Problem(
            412,
            "unknown-protocol",
            f"Uploads speak tus {VERSION}.",
            f"Send the header Tus-Resumable: {VERSION}.",
            headers={"Tus-Version": VERSION},
        )


router = APIRouter(route_class=_TusRoute, responses=PROBLEMS, dependencies=[Depends(_same_version)])


async def upload_record(id: str, backend: TheBackend, caller: TheCaller) -> Upload:
    """The upload of the address. Problem 404 where it is unknown, or another's than the caller's."""
    found = await backend.incoming.get(id, caller.key)
    if found is None:
        raise Problem(
            404, "unknown-upload", "There is no such upload.", "Uploads are removed some time after their last part."
        )
    return found


TheUpload = Annotated[Upload, Depends(upload_record)]
Checksum = Annotated[str, Header(alias="upload-checksum", description="Algorithm and base64 digest of the body")]
_body = {"requestBody": {"content": {BODY: {"schema": {"type": "string", "format": "binary"}}}}}


@router.options("/uploads", status_code=204)
async def upload_options(backend: TheBackend) -> Response:
    """What of the protocol is spoken here."""
    headers = {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(backend.settings.max_body_bytes),
        "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
    }
    return Response(status_code=204, headers=headers)


@router.post("/uploads", status_code=201, openapi_extra=_body)
async def create_upload(
    request: Request,
    backend: TheBackend,
    caller: TheCaller,
    upload_length: Annotated[int, Header(ge=0, description="Bytes of the whole file")],
    upload_metadata: Annotated[str, Header(description="`filename` and its base64")] = "",
    upload_checksum: Checksum = "",
) -> Response:
    """Begin an upload, with its first bytes or without."""
    most = backend.settings.max_body_bytes
    if upload_length > most:
        raise Problem(413, "file-too-large", f"Uploads have at most {mebibytes(most)}.")
    if not re.fullmatch(r"[!-+\--~]+( [A-Za-z0-9+/]*={0,2})?(,[!-+\--~]+( [A-Za-z0-9+/]*={0,2})?)*|", upload_metadata):
        raise Problem(400, "invalid-metadata", "Upload-Metadata is no list of keys and base64 values.")
    if len(upload_metadata) > METADATA_BYTES:
        raise Problem(413, "invalid-metadata", f"Upload-Metadata has more than {METADATA_BYTES} bytes.")
    upload = await backend.incoming.create(caller.key, upload_length, upload_metadata)
    if _media_type(request) == BODY:
        upload = await _receive(request, backend, caller, upload, upload_checksum)
    return Response(status_code=201, headers={"Location": f"/uploads/{upload.id}"} | _state(upload))


@router.head("/uploads/{id}")
async def get_upload(upload: TheUpload) -> Response:
    """How much of an upload has arrived."""
    headers = {"Upload-Length": str(upload.length), "Cache-Control": "no-store"}
    if upload.metadata:
        headers["Upload-Metadata"] = upload.metadata
    return Response(headers=headers | _state(upload))


@router.patch("/uploads/{id}", status_code=204, openapi_extra=_body)
async def append_to_upload(
    request: Request,
    backend: TheBackend,
    caller: TheCaller,
    upload: TheUpload,
    upload_offset: Annotated[int, Header(ge=0, description="Bytes that have arrived before this request")],
    upload_checksum: Checksum = "",
) -> Response:
    """Go on with an upload where it stopped."""
    if _media_type(request) != BODY:
        raise Problem(415, "not-an-upload", f"The rest of an upload comes as {BODY}.")
    upload = await _receive(request, backend, caller, upload, upload_checksum, upload_offset)
    return Response(status_code=204, headers=_state(upload))


@router.delete("/uploads/{id}", status_code=204)
async def delete_upload(backend: TheBackend, upload: TheUpload) -> Response:
    """Remove an upload and what has arrived of it."""
    async with backend.incoming.appending(upload.id):
        await backend.incoming.remove(upload.id)
    return Response(status_code=204)


@router.post("/uploads/{id}", openapi_extra=_body)
async def overridden(
    request: Request,
    backend: TheBackend,
    caller: TheCaller,
    upload: TheUpload,
    x_http_method_override: Annotated[str, Header()] = "",
) -> Response:
    """For clients that can send no other method: X-HTTP-Method-Override names the one they mean."""
    match x_http_method_override.upper():
        case "PATCH":
            offset = request.headers.get("upload-offset", "")
            if not re.fullmatch(r"[0-9]{1,15}", offset):
                raise Problem(400, "invalid-request", "Upload-Offset is no number.")
            checksum = request.headers.get("upload-checksum", "")
            return await append_to_upload(request, backend, caller, upload, int(offset), checksum)
        case "DELETE":
            return await delete_upload(backend, upload)
        case "HEAD":
            return await get_upload(upload)
    raise Problem(405, "method-not-allowed", "POST cannot be used here.", headers={"Allow": "HEAD, PATCH, DELETE"})


async def _receive(
    request: Request, backend: Backend, caller: Caller, upload: Upload, checksum: str, offset: int | None = None
) -> Upload:
    """Append the request's body. What came of one that was cut off counts, unless a checksum was to cover it whole."""
    wanted, digest = _digest(checksum)
    async with backend.receive(caller), backend.incoming.appending(upload.id) as appender:
        upload = await upload_record(upload.id, backend, caller)  # as it is now that nobody else appends
        if offset is not None and offset != upload.offset:
            raise Problem(
                409,
                "wrong-offset",
                f"{upload.offset} bytes of the upload have arrived, not {offset}.",
                "Go on from the offset that HEAD tells.",
                headers={"Upload-Offset": str(upload.offset)},
            )
        room = upload.length - upload.offset
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > room:
            raise _too_much(upload)
        held: list[str] = []
        try:
            async for part in _parts(request, backend):
                room -= len(part)
                if room < 0:
                    raise _too_much(upload)
                digest.update(part)
                held.append(await appender.write(part))
                await appender.commit([] if wanted else held)
                if not wanted:
                    held.clear()
            if wanted and digest.digest() != wanted:
                raise Problem(CHECKSUM_MISMATCH, "checksum-mismatch", "The body is not what its checksum says.")
            await appender.commit(held)
        except Problem:
            await appender.discard(held)
            raise
    return await upload_record(upload.id, backend, caller)


async def _parts(request: Request, backend: Backend) -> AsyncIterator[bytes]:
    """The body in parts, by size and by time. Raises Problem where it was cut off, once what came of it was taken."""
    stream, buffer, began = body(request, backend.settings), bytearray(), time.monotonic()
    cut: Problem | None = None
    while cut is None:
        try:
            buffer += await anext(stream)
        except StopAsyncIteration:
            break
        except ClientDisconnect:
            cut = Problem(400, "upload-interrupted", "The connection was closed during the upload.")
        except Problem as problem:
            cut = problem
        if backend.watcher.stopping:
            cut = draining()
        if len(buffer) >= PART_BYTES or (buffer and time.monotonic() - began >= PART_SECONDS):
            yield bytes(buffer)
            buffer.clear()
            began = time.monotonic()
    if buffer:
        yield bytes(buffer)
    if cut is not None:
        raise cut


def _digest(checksum: str) -> tuple[bytes, hashlib._Hash]:
    """What `Upload-Checksum` wants, nothing where it is not sent, and what computes it."""
    algorithm, _, wanted = checksum.partition(" ")
    if checksum and algorithm not in CHECKSUMS:
        raise Problem(
            400, "unknown-checksum", "Upload-Checksum names no known algorithm.", f"Known are {', '.join(CHECKSUMS)}."
        )
    digest = hashlib.new(algorithm or CHECKSUMS[0], usedforsecurity=False)
    try:
        decoded = base64.b64decode(wanted, validate=True)
    except binascii.Error:
        decoded = b""
    if checksum and len(decoded) != digest.digest_size:
        raise Problem(400, "invalid-checksum", f"Upload-Checksum holds no {algorithm} digest in base64.")
    return decoded, digest


def _too_much(upload: Upload) -> Problem:
    return Problem(413, "file-too-large", f"The upload was begun for {upload.length} bytes, and no more.")


def _state(upload: Upload) -> dict[str, str]:
    return {"Upload-Offset": str(upload.offset), "Upload-Expires": formatdate(upload.expires_at, usegmt=True)}


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
