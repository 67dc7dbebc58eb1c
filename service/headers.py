"""What every answer tells browsers: to guess no types, to pass no addresses on, to run nothing that is not ours."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # A link's token is in its address, which is nobody else's to know.
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
"""Of every answer, unless its route sets them itself."""


def page_policy(*, files: str = "", framed: bool = False) -> str:
    """Of HTML pages: what comes from here runs, WebAssembly and workers of its own included, and nothing else.

    files: another origin that results are fetched from; framed: whether other sites may frame the page.
    """
    ancestors = "*" if framed else "'none'"
    sources = " ".join(filter(None, ("'self'", files, "blob: data:")))
    return (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
        f"connect-src {sources}; img-src {sources}; style-src 'self'; object-src 'none'; base-uri 'none'; "
        f"form-action 'self'; frame-ancestors {ancestors}"
    )


class Hardened:
    """Every answer with HEADERS, and with those that its caller's limits gave it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.setdefault("Content-Security-Policy", page_policy())
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                for name, value in scope.get("state", {}).get("headers", {}).items():
                    headers.append(name, value)
            await send(message)

        await self._app(scope, receive, hardened)


async def docs_page() -> Response:
    """The API's description for people. Swagger UI comes from a CDN; of inline scripts only the page's own runs."""
    page = get_swagger_ui_html(openapi_url="openapi.json", title="Scenelift")
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts]
    page.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src https://cdn.jsdelivr.net {' '.join(hashes)}; "
        "style-src https://cdn.jsdelivr.net 'unsafe-inline'; img-src https://fastapi.tiangolo.com data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page


def matches(header: str, etag: str) -> bool:
    """`If-None-Match` (RFC 9110, 13.1.2): a list of tags, compared weakly."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags
