"""Does an engine answer as the checkpoint does, on photos of rooms? Asked without torch, of any engine on any machine.

At export the checkpoint itself, in float32, answers some questions over two rendered rooms (`export.parity`). What it
saw and what it answered, on a coarse grid of pixels, lie in the artifact's `answers.npz`:
    photos                  uint8 (P, S, S, 3), squares of the side, or of the long side, that the network sees
    grid                    int64 (s,), the rows, and the columns, that are kept, as far as an image has them
    views_0, views_1, ...   int64 (B, N), a question's photos
and what else its network is told:
    references_0, ...       int64 (M,), where all views are seen at once
    intrinsics_0, ...       float32 (B, N, 3, 3), where Gaussians are predicted
    shapes_0, ...           int64 (2, 2), heights and widths of a pair's views: the middles of their photos
and the answers:
    points_0, ...           float32 (B, N, s, s, 3), likewise every other output of `export.contract`; a pair's
                            first_points_0, ... float32 (B, r, c, 3)
    cameras_0, ...          float64 (B, N, 4, 4), camera_to_world in the reference's frame; NaN: the points have none
An engine is asked the same when it is opened: what drifts beyond LIMITS is not served.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.contract import (
    ANSWERS_FILE,
    DECODER_FILE,
    ENCODER_FILE,
    GRAPH_FILE,
    PAIR_FIELDS,
    SPLATS,
    ArtifactError,
    Description,
    graph_tensors,
)
from export.runtime import Graph, OnnxGraph, normalised, usable_memory
from model.geometry.poses import solve_cameras
from model.types import Float32, Float64, Prediction, View, Views

log = logging.getLogger(__name__)

CASES = ((1, 2), (2, 3), (1, 5), (1, 8))
"""(batch, views) to compare: the fewest views, a true batch of different scenes, more views than reference paths."""
SPLAT_CASES = ((1, 2), (2, 2), (1, 3))
"""The same for NoPoSplat: what released networks of its kind take, and a true batch."""
ACROSS, UPRIGHT, WIDE, SQUARE = (3, 4), (4, 3), (2, 4), (4, 4)
"""Heights and widths of images in quarters of their long side."""
PAIR_CASES = ((1, ACROSS, ACROSS), (2, ACROSS, UPRIGHT), (1, UPRIGHT, WIDE))
"""(batch, shape of the first view, of the second) to compare of a pairwise network that sees photos of any shape."""
SQUARE_PAIR_CASES = ((1, SQUARE, SQUARE), (2, SQUARE, SQUARE))
"""Of one that sees squares."""
ROOMS = {"brick": 8, "green": 4}
"""Photos in export/scenes by their room: a job of a batch sees one."""
GRID = 32
"""Rows and columns of pixels that are kept of an answer, at least, where an image is a square."""
MANY, SPARSELY = 4, 3
"""An output of more numbers a pixel (harmonics, descriptors) is kept on every third row and column of the grid."""
SURE = 0.5
"""Share of a view's points that agree with its camera where there is one: of random weights there is none."""
LOST = 180.0
"""Degrees between a camera and none."""
SECONDS = 60.0
"""What the comparison with the checkpoint may take, about: a CPU is to serve within minutes."""
PASSED_FOLDER = "passed"
"""In an artifact: what was measured of engines on CPUs. Of no interest where the artifact goes."""


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
    turned: float
    """Angle in degrees between two directions of a pixel, that 99 % may have."""


LIMITS = {
    "fp32": Limits(median=5e-5, p99=1e-4, worst=1e-3, degrees=0.02, rank=0.9999, turned=0.02),
    "fp16": Limits(median=4e-3, p99=3e-2, worst=5e-2, degrees=0.5, rank=0.999, turned=2.5),
    "bf16": Limits(median=3e-2, p99=0.2, worst=0.2, degrees=3.0, rank=0.99, turned=20.0),
}
"""By what an engine computes products in. float32 differs in the order of its sums. The others' are about three times
what a random network of the released size drifts over these rooms on the CPU: in bfloat16 1.3e-2 in the median, 6e-2 at
99 %, 7e-2 at worst and 6e-5 short of a rank correlation of 1; in fp16 1.6e-3, 6.5e-3, 8e-3 and 1e-6. A trained network
answers more smoothly. Degrees: what poses are off by where true points carry independent errors of the median's.
Turned: small random networks with dense heads turn rotations by 10 and 0.8 degrees, descriptors by 0.9 and 0.1. Their
points come nearest to the limits: 2.9e-2 and 0.13 in bfloat16, 3.0e-3 and 2.8e-2 in fp16."""


class ParityError(ArtifactError):
    """What computes a network answers otherwise than its checkpoint: it must not be served."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an engine's answer to one question lies from the checkpoint's. JSON-able."""

    batch: int
    views: int
    shapes: list[list[int]]
    """Height and width of each view."""
    point_error_median: float
    """Of |p - q| / |q| over the points."""
    point_error_p99: float
    worst: dict[str, float]
    """Per output but DIRECTIONS: largest absolute difference over the largest absolute value."""
    turned: dict[str, float]
    """Per output of DIRECTIONS: the angle in degrees that 99 % turn by at most, quaternions up to their sign. Where a
    network normalises next to nothing, any rounding turns it anywhere: the worst says nothing."""
    pose_degrees: float | None
    """Largest angle between two poses of a camera relative to the reference's: how much it is turned otherwise, or
    in which other direction it lies. None: the checkpoint's points have no cameras."""
    rank_correlation: float
    """Spearman's, of the confidence, or, where there is none, of the opacity: the least of all jobs."""

    @property
    def asked(self) -> str:
        """What for, in words."""
        pair = [f"{height} x {width}" for height, width in self.shapes]
        sizes = f" of {' and '.join(pair)} pixels" if len(set(pair)) > 1 else ""
        return f"{self.batch} x {self.views} rendered views{sizes}"

    def beyond(self, precision: str) -> list[str]:
        """What of it is beyond the limits of `precision`, in words."""
        limits = LIMITS[precision]
        output = max(self.worst, key=lambda name: self.worst[name])
        found = {
            "median relative error of the points": (self.point_error_median, limits.median),
            "99th percentile of the points' relative error": (self.point_error_p99, limits.p99),
            f"largest relative error of the {output}": (self.worst[output], limits.worst),
            "angle between poses in degrees": (self.pose_degrees or 0.0, limits.degrees),
            "shortfall of the confidence's rank correlation": (1 - self.rank_correlation, 1 - limits.rank),
        }
        for name, angle in self.turned.items():
            found[f"99th percentile of the angle of the {name} in degrees"] = (angle, limits.turned)
        return [
            f"{what} is {value:.2g} (at most {limit:.2g})"
            for what, (value, limit) in found.items()
            if not value <= limit
        ]


Run = Callable[[Sequence[NDArray[Any]]], Sequence[Float32]]
"""A graph, or a network of several: its inputs to its outputs, both in the order of `export.contract`."""
Question = dict[str, NDArray[Any]]
"""`views`, and what else the network is told: see above."""
TOLD = ("references", "intrinsics", "shapes")
DIRECTIONS = ("rotation", "descriptors")
"""Outputs of unit length, by how their names end."""
Answer = dict[str, NDArray[Any]]
"""Outputs on the grid, by their names."""


def whole(graphs: Mapping[str, Run]) -> Run:
    """A network of the graphs in its files: of a pairwise one, both views' images to what is decoded of them."""
    if GRAPH_FILE in graphs:
        return graphs[GRAPH_FILE]

    def run(images: Sequence[NDArray[Any]]) -> Sequence[Float32]:
        return graphs[DECODER_FILE]([graphs[ENCODER_FILE]([view])[0] for view in images])

    return run


# ---------------------------------------------------------------- the questions


def questions(network: str, side: int, *, oblong: bool, paths: int, max_views: int) -> list[Question]:
    """What a network of that name is asked, whose photos have a side of so many pixels.

    oblong: whether that is their long side alone; paths: its reference paths; max_views: the most that it takes.
    """
    if network in PAIR_FIELDS:
        return [
            {"views": _shown(batch, 2), "shapes": np.array([first, second]) * side // 4}
            for batch, first, second in (PAIR_CASES if oblong else SQUARE_PAIR_CASES)
        ]
    cases = [(batch, views) for batch, views in (SPLAT_CASES if network == SPLATS else CASES) if views <= max_views]
    if network == SPLATS:
        return [{"views": _shown(*case), "intrinsics": _lenses(*case)} for case in cases]
    return [{"views": _shown(*case), "references": references_of(case[1], paths)} for case in cases]


def _shown(batch: int, views: int) -> NDArray[np.int64]:
    """(B, N): each job the first photos of a room of its own, of those of all ROOMS."""
    first = np.cumsum([0, *ROOMS.values()])[:batch, None]
    return np.asarray(first + np.arange(views), np.int64)


def _lenses(batch: int, views: int) -> Float32:
    """(B, N, 3, 3): every view has intrinsics of its own, so that a graph which exchanges or ignores them shows."""
    lenses = np.tile(np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], np.float32), (batch, views, 1, 1))
    lenses[..., [0, 1], [0, 1]] = np.linspace(0.7, 1.3, batch * views * 2).reshape(batch, views, 2)
    return lenses


def references_of(views: int, paths: int) -> NDArray[np.int64]:
    """(M,): the last view is the frame of the answer, so that a graph which ignores `references` shows."""
    return np.arange(views - 1, -1, -1)[:paths]


def photos_of(room: str, side: int) -> NDArray[np.uint8]:
    """uint8 (N, side, side, 3): the photos of a room."""
    files = sorted((Path(__file__).parent / "scenes").glob(f"{room}-*.jpg"))
    photos = [Image.open(file).resize((side, side), Image.Resampling.LANCZOS) for file in files]
    return np.stack([np.asarray(photo) for photo in photos])


def all_photos(side: int) -> NDArray[np.uint8]:
    """uint8 (P, side, side, 3): the photos of all ROOMS."""
    return np.concatenate([photos_of(room, side) for room in ROOMS])


def inputs_of(question: Question, photos: NDArray[np.uint8]) -> list[NDArray[Any]]:
    """What a network is given, in the order of `export.contract`; a pairwise one the images of either view."""
    shown = photos[question["views"]]
    if "shapes" not in question:
        return [normalised(shown), *(question[name] for name in TOLD if name in question)]
    inputs: list[NDArray[Any]] = []
    for view, (height, width) in enumerate(question["shapes"].tolist()):
        top, left = (shown.shape[2] - height) // 2, (shown.shape[3] - width) // 2
        inputs.append(normalised(shown[:, view, top : top + height, left : left + width]))
    return inputs


def _shapes(question: Question, side: int) -> list[list[int]]:
    """Height and width of each view."""
    shapes: list[list[int]] = question.get("shapes", np.full((question["views"].shape[1], 2), side)).tolist()
    return shapes


# ---------------------------------------------------------------- the checkpoint's answers


def write_answers(
    run: Run, path: Path, network: str, side: int, *, oblong: bool = False, paths: int = 1, max_views: int = 2
) -> None:
    """Keep what `run`, the checkpoint in float32, answers to its `questions`."""
    asked = questions(network, side, oblong=oblong, paths=paths, max_views=max_views)
    photos, grid = all_photos(side), _grid(side)
    shown = np.unique(np.concatenate([question["views"].ravel() for question in asked]))
    kept: dict[str, NDArray[Any]] = {"photos": photos[shown], "grid": grid}
    for case, question in enumerate(asked):
        answer = _answer(run, network, question, photos, grid)
        cameras = {"cameras": _cameras(answer, question, side, grid)}
        told = question | {"views": np.searchsorted(shown, question["views"])}
        kept |= {f"{name}_{case}": array for name, array in (told | answer | cameras).items()}
    np.savez_compressed(path, **kept)  # type: ignore[arg-type]


def _answer(run: Run, network: str, question: Question, photos: NDArray[np.uint8], grid: NDArray[np.int64]) -> Answer:
    outputs = run(inputs_of(question, photos))
    return {
        name: _at(grid, output, 1 if "shapes" in question else 2)
        for name, output in zip(_outputs(network), outputs, strict=True)
    }


def _outputs(network: str) -> tuple[str, ...]:
    """Of its last graph."""
    *_, (_, outputs) = graph_tensors(network).values()
    return outputs


def _grid(side: int) -> NDArray[np.int64]:
    """The middles of cells of an odd number of pixels: so they lie at every place of a patch of 16."""
    cell = max(1, (side // GRID - 1) | 1)
    return np.arange(side // cell) * cell + cell // 2


def _at(grid: NDArray[np.int64], output: NDArray[Any], axis: int) -> NDArray[Any]:
    """What an output has on a grid of rows, which are that axis, and columns, the next."""
    step = SPARSELY if np.prod(output.shape[axis + 2 :]) > MANY else 1
    rows, columns = (grid[grid < side][::step] for side in output.shape[axis : axis + 2])
    return output[(slice(None),) * axis + np.ix_(rows, columns)]


# ---------------------------------------------------------------- the comparison


def admit(folder: Path, description: Description, graphs: Mapping[str, Graph]) -> None:
    """Refuse the opened graphs of an artifact where they answer otherwise than its checkpoint: raises ParityError.

    What was measured goes to the log. On a CPU, where it takes up to a minute, it is kept in PASSED_FOLDER as well, and
    not measured again for the same files, ONNX Runtime and CPU; on a GPU it takes seconds, and drivers change.
    An artifact without answers, as older ones are, is let pass.
    """
    if ANSWERS_FILE not in description.files:
        return
    *_, graph = graphs.values()
    key = _remembered_as(description, graph)
    path = folder / PASSED_FOLDER / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    if key and _has_passed(path, key, graph.precision):
        return
    usable = usable_memory(graph.device)
    engine = f"{description.name} with {graph.engine}"
    measured = check(
        whole({file: _runs(graph) for file, graph in graphs.items()}),
        folder / ANSWERS_FILE,
        description.network,
        engine,
        graph.precision,
        fits=lambda batch, views: usable is None or description.pass_bytes(batch, views) <= usable,
        seconds=SECONDS,
    )
    for case in measured:
        log.info(
            "%s in %s answers %s as its checkpoint: points within %.1e in the median and %.1e at 99 %%, poses within "
            "%s degrees, rank correlation of the confidence %.5f",
            *(engine, graph.precision, case.asked, case.point_error_median, case.point_error_p99),
            *(case.pose_degrees, case.rank_correlation),
        )
    if key:
        _remember(path, key, measured)


def _runs(graph: Graph) -> Run:
    return lambda inputs: graph.run(inputs, lambda _seconds: None)


def check(
    run: Run,
    path: Path,
    network: str,
    engine: str,
    precision: str,
    *,
    fits: Callable[[int, int], bool] = lambda _batch, _views: True,
    seconds: float = float("inf"),
) -> list[Difference]:
    """Compare `run`, which computes in `precision`, with the answers at `path`; what was measured, one by one.

    network: its name in the contract; engine: what it is called in messages. fits: whether memory does for a pass of
    (batch, views). seconds: what all may take, about: the first question is always asked, a further one where memory
    and time do for it.
    Raises ParityError where an answer is beyond LIMITS or not finite: what drifts, and what to try.
    """
    with np.load(path) as file:
        answers = dict(file)
    started, seen = time.monotonic(), 0
    measured: list[Difference] = []
    for case in range(sum(name.startswith("views_") for name in answers)):
        shown = answers[f"views_{case}"]
        foreseen = (time.monotonic() - started) * (1 + shown.size / max(seen, 1))
        if measured and (foreseen > seconds or not fits(*shown.shape)):
            break
        try:
            difference = _compare(run, network, answers, case)
        except MemoryError:  # a GPU's is known only so
            if not measured:
                raise
            break
        if not np.isfinite(difference.point_error_median):
            raise ParityError(
                f"{engine} in {precision} computes values that are not finite, for {difference.asked}"
                f"{advice(precision)}"
            )
        if beyond := difference.beyond(precision):
            raise ParityError(
                f"{engine} in {precision} differs from the checkpoint on {difference.asked}: the "
                f"{', the '.join(beyond)}{advice(precision)}"
            )
        measured.append(difference)
        seen += shown.size
    return measured


def _compare(run: Run, network: str, answers: dict[str, NDArray[Any]], case: int) -> Difference:
    """Ask `run` one question. Where its answer is not finite, the errors are not numbers."""
    question = {name: answers[f"{name}_{case}"] for name in ("views", *TOLD) if f"{name}_{case}" in answers}
    grid, side = answers["grid"], answers["photos"].shape[1]
    got = _answer(run, network, question, answers["photos"], grid)
    expected = {name: answers[f"{name}_{case}"] for name in got}
    finite = all(np.isfinite(field).all() for field in got.values())
    errors = errors_of("points", got, expected) if finite else np.array([np.nan])
    sure = [name for name in got if name.endswith("confidence")] or ["opacity"]
    cameras = answers[f"cameras_{case}"]
    posed = finite and np.isfinite(cameras).any()
    return Difference(
        batch=question["views"].shape[0],
        views=question["views"].shape[1],
        shapes=_shapes(question, side),
        point_error_median=float(np.median(errors)),
        point_error_p99=float(np.quantile(errors, 0.99)),
        worst={name: relative_error(got[name], expected[name]) for name in got if not name.endswith(DIRECTIONS)},
        turned={name: _turned(got[name], expected[name]) for name in got if name.endswith(DIRECTIONS)},
        pose_degrees=_pose_degrees(_cameras(got, question, side, grid), cameras) if posed else None,
        rank_correlation=min(
            rank_correlation(a, b) for name in sure for a, b in zip(got[name], expected[name], strict=True)
        ),
    )


def errors_of(field: str, got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> Float64:
    """`point_errors`, of the vectors of all outputs that are such a field."""
    return np.concatenate([point_errors(got[name], expected[name]).ravel() for name in got if name.endswith(field)])


def _turned(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Angle in degrees between vectors (..., C), that 99 % have at most. Quaternions (C = 4) are as their opposites."""
    cosine = (got * expected).sum(axis=-1, dtype=np.float64)
    got = got * np.sign(cosine)[..., None] if got.shape[-1] == 4 else got
    apart = [np.linalg.norm(got - sign * expected, axis=-1) for sign in (1, -1)]  # precise for small angles as well
    return float(np.degrees(np.quantile(2 * np.arctan2(*apart), 0.99)))


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


# ---------------------------------------------------------------- what has passed


def _remembered_as(description: Description, graph: Graph) -> dict[str, Any] | None:
    """What a measurement is of: any difference makes it another. None: it is not to be kept."""
    if (graph.device, graph.engine) != ("cpu", OnnxGraph.engine):
        return None
    version = importlib.import_module(graph.engine).__version__
    return {"files": description.files, "engine": graph.engine, "version": version, "device": _cpu()}


def _cpu() -> str:
    """Its name, which says what instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _has_passed(path: Path, key: dict[str, Any], precision: str) -> bool:
    """Whether what was measured of it lies there, and is within the limits as they are now."""
    try:
        content = json.loads(path.read_bytes())
        measured = [Difference(**case) for case in content["measured"]]
        return content["key"] == key and bool(measured) and not any(case.beyond(precision) for case in measured)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _remember(path: Path, key: dict[str, Any], measured: Sequence[Difference]) -> None:
    """Where the folder cannot be written, it is measured again next time."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_text(json.dumps({"key": key, "measured": [asdict(case) for case in measured]}, indent=1) + "\n")
        partial.replace(path)
    except OSError as error:
        log.info("What was measured is not kept: %s", error.strerror)


# ---------------------------------------------------------------- cameras


def _cameras(answer: Answer, question: Question, side: int, grid: NDArray[np.int64]) -> Float64:
    """(B, N, 4, 4) camera_to_world of an answer's points; NaN where they are seen from nowhere."""
    batch, views = question["views"].shape
    if "points" in answer:
        sureness = answer.get("confidence", answer["opacity"])
        clouds = [(answer["points"][:, view], sureness[:, view]) for view in range(views)]
    else:
        clouds = [(answer[f"{view}_points"], answer[f"{view}_confidence"]) for view in ("first", "second")]
    reference = int(question["references"][0]) if "references" in question else 0
    rows, columns = (max(points.shape[axis] for points, _ in clouds) for axis in (1, 2))
    points, confidence = np.zeros((batch, views, rows, columns, 3)), np.zeros((batch, views, rows, columns))
    for view, (cloud, sureness) in enumerate(clouds):  # a smaller one in the upper left corner
        points[:, view, : cloud.shape[1], : cloud.shape[2]] = cloud
        confidence[:, view, : cloud.shape[1], : cloud.shape[2]] = sureness
    pixels = np.zeros((views, rows, columns, 3), np.uint8)
    jobs = Views(tuple(View("", pixels[0], (width, height)) for height, width in _shapes(question, side)), reference)
    seen = np.tile([0.0, 0.0, columns, rows], (views, 1)) * (2 * grid[0] + 1)
    cameras = np.full((batch, views, 4, 4), np.nan)
    for job in range(batch):
        solved = solve_cameras(Prediction(points[job], confidence[job], pixels, seen), jobs)
        sure = {
            view: camera for view, camera in enumerate(solved) if camera is not None and camera.inlier_share >= SURE
        }
        if reference in sure:  # the others' focal is its
            for view, camera in sure.items():
                cameras[job, view] = camera.camera_to_world
    return cameras


def _pose_degrees(got: Float64, expected: Float64) -> float | None:
    """See `Difference.pose_degrees`; of cameras (B, N, 4, 4). The reference's is the frame in both."""
    known = np.isfinite(expected[..., 0, 0]) & (expected != np.eye(4)).any(axis=(-2, -1))
    degrees = []
    for a, b in zip(got[known], expected[known], strict=True):
        if not np.isfinite(a).all():
            return LOST
        turn = np.arccos(np.clip((np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2, -1, 1))
        aside = np.arctan2(np.linalg.norm(np.cross(a[:3, 3], b[:3, 3])), a[:3, 3] @ b[:3, 3])
        degrees.append(np.degrees(max(turn, aside)))
    return float(max(degrees)) if degrees else None
