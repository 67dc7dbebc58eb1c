"""From a model's prediction to a job's files, in a straight line: cameras, fusion, formats."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from model.classical.overlap import choose_reference
from model.fusion import fuse
from model.geometry.poses import solve_cameras
from model.types import Camera, Prediction, Progress, ReconstructionError, Tick, View, Views
from service import formats
from service.schemas import DEFAULT_OUTPUTS, Options

SURE_INLIER_SHARE = 0.3
"""A view whose pose fewer of its own points agree with is doubtful."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished job leaves behind."""

    files: dict[str, formats.Buffer]
    """Contents by file name; every name is one of `schemas.OUTPUTS`."""
    views: tuple[dict[str, Any], ...]
    """Per photo, JSON-able: whether it was placed, its focal length in pixels of the original, its inlier share,
    and whether its camera is the origin."""
    warnings: tuple[str, ...]
    low_confidence: bool
    metrics: dict[str, float]
    """Seconds a stage."""


def gather(photos: Sequence[View], options: Options, tick: Tick) -> Views:
    """A job's photos as every model takes them, the reference chosen here where that is left to us.

    `tick` is told the share that is done, and may raise to cancel.
    """
    if isinstance(options.focal, float):
        photos = [replace(photo, exif_focal=options.focal) for photo in photos]
    views = Views(tuple(photos), shared_focal=options.focal != "per-view")
    reference = choose_reference(views, tick) if options.reference == "auto" else options.reference
    return replace(views, reference=reference)


def finish(prediction: Prediction, views: Views, options: Options, progress: Progress) -> Outcome:
    """Write every file of one job. Raises ReconstructionError when the prediction cannot become a scene."""
    started = time.perf_counter()
    if not (np.isfinite(prediction.points).all() and np.isfinite(prediction.confidence).all()):
        raise ReconstructionError(
            "The network produced values that are not numbers for these photos.",
            "Try other photos of the place, or another model.",
        )
    progress("cameras", 0.0)
    if prediction.reference is not None:
        views = replace(views, reference=prediction.reference)
    cameras = prediction.cameras
    warnings = list(prediction.warnings)
    low_confidence = prediction.low_confidence
    if cameras is None:
        cameras = solve_cameras(prediction, views)
        doubts = _doubts(cameras, views)
        warnings += doubts
        low_confidence = low_confidence or bool(doubts)
    solved = time.perf_counter()

    progress("fusion", 0.0)
    scene = fuse(prediction, views, cameras, options.confidence_percentile, options.max_points)
    fused = time.perf_counter()

    encoder, files = formats.Encoder(scene), {}
    wanted = options.outputs or DEFAULT_OUTPUTS
    for done, name in enumerate(wanted):
        progress("formats", done / len(wanted))
        files[name] = encoder.encode(name)
    progress("formats", 1.0)
    return Outcome(
        files=files,
        views=tuple(
            _describe(camera) | {"reference": index == views.reference} for index, camera in enumerate(cameras)
        ),
        warnings=tuple(warnings),
        low_confidence=low_confidence,
        metrics={
            **_seconds(prediction),
            "cameras": solved - started,
            "fusion": fused - solved,
            "formats": time.perf_counter() - fused,
        },
    )


def _doubts(cameras: Sequence[Camera | None], views: Views) -> list[str]:
    lost = [view.name for view, camera in zip(views.views, cameras) if camera is None]
    unsure = [
        view.name
        for view, camera in zip(views.views, cameras)
        if camera is not None and camera.inlier_share < SURE_INLIER_SHARE
    ]
    doubts = []
    if lost:
        doubts.append(f"These photos could not be placed and were left out: {', '.join(lost)}.")
    if unsure:
        doubts.append(f"The cameras of these photos are doubtful: {', '.join(unsure)}.")
    return doubts


def _describe(camera: Camera | None) -> dict[str, Any]:
    if camera is None:
        return {"placed": False, "focal": None, "inlier_share": 0.0}
    return {"placed": True, "focal": camera.focal, "inlier_share": camera.inlier_share}


def _seconds(prediction: Prediction) -> dict[str, float]:
    seconds = prediction.details.get("seconds", {})
    return {stage: float(value) for stage, value in seconds.items()}
