"""TensorRT engines as graphs: found, refused, opened, run.

Refusals are tried on a real engine, where TensorRT for RTX is installed. How passes are put together is tried on a
machine without a GPU against `fake_tensorrt`: such tests are called fake. The rest is marked `gpu`, and tries it all.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from export import engine, sessions, tensorrt_graph
from export.contract import GRAPH_FILE, Description, read_description
from export.engine import EngineError, Profile, Record, ensure_engine, plan_profiles, wanted_engine, write_engine
from export.sessions import open_model
from export.tensorrt_graph import KEPT, Cuda, EngineMissing, TensorRTGraph, find_engine, lay_out, open_tensorrt
from model.types import DeviceLost, Prediction, View, Views
from tests.export.fake_tensorrt import SCRATCH, VERSION, Error, FakeCudaRuntime, FakeTensorRT, serialised, telling
from tests.tiny import TINY_SQUARE

SIDE = 4
PROFILES = (Profile((1, 8), (2, 2), (2, 2)), Profile((1, 4), (3, 6), (3, 4)))
DESCRIPTION = Description(
    name="m", network="mvdust3r-plus", licence="none", square=SIDE, paths=4, parameters=1, weights_sha256="a" * 64,
    files={GRAPH_FILE: "b" * 64}, precision="fp16",
)  # fmt: skip


def silent(_seconds: float) -> None:
    pass


def inputs(batch: int, views: int, seed: int = 0) -> list[np.ndarray]:
    images = np.random.default_rng(seed).random((batch, views, 3, SIDE, SIDE), np.float32)
    return [images, np.arange(min(views, 4), dtype=np.int64)[::-1].copy()]


# ---------------------------------------------------------------- which engine, on a real one


@pytest.fixture
def on_sm89(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with such a GPU, and without `tensorrt`; nothing but a name is made up."""
    for module in (engine, tensorrt_graph):
        monkeypatch.setattr(module, "gpu_target", lambda: "sm89")
    monkeypatch.setitem(sys.modules, "tensorrt", None)


def copied(artifact: Path, folder: Path) -> Path:
    return Path(shutil.copytree(artifact, folder / "copy"))


def test_the_engine_for_this_gpu_is_found(half_artifact: Path, built: Path, on_sm89: None) -> None:
    path, record = find_engine(half_artifact, read_description(half_artifact))
    assert path == built
    assert record == engine.read_record(built)


def test_a_missing_engine_is_told_from_a_broken_one(
    half_artifact: Path, built: Path, tmp_path: Path, on_sm89: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(half_artifact, tmp_path)
    description = read_description(folder)
    path = folder / "engines" / built.name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match="cut off or altered: build it again") as refusal:
        find_engine(folder, description)
    assert not isinstance(refusal.value, EngineMissing)
    path.unlink()
    with pytest.raises(
        EngineMissing, match=r"no engine of half for sm89 in fp16 by tensorrt_rtx \S+: build it, python"
    ):
        find_engine(folder, description)


def test_an_engine_of_another_version_or_gpu_is_named(
    half_artifact: Path, built: Path, on_sm89: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt_rtx

    description = read_description(half_artifact)
    here = tensorrt_rtx.__version__
    monkeypatch.setattr(tensorrt_rtx, "__version__", "9.9")
    with pytest.raises(EngineMissing, match=f"by tensorrt_rtx 9.9, but for sm89 in fp16 by tensorrt_rtx {here}: build"):
        find_engine(half_artifact, description)
    monkeypatch.setattr(tensorrt_rtx, "__version__", here)
    monkeypatch.setattr(tensorrt_graph, "gpu_target", lambda: "sm120")
    with pytest.raises(EngineMissing, match=r"for sm120 in fp16 .*, but for sm89 .*: build it, .* --target sm120"):
        find_engine(half_artifact, description)


def test_without_a_gpu_no_engine_is_looked_for(half_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_graph, "gpu_target", lambda: None)
    with pytest.raises(EngineError, match="no NVIDIA GPU here that could run an engine"):
        find_engine(half_artifact, read_description(half_artifact))


def test_without_tensorrt_it_is_said_how_to_install_it(half_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_graph, "gpu_target", lambda: "sm90")
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=r"tensorrt is not installed \(pip install --editable '\.\[tensorrt\]'\)"):
        find_engine(half_artifact, read_description(half_artifact))


def test_a_pairwise_network_has_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tensorrt_graph, "gpu_target", lambda: "sm90")
    with pytest.raises(EngineError, match="served without engines"):
        open_tensorrt(tmp_path, dataclasses.replace(DESCRIPTION, network="mast3r"))


def test_without_the_bindings_it_is_said_how_to_install_them(
    half_artifact: Path, built: Path, on_sm89: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineError, match=r"cuda-bindings is not installed \(pip install --editable"):
        open_tensorrt(half_artifact, read_description(half_artifact))


def test_the_real_bindings_say_why_there_is_no_gpu(half_artifact: Path, built: Path, on_sm89: None) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match="CUDA reaches no GPU here: CUDA driver version is insufficient"):
        open_tensorrt(half_artifact, read_description(half_artifact))


def test_what_the_real_runtime_refuses_is_one_sentence(
    half_artifact: Path, built: Path, on_sm89: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that there is a GPU is made up: TensorRT for RTX itself finds out that there is none."""
    fake_cuda(monkeypatch)
    with pytest.raises(EngineError, match=r"is not loaded, so build it again: tensorrt_rtx \S+ says .*Cuda") as refusal:
        open_tensorrt(half_artifact, read_description(half_artifact))
    assert "\n" not in str(refusal.value)


# ---------------------------------------------------------------- fake: how passes are put together


def fake_cuda(monkeypatch: pytest.MonkeyPatch, memory: int = 1 << 30) -> FakeCudaRuntime:
    runtime = FakeCudaRuntime(memory)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    return runtime


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCudaRuntime:
    monkeypatch.setattr(tensorrt_graph, "POLL", 0.0)
    return fake_cuda(monkeypatch)


@pytest.fixture
def trt(cuda: FakeCudaRuntime, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    module = FakeTensorRT(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    for room in (engine, tensorrt_graph):
        monkeypatch.setattr(room, "gpu_target", lambda: "sm90")
    return module


def fake_engine(folder: Path, description: Description, profiles: tuple[Profile, ...], side: int) -> Path:
    key = dataclasses.replace(wanted_engine(description, None), profiles=profiles)
    content = serialised(profiles, side)
    record = Record(key, hashlib.sha256(content).hexdigest(), len(content), {}, {}, {}, 1, 1, {}, 1.0, 1)
    return write_engine(folder, content, record)


@pytest.fixture
def graph(trt: FakeTensorRT, tmp_path: Path) -> TensorRTGraph:
    path = fake_engine(tmp_path, DESCRIPTION, PROFILES, SIDE)
    return TensorRTGraph(path, engine.read_record(path))


def check_answers(graph: TensorRTGraph, batch: int, views: int, seed: int = 0) -> None:
    given = inputs(batch, views, seed)
    for got, expected in zip(graph.run(given, silent), telling(*given), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.float32


@pytest.mark.parametrize("eager", [1, -1])
def test_fake_passes_of_any_shape_are_answered(graph: TensorRTGraph, cuda, eager: int) -> None:
    """Whether the GPU hurries with what it computes, or with what it copies."""
    cuda.eager = eager
    assert (graph.engine, graph.device, graph.precision) == ("tensorrt", "cuda", "fp16")
    for seed, (batch, views) in enumerate([(1, 2), (8, 2), (1, 3), (4, 6), (1, 2), (2, 5), (4, 6), (1, 2)]):
        check_answers(graph, batch, views, seed)


def test_fake_answers_stay_when_more_passes_follow(graph: TensorRTGraph) -> None:
    given = inputs(1, 3)
    answers = graph.run(given, silent)
    for seed in (1, 2, 3):
        check_answers(graph, 1, 3, seed)
    for got, expected in zip(answers, telling(*given), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_fake_a_shape_is_enqueued_then_captured_then_replayed(graph: TensorRTGraph, cuda, trt) -> None:
    for seed in range(4):
        check_answers(graph, 2, 3, seed)
    (context,) = trt.contexts
    assert context.runs == 2  # a plain one, and the one that was captured
    assert cuda.log.count("replayed") == 3


def test_fake_the_shapes_used_last_are_kept(graph: TensorRTGraph, trt) -> None:
    shapes = [(1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2)]
    assert len(shapes) == KEPT + 1
    check_answers(graph, 4, 6)  # the widest: from here on no memory is missing
    for shape in shapes:
        check_answers(graph, *shape)
    made = len(trt.contexts)
    for _ in range(2):
        for shape in shapes[1:]:
            check_answers(graph, *shape, seed=3)
    assert len(trt.contexts) == made
    check_answers(graph, *shapes[1])
    check_answers(graph, *shapes[0])
    assert len(trt.contexts) == made + 1
    check_answers(graph, *shapes[1])
    assert len(trt.contexts) == made + 1


def test_fake_buffers_are_allocated_once(graph: TensorRTGraph, cuda) -> None:
    """And what contexts compute in only for what a wider shape needs more."""
    check_answers(graph, 1, 2)
    narrow = cuda.used("device")
    check_answers(graph, 4, 6)
    wide = cuda.used("device")
    pinned = cuda.used("pinned")
    assert wide - narrow == SCRATCH * (4 * 6 - 1 * 2)
    for seed, (batch, views) in enumerate([(1, 2), (4, 6), (8, 2), (1, 3), (4, 6)]):
        check_answers(graph, batch, views, seed)
    assert (cuda.used("device"), cuda.used("pinned")) == (wide, pinned)


def test_fake_everything_is_given_back(graph: TensorRTGraph, cuda, trt, tmp_path: Path) -> None:
    for _ in range(3):
        check_answers(graph, 1, 2)
    own = TensorRTGraph(next(tmp_path.glob("*.engine")), engine.read_record(next(tmp_path.glob("*.engine"))))
    before = cuda.used("device")
    check_answers(own, 2, 2)
    assert cuda.used("device") > before
    trt.contexts.clear()
    del own
    gc.collect()
    assert len(cuda.streams) == 2
    check_answers(graph, 1, 2)
    assert cuda.used("device") < before


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_fake_what_is_not_captured_is_enqueued(graph: TensorRTGraph, cuda, call: str, caplog) -> None:
    cuda.failing[call] = Error.cudaErrorStreamCaptureInvalidated
    for seed in range(4):
        check_answers(graph, 2, 3, seed)
        check_answers(graph, 1, 2, seed)
    assert "replayed" not in cuda.log
    assert caplog.text.count("every pass is enqueued anew") == 1


def test_fake_tensorrt_for_rtx_captures_by_itself(cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT(cuda, name="tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    key = dataclasses.replace(wanted_engine(DESCRIPTION, "sm89"), profiles=PROFILES)
    content = serialised(PROFILES, SIDE)
    record = Record(key, hashlib.sha256(content).hexdigest(), len(content), {}, {}, {}, 1, 1, {}, 1.0, 1)
    graph = TensorRTGraph(write_engine(tmp_path, content, record), record)
    for seed in range(3):
        check_answers(graph, 2, 3, seed)
    assert "replayed" not in cuda.log
    assert trt.contexts[0].asked.cuda_graph_strategy is trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE


def test_fake_a_pass_computes_while_the_last_answer_is_copied(graph: TensorRTGraph, cuda, trt) -> None:
    """Two threads: the second's pass is there before the first's has computed; nothing mixes."""
    check_answers(graph, 1, 2)
    check_answers(graph, 1, 2)
    compute_stream = cuda.streams[0]
    del cuda.log[:]

    def patient(images: np.ndarray, references: np.ndarray):
        deadline = time.monotonic() + 10
        while len(cuda.log) < 4 and time.monotonic() < deadline:
            if sum(1 for _ in compute_stream.work) > 8:  # the second pass, too, has been asked for
                break
            time.sleep(0.001)
        return telling(images, references)

    trt.compute = patient
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: check_answers(graph, 1, 2, seed), range(2)))
    assert cuda.log.index("device to pinned") > cuda.log.index("computed")
    first_copied_out = cuda.log.index("device to pinned")
    assert cuda.log[:first_copied_out].count("computed") == 2


def test_fake_many_threads_get_their_own_answers(graph: TensorRTGraph) -> None:
    shapes = [(1, 2), (2, 3), (4, 6), (3, 2)]
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda n: check_answers(graph, *shapes[n % len(shapes)], seed=n), range(40)))


def test_fake_a_pass_that_is_not_wanted_does_not_begin(graph: TensorRTGraph, cuda) -> None:
    def cancel(_seconds: float) -> None:
        raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        graph.run(inputs(1, 2), cancel)
    assert "computed" not in cuda.log
    check_answers(graph, 1, 2)


def test_fake_a_pass_that_is_ended_is_waited_for(graph: TensorRTGraph, cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next would write where the GPU still reads."""
    monkeypatch.setattr(tensorrt_graph, "HEARTBEAT", 0.0)
    calls = []

    def cancel(seconds: float) -> None:
        calls.append(seconds)
        if len(calls) == 2:
            raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        graph.run(inputs(1, 2), cancel)
    assert cuda.log[-1] == "device to pinned"
    for seed in range(3):
        check_answers(graph, 1, 2, seed)


def test_fake_a_shape_beyond_the_profiles_is_refused(graph: TensorRTGraph) -> None:
    with pytest.raises(EngineError, match="takes 4 jobs of 5 views at once, not 5"):
        graph.run(inputs(5, 5), silent)
    with pytest.raises(EngineError, match="takes 2 to 6 views, not 7"):
        graph.run(inputs(1, 7), silent)
    images, _ = inputs(1, 5)
    with pytest.raises(
        EngineError, match=r"does not take references of the shape \(2,\): tensorrt .* beyond the profile"
    ):
        graph.run([images, np.arange(2)], silent)
    check_answers(graph, 4, 5)


def test_fake_too_little_memory_is_said_and_less_still_does(tmp_path: Path, trt: FakeTensorRT, cuda) -> None:
    path = fake_engine(tmp_path, DESCRIPTION, PROFILES, SIDE)
    graph = TensorRTGraph(path, engine.read_record(path))
    check_answers(graph, 2, 2)
    check_answers(graph, 2, 2)
    cuda.memory = cuda.used("device") - SCRATCH * 4 + SCRATCH * 10
    for _ in range(2):
        with pytest.raises(MemoryError, match="the GPU is out of memory: cudaMalloc"):
            graph.run(inputs(4, 3), silent)
        check_answers(graph, 2, 3)
    trt.out_of_memory_beyond = 5
    with pytest.raises(MemoryError, match="the GPU is out of memory: Error Code 2: OutOfMemory"):
        graph.run(inputs(4, 2), silent)
    left = cuda.used("device")
    check_answers(graph, 2, 2)
    assert cuda.used("device") == left + SCRATCH * 4, "nothing was kept that less could have needed"


def test_fake_too_little_memory_for_the_buffers_is_said(tmp_path: Path, trt: FakeTensorRT, cuda) -> None:
    cuda.memory = 5000
    path = fake_engine(tmp_path, DESCRIPTION, PROFILES, SIDE)
    with pytest.raises(MemoryError):
        TensorRTGraph(path, engine.read_record(path))
    gc.collect()
    assert (cuda.used("device"), cuda.used("pinned"), cuda.streams) == (0, 0, [])


@pytest.mark.parametrize("call", ["cudaEventQuery", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_fake_an_error_that_stays_is_a_lost_gpu(graph: TensorRTGraph, cuda, call: str) -> None:
    """Another is the call's own, and the next pass is answered."""
    check_answers(graph, 1, 2)
    cuda.failing[call] = Error.cudaErrorInvalidValue
    with pytest.raises(RuntimeError, match=f"CUDA refuses {call}: fake cudaErrorInvalidValue"):
        graph.run(inputs(4, 6), silent)
    check_answers(graph, 4, 6)
    cuda.lost = Error.cudaErrorIllegalAddress
    with pytest.raises(DeviceLost, match=r"does not answer any more: .*fake cudaErrorIllegalAddress"):
        graph.run(inputs(1, 2), silent)


def test_fake_a_gpu_lost_in_tensorrts_own_call_is_lost(graph: TensorRTGraph, cuda, trt) -> None:
    check_answers(graph, 1, 2)

    def die(stream: int) -> bool:
        cuda.last_error = cuda.lost = Error.cudaErrorIllegalAddress
        return False

    trt.contexts[0].execute_async_v3 = die
    graph._ready[next(iter(graph._ready))].ran = False
    with pytest.raises(DeviceLost):
        graph.run(inputs(1, 2), silent)


def test_fake_an_engine_with_other_tensors_than_its_record_is_refused(trt: FakeTensorRT, tmp_path: Path) -> None:
    path = fake_engine(tmp_path, DESCRIPTION, PROFILES, SIDE)
    record = engine.read_record(path)
    path.write_bytes(serialised(PROFILES[:1], SIDE))
    with pytest.raises(EngineError, match="other tensors or profiles than its record: build it again"):
        TensorRTGraph(path, record)
    path.write_bytes(b"no engine")
    with pytest.raises(EngineError, match=f"is not loaded, so build it again: tensorrt {VERSION} says Error Code 1"):
        TensorRTGraph(path, record)


def test_fake_an_engine_built_here_is_preferred(
    half_artifact: Path, built: Path, trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One built ahead of time serves as long as it is not there."""
    for module in (engine, tensorrt_graph):
        monkeypatch.setattr(module, "gpu_target", lambda: "sm89")
    description = read_description(half_artifact)
    assert find_engine(half_artifact, description, tmp_path)[0] == built
    path = fake_engine(tmp_path, description, plan_profiles(description), TINY_SQUARE)
    assert find_engine(half_artifact, description, tmp_path)[0] == path
    path.write_bytes(b"")
    assert find_engine(half_artifact, description, tmp_path)[0] == built


# ---------------------------------------------------------------- fake: a model on it


def job(views: int, seed: int = 0) -> Views:
    crops = np.random.default_rng(seed).integers(0, 256, (views, TINY_SQUARE, TINY_SQUARE, 3), dtype=np.uint8)
    image = np.zeros((6, 8, 3), np.uint8)
    return Views(tuple(View(f"{i}.jpg", image, (800, 600), crop=crop) for i, crop in enumerate(crops)))


def test_fake_a_model_runs_on_the_engine(
    artifact: Path, trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake engine computes by ONNX Runtime: so it is compared with the checkpoint, as a real one is, and a batch
    larger than a profile takes is several passes."""
    import onnxruntime

    theirs = onnxruntime.InferenceSession(artifact / GRAPH_FILE, providers=["CPUExecutionProvider"])
    batches = []

    def compute(images: np.ndarray, references: np.ndarray) -> list[np.ndarray]:
        batches.append(images.shape[:2])
        return theirs.run(None, {"images": images, "references": references})

    trt.compute = compute
    # Of a full-size network, one job at a time is what a CPU has memory for.
    description = dataclasses.replace(read_description(artifact), max_batch=1)
    folder = copied(artifact, tmp_path)
    description.write(folder)
    fake_engine(tmp_path, description, plan_profiles(description), TINY_SQUARE)
    monkeypatch.setattr(sessions, "gpu_target", lambda: "sm90")
    session = open_model(folder, engines=tmp_path)
    assert (session.info.engine, session.info.device, session.info.passed_over) == ("tensorrt", "cuda", ())
    assert session.info.max_batch == 8
    assert len(set(batches)) > 2, "it was compared with the checkpoint"
    del batches[:]
    answers = session.run([job(13, seed) for seed in range(5)], lambda _stage, _fraction: None)
    assert batches == [(2, 13), (2, 13), (1, 13)]
    reference = open_model(folder, engine="onnxruntime", threads=1)
    assert reference.info.max_batch == 1
    for seed in (0, 4):
        (expected,) = reference.run([job(13, seed)], lambda _stage, _fraction: None)
        assert isinstance(answers[seed], Prediction)
        np.testing.assert_allclose(answers[seed].points, expected.points, rtol=1e-3, atol=1e-4)


def test_fake_a_model_without_its_engine_says_how_to_build_it(
    artifact: Path, trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "gpu_target", lambda: "sm90")
    info = open_model(artifact, threads=1, engines=tmp_path).info
    assert info.engine == "onnxruntime"
    assert info.max_batch == read_description(artifact).max_batch
    missing = f"tensorrt: there is no engine of tiny for sm90 in fp32 by tensorrt {VERSION}: build it, python -m "
    assert info.passed_over[0].startswith(missing)


# ---------------------------------------------------------------- the room


def test_engines_are_run_without_torch() -> None:
    code = "import sys, export.tensorrt_graph; sys.exit('torch' in sys.modules or 'cuda' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(engine.__file__).parent.parent).returncode == 0


def test_tensors_lie_apart_and_aligned() -> None:
    places = lay_out([("a", (3, 5), np.float32), ("b", (), np.int64), ("c", (7,), np.float32)])
    assert [(place.offset, place.end) for place in places] == [(0, 60), (256, 264), (512, 540)]


# ---------------------------------------------------------------- on a GPU


@pytest.fixture(scope="module")
def real(half_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The artifact in fp16, for two or three views, and the folder of its engine, built by `tensorrt` for this GPU."""
    folder = tmp_path_factory.mktemp("engines")
    ensure_engine(half_artifact, None, folder)
    return half_artifact, folder


def photos(batch: int, views: int, seed: int = 0) -> list[np.ndarray]:
    shape = (batch, views, 3, TINY_SQUARE, TINY_SQUARE)
    images = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    return [images, np.arange(views, dtype=np.int64)]


@pytest.mark.gpu("tensorrt")
def test_a_real_engine_is_taken_and_answers_as_its_checkpoint(real: tuple[Path, Path]) -> None:
    """The comparison with the checkpoint is part of the opening: in between it is passed over."""
    artifact, folder = real
    session = open_model(artifact, engines=folder)
    assert (session.info.engine, session.info.device, session.info.max_batch) == ("tensorrt", "cuda", 8)
    for prediction in session.run([job(3, seed) for seed in range(9)], lambda _stage, _fraction: None):
        assert isinstance(prediction, Prediction)


@pytest.mark.gpu("tensorrt")
def test_a_real_replay_answers_as_the_plain_pass(real: tuple[Path, Path]) -> None:
    artifact, folder = real
    (graph,) = open_tensorrt(artifact, read_description(artifact), folder).values()
    plain = {(shape, seed): graph.run(photos(*shape, seed), silent) for shape in [(1, 2), (8, 3)] for seed in [1]}
    for seed in (2, 3, 1):
        for shape in [(1, 2), (8, 3)]:
            answers = graph.run(photos(*shape, seed), silent)
            for got, expected in zip(answers, plain.get((shape, seed), answers), strict=True):
                np.testing.assert_array_equal(got, expected)
                assert np.isfinite(got).all()
    assert all(ready.graph is not None for ready in graph._ready.values()), "every shape was captured"


@pytest.mark.gpu("tensorrt")
def test_real_passes_of_two_threads_do_not_mix(real: tuple[Path, Path]) -> None:
    artifact, folder = real
    (graph,) = open_tensorrt(artifact, read_description(artifact), folder).values()
    cases = [(1, 2, 0), (8, 3, 1), (1, 3, 2), (2, 2, 3)]
    expected = [graph.run(photos(*case), silent) for case in cases]

    def repeat(offset: int) -> None:
        for turn in range(40):
            index = (turn + offset) % len(cases)
            for got, want in zip(graph.run(photos(*cases[index]), silent), expected[index], strict=True):
                np.testing.assert_array_equal(got, want)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(repeat, range(3)))


@pytest.mark.gpu("tensorrt")
def test_a_real_gpu_without_memory_says_so(real: tuple[Path, Path]) -> None:
    with pytest.raises(MemoryError, match="the GPU is out of memory"):
        Cuda().do("cudaMalloc", 1 << 50)
    artifact, folder = real
    (graph,) = open_tensorrt(artifact, read_description(artifact), folder).values()
    assert len(graph.run(photos(1, 2), silent)) == 5
