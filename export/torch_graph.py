"""A network as it is, in PyTorch: on a CUDA GPU in bfloat16, its small steps fused (`export.fused`), each shape
captured once as a CUDA graph and replayed."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.contract import DECODER_FILE, ENCODER_FILE, GRAPH_FILE, WEIGHTS_FILE, ArtifactError, Description
from export.engine import most_jobs
from export.fused import fuse
from export.precision import DTYPES, written_in
from export.runtime import HEARTBEAT
from export.served import PairDecoder, PairEncoder, ServedGraph, SplatGraph, weights_sha256
from model.checkpoint import CheckpointError, load
from model.dust3r import PairNetwork
from model.mvdust3r import MVDUSt3R
from model.noposplat import NoPoSplat
from model.types import DeviceLost

KEPT = 6
"""Shapes whose capture is kept: each holds the memory of its pass."""
WARM_UPS = 2
"""Passes before a capture: libraries choose their algorithms, and take their workspaces, in the first."""


class Ended(Exception):  # noqa: N818 - no error: the way out of a pass whose answer nobody waits for
    """Raised inside a network whose pass is to end."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A pass of one shape: where its inputs are put, and where each replay leaves its outputs."""

    graph: torch.cuda.CUDAGraph
    staged: list[Tensor]
    """Inputs in pinned memory of the host."""
    inputs: list[Tensor]
    outputs: list[Tensor]


class TorchGraph:
    """A `Graph` in PyTorch. Passes follow each other; `run` may be called from several threads."""

    engine = "torch"

    def __init__(self, module: nn.Module, device: str, precision: str, fused: bool = True) -> None:
        """module: in eval mode, tensors to a tensor or a tuple of them, as `export.served` has them; its products are
        in `precision`. fused: on a GPU, where its steps can be, see `export.fused`."""
        self.device = device
        self.precision = precision
        self._module = module.to(device)
        self.fused = device == "cuda" and fused and fuse(self._module, DTYPES[precision], device)
        for part in self._module.modules() if device == "cuda" else ():
            if isinstance(part, nn.Conv2d):  # tensor cores read pixel by pixel: else every input is put so first
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._captures: OrderedDict[tuple[torch.Size, ...], Capture] = OrderedDict()
        self._turn = threading.Lock()
        self._ended = threading.Event()
        for part in self._module.modules():
            if isinstance(part, nn.LayerNorm):  # several in every block
                part.register_forward_pre_hook(self._look_whether_ended)

    def run(self, inputs: Sequence[NDArray[Any]], heartbeat: Callable[[float], None]) -> list[NDArray[np.float32]]:
        """See `Graph.run`. The pass has a thread of its own."""
        started = time.monotonic()
        with self._turn, ThreadPoolExecutor(1, thread_name_prefix="forward") as pool:
            self._ended.clear()
            future = pool.submit(self._pass, [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs])
            try:
                while not wait([future], HEARTBEAT).done:
                    heartbeat(time.monotonic() - started)
            except BaseException:
                self._ended.set()
                raise
            return future.result()

    def jobs_at_once(self, views: int) -> int | None:
        """See `Graph.jobs_at_once`: on a GPU as many as an engine would take; where they are too many, it says so."""
        return most_jobs(views) if self.device == "cuda" else None

    def _look_whether_ended(self, _module: nn.Module, _inputs: object) -> None:
        if self._ended.is_set():
            raise Ended

    @torch.inference_mode()
    def _pass(self, inputs: list[Tensor]) -> list[NDArray[np.float32]]:
        try:
            answers = self._replay(inputs) if self.device == "cuda" else _listed(self._module(*inputs))
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            if not _short_of_memory(error):
                raise DeviceLost(f"the GPU does not answer any more: {error}") from None
            self._captures.clear()
            torch.cuda.empty_cache()
            raise MemoryError(f"the GPU is out of memory: {error}") from None
        return [answer.float().numpy() for answer in answers]

    def _replay(self, inputs: list[Tensor]) -> list[Tensor]:
        shapes = tuple(tensor.shape for tensor in inputs)
        capture = self._captures.pop(shapes, None)
        if capture is None:
            while len(self._captures) >= KEPT:
                self._captures.popitem(last=False)
            capture = self._capture(inputs)
        self._captures[shapes] = capture
        for source, staged, target in zip(inputs, capture.staged, capture.inputs, strict=True):
            staged.copy_(source)
            target.copy_(staged, non_blocking=True)
        capture.graph.replay()
        # Pinned memory, which PyTorch takes back for a later pass once nobody reads this answer any more.
        answers = [torch.empty(output.shape, dtype=output.dtype, pin_memory=True) for output in capture.outputs]
        for output, answer in zip(capture.outputs, answers, strict=True):
            answer.copy_(output, non_blocking=True)
        torch.cuda.synchronize()
        return answers

    def _capture(self, inputs: list[Tensor]) -> Capture:
        held = [tensor.to(self.device) for tensor in inputs]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._module(*held)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Another thread's pass, of another graph, may take memory meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = _listed(self._module(*held))
        staged = [tensor.pin_memory() for tensor in inputs]
        return Capture(graph, staged, held, outputs)


def open_torch(folder: Path, description: Description) -> dict[str, TorchGraph]:
    """The graphs of an artifact from the weights that are kept beside them: on a CUDA GPU, where there is one, else on
    the CPU, there in float32.

    Raises ArtifactError where there are no weights, or others than the artifact was made of.
    """
    try:
        network = load(folder / WEIGHTS_FILE)
    except (OSError, CheckpointError) as error:
        raise ArtifactError(f"{description.name}: its weights, which PyTorch needs, cannot be read: {error}") from None
    if weights_sha256(network) != description.weights_sha256:
        raise ArtifactError(f"{description.name}: its {WEIGHTS_FILE} is not what it was exported from")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bf16" if device == "cuda" else "fp32"
    if isinstance(network, MVDUSt3R):
        return {GRAPH_FILE: TorchGraph(ServedGraph(written_in(network, precision)), device, precision)}
    if isinstance(network, NoPoSplat):
        return {GRAPH_FILE: TorchGraph(SplatGraph(written_in(network, precision)), device, precision)}
    if isinstance(network, PairNetwork):
        lowered: PairNetwork = written_in(network, precision)
        return {
            ENCODER_FILE: TorchGraph(PairEncoder(lowered), device, precision),
            DECODER_FILE: TorchGraph(PairDecoder(lowered), device, precision),
        }
    raise ArtifactError(f"{description.name}: its weights are of another network")


def _short_of_memory(error: BaseException) -> bool:
    """Of PyTorch's allocator, of CUDA's own, or of the former in a capture, whose end then fails, too."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or isinstance(error.__context__, torch.OutOfMemoryError)
        or "out of memory" in str(error)
    )


def _listed(output: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)
