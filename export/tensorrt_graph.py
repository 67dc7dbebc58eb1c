"""A TensorRT engine as a graph: found, opened and run on this machine's GPU, without PyTorch.

TensorRT and TensorRT for RTX are called alike; memory, streams and CUDA graphs are asked of NVIDIA's own bindings
(`cuda.bindings.runtime`). All of it is imported when an engine is opened.

A pass: its inputs are put into pinned memory of the host, copied to the GPU, computed; its outputs are set aside on the
GPU, and copied from there into pinned memory while the next pass, of another thread, computes already: they are large,
48 bytes a pixel. All buffers are allocated once, for the largest shapes that the engine takes.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import mmap
import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from export.contract import GRAPH_FILE, INPUTS, OUTPUTS, Description
from export.engine import (
    ENGINES_FOLDER,
    EngineError,
    Key,
    Record,
    check_engine,
    choose_profile,
    read_record,
    wanted_engine,
)
from export.runtime import HEARTBEAT, gpu_target
from model.types import DeviceLost, Float32

log = logging.getLogger(__name__)

KEPT = 6
"""Shapes whose context and CUDA graph are kept."""
SLOTS = 2
"""Passes under way at once: one computes, one is copied out."""
POLL = 0.0002
"""Seconds between two looks at whether an answer is there."""
NO_MEMORY = ("OutOfMemory", "out of memory")
"""What TensorRT says then."""
ALIGNMENT = 256
"""In bytes, of every tensor: what TensorRT asks for, and as `cudaMalloc` has it."""


class EngineMissing(EngineError):  # noqa: N818 - what is missing is made, not mended
    """There is no engine yet that this machine could run: it has to be built."""


# ---------------------------------------------------------------- which engine


def find_engine(artifact: Path, description: Description, engines: Path | None = None) -> tuple[Path, Record]:
    """The engine of an artifact for this machine's GPU, whole, and its record.

    One that `tensorrt` built, where that is installed, from the folder `engines` or the artifact's own; else one built
    ahead of time, from the artifact's own.
    Raises EngineMissing where it has to be built, and EngineError where no engine can be run here or the one that is
    there is broken; both say what to do.
    """
    target = gpu_target()
    if target is None:
        raise EngineError("there is no NVIDIA GPU here that could run an engine")
    folders = [folder for folder in (engines, artifact / ENGINES_FOLDER) if folder is not None]
    refused: list[EngineError] = []
    impossible: list[EngineError] = []
    for asked in (None, target):
        try:
            key = wanted_engine(description, asked)
        except EngineError as error:
            impossible.append(error)
            continue
        try:
            return _find(key, description.name, folders)
        except EngineError as error:
            refused.append(error)
    raise (refused or impossible)[0]


def _find(key: Key, name: str, folders: Sequence[Path]) -> tuple[Path, Record]:
    paths = [path for folder in folders if (path := folder / f"{key.name}.engine").exists()]
    if paths:
        return paths[0], check_engine(paths[0], key)
    others = []
    for path in (path for folder in folders for path in sorted(folder.glob("*.engine"))):
        try:
            other = read_record(path).key
        except EngineError:
            continue
        if other.weights_sha256 == key.weights_sha256:
            others.append(f"for {other.target} in {other.precision} by {other.builder} {other.version}")
    instead = f", but {' and '.join(dict.fromkeys(others))}" if others else ""
    raise EngineMissing(
        f"there is no engine of {name} for {key.target} in {key.precision} by {key.builder} {key.version}{instead}: "
        f"build it, {key.command}"
    )


def open_tensorrt(artifact: Path, description: Description, engines: Path | None = None) -> dict[str, TensorRTGraph]:
    """The graphs of an artifact as an engine runs them: see `find_engine`, whose errors it raises, too, and EngineError
    where TensorRT or CUDA does not open it."""
    return {GRAPH_FILE: TensorRTGraph(*find_engine(artifact, description, engines))}


# ---------------------------------------------------------------- CUDA


class Cuda:
    """NVIDIA's CUDA runtime, whose refusals are exceptions."""

    def __init__(self) -> None:
        """Raises EngineError where the bindings are not installed, or reach no GPU."""
        try:
            self.runtime = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise EngineError(
                f"cuda-bindings is not installed (pip install --editable '.[tensorrt]'): {error}"
            ) from None
        status, _ = self.runtime.cudaGetDeviceCount()
        if status != self.runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"CUDA reaches no GPU here: {self._words(status)}")

    def do(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; its answer, if it has one.

        Raises MemoryError, DeviceLost, and RuntimeError where it is refused for another reason.
        """
        error, *answer = getattr(self.runtime, name)(*arguments)
        if error != self.runtime.cudaError_t.cudaSuccess:
            self._raise(name, error)
        return answer[0] if answer else None

    def done(self, event: Event) -> bool:
        """Whether the GPU has come to it. Raises as `do` does."""
        (error,) = self.runtime.cudaEventQuery(event.handle)
        if error == self.runtime.cudaError_t.cudaErrorNotReady:
            return False
        if error != self.runtime.cudaError_t.cudaSuccess:
            self._raise("cudaEventQuery", error)
        return True

    def quietly(self, name: str, *arguments: Any) -> None:
        """Call a function whose failure changes nothing: what it frees may be gone already."""
        getattr(self.runtime, name)(*arguments)

    def check(self) -> None:
        """Raises what a library's own calls have left behind, as `do` does."""
        (error,) = self.runtime.cudaGetLastError()
        if error != self.runtime.cudaError_t.cudaSuccess:
            self._raise("a call of TensorRT's", error)

    def _raise(self, name: str, error: Any) -> None:
        words = f"{name}: {self._words(error)}"
        if error == self.runtime.cudaError_t.cudaErrorMemoryAllocation:
            self.runtime.cudaGetLastError()  # else the next check would meet it again
            raise MemoryError(f"the GPU is out of memory: {words}")
        # An error of one call is forgotten once it was asked for. One that has broken the context stays.
        self.runtime.cudaGetLastError()
        if self.runtime.cudaDeviceSynchronize()[0] != self.runtime.cudaError_t.cudaSuccess:
            raise DeviceLost(f"the GPU does not answer any more: {words}")
        raise RuntimeError(f"CUDA refuses {words}")

    def _words(self, error: Any) -> str:
        _, words = self.runtime.cudaGetErrorString(error)
        return words.decode() if isinstance(words, bytes) else str(words)


class Owned:
    """Something of CUDA's that is given back with this object."""

    def __init__(self, cuda: Cuda, handle: Any, give_back: str) -> None:
        self.handle = handle
        # Not at the end of the process: that gives back everything, and CUDA may be gone by then.
        weakref.finalize(self, cuda.quietly, give_back, handle).atexit = False


class Memory(Owned):
    """Of the GPU."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        super().__init__(cuda, cuda.do("cudaMalloc", size), "cudaFree")
        self.size = size
        self.address = int(self.handle)


class PinnedMemory(Owned):
    """Of the host, which the GPU reads and writes by itself."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        super().__init__(cuda, cuda.do("cudaMallocHost", size), "cudaFreeHost")
        self.address = int(self.handle)
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))


class Stream(Owned):
    """Work of the GPU that follows each other."""

    def __init__(self, cuda: Cuda) -> None:
        handle = cuda.do("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
        super().__init__(cuda, handle, "cudaStreamDestroy")


class Event(Owned):
    """A point in a stream that others wait for."""

    def __init__(self, cuda: Cuda) -> None:
        handle = cuda.do("cudaEventCreateWithFlags", cuda.runtime.cudaEventDisableTiming)
        super().__init__(cuda, handle, "cudaEventDestroy")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a block of memory."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + prod(self.shape) * self.dtype.itemsize

    def within(self, block: PinnedMemory) -> NDArray[Any]:
        """The tensor itself."""
        tensor: NDArray[Any] = block.bytes[self.offset : self.end].view(self.dtype).reshape(self.shape)
        return tensor


def lay_out(tensors: Iterable[tuple[str, Sequence[int], Any]]) -> tuple[Place, ...]:
    """Places for tensors (name, shape, dtype), one after the other."""
    places: list[Place] = []
    for name, shape, dtype in tensors:
        offset = -(-places[-1].end // ALIGNMENT) * ALIGNMENT if places else 0
        places.append(Place(name, tuple(shape), np.dtype(dtype), offset))
    return tuple(places)


# ---------------------------------------------------------------- the graph


class Slot:
    """What a pass has for itself, from its inputs' staging until its answer is taken away."""

    def __init__(self, cuda: Cuda, inputs: int, outputs: int) -> None:
        self.staged = PinnedMemory(cuda, inputs)
        self.answers = PinnedMemory(cuda, outputs)
        self.computed, self.copied = Event(cuda), Event(cuda)


@dataclass(slots=True)
class Ready:
    """A shape that passes may have.

    With a context of its own: a CUDA graph holds only as long as the context that it was captured from is not changed.
    """

    context: Any
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    ran: bool = False
    graph: Owned | None = None
    """A pass captured as a CUDA graph."""


class TensorRTGraph:
    """A `Graph` over a serialised engine, on the first GPU that is visible. `run` may be called from several threads:
    passes follow each other, and the copy of an answer goes on beside the next pass."""

    engine = "tensorrt"
    device = "cuda"

    def __init__(self, path: Path, record: Record) -> None:
        """path, record: of an engine that was checked (`find_engine`). Raises EngineError, MemoryError, DeviceLost."""
        self.precision = record.key.precision
        self._name = path.name
        self._profiles = record.key.profiles
        self._cuda = cuda = Cuda()
        self._trt = trt = importlib.import_module(record.key.builder)
        self._heard = _logger(trt)
        self._runtime = trt.Runtime(self._heard)
        self._engine = self._deserialised(path)
        self._types = {name: trt.nptype(self._engine.get_tensor_dtype(name)) for name in (*INPUTS, *OUTPUTS)}
        inputs, outputs = self._widest()
        self._compute, self._copy = Stream(cuda), Stream(cuda)
        self._inputs, self._outputs, self._aside = (Memory(cuda, size) for size in (inputs, outputs, outputs))
        self._scratch: Memory | None = None
        self._slots: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for _ in range(SLOTS):
            self._slots.put(Slot(cuda, inputs, outputs))
        self._last: Slot | None = None
        """Whose answer was set aside last."""
        self._ready: OrderedDict[tuple[tuple[int, ...], ...], Ready] = OrderedDict()
        self._turn = threading.Lock()
        # TensorRT for RTX captures by itself: it knows when its kernels for a shape are there.
        self._captures = not hasattr(trt, "CudaGraphStrategy")

    def jobs_at_once(self, views: int) -> int:
        """See `Graph.jobs_at_once`."""
        return self._profiles[choose_profile(self._profiles, 1, views)].batch[1]

    def run(self, inputs: Sequence[NDArray[Any]], heartbeat: Callable[[float], None]) -> list[Float32]:
        """See `Graph.run`.

        A pass that the GPU has begun cannot be ended: what `heartbeat` raises then, is raised once the pass is done.
        Raises EngineError for shapes that the engine does not take.
        """
        started = time.monotonic()

        def beat() -> None:
            heartbeat(time.monotonic() - started)

        slot = self._free_slot(beat)
        try:
            with self._turn:
                beat()
                outputs = self._start(slot, inputs)
            self._wait_for(slot, beat)
            return [place.within(slot.answers).copy() for place in outputs]
        finally:
            self._slots.put(slot)

    def _free_slot(self, beat: Callable[[], None]) -> Slot:
        while True:
            try:
                return self._slots.get(timeout=HEARTBEAT)
            except queue.Empty:
                beat()

    def _wait_for(self, slot: Slot, beat: Callable[[], None]) -> None:
        """Until the answer has come."""
        try:
            next_beat = time.monotonic() + HEARTBEAT
            while not self._cuda.done(slot.copied):
                time.sleep(POLL)
                if time.monotonic() > next_beat:
                    next_beat += HEARTBEAT
                    beat()
        except BaseException:
            self._cuda.do("cudaEventSynchronize", slot.copied.handle)  # until then the GPU writes to the slot
            raise

    def _start(self, slot: Slot, inputs: Sequence[NDArray[Any]]) -> tuple[Place, ...]:
        """Ask the GPU for a pass, whose steps follow each other there; where its outputs will lie in the slot."""
        shapes = tuple(array.shape for array in inputs)
        self._heard.errors.clear()
        try:
            ready = self._ready_for(shapes)
            for place, array in zip(ready.inputs, inputs, strict=True):
                place.within(slot.staged)[...] = array
            kinds = self._cuda.runtime.cudaMemcpyKind
            size = ready.inputs[-1].end
            self._copy_on(self._compute, self._inputs, slot.staged, size, kinds.cudaMemcpyHostToDevice)
            self._launch(ready)
        except MemoryError:
            self._forget_all()  # fewer jobs at once shall find all of it free
            raise
        if self._last is not None:
            self._wait_on(self._compute, self._last.copied)
        size = ready.outputs[-1].end
        self._copy_on(self._compute, self._aside, self._outputs, size, kinds.cudaMemcpyDeviceToDevice)
        self._record_on(self._compute, slot.computed)
        self._wait_on(self._copy, slot.computed)
        self._copy_on(self._copy, slot.answers, self._aside, size, kinds.cudaMemcpyDeviceToHost)
        self._record_on(self._copy, slot.copied)
        self._last = slot
        return ready.outputs

    def _copy_on(
        self, stream: Stream, target: Memory | PinnedMemory, source: Memory | PinnedMemory, size: int, kind: Any
    ) -> None:
        self._cuda.do("cudaMemcpyAsync", target.address, source.address, size, kind, stream.handle)

    def _wait_on(self, stream: Stream, event: Event) -> None:
        self._cuda.do("cudaStreamWaitEvent", stream.handle, event.handle, 0)

    def _record_on(self, stream: Stream, event: Event) -> None:
        self._cuda.do("cudaEventRecord", event.handle, stream.handle)

    def _launch(self, ready: Ready) -> None:
        """Enqueue the pass. The first of a shape is a plain one, for which TensorRT asks; the second is captured."""
        if ready.ran and ready.graph is None and self._captures:
            ready.graph = self._captured(ready.context)
        if ready.graph is not None:
            self._cuda.do("cudaGraphLaunch", ready.graph.handle, self._compute.handle)
        elif not ready.context.execute_async_v3(int(self._compute.handle)):
            self._refuse("is not run")
        ready.ran = True

    def _captured(self, context: Any) -> Owned | None:
        """A pass as a CUDA graph; None where that cannot be, which is told once."""
        cuda, runtime, stream = self._cuda, self._cuda.runtime, self._compute.handle
        alone = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # others look how far their passes are
        try:
            cuda.do("cudaStreamBeginCapture", stream, alone)
            enqueued = context.execute_async_v3(int(stream))
            captured = Owned(cuda, cuda.do("cudaStreamEndCapture", stream), "cudaGraphDestroy")
            if not enqueued:
                self._refuse("is not captured")
            return Owned(cuda, cuda.do("cudaGraphInstantiate", captured.handle, 0), "cudaGraphExecDestroy")
        except (EngineError, RuntimeError, MemoryError) as error:
            self._captures = False
            log.warning("%s: every pass is enqueued anew, as none is captured: %s", self._name, error)
            return None

    def _ready_for(self, shapes: tuple[tuple[int, ...], ...]) -> Ready:
        ready = self._ready.pop(shapes, None)
        if ready is None:
            if len(self._ready) >= KEPT:
                self._pause()
                self._ready.popitem(last=False)
            ready = self._prepared(shapes)
        self._ready[shapes] = ready
        return ready

    def _prepared(self, shapes: tuple[tuple[int, ...], ...]) -> Ready:
        images = shapes[0]
        profile = choose_profile(self._profiles, *images[:2])
        context = self._new_context()
        # The stream is the one that passes are enqueued on: so they follow.
        taken = context.set_optimization_profile_async(profile, int(self._compute.handle))
        for name, shape in zip(INPUTS, shapes, strict=True):
            if not (taken and context.set_input_shape(name, shape)):
                self._refuse(f"does not take {name} of the shape {shape}")
        inputs = lay_out((name, shape, self._types[name]) for name, shape in zip(INPUTS, shapes, strict=True))
        outputs = lay_out((name, context.get_tensor_shape(name), self._types[name]) for name in OUTPUTS)
        scratch = self._scratch_of(context.update_device_memory_size_for_shapes())
        context.set_device_memory(scratch.address, scratch.size)
        for block, places in ((self._inputs, inputs), (self._outputs, outputs)):
            for place in places:
                context.set_tensor_address(place.name, block.address + place.offset)
        return Ready(context, inputs, outputs)

    def _new_context(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(self._trt, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            self._refuse("is given no execution context")
        return context

    def _scratch_of(self, size: int) -> Memory:
        """What all contexts compute in, one after the other: as large as the widest shape so far needs it."""
        if self._scratch is None or size > self._scratch.size:
            self._forget_all()  # its address is in the graphs
            self._scratch = Memory(self._cuda, max(size, 1))
        return self._scratch

    def _forget_all(self) -> None:
        """Free all that is made anew when it is needed."""
        self._pause()
        self._ready.clear()
        self._scratch = None

    def _pause(self) -> None:
        """Until the GPU computes no pass: then nothing is in use that one would free."""
        self._cuda.do("cudaStreamSynchronize", self._compute.handle)

    def _deserialised(self, path: Path) -> Any:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            self._refuse("is not loaded, so build it again")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        if sorted(names) != sorted((*INPUTS, *OUTPUTS)) or engine.num_optimization_profiles != len(self._profiles):
            raise EngineError(f"the engine {path.name} has other tensors or profiles than its record: build it again")
        return engine

    def _widest(self) -> tuple[int, int]:
        """Bytes of all inputs, and of all outputs, in the largest shapes that the engine takes."""
        engine, sizes = self._engine, []
        for index in range(len(self._profiles)):
            shapes = {name: tuple(engine.get_tensor_profile_shape(name, index)[2]) for name in INPUTS}
            jobs = shapes[INPUTS[0]][:2]
            shapes |= {name: (*jobs, *tuple(engine.get_tensor_shape(name))[2:]) for name in OUTPUTS}
            sizes.append(
                [lay_out((name, shapes[name], self._types[name]) for name in g)[-1].end for g in (INPUTS, OUTPUTS)]
            )
        return max(size[0] for size in sizes), max(size[1] for size in sizes)

    def _refuse(self, what: str) -> NoReturn:
        """Raises for something that TensorRT did not do, by what is known of it."""
        words = self._heard.errors[0] if self._heard.errors else "it does not say why"
        self._cuda.check()
        if any(sign in words for sign in NO_MEMORY):
            raise MemoryError(f"the GPU is out of memory: {words}")
        raise EngineError(f"the engine {self._name} {what}: {self._trt.__name__} {self._trt.__version__} says {words}")


def _logger(trt: ModuleType) -> Any:
    """Keeps the errors, the cause first: TensorRT's calls tell only that there were some."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append((message.strip().splitlines() or [""])[0])
                log.error("%s: %s", trt.__name__, message.strip())
            elif severity == trt.ILogger.Severity.WARNING:
                log.warning("%s: %s", trt.__name__, message.strip())

    return Logger()
