"""Open an exported network and run it: Views in, Prediction out, numpy only.

ONNX Runtime, and what follows a network's pass, are imported when a model is opened: an API, which only lists models,
does without them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.contract import (
    ENGINES,
    GRAPH_FILE,
    PAIR_FIELDS,
    SPLATS,
    ArtifactError,
    Description,
    check_files,
    read_description,
)
from export.runtime import (
    Graph,
    check_finite,
    describe,
    gpu_target,
    normalised,
    not_finite,
    open_onnx,
    ramps,
    run_told,
    too_many,
    usable_memory,
)
from model.geometry.crop import square_crop_in_original
from model.types import (
    Float32,
    Gaussians,
    ModelInfo,
    Prediction,
    Progress,
    ReconstructionError,
    View,
    Views,
)

if TYPE_CHECKING:
    from export.pair_sessions import PairSession
    from export.splat_sessions import SplatSession

log = logging.getLogger(__name__)

SCALE_LIMITS = (1e-4, 4e-3)
"""Gaussians' standard deviations, in units of the points' mean distance to the reference camera: what the released
weights were trained to be rendered with."""


def list_models(folder: Path) -> list[ModelInfo]:
    """The artifacts in the sub-folders of `folder`, by their descriptions alone; broken ones are logged, left out.

    Hidden folders are work that goes on.
    """
    models = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and not path.name.startswith("."):
            try:
                description = read_description(path)
                size = sum((path / name).stat().st_size for name in description.files)
            except (ArtifactError, OSError) as error:
                log.warning("Left out the model in %s: %s", path.name, error)
                continue
            models.append(describe(description, size))
    return models


def open_model(
    folder: Path, threads: int | None = None, engine: str = "auto", engines: Path | None = None
) -> NetworkSession | PairSession | SplatSession:
    """A ready model from an artifact's folder.

    engine: one of ENGINES; `auto`: the fastest that opens the model here and warms up. Those passed over, and why, are
    in its `info`. threads: of the CPU, where that is what computes; None: all. engines: where those lie that TensorRT
    built on this machine; others lie in the artifact.
    Raises ArtifactError for a folder that is incomplete, altered or not loadable, and ParityError, which is one, where
    the engine answers otherwise than the checkpoint: that is asked first, a minute on a CPU, but only once (see
    `export.gate`).
    """
    description = read_description(folder)
    size = check_files(folder, description)
    candidates: tuple[str, ...] = (engine,)
    if engine == "auto":
        candidates = ENGINES if gpu_target() else ENGINES[-1:]
    passed_over: list[str] = []
    for name in candidates[:-1]:
        try:
            graphs = _graphs(name, folder, description, threads, engines)
            session = _session(folder, description, graphs, size, passed_over)
            session.warm_up()
            return session
        except Exception as error:  # whatever it is, the next engine may do
            log.warning("%s: not with %s: %s", description.name, name, error, exc_info=error)
            reason = str(error) if isinstance(error, ArtifactError) else type(error).__name__  # the world reads it
            passed_over.append(f"{name}: {reason}")
    graphs = _graphs(candidates[-1], folder, description, threads, engines)
    return _session(folder, description, graphs, size, passed_over)


def _graphs(
    engine: str, folder: Path, description: Description, threads: int | None, engines: Path | None
) -> Mapping[str, Graph]:
    """The graphs of an artifact, by their files, as an engine opens them. Raises ArtifactError."""
    if engine == "tensorrt":
        from export.tensorrt_graph import open_tensorrt

        return open_tensorrt(folder, description, engines)
    if engine == "torch":
        try:
            from export.torch_graph import open_torch
        except ImportError:
            raise ArtifactError("PyTorch is not installed") from None
        return open_torch(folder, description)
    return open_onnx(folder, description, threads)


def _session(
    folder: Path, description: Description, graphs: Mapping[str, Graph], size: int, passed_over: Sequence[str]
) -> NetworkSession | PairSession | SplatSession:
    """The model of opened graphs, once they answer as the checkpoint does. Raises ParityError."""
    from export.gate import admit

    admit(folder, description, graphs)
    info = describe(description, size, next(iter(graphs.values())), passed_over)
    if description.network in PAIR_FIELDS:
        from export.pair_sessions import PairSession

        return PairSession(description, graphs, info)
    if description.network == SPLATS:
        from export.splat_sessions import SplatSession

        return SplatSession(description, graphs, info)
    return NetworkSession(description, graphs, info)


def choose_references(views: int, reference: int, paths: int) -> tuple[int, ...]:
    """View indices for the reference paths: `reference` first, the others spread over the photos.

    Upstream's demo re-orders the photos, and its first four are the references: here the same four are chosen by index.
    Its choice always holds view 0; another `reference` exchanges roles with it.
    """
    if paths == 1:
        return (reference,)
    if views < 4:
        spread = tuple(range(views))
    elif views < 7:
        spread = (0, 3, 2, 1)
    elif views < 12:
        spread = (0, 3, 6, 1)
    else:
        spread = (0, views // 4 + 1, 2 * views // 4 + 1, 3 * views // 4 + 1)
    rest = tuple(0 if view == reference else view for view in spread[1:])
    return (reference, *rest)[:paths]


class NetworkSession:
    """A network that sees all views at once: a `model.types.Model`. `run` may be called from several threads."""

    def __init__(self, description: Description, graphs: Mapping[str, Graph], info: ModelInfo) -> None:
        self.info = info
        self._description = description
        self._graph = graphs[GRAPH_FILE]
        self._seconds: dict[tuple[int, ...], float] = {}
        self._learned: dict[int, int] = {}
        """How many jobs of so many views a pass may take, where more were too many."""

    def run(self, batch: Sequence[Views], progress: Progress) -> list[Prediction | ReconstructionError]:
        """One forward pass for jobs of equal view count and reference; see `model.types.Model.run`.

        Several passes where the engine or the memory that is free does not do for all jobs at once, and a refusal that
        says how many views it does for where not even one job fits.
        `progress` is called while the passes run, and what it raises ends them.
        """
        views, reference = len(batch[0]), batch[0].reference
        if any((len(job), job.reference) != (views, reference) for job in batch):
            raise ValueError("jobs that share a pass have equally many views and the same reference")
        if not self.info.min_views <= views <= self.info.max_views or not 0 <= reference < views:
            raise ValueError(f"{views} views with reference {reference} are beyond {self.info.name}")
        at_once = min(self._jobs_that_fit(len(batch), views), self._learned.get(views, len(batch)))
        if at_once == 0:
            return [too_many(self._description, views, usable_memory(self.info.device) or 0)] * len(batch)
        answers: list[Prediction | ReconstructionError] = []
        while len(answers) < len(batch):
            start = len(answers)
            part = batch[start : start + at_once]

            def told(stage: str, fraction: float, start: int = start, share: int = len(part)) -> None:
                progress(stage, (start + share * fraction) / len(batch))

            try:
                answers += self._pass(part, told)
            except MemoryError:
                if len(part) == 1:
                    raise
                # A GPU's memory tells only so whether it does.
                at_once = self._learned[views] = len(part) // 2
                log.warning("%s: %d jobs of %d views are too many at once", self.info.name, len(part), views)
        return answers

    def _pass(self, batch: Sequence[Views], progress: Progress) -> list[Prediction | ReconstructionError]:
        images = np.stack([[square_seen(view, self.info.square) for view in job.views] for job in batch])
        references = choose_references(len(batch[0]), batch[0].reference, self._description.paths)
        outputs = self._forward(normalised(images), np.array(references, np.int64), progress)
        return [
            _prediction(job, rgb, *(output[index] for output in outputs))
            for index, (job, rgb) in enumerate(zip(batch, images, strict=True))
        ]

    def _jobs_that_fit(self, jobs: int, views: int) -> int:
        """How many of `jobs` one pass takes: of its engine, and in the memory that is free, where that is known."""
        jobs = min(jobs, self._graph.jobs_at_once(views) or jobs)
        free, each = usable_memory(self.info.device), self._description.pass_bytes(1, views)
        return jobs if free is None or each == 0 else min(jobs, free // each)

    def warm_up(self) -> None:
        """A real forward pass of the fewest views. Raises RuntimeError if anything of its answer is not finite."""
        side = self.info.square or 0
        images = ramps(side, side, self.info.min_views)[None]
        references = choose_references(self.info.min_views, 0, self._description.paths)
        outputs = self._forward(normalised(images), np.array(references, np.int64), lambda _stage, _fraction: None)
        check_finite(outputs, self.info)

    def _forward(self, images: Float32, references: NDArray[np.int64], progress: Progress) -> list[Float32]:
        """The graph's outputs."""
        return run_told(self._graph, (images, references), progress, self._seconds)


def square_seen(view: View, side: int | None) -> NDArray[np.uint8]:
    """(side, side, 3): what a network of squares sees of a photo."""
    if view.crop is None or view.crop.shape != (side, side, 3):
        shape = None if view.crop is None else view.crop.shape
        raise ValueError(f"a view's crop is {shape}, not {(side, side, 3)}. This is a bug.")
    return view.crop


def _prediction(
    job: Views,
    rgb: NDArray[np.uint8],
    points: Float32,
    confidence: Float32,
    scale: Float32,
    rotation: Float32,
    opacity: Float32,
) -> Prediction | ReconstructionError:
    """One job's share of the outputs (N, S, S[, k]), in the forms of `model.types`."""
    if not all(np.isfinite(a).all() for a in (points, confidence, scale, rotation, opacity)):
        return not_finite()
    side = points.shape[1]
    crops = [square_crop_in_original(*view.original_size, side) for view in job.views]
    return Prediction(
        points=points,
        confidence=confidence,
        rgb=rgb,
        crops=np.array(crops, np.float64),
        gaussians=Gaussians(scale=linear_scale(scale, points), rotation=unit_rotation(rotation), opacity=opacity),
    )


def linear_scale(raw: Float32, points: Float32) -> Float32:
    """Gaussians' standard deviations (N, H, W, 3) in scene units from the head's raw ones, by upstream's training rule.

    With f the points' mean distance to the origin over all views: clip(raw / f, 1e-4, 4e-3) * f.
    """
    f = max(float(np.linalg.norm(points.astype(np.float64), axis=-1).mean()), 1e-8)
    return np.clip(raw, SCALE_LIMITS[0] * f, SCALE_LIMITS[1] * f).astype(np.float32)


def unit_rotation(rotation: Float32) -> Float32:
    """Unit quaternions; the identity where one is too short to have a direction."""
    norm = np.linalg.norm(rotation, axis=-1, keepdims=True)
    identity = np.array([1, 0, 0, 0], np.float32)
    return np.where(norm > 1e-6, rotation / np.maximum(norm, 1e-6), identity).astype(np.float32)
