"""An engine serves only where it answers as the checkpoint does, on photos of rooms and on every machine."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from export import gate, onnx_graph, sessions
from export.contract import (
    ANSWERS_FILE,
    ENCODER_FILE,
    GRAPH_FILE,
    INPUTS,
    OUTPUTS,
    WEIGHTS_FILE,
    ArtifactError,
    graph_tensors,
    read_description,
    sha256,
)
from export.drift import where_it_drifts
from export.gate import (
    CASES,
    LIMITS,
    PASSED_FOLDER,
    Difference,
    ParityError,
    photos_of,
    rank_correlation,
    write_answers,
)
from export.parity import Exported, checkpoint
from export.precision import written_in
from export.sessions import open_model
from export.torch_graph import TorchGraph
from model.checkpoint import save
from model.config import BackboneConfig, DUSt3RConfig, MASt3RConfig, ModelConfig, NoPoSplatConfig
from model.dust3r import DUSt3R
from model.mast3r import MASt3R
from model.mvdust3r import MVDUSt3R
from model.noposplat import NoPoSplat
from tests.tiny import (
    NARROW,
    TINY_CONFIG,
    TINY_LONG_SIDE,
    TINY_MATCHES,
    TINY_PAIRS,
    TINY_SPLAT_SQUARE,
    TINY_SQUARE,
    make_tiny_artifact,
    make_tiny_pair_artifact,
    make_tiny_splat_artifact,
    tiny_network,
    tiny_pair_network,
    tiny_splat_network,
    with_random_weights,
)
from tests.wavy import Scene

Outputs = list[NDArray[np.float32]]
Run = Callable[[Sequence[NDArray]], Outputs]


PLUS = "mvdust3r-plus"


def check(run: Run, answers: Path, engine: str, precision: str, **more) -> list[Difference]:
    return gate.check(run, answers, PLUS, engine, precision, **more)


@pytest.fixture(scope="module")
def answers(artifact: Path) -> Path:
    return artifact / ANSWERS_FILE


def opened(graph: Path | bytes) -> Run:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(OUTPUTS, dict(zip(INPUTS, inputs)))


@pytest.fixture(scope="module")
def run(artifact: Path) -> Run:
    return opened(artifact / GRAPH_FILE)


def rounded(run: Run, relative: float) -> Run:
    rng = np.random.default_rng(0)
    return lambda inputs: [
        (output * (1 + relative * rng.standard_normal(output.shape))).astype(np.float32) for output in run(inputs)
    ]


def altered(graph: Path, target: Path, amount: float) -> None:
    """The graph with its largest weight of a product moved by so much of its norm, in a random direction."""
    model = onnx.load(graph)
    tensor = max((t for t in model.graph.initializer if len(t.dims) == 2), key=lambda t: np.prod(t.dims))
    weight = onnx.numpy_helper.to_array(tensor)
    noise = np.random.default_rng(0).standard_normal(weight.shape)
    noise *= amount * np.linalg.norm(weight) / np.linalg.norm(noise)
    tensor.CopyFrom(onnx.numpy_helper.from_array((weight + noise).astype(np.float32), tensor.name))
    onnx.save(model, target)


def redescribe(folder: Path) -> None:
    """Describe the artifact as if those of its files that are there had been exported as they are."""
    description = read_description(folder)
    files = {name: sha256(folder / name) for name in description.files if (folder / name).exists()}
    dataclasses.replace(description, files=files).write(folder)


def test_the_photos_are_of_rooms_and_small() -> None:
    for room, count in gate.ROOMS.items():
        photos = photos_of(room, 224)
        assert len(photos) == count
        assert photos.shape[1:] == (224, 224, 3)
        assert photos.std(axis=(1, 2)).min() > 20  # none is blank
    folder = Path(gate.__file__).parent / "scenes"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000


def test_an_export_keeps_the_checkpoints_answers_and_what_was_measured(artifact: Path) -> None:
    description = read_description(artifact)
    assert description.files[ANSWERS_FILE] == sha256(artifact / ANSWERS_FILE)
    measured = description.parity["rendered"]
    assert [(case["batch"], case["views"]) for case in measured] == list(CASES)
    for case in measured:
        assert case["point_error_median"] <= case["point_error_p99"] < LIMITS["fp32"].p99
        assert case["rank_correlation"] > 0.9999
        assert case["pose_degrees"] is None  # random weights see no rooms
        assert case["worst"].keys() | case["turned"].keys() == set(OUTPUTS)
        assert case["shapes"] == [[TINY_SQUARE, TINY_SQUARE]] * case["views"]


def test_rounding_passes_and_a_changed_weight_does_not(artifact: Path, answers: Path, run: Run, tmp_path: Path) -> None:
    assert len(check(rounded(run, 1e-6), answers, "x", "fp32")) == len(CASES)
    altered(artifact / GRAPH_FILE, tmp_path / "m.onnx", 0.01)
    other = opened(tmp_path / "m.onnx")
    with pytest.raises(
        ParityError, match=r"x in fp32 differs from the checkpoint on 1 x 2 rendered views.*of the points"
    ):
        check(other, answers, "x", "fp32")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_each_precision_has_its_own_limits(answers: Path, run: Run, precision: str) -> None:
    """Noise of half the limit passes, of twice the limit is refused, and it is said what to try."""
    half = LIMITS[precision].median / 2
    assert check(rounded(run, half / 2), answers, "x", precision)
    with pytest.raises(ParityError, match=r"try (bf16|fp16) or fp32$"):
        check(rounded(run, 4 * half), answers, "x", precision)


@pytest.mark.parametrize("output", range(len(OUTPUTS)))
def test_every_output_counts(answers: Path, run: Run, output: int) -> None:
    def wrong(inputs: Sequence[NDArray]) -> Outputs:
        outputs = run(inputs)
        outputs[output] = outputs[output][..., ::-1, :] if outputs[output].ndim == 5 else -outputs[output]
        return outputs

    with pytest.raises(ParityError, match=OUTPUTS[output]):
        check(wrong, answers, "x", "fp32")


def test_the_second_job_and_the_order_of_references_count(answers: Path, run: Run) -> None:
    def one_job_for_all(inputs: Sequence[NDArray]) -> Outputs:
        return [np.broadcast_to(output[:1], output.shape) for output in run(inputs)]

    with pytest.raises(ParityError, match="2 x 3 rendered views"):
        check(one_job_for_all, answers, "x", "fp32")
    with pytest.raises(ParityError, match="1 x 2 rendered views"):
        check(lambda inputs: run((inputs[0], inputs[1][::-1].copy())), answers, "x", "fp32")


def test_values_that_are_not_finite_are_refused(answers: Path, run: Run) -> None:
    with pytest.raises(ParityError, match="not finite, for 1 x 2 rendered views; try bf16 or fp32"):
        check(lambda inputs: [np.full_like(output, np.nan) for output in run(inputs)], answers, "x", "fp16")


def test_cases_beyond_the_memory_or_the_time_are_left_out(answers: Path, run: Run) -> None:
    fewer = check(run, answers, "x", "fp32", fits=lambda batch, views: batch * views < 6)
    assert [(case.batch, case.views) for case in fewer] == [(1, 2)]
    assert len(check(run, answers, "x", "fp32", seconds=0)) == 1


def test_a_model_for_few_views_is_compared_on_few(run: Run, tmp_path: Path) -> None:
    write_answers(run, tmp_path / "a.npz", PLUS, TINY_SQUARE, paths=TINY_CONFIG.paths, max_views=3)
    assert [case.views for case in check(run, tmp_path / "a.npz", "x", "fp32")] == [2, 3]


def wavy_run(noise: float = 0.0, turned: float = 0.0) -> Run:
    """A perfect network, whatever it is shown: points of true cameras in the frame asked for; then with noise, relative
    to their size, and those of the first view turned about that camera by so many radians."""
    scenes: dict[int, Scene] = {}

    def run(inputs: Sequence[NDArray]) -> Outputs:
        batch, views, _, side, _ = inputs[0].shape
        scene = scenes.setdefault(views, Scene([(side, side)] * views, [side] * views))
        frame, rng = np.linalg.inv(scene.poses[inputs[1][0]]), np.random.default_rng(1)
        points = np.stack(scene.points) @ frame[:3, :3].T + frame[:3, 3]
        c, s = np.cos(turned), np.sin(turned)
        centre = (frame @ scene.poses[0])[:3, 3]
        points[0] = (points[0] - centre) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]).T + centre
        points *= 1 + noise * rng.standard_normal(points.shape)
        points = np.broadcast_to(points, (batch, *points.shape)).astype(np.float32)
        confidence = 1 + points[..., 2]
        return [points, confidence, points, points[..., [0, 1, 2, 2]], confidence]

    return run


def test_poses_are_compared_where_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_answers(wavy_run(), path, PLUS, TINY_SQUARE, paths=4, max_views=24)
    for case in check(wavy_run(noise=1e-6), path, "x", "fp32"):
        assert case.pose_degrees < LIMITS["fp32"].degrees
    for case in check(wavy_run(noise=1e-3), path, "x", "fp16"):
        assert 0 < case.pose_degrees < LIMITS["fp16"].degrees
    with pytest.raises(ParityError, match=r"angle between poses in degrees is 1[01]"):
        check(wavy_run(turned=np.radians(10)), path, "x", "bf16")


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 20, (8, 9)).astype(np.float32)
    second = first + rng.normal(0, 4, first.shape).round()
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first.ravel(), second.ravel()).statistic)
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert rank_correlation(first, np.ones_like(first)) == 0
    assert rank_correlation(np.ones(3), np.ones(3)) == 1


# The networks of pairs and of Gaussians

KINDS = ("dust3r", "mast3r", "noposplat")
PAIRS = KINDS[:2]


@cache
def network_of(kind: str) -> Exported:
    if kind == "noposplat":
        return tiny_splat_network()
    with patch.multiple("model.dpt", **NARROW):
        return tiny_pair_network(TINY_MATCHES if kind == "mast3r" else dataclasses.replace(TINY_PAIRS, dense=True))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The answers of a network of that kind."""
    folder = tmp_path_factory.mktemp("answers")

    @cache
    def write(kind: str) -> Path:
        path = folder / f"{kind}.npz"
        run = checkpoint(network_of(kind))
        if kind in PAIRS:
            write_answers(run, path, kind, TINY_LONG_SIDE, oblong=True)
        else:
            write_answers(run, path, kind, TINY_SPLAT_SQUARE, max_views=3)
        return path

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_answer_as_themselves(kept: Callable[[str], Path], kind: str) -> None:
    """Of pairs of all shapes, several at once; of two and three views."""
    run = rounded(checkpoint(network_of(kind)), 1e-6)
    measured = gate.check(run, kept(kind), kind, "x", "fp32")
    assert [(case.batch, case.views) for case in measured] == (
        [(1, 2), (2, 2), (1, 2)] if kind in PAIRS else [(1, 2), (2, 2), (1, 3)]
    )
    shapes = [tuple(map(tuple, case.shapes)) for case in measured]
    assert kind not in PAIRS or shapes == [((48, 64), (48, 64)), ((48, 64), (64, 48)), ((64, 48), (32, 64))]
    for case in measured:
        assert 0 < case.point_error_median <= case.point_error_p99 < LIMITS["fp32"].p99
        assert case.rank_correlation > LIMITS["fp32"].rank
        directions = {"mast3r": {"first_descriptors", "second_descriptors"}, "noposplat": {"rotation"}}
        assert case.turned.keys() == directions.get(kind, set())
    assert kept(kind).stat().st_size < 4e6


def last_outputs(kind: str) -> tuple[str, ...]:
    *_, (_, outputs) = graph_tensors(kind).values()
    return outputs


@pytest.mark.parametrize(("kind", "output"), [(kind, name) for kind in KINDS[1:] for name in last_outputs(kind)])
def test_every_output_of_every_kind_counts(kept: Callable[[str], Path], kind: str, output: str) -> None:
    run, index = checkpoint(network_of(kind)), last_outputs(kind).index(output)

    def wrong(inputs: Sequence[NDArray]) -> Outputs:
        outputs = list(run(inputs))
        direction = output.endswith(gate.DIRECTIONS)
        outputs[index] = outputs[index][..., ::-1] if direction else 1.01 * outputs[index]
        return outputs

    with pytest.raises(ParityError, match=f"on 1 x 2 rendered views: the .*{output}|99th percentile of the points"):
        gate.check(wrong, kept(kind), kind, "x", "fp32")


def test_a_quaternion_and_its_opposite_are_one_rotation(kept: Callable[[str], Path]) -> None:
    run, index = checkpoint(network_of("noposplat")), last_outputs("noposplat").index("rotation")

    def opposite(inputs: Sequence[NDArray]) -> Outputs:
        outputs = list(run(inputs))
        outputs[index] = -outputs[index]
        return outputs

    assert gate.check(opposite, kept("noposplat"), "noposplat", "x", "fp32")


def test_descriptors_are_compared_by_their_angle(kept: Callable[[str], Path]) -> None:
    run, index = checkpoint(network_of("mast3r")), last_outputs("mast3r").index("second_descriptors")
    c, s = np.cos(np.radians(40)), np.sin(np.radians(40))

    def turned(inputs: Sequence[NDArray]) -> Outputs:
        outputs = list(run(inputs))
        first, second, rest = np.split(outputs[index], [1, 2], axis=-1)
        outputs[index] = np.concatenate([c * first - s * second, s * first + c * second, rest], axis=-1)
        return outputs

    with pytest.raises(ParityError, match=r"angle of the second_descriptors in degrees is [234]\d "):
        gate.check(turned, kept("mast3r"), "mast3r", "x", "bf16")


def test_what_a_network_is_told_counts(kept: Callable[[str], Path]) -> None:
    """Lenses; which view is the first; and that the pairs of a batch are different ones."""
    splats, pairs = (checkpoint(network_of(kind)) for kind in ("noposplat", "dust3r"))
    with pytest.raises(ParityError, match="1 x 2 rendered views"):
        gate.check(lambda i: splats([i[0], i[1][:, ::-1]]), kept("noposplat"), "noposplat", "x", "fp32")
    with pytest.raises(ParityError, match="1 x 2 rendered views:"):
        gate.check(lambda i: pairs(i[::-1]), kept("dust3r"), "dust3r", "x", "fp32")
    for kind, run, words in (("noposplat", splats, "views"), ("dust3r", pairs, "views of 48 x 64 and 64 x 48 pixels")):

        def one_for_all(inputs: Sequence[NDArray], run: Run = run) -> Outputs:
            return [np.broadcast_to(output[:1], output.shape) for output in run(inputs)]

        with pytest.raises(ParityError, match=f"2 x 2 rendered {words}: "):
            gate.check(one_for_all, kept(kind), kind, "x", "fp32")


def test_poses_of_a_pair_are_compared(tmp_path: Path) -> None:
    """Of a perfect network, whose views are of different shapes; then with the second view turned about its camera."""
    side, sizes = TINY_LONG_SIDE, {}

    def perfect(turned: float = 0.0) -> Run:
        def run(inputs: Sequence[NDArray]) -> Outputs:
            shapes = tuple(view.shape[:1] + view.shape[-2:] for view in inputs)
            if shapes not in sizes:
                sizes[shapes] = Scene([shape[1:] for shape in shapes], [side, side])
            scene, answer = sizes[shapes], []
            c, s = np.cos(turned), np.sin(turned)
            to_first = np.linalg.inv(scene.poses[0])
            for view, (batch, _, _) in enumerate(shapes):
                centre = scene.poses[view][:3, 3]
                turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) if view else np.eye(3)
                points = (scene.points[view] - centre) @ turn.T + centre
                points = points @ to_first[:3, :3].T + to_first[:3, 3]
                points = np.broadcast_to(points, (batch, *points.shape)).astype(np.float32)
                answer += [points, 1 + np.abs(points[..., 2])]
            return answer

        return run

    path = tmp_path / "a.npz"
    write_answers(perfect(), path, "dust3r", side, oblong=True)
    for case in gate.check(perfect(), path, "dust3r", "x", "fp32"):
        assert case.pose_degrees < 1e-6
    with pytest.raises(ParityError, match=r"angle between poses in degrees is (9\.[5-9]|10)"):
        gate.check(perfect(np.radians(10)), path, "dust3r", "x", "bf16")


@pytest.mark.parametrize("square", [48, 64])
def test_pairs_of_squares_are_asked_for_squares(square: int) -> None:
    asked = gate.questions("dust3r", square, oblong=False, paths=1, max_views=24)
    assert [question["views"].shape for question in asked] == [(1, 2), (2, 2)]
    assert all((question["shapes"] == square).all() for question in asked)


# How far half precision drifts

SIZES = {"encoder_width": 64, "encoder_depth": 2, "encoder_heads": 4, "decoder_width": 48, "decoder_heads": 4}
SHALLOW, DEEP = SIZES | {"decoder_depth": 3}, SIZES | {"decoder_depth": 4}
GOLDEN: dict[str, tuple[type, BackboneConfig]] = {
    "mvdust3r": (MVDUSt3R, ModelConfig(**SHALLOW, skip_channels=16)),
    "mvdust3r-plus": (MVDUSt3R, ModelConfig(**SHALLOW, skip_channels=16, paths=4)),
    "dust3r linear": (DUSt3R, DUSt3RConfig(**SHALLOW, dense=False)),
    "dust3r dpt": (DUSt3R, DUSt3RConfig(**DEEP)),
    "mast3r": (MASt3R, MASt3RConfig(**DEEP)),
    "noposplat": (NoPoSplat, NoPoSplatConfig(**DEEP)),
}
"""The goldens' networks, less deep and with narrow heads."""


@pytest.mark.parametrize("name", GOLDEN)
def test_half_precision_stays_within_its_limits_and_is_no_better(tmp_path: Path, name: str) -> None:
    """What a network drifts by that is written in half precision is within that one's limits, and beyond the finer's:
    they are neither too narrow nor so wide that they do not tell."""
    kind, config = GOLDEN[name]
    with patch.multiple("model.dpt", **NARROW):
        network = with_random_weights(kind(config), seed=2)
    pair = config.network in PAIRS
    path, called, paths = tmp_path / "a.npz", config.network, getattr(config, "paths", 1)
    write_answers(checkpoint(network), path, called, 64 if pair else 32, oblong=pair, paths=paths, max_views=3)
    for precision, finer in (("fp16", "fp32"), ("bf16", "fp16")):
        lowered = checkpoint(written_in(network, precision))
        assert len(gate.check(lowered, path, called, "x", precision)) >= 2
        with pytest.raises(ParityError, match=f"x in {finer} differs"):
            gate.check(lowered, path, called, "x", finer)


# What opening a model does


@pytest.mark.parametrize("make", [make_tiny_artifact, make_tiny_pair_artifact, make_tiny_splat_artifact])
def test_a_model_that_drifts_does_not_open(tmp_path: Path, make: Callable[[Path, str], Path]) -> None:
    folder = make(tmp_path, "mine")
    file = next(name for name in (GRAPH_FILE, ENCODER_FILE) if (folder / name).exists())
    altered(folder / file, folder / file, 0.05)
    redescribe(folder)
    for _ in range(2):  # and so it stays
        with pytest.raises(ParityError, match="mine with onnxruntime in fp32 differs from the checkpoint"):
            open_model(folder)
    assert not (folder / PASSED_FOLDER).exists()


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are compared with their checkpoints from now on."""
    seen: list[str] = []
    check = gate.check
    monkeypatch.setattr(gate, "check", lambda *a, **more: seen.append(a[3]) or check(*a, **more))
    return seen


def test_what_has_passed_on_a_cpu_is_not_compared_again(
    tmp_path: Path, compared: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger=gate.__name__)
    folder = make_tiny_artifact(tmp_path)
    open_model(folder)
    assert caplog.text.count("as its checkpoint") == len(CASES)
    open_model(folder)
    assert compared == ["tiny with onnxruntime"]
    (kept,) = (folder / PASSED_FOLDER).iterdir()
    assert json.loads(kept.read_text())["key"]["version"] == ort.__version__


@pytest.mark.parametrize("change", ["engine", "cpu", "answers", "limits", "cut off"])
def test_what_differs_is_compared_again(
    tmp_path: Path, compared: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder = make_tiny_artifact(tmp_path)
    open_model(folder)
    (kept,) = (folder / PASSED_FOLDER).iterdir()
    if change == "engine":
        monkeypatch.setattr(ort, "__version__", "9.9")
    elif change == "cpu":
        monkeypatch.setattr(gate, "_cpu", lambda: "another")
    elif change == "answers":
        with np.load(folder / ANSWERS_FILE) as answers:
            np.savez(folder / ANSWERS_FILE, **answers)
        redescribe(folder)
    elif change == "limits":
        content = json.loads(kept.read_text())
        content["measured"][0]["point_error_p99"] = 1
        kept.write_text(json.dumps(content))
    else:
        kept.write_bytes(kept.read_bytes()[:-9])
    for _ in range(2):
        open_model(folder)
    assert len(compared) == 2


def test_a_folder_that_cannot_be_written_is_compared_each_time(tmp_path: Path, compared: list[str]) -> None:
    folder = make_tiny_artifact(tmp_path)
    (folder / PASSED_FOLDER).write_text("in the way")
    for _ in range(2):
        open_model(folder)
    assert len(compared) == 2


def test_altered_answers_are_noticed(tmp_path: Path) -> None:
    folder = make_tiny_artifact(tmp_path)
    with (folder / ANSWERS_FILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"answers\.npz has changed"):
        open_model(folder)


def test_an_artifact_without_answers_is_served_as_before(tmp_path: Path) -> None:
    folder = make_tiny_artifact(tmp_path)
    (folder / ANSWERS_FILE).unlink()
    redescribe(folder)
    open_model(folder)


def test_an_engine_that_drifts_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_artifact(tmp_path)
    save(tiny_network(), folder / WEIGHTS_FILE)
    monkeypatch.setattr(sessions, "gpu_target", lambda: "sm90")
    assert open_model(folder).info.engine == "torch"

    run = TorchGraph.run
    monkeypatch.setattr(TorchGraph, "run", lambda self, *a: [1.5 * output for output in run(self, *a)])
    info = open_model(folder).info
    assert info.engine == "onnxruntime"
    assert "tiny with torch in" in info.passed_over[1]
    assert "differs from the checkpoint on 1 x 2 rendered views" in info.passed_over[1]


def test_comparing_needs_no_torch() -> None:
    code = "import sys, export.gate; sys.exit(bool({'torch', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(gate.__file__).parent.parent).returncode == 0


# Where it drifts


def test_the_block_that_drifts_is_named() -> None:
    """A block whose weights leave no room for its sums in fp16: the first to drift, and those before it do not."""
    network = tiny_network()
    block = network.decoder.blocks[1]
    with torch.no_grad():
        block.mlp.fc1.weight.mul_(300)
        block.mlp.fc2.weight.mul_(300)
    assert "it drifts from decoder.blocks.1 on" in where_it_drifts(network, "fp16", TINY_SQUARE)
    assert "its heads do" in where_it_drifts(tiny_network(), "fp16", TINY_SQUARE)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_block_that_drifts_is_named_of_every_kind(kind: str) -> None:
    network = copy.deepcopy(network_of(kind))
    with torch.no_grad():
        network.decoder.reference_blocks[0].mlp.fc1.weight.mul_(300)
        network.decoder.reference_blocks[0].mlp.fc2.weight.mul_(300)
    assert "it drifts from decoder.reference_blocks.0 on" in where_it_drifts(network, "fp16", 32)
    assert "its heads do" in where_it_drifts(network_of(kind), "fp16", 32)


@pytest.mark.parametrize(("precision", "more"), [("bf16", "; no block of encoder or decoder drifts"), ("fp32", "$")])
def test_a_refused_export_says_where_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, more: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ParityError("it differs")

    monkeypatch.setattr(onnx_graph, "write_graph", lambda *_: None)
    monkeypatch.setattr(onnx_graph, "check_rendered", refuse)
    with pytest.raises(ParityError, match=f"it differs{more}"):
        onnx_graph.export_onnx(tiny_network(), tmp_path / "m", "m", "none", square=TINY_SQUARE, precision=precision)
    assert list(tmp_path.iterdir()) == []
