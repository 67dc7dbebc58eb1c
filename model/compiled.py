"""Loops over pixels as machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any], reorder_sums: bool = False) -> Callable[..., Any]:
    """numba.njit without the GIL, cached on disk where some folder can be written to.

    With `reorder_sums`, sums over a loop may be taken in any order, as SIMD must; nan and infinity keep their meaning.
    """
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"} if reorder_sums else False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)
