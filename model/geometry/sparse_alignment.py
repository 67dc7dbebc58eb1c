"""Alignment on matches: pointmaps of pairs and pixels matched between them to one scene of N views.

After MASt3R-SfM (arXiv 2409.19152, section 4): a start along the spanning tree of the pointmaps; then least squares on
the gaps between matched points in 3D; then on reprojection as well, where each cell of a view's depth map may stray a
little from what the network says. The strays are eliminated (Schur complement), which leaves eight unknowns a view.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial.transform import Rotation

from model.geometry.alignment import Alignment, Pair, align, numbered, place_pairs
from model.geometry.matching import Indices
from model.types import Float32, Float64, ReconstructionError, Tick

MIN_MATCHES = 15
"""Pairs with fewer matches say nothing."""
GAP = 0.03
"""Distance of matched points, as a share of their depth, beyond which a match counts as doubtful."""
MISS = 1.0
"""The same in pixels, for reprojection."""
HINT = 0.5
"""Weight of a gap beside a miss: neighbouring points err alike, a thousand gaps are no thousand opinions."""
CELLS = 48
"""Cells along a view's longer side, whose depths stray as one."""
SMOOTH = 1.5
"""Standard deviation in cells of the blur that makes a field of what single cells stray by."""
DEPTH_SPREAD = 0.1
"""Standard deviation of log depth between what the network says and what is so."""
FOCAL_SPREAD = 0.03
"""The same of log focal."""
BEHIND = 100.0
"""Size of the residual of a point behind a camera, in units of MISS: nothing pulls there, and it does not pay."""
STEPS = (15, 30)
"""At most, of least squares in 3D and on reprojection."""


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
    cells: csr_array
    """(C, M) 1 where a match lies in a cell of i."""
    pixels: Float64
    """(M, 2) of i."""
    goal: Float64
    """(M, 2) of j."""
    said: Float64
    """(M, 3) the network's points in the frame of camera i."""
    goal_said: Float64
    """(M, 3) of camera j, likewise."""
    weight: Float64
    miss: float
    """MISS in the unit of the goal's pixels."""


@dataclass(frozen=True, slots=True)
class _Cameras:
    """The unknowns. A step is (N, 8): turn (3) about the camera's axes, move (3) in the world, log scale, log zoom."""

    poses: Float64
    """(N, 4, 4)."""
    log_scales: Float64
    """(N,) log of the factor of each view's depths."""
    first_focals: Float64
    log_zooms: Float64
    """(N,) log of what the focal lengths stray by from the first."""
    strays: tuple[Float64, ...]
    """N times (C,) log of what a cell's depths stray by."""

    @property
    def focals(self) -> Float64:
        return self.first_focals * np.exp(self.log_zooms)

    def moved(self, step: Float64, strays: Sequence[Float64]) -> _Cameras:
        poses = self.poses.copy()
        poses[:, :3, :3] = poses[:, :3, :3] @ Rotation.from_rotvec(step[:, :3]).as_matrix()
        poses[:, :3, 3] += step[:, 3:6]
        return replace(
            self,
            poses=poses,
            log_scales=self.log_scales + step[:, 6],
            log_zooms=self.log_zooms + step[:, 7],
            strays=tuple(a + b for a, b in zip(self.strays, strays)),
        )


@dataclass(frozen=True, slots=True)
class _Loss:
    """What a squared residual costs, and its derivative: how much a match still counts."""

    cost: Callable[[Float64], Float64]
    weight: Callable[[Float64], Float64]


CAUCHY = _Loss(np.log1p, lambda squared: 1 / (1 + squared))
"""Pulls from afar."""
GEMAN_MCCLURE = _Loss(lambda squared: squared / (1 + squared), lambda squared: 1 / (1 + squared) ** 2)
"""Hardly hears what is far off: wrong matches do not bend what right ones agree on."""

Derivatives = Callable[[], tuple[Float64, Float64, Float64]]
"""Of residuals (M, K), when asked for: by the unknowns of i (M, K, 8), of j (M, K, 8), by the strays of i (M, K)."""
Residuals = Callable[[_Side, _Cameras], tuple[Float64, Derivatives]]
"""(residuals (M, K), their derivatives)."""


def align_matches(
    pairs: Sequence[Pair],
    matches: Sequence[Matches],
    pixels: Sequence[Float64],
    tick: Tick = lambda _: None,
    *,
    focals: Sequence[float | None] | None = None,
    cameras: Sequence[Hashable] | None = None,
) -> Alignment:
    """Poses, focal lengths and depth maps of all views, such that matched pixels meet.

    matches: between any views, once a pair of views; the rest as `align` takes it. Pairs of views without enough
    matches are left out. Raises ReconstructionError where the rest does not link all views.
    """
    matches = [m for m in matches if len(m.indices) >= MIN_MATCHES]
    seen = {frozenset((m.i, m.j)) for m in matches}
    if not seen:
        raise ReconstructionError(
            "The photos have too few points in common.", "Add photos that share more than half of what they show."
        )
    pairs = [pair for pair in pairs if {pair.i, pair.j} in seen]
    start = align(pairs, pixels, lambda _: tick(0.0), focals=focals, cameras=cameras, iterations=0)
    clouds = _canonical_points(pairs, start)
    start = replace(start, depths=tuple(cloud[..., 2] for cloud in clouds))
    sides = [side for m in matches for side in _sides(m, start, clouds)]
    first = _Cameras(
        start.camera_to_world,
        np.zeros(len(pixels)),
        start.focals,
        np.zeros(len(pixels)),
        tuple(np.zeros(int(np.prod(_cells(depth)))) for depth in start.depths),
    )
    free = _free(_best_linked(matches, len(pixels)), numbered(cameras or range(len(pixels))))
    solved, costs = _least_squares(_gaps, CAUCHY, sides, first, free, STEPS[0], lambda done: tick(0.4 * done))
    solved, more = _least_squares(
        _misses_and_gaps, GEMAN_MCCLURE, sides, solved, free, STEPS[1], lambda done: tick(0.4 + 0.6 * done)
    )
    aligned = replace(
        start,
        camera_to_world=solved.poses,
        focals=solved.focals,
        depths=_corrected_depths(start, solved),
        losses=np.array(costs + more),
    )
    return replace(aligned, pair_to_world=place_pairs(pairs, aligned.points, lambda: tick(1.0)))


def _canonical_points(pairs: Sequence[Pair], start: Alignment) -> tuple[Float32, ...]:
    """Each view's points in its own frame, averaged over the pairs that have it first: errors differ, it does not.

    N times (H, W, 3), in the start's scale.
    """
    clouds = []
    for view, (depth, points, pose) in enumerate(zip(start.depths, start.points, start.camera_to_world)):
        own = (points - pose[:3, 3]) @ pose[:3, :3]
        total, weight = np.zeros(points.shape), np.full(depth.shape, 1e-12)
        for pair, to_world in zip(pairs, start.pair_to_world):
            if pair.i == view:
                scaled = pair.points_i * np.cbrt(np.linalg.det(to_world[:3, :3]))
                sure = np.where(scaled[..., 2] > 0, pair.confidence_i, 0.0)
                total += sure[..., None] * scaled
                weight += sure
        known = total[..., 2:] > 0
        clouds.append(np.where(known, total / weight[..., None], own).astype(np.float32))
    return tuple(clouds)


def _sides(matches: Matches, start: Alignment, clouds: Sequence[Float32]) -> list[_Side]:
    weight = matches.confidence / matches.confidence.mean()
    views, columns = (matches.i, matches.j), matches.indices.T
    at = [start.pixels[v].reshape(-1, 2)[index] for v, index in zip(views, columns)]
    said = [clouds[v].reshape(-1, 3)[index].astype(np.float64) for v, index in zip(views, columns)]
    miss = [MISS * float(start.pixels[v][0, 1, 0] - start.pixels[v][0, 0, 0]) for v in views]
    cells = []
    for v, index in zip(views, columns):
        width, side, (rows, across) = start.depths[v].shape[1], _cell(start.depths[v]), _cells(start.depths[v])
        cell = index // width // side * across + index % width // side
        cells.append(csr_array((np.ones(len(cell)), (cell, np.arange(len(cell)))), (rows * across, len(cell))))
    return [
        _Side(views[a], views[b], cells[a], at[a], at[b], said[a], said[b], weight, miss[b])
        for a, b in ((0, 1), (1, 0))
    ]


def _cell(depth: Float32) -> int:
    """Pixels along a cell's side."""
    return max(1, max(depth.shape) // CELLS)


def _cells(depth: Float32) -> tuple[int, int]:
    """Rows and columns of cells of an (H, W) map."""
    return -(-depth.shape[0] // _cell(depth)), -(-depth.shape[1] // _cell(depth))


def _best_linked(matches: Sequence[Matches], views: int) -> int:
    """The view with most matches: it stays where it is, and its depths keep their scale."""
    count = np.zeros(views)
    for m in matches:
        count[[m.i, m.j]] += len(m.indices)
    return int(count.argmax())


def _free(fixed: int, camera_of: NDArray[np.int64]) -> Float64:
    """(8 N, U) 0 or 1: which unknowns of the views follow each free one.

    All but the pose and scale of the view `fixed` are free, and zooms of one camera follow one.
    """
    views = len(camera_of)
    own = np.arange(8 * views).reshape(views, 8)
    own[:, 7] = own[0, 7] + 8 * camera_of
    own[fixed, :7] = -1
    return (own.ravel()[:, None] == np.setdiff1d(own, -1)).astype(np.float64)


def _placed(local: Float64, view: int, cameras: _Cameras) -> Float64:
    """Points (M, 3) of camera `view` in the world."""
    return local @ cameras.poses[view, :3, :3].T + cameras.poses[view, :3, 3]


def _by_camera(local: Float64, view: int, cameras: _Cameras) -> Float64:
    """Derivatives (M, 3, 8) of `_placed` by the camera's unknowns; by zoom 0."""
    R = cameras.poses[view, :3, :3]
    derivatives = np.zeros((len(local), 3, 8))
    derivatives[:, :, :3] = -R @ _cross(local)
    derivatives[:, :, 3:6] = np.eye(3)
    derivatives[:, :, 6] = local @ R.T
    return derivatives


def _gaps(side: _Side, cameras: _Cameras) -> tuple[Float64, Derivatives]:
    """Distances in 3D of the network's points, in units of GAP of their depth, so that shrinking gains nothing."""
    scale_i, scale_j = np.exp(cameras.log_scales[[side.i, side.j]])
    here, there = side.said * scale_i, side.goal_said * scale_j
    unit = (1 / (GAP * np.sqrt(here[:, 2] * there[:, 2])))[:, None]
    residual = (_placed(here, side.i, cameras) - _placed(there, side.j, cameras)) * unit

    def derivatives() -> tuple[Float64, Float64, Float64]:
        by_i = _by_camera(here, side.i, cameras) * unit[..., None]
        by_j = _by_camera(there, side.j, cameras) * -unit[..., None]
        by_i[:, :, 6] -= residual / 2
        by_j[:, :, 6] -= residual / 2
        return by_i, by_j, np.zeros_like(residual)

    return residual, derivatives


def _misses(side: _Side, cameras: _Cameras) -> tuple[Float64, Derivatives]:
    """By how much view j misses the points of view i, in units of MISS pixels."""
    stray = cameras.strays[side.i] @ side.cells
    depth = side.said[:, 2:] * np.exp(cameras.log_scales[side.i] + stray)[:, None]
    here = np.concatenate([side.pixels * (depth / cameras.focals[side.i]), depth], axis=1)
    R, t, focal = cameras.poses[side.j, :3, :3], cameras.poses[side.j, :3, 3], cameras.focals[side.j]
    there = (_placed(here, side.i, cameras) - t) @ R
    z = np.maximum(there[:, 2:], 1e-6 * depth)
    seen = focal * there[:, :2] / z
    behind = there[:, 2] <= 0
    residual = np.where(behind[:, None], BEHIND, (seen - side.goal) / side.miss)

    def derivatives() -> tuple[Float64, Float64, Float64]:
        project = np.zeros((len(z), 2, 3))
        project[:, 0, 0] = project[:, 1, 1] = focal / z[:, 0]
        project[:, :, 2] = -seen / z
        project[behind] = 0.0
        project /= side.miss
        by_world = project @ R.T
        by_i = _by_camera(here, side.i, cameras)
        by_i[:, :, 7] = -here[:, :2] @ cameras.poses[side.i, :3, :2].T
        by_i = by_world @ by_i
        by_j = np.zeros_like(by_i)
        by_j[:, :, :3] = project @ _cross(there)
        by_j[:, :, 3:6] = -by_world
        by_j[:, :, 7] = np.where(behind[:, None], 0.0, seen / side.miss)
        # A stray changes the depth as the view's scale does.
        return by_i, by_j, by_i[:, :, 6]

    return residual, derivatives


def _misses_and_gaps(side: _Side, cameras: _Cameras) -> tuple[Float64, Derivatives]:
    """Both. Before a flat scene, misses alone hardly tell turning a camera from moving it."""
    parts = _misses(side, cameras), _gaps(side, cameras)

    def derivatives() -> tuple[Float64, Float64, Float64]:
        by_i, by_j, by_stray = (
            np.concatenate([miss, HINT * gap], axis=1) for miss, gap in zip(*(part[1]() for part in parts))
        )
        return by_i, by_j, by_stray

    return np.concatenate([parts[0][0], HINT * parts[1][0]], axis=1), derivatives


def _cross(vectors: Float64) -> Float64:
    """(M, 3, 3) matrices that take the cross product with (M, 3) vectors from the left."""
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)


def _least_squares(
    residuals: Residuals,
    loss: _Loss,
    sides: Sequence[_Side],
    cameras: _Cameras,
    free: Float64,
    steps: int,
    tick: Tick,
) -> tuple[_Cameras, list[float]]:
    """Levenberg and Marquardt with a robust loss on the `free` (8 N, U) unknowns. Also returns the costs on the way."""
    damping, costs = 1e-4, [_cost(residuals, loss, sides, cameras)]
    for done in range(steps):
        tick(done / steps)
        normal, slope, eliminated = _linearised(residuals, loss, sides, cameras)
        while damping < 1e8:
            held = normal + damping * np.diag(np.diag(normal) + 1e-9)
            step = free @ np.linalg.solve(free.T @ held @ free, -slope @ free)
            strays = [-(pull + cross @ step) / curvature for pull, cross, curvature in eliminated]
            moved = cameras.moved(step.reshape(-1, 8), strays)
            cost = _cost(residuals, loss, sides, moved)
            if cost <= costs[-1]:
                break
            damping *= 10
        else:
            break
        gain = costs[-1] - cost
        cameras, damping = moved, max(damping / 10, 1e-10)
        costs.append(cost)
        if gain < 1e-4 * cost:
            break
    tick(1.0)
    return cameras, costs


def _cost(residuals: Residuals, loss: _Loss, sides: Sequence[_Side], cameras: _Cameras) -> float:
    total = float(((cameras.log_zooms / FOCAL_SPREAD) ** 2).sum())
    total += sum(float(((stray / DEPTH_SPREAD) ** 2).sum()) for stray in cameras.strays)
    for side in sides:
        total += float(side.weight @ loss.cost((residuals(side, cameras)[0] ** 2).sum(axis=1)))
    return total


def _linearised(
    residuals: Residuals, loss: _Loss, sides: Sequence[_Side], cameras: _Cameras
) -> tuple[Float64, Float64, list[tuple[Float64, Float64, Float64]]]:
    """Normal matrix (8 N, 8 N) and slope (8 N,) without the strays; and for each view what gives its strays back:

    their slope (C,), their products with the unknowns (C, 8 N), their curvature (C,).
    """
    views = len(cameras.poses)
    normal, slope = np.zeros((views, 8, views, 8)), np.zeros((views, 8))
    slope[:, 7] = cameras.log_zooms / FOCAL_SPREAD**2
    normal[range(views), 7, range(views), 7] = FOCAL_SPREAD**-2
    pulls = [stray / DEPTH_SPREAD**2 for stray in cameras.strays]
    curvatures = [np.full(len(stray), DEPTH_SPREAD**-2) for stray in cameras.strays]
    crosses = [np.zeros((len(stray), views, 8)) for stray in cameras.strays]
    for side in sides:
        residual, derivatives = residuals(side, cameras)
        by_i, by_j, by_stray = derivatives()
        weight = np.sqrt(side.weight * loss.weight((residual**2).sum(axis=1)))[:, None]
        residual, by_stray = residual * weight, by_stray * weight
        J = np.concatenate([by_i, by_j], axis=2) * weight[..., None]
        flat = J.reshape(-1, 16)
        block, part = flat.T @ flat, residual.ravel() @ flat
        cross = side.cells @ np.einsum("mku,mk->mu", J, by_stray)
        pulls[side.i] += side.cells @ (by_stray * residual).sum(axis=1)
        curvatures[side.i] += side.cells @ (by_stray**2).sum(axis=1)
        ends = ((side.i, slice(8)), (side.j, slice(8, 16)))
        for view, mine in ends:
            slope[view] += part[mine]
            crosses[side.i][:, view] += cross[:, mine]
            for other, theirs in ends:
                normal[view, :, other] += block[mine, theirs]
    full, down = normal.reshape(8 * views, 8 * views), slope.ravel()
    eliminated = [(p, c.reshape(-1, 8 * views), k) for p, c, k in zip(pulls, crosses, curvatures)]
    for pull, cross, curvature in eliminated:
        full -= cross.T @ (cross / curvature[:, None])
        down -= (pull / curvature) @ cross
    return full, down, eliminated


def _corrected_depths(start: Alignment, cameras: _Cameras) -> tuple[Float32, ...]:
    """Depth maps in the common scale, bent to where the matches want them: smoothly, as networks err."""
    depths = []
    for depth, stray, log_scale in zip(start.depths, cameras.strays, cameras.log_scales):
        grid = stray.reshape(_cells(depth))
        matched = (grid != 0).astype(np.float64)
        field, weight = (cv2.GaussianBlur(part, (0, 0), SMOOTH) for part in (grid, matched))
        bend = field / np.maximum(weight, 1e-3)
        # Cells and pixels share their corner, and the last cells may reach over the edge.
        height, width = (count * _cell(depth) for count in grid.shape)
        bend = cv2.resize(bend, (width, height))[: depth.shape[0], : depth.shape[1]]
        depths.append((depth * np.exp(log_scale + bend)).astype(np.float32))
    return tuple(depths)
