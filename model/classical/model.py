"""The geometric model: structure from motion and multi-view stereo. No weights, no GPU, works on any set of photos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pycolmap

from model.classical import completion, dense, gate, poses
from model.classical.poses import Pose, Solution
from model.parallel import each
from model.types import (
    Camera,
    Float32,
    Float64,
    ModelInfo,
    Prediction,
    Progress,
    ReconstructionError,
    Tick,
    UInt8,
    View,
    Views,
)

GRID_SIDE = 384
MANY_VIEWS = 12
GRID_SIDE_OF_MANY = 320
MARGIN = (0.6, 1.6)
"""Depths searched: from this share of the 1st percentile of a view's sparse depths to this multiple of the 99th."""


@dataclass(frozen=True, slots=True)
class Surface:
    """One view's finished depth."""

    points: Float32
    """(h, w, 3) in the reference frame."""
    confidence: Float32
    """(h, w)."""


class GeometricModel:
    """Answers jobs on the CPU; see `model.types.Model`."""

    info = ModelInfo(name="geometry", network="sfm+mvs", licence="Apache-2.0", engine="cpu", max_views=64, stages=3)

    def __init__(self) -> None:
        # COLMAP tells standard error about every step otherwise.
        pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value

    def run(self, batch: Sequence[Views], progress: Progress) -> list[Prediction | ReconstructionError]:
        """Answer each job in its order. Stages told: poses, dense, completion."""
        return [_reconstruct(views, progress) for views in batch]

    def warm_up(self) -> None:
        """A real tiny forward: a textured wall and a box seen by two cameras. Raises RuntimeError if it goes wrong."""
        prediction = self.run([_rehearsal()], lambda *_: None)[0]
        if isinstance(prediction, ReconstructionError):
            raise RuntimeError(f"The geometric model failed on its test scene: {prediction.detail}")
        if not (np.isfinite(prediction.points).all() and (prediction.confidence > 0.5).any()):
            raise RuntimeError("The geometric model found no finite depth in its test scene.")


def _reconstruct(views: Views, progress: Progress) -> Prediction | ReconstructionError:
    seconds = {}
    clock = time.perf_counter()
    progress("poses", 0.0)
    solution = poses.solve(views, lambda done: progress("poses", done))
    seen = gate.motion(solution)
    refusal = gate.refuse(solution, seen)
    seconds["poses"] = time.perf_counter() - clock
    if refusal is not None:
        return refusal

    clock = time.perf_counter()
    progress("dense", 0.0)
    placed = [v for v, pose in enumerate(solution.poses) if pose is not None]
    reference = views.reference if views.reference in placed else placed[0]
    solution = _in_reference(solution, reference)
    side = GRID_SIDE if len(views) <= MANY_VIEWS else GRID_SIDE_OF_MANY
    colours = [_reduced(view, side) for view in views.views]
    grids = {v: _grid(colours[v], views.views[v], solution.poses[v]) for v in placed}
    maps = _stereo(solution, grids, lambda done: progress("dense", done))
    seconds["dense"] = time.perf_counter() - clock

    clock = time.perf_counter()
    progress("completion", 0.0)
    finished = each(
        lambda v: _complete(v, colours[v], grids, maps, solution, views.views[v]),
        placed,
        lambda done: progress("completion", done),
    )
    surfaces = dict(zip(placed, finished))
    seconds["completion"] = time.perf_counter() - clock

    support = _support(grids, maps)
    doubts = gate.doubts(solution, seen, [max(views.views[v].image.shape) for v in placed], support)
    warnings = [
        f"{view.name} could not be placed: it shares too little with the other photos."
        for v, view in enumerate(views.views)
        if v not in grids
    ]
    if reference != views.reference:
        warnings.append(
            f"The scene is seen from {views.views[reference].name}, since the reference could not be placed."
        )
    return _prediction(
        views, solution, colours, surfaces,
        reference=reference, low_confidence=bool(doubts), warnings=(*doubts, *warnings),
        details={
            "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            "sparse_points": len(solution.points),
            "reprojection_error": round(solution.error, 3),
            "triangulation_angle": round(seen.angle, 3),
            "parallax_pixels": round(seen.parallax, 2),
            "focal_source": solution.focal_source,
            "focal_spread": round(solution.focal_spread, 4),
            "flat_share": round(solution.flat_share, 3),
            "rotation_disagreement": round(solution.rotation_disagreement, 2),
            "dense_support": round(support, 3),
            "inlier_shares": [round(pose.inlier_share, 3) if pose else 0.0 for pose in solution.poses],
        },
    )  # fmt: skip


def _in_reference(solution: Solution, reference: int) -> Solution:
    """The same solution in the reference camera's frame, scaled so that its median sparse depth is 1."""
    anchor = solution.poses[reference]
    points = solution.points @ anchor.R.T + anchor.t
    scale = 1.0 / float(np.median(points[anchor.points, 2]))
    moved = []
    for pose in solution.poses:
        if pose is None:
            moved.append(None)
            continue
        R = pose.R @ anchor.R.T
        moved.append(replace(pose, R=R, t=scale * (pose.t - R @ anchor.t)))
    return replace(solution, poses=tuple(moved), points=points * scale)


def _reduced(view: View, side: int) -> UInt8:
    height, width = view.image.shape[:2]
    scale = min(1.0, side / max(width, height))
    size = (max(16, round(width * scale)), max(16, round(height * scale)))
    return cv2.resize(view.image, size, interpolation=cv2.INTER_AREA)


def _to_grid(colour: UInt8, view: View) -> Float64:
    """(2,) factors from pixels of `View.image` to pixels of its grid."""
    return np.array([colour.shape[1] / view.image.shape[1], colour.shape[0] / view.image.shape[0]])


def _grid(colour: UInt8, view: View, pose: Pose) -> dense.Grid:
    K = np.diag([*_to_grid(colour, view), 1.0]) @ pose.K
    grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return dense.Grid(grey, K, np.ascontiguousarray(pose.R), np.ascontiguousarray(pose.t))


def _stereo(solution: Solution, grids: dict[int, dense.Grid], tick: Tick) -> dict[int, dense.DepthMap]:
    placed = list(grids)
    found = [solution.poses[v] for v in placed]
    centres = np.array([pose.centre for pose in found])
    neighbours = dense.choose_neighbours(centres, solution.points, [pose.points for pose in found])

    def one(k: int) -> tuple[np.ndarray, np.ndarray]:
        grid, others = grids[placed[k]], [grids[placed[j]] for j in neighbours[k]]
        near, far = np.percentile(_depths(solution, found[k]), (1, 99)) * MARGIN
        return dense.stereo(grid, others, dense.inverse_depths(grid, others, near, far))

    raw = each(one, range(len(placed)), tick)
    related = [
        set(mine) | {j for j, theirs in enumerate(neighbours) if k in theirs} for k, mine in enumerate(neighbours)
    ]
    return dict(zip(placed, dense.check(list(grids.values()), raw, related)))


def _depths(solution: Solution, pose: Pose) -> Float64:
    depths = solution.points[pose.points] @ pose.R[2] + pose.t[2]
    return depths[depths > 0]


def _complete(
    v: int, colour: UInt8, grids: dict[int, dense.Grid], maps: dict[int, dense.DepthMap], solution: Solution, view: View
) -> Surface:
    pose, found = solution.poses[v], maps[v]
    depths = solution.points[pose.points] @ pose.R[2] + pose.t[2]
    ahead = depths > 0
    pixels = pose.pixels[ahead] * _to_grid(colour, view)
    inverse = completion.fill(colour, found.inverse, found.sure, pixels, 1.0 / depths[ahead])
    points = dense.unproject(grids[v], inverse)
    others = [(grids[j], other.inverse, other.sure) for j, other in maps.items() if j != v]
    obstructed = dense.obstructions(points, others)
    confidence = completion.trust(colour, inverse, found.sure, found.score, found.agreeing, obstructed)
    return Surface(points, confidence)


def _support(grids: dict[int, dense.Grid], maps: dict[int, dense.DepthMap]) -> float:
    """Share of textured pixels whose depth is sure."""
    textured = sure = 0
    for v, found in maps.items():
        grey = grids[v].grey
        mean = cv2.blur(grey, (dense.WINDOW, dense.WINDOW))
        rough = cv2.blur(grey * grey, (dense.WINDOW, dense.WINDOW)) - mean * mean > 25.0 * dense.NOISE_VARIANCE
        textured += int(rough.sum())
        sure += int((rough & found.sure).sum())
    return sure / max(textured, 1)


def _prediction(
    views: Views, solution: Solution, colours: Sequence[UInt8], surfaces: dict[int, Surface],
    *, reference: int, low_confidence: bool, warnings: tuple[str, ...], details: dict[str, object],
) -> Prediction:  # fmt: skip
    count = len(views)
    H, W = (max(colour.shape[axis] for colour in colours) for axis in (0, 1))
    points = np.zeros((count, H, W, 3), np.float32)
    confidence = np.zeros((count, H, W), np.float32)
    rgb = np.zeros((count, H, W, 3), np.uint8)
    crops = np.zeros((count, 4))
    cameras: list[Camera | None] = [None] * count
    for v, (view, colour) in enumerate(zip(views.views, colours)):
        h, w = colour.shape[:2]
        width, height = view.original_size
        crops[v] = 0, 0, W * width / w, H * height / h
        rgb[v, :h, :w] = colour
        pose = solution.poses[v]
        if pose is None:
            continue
        surface = surfaces[v]
        points[v, :h, :w] = surface.points
        confidence[v, :h, :w] = surface.confidence
        pose_in_world = np.eye(4)
        pose_in_world[:3, :3] = pose.R.T
        pose_in_world[:3, 3] = pose.centre
        stretch = np.diag([width / view.image.shape[1], height / view.image.shape[0], 1.0])
        cameras[v] = Camera(stretch @ pose.K, pose_in_world, pose.inlier_share)
    return Prediction(
        points, confidence, rgb, crops,
        cameras=tuple(cameras), reference=reference, low_confidence=low_confidence, warnings=warnings, details=details,
    )  # fmt: skip


def _rehearsal() -> Views:
    """Two photos, made up, of a textured wall with a textured box before it; the camera moves sideways."""
    rng = np.random.default_rng(7)
    layers = []
    for size in (20, 8):
        noise = sum(
            cv2.resize(rng.uniform(0, 1, (n, n, 3)).astype(np.float32), (640, 640), interpolation=cv2.INTER_CUBIC) / k
            for k, n in enumerate((size, 4 * size, 160), start=1)
        )
        layers.append(np.clip(noise * 120, 0, 255).astype(np.uint8))
    photos = []
    for shift in (0, 1):
        photo = layers[0][100:340, 100 + 12 * shift : 420 + 12 * shift].copy()
        left = 120 - 14 * shift
        photo[70:190, left : left + 100] = layers[1][:120, :100]
        photos.append(View(f"rehearsal-{shift}", photo, (320, 240), exif_focal=280.0, camera="rehearsal"))
    return Views(tuple(photos))
