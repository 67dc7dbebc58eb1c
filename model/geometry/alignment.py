"""Global alignment: pointmaps of pairs of views to one scene of N views (DUSt3R, arXiv 2312.14132, section 3.3).

A similarity of its own moves every pair's pointmaps onto depth maps seen by N pinhole cameras; Adam reduces the
confidence-weighted distances, from a start along a maximum spanning tree. Gradients are by hand: a serving machine has
no torch. Pixels are given relative to the principal point, in any unit: in that unit are the focal lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model.geometry.focal import weiszfeld_focal
from model.geometry.poses import MIN_POINTS, invert_rigid, solve_focal, solve_pose
from model.parallel import compiled, cores
from model.types import Float32, Float64, Heartbeat, ReconstructionError, Tick

Schedule = Literal["cosine", "linear"]

MEAN_PAIR_SCALE = 0.5
"""Geometric mean of the pairs' scales, fixed: else everything could shrink to a point, where all distances vanish."""
LOG_FOCAL_STEP = 20.0
"""A focal length is exp(parameter / this): so much slower than everything else does it move."""
LAST_RATE = 1e-6
BETA = 0.9
"""Of both of Adam's running means."""
FOCAL_RANGE = (0.5, 3.5)
"""A first focal length's bounds as shares of the one that makes the longer side's field of view 60 degrees."""
SURE = 3.0
"""Confidence above which a pixel may tell where a camera stands."""
PNP_ITERATIONS = 10
PNP_PIXELS = 5.0
IN_FRONT = 0.001
"""A point hides another view's surface when it is nearer by more than this share of the depth."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What a pairwise network says of views i and j: both pointmaps, in the frame of camera i, and how sure it is."""

    i: int
    j: int
    points_i: Float32
    """(H_i, W_i, 3)."""
    points_j: Float32
    """(H_j, W_j, 3)."""
    confidence_i: Float32
    """(H_i, W_i), 1 and more; a point of confidence 1 or less has no say."""
    confidence_j: Float32
    """(H_j, W_j)."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """N views in one world, right up to a similarity; `seen_from` fixes the world's frame."""

    camera_to_world: Float64
    """(N, 4, 4) rigid."""
    focals: Float64
    """(N,) in the unit of `pixels`."""
    depths: tuple[Float32, ...]
    """N times (H, W), > 0: z in the camera's frame."""
    confidence: tuple[Float32, ...]
    """N times (H, W): the largest of any pair."""
    pixels: tuple[Float64, ...]
    """N times (H, W, 2): x, y of each pixel relative to the principal point."""
    pair_to_world: Float64
    """(E, 4, 4) the similarity that moves each pair's pointmaps into the world."""
    losses: Float64
    """One a step, before it: the mean over pixels of distance x log confidence, summed over the two sides of a pair."""

    @property
    def points(self) -> tuple[Float32, ...]:
        """N times (H, W, 3): every pixel's point in the world."""
        return tuple(
            (_rays(pixels, focal) * depth[..., None] @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32)
            for pixels, focal, depth, pose in zip(self.pixels, self.focals, self.depths, self.camera_to_world)
        )

    def seen_from(self, view: int) -> Alignment:
        """The same scene in the frame of camera `view`."""
        to_view = invert_rigid(self.camera_to_world[view])
        poses = to_view @ self.camera_to_world
        poses[view] = np.eye(4)
        return replace(self, camera_to_world=poses, pair_to_world=to_view @ self.pair_to_world)


def align(
    pairs: Sequence[Pair],
    pixels: Sequence[Float64],
    tick: Tick = lambda _: None,
    *,
    focals: Sequence[float | None] | None = None,
    cameras: Sequence[Hashable] | None = None,
    iterations: int = 300,
    rate: float = 0.01,
    schedule: Schedule = "cosine",
) -> Alignment:
    """Poses, focal lengths and depth maps of all views that agree best with the pairs.

    pixels: one (H, W, 2) a view, x and y of its pixels relative to the principal point; sizes may differ.
    focals: where to start from, for views where something better than the pointmaps is known (EXIF, the user).
    cameras: a key a view; views of one key share one focal length. Without, each view has its own.
    `iterations` 0 gives the start along the spanning tree.
    Raises ReconstructionError where pairs hold numbers that are not finite, or do not link all views; ValueError for
    shapes that do not fit.
    """
    pairs = linked(pairs, pixels)
    camera_of = numbered(cameras or range(len(pixels)))
    state = _start(pairs, pixels, focals or [None] * len(pixels), camera_of, lambda: tick(0.0))
    problem = Problem(pairs, pixels)
    losses = np.zeros(iterations)
    moments = [(np.zeros_like(array), np.zeros_like(array)) for array in state.arrays()]
    with ThreadPoolExecutor(min(cores(), len(pixels))) as pool:
        for step in range(iterations):
            tick(step / iterations)
            losses[step], gradient = problem.loss_and_gradient(state, pool.map)
            now = scheduled_rate(step / iterations, rate, schedule)
            for parameter, slope, (first, second) in zip(state.arrays(), gradient.arrays(), moments):
                _adam(parameter.ravel(), slope.ravel(), first.ravel(), second.ravel(), now, 1 - BETA ** (step + 1))
    tick(1.0)
    return Alignment(
        camera_to_world=state.camera_to_world(),
        focals=state.focals(),
        depths=tuple(np.exp(log).reshape(p.shape[:2]).astype(np.float32) for log, p in zip(state.log_depths, pixels)),
        confidence=best_confidence(pairs, len(pixels)),
        pixels=tuple(pixels),
        pair_to_world=state.pair_to_world(),
        losses=losses,
    )


def numbered(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """(N,) equal keys get one number, from 0 on."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)


def scheduled_rate(done: float, rate: float, schedule: Schedule) -> float:
    """Adam's step size when the share `done` (0 to 1) of all steps is taken: from `rate` down to LAST_RATE."""
    share = (1 + np.cos(np.pi * done)) / 2 if schedule == "cosine" else 1 - done
    return float(LAST_RATE + (rate - LAST_RATE) * share)


def clear_air(alignment: Alignment, heartbeat: Heartbeat = lambda: None) -> tuple[Float32, ...]:
    """The confidences, set to 0 for points that float before a surface which another view is surer of.

    A view sees through such a point. N times (H, W); views are compared one after the other (upstream's order).
    """
    confidence = [c.copy() for c in alignment.confidence]
    for i, points in enumerate(alignment.points):
        for j, pose in enumerate(alignment.camera_to_world):
            if i == j:
                continue
            heartbeat()
            local = (points - pose[:3, 3]) @ pose[:3, :3]
            height, width = alignment.depths[j].shape
            origin, spacing = alignment.pixels[j][0, 0], _spacing(alignment.pixels[j])
            with np.errstate(divide="ignore", invalid="ignore"):
                seen_at = np.rint((alignment.focals[j] * local[..., :2] / local[..., 2:] - origin) / spacing)
            seen = (local[..., 2] > 0) & ((seen_at >= 0) & (seen_at < [width, height])).all(axis=-1)
            x, y = seen_at[seen].astype(int).T
            floats = local[seen][:, 2] < (1 - IN_FRONT) * alignment.depths[j][y, x]
            floats &= confidence[i][seen] < confidence[j][y, x]
            confidence[i][seen] = np.where(floats, 0.0, confidence[i][seen])
    return tuple(confidence)


def linked(pairs: Sequence[Pair], pixels: Sequence[Float64]) -> list[Pair]:
    """The pairs that say something. Raises ReconstructionError unless they link all views, ValueError on bad shapes."""
    useful = []
    for pair in pairs:
        sides = ((pair.i, pair.points_i, pair.confidence_i), (pair.j, pair.points_j, pair.confidence_j))
        for view, points, confidence in sides:
            if points.shape != (*pixels[view].shape[:2], 3) or confidence.shape != pixels[view].shape[:2]:
                raise ValueError(f"view {view} is {pixels[view].shape[:2]}, its pointmap {points.shape}")
            if not (np.isfinite(points).all() and np.isfinite(confidence).all()):
                raise ReconstructionError(
                    f"The network's answer for photos {pair.i + 1} and {pair.j + 1} holds numbers that are not finite.",
                    "Check the model's weights, or use another model.",
                )
        if any((confidence > 1).any() for *_, confidence in sides):
            useful.append(pair)
    group = list(range(len(pixels)))
    for pair in useful:
        group = [group[pair.i] if g == group[pair.j] else g for g in group]
    largest = max(group, key=group.count)
    apart = [str(view + 1) for view, g in enumerate(group) if g != largest]
    if apart or len(group) < 2:
        raise ReconstructionError(
            f"No pair of photos links photo {', '.join(apart)} to the others." if apart else "One photo makes no pair.",
            "Add photos that share more than half of what they show with two others.",
        )
    return useful


def best_confidence(pairs: Sequence[Pair], views: int) -> tuple[Float32, ...]:
    """Per view (H, W), each pixel's largest confidence in any pair."""
    best: dict[int, Float32] = {}
    for view, confidence in chain.from_iterable(((p.i, p.confidence_i), (p.j, p.confidence_j)) for p in pairs):
        best[view] = np.maximum(best[view], confidence) if view in best else confidence
    return tuple(best[view] for view in range(views))


def fit_similarity(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> Float64:
    """(4, 4) similarity with the least sum of weight |target - S source|^2 (Umeyama, PAMI 1991).

    source, target: (P, 3); weight: (P,) >= 0. Degenerate points give some similarity of finite numbers.
    """
    weight = weight.astype(np.float64)[:, None] / max(float(weight.sum(dtype=np.float64)), 1e-300)
    from_, to = (weight * source).sum(axis=0), (weight * target).sum(axis=0)
    centred, goal = source - from_, target - to
    U, spread, Vt = np.linalg.svd((weight * goal).T @ centred)
    handed = np.array([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    R = (U * handed) @ Vt
    variance = float((weight * centred**2).sum())
    scale = float(spread @ handed) / variance if variance > 0 else 1.0
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = scale * R, to - scale * R @ from_
    return moved


def place_pairs(pairs: Sequence[Pair], points: Sequence[np.ndarray], heartbeat: Heartbeat) -> Float64:
    """(E, 4, 4) similarities that move each pair's pointmaps to where its first view's `points` (H, W, 3) lie."""
    found = []
    for pair in pairs:
        heartbeat()
        weight = pair.confidence_i.ravel()
        found.append(fit_similarity(pair.points_i.reshape(-1, 3), points[pair.i].reshape(-1, 3), weight))
    return np.stack(found)


@dataclass(slots=True)
class State:
    """The parameters, as Adam moves them; gradients come in the same form."""

    quaternions: Float64
    """(N, 4) x y z w of camera_to_world, of any length."""
    translations: Float64
    """(N, 3) sign(t) log(1 + |t|)."""
    log_focals: Float64
    """(C,) log focal x LOG_FOCAL_STEP, one a physical camera."""
    pair_quaternions: Float64
    """(E, 4)."""
    pair_translations: Float64
    """(E, 3), of t over scale."""
    pair_scales: Float64
    """(E,) log scale, before all are brought to their fixed mean."""
    log_depths: list[Float32]
    """N times (H W,)."""
    camera_of: NDArray[np.int64]
    """(N,) whose focal length a view has; no parameter."""

    def arrays(self) -> list[np.ndarray]:
        """All parameters, in a fixed order."""
        cameras = [self.quaternions, self.translations, self.log_focals]
        return [*cameras, self.pair_quaternions, self.pair_translations, self.pair_scales, *self.log_depths]

    def focals(self) -> Float64:
        """(N,) of the views."""
        return np.exp(self.log_focals / LOG_FOCAL_STEP)[self.camera_of]

    def camera_to_world(self) -> Float64:
        return _transforms(_rotations(self.quaternions), _unfold(self.translations), np.ones(len(self.quaternions)))

    def scales(self) -> Float64:
        """(E,) factors of the pairs."""
        return MEAN_PAIR_SCALE * np.exp(self.pair_scales - self.pair_scales.mean())

    def pair_to_world(self) -> Float64:
        return _transforms(_rotations(self.pair_quaternions), _unfold(self.pair_translations), self.scales())


class Problem:
    """The distances to reduce: what every pair says of every view, laid out for the loop over pixels."""

    def __init__(self, pairs: Sequence[Pair], pixels: Sequence[Float64]) -> None:
        area_i = sum(pair.confidence_i.size for pair in pairs)
        area_j = sum(pair.confidence_j.size for pair in pairs)
        self.edges: list[list[int]] = [[] for _ in pixels]
        points: list[list[np.ndarray]] = [[] for _ in pixels]
        weights: list[list[np.ndarray]] = [[] for _ in pixels]
        for edge, pair in enumerate(pairs):
            for view, map_, confidence, area in (
                (pair.i, pair.points_i, pair.confidence_i, area_i),
                (pair.j, pair.points_j, pair.confidence_j, area_j),
            ):
                self.edges[view].append(edge)
                points[view].append(map_.reshape(-1, 3).T)
                weights[view].append(np.log(np.maximum(confidence, 1)).ravel() / area)
        self.points = [np.ascontiguousarray(np.stack(maps), np.float32) for maps in points]
        self.weights = [np.stack(rows).astype(np.float32) for rows in weights]
        self.pixels = [np.ascontiguousarray(grid.reshape(-1, 2).T, np.float32) for grid in pixels]

    def loss_and_gradient(self, state: State, each: Callable[..., Iterable[Any]] = map) -> tuple[float, State]:
        """The loss at `state`, and its gradient. `each` is `map`, or a pool's: one call a view."""
        R, focals = _rotations(state.quaternions), state.focals()
        poses = state.camera_to_world().astype(np.float32)
        similarities = state.pair_to_world().astype(np.float32)
        pulls = np.zeros((len(poses), 3, 4))
        pair_pulls = np.zeros((len(similarities), 3, 4))
        log_depths = [np.empty_like(log) for log in state.log_depths]

        def view(v: int) -> tuple[float, Float64]:
            of_pairs = np.zeros((len(self.edges[v]), 3, 4))
            moved = similarities[self.edges[v], :3]
            rays = self.pixels[v] / np.float32(focals[v])
            depth = np.exp(state.log_depths[v])
            loss = _pull(
                self.points[v], self.weights[v], moved, poses[v, :3], rays, depth, log_depths[v], pulls[v], of_pairs
            )
            return loss, of_pairs

        loss = 0.0
        for edges, (part, of_pairs) in zip(self.edges, each(view, range(len(poses)))):
            loss += part
            # A pair's points are subtracted: they are pulled the other way.
            pair_pulls[edges] -= of_pairs

        pair_R, scales, tau = _rotations(state.pair_quaternions), state.scales(), _unfold(state.pair_translations)
        along, shift = pair_pulls[:, :, :3], pair_pulls[:, :, 3]
        by_log_scale = scales * ((along * pair_R).sum(axis=(1, 2)) + (shift * tau).sum(axis=1))
        turned = np.einsum("vki,vkj->vij", R, pulls[:, :, :3])
        by_log_focal = -(turned[:, 0, 0] + turned[:, 1, 1]) / LOG_FOCAL_STEP
        gradient = State(
            quaternions=_quaternion_gradient(state.quaternions, pulls[:, :, :3]),
            translations=pulls[:, :, 3] * _unfolding(state.translations),
            log_focals=np.bincount(state.camera_of, by_log_focal),
            pair_quaternions=_quaternion_gradient(state.pair_quaternions, along * scales[:, None, None]),
            pair_translations=shift * scales[:, None] * _unfolding(state.pair_translations),
            pair_scales=by_log_scale - by_log_scale.mean(),
            log_depths=log_depths,
            camera_of=state.camera_of,
        )
        return loss, gradient


@partial(compiled, reorder_sums=True)
def _pull(
    points: np.ndarray,
    weights: np.ndarray,
    similarities: np.ndarray,
    pose: np.ndarray,
    rays: np.ndarray,
    depth: np.ndarray,
    depth_gradient: np.ndarray,
    camera_pull: np.ndarray,
    pair_pulls: np.ndarray,
) -> float:
    """One view's share of the loss, and its derivatives.

    points (T, 3, P) in their pairs' frames, weights (T, P), similarities (T, 3, 4), pose (3, 4), rays (2, P),
    depth (P,). Into depth_gradient (P,): by log depth. With g the derivative by a world point, into
    camera_pull (3, 4): sum over pixels of g [local point, 1]; into pair_pulls (T, 3, 4): of g's part by each pair,
    times [the pair's point, 1].
    """
    block = 1024  # pixels whose sums stay in the nearest cache
    terms, _, total = points.shape
    world = np.empty((3, block), np.float32)
    pull = np.empty((3, block), np.float32)
    loss = 0.0
    for start in range(0, total, block):
        n = min(block, total - start)
        end = start + n
        z, ray_x, ray_y = depth[start:end], rays[0, start:end], rays[1, start:end]
        for k in range(3):
            a, b, c, d = pose[k, 0], pose[k, 1], pose[k, 2], pose[k, 3]
            for p in range(n):
                world[k, p] = (a * ray_x[p] + b * ray_y[p] + c) * z[p] + d
                pull[k, p] = 0
        for t in range(terms):
            S = similarities[t]
            s00, s01, s02, s03 = S[0, 0], S[0, 1], S[0, 2], S[0, 3]
            s10, s11, s12, s13 = S[1, 0], S[1, 1], S[1, 2], S[1, 3]
            s20, s21, s22, s23 = S[2, 0], S[2, 1], S[2, 2], S[2, 3]
            xs, ys, zs = (
                points[t, 0, start : start + n],
                points[t, 1, start : start + n],
                points[t, 2, start : start + n],
            )
            weight = weights[t, start : start + n]
            zero = np.float32(0)
            part = g0 = g1 = g2 = zero
            g00 = g01 = g02 = g10 = g11 = g12 = g20 = g21 = g22 = zero
            for p in range(n):
                x, y, w = xs[p], ys[p], zs[p]
                dx = world[0, p] - (s00 * x + s01 * y + s02 * w + s03)
                dy = world[1, p] - (s10 * x + s11 * y + s12 * w + s13)
                dz = world[2, p] - (s20 * x + s21 * y + s22 * w + s23)
                distance = np.sqrt(dx * dx + dy * dy + dz * dz)
                part += weight[p] * distance
                pulled = weight[p] / max(distance, np.float32(1e-20))
                dx *= pulled
                dy *= pulled
                dz *= pulled
                pull[0, p] += dx
                pull[1, p] += dy
                pull[2, p] += dz
                g0 += dx
                g1 += dy
                g2 += dz
                g00 += dx * x
                g01 += dx * y
                g02 += dx * w
                g10 += dy * x
                g11 += dy * y
                g12 += dy * w
                g20 += dz * x
                g21 += dz * y
                g22 += dz * w
            loss += part
            sums = pair_pulls[t]
            sums[0, 0] += g00
            sums[0, 1] += g01
            sums[0, 2] += g02
            sums[0, 3] += g0
            sums[1, 0] += g10
            sums[1, 1] += g11
            sums[1, 2] += g12
            sums[1, 3] += g1
            sums[2, 0] += g20
            sums[2, 1] += g21
            sums[2, 2] += g22
            sums[2, 3] += g2
        for p in range(n):
            depth_gradient[start + p] = 0
        for k in range(3):
            a, b, c = pose[k, 0], pose[k, 1], pose[k, 2]
            g = gx = gy = gz = np.float32(0)
            for p in range(n):
                by_depth = pull[k, p] * z[p]
                g += pull[k, p]
                gx += by_depth * ray_x[p]
                gy += by_depth * ray_y[p]
                gz += by_depth
                depth_gradient[start + p] += by_depth * (a * ray_x[p] + b * ray_y[p] + c)
            camera_pull[k, 0] += gx
            camera_pull[k, 1] += gy
            camera_pull[k, 2] += gz
            camera_pull[k, 3] += g
    return loss


@compiled
def _adam(
    parameter: np.ndarray, slope: np.ndarray, first: np.ndarray, second: np.ndarray, rate: float, unbias: float
) -> None:
    """One step of Adam (arXiv 1412.6980) in place, all (P,); `unbias` is 1 - BETA^step."""
    # Constants of the parameters' own type: a wider one would halve the speed.
    number = parameter.dtype.type
    keep, new, step, root = number(BETA), number(1 - BETA), number(rate / unbias), number(1 / np.sqrt(unbias))
    for p in range(len(parameter)):
        first[p] = keep * first[p] + new * slope[p]
        second[p] = keep * second[p] + new * slope[p] * slope[p]
        parameter[p] -= step * first[p] / (root * np.sqrt(second[p]) + number(1e-8))


def _start(
    pairs: Sequence[Pair],
    pixels: Sequence[Float64],
    focals: Sequence[float | None],
    camera_of: NDArray[np.int64],
    heartbeat: Heartbeat,
) -> State:
    """A first state: pointmaps joined along the maximum spanning tree of the pairs' confidence."""
    scores = [float(pair.confidence_i.mean() * pair.confidence_j.mean()) for pair in pairs]
    ranking = [pairs[k] for k in sorted(range(len(pairs)), key=lambda k: -scores[k])]
    focals = [
        focal if focal is not None else _first_focal(view, ranking, pixels[view])
        for view, focal in enumerate(_shared(focals, camera_of))
    ]
    focals = _shared(focals, camera_of)
    points, poses = _join(_spanning_tree(ranking, len(pixels)))
    confidence = best_confidence(pairs, len(pixels))
    for view, cloud in points.items():
        heartbeat()
        flat, grid, sure = (
            cloud.reshape(-1, 3),
            pixels[view].reshape(-1, 2),
            confidence[view].ravel().astype(np.float64),
        )
        if focals[view] is None:
            focals[view] = solve_focal(flat, grid, sure)
            focals = _shared(focals, camera_of)
        focal = focals[view]
        if focal is not None and view not in poses:
            found = _locate(flat, grid, focal, sure, _spacing(pixels[view]))
            if found is not None:
                poses[view] = found
        if focal is None or view not in poses:
            raise ReconstructionError(
                f"No camera explains what the network sees in photo {view + 1}.",
                "Leave that photo out, or take it again from nearer to the others.",
            )

    to_world = place_pairs(pairs, [points[view] for view in range(len(pixels))], heartbeat)
    scales = np.cbrt(np.linalg.det(to_world[:, :3, :3]))
    shrink = MEAN_PAIR_SCALE / np.exp(np.log(scales).mean())
    camera_to_world = np.stack([poses[view] for view in range(len(pixels))])
    log_depths = []
    for view, pose in enumerate(camera_to_world):
        depth = ((points[view].reshape(-1, 3) - pose[:3, 3]) @ pose[:3, 2]) * shrink
        depth[depth <= 0] = np.median(depth[depth > 0]) if (depth > 0).any() else 1.0
        log_depths.append(np.log(depth).astype(np.float32))
    return State(
        quaternions=Rotation.from_matrix(camera_to_world[:, :3, :3]).as_quat(),
        translations=_fold(camera_to_world[:, :3, 3] * shrink),
        log_focals=LOG_FOCAL_STEP * np.log([focals[view] for view in np.unique(camera_of, return_index=True)[1]]),
        pair_quaternions=Rotation.from_matrix(to_world[:, :3, :3] / scales[:, None, None]).as_quat(),
        pair_translations=_fold(to_world[:, :3, 3] / scales[:, None]),
        pair_scales=np.log(scales),
        log_depths=log_depths,
        camera_of=camera_of,
    )


def _shared(focals: Sequence[float | None], camera_of: NDArray[np.int64]) -> list[float | None]:
    """Each view's camera's: the median of what is known of its views."""
    known = [[f for f, of in zip(focals, camera_of) if of == camera and f is not None] for camera in camera_of]
    return [float(np.median(some)) if some else None for some in known]


def _spanning_tree(ranking: Sequence[Pair], views: int) -> list[Pair]:
    """The strongest pairs that link all views without a circle, strongest first (Kruskal)."""
    tree, group = [], list(range(views))
    for pair in ranking:
        if group[pair.i] != group[pair.j]:
            tree.append(pair)
            group = [group[pair.i] if g == group[pair.j] else g for g in group]
    return tree


def _join(tree: Sequence[Pair]) -> tuple[dict[int, Float64], dict[int, Float64]]:
    """Every view's points (H, W, 3) in the strongest pair's frame, and the poses (4, 4) that this gives on the way."""
    root, waiting = tree[0], deque(tree[1:])
    points = {root.i: root.points_i.astype(np.float64), root.j: root.points_j.astype(np.float64)}
    poses = {root.i: np.eye(4)}
    while waiting:
        pair = waiting.popleft()
        if pair.i in points:
            known, mine, sure, new, theirs = pair.i, pair.points_i, pair.confidence_i, pair.j, pair.points_j
        elif pair.j in points:
            known, mine, sure, new, theirs = pair.j, pair.points_j, pair.confidence_j, pair.i, pair.points_i
        else:
            waiting.append(pair)
            continue
        moved = fit_similarity(mine.reshape(-1, 3), points[known].reshape(-1, 3), sure.ravel())
        points[new] = theirs @ moved[:3, :3].T + moved[:3, 3]
        # The pair's frame is camera i's: where the similarity puts it, there camera i stands.
        poses.setdefault(pair.i, _without_scale(moved))
    return points, poses


def _first_focal(view: int, ranking: Sequence[Pair], pixels: Float64) -> float | None:
    """From the strongest pair that has `view` first: its own pointmap is in its own frame."""
    base = max(pixels.shape[:2]) * _spacing(pixels) / (2 * np.tan(np.pi / 6))
    for pair in ranking:
        if pair.i == view:
            focal = weiszfeld_focal(pair.points_i.reshape(-1, 3), pixels.reshape(-1, 2))
            if focal is not None:
                return float(np.clip(focal, FOCAL_RANGE[0] * base, FOCAL_RANGE[1] * base))
    return None


def _locate(points: Float64, pixels: Float64, focal: float, confidence: np.ndarray, spacing: float) -> Float64 | None:
    """camera_to_world (4, 4) by RANSAC on few samples (SQPnP, ECCV 2020), by a patient search where that fails."""
    sure = confidence > SURE
    if sure.sum() >= MIN_POINTS:
        K = np.diag([focal, focal, 1.0])
        found, turn, shift, _ = cv2.solvePnPRansac(
            points[sure].astype(np.float32),
            pixels[sure].astype(np.float32),
            K,
            None,
            iterationsCount=PNP_ITERATIONS,
            reprojectionError=PNP_PIXELS * spacing,
            flags=cv2.SOLVEPNP_SQPNP,
        )
        if found and np.isfinite(turn).all() and np.isfinite(shift).all():
            world_to_camera = np.eye(4)
            world_to_camera[:3, :3], world_to_camera[:3, 3] = cv2.Rodrigues(turn)[0], shift.ravel()
            return invert_rigid(world_to_camera)
    solved = solve_pose(points, pixels, focal, confidence)
    return None if solved is None else solved[0]


def _rays(pixels: Float64, focal: float) -> Float64:
    return np.concatenate([pixels / focal, np.ones((*pixels.shape[:-1], 1))], axis=-1)


def _spacing(pixels: Float64) -> float:
    """Distance of neighbouring pixels in the unit of `pixels`."""
    return float(pixels[0, 1, 0] - pixels[0, 0, 0])


def _without_scale(similarity: Float64) -> Float64:
    rigid = similarity.copy()
    rigid[:3, :3] /= np.cbrt(np.linalg.det(similarity[:3, :3]))
    return rigid


def _fold(translation: Float64) -> Float64:
    return np.sign(translation) * np.log1p(np.abs(translation))


def _unfold(folded: Float64) -> Float64:
    return np.sign(folded) * np.expm1(np.abs(folded))


def _unfolding(folded: Float64) -> Float64:
    """Derivative of `_unfold`; 0 at exactly 0, as upstream's automatic one has it: the root camera stays the origin."""
    return np.abs(np.sign(folded)) * np.exp(np.abs(folded))


def _rotations(quaternions: Float64) -> Float64:
    return Rotation.from_quat(quaternions).as_matrix()


def _transforms(R: Float64, t: Float64, scale: Float64) -> Float64:
    """(B, 4, 4) x -> scale (R x + t)."""
    out = np.tile(np.eye(4), (len(R), 1, 1))
    out[:, :3, :3], out[:, :3, 3] = scale[:, None, None] * R, scale[:, None] * t
    return out


def _quaternion_gradient(quaternions: Float64, by_R: Float64) -> Float64:
    """(B, 4) derivative by quaternions x y z w of any length, from that by the rotation matrices (B, 3, 3).

    R = M(q) / |q|^2 with M = (w^2 - v.v) I + 2 v v^T + 2 w [v]x.
    """
    v, w = quaternions[:, :3], quaternions[:, 3:]
    trace = np.trace(by_R, axis1=1, axis2=2)[:, None]
    axial = np.stack([by_R[:, 2, 1] - by_R[:, 1, 2], by_R[:, 0, 2] - by_R[:, 2, 0], by_R[:, 1, 0] - by_R[:, 0, 1]], 1)
    symmetric = by_R + by_R.transpose(0, 2, 1)
    by_v = -2 * trace * v + 2 * np.einsum("bij,bj->bi", symmetric, v) + 2 * w * axial
    by_w = 2 * w * trace + 2 * (v * axial).sum(axis=1, keepdims=True)
    radial = (by_R * _rotations(quaternions)).sum(axis=(1, 2))[:, None]
    norm = (quaternions**2).sum(axis=1, keepdims=True)
    return (np.concatenate([by_v, by_w], axis=1) - 2 * radial * quaternions) / norm
