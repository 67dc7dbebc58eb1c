"""Which pixels of two views show the same point, by pointmaps or by descriptors; and where the two cameras stand.

Matches are (M, 2) int64: a pixel's flat index (row x width + column) in the first view and in the second. Pixels'
places are given relative to the principal point, in any unit: in that unit are the focal lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import poselib
from numpy.typing import NDArray
from scipy.spatial import KDTree

from model.geometry.alignment import Pair
from model.geometry.focal import weiszfeld_focal
from model.geometry.poses import MIN_POINTS, invert_rigid
from model.types import Float32, Float64, Heartbeat, ReconstructionError

Indices = NDArray[np.int64]
Metric = Literal["dot", "l2"]

BLOCK = (256, 1024)
"""Queries x candidates compared at once: their products stay in a core's cache."""
EPIPOLAR = 0.004
"""A match agrees with a relative pose when its Sampson error is below this share of the focal length (2 px at 500)."""
ROUNDS = 10
"""Trips to the other view and back after which a pixel that still wanders is given up."""


def mutual_nearest_points(first: Float32, second: Float32) -> Indices:
    """Matches (M, 2) of points (P, 3) and (Q, 3) that are each other's nearest, by the second's index (DUSt3R, 3.3).

    Both in one frame; points that are not finite match nothing.
    """
    rows = [np.flatnonzero(np.isfinite(points).all(axis=1)) for points in (first, second)]
    if not len(rows[0]) or not len(rows[1]):
        return np.empty((0, 2), np.int64)
    trees = [KDTree(points[row]) for points, row in zip((first, second), rows)]
    to_second = trees[1].query(first[rows[0]])[1]
    to_first = trees[0].query(second[rows[1]])[1]
    mutual = to_second[to_first] == np.arange(len(to_first))
    return np.stack([rows[0][to_first[mutual]], rows[1][mutual]], axis=1)


def nearest(
    queries: Float32, candidates: Float32, metric: Metric = "dot", heartbeat: Heartbeat = lambda: None
) -> Indices:
    """(Q,) the index of the candidate (C, D) nearest to each query (Q, D): of largest product, or least distance."""
    # |q - c|^2 = |q|^2 - 2 (q c - |c|^2 / 2): the least distance is the largest product less a constant.
    bias = None if metric == "dot" else np.float32(0.5) * (candidates * candidates).sum(axis=1)
    best = np.zeros(len(queries), np.int64)
    for row in range(0, len(queries), BLOCK[0]):
        heartbeat()
        rows = slice(row, row + BLOCK[0])
        block = queries[rows]
        highest = np.full(len(block), -np.inf, np.float32)
        lines = np.arange(len(block))
        for start in range(0, len(candidates), BLOCK[1]):
            product = block @ candidates[start : start + BLOCK[1]].T
            if bias is not None:
                product -= bias[start : start + BLOCK[1]]
            top = product.argmax(axis=1)
            higher = product[lines, top]
            better = higher > highest
            highest[better] = higher[better]
            best[rows][better] = top[better] + start
    return best


def reciprocal_matches(
    first: Float32,
    second: Float32,
    spacing: int = 8,
    tolerance: float = 0.0,
    metric: Metric = "dot",
    heartbeat: Heartbeat = lambda: None,
) -> Indices:
    """Matches of descriptors (H, W, D) and (H', W', D), from a grid over the first (MASt3R, arXiv 2406.09756, 3.3).

    Every `spacing`-th pixel of the first goes to its nearest in the second and back until it stands still: at a mutual
    match. With a `tolerance` it makes one trip only, and matches where it comes back nearer than so many pixels.
    Sorted, each match once.
    """
    (height, width, _), flat_first, flat_second = first.shape, *(d.reshape(-1, d.shape[2]) for d in (first, second))
    rows, columns = np.mgrid[spacing // 2 : height : spacing, spacing // 2 : width : spacing]
    here = (rows * width + columns).ravel()
    there = nearest(flat_first[here], flat_second, metric, heartbeat)
    if tolerance > 0:
        back = nearest(flat_second[there], flat_first, metric, heartbeat)
        drift = np.hypot(back // width - here // width, back % width - here % width)
        settled = drift < tolerance
        return _unique(here[settled], there[settled])
    moving = np.arange(len(here))
    for round_ in range(ROUNDS):
        back = nearest(flat_second[there[moving]], flat_first, metric, heartbeat)
        moved = back != here[moving]
        here[moving] = back
        moving = moving[moved]
        if not len(moving) or round_ == ROUNDS - 1:
            break
        onwards = nearest(flat_first[here[moving]], flat_second, metric, heartbeat)
        moved = onwards != there[moving]
        there[moving] = onwards
        moving = moving[moved]
    settled = np.ones(len(here), bool)
    settled[moving] = False
    return _unique(here[settled], there[settled])


def match_both_ways(
    first: Float32,
    second: Float32,
    confidence_first: Float32,
    confidence_second: Float32,
    spacing: int = 8,
    tolerance: float = 0.0,
    heartbeat: Heartbeat = lambda: None,
) -> tuple[Indices, Float32]:
    """Matches (M, 2) from grids over both views, sorted, each once; and their confidence (M,), the lesser of the two.

    Descriptors (H, W, D) and (H', W', D) of unit length, confidences (H, W) and (H', W').
    Raises ReconstructionError where a descriptor is not finite.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ReconstructionError(
            "The network's descriptors hold numbers that are not finite.",
            "Check the model's weights, or use another model.",
        )
    there = reciprocal_matches(first, second, spacing, tolerance, heartbeat=heartbeat)
    back = reciprocal_matches(second, first, spacing, tolerance, heartbeat=heartbeat)
    matches = _unique(*np.concatenate([there, back[:, ::-1]]).T)
    confidence = np.minimum(confidence_first.ravel()[matches[:, 0]], confidence_second.ravel()[matches[:, 1]])
    return matches, confidence


def _unique(first: Indices, second: Indices) -> Indices:
    return np.unique(np.stack([first, second], axis=1).astype(np.int64), axis=0)


@dataclass(frozen=True, slots=True)
class TwoView:
    """Two cameras: their focal lengths, where the second stands, and which matches agree."""

    focals: tuple[float, float]
    second_to_first: Float64
    """(4, 4) rigid: the second camera's pose in the first's frame."""
    inliers: NDArray[np.bool_]
    """(M,)."""


def relative_pose(first: Float64, second: Float64, focals: tuple[float, float]) -> TwoView | None:
    """Where the second camera stands, from matched pixels (M, 2) alone: its distance from the first is set to 1.

    RANSAC on the essential matrix (five points, Nister, PAMI 2004), then refined on all that agree; None where nothing
    explains enough matches.
    """
    if len(first) < MIN_POINTS:
        return None
    cameras = [{"model": "SIMPLE_PINHOLE", "width": 1, "height": 1, "params": [f, 0.0, 0.0]} for f in focals]
    options = {"max_epipolar_error": EPIPOLAR * min(focals), "max_iterations": 5000}
    found, _ = poselib.estimate_relative_pose(first, second, *cameras, options)
    to_second = np.eye(4)
    to_second[:3, :3], to_second[:3, 3] = found.R, found.t
    if not np.isfinite(to_second).all() or not found.t.any():
        return None
    to_second[:3, 3] /= np.linalg.norm(found.t)
    return _judged(invert_rigid(to_second), first, second, focals)


def two_view(pair: Pair, back: Pair, matches: Indices, pixels_i: Float64, pixels_j: Float64) -> TwoView:
    """Intrinsics and relative pose of views i and j, in the scale of the pointmaps of `pair`.

    back: the pair (j, i), whose first pointmap tells j's focal length; matches: (M, 2) between i and j; pixels_i:
    (H_i, W_i, 2), pixels_j: (H_j, W_j, 2). Pointmaps are too rough for a pose and matches know no scale: the pose is
    the essential matrix's, its length fits the depths. Raises ReconstructionError where no pose explains enough.
    """
    first, second = (grid.reshape(-1, 2)[index] for grid, index in zip((pixels_i, pixels_j), matches.T))
    focals = [
        weiszfeld_focal(said.points_i.reshape(-1, 3), grid.reshape(-1, 2))
        for said, grid in ((pair, pixels_i), (back, pixels_j))
    ]
    focal_i, focal_j = (focal if focal is not None and focal > 0 else None for focal in focals)
    found = None if focal_i is None or focal_j is None else relative_pose(first, second, (focal_i, focal_j))
    if found is None or found.inliers.sum() < MIN_POINTS:
        raise ReconstructionError(
            f"Photos {pair.i + 1} and {pair.j + 1} have too few points in common.",
            "Take them from places nearer to each other.",
        )
    return _scaled(found, first, second, pair.points_i[..., 2].ravel()[matches[:, 0]].astype(np.float64))


def _judged(pose: Float64, first: Float64, second: Float64, focals: tuple[float, float]) -> TwoView:
    """With the matches whose Sampson error (Hartley and Zisserman, 11.4.3) is small."""
    x, y = (np.column_stack([p / f, np.ones(len(p))]) for p, f in zip((first, second), focals))
    to_second = invert_rigid(pose)
    a, b, c = to_second[:3, 3]
    essential = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]]) @ to_second[:3, :3]
    lines, back = x @ essential.T, y @ essential
    steepness = (lines[:, :2] ** 2).sum(axis=1) + (back[:, :2] ** 2).sum(axis=1)
    error = np.abs((y * lines).sum(axis=1)) / np.sqrt(np.maximum(steepness, 1e-300))
    return TwoView(focals, pose, error < EPIPOLAR)


def _scaled(pose: TwoView, first: Float64, second: Float64, depths: Float64) -> TwoView:
    """The same with its baseline in the unit of `depths` (M,), the first camera's depths of the matches.

    0 where the cameras stand in one spot: then no length fits.
    """
    R, t = invert_rigid(pose.second_to_first)[:3, :3], invert_rigid(pose.second_to_first)[:3, 3]
    rays, goal = (np.column_stack([p / f, np.ones(len(p))]) for p, f in zip((first, second), pose.focals))
    # In the second camera z R ray + t is parallel to the match's ray: z (goal x R ray) = -(goal x t).
    across, along = np.cross(goal, rays @ R.T), -np.cross(goal, t)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = depths * (across**2).sum(axis=1) / (across * along).sum(axis=1)
    ratios = ratios[pose.inliers & np.isfinite(ratios)]
    scale = max(float(np.median(ratios)), 0.0) if len(ratios) else 0.0
    scaled = pose.second_to_first.copy()
    scaled[:3, 3] *= scale
    return TwoView(pose.focals, scaled, pose.inliers)
