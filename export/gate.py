"""Does an engine answer as the checkpoint does, on photos of rooms? Asked without torch, of any engine on any machine.

At export the checkpoint itself, in float32, answers some cases over two rendered rooms (`export.parity`). What it saw
and what it answered, on a coarse grid of pixels, lie in the artifact's `answers.npz`:
    photos                  uint8 (P, S, S, 3), as the network sees them
    grid                    int64 (s,), the rows, and the columns, that are kept
    views_0, views_1, ...   int64 (B, N), a case's photos
    references_0, ...       int64 (M,), its references
    points_0, ...           float32 (B, N, s, s, 3), likewise every other output of `export.contract`
    cameras_0, ...          float64 (B, N, 4, 4), camera_to_world in the reference's frame; NaN: the points have none
A worker asks its engine the same before the first job: what drifts beyond LIMITS is not served.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.contract import OUTPUTS, ArtifactError
from export.runtime import normalised
from model.geometry.poses import solve_cameras
from model.types import Float32, Float64, Prediction, View, Views

CASES = ((1, 2), (2, 3), (1, 5), (1, 8))
"""(batch, views) to compare: the fewest views, a true batch of different scenes, more views than reference paths."""
ROOMS = ("brick", "green")
"""Photos in export/scenes by their room: a job of a batch sees one."""
GRID = 32
"""Rows and columns of pixels that are kept of an answer, at least."""
SURE = 0.5
"""Share of a view's points that agree with its camera where there is one: of random weights there is none."""
LOST = 180.0
"""Degrees between a camera and none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far an answer may lie from the checkpoint's."""

    median: float
    """Relative error of a point, that half of the points may have."""
    p99: float
    """That 99 % of the points may have."""
    worst: float
    """Error of any output, relative to its largest value."""
    degrees: float
    """Between two poses of a camera."""
    rank: float
    """Rank correlation of the confidence, at least."""


LIMITS = {
    "fp32": Limits(median=5e-5, p99=1e-4, worst=1e-3, degrees=0.02, rank=0.9999),
    "fp16": Limits(median=4e-3, p99=3e-2, worst=5e-2, degrees=0.5, rank=0.999),
    "bf16": Limits(median=3e-2, p99=0.2, worst=0.2, degrees=3.0, rank=0.99),
}
"""By what an engine computes products in. float32 differs in the order of its sums. The others' are about three times
what a random network of the released size drifts over these rooms on the CPU: in bfloat16 1.3e-2 in the median, 6e-2 at
99 %, 7e-2 at worst and 6e-5 short of a rank correlation of 1; in fp16 1.6e-3, 6.5e-3, 8e-3 and 1e-6. A trained network
answers more smoothly. Degrees: what poses are off by where true points carry independent errors of the median's."""


class ParityError(ArtifactError):
    """What computes a network answers otherwise than its checkpoint: it must not be served."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an engine's answer to one case lies from the checkpoint's."""

    batch: int
    views: int
    references: tuple[int, ...]
    point_error_median: float
    """Of |p - q| / |q| over the points."""
    point_error_p99: float
    worst: dict[str, float]
    """Per output: largest absolute difference over the largest absolute value."""
    pose_degrees: float | None
    """Largest angle between two poses of a camera relative to the reference's: how much it is turned otherwise, or
    in which other direction it lies. None: the checkpoint's points have no cameras."""
    rank_correlation: float
    """Spearman's, of the confidence: the least of all jobs."""


Run = Callable[[Sequence[NDArray[Any]]], Sequence[Float32]]
"""A graph: its inputs to its outputs, both in the order of `export.contract`."""


# ---------------------------------------------------------------- the checkpoint's answers


def write_answers(run: Run, path: Path, square: int, paths: int, max_views: int) -> None:
    """Keep what `run`, the checkpoint in float32, answers in every case of CASES of at most so many views.

    square: side of the images that it sees, in pixels; paths: its reference paths.
    """
    scenes = [photos_of(room, square) for room in ROOMS]
    first_of = np.cumsum([0, *map(len, scenes)])
    grid = _grid(square)
    kept: dict[str, NDArray[Any]] = {"photos": np.concatenate(scenes), "grid": grid}
    for case, (batch, views) in enumerate((b, n) for b, n in CASES if n <= max_views):
        shown = first_of[:batch, None] + np.arange(views)
        references = references_of(views, paths)
        outputs = run((normalised(kept["photos"][shown]), references))
        kept |= {f"views_{case}": shown, f"references_{case}": references}
        answer = [_at(grid, output) for output in outputs]
        kept |= {f"{name}_{case}": field for name, field in zip(OUTPUTS, answer, strict=True)}
        kept[f"cameras_{case}"] = _cameras(answer[0], answer[1], int(references[0]), square)
    np.savez_compressed(path, **kept)  # type: ignore[arg-type]


def references_of(views: int, paths: int) -> NDArray[np.int64]:
    """(M,): the last view is the frame of the answer, so that a graph which ignores `references` shows."""
    return np.arange(views - 1, -1, -1)[:paths]


def photos_of(room: str, square: int) -> NDArray[np.uint8]:
    """uint8 (N, square, square, 3): the photos of a room, at least 4."""
    files = sorted((Path(__file__).parent / "scenes").glob(f"{room}-*.jpg"))
    photos = [Image.open(file).resize((square, square), Image.Resampling.LANCZOS) for file in files]
    return np.stack([np.asarray(photo) for photo in photos])


def _grid(square: int) -> NDArray[np.int64]:
    """The middles of cells of an odd number of pixels: so they lie at every place of a patch of 16."""
    cell = max(1, (square // GRID - 1) | 1)
    return np.arange(square // cell) * cell + cell // 2


def _at(grid: NDArray[np.int64], output: NDArray[Any]) -> NDArray[Any]:
    """What an output (B, N, S, S[, k]) has on a grid of rows and columns."""
    return output[:, :, grid[:, None], grid]


# ---------------------------------------------------------------- the comparison


def check(
    run: Run,
    path: Path,
    engine: str,
    precision: str,
    *,
    fits: Callable[[int, int], bool] = lambda _batch, _views: True,
    seconds: float = float("inf"),
) -> list[dict[str, Any]]:
    """Compare `run`, which computes in `precision`, with the answers at `path`; the measured differences, JSON-able.

    engine: what it is called in messages. fits: whether memory does for a pass of (batch, views). seconds: what all may
    take, about: the first case is always compared, a further one where memory and time do for it.
    Raises ParityError where a case is beyond LIMITS or not finite: what drifts, and what to try.
    """
    with np.load(path) as file:
        answers = dict(file)
    started, seen = time.monotonic(), 0
    measured: list[dict[str, Any]] = []
    for case in range(sum(name.startswith("views_") for name in answers)):
        shown = answers[f"views_{case}"]
        foreseen = (time.monotonic() - started) * (1 + shown.size / max(seen, 1))
        if measured and (foreseen > seconds or not fits(*shown.shape)):
            break
        try:
            difference = _compare(run, answers, case)
        except MemoryError:  # a GPU's is known only so
            if not measured:
                raise
            break
        _refuse_beyond_limits(difference, engine, precision)
        measured.append(asdict(difference))
        seen += shown.size
    return measured


def _compare(run: Run, answers: dict[str, NDArray[Any]], case: int) -> Difference:
    """Ask `run` one case. Where its answer is not finite, the errors are not numbers."""
    shown, references = answers[f"views_{case}"], answers[f"references_{case}"]
    got = [_at(answers["grid"], output) for output in run((normalised(answers["photos"][shown]), references))]
    expected = [answers[f"{name}_{case}"] for name in OUTPUTS]
    finite = all(np.isfinite(field).all() for field in got)
    errors = point_errors(got[0], expected[0]) if finite else np.array([np.nan])
    square = answers["photos"].shape[1]
    return Difference(
        batch=shown.shape[0],
        views=shown.shape[1],
        references=tuple(references.tolist()),
        point_error_median=float(np.median(errors)),
        point_error_p99=float(np.quantile(errors, 0.99)),
        worst={name: relative_error(a, b) for name, a, b in zip(OUTPUTS, got, expected, strict=True)},
        pose_degrees=_pose_degrees(got, answers[f"cameras_{case}"], int(references[0]), square) if finite else None,
        rank_correlation=min(rank_correlation(a, b) for a, b in zip(got[1], expected[1], strict=True)),
    )


def _refuse_beyond_limits(difference: Difference, engine: str, precision: str) -> None:
    if not np.isfinite(difference.point_error_median):
        raise ParityError(
            f"{engine} in {precision} computes values that are not finite, for {difference.batch} x {difference.views} "
            f"rendered views{advice(precision)}"
        )
    limits = LIMITS[precision]
    output = max(difference.worst, key=lambda name: difference.worst[name])
    found = {
        "median relative error of the points": (difference.point_error_median, limits.median),
        "99th percentile of the points' relative error": (difference.point_error_p99, limits.p99),
        f"largest relative error of the {output}": (difference.worst[output], limits.worst),
        "angle between poses in degrees": (difference.pose_degrees or 0.0, limits.degrees),
        "shortfall of the confidence's rank correlation": (1 - difference.rank_correlation, 1 - limits.rank),
    }
    beyond = [
        f"{what} is {value:.2g} (at most {limit:.2g})" for what, (value, limit) in found.items() if not value <= limit
    ]
    if beyond:
        raise ParityError(
            f"{engine} in {precision} differs from the checkpoint on {difference.batch} x {difference.views} rendered "
            f"views: the {', the '.join(beyond)}{advice(precision)}"
        )


def advice(precision: str) -> str:
    """What to try where this precision is too coarse."""
    return "" if precision == "fp32" else f"; try {'bf16' if precision == 'fp16' else 'fp16'} or fp32"


def point_errors(got: NDArray[Any], expected: NDArray[Any]) -> Float64:
    """|p - q| / |q| of points (..., 3)."""
    points, expected = got.astype(np.float64), expected.astype(np.float64)
    norm = np.maximum(np.linalg.norm(expected, axis=-1), 1e-12)
    errors: Float64 = np.linalg.norm(points - expected, axis=-1) / norm
    return errors


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference over the largest absolute value expected."""
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-12))


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's, of two arrays of one shape; equal values share their mean rank. 0 where just one has no order."""
    ranks = []
    for values in (first, second):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]
        ranks.append(rank - rank.mean())
    norms = [float(np.linalg.norm(rank)) for rank in ranks]
    if not all(norms):
        return float(norms[0] == norms[1])
    return float(ranks[0] @ ranks[1] / (norms[0] * norms[1]))


# ---------------------------------------------------------------- cameras


def _cameras(points: NDArray[Any], confidence: NDArray[Any], reference: int, square: int) -> Float64:
    """(B, N, 4, 4) camera_to_world of points (B, N, s, s, 3) on the grid; NaN where they are seen from nowhere."""
    batch, views, side = confidence.shape[:3]
    cameras = np.full((batch, views, 4, 4), np.nan)
    pixels = np.zeros((side, side, 3), np.uint8)
    jobs = Views(tuple(View("", pixels, (square, square)) for _ in range(views)), reference)
    seen = np.tile([0.0, 0.0, side, side], (views, 1)) * (square // side)
    for job in range(batch):
        prediction = Prediction(points[job], confidence[job], np.zeros((views, side, side, 3), np.uint8), seen)
        solved = solve_cameras(prediction, jobs)
        sure = {
            view: camera for view, camera in enumerate(solved) if camera is not None and camera.inlier_share >= SURE
        }
        if reference in sure:  # the others' focal is its
            for view, camera in sure.items():
                cameras[job, view] = camera.camera_to_world
    return cameras


def _pose_degrees(got: Sequence[NDArray[Any]], expected: Float64, reference: int, square: int) -> float | None:
    """See `Difference.pose_degrees`."""
    known = np.isfinite(expected[..., 0, 0])
    known[:, reference] = False  # it is the frame
    if not known.any():
        return None
    degrees = []
    for a, b in zip(_cameras(got[0], got[1], reference, square)[known], expected[known], strict=True):
        if not np.isfinite(a).all():
            return LOST
        turn = np.arccos(np.clip((np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2, -1, 1))
        aside = np.arctan2(np.linalg.norm(np.cross(a[:3, 3], b[:3, 3])), a[:3, 3] @ b[:3, 3])
        degrees.append(np.degrees(max(turn, aside)))
    return float(max(degrees))
