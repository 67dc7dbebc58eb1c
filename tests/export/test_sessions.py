"""Artifacts as models: Views in, Prediction out."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export import onnx_graph, runtime, sessions
from export.contract import ANSWERS_FILE, DESCRIPTION_FILE, GRAPH_FILE, ArtifactError
from export.onnx_graph import export_onnx
from export.sessions import NetworkSession, choose_references, linear_scale, list_models, open_model, unit_rotation
from model.types import Model, Prediction, ReconstructionError, View, Views
from tests.tiny import TINY_CONFIG, TINY_SQUARE, make_tiny_artifact, tiny_network


def silent(stage: str, fraction: float) -> None:
    pass


@pytest.fixture(scope="module")
def session(artifact: Path) -> NetworkSession:
    return open_model(artifact, threads=1)


def job(views: int, seed: int = 0, reference: int = 0, size: tuple[int, int] = (800, 600)) -> Views:
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 256, (views, TINY_SQUARE, TINY_SQUARE, 3), dtype=np.uint8)
    image = np.zeros((6, 8, 3), np.uint8)
    return Views(tuple(View(f"{i}.jpg", image, size, crop=s) for i, s in enumerate(squares)), reference=reference)


def test_a_prediction_is_the_networks_answer(session: NetworkSession) -> None:
    views = job(5, reference=2)
    model: Model = session
    (prediction,) = model.run([views], silent)
    assert isinstance(prediction, Prediction)
    squares = np.stack([view.crop for view in views.views])
    images = torch.from_numpy(squares).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
    with torch.inference_mode():
        expected = tiny_network()(images, (2, 3, 0, 1))
    np.testing.assert_allclose(prediction.points, expected.points[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(prediction.confidence, expected.confidence[0], rtol=1e-3)
    np.testing.assert_array_equal(prediction.rgb, squares)
    assert prediction.points.dtype == prediction.confidence.dtype == np.float32
    assert prediction.cameras is None
    # 800 x 600 becomes 43 x 32, of which the middle 32 columns are seen.
    np.testing.assert_allclose(prediction.crops, [[5 * 800 / 43, 0, 37 * 800 / 43, 600]] * 5)
    gaussians = prediction.gaussians
    assert gaussians is not None
    np.testing.assert_allclose(gaussians.opacity, expected.opacity[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(gaussians.rotation, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(gaussians.scale, linear_scale(expected.scale[0].numpy(), prediction.points), rtol=1e-3)


def test_jobs_of_a_batch_are_answered_in_order_and_alone(session: NetworkSession) -> None:
    jobs = [job(3, seed=seed) for seed in range(3)]
    together = session.run(jobs, silent)
    for views, prediction in zip(jobs, together, strict=True):
        (alone,) = session.run([views], silent)
        np.testing.assert_allclose(prediction.points, alone.points, rtol=1e-3, atol=1e-4)


def test_one_jobs_failure_is_its_own(session: NetworkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = session._forward

    def poisoned(*arguments):
        outputs = forward(*arguments)
        outputs[1][1, 0, 0, 0] = np.nan
        outputs[0][2, 1, 0, 0, 2] = np.inf
        return outputs

    monkeypatch.setattr(session, "_forward", poisoned)
    good, not_a_number, infinite = session.run([job(2, seed=seed) for seed in range(3)], silent)
    assert isinstance(good, Prediction)
    for failure in (not_a_number, infinite):
        assert isinstance(failure, ReconstructionError)
        assert "not finite" in failure.detail
        assert failure.suggestion


def test_progress_may_cancel(session: NetworkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """During the pass, too, which then ends soon."""
    monkeypatch.setattr(runtime, "HEARTBEAT", 0.005)
    calls = []

    def cancel(stage: str, fraction: float) -> None:
        calls.append((stage, fraction))
        if len(calls) == 2:
            raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        session.run([job(24)] * 8, cancel)
    assert calls == [("forward", 0.0), ("forward", 0.0)]
    assert len(session.run([job(2)], silent)) == 1


def test_progress_rises_to_one(session: NetworkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pass of a shape knows how long the first took."""
    monkeypatch.setattr(runtime, "HEARTBEAT", 0.005)
    for _ in range(2):
        seen: list[float] = []
        session.run([job(12)] * 2, lambda stage, fraction: seen.append(fraction))  # noqa: B023
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == 1
    assert any(0 < fraction < 1 for fraction in seen)


def room_for(session: NetworkSession, batch: int, views: int) -> int:
    """Free memory in which just so many jobs of so many views fit."""
    return int(session._description.pass_bytes(batch, views) / runtime.MEMORY_SHARE) + 1


def test_a_pass_too_large_is_refused_before_it_runs(session: NetworkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the refusal is right: so many views as it says do fit."""
    free = room_for(session, 1, 12)
    monkeypatch.setattr(runtime, "free_memory", lambda: free)
    refusals = session.run([job(20), job(20, seed=1)], silent)
    for refusal in refusals:
        assert isinstance(refusal, ReconstructionError)
        assert "20 photos" in refusal.detail
        assert "12 fit" in refusal.detail
        assert "at most 12 photos" in refusal.suggestion
    assert isinstance(session.run([job(12)], silent)[0], Prediction)
    assert isinstance(session.run([job(13)], silent)[0], ReconstructionError)
    monkeypatch.setattr(runtime, "free_memory", lambda: 0)
    (refusal,) = session.run([job(2)], silent)
    assert "not even 2 fit" in refusal.detail


def test_jobs_that_do_not_fit_together_run_in_turn(session: NetworkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job(3, seed=seed) for seed in range(5)]
    together = session.run(jobs, silent)
    free = room_for(session, 2, 3)
    monkeypatch.setattr(runtime, "free_memory", lambda: free)
    sizes: list[int] = []
    forward = session._forward
    monkeypatch.setattr(session, "_forward", lambda images, *rest: sizes.append(len(images)) or forward(images, *rest))
    told: list[float] = []
    apart = session.run(jobs, lambda stage, done: told.append(done))
    assert sizes == [2, 2, 1]
    assert told == sorted(told)
    assert told[-1] == 1
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_allclose(one.points, other.points, rtol=1e-3, atol=1e-4)


def test_where_memory_is_not_known_nothing_is_refused(session: NetworkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "free_memory", lambda: None)
    assert isinstance(session.run([job(24)], silent)[0], Prediction)
    monkeypatch.setattr(runtime, "free_memory", lambda: 0)
    older = dataclasses.replace(session._description, view_bytes=0, pair_bytes=0)
    monkeypatch.setattr(session, "_description", older)
    assert isinstance(session.run([job(24)], silent)[0], Prediction)


def test_free_memory_is_the_systems_or_the_containers(tmp_path: Path) -> None:
    assert runtime.free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:  5000 kB\n")
    assert runtime.free_memory(tmp_path) == 5000 << 10
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.stat").write_text("anon 1000\ninactive_file 500\n")
    (group / "memory.current").write_text("4000\n")
    for limit, free in (("max", 5000 << 10), ("7000", 3500), ("3000", 0)):
        (group / "memory.max").write_text(limit + "\n")
        assert runtime.free_memory(tmp_path) == free
    (group / "memory.stat").write_text("nonsense")
    assert runtime.free_memory(tmp_path) == 5000 << 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's peak from /proc")
def test_the_memory_of_a_pass_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 224 pixels, where it counts: the peak of a process beyond an idle session lies below, and not far."""
    monkeypatch.setattr(onnx_graph, "_compared", lambda *_, **__: {})  # asked elsewhere, and slow at this size
    config = dataclasses.replace(TINY_CONFIG, decoder_heads=4, decoder_width=64, skip_channels=64)
    description = export_onnx(tiny_network(config), tmp_path / "m", "m", "none", square=224)
    code = (
        "import sys, numpy as np, onnxruntime as ort\n"
        "options = ort.SessionOptions(); options.intra_op_num_threads = 1\n"
        "session = ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n"
        "status = lambda name: int(next(l for l in open('/proc/self/status') if l.startswith(name)).split()[1])\n"
        "before = status('VmRSS')\n"
        "images = np.zeros((1, 12, 3, 224, 224), np.float32)\n"
        "session.run(None, {'images': images, 'references': np.arange(4)})\n"
        "print((status('VmHWM') - before) << 10)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m" / GRAPH_FILE)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.4 * description.pass_bytes(1, 12) < peak < 1.1 * description.pass_bytes(1, 12)


def test_wrong_jobs_are_a_callers_bug(session: NetworkSession) -> None:
    for batch in ([job(2), job(3)], [job(3), job(3, reference=1)], [job(25)], [job(1)], [job(3, reference=3)]):
        with pytest.raises(ValueError):
            session.run(batch, silent)
    bare = Views(tuple(View("a.jpg", np.zeros((6, 8, 3), np.uint8), (8, 6)) for _ in range(2)))
    with pytest.raises(ValueError, match="bug"):
        session.run([bare], silent)


def test_warm_up_is_a_real_pass(session: NetworkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session.warm_up()
    forward = session._forward
    monkeypatch.setattr(session, "_forward", lambda *a: [np.full_like(o, np.nan) for o in forward(*a)])
    with pytest.raises(RuntimeError, match="not finite"):
        session.warm_up()


@pytest.mark.parametrize(
    ("views", "reference", "expected"),
    [
        (2, 0, (0, 1)),
        (3, 0, (0, 1, 2)),
        (3, 2, (2, 1, 0)),
        (4, 0, (0, 3, 2, 1)),
        (6, 0, (0, 3, 2, 1)),
        (6, 3, (3, 0, 2, 1)),
        (6, 5, (5, 3, 2, 1)),
        (7, 0, (0, 3, 6, 1)),
        (11, 6, (6, 3, 0, 1)),
        (12, 0, (0, 4, 7, 10)),
        (24, 0, (0, 7, 13, 19)),
    ],
)
def test_references_are_upstreams_choice(views: int, reference: int, expected: tuple[int, ...]) -> None:
    assert choose_references(views, reference, 4) == expected


@given(views=st.integers(2, 64), paths=st.sampled_from([1, 4]), data=st.data())
def test_references_are_valid(views: int, paths: int, data: st.DataObject) -> None:
    reference = data.draw(st.integers(0, views - 1))
    chosen = choose_references(views, reference, paths)
    assert chosen[0] == reference
    assert len(set(chosen)) == len(chosen) == min(paths, views)
    assert set(chosen) <= set(range(views))


def test_upstreams_reordering_has_these_references() -> None:
    """Against the demo's exchanges of views, done literally."""
    for views in range(2, 40):
        order = list(range(views))
        if views < 12:
            exchanges = [(1, 3)] * (views > 3) + [(2, 6)] * (views > 6)
        else:
            exchanges = [(k, k * views // 4 + 1) for k in (1, 2, 3)]
        for a, b in exchanges:
            order[a], order[b] = order[b], order[a]
        assert set(choose_references(views, 0, 4)) == set(order[:4])


def test_scale_rule() -> None:
    points = np.zeros((1, 1, 2, 3), np.float32)
    points[0, 0, :, 2] = (1.0, 3.0)  # mean distance 2: limits 2e-4 and 8e-3
    raw = np.array([[[[-1, 1e-3, 1], [2e-4, 8e-3, 0]]]], np.float32)
    scale = linear_scale(raw, points)
    np.testing.assert_allclose(scale, [[[[2e-4, 1e-3, 8e-3], [2e-4, 8e-3, 2e-4]]]], rtol=1e-6)
    np.testing.assert_allclose(linear_scale(10 * raw, 10 * points), 10 * scale, rtol=1e-6)


def test_a_rotation_without_direction_is_none() -> None:
    rotation = unit_rotation(np.array([[0, 0, 0, 0], [0, 0, 3, 4]], np.float32))
    np.testing.assert_allclose(rotation, [[1, 0, 0, 0], [0, 0, 0.6, 0.8]])


def test_models_are_listed_without_opening_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b", "a"):
        make_tiny_artifact(tmp_path, name)
    (tmp_path / "a" / GRAPH_FILE).write_bytes(b"junk, but not looked at")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / DESCRIPTION_FILE).write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    models = list_models(tmp_path)
    assert [info.name for info in models] == ["a", "b"]
    assert models[1].square == TINY_SQUARE
    assert models[1].bytes == sum((tmp_path / "b" / file).stat().st_size for file in (GRAPH_FILE, ANSWERS_FILE))
    assert "broken" in caplog.text
    assert list_models(tmp_path / "absent") == []


def test_listed_and_opened_models_are_described_alike(artifact: Path, session: NetworkSession) -> None:
    """But for the device, which is known once a model is open."""
    assert list_models(artifact.parent) == [dataclasses.replace(session.info, device="cpu")]


def test_listing_needs_no_onnx_runtime() -> None:
    code = "import sys, export.sessions; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(sessions.__file__).parent.parent).returncode == 0


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_artifact(tmp_path)
    graph = bytearray((folder / GRAPH_FILE).read_bytes())
    graph[len(graph) // 2] ^= 1
    (folder / GRAPH_FILE).write_bytes(graph)
    with pytest.raises(ArtifactError, match="has changed"):
        open_model(folder)
    (folder / GRAPH_FILE).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        open_model(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"surprise": 1},
        {"square": 30},
        {"square": "x"},
        {"name": "../x"},
        {"files": {"../../etc/passwd": "0"}},
        {"max_views": 1},
        {"mean": 0.4},
        {"paths": None},
        {"pair_bytes": -1},
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, artifact: Path, change: dict) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "m"))
    content = json.loads((folder / DESCRIPTION_FILE).read_text()) | change
    (folder / DESCRIPTION_FILE).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"model\.json"):
        open_model(folder)


def test_memory_is_given_back(session: NetworkSession) -> None:
    """A worker that has done a large job is not larger ever after."""
    import psutil

    def resident() -> int:
        return psutil.Process().memory_info().rss

    session.run([job(2)], silent)
    before = resident()
    session.run([job(24)] * 8, silent)
    time.sleep(0.1)
    assert resident() - before < 60 * 2**20
