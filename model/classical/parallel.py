"""Work on every core while the caller hears of it often enough to cancel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Tick = Callable[[float], None]
"""`tick(fraction)`: a share of the work is done, 0 to 1. May raise to cancel."""

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
