"""An artifact's graph to TensorRT engines: `python -m export.engine ARTIFACT --target sm89`.

Of two builders, chosen here and nowhere else. TensorRT for RTX (`tensorrt_rtx`) builds ahead of time for a named target
on any machine: no GPU, no driver. TensorRT (`tensorrt`) builds for the GPU it finds, data-centre ones among them, and
measures on it. Both take the graph's types as they are (`export.precision`).

An engine is two files of one name: NAME.engine, and NAME.json, its record, written last: an engine with a record is
whole. All that is known of an engine without its GPU is in the record: the file itself tells neither target nor graph.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from export.contract import (
    ANSWERS_FILE,
    GRAPH_FILE,
    INPUTS,
    MAX_BATCH,
    MULTI_VIEW,
    OUTPUTS,
    ArtifactError,
    Description,
    check_files,
    read_description,
    sha256,
    words,
)
from export.runtime import gpu_target

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

log = logging.getLogger(__name__)

TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")
"""GPUs that can be built for ahead of time, by compute capability. TensorRT for RTX knows one more, sm75, but has no
float32 products for it, of which our heads are made."""
OLDEST, NEWEST = (10, 14), (11,)
"""Of `tensorrt`: older ones do not take every graph's types as they are, newer ones are not known."""
BUCKETS = (2, 4, 8, 12, 24)
"""View counts that engines are tuned for: a profile is for those above the last bucket up to its own."""
VIEWS_AT_ONCE = 48
"""Views of all jobs in a pass, at most: the memory that an engine takes follows from its widest profile."""

ENGINES_FOLDER = "engines"
"""In an artifact: where its engines lie that were built ahead of time."""
FORMAT = 1
ROOM = 1.25
"""Room that an engine needs on the disk, in sizes of its graph."""

Progress = Callable[[str, float], None]
"""`progress(phase, fraction)`: a phase of the build, in the builder's words, and its share done."""


class EngineError(ArtifactError):
    """No engine can be built, or this one cannot be used, for the reason given in one sentence."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Shapes that an engine takes, least and most, tuned for one job of the most views."""

    batch: tuple[int, int]
    views: tuple[int, int]
    references: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Key:
    """What an engine is of and for: one that differs in any of it is another engine."""

    network: str
    weights_sha256: str
    graph_sha256: str
    """Of the graph's files."""
    precision: str
    builder: str
    """`tensorrt_rtx` or `tensorrt`."""
    version: str
    """Of the builder."""
    target: str
    """Compute capability of the GPU, as in TARGETS."""
    profiles: tuple[Profile, ...]

    @property
    def name(self) -> str:
        """Of the engine's files: for the eye, and different for whatever differs."""
        shapes = hashlib.sha256(repr(self.profiles).encode()).hexdigest()[:6]
        parts = (self.weights_sha256[:12], self.graph_sha256[:12], f"{self.builder}-{self.version}")
        return "-".join((self.network, *parts, self.target, self.precision, f"v{self.profiles[-1].views[1]}", shapes))

    @property
    def command(self) -> str:
        """What builds it."""
        target = f" --target {self.target}" if self.builder == "tensorrt_rtx" else ""
        return f"python -m export.engine ARTIFACT{target}"


@dataclass(frozen=True, slots=True)
class Record:
    """The content of NAME.json."""

    key: Key
    sha256: str
    size: int
    """In bytes."""
    inputs: dict[str, dict[str, Any]]
    """Name -> its type and shape; -1 is dynamic."""
    outputs: dict[str, dict[str, Any]]
    parity: dict[str, Any]
    """Measured error of the graph against the checkpoint; an engine's own shows only where it runs."""
    attentions: int
    """Attentions of the graph, in every profile."""
    fused_attentions: int
    """Those of them that the builder plans as one kernel."""
    kernels: dict[str, int]
    """The plan: how often each kernel occurs in all profiles, without the numbers in its name."""
    seconds: float
    """The build took."""
    peak_memory: int
    """Of the process that built it, in bytes."""
    format: int = FORMAT


# ---------------------------------------------------------------- which engine


def wanted_engine(description: Description, target: str | None) -> Key:
    """The engine of an artifact for `target`, one of TARGETS; None: for this machine's GPU. Raises EngineError."""
    if description.network not in MULTI_VIEW:
        raise EngineError(f"{description.name} is served without engines: they are made of {' and '.join(MULTI_VIEW)}")
    builder = load_builder(target)
    target = target or gpu_target()
    if target is None:
        raise EngineError(f"there is no NVIDIA GPU here: build ahead of time, for one of {', '.join(TARGETS)}")
    graph = json.dumps(sorted((name, held) for name, held in description.files.items() if name != ANSWERS_FILE))
    return Key(
        network=description.network,
        weights_sha256=description.weights_sha256,
        graph_sha256=hashlib.sha256(graph.encode()).hexdigest(),
        precision=description.precision,
        builder=builder.__name__,
        version=builder.__version__,
        target=target,
        profiles=plan_profiles(description),
    )


def plan_profiles(description: Description) -> tuple[Profile, ...]:
    """One a bucket, which together take every view count of the model."""
    least, most = description.min_views, description.max_views
    buckets = [*(bucket for bucket in BUCKETS if least <= bucket < most), most]
    starts = [least, *(bucket + 1 for bucket in buckets[:-1])]
    return tuple(
        Profile(
            batch=(1, most_jobs(end)),
            views=(start, end),
            references=(min(description.paths, start), min(description.paths, end)),
        )
        for start, end in zip(starts, buckets, strict=True)
    )


def most_jobs(views: int) -> int:
    """Jobs of so many views that a pass on a GPU takes at most."""
    return max(1, min(MAX_BATCH, VIEWS_AT_ONCE // views))


def choose_profile(profiles: tuple[Profile, ...], batch: int, views: int) -> int:
    """Index of the profile for `batch` jobs of so many views. Raises EngineError where none is, and says what fits."""
    for index, profile in enumerate(profiles):
        if profile.views[0] <= views <= profile.views[1]:
            if not profile.batch[0] <= batch <= profile.batch[1]:
                raise EngineError(f"the engine takes {profile.batch[1]} jobs of {views} views at once, not {batch}")
            return index
    raise EngineError(f"the engine takes {profiles[0].views[0]} to {profiles[-1].views[1]} views, not {views}")


def load_builder(target: str | None) -> ModuleType:
    """The module that builds for `target`, or, None, for this machine's GPU. Raises EngineError."""
    if target is not None and target not in TARGETS:
        raise EngineError(f"engines cannot be built ahead of time for {target!r}, but for {', '.join(TARGETS)}")
    name = "tensorrt" if target is None else "tensorrt_rtx"
    try:
        builder = importlib.import_module(name)
    except ImportError as error:
        extra = name.replace("_", "-")
        raise EngineError(f"{name} is not installed (pip install --editable '.[{extra}]'): {error}") from None
    if name == "tensorrt":
        version = tuple(int(part) for part in builder.__version__.split(".")[:2])
        if version < OLDEST or version[:1] > NEWEST:
            known = f"{'.'.join(map(str, OLDEST))} to {NEWEST[0]}"
            raise EngineError(f"TensorRT {builder.__version__} is installed, and engines are built by {known}")
    return builder


# ---------------------------------------------------------------- building


def ensure_engine(artifact: Path, target: str | None, folder: Path, progress: Progress | None = None) -> Path:
    """The engine of an artifact in `folder`; built, where it is not there, or not as its record says.

    target: one of TARGETS; None: this machine's GPU. Raises EngineError and ArtifactError; OSError for a full disk.
    """
    description = read_description(artifact)
    key = wanted_engine(description, target)
    path = folder / f"{key.name}.engine"
    if path.exists():
        try:
            check_engine(path, key)
            return path
        except EngineError as error:
            log.warning("Building an engine anew: %s", error)
    return build_engine(artifact, key, folder, progress)


def build_engine(artifact: Path, key: Key, folder: Path, progress: Progress | None = None) -> Path:
    """Build the engine `key` of an artifact, whole or not at all, into `folder`; its path.

    Takes minutes and several times the memory of the weights. `progress` may raise: so a build is ended.
    Raises EngineError where the builder refuses, in its words; ArtifactError; OSError where the disk is full.
    """
    description = read_description(artifact)
    need = int(ROOM * check_files(artifact, description))
    folder.mkdir(parents=True, exist_ok=True)
    if need > shutil.disk_usage(folder).free:
        raise EngineError(
            f"an engine of {description.name} takes about {need / 1e9:.1f} GB of disk: {folder.name} has less"
        )
    trt = importlib.import_module(key.builder)
    started = time.monotonic()
    heard = _Heard()
    builder = trt.Builder(_logger(trt, heard))
    network, parser = _parse(trt, builder, artifact / GRAPH_FILE, description)
    config = builder.create_builder_config()
    # A product in TF32 is as coarse as one in fp16: what the graph has in float32 is to stay it.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if key.builder == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, key.target.upper()), 0)
    for profile in key.profiles:
        _add_profile(builder, config, profile, description)
    ended: list[BaseException] = []
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress, ended)
    cache = folder / f"{key.builder}-{key.version}-{key.target}.timing"
    if key.builder == "tensorrt":
        _load_timing_cache(config, cache)
    content = builder.build_serialized_network(network, config)
    del parser
    if ended:
        raise ended[0]
    if content is None:
        reason = heard.last_error or "it does not say why"
        raise EngineError(f"{key.builder} does not build {description.name}: {reason}")
    softmax = sum(network.get_layer(i).type == trt.LayerType.SOFTMAX for i in range(network.num_layers))
    record = Record(
        key=key,
        sha256=hashlib.sha256(content).hexdigest(),
        size=content.nbytes,
        inputs=_tensors(network.get_input, network.num_inputs),
        outputs=_tensors(network.get_output, network.num_outputs),
        parity=description.parity,
        attentions=softmax * len(key.profiles),
        fused_attentions=sum(count for name, count in heard.kernels.items() if "mha" in name.lower()),
        kernels=dict(heard.kernels.most_common()),
        seconds=round(time.monotonic() - started, 1),
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    path = write_engine(folder, content, record)
    if key.builder == "tensorrt":
        _replace(cache, config.get_timing_cache().serialize())
    return path


def write_engine(folder: Path, content: Buffer, record: Record) -> Path:
    """Write an engine and then its record, each whole or not at all; the engine's path. Raises OSError."""
    path = folder / f"{record.key.name}.engine"
    path.with_suffix(".json").unlink(missing_ok=True)
    _replace(path, content)
    _replace(path.with_suffix(".json"), f"{json.dumps(asdict(record), indent=1)}\n".encode())
    return path


def _replace(path: Path, content: Buffer) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _tensors(get: Callable[[int], Any], count: int) -> dict[str, dict[str, Any]]:
    tensors = (get(index) for index in range(count))
    return {t.name: {"type": str(t.dtype).rpartition(".")[2], "shape": list(t.shape)} for t in tensors}


def _parse(trt: ModuleType, builder: Any, graph: Path, description: Description) -> tuple[Any, Any]:
    """The network of a graph and its parser, which owns the weights. Raises EngineError."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(graph)):
        error = parser.get_error(0)
        node = f"the node {error.node_name()} ({error.node_operator()}) of " if error.node_name() else ""
        raise EngineError(f"{trt.__name__} does not take {node}{description.name}: {_first_line(error.desc())}")
    names = (
        tuple(network.get_input(i).name for i in range(network.num_inputs)),
        tuple(network.get_output(i).name for i in range(network.num_outputs)),
    )
    # A profile for an input that is not there would be taken without a word.
    if names != (INPUTS, OUTPUTS):
        raise EngineError(f"{description.name}: its inputs and outputs are {names}, not {(INPUTS, OUTPUTS)}")
    return network, parser


def _add_profile(builder: Any, config: Any, profile: Profile, description: Description) -> None:
    shapes = builder.create_optimization_profile()
    (least, batch), (start, end), (few, many) = profile.batch, profile.views, profile.references
    pixels = (3, description.square, description.square)
    shapes.set_shape(INPUTS[0], (least, start, *pixels), (1, end, *pixels), (batch, end, *pixels))
    shapes.set_shape(INPUTS[1], (few,), (many,), (many,))
    if not shapes or config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"{description.name}: no engine takes shapes such as {profile}")


class _Heard:
    """What is kept of a builder's many words."""

    def __init__(self) -> None:
        self.last_error = ""
        self.kernels: Counter[str] = Counter()

    def hear(self, message: str) -> None:
        for name, kind in re.findall(r"^Name: (.*?), LayerType: (\w+)", message, re.MULTILINE):
            if kind not in ("signal", "wait"):
                # node_MatMul_12 [profile 3]+node_MatMul_14 [profile 3]_myl9_226: numbers say which, not what.
                bare = re.sub(r"_myl\d+_\d+$| \[profile \d+\]", "", name)
                bare = re.sub(r"\^\d+i|_?\d+(?=[_+ ]|$)", "", bare).strip("_")
                self.kernels[f"{kind} {bare}"] += 1


def _logger(trt: ModuleType, heard: _Heard) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                heard.last_error = _first_line(message)
            elif "LayerType: " in message:
                heard.hear(message)

    return Logger()


def _monitor(trt: ModuleType, progress: Progress, ended: list[BaseException]) -> Any:
    """Tells `progress` of every step; what it raises is kept in `ended` and ends the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self.steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress(phase_name, (step + 1) / max(self.steps.get(phase_name, 1), 1))
            except BaseException as error:  # it cannot pass through the builder
                ended.append(error)
            return not ended

    return Monitor()


def _load_timing_cache(config: Any, path: Path) -> None:
    """What was measured on such a GPU before; where the file is broken, it is measured anew."""
    kept = path.read_bytes() if path.exists() else b""
    config.set_timing_cache(config.create_timing_cache(kept) or config.create_timing_cache(b""), ignore_mismatch=False)


def _first_line(message: str) -> str:
    return (message.strip().splitlines() or [""])[0]


# ---------------------------------------------------------------- checking


def read_record(path: Path) -> Record:
    """The record of the engine at `path`. Raises EngineError."""
    try:
        content = json.loads(path.with_suffix(".json").read_bytes())
        key = content.pop("key")
        profiles = tuple(Profile(**{name: tuple(pair) for name, pair in p.items()}) for p in key.pop("profiles"))
        record = Record(key=Key(profiles=profiles, **key), **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError(
            f"the record of the engine {path.name} cannot be read ({words(error)}): build it again"
        ) from None
    if record.format != FORMAT:
        raise EngineError(f"the record of the engine {path.name} is of format {record.format}: build it again")
    return record


def check_engine(path: Path, key: Key) -> Record:
    """The record of the engine at `path`, once it is the one of `key`, and whole. Raises EngineError: what to do."""
    record = read_record(path)
    for part in fields(Key):
        found, expected = getattr(record.key, part.name), getattr(key, part.name)
        if found != expected:
            what = part.name.removesuffix("_sha256")
            difference = "other profiles" if what == "profiles" else f"{what} {found:.16}, not {expected:.16}"
            raise EngineError(f"the engine {path.name} is of {difference}: build it again, {key.command}")
    if not path.is_file() or path.stat().st_size != record.size or sha256(path) != record.sha256:
        raise EngineError(f"the engine {path.name} is not what was built, but cut off or altered: build it again")
    return record


# ---------------------------------------------------------------- the command


def engine(
    artifact: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A folder that was exported.")],
    target: Annotated[
        list[str] | None, typer.Option(help=f"GPUs to build for, of {', '.join(TARGETS)}; none: this machine's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=f"Folder for the engines; else ARTIFACT/{ENGINES_FOLDER}.")
    ] = None,
) -> None:
    """Build TensorRT engines of an exported model, where they are not there yet."""
    try:
        build_all(artifact, target or [None], output)
    except (ArtifactError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def build_all(artifact: Path, targets: Sequence[str | None], folder: Path | None = None) -> None:
    """Ensure one engine a target, and say so, line by line. Raises as `ensure_engine` does."""
    for target in targets:
        path = ensure_engine(artifact, target, folder or artifact / ENGINES_FOLDER)
        record = read_record(path)
        typer.echo(
            f"Engine for {record.key.target}, {record.key.precision}: {record.size / 2**20:.0f} MiB, "
            f"{record.seconds:.0f} s, peak memory {record.peak_memory / 2**30:.1f} GiB, "
            f"{record.fused_attentions} of {record.attentions} attentions fused: {path}"
        )


if __name__ == "__main__":
    typer.run(engine)
