"""Every error a client may see, as RFC 9457 problem details. Raise `Problem`; app.py turns it into the answer."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse


class Problem(Exception):  # noqa: N818 - it is what it is called in RFC 9457
    """One clear sentence, the right status, and what to do about it. Never a path, a trace or another user's data."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        suggestion: str = "",
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        """Short stable slug, the `type` of the answer: `not-an-image`, `queue-full`, ..."""
        self.detail = detail
        self.suggestion = suggestion
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def response(self) -> JSONResponse:
        """The answer, `application/problem+json`."""
        body: dict[str, object] = {
            "type": self.kind,
            "title": self.kind.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
        }
        if self.suggestion:
            body["suggestion"] = self.suggestion
        return JSONResponse(body, self.status, self.headers, media_type="application/problem+json")


def unknown_job() -> Problem:
    return Problem(
        404, "unknown-job", "There is no such job.", "Jobs and their files are removed some time after they end."
    )


def disk_full() -> Problem:
    return Problem(
        507, "disk-full", "The disk is full.", "Try again once results have expired or been deleted.", retry_after=60
    )


def draining() -> Problem:
    return Problem(503, "draining", "This server is stopping and takes no new jobs.", "Try again soon.", retry_after=5)


def mebibytes(count: int) -> str:
    """A number of bytes, as sentences have it."""
    return f"{count / (1 << 20):.4g} MiB"
