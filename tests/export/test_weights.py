"""Weights to a served model, against a small hub on this machine: no other address is contacted."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from export import onnx_graph, weights
from export.contract import (
    DECODER_FILE,
    DESCRIPTION_FILE,
    ENCODER_FILE,
    GRAPH_FILE,
    NETWORKS,
    WEIGHTS_FILE,
    Description,
    read_description,
)
from export.sessions import list_models
from export.weights import RELEASED, SOURCE_FILE, Sizes, WeightsError, add, download
from model import checkpoint
from model.checkpoint import load, upstream_name
from model.config import ModelConfig
from model.mvdust3r import MVDUSt3R
from service.models import Registry
from tests.tiny import (
    NARROW,
    TINY_CONFIG,
    TINY_SPLAT_SQUARE,
    make_tiny_artifact,
    make_tiny_pair_artifact,
    make_tiny_splat_artifact,
    tiny_network,
    tiny_pair_network,
    tiny_splat_network,
)

NAME = "mvdust3r-plus"
COMMIT = "c0ffee" * 6 + "abcd"
PLUS = replace(TINY_CONFIG, encoder_heads=4, decoder_heads=4)
"""Sizes whose head counts the rule for foreign checkpoints finds."""
OPTIMISER_BYTES = 24 * 2**20
"""The hub's client writes pieces of 10 MiB: a smaller file would never be there in part."""


def upstream_file(config: ModelConfig = PLUS, optimiser_bytes: int = 0) -> bytes:
    """A checkpoint as upstream's training writes it."""
    state = {upstream_name(name): tensor for name, tensor in tiny_network(config).state_dict().items()}
    optimiser = {"state": {0: {"exp_avg": torch.zeros(optimiser_bytes // 4)}}}
    return saved({"model": state, "args": argparse.Namespace(lr=1e-4), "optimizer": optimiser})


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class Hub:
    """What the Hugging Face hub answers for one file. As there, the bytes come from another host, by ranges."""

    def __init__(self, content: bytes) -> None:
        self.hold(content)
        self.stall_after = len(content)
        """Bytes of an answer after which nothing more comes."""
        self.asked: list[tuple[str, str]] = []
        """Method and path."""
        self.ranges: list[str] = []
        """Of the requests for bytes."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.asked.append((self.command, self.path))
                repository = RELEASED[NAME].repository
                known = [f"/{repository}/resolve/{revision}/{RELEASED[NAME].file}" for revision in ("main", COMMIT)]
                self.send_response(302 if self.path in known else 404)
                if self.path not in known:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/bytes")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Linked-Etag", f'"{hub.etag}"')
                self.send_header("X-Linked-Size", str(hub.size))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                if self.path != "/bytes":
                    self.do_HEAD()
                    return
                asked = self.headers.get("Range", "")
                hub.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(hub.content) - start))
                self.send_header("Content-Range", f"bytes {start}-{len(hub.content) - 1}/{len(hub.content)}")
                self.end_headers()
                self.wfile.write(hub.content[start : hub.stall_after])
                if hub.stall_after < len(hub.content):
                    self.wfile.flush()
                    self.connection.recv(1)  # until the client has gone

            def log_message(self, *arguments: object) -> None:
                """Not to the tests' output."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def hold(self, content: bytes) -> None:
        """Have this file, and state the truth about it."""
        self.content = content
        self.size = len(content)
        self.etag = hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a small MV-DUSt3R+ under its released name, and nothing beyond this machine."""
    look_up = socket.getaddrinfo
    looked_up: set[str] = set()

    def only_here(host: str, *arguments: object, **options: object) -> object:
        looked_up.add(host)
        return look_up(host if host in ("127.0.0.1", "localhost") else "", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    hub = Hub(upstream_file())
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()
    assert looked_up <= {"127.0.0.1", "localhost"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names exported: in no time, always the same tiny artifact."""
    names = []

    def export(
        network: MVDUSt3R, folder: Path, name: str, licence: str, square: int | None, max_views: int | None
    ) -> Description:
        made = make_tiny_artifact(folder.parent, name).replace(folder)
        described = read_description(made)
        sizes = {"square": square or described.square, "max_views": max_views or described.max_views}
        described = replace(described, licence=licence, **sizes)
        described.write(made)
        names.append(name)
        return described

    monkeypatch.setattr(onnx_graph, "export_onnx", export)
    return names


def fetch(hub: Hub, models: Path, name: str = NAME, accept: bool = True) -> bool:
    return download(name, models, lambda released: accept, hub.url)


def never_asked(released: object) -> bool:
    raise AssertionError("asked")


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    found = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.mark.slow
def test_a_released_name_becomes_the_served_default(hub: Hub, models: Path) -> None:
    assert fetch(hub, models)
    registry = Registry(models)
    assert [info.name for info in registry.infos()] == ["geometry", NAME]
    assert registry.infos()[1].licence == "CC BY-NC 4.0 and CC BY-NC-SA 4.0"
    assert registry.default() == NAME
    registry.open(NAME).warm_up()
    modes = {(path.name, path.stat().st_mode) for path in (models / NAME).iterdir() if path.is_file()}
    assert len({mode for _, mode in modes}) == 1, modes
    kept = load(models / NAME / WEIGHTS_FILE)
    assert read_description(models / NAME).weights_sha256 == onnx_graph.weights_sha256(kept)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), tiny_network(PLUS).parameters(), strict=True))
    assert json.loads((models / NAME / SOURCE_FILE).read_text()) == {
        "file": "checkpoints/MVDp_s2.pth",
        "sha256": hub.etag,
        "size": len(hub.content),
        "licence": "CC BY-NC 4.0 and CC BY-NC-SA 4.0",
        "repository": "Zhenggang/MV-DUSt3R",
        "commit": COMMIT,
    }
    assert sorted(path.name for path in models.iterdir()) == ["default", NAME]


def test_a_second_run_does_nothing_twice(hub: Hub, models: Path, exports: list[str]) -> None:
    assert fetch(hub, models)
    asked, files = len(hub.asked), everything(models / NAME)
    Registry(models).set_default("geometry")
    assert not download(NAME, models, never_asked, hub.url)
    assert (len(hub.asked), everything(models / NAME), exports) == (asked, files, [NAME])
    assert Registry(models).default() == NAME


def test_a_declined_licence_fetches_nothing(hub: Hub, models: Path) -> None:
    with pytest.raises(WeightsError, match="licence was not accepted"):
        fetch(hub, models, accept=False)
    assert hub.asked == []
    assert list(models.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("constructor", "square", "long_side"),
    [(None, 224, None), ("Net(patch_embed_cls='ManyAR_PatchEmbed', img_size=(128, 128))", None, 128)],
    ids=["as released", "as its arguments tell"],
)
def test_a_pairwise_network_of_ones_own_is_served(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    constructor: str | None,
    square: int | None,
    long_side: int | None,
) -> None:
    """The graphs, which are of any size, are those that were exported already: that they are its own is checked."""
    graphs = make_tiny_pair_artifact(tmp_path)

    def copied(_network: object, folder: Path) -> None:
        for file in (ENCODER_FILE, DECODER_FILE):
            shutil.copy(graphs / file, folder / file)

    monkeypatch.setattr(onnx_graph, "write_pair_graphs", copied)
    network = tiny_pair_network()
    state = {upstream_name(name, network.config): tensor for name, tensor in network.state_dict().items()}
    torch.save({"model": state, "args": argparse.Namespace(model=constructor)}, tmp_path / "mine.pth")
    assert add(tmp_path / "mine.pth", models, "mine")
    registry = Registry(models)
    info = registry.infos()[1]
    assert (info.name, info.network, registry.default()) == ("mine", "dust3r", "mine")
    assert (info.square, info.long_side) == (square, long_side)
    registry.open("mine").warm_up()


def test_a_gaussian_network_of_ones_own_is_served(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In upstream's layout, that of Lightning. Its tensors do not tell for how many photos it was trained."""
    splat_graph = make_tiny_splat_artifact(tmp_path) / GRAPH_FILE
    for constant, width in NARROW.items():
        monkeypatch.setattr(f"model.dpt.{constant}", width)
    network = tiny_splat_network()
    state = {f"encoder.{upstream_name(n, network.config)}": tensor for n, tensor in network.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "mine.ckpt")
    sizes = Sizes(square=TINY_SPLAT_SQUARE, max_views=3)
    monkeypatch.setattr(onnx_graph, "write_splat_graph", lambda _network, path, _square: shutil.copy(splat_graph, path))
    assert add(tmp_path / "mine.ckpt", models, sizes=sizes)
    registry = Registry(models)
    info = registry.infos()[1]
    assert (info.name, info.network, info.square, info.max_views) == ("mine", "noposplat", TINY_SPLAT_SQUARE, 3)
    registry.open("mine").warm_up()


def test_what_tensors_do_not_tell_is_known_of_released_ones(
    hub: Hub, models: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RELEASED, NAME, replace(RELEASED[NAME], sizes=Sizes(max_views=5)))
    assert fetch(hub, models)
    assert list_models(models)[0].max_views == 5


def test_what_nobody_released_is_not_fetched(hub: Hub, models: Path) -> None:
    assert all(released.network in NETWORKS for released in RELEASED.values())
    with pytest.raises(WeightsError, match="no released checkpoint 'gpt'"):
        download("gpt", models, never_asked, hub.url)
    assert hub.asked == []
    assert not models.exists()


def test_a_killed_download_goes_on_where_it_stopped(hub: Hub, models: Path, exports: list[str]) -> None:
    """And whoever accepted the licence is not asked again."""
    hub.hold(upstream_file(optimiser_bytes=OPTIMISER_BYTES))
    hub.stall_after = 15 * 2**20
    command = (sys.executable, "-m", "export.weights", "download", NAME, "--models", str(models))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(weights.__file__).parents[1],
        env=os.environ | {"HF_ENDPOINT": hub.url},
        text=True,
    ) as process:
        process.stdin.write("y\n")
        process.stdin.flush()
        partial = models / f".{NAME}.partial" / "download" / "MVDp_s2.pth.partial"
        while not (partial.exists() and partial.stat().st_size >= 8 * 2**20):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        shown = process.stdout.read()
    assert "CC BY-NC 4.0" in shown
    assert "https://creativecommons.org/licenses/by-nc/4.0/" in shown
    fetched = partial.stat().st_size
    assert list_models(models) == []
    hub.stall_after = len(hub.content)
    assert download(NAME, models, never_asked, hub.url)
    assert hub.ranges == ["", f"bytes={fetched}-"]
    assert [path for method, path in hub.asked if method == "HEAD"] == [
        f"/Zhenggang/MV-DUSt3R/resolve/main/{RELEASED[NAME].file}"
    ]
    assert sorted(path.name for path in models.iterdir()) == ["default", NAME]


@contextmanager
def killed_at(place: object, function: str) -> Iterator[None]:
    """The process ends instead of calling the function."""

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, function, killed)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize(
    ("place", "function", "conversions", "exported"),
    [
        (checkpoint, "save", 1, 1),  # the download is whole
        (onnx_graph, "export_onnx", 0, 1),  # the weights are in our form
        (weights, "_install", 0, 0),  # the artifact is whole
        (weights, "write_default", 0, 0),  # it is among the models
    ],
)
def test_killed_between_steps_finished_ones_are_kept(
    hub: Hub,
    models: Path,
    exports: list[str],
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    function: str,
    conversions: int,
    exported: int,
) -> None:
    with killed_at(place, function):
        fetch(hub, models)
    asked = len(hub.asked)
    exports.clear()
    converted: list[Path] = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda network, path: (converted.append(path), save(network, path)))
    download(NAME, models, never_asked, hub.url)
    assert (len(hub.asked), len(converted), len(exports)) == (asked, conversions, exported)
    assert Registry(models).default() == NAME
    assert {DESCRIPTION_FILE, WEIGHTS_FILE, SOURCE_FILE} <= set(os.listdir(models / NAME))
    assert sorted(path.name for path in models.iterdir()) == ["default", NAME]


def test_killed_while_the_artifact_is_put_together(hub: Hub, models: Path, exports: list[str]) -> None:
    with killed_at(weights, "_install"):
        fetch(hub, models)
    work = models / f".{NAME}.partial"
    (work / WEIGHTS_FILE).rename(work / "artifact" / WEIGHTS_FILE)
    assert list_models(models) == []
    assert download(NAME, models, never_asked, hub.url)
    assert (models / NAME / WEIGHTS_FILE).exists()


def test_work_under_way_is_not_served(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_tiny_artifact(models, "tiny").rename(models / ".tiny")
    assert list_models(models) == []
    assert caplog.text == ""
    with pytest.raises(KeyError):
        Registry(models).open("tiny")


@pytest.mark.parametrize(("etag", "surplus"), [("0" * 64, 0), (None, 1), (None, -1)])
def test_a_file_that_is_not_what_the_hub_states_is_removed(
    hub: Hub, models: Path, etag: str | None, surplus: int
) -> None:
    hub.etag = etag or hub.etag
    hub.size += surplus
    with pytest.raises(WeightsError, match="size and SHA-256"):
        fetch(hub, models)
    assert len(hub.ranges) == 1
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("etag", ["", "0" * 40])
def test_a_file_without_a_stated_hash_is_not_fetched(hub: Hub, models: Path, etag: str) -> None:
    hub.etag = etag
    with pytest.raises(WeightsError, match="states no size and SHA-256"):
        fetch(hub, models)
    assert hub.ranges == []
    assert list(models.iterdir()) == []


def test_another_network_under_a_released_name_is_refused(hub: Hub, models: Path) -> None:
    hub.hold(upstream_file(replace(PLUS, paths=1)))
    with pytest.raises(WeightsError, match="holds mvdust3r, and only mvdust3r-plus can"):
        fetch(hub, models)
    assert list(models.iterdir()) == []


def test_a_name_that_the_hub_lost(hub: Hub, models: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not give Zhenggang/MV-DUSt3R/checkpoints/MVD\.pth: 404"):
        fetch(hub, models, "mvdust3r")
    assert list(models.iterdir()) == []


def test_a_hub_out_of_reach(models: Path) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="could not be fetched from the hub"):
            download(NAME, models, lambda released: True, url)
    assert list(models.iterdir()) == []


def test_a_full_disk_is_said_before_the_download(
    hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch, exports: list[str]
) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, len(hub.content)))
    with pytest.raises(OSError, match=r"needs 0\.0 GB of disk"):
        fetch(hub, models)
    assert hub.ranges == []
    assert list_models(models) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2 * len(hub.content)))
    assert fetch(hub, models)


def test_a_local_file_becomes_the_default(tmp_path: Path, models: Path, exports: list[str]) -> None:
    file = tmp_path / "My Weights.v2.pth"
    file.write_bytes(upstream_file())
    assert add(file, models, licence="mine")
    assert not add(file, models)
    assert [(info.name, info.licence) for info in list_models(models)] == [("my-weights-v2", "mine")]
    assert list_models(models)[0].max_views == 24
    assert Registry(models).default() == "my-weights-v2"
    assert add(models / "my-weights-v2" / WEIGHTS_FILE, models, "again", sizes=Sizes(max_views=5))
    assert {info.name: info.max_views for info in list_models(models)} == {"my-weights-v2": 24, "again": 5}
    assert exports == ["my-weights-v2", "again"]
    assert file.exists()


def test_a_model_is_never_replaced(hub: Hub, tmp_path: Path, models: Path, exports: list[str]) -> None:
    for config, file in ((PLUS, "a.pth"), (replace(PLUS, paths=1), "b.pth")):
        (tmp_path / file).write_bytes(upstream_file(config))
    add(tmp_path / "a.pth", models, NAME)
    before = everything(models)
    with pytest.raises(WeightsError, match="there is another model"):
        add(tmp_path / "b.pth", models, NAME)
    with pytest.raises(WeightsError, match="there is another model"):
        fetch(hub, models)
    assert everything(models) == before
    assert hub.asked == []


def test_what_another_file_left_is_not_gone_on_with(tmp_path: Path, models: Path, exports: list[str]) -> None:
    for config, file in ((PLUS, "a.pth"), (replace(PLUS, paths=1), "b.pth")):
        (tmp_path / file).write_bytes(upstream_file(config))
    with killed_at(onnx_graph, "export_onnx"):
        add(tmp_path / "a.pth", models, "mine")
    add(tmp_path / "b.pth", models, "mine")
    assert load(models / "mine" / WEIGHTS_FILE).config.network == "mvdust3r"


@pytest.mark.parametrize("name", ["geometry", "default", "../x", ".x", "X"])
def test_names_that_cannot_be(tmp_path: Path, models: Path, name: str) -> None:
    (tmp_path / "a.pth").write_bytes(upstream_file())
    with pytest.raises(WeightsError, match="name"):
        add(tmp_path / "a.pth", models, name)
    assert not models.exists()


@pytest.mark.parametrize("name", ["absent.pth", "."])
def test_a_file_that_is_not_there(tmp_path: Path, models: Path, name: str) -> None:
    result = CliRunner().invoke(weights.app, ["add", str(tmp_path / name), "--models", str(models)])
    assert (result.exit_code, result.stderr) == (2, f"error: there is no file {tmp_path / name}\n")
    assert not models.exists()


def test_one_at_a_time(tmp_path: Path, models: Path) -> None:
    (tmp_path / "a.pth").write_bytes(upstream_file())
    models.mkdir(parents=True)
    lock = os.open(models, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(WeightsError, match="another model is being added"):
        add(tmp_path / "a.pth", models)
    os.close(lock)


class Malicious:
    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


def not_finite() -> bytes:
    network = tiny_network(PLUS)
    network.encoder.norm.weight.data[3] = float("nan")
    return saved({upstream_name(name): tensor for name, tensor in network.state_dict().items()})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: saved({"model": {}, "args": Malicious()}), "no file's code is run"),
        (lambda: upstream_file()[:-5000], "not a readable checkpoint"),
        (not_finite, "values that are not finite"),
        (lambda: saved({"layer1.0.conv1.weight": torch.ones(3)}), "no network known here"),
        (lambda: b"<html>Sign in</html>", "not a readable checkpoint|refused"),
        (lambda: b"", "not a readable checkpoint"),
    ],
    ids=["malicious", "truncated", "nan", "foreign", "text", "empty"],
)
def test_what_is_no_sound_checkpoint_leaves_nothing(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, content: Callable[[], bytes], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(content())
    result = CliRunner().invoke(weights.app, ["add", "bad.pth", "--models", str(models)])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.match(rf"error: bad\.pth.*({words})", line)
    assert list(models.iterdir()) == []
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_the_command_asks_and_takes_no_for_an_answer(models: Path, answer: str) -> None:
    result = CliRunner().invoke(weights.app, ["download", NAME, "--models", str(models)], input=answer)
    assert result.exit_code == 2
    assert "CC BY-NC-SA 4.0 (non-commercial use only" in result.stdout
    assert "licence was not accepted" in result.stderr
    assert list(models.iterdir()) == []


def test_a_stopped_command_says_what_is_kept(
    tmp_path: Path, models: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.pth").write_bytes(upstream_file())
    command = ["add", str(tmp_path / "mine.pth"), "--models", str(models)]

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(onnx_graph, "export_onnx", stop)
        result = CliRunner().invoke(weights.app, command)
    assert result.exit_code == 2
    assert f"stopped; what is done is kept in {models / '.mine.partial'}" in result.stderr
    for words in ("mine is the default model", "mine was there already, and is the default model"):
        result = CliRunner().invoke(weights.app, command)
        assert (result.exit_code, words in result.stdout) == (0, True), result.output


def test_without_torch_the_command_says_what_installs_it(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    code = "import sys; sys.modules['torch'] = None; from export.weights import app; app()"
    command = (sys.executable, "-c", code, "add", str(tmp_path / "a.pth"), "--models", str(tmp_path / "models"))
    result = subprocess.run(command, cwd=Path(weights.__file__).parents[1], capture_output=True, text=True)
    assert result.returncode == 2
    assert "`make torch` installs" in result.stderr
    assert not (tmp_path / "models").exists()
