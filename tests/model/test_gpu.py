"""What only a CUDA GPU can prove of the networks and of their session in PyTorch; cheap there, skipped elsewhere.

Nothing here needs more than numpy, PyTorch and pytest, but for the tests that say so: it is to run on a lent machine.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.gpu import tf32_products
from export.contract import WEIGHTS_FILE
from export.precision import written_in
from export.served import ServedGraph
from export.torch_graph import KEPT, TorchGraph
from model.families import Network
from model.output import NetworkOutput
from tests.golden.cases import CONFIGS, Case, cases, relative_error
from tests.golden.rule import golden_network
from tests.tiny import TINY_HEADS, make_tiny_artifact, tiny_network

# Compilers warn of much that concerns nobody here.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

DEVICE = "cuda"
CASES = [case for folder in CONFIGS for case in cases(folder)]


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    with tf32_products(False):
        yield


class OnGpu:
    """A network that computes on the GPU what it is asked on the CPU."""

    def __init__(self, network: Network) -> None:
        self.config = network.config
        self._network = network.to(DEVICE)

    def __call__(self, *inputs: Tensor, **named: Tensor) -> Any:
        output = self._network(*(t.to(DEVICE) for t in inputs), **{name: t.to(DEVICE) for name, t in named.items()})
        if isinstance(output, Tensor):
            return output.cpu()
        known = {f.name: getattr(output, f.name) for f in fields(NetworkOutput)}
        return replace(output, **{name: None if field is None else field.cpu() for name, field in known.items()})

    def complete(self, images: Tensor, mask: Tensor) -> Tensor:
        return self._network.complete(images.to(DEVICE), mask.to(DEVICE)).cpu()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.folder}-{case.name}")
def test_every_network_agrees_with_the_golden_outputs(case: Case) -> None:
    network = OnGpu(golden_network(CONFIGS[case.folder]))
    compared = {name: relative_error(name, got, expected) for name, got, expected in case.compare(network)}
    assert compared
    assert max(compared.values()) < 1e-3, compared


def inputs_of(views: int, batch: int = 1, seed: int = 0) -> list[NDArray[Any]]:
    images = np.random.default_rng(seed).uniform(-1, 1, (batch, views, 3, 32, 32)).astype(np.float32)
    return [images, np.arange(min(views, 4))]


def ask(graph: TorchGraph, inputs: list[NDArray[Any]]) -> list[NDArray[np.float32]]:
    return graph.run(inputs, lambda _seconds: None)


def point_errors(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    return np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


@pytest.fixture(scope="module")
def session() -> TorchGraph:
    return TorchGraph(ServedGraph(written_in(tiny_network(TINY_HEADS), "bf16")), DEVICE, "bf16")


@pytest.mark.parametrize(("views", "batch"), [(5, 1), (2, 1), (4, 3)])
def test_a_replay_answers_as_the_network(session: TorchGraph, views: int, batch: int) -> None:
    assert session.fused
    exact = ServedGraph(tiny_network(TINY_HEADS).to(DEVICE))
    for seed in (1, 2, 1):  # the first is captured; what it left must not show in the others
        inputs = inputs_of(views, batch, seed)
        with torch.inference_mode():
            expected = [t.cpu().numpy() for t in exact(*(torch.from_numpy(a).to(DEVICE) for a in inputs))]
        got = ask(session, inputs)
        errors = point_errors(got[0], expected[0])
        assert np.median(errors) < 3e-2
        assert np.quantile(errors, 0.99) < 0.2
        again = ask(session, inputs)
        for first, second in zip(got, again):
            np.testing.assert_array_equal(first, second)


def test_fused_steps_change_nothing_but_rounding(session: TorchGraph) -> None:
    plain = TorchGraph(ServedGraph(written_in(tiny_network(TINY_HEADS), "bf16")), DEVICE, "bf16", fused=False)
    assert not plain.fused
    inputs = inputs_of(5)
    errors = point_errors(ask(session, inputs)[0], ask(plain, inputs)[0])
    assert np.median(errors) < 2e-2


def test_answers_outlive_the_next_pass(session: TorchGraph) -> None:
    """They lie in memory that later passes use again, but not while somebody holds them."""
    first = ask(session, inputs_of(3, seed=1))
    kept = [array.copy() for array in first]
    for seed in range(2, 6):
        ask(session, inputs_of(3, seed=seed))
    for array, copy in zip(first, kept):
        np.testing.assert_array_equal(array, copy)


def test_the_oldest_shape_gives_way(session: TorchGraph) -> None:
    expected = ask(session, inputs_of(2))
    for views in range(3, 3 + KEPT):
        ask(session, inputs_of(views))
    assert len(session._captures) == KEPT
    assert all(shapes[0][1] != 2 for shapes in session._captures)
    np.testing.assert_allclose(ask(session, inputs_of(2))[0], expected[0], rtol=1e-3, atol=1e-3)


def test_memory_that_does_not_do_is_told_and_the_process_lives_on() -> None:
    graph = TorchGraph(ServedGraph(written_in(tiny_network(), "bf16")), DEVICE, "bf16", fused=False)
    expected = ask(graph, inputs_of(2))
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        with pytest.raises(MemoryError, match="the GPU is out of memory"):
            ask(graph, inputs_of(24, batch=64))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(ask(graph, inputs_of(2))[0], expected[0], rtol=1e-3, atol=1e-3)
    assert len(ask(graph, inputs_of(24, batch=64))[0]) == 64


class Greedy(nn.Module):
    """Asks for too much in its third pass: the captured one."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == 3:
            torch.empty(1 << 50, dtype=torch.uint8, device=x.device)
        return 2 * x


def test_a_capture_that_lacks_memory_is_no_lost_device() -> None:
    graph = TorchGraph(Greedy().eval(), DEVICE, "bf16", fused=False)
    numbers = np.arange(8, dtype=np.float32)
    with pytest.raises(MemoryError):
        ask(graph, [numbers])
    np.testing.assert_array_equal(ask(graph, [numbers])[0], 2 * numbers)


def test_a_session_passes_the_gate(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript", "poselib"):  # the artifact's, and the gate's cameras
        pytest.importorskip(package)
    from export.sessions import open_model
    from model.checkpoint import save

    folder = make_tiny_artifact(tmp_path)
    save(tiny_network(), folder / WEIGHTS_FILE)
    session = open_model(folder, engine="torch")
    assert (session.info.engine, session.info.device) == ("torch", "cuda")
    session.warm_up()
    shutil.rmtree(folder)
