"""`model.load(path)`: a ready network from a checkpoint. Imported on use: the rest of this room does without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.checkpoint import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from model.checkpoint import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
