"""The checkpoint itself as an engine, and which engine is taken."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from export import sessions, torch_graph
from export.contract import WEIGHTS_FILE, ArtifactError
from export.sessions import NetworkSession, open_model
from model.checkpoint import save
from model.types import Prediction, View, Views
from tests.tiny import (
    TINY_LONG_SIDE,
    TINY_SQUARE,
    make_tiny_pair_artifact,
    tiny_network,
    tiny_pair_network,
)


@pytest.fixture(scope="module")
def kept(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact with its weights beside it, as `scenelift models add` leaves it."""
    folder = tmp_path_factory.mktemp("kept") / "tiny"
    shutil.copytree(artifact, folder)
    save(tiny_network(), folder / WEIGHTS_FILE)
    return folder


@pytest.fixture(scope="module")
def session(kept: Path) -> NetworkSession:
    return open_model(kept, engine="torch")


def job(views: int, height: int = TINY_SQUARE, width: int = TINY_SQUARE) -> Views:
    crops = np.random.default_rng(views).integers(0, 256, (views, height, width, 3), dtype=np.uint8)
    image = np.zeros((height, width, 3), np.uint8)
    return Views(tuple(View(f"{i}.jpg", image, (10 * width, 10 * height), crop=crop) for i, crop in enumerate(crops)))


def silent(stage: str, fraction: float) -> None:
    pass


def test_it_answers_as_the_exported_graph(session: NetworkSession, kept: Path) -> None:
    assert (session.info.engine, session.info.device) == ("torch", "cuda" if torch.cuda.is_available() else "cpu")
    jobs = [job(5), job(5)]
    for got, expected in zip(session.run(jobs, silent), open_model(kept, engine="onnxruntime").run(jobs, silent)):
        assert isinstance(got, Prediction)
        assert isinstance(expected, Prediction)
        error = np.linalg.norm(got.points - expected.points, axis=-1) / np.linalg.norm(expected.points, axis=-1)
        assert np.quantile(error, 0.99) < (0.1 if session.info.device == "cuda" else 1e-4)


def test_pairwise_networks_too(tmp_path: Path) -> None:
    folder = make_tiny_pair_artifact(tmp_path)
    save(tiny_pair_network(), folder / WEIGHTS_FILE)
    ours, theirs = (open_model(folder, engine=engine) for engine in ("torch", "onnxruntime"))
    ours.warm_up()
    image = np.random.default_rng(0).integers(0, 256, (48, TINY_LONG_SIDE, 3), dtype=np.uint8)
    tokens = [model._encode(image, lambda _: None) for model in (ours, theirs)]
    np.testing.assert_allclose(*tokens, rtol=1e-3, atol=1e-4)


def test_a_pass_can_be_ended(session: NetworkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_graph, "HEARTBEAT", 0.001)
    threads = threading.active_count()
    calls = []

    def cancel(stage: str, fraction: float) -> None:
        calls.append(stage)
        if len(calls) == 2:
            raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        session.run([job(24)] * 4, cancel)
    assert threading.active_count() == threads
    assert len(session.run([job(2)], silent)) == 1


def test_without_its_weights_it_is_not_opened(artifact: Path, kept: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="its weights, which PyTorch needs, cannot be read"):
        open_model(artifact, engine="torch")
    other = tmp_path / "other"
    shutil.copytree(kept, other)
    save(tiny_network(seed=1), other / WEIGHTS_FILE)
    with pytest.raises(ArtifactError, match="not what it was exported from"):
        open_model(other, engine="torch")


def test_the_best_engine_that_works_is_taken(kept: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faster ones are asked for only where there is a GPU; why they are not taken is told, without this machine's
    secrets."""
    monkeypatch.setattr(sessions, "gpu_target", lambda: None)
    assert (open_model(kept).info.engine, open_model(kept).info.passed_over) == ("onnxruntime", ())
    monkeypatch.setattr(sessions, "gpu_target", lambda: "sm90")
    info = open_model(kept).info
    assert info.engine == "torch"
    assert [reason.split(":")[0] for reason in info.passed_over] == ["tensorrt"]
    info = open_model(artifact).info
    assert info.engine == "onnxruntime"
    assert [reason.split(":")[0] for reason in info.passed_over] == ["tensorrt", "torch"]
    assert "weights" in info.passed_over[1]


def test_an_engine_that_computes_nonsense_is_not_taken(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nonsense(self, inputs, heartbeat):
        raise RuntimeError(f"{kept} is broken")

    monkeypatch.setattr(sessions, "gpu_target", lambda: "sm90")
    monkeypatch.setattr(torch_graph.TorchGraph, "run", nonsense)
    info = open_model(kept).info
    assert info.engine == "onnxruntime"
    assert info.passed_over[1] == "torch: RuntimeError"


def test_too_many_jobs_at_once_are_halved_and_remembered(session: NetworkSession, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    run = session._graph.run

    def narrow(inputs, heartbeat):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise MemoryError("too little")
        return run(inputs, heartbeat)

    monkeypatch.setattr(session._graph, "run", narrow)
    monkeypatch.setattr(session, "_learned", {})
    jobs = [job(3)] * 7
    answers = session.run(jobs, silent)
    assert len(answers) == 7
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    del sizes[:]
    session.run(jobs[:2], silent)
    assert sizes == [1, 1]


def test_one_job_that_is_too_large_is_said(session: NetworkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(inputs, heartbeat):
        raise MemoryError("too little")

    monkeypatch.setattr(session._graph, "run", full)
    with pytest.raises(MemoryError):
        session.run([job(3)], silent)
