"""An engine serves only where it answers as the checkpoint does, on photos of rooms and on every machine."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
    GRAPH_FILE,
    INPUTS,
    OUTPUTS,
    WEIGHTS_FILE,
    ArtifactError,
    read_description,
    sha256,
)
from export.drift import where_it_drifts
from export.gate import CASES, LIMITS, ParityError, check, photos_of, rank_correlation, write_answers
from export.sessions import open_model
from export.torch_graph import TorchGraph
from model.checkpoint import save
from tests.tiny import TINY_CONFIG, TINY_SQUARE, make_tiny_artifact, tiny_network
from tests.wavy import Scene

Outputs = list[NDArray[np.float32]]
Run = Callable[[Sequence[NDArray]], Outputs]


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
    for room, least in zip(gate.ROOMS, (max(views for _, views in CASES), 4)):
        photos = photos_of(room, 224)
        assert len(photos) >= least
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
        assert case["worst"].keys() == set(OUTPUTS)


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
    assert [(case["batch"], case["views"]) for case in fewer] == [(1, 2)]
    assert len(check(run, answers, "x", "fp32", seconds=0)) == 1


def test_a_model_for_few_views_is_compared_on_few(run: Run, tmp_path: Path) -> None:
    write_answers(run, tmp_path / "a.npz", TINY_SQUARE, TINY_CONFIG.paths, max_views=3)
    assert [case["views"] for case in check(run, tmp_path / "a.npz", "x", "fp32")] == [2, 3]


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
    write_answers(wavy_run(), path, TINY_SQUARE, 4, 24)
    for case in check(wavy_run(noise=1e-6), path, "x", "fp32"):
        assert case["pose_degrees"] < LIMITS["fp32"].degrees
    for case in check(wavy_run(noise=1e-3), path, "x", "fp16"):
        assert 0 < case["pose_degrees"] < LIMITS["fp16"].degrees
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


# What a worker does


def test_a_model_that_drifts_does_not_warm_up(artifact: Path, tmp_path: Path) -> None:
    folder = make_tiny_artifact(tmp_path)
    altered(artifact / GRAPH_FILE, folder / GRAPH_FILE, 0.01)
    redescribe(folder)
    for _ in range(2):  # and so it stays
        with pytest.raises(ParityError, match="tiny with onnxruntime in fp32 differs from the checkpoint"):
            open_model(folder).warm_up()


def test_the_comparison_is_made_once_and_logged(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger=sessions.__name__)
    session = open_model(artifact)
    session.warm_up()
    assert caplog.text.count("as its checkpoint") == len(CASES)
    caplog.clear()
    session.warm_up()
    assert caplog.text == ""


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
    open_model(folder).warm_up()


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


@pytest.mark.parametrize(("precision", "more"), [("bf16", "; no block of encoder or decoder drifts"), ("fp32", "$")])
def test_a_refused_export_says_where_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, more: str
) -> None:
    def refuse(*_: object) -> None:
        raise ParityError("it differs")

    monkeypatch.setattr(onnx_graph, "write_graph", lambda *_: None)
    monkeypatch.setattr(onnx_graph, "check_parity", refuse)
    with pytest.raises(ParityError, match=f"it differs{more}"):
        onnx_graph.export_onnx(tiny_network(), tmp_path / "m", "m", "none", square=TINY_SQUARE, precision=precision)
    assert list(tmp_path.iterdir()) == []
