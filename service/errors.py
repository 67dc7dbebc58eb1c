"""Every error a client may see, as RFC 9457 problem details. Raise `Problem`; app.py turns it into the answer."""

from __future__ import annotations


class Problem(Exception):
    """One clear sentence, the right status, and what to do about it. Never a path, a trace or another user's data."""

    def __init__(
        self, status: int, kind: str, detail: str, suggestion: str = "", *, retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        """Short stable slug, the `type` of the answer: `not-an-image`, `queue-full`, ..."""
        self.detail = detail
        self.suggestion = suggestion
        self.retry_after = retry_after
