"""Does an exported artifact answer as its checkpoint does? Asked at export, where both are there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from export.contract import ANSWERS_FILE, graph_tensors
from export.gate import LIMITS, ParityError, Run, advice, check, errors_of, relative_error, whole, write_answers
from export.served import served_graphs
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

Exported = MVDUSt3R | PairNetwork | NoPoSplat
Inputs = list[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the answers to one input lie apart."""

    batch: int
    views: int
    shapes: list[tuple[int, ...]]
    """Of the inputs."""
    point_error_median: float
    """Of |p - q| / |q| over the points."""
    point_error_p99: float
    worst: dict[str, float]
    """Per output: largest absolute difference over the largest absolute value."""


# ---------------------------------------------------------------- on noise


def check_noise(network: Exported, folder: Path, side: int, precision: str = "fp32") -> list[dict[str, Any]]:
    """Run the network and the graphs in `folder` on the same noise; the measurements, JSON-able.

    side: of the squares that it sees, in pixels; a pairwise network is asked for small images of many shapes instead.
    Raises ParityError where an answer is beyond the limits of the graphs' precision or not finite.
    """
    graphs, limits = graphs_on_cpu(network, folder), LIMITS[precision]
    measured = []
    for inputs in noise(network, side):
        parity = compare(network, graphs, inputs)
        errors = (parity.point_error_p99 / limits.p99, *(error / WORST[precision] for error in parity.worst.values()))
        if not all(error <= 1 for error in errors):  # also where an error is not a number
            raise ParityError(f"the ONNX graph in {precision} differs from the checkpoint: {parity}{advice(precision)}")
        measured.append(asdict(parity))
    return measured


def noise(network: Exported, side: int) -> Iterator[Inputs]:
    """What a network is asked."""
    if isinstance(network, PairNetwork):
        yield from (pair_noise(*case) for case in PAIR_CASES)
    elif isinstance(network, NoPoSplat):
        yield from (splat_noise(*case, side) for case in SPLAT_CASES)
    else:
        yield from (view_noise(*case, side, network.config.paths) for case in CASES)


def view_noise(batch: int, views: int, square: int, paths: int) -> Inputs:
    """Images and references. The last view is the frame of the answer, so that a graph which ignores them shows."""
    references = np.arange(views - 1, -1, -1)[:paths]
    return [_uniform(views, batch, views, 3, square, square), references]


def splat_noise(batch: int, views: int, square: int) -> Inputs:
    """Images, and for each intrinsics of its own, so that a graph which exchanges or ignores them shows."""
    intrinsics = np.tile(np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], np.float32), (batch, views, 1, 1))
    intrinsics[..., [0, 1], [0, 1]] = np.random.default_rng(views).uniform(0.6, 1.6, (batch, views, 2))
    return [_uniform(views, batch, views, 3, square, square), intrinsics]


def pair_noise(batch: int, *grids: tuple[int, int]) -> Inputs:
    """Images of both views, of so many rows and columns of patches."""
    return [_uniform(view, batch, 3, PATCH * rows, PATCH * columns) for view, (rows, columns) in enumerate(grids)]


def _uniform(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def compare(network: Exported, graphs: Run, inputs: Inputs) -> Parity:
    """How far the graphs' answer to `inputs` lies from the network's, in float32."""
    *_, (_, names) = graph_tensors(network.config.network).values()
    got, expected = (dict(zip(names, run(inputs), strict=True)) for run in (graphs, checkpoint(network)))
    errors = errors_of("points", got, expected)
    return Parity(
        batch=inputs[0].shape[0],
        views=2 if isinstance(network, PairNetwork) else inputs[0].shape[1],
        shapes=[array.shape for array in inputs],
        point_error_median=float(np.median(errors)),
        point_error_p99=float(np.quantile(errors, 0.99)),
        worst={name: relative_error(got[name], expected[name]) for name in names},
    )


# ---------------------------------------------------------------- on rendered rooms


def check_rendered(
    network: Exported, folder: Path, side: int, *, oblong: bool = False, max_views: int = 2, precision: str = "fp32"
) -> list[dict[str, Any]]:
    """Keep the network's answers for the rendered rooms in `folder`, and compare its graphs there with them.

    side, oblong: of the squares that it sees, or, oblong, of the photos' long side alone.
    Further engines are compared with what is kept: see `export.gate`. Raises ParityError, likewise.
    """
    name, paths = network.config.network, getattr(network.config, "paths", 1)
    answers = folder / ANSWERS_FILE
    write_answers(checkpoint(network), answers, name, side, oblong=oblong, paths=paths, max_views=max_views)
    measured = check(graphs_on_cpu(network, folder), answers, name, "the ONNX graph", precision)
    return [asdict(case) for case in measured]


# ---------------------------------------------------------------- what answers


def checkpoint(network: Exported) -> Run:
    """The network itself."""
    return whole({file: _in_torch(module) for file, module in served_graphs(network).items()})


def _in_torch(module: nn.Module) -> Run:
    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else [outputs])]

    return run


def graphs_on_cpu(network: Exported, folder: Path) -> Run:
    """Its exported graphs in `folder`."""
    tensors = graph_tensors(network.config.network)
    return whole({file: _in_onnx(open_on_cpu(folder / file), *names) for file, names in tensors.items()})


def _in_onnx(session: ort.InferenceSession, names: Sequence[str], outputs: Sequence[str]) -> Run:
    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        answers: list[NDArray[np.float32]] = session.run(outputs, dict(zip(names, inputs, strict=True)))
        return answers

    return run


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
