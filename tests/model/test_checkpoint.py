"""Checkpoints: ours, the released form, and everything else, which is refused with its reason."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import model
from model.checkpoint import CheckpointError, build, load, save, upstream_name
from model.config import MVDUST3R, MVDUST3R_PLUS, ModelConfig
from model.mvdust3r import MVDUSt3R
from tests.tiny import TINY_CONFIG, tiny_network

GOLDEN = Path(__file__).parent.parent / "golden"
FOUR_HEADS = replace(TINY_CONFIG, encoder_heads=4, decoder_heads=4)
"""Sizes whose head counts the rule for foreign checkpoints finds."""


@pytest.fixture(scope="module")
def network() -> MVDUSt3R:
    return tiny_network(FOUR_HEADS)


@pytest.fixture
def upstream(network: MVDUSt3R) -> dict[str, Tensor]:
    """The network's tensors as an upstream checkpoint has them."""
    state = {upstream_name(name): tensor.clone() for name, tensor in network.state_dict().items()}
    return {"mask_token": torch.zeros(1, 1, 32)} | state


def assert_equal(a: MVDUSt3R, b: MVDUSt3R) -> None:
    assert a.config == b.config
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def manifest(folder: str, size: str) -> dict[str, Tensor]:
    entries = json.loads((GOLDEN / folder / f"manifest_{size}.json").read_text())
    return {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, shape, dtype in entries}


def test_own_form_round_trip(tmp_path: Path) -> None:
    """Head counts, which shapes do not show, too: this network has two."""
    path = tmp_path / "mine.safetensors"
    ours = tiny_network(TINY_CONFIG)
    save(ours, path)
    loaded = model.load(path)
    assert_equal(loaded, ours)
    assert not loaded.training
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("extras", ["bare", "released", "training"])
def test_upstream_pth(tmp_path: Path, network: MVDUSt3R, upstream: dict[str, Tensor], extras: str) -> None:
    content: dict = {"model": upstream}
    if extras != "bare":
        content |= {"args": argparse.Namespace(model="Net(depth_mode=('exp', -inf, inf))", lr=1e-4), "epoch": 3}
    if extras == "training":
        content["args"].output_dir = pathlib.PosixPath("/somewhere/else")
        weights = torch.nn.Parameter(torch.ones(2))
        optimiser = torch.optim.AdamW([weights])
        weights.sum().backward()
        optimiser.step()
        content |= {"optimizer": optimiser.state_dict(), "scaler": {"scale": 65536.0}, "best_so_far": 0.5}
    path = tmp_path / "MVDp.pth"
    torch.save(upstream if extras == "bare" else content, path)
    assert_equal(load(path), network)


def test_upstream_safetensors(tmp_path: Path, network: MVDUSt3R, upstream: dict[str, Tensor]) -> None:
    save_file(upstream, tmp_path / "MVDp.safetensors")
    assert_equal(load(tmp_path / "MVDp.safetensors"), network)


def test_a_wrapped_or_half_precision_checkpoint(network: MVDUSt3R, upstream: dict[str, Tensor]) -> None:
    state = {f"module.{n}": t.half() if t.is_floating_point() else t for n, t in upstream.items()}
    loaded = build(state)
    assert loaded.config == network.config
    assert {t.dtype for t in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(("folder", "config"), [("mvdust3r", MVDUST3R), ("mvdust3r_plus", MVDUST3R_PLUS)])
def test_the_released_tensors_are_the_networks(folder: str, config: ModelConfig) -> None:
    """On the meta device: names, shapes and sizes, not values."""
    loaded = build(manifest(folder, "full"))
    assert loaded.config == config


@pytest.mark.parametrize(("folder", "paths"), [("mvdust3r", 1), ("mvdust3r_plus", 4)])
def test_the_small_golden_networks_are_found(folder: str, paths: int) -> None:
    assert build(manifest(folder, "tiny")).config == ModelConfig(64, 2, 4, 48, 3, 4, paths=paths)


def test_one_set_of_decoder_blocks_serves_both(upstream: dict[str, Tensor]) -> None:
    state = {name: tensor for name, tensor in upstream.items() if not name.startswith("dec_blocks2.")}
    decoder = build(state).decoder
    ours = decoder.blocks.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in decoder.reference_blocks.state_dict().items())


def test_every_fault_is_named(upstream: dict[str, Tensor]) -> None:
    del upstream["enc_norm.bias"]
    del upstream["dec_same_view_blocks.1.mlp.fc2.weight"]
    upstream["dec_norm.weight"] = torch.ones(7)
    upstream["mystery.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError) as caught:
        build(upstream)
    faults = str(caught.value).removeprefix("this is no whole MV-DUSt3R: ")
    assert sorted(faults.split("; ")) == [
        "dec_norm.weight is (7,), not (32,)",
        "dec_same_view_blocks.1.mlp.fc2.weight is missing",
        "enc_norm.bias is missing",
        "mystery.weight is unknown",
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["dec_blocks.0.a", "downstream_head1.dpt.head.0.weight"], "no whole DUSt3R"),
        (["downstream_head1.dpt.a", "downstream_head1.head_local_features.fc1.weight"], "no whole MASt3R"),
        (["downstream_head1.proj.weight", "downstream_head1.proj.bias"], "no whole DUSt3R"),
        (["backbone.enc_norm.weight", "gaussian_param_head.dpt.a"], "no whole NoPoSplat"),
        (["enc_blocks.0.a", "prediction_head.weight"], "no whole CroCo"),
        (["layer1.0.conv1.weight"], "of no network known here"),
        ([], "of no network known here"),
    ],
)
def test_other_networks_are_named(names: list[str], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        build({name: torch.zeros(1) for name in names})


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: dict) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    torch.save({"model": upstream, "args": Malicious()}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pth is refused.*system"):
        load(path)
    assert os.listdir(tmp_path) == ["evil.pth"]


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(60), b"\x80\x02.", bytes(1000)])
def test_garbage_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load(path)


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_cut_file_is_refused(tmp_path: Path, upstream: dict[str, Tensor], cut: float) -> None:
    torch.save(upstream, tmp_path / "cut.pth")
    save_file(upstream, tmp_path / "cut.safetensors")
    for path in (tmp_path / "cut.pth", tmp_path / "cut.safetensors"):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
        with pytest.raises(CheckpointError, match="cut"):
            load(path)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ("{}", "lacks"),
        ("[]", "not a JSON object"),
        ("{", "not a readable"),
        ('{"encoder_heads": 3, "decoder_heads": 4}', "cannot be cut into 3"),
        ('{"encoder_heads": 4, "decoder_heads": "4"}', "cannot be cut"),
    ],
)
def test_a_wrong_stored_configuration_is_refused(tmp_path: Path, network: MVDUSt3R, stored: str, words: str) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(network.state_dict(), path, metadata={"scenelift": stored})
    with pytest.raises(CheckpointError, match=words):
        load(path)


def test_a_list_or_a_missing_file(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load(tmp_path / "list.pth")
    for name in ("absent.pth", "absent.safetensors"):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / name)


def test_the_types_need_no_torch() -> None:
    code = "import sys, model, model.types, export.sessions, export.contract; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(model.__file__).parent.parent).returncode == 0
