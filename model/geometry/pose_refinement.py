"""Where a camera must stand for Gaussians to look as its photo does (NoPoSplat, arXiv 2410.24207, section 3.4).

Photometric: the photo and the picture of the Gaussians are compared, coarse to fine, and the pose's six parameters
follow the Gauss-Newton step of Levenberg and Marquardt, with Huber's weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from model.geometry.splatting import Ellipsoids, draw, moved, seen_colours
from model.types import Float64, Tick, UInt8

BLOCKS = (16, 8, 4, 2, 1)
"""Sides, in pixels, of the squares whose mean colours are compared, one after the other. Means of a picture have the
means of its derivatives: what is compared is always the same picture, however coarse."""
ITERATIONS = 6
"""Steps tried at each of them, at most."""
SETTLED = 0.01
"""A step that lessens the error by a smaller share than this is the last."""
OUTLIER = 0.1
"""A difference of colours, of 0 to 1, beyond which it counts linearly."""
WORTH = 0.25
"""A refined pose must lessen the error by this share. In a rendered room (256 x 256 pixels) right poses lessened it by
3 to 18 % as they went wrong, by up to 0.5 degrees: Gaussians never look quite like the photo. Poses a quarter of a
degree off, and more, lessened it by 56 to 94 % as they came back."""
FARTHEST = 10.0
"""Degrees. A pose that has turned by more went astray: of 25 poses 1 to 5 degrees off, 23 came back, 2 turned by 25."""
LEAST_COVER = 0.1
"""Share of the photo that the Gaussians must cover for it to tell the pose."""


@dataclass(frozen=True, slots=True)
class Refined:
    camera_to_world: Float64
    """(4, 4)."""
    before: float
    """Mean error of a pixel that the Gaussians cover (Huber's, colours from 0 to 1), for the pose at the start."""
    after: float
    """And for this one: clearly less, or they are the same pose."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """How well a pose fits, and which way is down."""

    error: float
    gradient: Float64
    """(6,)."""
    curvature: Float64
    """(6, 6)."""


def refine_pose(
    ellipsoids: Ellipsoids, photo: UInt8, K: Float64, camera_to_world: Float64, tick: Tick = lambda _: None
) -> Refined:
    """The pose near `camera_to_world` (4, 4) from which the Gaussians look most like the photo (H, W, 3).

    K: (3, 3) in the photo's pixels. What no Gaussian covers says nothing: the picture is drawn before the photo itself.
    The error is per covered pixel, so that covering less is no gain. `tick` hears the share done, and may raise.
    """
    target = photo.astype(np.float64) / 255
    start = _fit(ellipsoids, seen_colours(ellipsoids, camera_to_world), target, K, camera_to_world, 1)
    pose = camera_to_world
    if np.isfinite(start.error):
        for done, block in enumerate(BLOCKS):
            pose = _settle(ellipsoids, target, K, pose, block, lambda share, d=done: tick((d + share) / len(BLOCKS)))
    end = _fit(ellipsoids, seen_colours(ellipsoids, pose), target, K, pose, 1)
    tick(1.0)
    turned = Rotation.from_matrix(pose[:3, :3].T @ camera_to_world[:3, :3]).magnitude()
    if not end.error < (1 - WORTH) * start.error or np.degrees(turned) > FARTHEST:
        return Refined(camera_to_world, start.error, start.error)
    return Refined(pose, start.error, end.error)


def _settle(ellipsoids: Ellipsoids, target: Float64, K: Float64, pose: Float64, block: int, tick: Tick) -> Float64:
    """The pose, better by the means of blocks; Marquardt's damping is relative, so that no unit matters.

    Meanwhile Gaussians keep the colours in which they are seen from the pose at the start.
    """
    colours = seen_colours(ellipsoids, pose)
    fit = _fit(ellipsoids, colours, target, K, pose, block)
    damping = 1e-3
    for trial in range(ITERATIONS):
        tick(trial / ITERATIONS)
        damped = fit.curvature + damping * np.diag(np.diag(fit.curvature))
        if not np.isfinite(fit.error) or np.linalg.cond(damped) > 1e14:
            break
        there = moved(pose, -np.linalg.solve(damped, fit.gradient))
        tried = _fit(ellipsoids, colours, target, K, there, block)
        if tried.error < fit.error:
            gain = 1 - tried.error / fit.error
            pose, fit, damping = there, tried, damping / 10
            if gain < SETTLED:
                break
        else:
            damping *= 30
    return pose


def _fit(ellipsoids: Ellipsoids, colours: Float64, target: Float64, K: Float64, pose: Float64, block: int) -> _Fit:
    """Error of a pose by the means of blocks x blocks pixels, with Gauss and Newton's derivatives; infinite where the
    Gaussians cover too little."""
    height, width, _ = target.shape
    picture = draw(ellipsoids, colours, pose, K, (height, width), by_pose=True)
    cover = 1 - picture.clear
    if cover.mean() < LEAST_COVER:
        return _Fit(np.inf, np.zeros(6), np.eye(6))
    difference = _means(picture.colour - cover[..., None] * target, block)
    slopes = _means(picture.by_pose[..., :3] + picture.by_pose[..., 3:] * target[:, :, None], block)
    size = np.abs(difference)
    weight = np.minimum(1.0, OUTLIER / np.maximum(size, 1e-12))
    cost = np.where(size < OUTLIER, 0.5 * size**2, OUTLIER * (size - 0.5 * OUTLIER)).sum()
    share = _means(cover, block).sum()
    J = slopes.swapaxes(-1, -2).reshape(-1, 6)
    weighted = J * weight.reshape(-1, 1)
    return _Fit(float(cost / share), weighted.T @ difference.ravel() / share, weighted.T @ J / share)


def _means(values: Float64, block: int) -> Float64:
    """Of (H, W, ...), over squares of so many pixels; what is left at the right and below is left out."""
    height, width = (side // block * block for side in values.shape[:2])
    blocks = values[:height, :width].reshape(height // block, block, width // block, block, *values.shape[2:])
    means: Float64 = blocks.mean(axis=(1, 3))
    return means
