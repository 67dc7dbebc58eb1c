"""Batches made ahead, so that the device never waits; which batch comes at which step is a matter of the step alone."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from train.batch import Batch
from train.frames import Frames, FramesError
from train.stream import Settings, Stream

TRIES = 8
"""Sets of frames that are looked for in place of one that there is not."""
FIELDS = [field.name for field in fields(Batch)]


class Source(Protocol):
    """Where batches come from: rendered rooms, folders of frames, a fixed one."""

    def batch(self, position: int, scenes: int, views: int, side: int) -> Batch:
        """`scenes` scenes of `views` views of side x side pixels; equal positions and sizes give equal batches."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What one step is made of."""

    scenes: int
    views: int
    side: int
    references: tuple[int, ...]
    """The views that paths have as reference, of each scene the same; the views' order has no meaning."""
    novel: int = 0
    """Views more, after the others, for pictures alone."""


class Rooms:
    """Rendered rooms, endlessly; equal positions give equal batches where the stream's `hold` is not 0."""

    def __init__(self, settings: Settings, seed: int, device: torch.device | str, *, workers: int = 0) -> None:
        """settings.side: of the pictures that are kept; batches have that side, or a whole part of it."""
        self._stream = Stream(settings, seed, device, workers=workers)

    def batch(self, position: int, scenes: int, views: int, side: int) -> Batch:
        if position != self._stream.position:
            # A ring that is filled as rooms get ready has taken one a draw at most: those that follow are new.
            self._stream.restore({"position": position, "room": position + self._stream.settings.rooms})
        batch = self._stream.draw(scenes, views)
        factor, rest = divmod(self._stream.settings.side, side)
        if rest:
            raise ValueError(f"pictures of {self._stream.settings.side} pixels give none of {side}")
        return smaller(batch, factor)

    def close(self) -> None:
        self._stream.close()


@dataclass(frozen=True)
class Own:
    """Folders of posed frames, as many scenes of each as it has frames."""

    folders: Sequence[Frames]
    seed: int = 0

    def batch(self, position: int, scenes: int, views: int, side: int) -> Batch:
        """Raises FramesError where a set was not found, or not read, at `TRIES` tries."""
        sizes = np.array([len(frames) for frames in self.folders])
        rng = np.random.default_rng([self.seed, position])
        drawn = rng.choice(len(sizes), size=scenes, p=sizes / sizes.sum())
        return joined([self._one(self.folders[folder], rng, views, side) for folder in drawn])

    def _one(self, frames: Frames, rng: np.random.Generator, views: int, side: int) -> Batch:
        for _ in range(TRIES - 1):
            with suppress(FramesError):
                return frames.draw(int(rng.integers(1 << 62)), 1, views, (side, side))
        return frames.draw(int(rng.integers(1 << 62)), 1, views, (side, side))


def smaller(batch: Batch, factor: int) -> Batch:
    """The same with sides divided by a whole factor.

    Depth is that of a pixel which stays, not a mean over an edge; the picture is the mean around that pixel, and K
    tells where the pixel is: what a pixel shows is exactly at its depth.
    """
    if factor == 1:
        return batch
    middle = factor // 2
    kernel = 2 * middle + 1
    images = F.pad(batch.images.flatten(0, 1), (0, kernel - factor) * 2, mode="replicate")
    images = F.avg_pool2d(images, kernel, factor).unflatten(0, batch.images.shape[:2])
    intrinsics = batch.intrinsics.clone()
    intrinsics[..., :2, :2] /= factor
    intrinsics[..., :2, 2] = (intrinsics[..., :2, 2] - middle - 0.5) / factor + 0.5
    depth, valid = (field[..., middle::factor, middle::factor] for field in (batch.depth, batch.valid))
    return Batch(images, depth, valid, intrinsics, batch.camera_to_world)


@dataclass(frozen=True)
class Mixed:
    """Several sources; each scene is from one of them, drawn by share."""

    sources: Sequence[Source]
    shares: Sequence[float]
    seed: int = 0

    def batch(self, position: int, scenes: int, views: int, side: int) -> Batch:
        rng = np.random.default_rng([self.seed, position])
        counts = rng.multinomial(scenes, np.array(self.shares) / sum(self.shares))
        return joined(
            [
                source.batch(position, int(count), views, side)
                for source, count in zip(self.sources, counts, strict=True)
                if count
            ]
        )


def joined(batches: Sequence[Batch]) -> Batch:
    """The scenes of all, on the device of the first."""
    first, *rest = batches
    moved = [first, *(batch.to(first.images.device) for batch in rest)]
    return Batch(*(torch.cat([getattr(batch, name) for batch in moved]) for name in FIELDS))


class Feed:
    """Batches of steps from `first` on, made by a thread of its own up to `ahead` steps before they are asked for.

    plan(step): what the step is made of, asked for when the batch is made. An error in the thread is raised by `next`.
    """

    def __init__(
        self, source: Source, plan: Callable[[int], Plan], first: int, device: torch.device, ahead: int = 3
    ) -> None:
        self.waited = 0.0
        """Seconds that `next` has waited."""
        self._source, self._plan, self._device = source, plan, device
        self._ready: queue.Queue[tuple[Plan, Batch] | BaseException] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(first,), name="feed", daemon=True)
        self._thread.start()

    def next(self) -> tuple[Plan, Batch]:
        started = time.perf_counter()
        made = self._ready.get()
        self.waited += time.perf_counter() - started
        if isinstance(made, BaseException):
            raise made
        return made

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _work(self, step: int) -> None:
        try:
            while not self._closed.is_set():
                plan = self._plan(step)
                batch = self._source.batch(step, plan.scenes, plan.views + plan.novel, plan.side)
                if self._device.type == "cuda" and batch.images.device.type == "cpu":
                    batch = Batch(*(getattr(batch, name).pin_memory() for name in FIELDS))
                self._ready.put((plan, batch.to(self._device, non_blocking=True)))
                step += 1
        except BaseException as error:  # raised where batches are asked for
            self._ready.put(error)
