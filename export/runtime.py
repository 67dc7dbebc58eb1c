"""Graphs in ONNX Runtime: opened, run such that a pass can be ended, and kept within the memory that is free.

ONNX Runtime is imported when a graph is opened: an API, which only lists models, does without it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.contract import MEAN, MULTI_VIEW, PAIR_FIELDS, SPLATS, STD, ArtifactError, Description, graph_tensors
from model.types import DeviceLost, Float32, ModelInfo, Progress, ReconstructionError

MEMORY_SHARE = 0.9
"""Of the memory that is free, what a pass may take: its size is known about."""

NO_MEMORY = ("Failed to allocate memory", "bad allocation", "bad_alloc", "out of memory")
"""What ONNX Runtime says then."""

HEARTBEAT = 0.25
"""Seconds between two looks at whether a pass is still wanted."""


class Graph(Protocol):
    """An exported graph, opened. `run` may be called from several threads."""

    engine: str
    """What computes: one of `export.contract.ENGINES`."""
    device: str
    """`cpu` or `cuda`."""
    precision: str
    """What it computes products in: one of `export.contract.PRECISIONS`."""

    def run(self, inputs: Sequence[NDArray[Any]], heartbeat: Callable[[float], None]) -> list[Float32]:
        """The outputs for `inputs`, both in the graph's order.

        Meanwhile `heartbeat` is called with the seconds passed, and what it raises ends the pass. Raises MemoryError
        where the device has too little for these shapes, and DeviceLost.
        """
        ...

    def jobs_at_once(self, views: int) -> int | None:
        """How many jobs of so many views a pass takes, of a network that sees all views at once; None: as many as the
        artifact says, which knows a CPU's memory."""
        ...


class OnnxGraph:
    """A `Graph` in ONNX Runtime."""

    engine = "onnxruntime"

    def __init__(
        self,
        path: Path,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        threads: int | None,
        precision: str = "fp32",
    ) -> None:
        """Open the graph at `path`, written in `precision`, of the model `name`, on a GPU where ONNX Runtime can use
        one, else on `threads` of the CPU.

        Raises ArtifactError where it is not loadable, or has other inputs and outputs than these.
        """
        import onnxruntime as ort

        available = ort.get_available_providers()
        if "CUDAExecutionProvider" in available:
            ort.preload_dlls()  # CUDA's libraries may be Python packages, where no loader looks
        # A product in TF32 is as coarse as one in fp16: what the graph has in float32 is to stay it.
        known: tuple[tuple[str, dict[str, str]], ...]
        known = (("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {}))
        providers = [provider for provider in known if provider[0] in available]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            why = str(error).replace(str(path.parent), "")
            raise ArtifactError(f"{name}: ONNX Runtime cannot load it: {why}") from error
        names = tuple(tuple(t.name for t in ts) for ts in (self._session.get_inputs(), self._session.get_outputs()))
        if names != (tuple(inputs), tuple(outputs)):
            raise ArtifactError(f"{name}: its inputs and outputs are {names}, not {(inputs, outputs)}")
        self._inputs = tuple(inputs)
        self.precision = precision
        self.device = "cpu" if self._session.get_providers()[0].startswith("CPU") else "cuda"

    def run(self, inputs: Sequence[NDArray[Any]], heartbeat: Callable[[float], None]) -> list[Float32]:
        """See `Graph.run`. The pass has a thread of its own."""
        import onnxruntime as ort

        options = ort.RunOptions()
        # A worker lives long and sees many shapes: what one pass took is given back after it.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        started = time.monotonic()
        with ThreadPoolExecutor(1, thread_name_prefix="forward") as pool:
            future = pool.submit(self._session.run, None, dict(zip(self._inputs, inputs, strict=True)), options)
            try:
                while not wait([future], HEARTBEAT).done:
                    heartbeat(time.monotonic() - started)
            except BaseException:
                options.terminate = True
                raise
        try:
            outputs: list[Float32] = future.result()
        except Exception as error:  # they share no base class, and tell what happened in words alone
            words = str(error)
            if any(sign in words for sign in NO_MEMORY):
                raise MemoryError(words) from None
            if "CUDA failure" in words:
                raise DeviceLost(words) from None
            raise
        return outputs

    def jobs_at_once(self, views: int) -> None:  # noqa: ARG002
        """See `Graph.jobs_at_once`."""
        return None


def open_onnx(folder: Path, description: Description, threads: int | None) -> dict[str, OnnxGraph]:
    """The graphs of an artifact in ONNX Runtime, by their files. Raises ArtifactError where one is not loadable."""
    return {
        file: OnnxGraph(folder / file, *tensors, description.name, threads, description.precision)
        for file, tensors in graph_tensors(description.network).items()
    }


def normalised(images: NDArray[np.uint8]) -> Float32:
    """uint8 (..., H, W, 3) to float32 (..., 3, H, W) in [-1, 1]."""
    values = (images.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(np.moveaxis(values, -1, -3))


def ramps(height: int, width: int, count: int) -> NDArray[np.uint8]:
    """(count, height, width, 3): pictures to rehearse with, each moved against the one before."""
    down, across = (np.linspace(0, 255, side, dtype=np.uint8) for side in (height, width))
    image = np.stack(np.broadcast_arrays(down[:, None], across[None, :], np.uint8(128)), axis=-1)
    return np.stack([np.roll(image, 3 * i, axis=1) for i in range(count)])


def describe(
    description: Description, size: int, graph: Graph | None = None, passed_over: Sequence[str] = ()
) -> ModelInfo:
    """What users are told of a model whose files have `size` bytes; without a graph it is not open."""
    together = graph.jobs_at_once(description.min_views) if graph and description.network in MULTI_VIEW else None
    return ModelInfo(
        name=description.name,
        network=description.network,
        licence=description.licence,
        engine=graph.engine if graph else OnnxGraph.engine,
        square=description.square,
        long_side=description.long_side,
        max_batch=together or description.max_batch,
        min_views=description.min_views,
        max_views=description.max_views,
        parameters=description.parameters,
        bytes=size,
        device=graph.device if graph else "cpu",
        passed_over=tuple(passed_over),
        stages=2 if description.network in (*PAIR_FIELDS, SPLATS) else 1,
    )


def gpu_target() -> str | None:
    """Compute capability of this machine's first GPU, such as `sm90`, asked of NVIDIA's driver without any of the heavy
    libraries; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR are 75 and 76.
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    )
    return None if failed else f"sm{major.value}{minor.value}"


def usable_memory(device: str) -> int | None:
    """Bytes that a pass may take; None where that is not known, as for a GPU."""
    free = free_memory() if device == "cpu" else None
    return None if free is None else int(MEMORY_SHARE * free)


def run_told(
    graph: Graph, inputs: Sequence[NDArray[Any]], progress: Progress, seconds: dict[tuple[int, ...], float]
) -> list[Float32]:
    """A graph's outputs, the stage `forward` told: how far a pass is follows from how long the last of its shape took.

    seconds: of passes by the first two axes of their first input; this one's is kept there.
    """
    progress("forward", 0.0)
    shape = inputs[0].shape[:2]
    expected = seconds.get(shape)
    started = time.monotonic()

    def heartbeat(elapsed: float) -> None:
        progress("forward", min(0.95, elapsed / expected) if expected else 0.0)

    outputs = graph.run(inputs, heartbeat)
    seconds[shape] = time.monotonic() - started
    progress("forward", 1.0)
    return outputs


def check_finite(outputs: Sequence[Float32], info: ModelInfo) -> None:
    """Raises RuntimeError if anything of a first answer is not finite."""
    if not all(np.isfinite(output).all() for output in outputs):
        raise RuntimeError(f"{info.name} computes values that are not finite on {info.device}")


def too_many(description: Description, views: int, usable: int) -> ReconstructionError:
    """The refusal of a job of so many views, which says how many do fit."""
    fits = max((n for n in range(views) if description.pass_bytes(1, n) <= usable), default=0)
    needed = description.pass_bytes(1, views)
    detail = (
        f"{views} photos take {description.name} about {needed / 1e9:.1f} GB of memory, "
        f"and {usable / 1e9:.1f} GB are free"
    )
    if fits < description.min_views:
        return ReconstructionError(f"{detail}: not even {description.min_views} fit.", "Use the model geometry.")
    return ReconstructionError(f"{detail}: {fits} fit.", f"Send at most {fits} photos, or use the model geometry.")


def refused_for_memory(description: Description, views: int, device: str) -> ReconstructionError | None:
    """`too_many` where the memory that is free does not do for a job of so many views."""
    usable = usable_memory(device)
    if usable is None or description.pass_bytes(1, views) <= usable:
        return None
    return too_many(description, views, usable)


def not_finite() -> ReconstructionError:
    """The refusal of an answer with values that are no numbers."""
    return ReconstructionError(
        "The network's answer for these photos holds values that are not finite.",
        "Try fewer or other photos; if that happens with every job, the model's file or the device is at fault.",
    )


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process could still take: of the system, or of its control group where that has less.

    None where the system, whose files lie below `root`, tells neither.
    """
    free = []
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        free += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass
    try:
        # In a container its own group is the root of what it sees. Cached files are given back on demand.
        group = root / "sys/fs/cgroup"
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        if limit != "max":
            free.append(max(0, int(limit) - int(used) + int(counts["inactive_file"])))
    except (OSError, ValueError, KeyError):
        pass
    return min(free, default=None)
