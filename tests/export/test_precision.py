"""Graphs in half precision answer as the network does, within what half precision is; nothing of them is float64."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from export import onnx_graph
from export.contract import GRAPH_FILE, OUTPUTS, ArtifactError, graph_tensors, read_description
from export.gate import LIMITS, ParityError
from export.onnx_graph import export_onnx
from export.parity import Exported, check_noise, compare, graphs_on_cpu, view_noise
from export.precision import written_in
from export.sessions import open_model
from model.mvdust3r import MVDUSt3R
from tests.tiny import (
    NARROW,
    TINY_CONFIG,
    TINY_HEADS,
    TINY_MATCHES,
    TINY_PAIRS,
    TINY_SQUARE,
    exported_once,
    tiny_network,
    tiny_pair_network,
    tiny_splat_network,
)

ALONE = dataclasses.replace(TINY_CONFIG, decoder_depth=1, paths=1)
NETWORKS = {"fp16": TINY_HEADS, "bf16": ALONE}
TYPES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}


@pytest.fixture(scope="module", params=TYPES)
def lowered(request: pytest.FixtureRequest) -> Path:
    """An artifact in half precision, one of each network."""
    if request.param == "fp16":
        return request.getfixturevalue("half_artifact")
    network = tiny_network(ALONE)
    return exported_once(
        "bf16", lambda folder: export_onnx(network, folder, "a", "none", square=TINY_SQUARE, precision="bf16")
    )


@pytest.fixture
def network() -> MVDUSt3R:
    return tiny_network()


@pytest.mark.parametrize(("batch", "views"), [(1, 2), (3, 4), (2, 9), (1, 24)])
def test_near_to_torch_for_every_batch_and_view_count(lowered: Path, batch: int, views: int) -> None:
    precision = read_description(lowered).precision
    network = tiny_network(NETWORKS[precision])
    inputs = view_noise(batch, views, TINY_SQUARE, network.config.paths)
    parity = compare(network, graphs_on_cpu(network, lowered), inputs)
    assert parity.point_error_p99 < {"fp16": 0.01, "bf16": 0.08}[precision]
    assert parity.point_error_median < {"fp16": 0.002, "bf16": 0.016}[precision]
    assert max(parity.worst.values()) < {"fp16": 0.04, "bf16": 0.3}[precision]
    # And it is in half precision: float32 would lie a hundred times nearer.
    assert parity.point_error_median > LIMITS["fp32"].p99


def test_the_types_are_what_is_said(lowered: Path) -> None:
    """Weights of products in half precision; norms, sums, heads, inputs and outputs in float32; no float64."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(lowered / GRAPH_FILE)).graph
    half = TYPES[read_description(lowered).precision]
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert onnx.TensorProto.DOUBLE not in types.values()
    assert {types[name] for name in ("images", *OUTPUTS)} == {onnx.TensorProto.FLOAT}
    computed = Counter((node.op_type, types[node.output[0]]) for node in graph.node)
    for operator in ("LayerNormalization", "Exp", "Sigmoid", "ReduceL2"):
        assert computed[operator, half] == 0
        assert computed[operator, onnx.TensorProto.FLOAT] > 0
    for operator in ("Conv", "Softmax", "Gelu"):
        assert computed[operator, half] > 0
        assert computed[operator, onnx.TensorProto.FLOAT] == 0
    # Of the products, only the heads' linear layers are not lowered: a point head's and six of the Gaussians', twice.
    assert computed["MatMul", onnx.TensorProto.FLOAT] == 14
    assert computed["MatMul", half] > 14


def test_a_graph_in_fp16_is_served_by_the_same_session(lowered: Path) -> None:
    """Its tensors are those of the contract. On the CPU ONNX Runtime has no bfloat16, and it is said."""
    if read_description(lowered).precision == "fp16":
        open_model(lowered).warm_up()
    else:
        with pytest.raises(ArtifactError, match="ONNX Runtime cannot load it"):
            open_model(lowered)


def test_other_weights_show_through_the_rounding(lowered: Path) -> None:
    precision = read_description(lowered).precision
    with pytest.raises(ParityError, match=f"in {precision} differs from the checkpoint.*try .* or fp32"):
        check_noise(tiny_network(NETWORKS[precision], seed=1), lowered, TINY_SQUARE, precision)


def narrow(kind: str) -> Exported:
    if kind == "noposplat":
        return tiny_splat_network()
    with patch.multiple("model.dpt", **NARROW):
        return tiny_pair_network(TINY_MATCHES if kind == "mast3r" else dataclasses.replace(TINY_PAIRS, dense=True))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), [("mast3r", "fp16"), ("dust3r", "bf16"), ("noposplat", "fp16")])
def test_the_other_networks_are_lowered_alike(tmp_path: Path, kind: str, precision: str) -> None:
    """The graph's errors are those of half precision: within its limits, and beyond float32's."""
    side = {"square": 32} if kind == "noposplat" else {"long_side": 64}
    description = export_onnx(narrow(kind), tmp_path / "a", "a", "none", precision=precision, **side)
    assert description.precision == precision
    for cases in description.parity.values():
        assert len(cases) >= 1
        assert all(LIMITS["fp32"].p99 < case["point_error_p99"] <= LIMITS[precision].p99 for case in cases)
    for file in graph_tensors(description.network):
        types = {tensor.data_type for tensor in onnx.load(tmp_path / "a" / file).graph.initializer}
        assert TYPES[precision] in types
        assert onnx.TensorProto.DOUBLE not in types


def test_the_network_is_left_as_it_was(network: MVDUSt3R) -> None:
    images = torch.zeros(1, 2, 3, TINY_SQUARE, TINY_SQUARE)
    with torch.inference_mode():
        before = network(images).points
        written_in(network, "bf16")
        assert torch.equal(network(images).points, before)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("value", "precision", "words"),
    [(torch.nan, "fp32", "is not finite"), (torch.inf, "bf16", "is not finite"), (1e5, "fp16", "is beyond what fp16")],
)
def test_weights_that_cannot_be_are_refused(tmp_path: Path, value: float, precision: str, words: str) -> None:
    broken = tiny_network()
    with torch.no_grad():
        broken.encoder.blocks[0].mlp.fc1.weight[3, 2] = value
    with pytest.raises(ArtifactError, match=rf"encoder\.blocks\.0\.mlp\.fc1\.weight {words}"):
        export_onnx(broken, tmp_path / "a", "a", "none", square=TINY_SQUARE, precision=precision)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_refused(tmp_path: Path, network: MVDUSt3R) -> None:
    with pytest.raises(ArtifactError, match="no precision 'int8': there are fp32, fp16, bf16"):
        export_onnx(network, tmp_path / "a", "a", "none", precision="int8")


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.double() * 2).float()


def test_float64_is_refused(tmp_path: Path) -> None:
    """TensorRT would cut it to float32 and not say so."""
    with pytest.raises(ArtifactError, match="computes in float64"):
        onnx_graph._write(Double(), {"x": torch.zeros(2, 3)}, ("y",), {"x": None}, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_products_gather_no_error_in_the_sums(network: MVDUSt3R) -> None:
    """The sums that blocks add to stay in float32: a token of size 2048 keeps what is added to it."""
    lowered = written_in(network, "fp16")
    kept = []
    for block in lowered.encoder.blocks:
        block.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].dtype))
    with torch.inference_mode():
        output = lowered(torch.zeros(1, 2, 3, TINY_SQUARE, TINY_SQUARE))
    assert set(kept) == {torch.float32}
    assert output.points.dtype == torch.float32
    assert np.isfinite(output.points.numpy()).all()
