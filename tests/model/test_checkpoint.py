"""Checkpoints: ours, the released form, and everything else, which is refused with its reason."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import model
from model.checkpoint import CheckpointError, build, load, save, upstream_name
from model.config import (
    MVDUST3R,
    MVDUST3R_PLUS,
    CroCoConfig,
    DUSt3RConfig,
    MASt3RConfig,
    NoPoSplatConfig,
)
from model.croco import CroCo
from model.dust3r import DUSt3R
from model.families import Network, family_of
from model.mvdust3r import MVDUSt3R
from tests.golden.cases import CONFIGS, manifest
from tests.golden.rule import golden_network
from tests.tiny import TINY_CONFIG, tiny_network

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


def assert_equal(a: Network, b: Network) -> None:
    assert a.config == b.config
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


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
        ('{"encoder_heads": 4, "decoder_heads": 4, "square": "224"}', "square of images is '224', no number of pixels"),
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


# The rest of the family: the same reading, other names.

RELEASED = {
    "mvdust3r": MVDUST3R,
    "mvdust3r_plus": MVDUST3R_PLUS,
    "dust3r_linear": DUSt3RConfig(dense=False),
    "dust3r_dpt": DUSt3RConfig(),
    "mast3r": MASt3RConfig(),
    "noposplat": NoPoSplatConfig(),
    "croco": CroCoConfig(),
}
UNREAD = "mask_token", ".refinenet4.resConfUnit1."
TWIN = re.compile(r"\.layer[1-4]_rn\.")


@pytest.mark.parametrize("folder", RELEASED)
def test_the_released_tensors_are_the_networks(folder: str) -> None:
    """On the meta device: names, shapes and sizes, not values."""
    tensors = manifest(folder, "full")
    loaded = build(tensors)
    assert loaded.config == RELEASED[folder]
    read = [
        t for n, t in tensors.items() if not TWIN.search(n) and (folder == "croco" or not any(u in n for u in UNREAD))
    ]
    assert sum(tensor.numel() for tensor in loaded.state_dict().values()) == sum(tensor.numel() for tensor in read)


@pytest.mark.parametrize("folder", CONFIGS)
def test_the_small_golden_networks_are_found(folder: str) -> None:
    size = "tiny_cosine" if folder == "croco_cosine" else "tiny"
    stored = folder.removesuffix("_cosine").removesuffix("_multi")
    assert build(manifest(stored, size)).config == CONFIGS[folder]


def test_crocos_small_decoder_has_narrow_heads() -> None:
    """CroCo v1 and the small decoder of v2: 512 channels, 16 heads, as their authors list them."""
    with torch.device("meta"):
        network = CroCo(CroCoConfig(768, 12, 12, 512, 8, 16, cosine_grid=14))
    state = {upstream_name(name, network.config): tensor for name, tensor in network.state_dict().items()}
    assert build(state).config == network.config


@pytest.fixture(scope="module")
def pair_network() -> DUSt3R:
    """DUSt3R, linear head: small enough to write to many files."""
    return golden_network(CONFIGS["dust3r_linear"])


def released(network: Network) -> dict[str, Tensor]:
    """The network's tensors as upstream's checkpoints have them, all of them."""
    state = {upstream_name(name, network.config): tensor for name, tensor in network.state_dict().items()}
    twins = {re.sub(r"\.layer_rn\.(\d)\.", lambda m: f".layer{int(m[1]) + 1}_rn.", name): state[name] for name in state}
    return twins | state


def test_a_released_dust3r(tmp_path: Path, pair_network: DUSt3R) -> None:
    args = argparse.Namespace(model="AsymmetricCroCo3DStereo(depth_mode=('exp', -inf, inf))", output_dir="somewhere")
    state = {"mask_token": torch.zeros(1, 1, 48)} | released(pair_network)
    torch.save({"args": args, "model": state, "epoch": 100, "best_so_far": 1.0}, tmp_path / "DUSt3R.pth")
    assert_equal(load(tmp_path / "DUSt3R.pth"), pair_network)
    save_file(released(pair_network), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal(load(tmp_path / "model.safetensors"), pair_network)


@pytest.mark.parametrize(
    ("model", "square", "long_side"),
    [
        ("AsymmetricCroCo3DStereo(pos_embed='RoPE100', img_size=(224, 224), head_type='linear')", 224, None),
        ("Net(patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), head_type='linear')", None, 512),
        ("Net(img_size=(512,384),patch_embed_cls='ManyAR_PatchEmbed')", None, 512),
        ("Net(img_size=(512, 384))", None, None),
        ("Net(img_size=os.system('touch x'))", None, None),
        (7, None, None),
    ],
)
def test_the_arguments_tell_how_large_images_were(
    tmp_path: Path, pair_network: DUSt3R, model: object, square: int | None, long_side: int | None
) -> None:
    torch.save({"args": argparse.Namespace(model=model), "model": released(pair_network)}, tmp_path / "mine.pth")
    network = load(tmp_path / "mine.pth")
    assert (network.config.square, network.config.long_side) == (square, long_side)
    save(network, tmp_path / "own.safetensors")
    assert_equal(load(tmp_path / "own.safetensors"), network)


def test_a_released_croco(tmp_path: Path) -> None:
    network = golden_network(CONFIGS["croco_cosine"])
    torch.save({"model": released(network), "croco_kwargs": {"enc_depth": 2}}, tmp_path / "CroCo.pth")
    assert_equal(load(tmp_path / "CroCo.pth"), network)


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    network = golden_network(CONFIGS["noposplat"])
    state = {f"encoder.{name}": tensor for name, tensor in released(network).items()}
    path = tmp_path / "re10k.ckpt"
    torch.save({"state_dict": state, "epoch": 1, "pytorch-lightning_version": "2.5.0", "loops": {"fit": {}}}, path)
    assert_equal(load(path), network)
    path.unlink()  # 360 MB


@pytest.mark.parametrize("absent", ["", ".layer_rn.", "_rn.weight"])
@pytest.mark.parametrize("folder", ["dust3r_dpt", "mast3r", "noposplat"])
def test_tied_tensors_under_one_name_or_both(folder: str, absent: str) -> None:
    """`absent` is in the names that the file lacks."""
    tensors = manifest(folder, "tiny")
    if absent == "_rn.weight":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(absent)}
    elif absent:
        tensors = {name: tensor for name, tensor in tensors.items() if absent not in name}
    assert build(tensors).config == CONFIGS[folder]


def test_tied_tensors_that_differ_are_refused() -> None:
    tensors = manifest("dust3r_dpt", "tiny")
    name = "downstream_head1.dpt.scratch.layer2_rn.weight"
    tensors[name] = torch.empty(1, 2, device="meta")
    with pytest.raises(CheckpointError, match=r"layer2_rn\.weight.*layer_rn\.1\.weight are one tensor"):
        build(tensors)


@pytest.mark.parametrize(("folder", "size"), [(f, "tiny") for f in RELEASED] + [("croco", "tiny_cosine")])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_missing_or_misshapen_tensor_is_named(folder: str, size: str, data: st.DataObject) -> None:
    tensors = manifest(folder, size)
    read = [n for n in tensors if not any(u in n for u in (*UNREAD, "_rn."))]
    name = data.draw(st.sampled_from(read))
    prefix = data.draw(st.sampled_from(["", "module.", "encoder."]))
    fault = data.draw(st.sampled_from(["is missing", "is (1, 2, 3), not", "is unknown"]))
    tensor = tensors.pop(name)
    if fault == "is unknown":
        tensors |= {name: tensor, name + "s": tensor}
        name += "s"
    elif fault != "is missing":
        tensors[name] = torch.empty(1, 2, 3, device="meta")
    with pytest.raises(CheckpointError) as caught:
        build({prefix + name: tensor for name, tensor in tensors.items()})
    assert f"{prefix}{name} {fault}" in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, pair_network: DUSt3R, value: float) -> None:
    state = {name: tensor.clone() for name, tensor in released(pair_network).items()}
    state["dec_blocks.1.mlp.fc1.bias"][3] = value
    torch.save({"model": state}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad\.pth: .*: dec_blocks\.1\.mlp\.fc1\.bias has values"):
        load(tmp_path / "bad.pth")


def test_own_form_of_the_family(tmp_path: Path, pair_network: DUSt3R) -> None:
    for network in (pair_network, golden_network(CONFIGS["croco"]), golden_network(CONFIGS["croco_cosine"])):
        save(network, tmp_path / "own.safetensors")
        assert_equal(load(tmp_path / "own.safetensors"), network)


@pytest.mark.parametrize("folder", ["dust3r_dpt", "mast3r", "noposplat"])
def test_own_form_of_the_large(folder: str) -> None:
    """As `save` would write it, head counts that shapes do not show with it."""
    config = replace(CONFIGS[folder], encoder_heads=8, decoder_heads=6)
    family = family_of(config)
    with torch.device("meta"):
        state = family.network(config).state_dict()
    assert build(state, {"family": family.name, **asdict(config)}).config == config


def test_a_network_of_another_time_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'vggt' is not known here"):
        build({}, {"family": "vggt"})
