"""A FAKE of TensorRT and of CUDA's runtime: it proves control flow, and nothing of NVIDIA's.

Its GPU is the host's memory, and bytes really move there, but late: work asked of a stream is done only while somebody
waits, a step at a time, and always of the same stream first. So what is not waited for is not there, and what is
overwritten too early is lost. An "engine" is a few lines of JSON, its computation a function of numpy arrays; as the
real one's, a context keeps what it computes in memory that it shares with others.
"""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

VERSION = "11.4.0.1"
CHANNELS = {"points": (3,), "confidence": (), "scale": (3,), "rotation": (4,), "opacity": ()}
SCRATCH = 1000
"""Bytes of memory that a view takes in a pass."""
Compute = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


def telling(images: np.ndarray, references: np.ndarray) -> list[np.ndarray]:
    """Outputs in which every input can be recognised: of a pixel its sum over colours, of a view the references'."""
    base = images.sum(axis=2) + 10 * np.dot(references, np.arange(1, len(references) + 1))
    answers = []
    for place, (name, channels) in enumerate(CHANNELS.items()):
        field = base + 100 * place
        answers.append(np.stack([field + k for k in range(*channels)], axis=-1) if channels else field)
        assert answers[-1].shape == (*images.shape[:2], *images.shape[3:], *channels), name
    return [answer.astype(np.float32) for answer in answers]


Error = Enum(
    "Error",
    "cudaSuccess cudaErrorInvalidValue cudaErrorMemoryAllocation cudaErrorNotReady cudaErrorIllegalAddress "
    "cudaErrorStreamCaptureInvalidated",
)
Kind = Enum("Kind", "cudaMemcpyHostToDevice cudaMemcpyDeviceToHost cudaMemcpyDeviceToDevice")

PLACES = {
    Kind.cudaMemcpyHostToDevice: ("pinned", "device"),
    Kind.cudaMemcpyDeviceToHost: ("device", "pinned"),
    Kind.cudaMemcpyDeviceToDevice: ("device", "device"),
}
OK = (Error.cudaSuccess,)
ANSWERING = (
    "cudaGetDeviceCount", "cudaMalloc", "cudaMallocHost", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags",
    "cudaStreamEndCapture", "cudaGraphInstantiate",
)  # fmt: skip


class Event:
    def __init__(self) -> None:
        self.asked = 0
        self.reached = 0


class Stream:
    """Work, first come first done. A piece is (whether it can be done now, how)."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.work: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        self.captured: list[tuple[Callable[[], bool], Callable[[], None]]] | None = None

    def __int__(self) -> int:
        return self.number

    def ask(self, act: Callable[[], None], possible: Callable[[], bool] = lambda: True) -> None:
        (self.work if self.captured is None else self.captured).append((possible, act))


class FakeCudaRuntime(ModuleType):
    """What `cuda.bindings.runtime` has, as far as it is called."""

    def __init__(self, memory: int = 1 << 30) -> None:
        super().__init__("cuda.bindings.runtime")
        self.cudaError_t, self.cudaMemcpyKind = Error, Kind
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        self.cudaStreamNonBlocking, self.cudaEventDisableTiming = 1, 2
        self.memory = memory
        self.blocks: dict[int, tuple[str, np.ndarray]] = {}
        self.streams: list[Stream] = []
        self.log: list[str] = []
        """What the GPU has done, in order."""
        self.lost: Error | None = None
        """The error of a context that is broken: every call answers it."""
        self.failing: dict[str, Error] = {}
        """Calls that fail, each once."""
        self.last_error = Error.cudaSuccess
        self.eager = 1
        """Which stream goes on first where several could: 1, the first one made; -1, the last."""
        self.busy = threading.Lock()

    def __getattribute__(self, name: str) -> Any:
        """Every call is answered as CUDA answers it: by an error first, where there is one to tell."""
        value = super().__getattribute__(name)
        if not (name.startswith("cuda") and callable(value)) or isinstance(value, type) or name == "cudaGetErrorString":
            return value

        def call(*arguments: Any) -> tuple[Any, ...]:
            error = self.lost or self.failing.pop(name, None)
            if error is None:
                return value(*arguments)
            self.last_error = error
            if name == "cudaStreamEndCapture":
                arguments[0].captured = None
            return (error, None) if name in ANSWERING else (error,)

        return call

    def used(self, place: str) -> int:
        return sum(block.nbytes for where, block in self.blocks.values() if where == place)

    def _allocate(self, place: str, size: int) -> tuple[Error, int | None]:
        if place == "device" and self.used(place) + size > self.memory:
            self.last_error = Error.cudaErrorMemoryAllocation
            return Error.cudaErrorMemoryAllocation, None
        block = np.full(size, 0xFF, np.uint8)  # as floats: not a number
        self.blocks[block.ctypes.data] = place, block
        return Error.cudaSuccess, block.ctypes.data

    def within(self, address: int, size: int, place: str) -> int:
        """The address, where so many bytes of one block begin."""
        for start, (where, block) in self.blocks.items():
            if where == place and start <= address and address + size <= start + block.nbytes:
                return address
        raise AssertionError(f"{size} bytes at {address:#x} are in no block of {place} memory")

    def array(self, address: int, shape: Sequence[int], dtype: type) -> np.ndarray:
        """A tensor in the GPU's memory."""
        count = int(np.prod(shape))
        self.within(address, count * np.dtype(dtype).itemsize, "device")
        raw = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(address)
        return np.frombuffer(raw, dtype).reshape(shape)

    def step(self) -> bool:
        """One piece of work, of the first stream that can go on; whether there was one. Another thread's counts."""
        if not self.busy.acquire(blocking=False):
            time.sleep(0.001)
            return True
        try:
            for stream in self.streams[:: self.eager]:
                if stream.work and stream.work[0][0]():
                    stream.work[0][1]()
                    stream.work.pop(0)
                    return True
            return False
        finally:
            self.busy.release()

    def finish(self) -> None:
        while self.step():
            pass

    def cudaGetDeviceCount(self) -> tuple[Error, int]:
        return Error.cudaSuccess, 1

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, f"fake {error.name}".encode()

    def cudaGetLastError(self) -> tuple[Error]:
        error, self.last_error = self.last_error, Error.cudaSuccess
        return (error,)

    def cudaDeviceSynchronize(self) -> tuple[Error]:
        self.finish()
        return OK

    def cudaMalloc(self, size: int) -> tuple[Error, int | None]:
        return self._allocate("device", size)

    def cudaMallocHost(self, size: int) -> tuple[Error, int | None]:
        return self._allocate("pinned", size)

    def cudaFree(self, address: int) -> tuple[Error]:
        assert self.blocks.pop(address)[0] == "device"
        return OK

    def cudaFreeHost(self, address: int) -> tuple[Error]:
        assert self.blocks.pop(address)[0] == "pinned"
        return OK

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, Stream]:
        self.streams.append(Stream(len(self.streams) + 1))
        return Error.cudaSuccess, self.streams[-1]

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Error]:
        self.streams.remove(stream)
        return OK

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Error]:
        while stream.work:
            assert self.step(), "the streams wait for each other"
        return OK

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Error, Event]:
        return Error.cudaSuccess, Event()

    def cudaEventDestroy(self, event: Event) -> tuple[Error]:
        return OK

    def cudaEventRecord(self, event: Event, stream: Stream) -> tuple[Error]:
        event.asked += 1
        stream.ask(lambda count=event.asked: setattr(event, "reached", count))
        return OK

    def cudaStreamWaitEvent(self, stream: Stream, event: Event, flags: int) -> tuple[Error]:
        stream.ask(lambda: None, lambda count=event.asked: event.reached >= count)
        return OK

    def cudaEventQuery(self, event: Event) -> tuple[Error]:
        if event.reached >= event.asked:
            return OK
        self.step()
        return (Error.cudaErrorNotReady,)

    def cudaEventSynchronize(self, event: Event) -> tuple[Error]:
        while event.reached < event.asked:
            assert self.step(), "the streams wait for each other"
        return OK

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Kind, stream: Stream) -> tuple[Error]:
        sources, targets = PLACES[kind]

        def copy() -> None:
            ctypes.memmove(self.within(target, size, targets), self.within(source, size, sources), size)
            self.log.append(f"{sources} to {targets}")

        stream.ask(copy)
        return OK

    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> tuple[Error]:
        stream.captured = []
        return OK

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Error, Any]:
        work, stream.captured = stream.captured, None
        return Error.cudaSuccess, work

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Error, Any]:
        return Error.cudaSuccess, list(graph)

    def cudaGraphLaunch(self, executable: Any, stream: Stream) -> tuple[Error]:
        stream.ask(lambda: self.log.append("replayed"))
        stream.work += executable
        return OK

    def cudaGraphExecDestroy(self, executable: Any) -> tuple[Error]:
        assert not any(piece in stream.work for stream in self.streams for piece in executable)
        executable[:] = [(lambda: False, lambda: None)]  # replayed nevertheless, it would never end
        return OK

    def cudaGraphDestroy(self, graph: Any) -> tuple[Error]:
        return OK


class FakeTensorRT(ModuleType):
    """What `tensorrt` has, as far as it is called."""

    ExecutionContextAllocationStrategy = Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")

    class ILogger:
        Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def __init__(self, cuda: FakeCudaRuntime, compute: Compute = telling, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__version__ = VERSION
        self.cuda = cuda
        self.compute = compute
        self.contexts: list[Context] = []
        self.out_of_memory_beyond = 1 << 60
        """Jobs, views multiplied, for which TensorRT itself finds too little memory."""
        if name == "tensorrt_rtx":
            self.CudaGraphStrategy = Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")

    def nptype(self, dtype: str) -> type:
        return {"FLOAT": np.float32, "INT64": np.int64}[dtype]

    def Runtime(self, logger: Any) -> SimpleNamespace:
        def deserialize(content: Any) -> Engine | None:
            try:
                return Engine(self, json.loads(bytes(content)), logger)
            except ValueError:
                logger.log(self.ILogger.Severity.ERROR, "Error Code 1: Serialization (not an engine)\nand so on")
                return None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


def serialised(profiles: Sequence[Any], side: int) -> bytes:
    """The content of an engine file."""
    return json.dumps({"profiles": [[p.batch, p.views, p.references] for p in profiles], "side": side}).encode()


class Engine:
    def __init__(self, trt: FakeTensorRT, content: dict[str, Any], logger: Any) -> None:
        self.trt, self.logger, self.side = trt, logger, content["side"]
        self.profiles = content["profiles"]
        self.names = ("images", "references", *CHANNELS)
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> str:
        return "INT64" if name == "references" else "FLOAT"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, -1, self.side, self.side, *CHANNELS[name])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        (few, many), (start, end), (least, most) = self.profiles[index]
        if name == "references":
            return [(least,), (most,), (most,)]
        pixels = (3, self.side, self.side)
        return [(few, start, *pixels), (1, end, *pixels), (many, end, *pixels)]

    def create_runtime_config(self) -> SimpleNamespace:
        config = SimpleNamespace(strategy=None, cuda_graph_strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        return config

    def create_execution_context(self, asked: Any) -> Context:
        strategy = getattr(asked, "strategy", asked)
        assert strategy is self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.trt.contexts.append(Context(self, asked))
        return self.trt.contexts[-1]


class Context:
    """Refuses to run what it was not told, and to be changed once a graph was captured from it."""

    def __init__(self, engine: Engine, asked: Any) -> None:
        self.engine, self.trt, self.asked = engine, engine.trt, asked
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.runs = 0
        self.captured = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert not self.captured
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.captured
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        if len(shape) != len(least) or not all(low <= n <= high for low, n, high in zip(least, shape, most)):
            self.engine.logger.log(self.trt.ILogger.Severity.ERROR, f"{name}: {shape} is beyond the profile")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (*self.shapes["images"][:2], *self.engine.get_tensor_shape(name)[2:])

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shapes.keys() == {"images", "references"}
        return SCRATCH * int(np.prod(self.shapes["images"][:2]))

    def set_device_memory(self, address: int, size: int) -> None:
        assert not self.captured
        assert size >= self.update_device_memory_size_for_shapes()
        self.scratch = self.trt.cuda.within(address, size, "device"), size

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert not self.captured
        assert address % 16 == 0  # the host's memory is not aligned as a GPU's is
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch is not None
        assert self.addresses.keys() == set(self.engine.names)
        cuda = self.trt.cuda
        (own,) = (s for s in cuda.streams if s.number == stream)
        if int(np.prod(self.shapes["images"][:2])) > self.trt.out_of_memory_beyond:
            self.engine.logger.log(self.trt.ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 9)")
            return False
        if own.captured is not None:
            assert self.runs, "TensorRT asks for a plain pass before one is captured"
            self.captured = True
        self.runs += 1
        dtypes = {name: self.trt.nptype(self.engine.get_tensor_dtype(name)) for name in self.shapes}
        inputs = [(self.addresses[name], shape, dtypes[name]) for name, shape in self.shapes.items()]
        outputs = [(self.addresses[n], self.get_tensor_shape(n)) for n in CHANNELS]
        size = self.update_device_memory_size_for_shapes()
        kept: dict[str, np.ndarray] = {}

        def first_half() -> None:
            kept["scratch"] = cuda.array(self.scratch[0], (size,), np.uint8)
            kept["scratch"][:] = self.runs % 256
            kept["answers"] = self.trt.compute(*(cuda.array(*tensor).copy() for tensor in inputs))
            kept["mark"] = kept["scratch"].copy()
            cuda.log.append("half computed")

        def second_half() -> None:
            assert (kept["scratch"] == kept["mark"]).all(), "another context computed here meanwhile"
            for (address, shape), answer in zip(outputs, kept["answers"], strict=True):
                cuda.array(address, shape, np.float32)[...] = answer
            cuda.log.append("computed")

        own.ask(first_half)
        own.ask(second_half)
        return True
