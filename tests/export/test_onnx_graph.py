"""The exported graph answers as the network for every batch, view count and choice of references."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner, Result

from export import onnx_graph
from export.__main__ import export
from export.contract import (
    ANSWERS_FILE,
    DECODER_FILE,
    DECODER_INPUTS,
    DESCRIPTION_FILE,
    ENCODER_FILE,
    GRAPH_FILE,
    INPUTS,
    OUTPUTS,
    SPLAT_OUTPUTS,
    ArtifactError,
    read_description,
    sha256,
)
from export.gate import ParityError
from export.onnx_graph import export_onnx, weights_sha256
from export.parity import check_noise, compare, graphs_on_cpu, pair_noise, splat_noise, view_noise
from export.sessions import open_model
from model.checkpoint import save
from model.config import BackboneConfig, CroCoConfig
from model.croco import CroCo
from model.mvdust3r import MVDUSt3R
from tests.tiny import (
    NARROW,
    TINY_CONFIG,
    TINY_LONG_SIDE,
    TINY_MATCHES,
    TINY_PAIRS,
    TINY_SPLAT_SQUARE,
    TINY_SQUARE,
    make_tiny_pair_artifact,
    make_tiny_splat_artifact,
    tiny_network,
    tiny_pair_network,
    tiny_splat_network,
)

ALONE = dataclasses.replace(TINY_CONFIG, paths=1, encoder_depth=1, decoder_depth=1)


def run_command(*arguments: object) -> Result:
    app = Typer()
    app.command()(export)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def network() -> MVDUSt3R:
    return tiny_network()


@pytest.fixture(scope="module")
def session(artifact: Path) -> ort.InferenceSession:
    return ort.InferenceSession(artifact / GRAPH_FILE, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("batch", "views", "references"),
    [
        (1, 2, (0, 1)),
        (1, 2, (1, 0)),
        (2, 3, (0, 1, 2)),
        (1, 4, (0, 3, 2, 1)),
        (3, 4, (2, 1)),
        (1, 9, (0, 3, 6, 1)),
        (2, 6, (5, 4, 3, 2, 1, 0)),
    ],
)
def test_equal_to_torch(
    network: MVDUSt3R, session: ort.InferenceSession, batch: int, views: int, references: tuple[int, ...]
) -> None:
    images = torch.rand(batch, views, 3, TINY_SQUARE, TINY_SQUARE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.inference_mode():
        expected = network(images, references)
    got = session.run(OUTPUTS, dict(zip(INPUTS, (images.numpy(), np.array(references)), strict=True)))
    for name, array in zip(OUTPUTS, got, strict=True):
        tensor = getattr(expected, name)
        assert array.shape == tensor.shape
        np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-4, atol=1e-4 * float(tensor.abs().max()))


def test_the_graph_is_what_the_contract_says(artifact: Path) -> None:
    graph = onnx.load(artifact / GRAPH_FILE)
    onnx.checker.check_model(graph, full_check=True)
    assert [(opset.domain, opset.version) for opset in graph.opset_import if opset.domain == ""] == [("", 20)]
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions
    operators = {node.op_type for node in graph.graph.node}
    assert "BatchNormalization" not in operators
    assert not operators & {"Loop", "Scan", "If", "SequenceAt", "SplitToSequence"}
    assert tuple(i.name for i in graph.graph.input) == INPUTS
    assert tuple(o.name for o in graph.graph.output) == OUTPUTS
    shapes = [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.graph.input]
    assert shapes == [["batch", "views", 3, TINY_SQUARE, TINY_SQUARE], ["references"]]
    # A value of float64 anywhere would be cut to float32, unsaid, by TensorRT.
    types = {tensor.data_type for tensor in graph.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in graph.graph.value_info}
    assert onnx.TensorProto.DOUBLE not in types


def test_nothing_of_this_machine_is_written(artifact: Path) -> None:
    content = (artifact / GRAPH_FILE).read_bytes()
    for place in (Path(__file__).parent.parent.parent, Path(torch.__file__).parent):
        assert str(place).encode() not in content


def test_the_description_is_true(artifact: Path, network: MVDUSt3R) -> None:
    description = read_description(artifact)
    assert description.files == {name: sha256(artifact / name) for name in (GRAPH_FILE, ANSWERS_FILE)}
    assert description.weights_sha256 == weights_sha256(network)
    assert description.parameters == sum(p.numel() for p in network.parameters())
    assert (description.network, description.paths, description.square) == ("mvdust3r-plus", 4, TINY_SQUARE)
    assert all(case["point_error_p99"] < 1e-4 for case in description.parity["noise"])


def test_the_command_makes_a_model_of_one_path(tmp_path: Path) -> None:
    """MV-DUSt3R's references have length 1, and say which view is the frame."""
    save(tiny_network(ALONE), tmp_path / "My Net.safetensors")
    output = tmp_path / "models" / "mine"
    result = run_command(tmp_path / "My Net.safetensors", "-o", output, "--square", "32", "--licence", "MIT")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0].startswith("Read My Net.safetensors: mvdust3r, 0.")
    description = read_description(output)
    assert (description.name, description.network, description.licence) == ("my-net", "mvdust3r", "MIT")
    for case in description.parity["noise"]:
        assert case["shapes"][1] == [1]
        assert case["point_error_p99"] < 1e-4
    session = open_model(output)
    assert session.info.max_views == 24
    session.warm_up()
    assert [path.name for path in output.parent.iterdir()] == ["mine"]


def test_a_graph_of_other_weights_is_refused(artifact: Path) -> None:
    other = tiny_network(seed=1)
    with pytest.raises(ParityError, match="differs from the checkpoint"):
        check_noise(other, artifact, TINY_SQUARE)


def test_a_slightly_wrong_weight_shows(artifact: Path) -> None:
    """Also in the skip branch, which the network scales by 1e-4."""
    changed = tiny_network()
    graph, inputs = graphs_on_cpu(changed, artifact), view_noise(1, 3, TINY_SQUARE, 4)
    exact = compare(changed, graph, inputs)
    with torch.no_grad():
        changed.head.points.skip_proj[3].conv.bias += 1
    assert compare(changed, graph, inputs).point_error_median > 3 * exact.point_error_median


def test_a_bad_graph_is_not_written(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one of other weights nor one of a network that answers NaN: no folder is left."""
    monkeypatch.setattr(
        onnx_graph, "write_graph", lambda _network, path, _square: shutil.copy(artifact / GRAPH_FILE, path)
    )
    wrong = tiny_network(seed=1)
    with pytest.raises(ParityError):
        export_onnx(wrong, tmp_path / "bad", "bad", "none", square=TINY_SQUARE)
    wrong.head.register_forward_hook(lambda _head, _inputs, fields: tuple(torch.nan * field for field in fields))
    with pytest.raises(ParityError):
        export_onnx(wrong, tmp_path / "bad", "bad", "none", square=TINY_SQUARE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "square", "max_views", "words"),
    [
        ("Bad Name", 32, 24, "name"),
        ("../up", 32, 24, "name"),
        ("good", 40, 24, "multiple of 16"),
        ("good", 0, 24, "multiple of 16"),
        ("good", 32, 1, "at least 2 views"),
    ],
)
def test_impossible_exports_are_refused(
    tmp_path: Path, network: MVDUSt3R, name: str, square: int, max_views: int, words: str
) -> None:
    with pytest.raises(ArtifactError, match=words):
        export_onnx(network, tmp_path / "a", name, "none", square=square, max_views=max_views)


def test_an_existing_folder_is_left_alone(tmp_path: Path, network: MVDUSt3R) -> None:
    with pytest.raises(ArtifactError, match="exists already"):
        export_onnx(network, tmp_path, "a", "none")


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"junk")
    result = run_command(tmp_path / "x.pth", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.output.startswith("error: x.pth")
    save(tiny_network(), tmp_path / "mine.safetensors")
    result = run_command(tmp_path / "mine.safetensors", "-o", tmp_path, "--square", "32")
    assert result.exit_code == 2
    assert "exists already" in result.output
    assert not (tmp_path / DESCRIPTION_FILE).exists()


def test_a_target_that_cannot_be_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny_network(), tmp_path / "mine.safetensors")
    command = (tmp_path / "mine.safetensors", "-o", tmp_path / "out", "--square", "32", "--target")
    monkeypatch.setattr(onnx_graph, "export_onnx", None)
    for target, missing, words in (("sm90", False, "for 'sm90', but for sm80"), ("sm89", True, "is not installed")):
        if missing:
            monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        result = run_command(*command, target)
        assert result.exit_code == 2
        assert result.output.startswith("error: ")
        assert words in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]


@pytest.fixture(scope="module")
def pair_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_pair_artifact(tmp_path_factory.mktemp("pairs"))


def test_the_graphs_of_a_pairwise_network_are_what_the_contract_says(pair_artifact: Path) -> None:
    shapes = {}
    for file in (ENCODER_FILE, DECODER_FILE):
        graph = onnx.load(pair_artifact / file)
        onnx.checker.check_model(graph, full_check=True)
        assert {node.domain for node in graph.graph.node} == {""}
        assert not graph.functions
        assert not {node.op_type for node in graph.graph.node} & {"Loop", "Scan", "If", "SequenceAt"}
        assert str(Path(__file__).parents[2]).encode() not in (pair_artifact / file).read_bytes()
        for value in graph.graph.input:
            shapes[value.name] = [d.dim_value or None for d in value.type.tensor_type.shape.dim]
    assert shapes["images"] == [None, 3, None, None]
    assert all(shapes[name] == [None, None, None, TINY_PAIRS.encoder_width] for name in DECODER_INPUTS)
    description = read_description(pair_artifact)
    assert set(description.files) == {ENCODER_FILE, DECODER_FILE, ANSWERS_FILE}
    assert (description.network, description.square, description.long_side) == ("dust3r", None, TINY_LONG_SIDE)
    assert all(case["point_error_p99"] < 1e-4 for case in description.parity["noise"])


def test_pair_graphs_of_other_weights_are_refused(pair_artifact: Path) -> None:
    with pytest.raises(ParityError, match="differs from the checkpoint"):
        check_noise(tiny_pair_network(seed=1), pair_artifact, TINY_LONG_SIDE)


@pytest.mark.slow
def test_dense_heads_are_exported_for_every_size(tmp_path: Path) -> None:
    """MASt3R's, which hold DUSt3R's."""
    with patch.multiple("model.dpt", **NARROW):
        network = tiny_pair_network(TINY_MATCHES)
    description = export_onnx(network, tmp_path / "a", "a", "none", long_side=TINY_LONG_SIDE)
    assert description.network == "mast3r"
    open_model(tmp_path / "a").warm_up()
    graphs = graphs_on_cpu(network, tmp_path / "a")
    for grids in (((2, 3), (5, 3)), ((9, 1), (1, 1)), ((8, 6), (8, 6))):
        parity = compare(network, graphs, pair_noise(1, *grids))
        assert parity.point_error_p99 < 1e-4
        assert max(parity.worst.values()) < 1e-4


@pytest.fixture(scope="module")
def splat_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_splat_artifact(tmp_path_factory.mktemp("splats"))


def test_the_graph_of_gaussians_is_what_the_contract_says(splat_artifact: Path) -> None:
    graph = onnx.load(splat_artifact / GRAPH_FILE)
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions
    assert not {node.op_type for node in graph.graph.node} & {"Loop", "Scan", "If", "SequenceAt"}
    assert str(Path(__file__).parents[2]).encode() not in (splat_artifact / GRAPH_FILE).read_bytes()
    shapes = {i.name: [d.dim_value or None for d in i.type.tensor_type.shape.dim] for i in graph.graph.input}
    side = TINY_SPLAT_SQUARE
    assert shapes == {"images": [None, None, 3, side, side], "intrinsics": [None, None, 3, 3]}
    assert tuple(o.name for o in graph.graph.output) == SPLAT_OUTPUTS
    description = read_description(splat_artifact)
    assert (description.network, description.square, description.max_views) == ("noposplat", side, 3)
    assert {(case["batch"], case["views"]) for case in description.parity["noise"]} >= {(1, 2), (2, 2), (1, 3)}
    assert all(case["point_error_p99"] < 1e-4 for case in description.parity["noise"])


@pytest.mark.parametrize(("batch", "views"), [(1, 2), (3, 2), (2, 3), (1, 6)])
def test_gaussians_are_equal_for_every_batch_and_number_of_views(splat_artifact: Path, batch: int, views: int) -> None:
    network = tiny_splat_network()
    parity = compare(network, graphs_on_cpu(network, splat_artifact), splat_noise(batch, views, TINY_SPLAT_SQUARE))
    assert parity.point_error_p99 < 1e-4
    assert max(parity.worst.values()) < 1e-4


def test_a_graph_of_other_gaussians_is_refused(splat_artifact: Path) -> None:
    """Also of another linear layer for the lenses, and no other difference."""
    wrong = tiny_splat_network()
    with torch.no_grad():
        wrong.intrinsics.weight *= 1.1
    for network in (tiny_splat_network(seed=1), wrong):
        with pytest.raises(ParityError, match="differs from the checkpoint"):
            check_noise(network, splat_artifact, TINY_SPLAT_SQUARE)


def test_gaussians_are_of_two_views_and_squares_of_256_where_nobody_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def told(_network: object, path: Path, square: int) -> None:
        asked.append(square)
        path.touch()

    monkeypatch.setattr(onnx_graph, "write_splat_graph", told)
    monkeypatch.setattr(onnx_graph, "_compared", lambda *_, **__: {})
    description = export_onnx(tiny_splat_network(), tmp_path / "a", "a", "none")
    assert asked == [256]
    assert (description.square, description.min_views, description.max_views) == (256, 2, 2)
    with pytest.raises(ArtifactError, match="squares alone"):
        export_onnx(tiny_splat_network(), tmp_path / "b", "b", "none", long_side=512)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [({"long_side": 96}, "one of 64"), ({"square": 64, "long_side": 64}, "one of them"), ({"square": 40}, "16")],
)
def test_impossible_sizes_of_pairwise_networks_are_refused(tmp_path: Path, sizes: dict[str, int], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        export_onnx(tiny_pair_network(), tmp_path / "a", "a", "none", **sizes)


def test_what_cannot_be_served_is_not_exported(tmp_path: Path, network: MVDUSt3R) -> None:
    with pytest.raises(ArtifactError, match="squares alone"):
        export_onnx(network, tmp_path / "a", "a", "none", long_side=512)
    small = {name: getattr(TINY_PAIRS, name) for name in BackboneConfig.__slots__}
    with pytest.raises(ArtifactError, match="croco cannot be exported"):
        export_onnx(CroCo(CroCoConfig(**small)), tmp_path / "a", "a", "none")


def test_a_linear_network_sees_squares_where_nobody_asks_for_more(
    tmp_path: Path, pair_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the released ones of either head were trained."""

    def copied(_network: object, folder: Path) -> None:
        for file in (ENCODER_FILE, DECODER_FILE):
            shutil.copy(pair_artifact / file, folder / file)

    monkeypatch.setattr(onnx_graph, "write_pair_graphs", copied)
    monkeypatch.setattr(onnx_graph, "_compared", lambda *_, **__: {})
    dense = tiny_pair_network(dataclasses.replace(TINY_PAIRS, dense=True))
    for name, network, sides in (("a", tiny_pair_network(), (224, None)), ("b", dense, (None, 512))):
        description = export_onnx(network, tmp_path / name, name, "none")
        assert (description.square, description.long_side) == sides
        info = open_model(tmp_path / name).info
        assert (info.square, info.long_side) == sides
