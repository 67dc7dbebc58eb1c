"""TensorRT engines: which one, refused when it does not fit, whole or not there; built by TensorRT for RTX where it is
installed, which needs no GPU. What runs against a module that is none is called fake."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from export import engine, runtime
from export.contract import (
    ANSWERS_FILE,
    DECODER_FILE,
    DESCRIPTION_FILE,
    ENCODER_FILE,
    GRAPH_FILE,
    Description,
    read_description,
    sha256,
)
from export.engine import (
    MAX_BATCH,
    TARGETS,
    VIEWS_AT_ONCE,
    EngineError,
    Key,
    Profile,
    Record,
    build_engine,
    check_engine,
    choose_profile,
    ensure_engine,
    plan_profiles,
    read_record,
    wanted_engine,
    write_engine,
)
from tests.tiny import TINY_SQUARE, make_tiny_pair_artifact, make_tiny_splat_artifact

RTX = "tensorrt_rtx"
DESCRIPTION = Description(
    name="m", network="mvdust3r-plus", licence="none", square=224, paths=4, parameters=1, weights_sha256="a" * 64,
    files={GRAPH_FILE: "b" * 64}, precision="fp16",
)  # fmt: skip
KEY = Key("mvdust3r-plus", "a" * 64, "b" * 64, "fp16", RTX, "1.7", "sm89", plan_profiles(DESCRIPTION))


# ---------------------------------------------------------------- which engine


@given(least=st.integers(2, 12), more=st.integers(0, 60), paths=st.sampled_from([1, 4]))
def test_the_profiles_take_every_view_count_once(least: int, more: int, paths: int) -> None:
    description = dataclasses.replace(DESCRIPTION, min_views=least, max_views=least + more, paths=paths)
    profiles = plan_profiles(description)
    for views in range(least, least + more + 1):
        (index,) = (i for i, p in enumerate(profiles) if p.views[0] <= views <= p.views[1])
        profile = profiles[index]
        assert choose_profile(profiles, 1, views) == index
        assert profile.references[0] <= min(paths, views) <= profile.references[1]
        assert 1 <= profile.batch[1] <= MAX_BATCH
        assert profile.batch[1] == 1 or profile.batch[1] * views <= VIEWS_AT_ONCE
    for views in (least - 1, least + more + 1):
        with pytest.raises(EngineError, match=f"{least} to {least + more} views, not {views}"):
            choose_profile(profiles, 1, views)


def test_the_buckets_of_the_released_networks() -> None:
    profiles = plan_profiles(DESCRIPTION)
    assert [p.views for p in profiles] == [(2, 2), (3, 4), (5, 8), (9, 12), (13, 24)]
    assert [p.references for p in profiles] == [(2, 2), (3, 4), (4, 4), (4, 4), (4, 4)]
    with pytest.raises(EngineError, match="takes 2 jobs of 24 views at once, not 3"):
        choose_profile(profiles, 3, 24)


@pytest.mark.parametrize(
    "change",
    [
        {"network": "mvdust3r"},
        {"weights_sha256": "c" * 64},
        {"graph_sha256": "c" * 64},
        {"precision": "bf16"},
        {"builder": "tensorrt"},
        {"version": "1.8"},
        {"target": "sm120"},
        {"profiles": KEY.profiles[:-1]},
        {"profiles": (dataclasses.replace(KEY.profiles[0], batch=(1, 2)), *KEY.profiles[1:])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_difference_is_another_name_and_refused(tmp_path: Path, change: dict) -> None:
    other = dataclasses.replace(KEY, **change)
    assert (f"--target {other.target}" in other.command) == (other.builder == RTX)
    assert other.name != KEY.name
    path = made_up(tmp_path, KEY)
    check_engine(path, KEY)
    with pytest.raises(EngineError, match=f"is of .*: build it again, {other.command}$"):
        check_engine(path, other)


def made_up(folder: Path, key: Key, content: bytes = b"engine") -> Path:
    """Files of an engine that no builder made."""
    digest = hashlib.sha256(content).hexdigest()
    return write_engine(folder, content, Record(key, digest, len(content), {}, {}, {}, 1, 1, {}, 1.0, 1))


def test_a_truncated_altered_or_absent_engine_is_refused(tmp_path: Path) -> None:
    path = made_up(tmp_path, KEY)
    for content in (b"engin", b"enginE", b""):
        path.write_bytes(content)
        with pytest.raises(EngineError, match="cut off or altered: build it again"):
            check_engine(path, KEY)
    path.unlink()
    with pytest.raises(EngineError, match="build it again"):
        check_engine(path, KEY)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"key": {"profiles": [{}]}}', '{"key": 3}'])
def test_an_unreadable_record_is_refused(tmp_path: Path, content: str) -> None:
    path = made_up(tmp_path, KEY)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(EngineError, match=r"record of the engine .* cannot be read .*: build it again"):
        check_engine(path, KEY)


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    path = made_up(tmp_path, KEY)
    record = path.with_suffix(".json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 2}))
    with pytest.raises(EngineError, match="of format 2: build it again"):
        read_record(path)


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            made_up(tmp_path, KEY, bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- what is refused before a build


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(EngineError, match=f"for 'sm90', but for {', '.join(TARGETS)}"):
        wanted_engine(DESCRIPTION, "sm90")


@pytest.mark.parametrize(("target", "name"), [("sm89", RTX), (None, "tensorrt")])
def test_a_missing_builder_is_named(monkeypatch: pytest.MonkeyPatch, target: str | None, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    extra = name.replace("_", "-")
    with pytest.raises(EngineError, match=rf"{name} is not installed \(pip install --editable '\.\[{extra}\]'\)"):
        wanted_engine(DESCRIPTION, target)


def test_no_engine_is_made_of_a_pairwise_network() -> None:
    with pytest.raises(EngineError, match="served without engines"):
        wanted_engine(dataclasses.replace(DESCRIPTION, network="mast3r"), "sm89")


def fake_tensorrt(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Nothing but a version."""
    module = ModuleType("tensorrt")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)


@pytest.mark.parametrize("version", ["8.6.1", "10.13.3.9", "12.0.0"])
def test_a_fake_tensorrt_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake_tensorrt(monkeypatch, version)
    with pytest.raises(EngineError, match=f"TensorRT {version} is installed, and engines are built by 10.14 to 11"):
        wanted_engine(DESCRIPTION, None)


def test_without_a_gpu_a_fake_tensorrt_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch, "11.4.0.106")

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(runtime.ctypes, "CDLL", absent)
    with pytest.raises(EngineError, match="no NVIDIA GPU here: build ahead of time, for one of sm80"):
        wanted_engine(DESCRIPTION, None)


def test_with_a_fake_gpu_the_engine_is_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch, "11.4.0.106")

    class Driver:
        def __getattr__(self, name: str):
            return lambda *_: 0

        def cuDeviceGetAttribute(self, value, attribute: int, _device) -> int:
            value._obj.value = {75: 9, 76: 0}[attribute]
            return 0

    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _name: Driver())
    key = wanted_engine(DESCRIPTION, None)
    assert (key.builder, key.version, key.target) == ("tensorrt", "11.4.0.106", "sm90")


def test_a_full_disk_is_seen_before_the_build(
    half_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1000))
    with pytest.raises(EngineError, match=r"takes about 0\.0 GB of disk: .* has less"):
        build_engine(half_artifact, KEY, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- real builds, without a GPU


def test_an_engine_is_built_without_a_gpu(half_artifact: Path, built: Path) -> None:
    import tensorrt_rtx

    record = read_record(built)
    description = read_description(half_artifact)
    assert record.key == wanted_engine(description, "sm89")
    assert (record.key.builder, record.key.version) == (RTX, tensorrt_rtx.__version__)
    assert record.key.profiles == (Profile((1, 8), (2, 2), (2, 2)), Profile((1, 8), (3, 3), (3, 3)))
    assert (record.size, record.sha256) == (built.stat().st_size, sha256(built))
    assert record.inputs == {
        "images": {"type": "FLOAT", "shape": [-1, -1, 3, TINY_SQUARE, TINY_SQUARE]},
        "references": {"type": "INT64", "shape": [-1]},
    }
    assert {name: output["type"] for name, output in record.outputs.items()} == dict.fromkeys(
        ("points", "confidence", "scale", "rotation", "opacity"), "FLOAT"
    )
    assert record.outputs["points"]["shape"] == [-1, -1, TINY_SQUARE, TINY_SQUARE, 3]
    assert record.parity == description.parity
    assert sorted(path.name for path in built.parent.iterdir()) == sorted([built.name, f"{built.stem}.json"])


def test_attention_is_one_kernel(built: Path) -> None:
    """Thirteen of the network: one of its encoder block, six a decoder layer. None falls apart, in either profile."""
    record = read_record(built)
    assert (record.attentions, record.fused_attentions) == (26, 26)
    assert sum(record.kernels.values()) > 100


def test_an_engine_that_is_there_is_taken(
    half_artifact: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a broken one is built anew, whatever is broken about it."""
    folder = Path(shutil.copytree(built.parent, tmp_path / "engines"))
    builds = []
    monkeypatch.setattr(engine, "build_engine", lambda *arguments: builds.append(arguments) or built)
    assert ensure_engine(half_artifact, "sm89", folder) == folder / built.name
    assert not builds
    (folder / built.name).write_bytes(built.read_bytes()[:-1])
    assert ensure_engine(half_artifact, "sm89", folder) == built
    (folder / built.name).with_suffix(".json").unlink()
    assert ensure_engine(half_artifact, "sm89", folder) == built
    assert ensure_engine(half_artifact, "sm86", folder) == built
    assert len(builds) == 3


def test_a_progress_that_raises_ends_the_build(half_artifact: Path, built: Path, tmp_path: Path) -> None:
    seen = []

    def cancel(phase: str, fraction: float) -> None:
        seen.append((phase, fraction))
        raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        build_engine(half_artifact, read_record(built).key, tmp_path, cancel)
    assert len(seen) == 1
    assert 0 < seen[0][1] <= 1
    assert list(tmp_path.iterdir()) == []


def broken_artifact(artifact: Path, folder: Path, change) -> Path:
    """A copy whose graph is changed, and whose description says so."""
    copy = Path(shutil.copytree(artifact, folder / "broken", ignore=shutil.ignore_patterns("engines", "passed")))
    model = onnx.load(copy / GRAPH_FILE)
    change(model.graph)
    onnx.save(model, copy / GRAPH_FILE)
    description = dataclasses.replace(read_description(copy), files={GRAPH_FILE: sha256(copy / GRAPH_FILE)})
    description.write(copy)
    return copy


def foreign_operator(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "Gelu")
    node.op_type, node.name = "Swoosh", "the_odd_one"


def wrong_shape(graph: onnx.GraphProto) -> None:
    weight = next(tensor for tensor in graph.initializer if tensor.name.endswith("fc1.bias"))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[:7], weight.name))


def renamed_input(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.input[:] = ["photos" if name == "images" else name for name in node.input]
    graph.input[0].name = "photos"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (foreign_operator, r"does not take the node the_odd_one \(Swoosh\) of half: "),
        (wrong_shape, r"tensorrt_rtx does not .* half: "),
        (renamed_input, r"its inputs and outputs are \(\('photos', 'references'\)"),
    ],
)
def test_what_the_builder_does_not_take_is_named(
    half_artifact: Path, built: Path, tmp_path: Path, change, words: str
) -> None:
    broken = broken_artifact(half_artifact, tmp_path, change)
    with pytest.raises(EngineError, match=words) as refusal:
        ensure_engine(broken, "sm89", tmp_path / "engines")
    assert "\n" not in str(refusal.value)
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_graph_that_is_not_the_exported_one_is_not_built(half_artifact: Path, built: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(half_artifact, tmp_path / "copy", ignore=shutil.ignore_patterns("engines", "passed")))
    with (copy / GRAPH_FILE).open("ab") as file:
        file.write(b"\0")
    app = Typer()
    app.command()(engine.engine)
    result = CliRunner().invoke(app, [str(copy), "--target", "sm89"])
    assert result.exit_code == 2
    assert "error: half: the file model.onnx has changed since its export" in result.output
    assert {path.name for path in copy.iterdir()} == {GRAPH_FILE, ANSWERS_FILE, DESCRIPTION_FILE}


PIXELS, TOKENS, LENSES = (3, 64, 64), (4, 4, 32), (3, 3)
OTHER_GRAPHS = {
    "encoder": (make_tiny_pair_artifact, ENCODER_FILE, {"images": [(1, 3, 32, 48), (2, *PIXELS)]}),
    "decoder": (
        make_tiny_pair_artifact,
        DECODER_FILE,
        {"first_tokens": [(1, 2, 3, 32), (2, *TOKENS)], "second_tokens": [(1, 3, 2, 32), (2, *TOKENS)]},
    ),
    "gaussians": (
        make_tiny_splat_artifact,
        GRAPH_FILE,
        {"images": [(1, 2, *PIXELS), (1, 3, *PIXELS)], "intrinsics": [(1, 2, *LENSES), (1, 3, *LENSES)]},
    ),
}
"""Of what artifact which graph, and the least and the most of its inputs' shapes."""


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_GRAPHS)
def test_the_builder_takes_the_graphs_that_no_engines_are_made_of_yet(tmp_path: Path, name: str) -> None:
    """Whole, by NVIDIA's own parser and builder: of every batch, number of views and size between two shapes."""
    trt = pytest.importorskip(RTX)
    make, file, shapes = OTHER_GRAPHS[name]
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    assert parser.parse_from_file(str(make(tmp_path) / file)), parser.get_error(0)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    for tensor, (least, most) in shapes.items():
        profile.set_shape(tensor, least, most, most)
    assert config.add_optimization_profile(profile) == 0
    assert builder.build_serialized_network(network, config) is not None


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm86", "sm120"])
def test_other_targets_and_the_command(half_artifact: Path, built: Path, tmp_path: Path, target: str) -> None:
    app = Typer()
    app.command()(engine.engine)
    result = CliRunner().invoke(app, [str(half_artifact), "--target", target, "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"Engine for {target}, fp16" in result.output
    assert "26 of 26 attentions fused" in result.output
    (path,) = tmp_path.glob("*.engine")
    assert f"-{target}-fp16-" in path.name
    assert path.read_bytes() != built.read_bytes()
