"""Dense depth by multi-view stereo on the CPU: plane sweep, semi-global aggregation, agreement between views.

Per view: ZNCC over fronto-parallel planes spaced evenly in inverse depth (Collins, CVPR 1996; Gallup, CVPR 2007),
smoothed along eight paths (Hirschmuller, PAMI 2008), kept where other views find the same surface. Images are grids:
small float32 grey copies of the photos, pixel (row i, column j) centred at (j + 0.5, i + 0.5) as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from model.parallel import compiled
from model.types import Float32, Float64

WINDOW = 7
MATCH_COST = 0.75
"""Cost of ZNCC 0 against ZNCC 1."""
SMALL_JUMP = 0.1
LARGE_JUMP = 2.5
EDGE_SCALE = 24.0
"""Grey levels that halve the price of a depth jump."""
NOISE_VARIANCE = 4.0
"""Variance in squared grey levels below which a window counts as textureless."""
SEEN_THROUGH = 0.06
"""A point nearer than another view's surface on that view's ray by more than this share of depth stands in its way."""
AGREEMENT = 0.03
"""Two views agree where their depths differ by less than this share."""
MIN_SCORE = 0.6
MIN_COMPONENT = 30


@dataclass(frozen=True, slots=True)
class Grid:
    """One placed view, reduced."""

    grey: Float32
    """(h, w) 0 to 255."""
    K: Float64
    """(3, 3) intrinsics of the grid, corner origin."""
    R: Float64
    """(3, 3) camera from world."""
    t: Float64
    """(3,) camera from world."""


@dataclass(frozen=True, slots=True)
class DepthMap:
    """What stereo found in one view."""

    inverse: Float32
    """(h, w) inverse depth, > 0 everywhere; only where `sure` is it to be believed."""
    score: Float32
    """(h, w) ZNCC at that depth, -1 to 1."""
    agreeing: np.ndarray
    """(h, w) uint8 how many other views see the same surface."""
    sure: np.ndarray
    """(h, w) bool."""


def choose_neighbours(centres: Float64, points: Float64, seen: Sequence[np.ndarray], most: int = 4) -> list[list[int]]:
    """For each view the best `most` others to compare with, by shared points weighted by parallax.

    `centres` (V, 3) camera centres, `points` (P, 3), `seen[v]` indices of the points that view v sees.
    """
    visible = np.zeros((len(centres), len(points)), bool)
    for view, indices in enumerate(seen):
        visible[view, indices] = True
    chosen = []
    for i in range(len(centres)):
        scores = []
        for j in range(len(centres)):
            shared = points[visible[i] & visible[j]]
            if j == i or len(shared) == 0:
                scores.append(0.0)
                continue
            a, b = centres[i] - shared, centres[j] - shared
            cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
            angle = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
            # Parallax helps up to some 12 degrees; far beyond, surfaces look different.
            scores.append(float(np.minimum(angle, 12.0) @ np.exp(-np.maximum(angle - 25.0, 0.0) / 10.0)))
        order = np.argsort(scores)[::-1][:most]
        chosen.append([int(j) for j in order if scores[j] > 0])
    return chosen


def inverse_depths(grid: Grid, others: Sequence[Grid], near: float, far: float) -> Float32:
    """Planes from 1 / far to 1 / near, evenly spaced in inverse depth, about one pixel of motion apart."""
    h, w = grid.grey.shape
    corners = np.array([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1], [w / 2, h / 2, 1]], float) @ np.linalg.inv(grid.K).T
    motion = 0.0
    for other in others:
        R, t = _relative(grid, other)
        ends = []
        for depth in (near, far):
            local = (corners * depth) @ R.T + t
            ends.append(local[:, :2] / np.maximum(local[:, 2:], 1e-3 * depth) * other.K[0, 0])
        motion = max(motion, float(np.median(np.linalg.norm(ends[0] - ends[1], axis=1))))
    count = int(np.clip(motion, 64, 128))
    return np.linspace(1.0 / far, 1.0 / near, count).astype(np.float32)


def _relative(grid: Grid, other: Grid) -> tuple[Float64, Float64]:
    R = other.R @ grid.R.T
    return R, other.t - R @ grid.t


def sweep(grid: Grid, others: Sequence[Grid], planes: Float32) -> Float32:
    """(D, h, w) float32 ZNCC with the neighbours, the mean of their better half; -1 where none sees a pixel."""
    h, w = grid.grey.shape
    window = (WINDOW, WINDOW)
    # One grey level is added so that 0 can mean outside the photo.
    mine = grid.grey + 1.0
    mean = cv2.blur(mine, window)
    variance = np.maximum(cv2.blur(mine * mine, window) - mean * mean, 0.0)
    half_pixel = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    unproject = np.linalg.inv(half_pixel @ grid.K)
    volume = np.empty((len(planes), h, w), np.float32)
    scores = np.empty((len(others), h, w), np.float32)
    theirs = [other.grey + 1.0 for other in others]
    for d, inverse in enumerate(planes):
        for k, other in enumerate(others):
            R, t = _relative(grid, other)
            homography = half_pixel @ other.K @ (R + np.outer(t, [0.0, 0.0, float(inverse)])) @ unproject
            warped = cv2.warpPerspective(
                theirs[k], homography, (w, h), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=0.0
            )
            their_mean = cv2.blur(warped, window)
            _zncc(
                mean, variance, warped, their_mean, cv2.blur(warped * warped, window), cv2.blur(warped * mine, window),
                scores[k],
            )  # fmt: skip
        _better_half(scores, volume[d])
    return volume


@compiled
def _zncc(mean, variance, warped, their_mean, their_square, product, out):  # noqa: ANN001, ANN202
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            if warped[y, x] < 0.5:
                out[y, x] = -1.0
                continue
            covariance = product[y, x] - mean[y, x] * their_mean[y, x]
            their_variance = max(their_square[y, x] - their_mean[y, x] * their_mean[y, x], 0.0)
            out[y, x] = covariance / np.sqrt((variance[y, x] + NOISE_VARIANCE) * (their_variance + NOISE_VARIANCE))


@compiled
def _better_half(scores, out):  # noqa: ANN001, ANN202
    count = scores.shape[0]
    keep = (count + 1) // 2
    values = np.empty(count, np.float32)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for k in range(count):
                value = scores[k, y, x]
                place = k
                while place > 0 and values[place - 1] < value:
                    values[place] = values[place - 1]
                    place -= 1
                values[place] = value
            total = 0.0
            for k in range(keep):
                total += values[k]
            out[y, x] = total / keep


@compiled
def _aggregate(cost, grey, small, large, scale):  # noqa: ANN001, ANN202
    """Sum over eight paths of the semi-global costs; cost (h, w, D) float32, same shape back."""
    h, w, depth = cost.shape
    total = np.zeros((h, w, depth), np.float32)
    above = np.zeros((3, w, depth), np.float32)
    above_least = np.zeros((3, w), np.float32)
    here = np.zeros((3, w, depth), np.float32)
    here_least = np.zeros((3, w), np.float32)
    row = np.zeros(depth, np.float32)
    last = np.zeros(depth, np.float32)
    for turn in range(2):
        step = 1 if turn == 0 else -1
        for n in range(h):
            y = n if turn == 0 else h - 1 - n
            last_least = np.float32(0.0)
            for m in range(w):
                x = m if turn == 0 else w - 1 - m
                for path in range(4):
                    # 0: along the row; 1 to 3: from the row before, shifted by -1, 0, 1.
                    source = x - step if path == 0 else x + (path - 2)
                    inside = 0 <= source < w and (path == 0 or n > 0)
                    if inside:
                        level = grey[y, source] if path == 0 else grey[y - step, source]
                        jump = np.float32(large / (1.0 + abs(grey[y, x] - level) / scale))
                        jump = max(jump, small)
                        if path == 0:
                            before, least = last, last_least
                        else:
                            before, least = above[path - 1, source], above_least[path - 1, source]
                    new_least = np.float32(1e30)
                    for d in range(depth):
                        value = cost[y, x, d]
                        if inside:
                            best = min(before[d], least + jump)
                            if d > 0:
                                best = min(best, before[d - 1] + small)
                            if d < depth - 1:
                                best = min(best, before[d + 1] + small)
                            value += best - least
                        row[d] = value
                        new_least = min(new_least, value)
                    for d in range(depth):
                        total[y, x, d] += row[d]
                    if path == 0:
                        last[:] = row
                        last_least = new_least
                    else:
                        here[path - 1, x] = row
                        here_least[path - 1, x] = new_least
            above, here = here, above
            above_least, here_least = here_least, above_least
    return total


@compiled
def _winner(total, volume, planes, inverse, score):  # noqa: ANN001, ANN202
    """Lowest aggregated cost, between planes by a parabola; `volume` (D, h, w) gives the ZNCC there."""
    h, w, depth = total.shape
    spacing = planes[1] - planes[0]
    for y in range(h):
        for x in range(w):
            best = 0
            for d in range(1, depth):
                if total[y, x, d] < total[y, x, best]:
                    best = d
            shift = 0.0
            if 0 < best < depth - 1:
                left, mid, right = total[y, x, best - 1], total[y, x, best], total[y, x, best + 1]
                bend = left - 2.0 * mid + right
                if bend > 0.0:
                    shift = min(max(0.5 * (left - right) / bend, -0.5), 0.5)
            inverse[y, x] = planes[best] + shift * spacing
            score[y, x] = volume[best, y, x]


def stereo(grid: Grid, others: Sequence[Grid], planes: Float32) -> tuple[Float32, Float32]:
    """Inverse depth and ZNCC, both (h, w) float32, of one view against its neighbours."""
    volume = sweep(grid, others, planes)
    cost = np.ascontiguousarray((MATCH_COST * (1.0 - volume)).transpose(1, 2, 0))
    total = _aggregate(cost, grid.grey, np.float32(SMALL_JUMP), np.float32(LARGE_JUMP), np.float32(EDGE_SCALE))
    inverse = np.empty(grid.grey.shape, np.float32)
    score = np.empty(grid.grey.shape, np.float32)
    _winner(total, volume, planes, inverse, score)
    return cv2.medianBlur(inverse, 3), score


@compiled
def _agree(inverse, K, R, t, their_inverse, their_K, their_R, their_t, share, count, weight, total):  # noqa: ANN001, ANN202
    """Adds one other view's opinion: `count` += 1 and `weight`, `total` += its inverse depth, where it agrees."""
    h, w = inverse.shape
    their_h, their_w = their_inverse.shape
    turn = their_R @ R.T
    move = their_t - turn @ t
    for y in range(h):
        for x in range(w):
            z = 1.0 / inverse[y, x]
            a = (x + 0.5 - K[0, 2]) / K[0, 0] * z
            b = (y + 0.5 - K[1, 2]) / K[1, 1] * z
            their_z = turn[2, 0] * a + turn[2, 1] * b + turn[2, 2] * z + move[2]
            if their_z <= 0.0:
                continue
            u = (turn[0, 0] * a + turn[0, 1] * b + turn[0, 2] * z + move[0]) / their_z * their_K[0, 0] + their_K[0, 2]
            v = (turn[1, 0] * a + turn[1, 1] * b + turn[1, 2] * z + move[1]) / their_z * their_K[1, 1] + their_K[1, 2]
            column, line = int(np.floor(u)), int(np.floor(v))
            if column < 0 or line < 0 or column >= their_w or line >= their_h:
                continue
            found = their_inverse[line, column]
            expected = 1.0 / their_z
            if abs(found - expected) >= share * expected:
                continue
            # Between pixels of one surface the other view's inverse depth is linear: sample it, but not at an edge.
            x0, y0 = int(np.floor(u - 0.5)), int(np.floor(v - 0.5))
            if x0 >= 0 and y0 >= 0 and x0 + 1 < their_w and y0 + 1 < their_h:
                fx, fy = u - 0.5 - x0, v - 0.5 - y0
                p, q = their_inverse[y0, x0], their_inverse[y0, x0 + 1]
                r, s = their_inverse[y0 + 1, x0], their_inverse[y0 + 1, x0 + 1]
                if max(p, q, r, s) - min(p, q, r, s) < share * expected:
                    found = (p * (1 - fx) + q * fx) * (1 - fy) + (r * (1 - fx) + s * fx) * fy
            count[y, x] += 1
            # Its inverse depth moved along this view's ray, to first order.
            weight[y, x] += 1.0
            total[y, x] += inverse[y, x] * found / expected


@compiled
def _stands_in_the_way(points, K, R, t, inverse, sure, share, count):  # noqa: ANN001, ANN202
    """`count` += 1 for every world point (h, w, 3) that hides a surface which this view is sure to see."""
    for y in range(points.shape[0]):
        for x in range(points.shape[1]):
            p = points[y, x]
            z = R[2, 0] * p[0] + R[2, 1] * p[1] + R[2, 2] * p[2] + t[2]
            if z <= 0.0:
                continue
            u = (R[0, 0] * p[0] + R[0, 1] * p[1] + R[0, 2] * p[2] + t[0]) / z * K[0, 0] + K[0, 2]
            v = (R[1, 0] * p[0] + R[1, 1] * p[1] + R[1, 2] * p[2] + t[1]) / z * K[1, 1] + K[1, 2]
            column, line = int(np.floor(u)), int(np.floor(v))
            if 0 <= column < inverse.shape[1] and 0 <= line < inverse.shape[0] and sure[line, column]:
                count[y, x] += z * inverse[line, column] < 1.0 - share


def obstructions(points: Float32, others: Sequence[tuple[Grid, Float32, np.ndarray]]) -> np.ndarray:
    """(h, w) uint8: how many other views look through each world point (h, w, 3).

    `others` are (grid, inverse depth, sure) of the views to ask.
    """
    count = np.zeros(points.shape[:2], np.uint8)
    for grid, inverse, sure in others:
        _stands_in_the_way(points, grid.K, grid.R, grid.t, inverse, sure, SEEN_THROUGH, count)
    return count


def unproject(grid: Grid, inverse: Float32) -> Float32:
    """(h, w, 3) float32 world points of every pixel of a grid."""
    h, w = inverse.shape
    x = (np.arange(w) + 0.5 - grid.K[0, 2]) / grid.K[0, 0]
    y = (np.arange(h) + 0.5 - grid.K[1, 2]) / grid.K[1, 1]
    depth = 1.0 / inverse.astype(np.float64)
    local = np.stack([x[None] * depth, y[:, None] * depth, depth], axis=-1)
    return ((local - grid.t) @ grid.R).astype(np.float32)


def check(grids: Sequence[Grid], maps: Sequence[tuple[Float32, Float32]], near: Sequence[set[int]]) -> list[DepthMap]:
    """Keep what at least one other view confirms; average what agrees.

    `near[v]` are the views compared with view v.
    """
    out = []
    for v, (grid, (inverse, score)) in enumerate(zip(grids, maps)):
        count = np.zeros(inverse.shape, np.uint8)
        weight = np.ones(inverse.shape, np.float32)
        total = inverse.copy()
        for j in sorted(near[v]):
            other = grids[j]
            _agree(
                inverse, grid.K, grid.R, grid.t, maps[j][0], other.K, other.R, other.t,
                AGREEMENT, count, weight, total,
            )  # fmt: skip
        fused = total / weight
        sure = (count > 0) & (score > MIN_SCORE)
        # Speckles, also those that float before another surface: components of similar depth only.
        levels = np.zeros(inverse.shape, np.int16)
        levels[sure] = np.clip(np.log(inverse[sure] / inverse.min()) * 500.0, 0, 32000).astype(np.int16) + 1
        cv2.filterSpeckles(levels, 0, MIN_COMPONENT, 25)
        out.append(DepthMap(fused.astype(np.float32), score, count, levels > 0))
    return out
