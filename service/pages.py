"""The web page as it was built into `static/`: public, the same for everybody, and nothing of any job in it.

Everything is read once, so that an address only ever looks a name up: no part of it becomes a path of the disk. After a
new build the API is to be started again.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from service.errors import unknown_job
from service.headers import matches, page_policy
from service.jobs import JOB_ID
from service.routes import Backend
from service.schemas import OUTPUTS

STATIC = Path(__file__).with_name("static")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
"""Content types, the same on every machine; results in the gallery have their own."""
COMPRESSED = frozenset((".css", ".html", ".js", ".json", ".svg", ".wasm", ".webmanifest"))
"""What is worth compressing; pictures and scenes are as small as they get."""
NAMED_BY_HASH = re.compile(r"assets/.+-[A-Za-z0-9_-]{8}\.[a-z0-9]+")
"""Files whose name changes with what they hold (Vite's names)."""
ELSEWHERE = {"Cross-Origin-Resource-Policy": "cross-origin"}
"""Of what other sites may embed."""
NOT_BUILT = """<!doctype html><html lang="en"><title>Scenelift</title>
<h1>Scenelift</h1><p>The service is running, but its page has not been built: <code>npm run build</code> in
<code>viewer</code> does that.</p><p><a href="/docs">What it answers to programs</a></p></html>"""


@dataclass(frozen=True)
class File:
    """One file of the page."""

    name: str
    """Its path below `static/`, with `/`."""
    content: bytes

    @cached_property
    def tag(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:32]

    @cached_property
    def zipped(self) -> bytes:
        return gzip.compress(self.content, mtime=0)

    def answer(self, request: Request, headers: Mapping[str, str]) -> Response:
        """The file, compressed where that is worth it and understood; 304 where the caller has it."""
        suffix = PurePosixPath(self.name).suffix
        own = {"Cache-Control": "no-cache"}
        if NAMED_BY_HASH.fullmatch(self.name):
            own["Cache-Control"] = "public, max-age=31536000, immutable"
        content, etag = self.content, f'"{self.tag}"'
        if suffix in COMPRESSED:
            own["Vary"] = "Accept-Encoding"
            if _takes_gzip(request.headers.get("accept-encoding", "")):
                content, etag = self.zipped, f'"{self.tag}-gzip"'
                own["Content-Encoding"] = "gzip"
        own["ETag"] = etag
        if matches(request.headers.get("if-none-match", ""), etag):
            own.pop("Content-Encoding", None)
            return Response(status_code=304, headers=own | dict(headers))
        own["Content-Length"] = str(len(content))
        own["Content-Type"] = TYPES.get(suffix) or OUTPUTS.get(
            PurePosixPath(self.name).name, "application/octet-stream"
        )
        return Response(content if request.method == "GET" else b"", headers=own | dict(headers))


def _takes_gzip(header: str) -> bool:
    """`Accept-Encoding` (RFC 9110, 12.5.3): gzip or anything, and not with a weight of 0."""
    for part in header.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in ("gzip", "*"):
            return re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight) is None
    return False


Pages = dict[str, File]
"""Every file of the page by its name."""


def read(folder: Path) -> Pages:
    """The files in a folder and those below; none where there is no such folder. Links are not followed."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: File(name, path.read_bytes()) for name, path in names.items()}


@cache
def built() -> Pages:
    """What lies in `static/`."""
    return read(STATIC)


async def files(request: Request) -> str:
    """The origin of the bucket where results are fetched from that; else nothing."""
    backend: Backend = request.app.state.backend
    link = await backend.storage.link("file") if backend.settings.storage_redirect else None
    return "" if link is None else "{0.scheme}://{0.netloc}".format(urlsplit(link))


def pages(request: Request) -> Pages:
    found: Pages = request.app.state.pages
    return found


Files = Annotated[str, Depends(files)]
ThePages = Annotated[Pages, Depends(pages)]
router = APIRouter(include_in_schema=False)
GET = ["GET", "HEAD"]


@router.api_route("/", methods=GET)
def home(request: Request, pages: ThePages, files: Files) -> Response:
    """The page."""
    page = pages.get("index.html")
    if page is None:
        return HTMLResponse(NOT_BUILT)
    return page.answer(request, {"Content-Security-Policy": page_policy(files=files)})


@router.api_route("/view/{id}", methods=GET)
def view(request: Request, id: str, pages: ThePages, files: Files) -> Response:
    """A scene alone: of a job, or of the gallery. The page itself asks the API for it, with its reader's own rights:
    whether there is such a job is not told here. Other sites may frame it."""
    page = pages.get("view.html")
    if page is None or not (JOB_ID.fullmatch(id) or f"gallery/{id}/job.json" in pages):
        raise unknown_job()
    policy = page_policy(files=files, framed=True)
    return page.answer(request, {"Content-Security-Policy": policy} | ELSEWHERE)


@router.api_route("/static/{path:path}", methods=GET)
def static(request: Request, path: str, pages: ThePages, files: Files) -> Response:
    """What the pages need. Other sites may load it: the viewer is an element for their pages, too."""
    file = pages.get(path)
    if file is None or path.endswith(".html"):
        raise HTTPException(404)
    headers = ELSEWHERE | {"Access-Control-Allow-Origin": "*"}
    if path.endswith(".js"):
        # A worker goes by the policy that its own script came with.
        headers["Content-Security-Policy"] = page_policy(files=files)
    return file.answer(request, headers)
