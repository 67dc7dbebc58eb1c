"""Alignment on matches: pointmaps of pairs and pixels matched between them to one scene of N views.

After MASt3R-SfM (arXiv 2409.19152, section 4): a start along the spanning tree of the pointmaps; then least squares on
the gaps between matched points in 3D; then on reprojection, where the depth under every match may stray a little from
its pointmap. The last is bundle adjustment with a prior on depth: each depth is one unknown of its own and is
eliminated (Schur complement), which leaves eight unknowns a view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from model.geometry.alignment import Alignment, Pair, Tick, align, fit_similarity
from model.geometry.matching import Indices
from model.types import Float32, Float64, ReconstructionError

MIN_MATCHES = 15
"""Pairs with fewer matches say nothing."""
GAP = 0.03
"""Distance of matched points, as a share of their depth, beyond which a match counts as doubtful."""
MISS = 1.5
"""The same in pixels, for reprojection."""
DEPTH_SPREAD = 0.05
"""Standard deviation of log depth between what the network says and what is so."""
BEHIND = 100.0
"""Size of the residual of a point behind a camera, in units of MISS: nothing pulls there, and it does not pay."""
STEPS = (15, 30)
"""At most, of least squares in 3D and on reprojection."""
CELLS = 8
"""Depths are corrected by a smooth field, of this many pixels a cell."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Pixels of views i and j that show the same points."""

    i: int
    j: int
    indices: Indices
    """(M, 2) flat indices into the grids of i and of j."""
    confidence: Float32
    """(M,) > 0."""


@dataclass(frozen=True, slots=True)
class _Side:
    """Matches seen one way: pixels of i with a depth, and where j sees them."""

    i: int
    j: int
    source: Indices
    """(M,) flat indices in i."""
    target: Indices
    pixels: Float64
    """(M, 2) of i."""
    goal: Float64
    """(M, 2) of j."""
    depth: Float64
    """(M,) in i, as the network says."""
    goal_depth: Float64
    """(M,) in j, likewise."""
    weight: Float64
    miss: float
    """MISS in the unit of the goal's pixels."""


@dataclass(frozen=True, slots=True)
class _Cameras:
    """The unknowns. A step is (N, 8): turn (3) about the camera's axes, move (3) in the world, log scale, log focal."""

    poses: Float64
    """(N, 4, 4)."""
    log_scales: Float64
    """(N,) log of the factor of each view's depths."""
    log_focals: Float64
    strays: tuple[Float64, ...]
    """A side's (M,) log of what each depth strays by."""

    def moved(self, step: Float64, strays: Sequence[Float64]) -> _Cameras:
        poses = self.poses.copy()
        poses[:, :3, :3] = poses[:, :3, :3] @ Rotation.from_rotvec(step[:, :3]).as_matrix()
        poses[:, :3, 3] += step[:, 3:6]
        strays = tuple(a + b for a, b in zip(self.strays, strays))
        return _Cameras(poses, self.log_scales + step[:, 6], self.log_focals + step[:, 7], strays)


Residuals = Callable[[_Side, _Cameras, Float64], tuple[Float64, Float64, Float64, Float64]]
"""(residuals (M, K), derivatives by the unknowns of i (M, K, 8), of j (M, K, 8), and by the strays (M, K))."""


def align_matches(
    pairs: Sequence[Pair],
    matches: Sequence[Matches],
    pixels: Sequence[Float64],
    tick: Tick = lambda _: None,
    *,
    focals: Sequence[float | None] | None = None,
) -> Alignment:
    """Poses, focal lengths and depth maps of all views, such that matched pixels meet.

    pairs, pixels, focals: as `align` takes them; matches: between any views, once a pair of views. Pairs of views
    without enough matches are left out. Raises ReconstructionError where the rest does not link all views.
    """
    matches = [m for m in matches if len(m.indices) >= MIN_MATCHES]
    seen = {frozenset((m.i, m.j)) for m in matches}
    if not seen:
        raise ReconstructionError(
            "The photos have too few points in common.", "Add photos that share more than half of what they show."
        )
    pairs = [pair for pair in pairs if {pair.i, pair.j} in seen]
    start = align(pairs, pixels, focals=focals, iterations=0)
    start = replace(start, depths=_canonical_depths(pairs, start))
    sides = [side for m in matches for side in _sides(m, start)]
    cameras = _Cameras(
        start.camera_to_world,
        np.zeros(len(pixels)),
        np.log(start.focals),
        tuple(np.zeros(len(side.source)) for side in sides),
    )
    anchor = _best_linked(matches, len(pixels))
    cameras, costs = _least_squares(_gaps, sides, cameras, anchor, STEPS[0], lambda done: tick(0.4 * done))
    cameras, more = _least_squares(_misses, sides, cameras, anchor, STEPS[1], lambda done: tick(0.4 + 0.6 * done))
    solved = replace(
        start,
        camera_to_world=cameras.poses,
        focals=np.exp(cameras.log_focals),
        depths=_corrected_depths(start, sides, cameras),
        losses=np.array(costs + more),
    )
    points = solved.points
    to_world = [
        fit_similarity(pair.points_i.reshape(-1, 3), points[pair.i].reshape(-1, 3), pair.confidence_i.ravel())
        for pair in pairs
    ]
    return replace(solved, pair_to_world=np.stack(to_world))


def _canonical_depths(pairs: Sequence[Pair], start: Alignment) -> tuple[Float32, ...]:
    """Each view's depths averaged over the pairs that have it first: their errors differ, the view does not."""
    depths = []
    for view, depth in enumerate(start.depths):
        total, weight = np.zeros(depth.shape), np.full(depth.shape, 1e-12)
        for pair, to_world in zip(pairs, start.pair_to_world):
            if pair.i == view:
                z = pair.points_i[..., 2] * np.cbrt(np.linalg.det(to_world[:3, :3]))
                sure = np.where(z > 0, pair.confidence_i, 0.0)
                total += sure * z
                weight += sure
        depths.append(np.where(total > 0, total / weight, depth).astype(np.float32))
    return tuple(depths)


def _sides(matches: Matches, start: Alignment) -> list[_Side]:
    weight = matches.confidence / matches.confidence.mean()
    views, columns = (matches.i, matches.j), matches.indices.T
    at = [start.pixels[v].reshape(-1, 2)[index] for v, index in zip(views, columns)]
    depth = [start.depths[v].ravel()[index].astype(np.float64) for v, index in zip(views, columns)]
    miss = [MISS * float(start.pixels[v][0, 1, 0] - start.pixels[v][0, 0, 0]) for v in views]
    return [
        _Side(views[a], views[b], columns[a], columns[b], at[a], at[b], depth[a], depth[b], weight, miss[b])
        for a, b in ((0, 1), (1, 0))
    ]


def _best_linked(matches: Sequence[Matches], views: int) -> int:
    """The view with most matches: it stays where it is, and its depths keep their scale."""
    count = np.zeros(views)
    for m in matches:
        count[[m.i, m.j]] += len(m.indices)
    return int(count.argmax())


def _local(pixels: Float64, depth: Float64, view: int, cameras: _Cameras) -> Float64:
    """(M, 3) points in camera `view` that are seen at `pixels`."""
    z = depth * np.exp(cameras.log_scales[view])
    return np.concatenate([pixels * (z / np.exp(cameras.log_focals[view]))[:, None], z[:, None]], axis=1)


def _placed(local: Float64, view: int, cameras: _Cameras) -> tuple[Float64, Float64]:
    """Points (M, 3) of camera `view` in the world, and the derivatives (M, 3, 8) by its unknowns."""
    R, t = cameras.poses[view, :3, :3], cameras.poses[view, :3, 3]
    derivatives = np.empty((len(local), 3, 8))
    derivatives[:, :, :3] = -R @ _cross(local)
    derivatives[:, :, 3:6] = np.eye(3)
    derivatives[:, :, 6] = local @ R.T
    derivatives[:, :, 7] = (local * [-1, -1, 0]) @ R.T
    return local @ R.T + t, derivatives


def _gaps(side: _Side, cameras: _Cameras, stray: Float64) -> tuple[Float64, Float64, Float64, Float64]:
    """Distances of matched points in 3D, in units of GAP of their depth. No depth strays."""
    here, by_i = _placed(_local(side.pixels, side.depth, side.i, cameras), side.i, cameras)
    there, by_j = _placed(_local(side.goal, side.goal_depth, side.j, cameras), side.j, cameras)
    unit = (1 / (GAP * np.sqrt(side.depth * side.goal_depth)))[:, None]
    return (here - there) * unit, by_i * unit[..., None], -by_j * unit[..., None], np.zeros((len(stray), 3))


def _misses(side: _Side, cameras: _Cameras, stray: Float64) -> tuple[Float64, Float64, Float64, Float64]:
    """By how much view j misses the points of view i, in units of MISS pixels."""
    world, by_i = _placed(_local(side.pixels, side.depth * np.exp(stray), side.i, cameras), side.i, cameras)
    R, t, focal = cameras.poses[side.j, :3, :3], cameras.poses[side.j, :3, 3], np.exp(cameras.log_focals[side.j])
    local = (world - t) @ R
    z = np.maximum(local[:, 2], 1e-6 * side.depth)
    seen = focal * local[:, :2] / z[:, None]
    project = np.zeros((len(z), 2, 3))
    project[:, 0, 0] = project[:, 1, 1] = focal / z
    project[:, :, 2] = -seen / z[:, None]
    by_world = project @ R.T
    by_j = np.zeros((len(z), 2, 8))
    by_j[:, :, :3] = project @ _cross(local)
    by_j[:, :, 3:6] = -by_world
    by_j[:, :, 7] = seen
    by_i = by_world @ by_i
    residual = (seen - side.goal) / side.miss
    behind = local[:, 2] <= 0
    residual[behind], by_i[behind], by_j[behind] = BEHIND, 0.0, 0.0
    # A stray changes the depth as the view's scale does.
    return residual, by_i / side.miss, by_j / side.miss, by_i[:, :, 6] / side.miss


def _cross(vectors: Float64) -> Float64:
    """(M, 3, 3) matrices that take the cross product with (M, 3) vectors from the left."""
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)


def _least_squares(
    residuals: Residuals, sides: Sequence[_Side], cameras: _Cameras, anchor: int, steps: int, tick: Tick
) -> tuple[_Cameras, list[float]]:
    """Levenberg and Marquardt with a Cauchy loss; the anchor keeps pose and scale. Also returns the costs."""
    free = np.ones((len(cameras.poses), 8), bool)
    free[anchor, :7] = False
    damping, costs = 1e-4, [_cost(residuals, sides, cameras)]
    for done in range(steps):
        tick(done / steps)
        normal, slope, eliminated = _linearised(residuals, sides, cameras)
        while damping < 1e8:
            held = normal + damping * np.diag(np.diag(normal) + 1e-9)
            step = np.zeros(free.shape)
            step[free] = np.linalg.solve(held[np.ix_(free.ravel(), free.ravel())], -slope[free.ravel()])
            strays = [
                -(by_stray + cross[:, :8] @ step[side.i] + cross[:, 8:] @ step[side.j]) / curvature
                for side, (by_stray, cross, curvature) in zip(sides, eliminated)
            ]
            moved = cameras.moved(step, strays)
            cost = _cost(residuals, sides, moved)
            if cost <= costs[-1]:
                break
            damping *= 10
        else:
            break
        gain = costs[-1] - cost
        cameras, damping = moved, max(damping / 10, 1e-10)
        costs.append(cost)
        if gain < 1e-7 * cost:
            break
    tick(1.0)
    return cameras, costs


def _cost(residuals: Residuals, sides: Sequence[_Side], cameras: _Cameras) -> float:
    total = 0.0
    for side, stray in zip(sides, cameras.strays):
        squared = (residuals(side, cameras, stray)[0] ** 2).sum(axis=1)
        total += float(side.weight @ (np.log1p(squared) + (stray / DEPTH_SPREAD) ** 2))
    return total


def _linearised(
    residuals: Residuals, sides: Sequence[_Side], cameras: _Cameras
) -> tuple[Float64, Float64, list[tuple[Float64, Float64, Float64]]]:
    """Normal matrix (8 N, 8 N) and slope (8 N,) without the strays; and per side what gives them back."""
    views = len(cameras.poses)
    normal, slope = np.zeros((views, 8, views, 8)), np.zeros((views, 8))
    eliminated = []
    for side, stray in zip(sides, cameras.strays):
        residual, by_i, by_j, by_stray = residuals(side, cameras, stray)
        # The Cauchy loss as weights, which fall as residuals grow.
        weight = side.weight / (1 + (residual**2).sum(axis=1))
        J = np.concatenate([by_i, by_j], axis=2)
        weighted = J * weight[:, None, None]
        flat, flat_weighted = J.reshape(-1, 16), weighted.reshape(-1, 16)
        curvature = weight * (by_stray**2).sum(axis=1) + side.weight / DEPTH_SPREAD**2
        cross = np.einsum("mku,mk->mu", weighted, by_stray)
        pull = weight * (by_stray * residual).sum(axis=1) + side.weight * stray / DEPTH_SPREAD**2
        block = flat_weighted.T @ flat - (cross / curvature[:, None]).T @ cross
        part = flat_weighted.T @ residual.ravel() - cross.T @ (pull / curvature)
        ends = (side.i, side.j)
        for a, view in enumerate(ends):
            slope[view] += part[8 * a : 8 * a + 8]
            for b, other in enumerate(ends):
                normal[view, :, other] += block[8 * a : 8 * a + 8, 8 * b : 8 * b + 8]
        eliminated.append((pull, cross, curvature))
    return normal.reshape(8 * views, 8 * views), slope.ravel(), eliminated


def _corrected_depths(start: Alignment, sides: Sequence[_Side], cameras: _Cameras) -> tuple[Float32, ...]:
    """Depth maps in the common scale, bent smoothly to where the matches want them."""
    depths = []
    for view, depth in enumerate(start.depths):
        strays, weight = np.zeros(depth.size), np.zeros(depth.size)
        for side, stray in zip(sides, cameras.strays):
            if side.i == view:
                np.add.at(strays, side.source, side.weight * stray)
                np.add.at(weight, side.source, side.weight)
        # Far from any match the field is 0: there the network's word stands.
        blur = [cv2.GaussianBlur(field.reshape(depth.shape), (0, 0), CELLS) for field in (strays, weight)]
        prior = 1e-3
        bent = np.exp(cameras.log_scales[view] + blur[0] / (blur[1] + prior))
        depths.append((depth * bent).astype(np.float32))
    return tuple(depths)
