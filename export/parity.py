"""Does an exported graph answer as its checkpoint does?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from export.contract import INPUTS, OUTPUTS, ArtifactError
from model.mvdust3r import MVDUSt3R

CASES = ((1, 2), (2, 3), (1, 5))
"""(batch, views) to compare: the fewest views, a true batch, more views than reference paths."""

POINT_LIMIT = 1e-4
"""Largest relative error of a point that 99 % of the points may have, float32 against float32."""
OUTPUT_LIMIT = 1e-3
"""Largest error of any other output, relative to its largest value."""


class ParityError(ArtifactError):
    """An exported graph differs from its checkpoint: it must not be served."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far one case's answers lie apart."""

    batch: int
    views: int
    references: tuple[int, ...]
    point_error_median: float
    """Of |p - q| / |q| over the points."""
    point_error_p99: float
    worst: dict[str, float]
    """Per output: largest absolute difference over the largest absolute value."""


def check_parity(network: MVDUSt3R, graph: Path, square: int) -> list[dict[str, Any]]:
    """Run the network and its ONNX graph on the same noise, in every case of CASES; the measurements, JSON-able.

    Raises ParityError where a case is beyond the limits or not finite.
    """
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    measured = []
    for batch, views in CASES:
        parity = compare(network, session, batch, views, square)
        errors = (parity.point_error_p99 / POINT_LIMIT, *(error / OUTPUT_LIMIT for error in parity.worst.values()))
        if not all(error <= 1 for error in errors):  # also where an error is not a number
            raise ParityError(f"the ONNX graph differs from the checkpoint: {parity}")
        measured.append(asdict(parity))
    return measured


def compare(network: MVDUSt3R, session: ort.InferenceSession, batch: int, views: int, square: int) -> Parity:
    """One case. The last view is the frame of the answer, so that a graph which ignores `references` shows."""
    images = np.random.default_rng(views).uniform(-1, 1, (batch, views, 3, square, square)).astype(np.float32)
    references = tuple(range(views))[::-1][: network.config.paths]
    with torch.inference_mode():
        output = network(torch.from_numpy(images), references)
    expected = [getattr(output, name).numpy() for name in OUTPUTS]
    got = session.run(OUTPUTS, dict(zip(INPUTS, (images, np.array(references, np.int64)), strict=True)))
    points, reference_points = got[0].astype(np.float64), expected[0].astype(np.float64)
    norm = np.linalg.norm(reference_points, axis=-1)
    errors = np.linalg.norm(points - reference_points, axis=-1) / np.maximum(norm, 1e-12)
    return Parity(
        batch=batch,
        views=views,
        references=references,
        point_error_median=float(np.median(errors)),
        point_error_p99=float(np.quantile(errors, 0.99)),
        worst={name: relative_error(a, b) for name, a, b in zip(OUTPUTS, got, expected, strict=True)},
    )


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference over the largest absolute value expected."""
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-12))
