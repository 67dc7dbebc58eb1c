"""Work on every core: loops as machine code, in threads whose caller hears of them often enough to cancel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numba

from model.types import Tick

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = 4
"""Threads at most: each holds some hundred MB of cost volume."""
HEARTBEAT = 0.5
"""Seconds between ticks while nothing finishes."""


def each(function: Callable[[Item], Result], items: Sequence[Item], tick: Tick) -> list[Result]:
    """[function(item) for item in items], in threads (numba, OpenCV and COLMAP let others run meanwhile).

    `tick` is called from this thread, at every result and at least every HEARTBEAT. What it or `function` raises
    is raised here, after the threads that run have ended; what has not begun is dropped.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, min(WORKERS, cores(), len(items))))
    try:
        futures = [pool.submit(function, item) for item in items]
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            tick(1.0 - len(pending) / len(futures))
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """How many this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def compiled(function: Callable[..., Any], reorder_sums: bool = False) -> Callable[..., Any]:
    """numba.njit without the GIL, cached on disk where some folder can be written to.

    With `reorder_sums`, sums over a loop may be taken in any order, as SIMD must; nan and infinity keep their meaning.
    """
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"} if reorder_sums else False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)
