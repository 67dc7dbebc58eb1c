"""Which frames of a film to reconstruct from: sharp ones between which the camera moved, and that still overlap.

OpenCV alone, one frame after the other: of a film of any length a handful of frames is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import cv2
import numpy as np

from model.types import Float32, Float64, UInt8

T = TypeVar("T")

PARALLAX = 0.015
"""A step's wished parallax, in shares of the frame's long side."""
STILL = 0.005
"""Parallax below it is what tracking, lens distortion and a rolling shutter feign: the camera only turned."""
LOST, LOST_TURNING = 0.4, 0.6
"""Share of the tracks that a step may lose; more where the camera turns, which frames are spent on only to keep the
film together."""
WINDOW = 4
"""Frames looked at beyond the first that is far enough: the sharpest of them is taken."""
TURN = 0.3
"""What a step on which the camera only turned counts for, of one on which it moved."""
CORNERS = 400
FEW = 12
"""Tracks, too few to tell anything of the camera: a blank wall, a blur, a cut."""
_FOCALS = (0.6, 0.68, 0.76, 0.85, 0.95, 1.07, 1.2, 1.5)
"""Focal lengths tried, in long sides: films seldom tell theirs."""


@dataclass(frozen=True, slots=True)
class Step:
    """How the camera went from the keyframe before."""

    parallax: float
    """In shares of the frame's long side; nan where nothing could be tracked, and at the first frame."""
    shared: float
    """Share of what was tracked that is still seen."""

    @property
    def moved(self) -> bool:
        """Whether the camera moved, for all one can tell; not where it only turned."""
        return not self.parallax < STILL

    @property
    def length(self) -> float:
        """1: far enough for another keyframe."""
        if np.isnan(self.parallax):
            return np.inf
        if self.moved:
            return max(self.parallax / PARALLAX, (1 - self.shared) / LOST)
        return (1 - self.shared) / LOST_TURNING


@dataclass(slots=True)
class _Look(Generic[T]):
    frame: T
    grey: UInt8
    sharpness: float
    step: Step


def keyframes(frames: Iterable[tuple[T, UInt8]]) -> Iterator[tuple[T, Step]]:
    """The frames to take, in order, each with the step to it, of `frames`: anything, with its (h, w) grey copy.

    Equal in size, some 480 pixels long, and so close in time that one can be tracked from the last, a tenth of a second
    or so. A film in which nothing moves yields its sharpest early frame alone.
    """
    tracker: _Tracker | None = None
    near: list[_Look[T]] = []  # since the first frame that is far enough
    latest: _Look[T] | None = None
    for frame, grey in frames:
        step = Step(np.nan, 0.0) if tracker is None else tracker.follow(grey)
        latest = _Look(frame, grey, sharpness(grey), step)
        if step.length >= 1 or near:
            near.append(latest)
        if len(near) > WINDOW or (near and tracker is not None and step.shared < 1 - LOST_TURNING):
            best = max(near, key=lambda look: look.sharpness)
            yield best.frame, best.step
            tracker = _Tracker(best.grey)
            for look in near[near.index(best) + 1 :]:
                tracker.follow(look.grey)
            near, latest = [], None
    # A film's end is worth half a step; a film of some frames still has a first one.
    if not near and latest is not None and latest.step.length >= 0.5:
        near = [latest]
    if near:
        best = max(near, key=lambda look: look.sharpness)
        yield best.frame, best.step


def thin(steps: Sequence[Step], most: int) -> list[int]:
    """Which of these keyframes to keep, in order, where at most so many (2 or more) are wanted: the first, the last,
    and in between those that leave the way in even parts. A turn counts for little of it."""
    gaps = [min(step.length, 2.0) if step.moved else TURN for step in steps]
    kept = list(range(len(steps)))
    while len(kept) > most:
        # What goes is the keyframe between the two shortest gaps, which become one.
        drop = min(range(1, len(kept) - 1), key=lambda i: gaps[kept[i]] + gaps[kept[i + 1]])
        gaps[kept[drop + 1]] += gaps[kept[drop]]
        del kept[drop]
    return kept


def sharpness(grey: UInt8) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000): of two frames that show the same, the sharper has more."""
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


class _Tracker:
    """Corners of a keyframe, followed from frame to frame (Lucas and Kanade, pyramidal: Bouguet 2001)."""

    def __init__(self, grey: UInt8) -> None:
        found = cv2.goodFeaturesToTrack(grey, CORNERS, 0.01, 7)
        self._start = np.zeros((0, 2), np.float32) if found is None else found.reshape(-1, 2)
        self._now = self._start
        self._count = len(self._start)
        self._grey = grey

    def follow(self, grey: UInt8) -> Step:
        """On to the next frame; the step from the keyframe to it."""
        if len(self._now) >= FEW:
            there, found, _ = cv2.calcOpticalFlowPyrLK(self._grey, grey, self._now, None)
            back, found_back, _ = cv2.calcOpticalFlowPyrLK(grey, self._grey, there, None)
            height, width = grey.shape
            kept = (found[:, 0] & found_back[:, 0]).astype(bool)
            kept &= np.linalg.norm(back - self._now, axis=1) < 1
            kept &= ((there >= 0) & (there < (width, height))).all(axis=1)
            self._start, self._now = self._start[kept], there[kept]
        self._grey = grey
        if len(self._now) < FEW:
            return Step(np.nan, 0.0)
        size = max(grey.shape)
        centre = np.array(grey.shape[::-1]) / 2
        parallax = _parallax((self._start - centre) / size, (self._now - centre) / size)
        return Step(parallax, len(self._now) / self._count)


def _parallax(before: Float32, after: Float32) -> float:
    """What no turn of the camera explains of how (n, 2) points moved, in their unit: the residual that seven tenths
    stay below once the best rotation has turned them (Kabsch 1976), whatever the focal length. Most of a view may be
    one wall, whose motion a turn explains well enough, and some tracks go astray: neither is to decide."""
    return min(_turned(before, after, focal) for focal in _FOCALS)


def _turned(before: Float32, after: Float32, focal: float) -> float:
    a, b = (np.column_stack([points, np.full(len(points), focal)]).astype(np.float64) for points in (before, after))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    kept = np.ones(len(a), bool)
    error = np.zeros(len(a))
    for _ in range(2):
        turned = a @ _rotation(a[kept], b[kept]).T
        error = np.linalg.norm(focal * turned[:, :2] / np.maximum(turned[:, 2:], 0.1) - after, axis=1)
        kept = error <= np.quantile(error, 0.9)
    return float(np.quantile(error, 0.7))


def _rotation(a: Float64, b: Float64) -> Float64:
    """(3, 3) the rotation that takes the (n, 3) directions a to b, by least squares."""
    u, _, vt = np.linalg.svd(b.T @ a)
    return u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
