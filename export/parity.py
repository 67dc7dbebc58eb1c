"""Does an exported graph answer as its checkpoint does? Asked at export, where both are there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from export.contract import (
    ANSWERS_FILE,
    DECODER_FILE,
    ENCODER_FILE,
    GRAPH_FILE,
    INPUTS,
    OUTPUTS,
    SPLAT_INPUTS,
    SPLAT_OUTPUTS,
    decoder_outputs,
)
from export.gate import LIMITS, ParityError, advice, check, point_errors, relative_error, write_answers
from model.config import PATCH
from model.dust3r import PairNetwork
from model.mvdust3r import MVDUSt3R
from model.noposplat import NoPoSplat

CASES = ((1, 2), (2, 3), (1, 5))
"""(batch, views) to compare: the fewest views, a true batch, more views than reference paths."""

PAIR_CASES = ((1, (2, 3), (2, 3)), (2, (3, 5), (7, 2)), (1, (4, 4), (3, 6)))
"""(batch, rows and columns of patches of the first and of the second view) to compare: even and odd, upright and
across, equal and different."""

SPLAT_CASES = ((1, 2), (2, 2), (1, 3))
"""(batch, views) to compare: what released networks of its kind take, and a true batch."""


WORST = {"fp32": 1e-3, "fp16": 0.3, "bf16": 2.0}
"""Largest error of any output, relative to its largest value, that is allowed on noise: single pixels of a random
network jump there. On photos `export.gate` is stricter."""


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


@dataclass(frozen=True, slots=True)
class PairParity:
    """The same for a pairwise network."""

    batch: int
    views: int
    grids: tuple[tuple[int, int], tuple[int, int]]
    point_error_median: float
    point_error_p99: float
    worst: dict[str, float]


def check_parity(network: MVDUSt3R, graph: Path, square: int, precision: str = "fp32") -> list[dict[str, Any]]:
    """Run the network and its ONNX graph on the same noise, in every case of CASES; the measurements, JSON-able.

    Raises ParityError where a case is beyond the limits of the graph's precision or not finite.
    """
    session = open_on_cpu(graph)
    measured = []
    for batch, views in CASES:
        measured.append(_within_limits(compare(network, session, batch, views, square), precision))
    return measured


def check_rendered(
    network: MVDUSt3R, folder: Path, square: int, max_views: int, precision: str = "fp32"
) -> list[dict[str, Any]]:
    """Keep the network's answers for the rendered rooms in `folder`, and compare its ONNX graph there with them.

    Further engines are compared with what is kept: see `export.gate`. Raises ParityError, likewise.
    """

    def checkpoint(inputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            output = network(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
        return [getattr(output, name).numpy() for name in OUTPUTS]

    def graph(inputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = session.run(OUTPUTS, dict(zip(INPUTS, inputs, strict=True)))
        return outputs

    write_answers(checkpoint, folder / ANSWERS_FILE, square, network.config.paths, max_views)
    session = open_on_cpu(folder / GRAPH_FILE)
    return check(graph, folder / ANSWERS_FILE, "the ONNX graph", precision)


def check_splat_parity(network: NoPoSplat, graph: Path, square: int, precision: str = "fp32") -> list[dict[str, Any]]:
    """The same for NoPoSplat, in every case of SPLAT_CASES."""
    session = open_on_cpu(graph)
    return [_within_limits(compare_splats(network, session, *case, square), precision) for case in SPLAT_CASES]


def check_pair_parity(network: PairNetwork, folder: Path, precision: str = "fp32") -> list[dict[str, Any]]:
    """The same for the encoder and the decoder in `folder`, one after the other, in every case of PAIR_CASES."""
    encoder, decoder = (open_on_cpu(folder / file) for file in (ENCODER_FILE, DECODER_FILE))
    return [_within_limits(compare_pair(network, encoder, decoder, *case), precision) for case in PAIR_CASES]


def _within_limits(parity: Parity | PairParity, precision: str) -> dict[str, Any]:
    limits = LIMITS[precision]
    errors = (parity.point_error_p99 / limits.p99, *(error / WORST[precision] for error in parity.worst.values()))
    if not all(error <= 1 for error in errors):  # also where an error is not a number
        raise ParityError(f"the ONNX graph in {precision} differs from the checkpoint: {parity}{advice(precision)}")
    return asdict(parity)


def open_on_cpu(graph: Path) -> ort.InferenceSession:
    """A session of the graph in ONNX Runtime on the CPU, which has no bfloat16: such a graph runs in float32.

    Then its weights are those of the graph, and what it casts to bfloat16 is rounded to it; only the results of single
    operators are not, until the next cast.
    """
    model = onnx.load(graph, load_external_data=False)
    if not any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in model.graph.initializer):
        return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.BFLOAT16:
            (name,) = node.output
            node.output[0] = f"{name}_bf16"
            nodes.append(onnx.helper.make_node("Cast", list(node.output), [name], to=onnx.TensorProto.FLOAT))
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    with tempfile.TemporaryDirectory() as scratch:
        widened = Path(scratch) / graph.name
        onnx.save(model, widened, save_as_external_data=True, location="weights")
        return ort.InferenceSession(widened, providers=["CPUExecutionProvider"])


def compare(network: MVDUSt3R, session: ort.InferenceSession, batch: int, views: int, square: int) -> Parity:
    """One case. The last view is the frame of the answer, so that a graph which ignores `references` shows."""
    images = np.random.default_rng(views).uniform(-1, 1, (batch, views, 3, square, square)).astype(np.float32)
    references = tuple(range(views))[::-1][: network.config.paths]
    with torch.inference_mode():
        output = network(torch.from_numpy(images), references)
    expected = [getattr(output, name).numpy() for name in OUTPUTS]
    got = session.run(OUTPUTS, dict(zip(INPUTS, (images, np.array(references, np.int64)), strict=True)))
    errors = point_errors(got[0], expected[0])
    return Parity(
        batch=batch,
        views=views,
        references=references,
        point_error_median=float(np.median(errors)),
        point_error_p99=float(np.quantile(errors, 0.99)),
        worst={name: relative_error(a, b) for name, a, b in zip(OUTPUTS, got, expected, strict=True)},
    )


def compare_splats(network: NoPoSplat, session: ort.InferenceSession, batch: int, views: int, square: int) -> Parity:
    """One case. Every view has intrinsics of its own, so that a graph which exchanges or ignores them shows."""
    rng = np.random.default_rng(views)
    images = rng.uniform(-1, 1, (batch, views, 3, square, square)).astype(np.float32)
    intrinsics = np.tile(np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], np.float32), (batch, views, 1, 1))
    intrinsics[:, :, [0, 1], [0, 1]] = rng.uniform(0.6, 1.6, (batch, views, 2))
    with torch.inference_mode():
        output = network(torch.from_numpy(images), torch.from_numpy(intrinsics))
    expected = [getattr(output, name).numpy() for name in SPLAT_OUTPUTS]
    got = session.run(SPLAT_OUTPUTS, dict(zip(SPLAT_INPUTS, (images, intrinsics), strict=True)))
    errors = point_errors(got[0], expected[0])
    return Parity(
        batch=batch,
        views=views,
        references=(0,),
        point_error_median=float(np.median(errors)),
        point_error_p99=float(np.quantile(errors, 0.99)),
        worst={name: relative_error(a, b) for name, a, b in zip(SPLAT_OUTPUTS, got, expected, strict=True)},
    )


def compare_pair(
    network: PairNetwork,
    encoder: ort.InferenceSession,
    decoder: ort.InferenceSession,
    batch: int,
    first: tuple[int, int],
    second: tuple[int, int],
) -> PairParity:
    """One case: pairs of images of so many rows and columns of patches."""
    rng = np.random.default_rng(batch)
    grids = (first, second)
    images = [
        rng.uniform(-1, 1, (batch, 3, PATCH * rows, PATCH * columns)).astype(np.float32) for rows, columns in grids
    ]
    with torch.inference_mode():
        answers = network.decode([network.encode(torch.from_numpy(view)) for view in images], grids)
    names = decoder_outputs(network.config.network)
    half = len(names) // 2
    expected = {name: answers[index // half][name.partition("_")[2]].numpy() for index, name in enumerate(names)}
    tokens = [encoder.run(None, {"images": view})[0] for view in images]
    feed = {tensor.name: array for tensor, array in zip(decoder.get_inputs(), tokens, strict=True)}
    got = dict(zip(names, decoder.run(list(names), feed), strict=True))
    errors = np.concatenate(
        [point_errors(got[name], expected[name]).ravel() for name in ("first_points", "second_points")]
    )
    return PairParity(
        batch=batch,
        views=2,
        grids=grids,
        point_error_median=float(np.median(errors)),
        point_error_p99=float(np.quantile(errors, 0.99)),
        worst={name: relative_error(got[name], expected[name]) for name in names},
    )
