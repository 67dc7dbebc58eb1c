"""The networks against the public reference implementation's outputs, against plain loops, and in themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import MVDUST3R, MVDUST3R_PLUS, ModelConfig
from model.decoder import slot_order
from model.mvdust3r import MVDUSt3R, NetworkOutput
from tests.golden.rule import golden_network, golden_tensor
from tests.model.naive_mvdust3r import NaiveMVDUSt3R
from tests.tiny import TINY_CONFIG, tiny_network

GOLDEN = Path(__file__).parent.parent / "golden"
PLAIN = ModelConfig(
    encoder_width=64, encoder_depth=2, encoder_heads=4, decoder_width=48, decoder_depth=3, decoder_heads=4
)
CONFIGS = {"mvdust3r": PLAIN, "mvdust3r_plus": replace(PLAIN, paths=4)}
CASES = [
    ("mvdust3r", "n2"),
    ("mvdust3r", "n4"),
    ("mvdust3r", "n6"),
    ("mvdust3r", "n3_b2"),
    ("mvdust3r_plus", "n4"),
    ("mvdust3r_plus", "n6"),
    ("mvdust3r_plus", "n9"),
    ("mvdust3r_plus", "n4_b2"),
]
FIELDS = {
    "conf": "confidence",
    "rgb": "colour",
    "opacity": "opacity",
    "scale": "scale",
    "rotation": "rotation",
    "pts3d": "points",
}
PLUS = TINY_CONFIG
ALONE = replace(TINY_CONFIG, paths=1)


@pytest.fixture(scope="module")
def networks() -> dict[str, MVDUSt3R]:
    return {name: golden_network(config) for name, config in CONFIGS.items()}


def golden_images(folder: str, case: str) -> Tensor:
    with np.load(GOLDEN / folder / "inputs.npz") as file:
        return torch.from_numpy(file[f"{case}/images"]).transpose(0, 1).contiguous()


def golden_outputs(folder: str, case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / folder / "outputs.npz") as file:
        return {name.removeprefix(case + "/"): file[name] for name in file.files if name.startswith(case + "/")}


def run(network: MVDUSt3R, images: Tensor, references: tuple[int, ...] | None = None) -> NetworkOutput:
    with torch.inference_mode():
        return network(images, references)


def assert_same(got: NetworkOutput, expected: NetworkOutput) -> None:
    """Equal but for rounding; the absolute tolerance is for quaternions, divided by a norm that can be small."""
    for field in FIELDS.values():
        torch.testing.assert_close(getattr(got, field), getattr(expected, field), rtol=1e-4, atol=5e-5)


def assert_close_to_golden(got: np.ndarray, golden: np.ndarray, kind: str) -> None:
    if kind == "pts3d":
        error = np.linalg.norm(got - golden, axis=-1) / np.linalg.norm(golden, axis=-1)
        assert error.max() < 1e-4
    else:
        # A rotation is divided by its raw norm, which magnifies rounding where it is small.
        np.testing.assert_allclose(got, golden, rtol=1e-4, atol=1e-4 if kind == "rotation" else 1e-5)


def test_rule_gives_the_published_weights() -> None:
    for entry in json.loads((GOLDEN / "mvdust3r" / "weight_rule_check.json").read_text()):
        tensor = golden_tensor(entry["name"], tuple(entry["shape"])).astype(np.float64)
        np.testing.assert_allclose(tensor.ravel()[:3], entry["first"], rtol=1e-7)
        np.testing.assert_allclose(tensor.sum(), entry["sum"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose((tensor**2).sum(), entry["sum_of_squares"], rtol=1e-6)


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_outputs_equal_the_golden_ones(networks: dict[str, MVDUSt3R], folder: str, case: str) -> None:
    """Every view, output and reference path: path r of upstream is our answer with r first among the references.

    Upstream exchanges views 0 and r in path r's outputs.
    """
    images, golden = golden_images(folder, case), golden_outputs(folder, case)
    batch, views = images.shape[:2]
    paths = CONFIGS[folder].paths
    for path in range(paths):
        references = tuple([path] + [r for r in range(paths) if r != path])
        output = run(networks[folder], images, references)
        for view in range(views):
            slot = {path: 0, 0: path}.get(view, view)
            for kind, field in FIELDS.items():
                name = f"view{slot}/{kind}"
                if name in golden:
                    expected = golden[name].reshape(batch, paths, *golden[name].shape[1:])[:, path]
                    got = getattr(output, field)[:, view].numpy()
                    assert_close_to_golden(got.reshape(expected.shape), expected, kind)
        assert f"view{views - 1}/pts3d" in golden


class Recorder:
    """What modules answer, by their names in the network; answers to several calls in a row."""

    def __init__(self, network: MVDUSt3R) -> None:
        self.outputs: dict[str, Tensor] = {}
        for name, module in network.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str):
        def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before = [self.outputs[name]] if name in self.outputs else []
            self.outputs[name] = torch.cat([*before, output]) if isinstance(output, Tensor) else output

        return keep


@pytest.mark.parametrize(("folder", "case"), [c for c in CASES if not c[1].endswith("b2")])
def test_tokens_and_heads_equal_the_golden_ones(folder: str, case: str) -> None:
    images, golden = golden_images(folder, case), golden_outputs(folder, case)
    network = golden_network(CONFIGS[folder])
    recorder = Recorder(network)
    run(network, images)
    seen = recorder.outputs
    plus, depth = network.config.paths > 1, network.config.decoder_depth

    ours = {
        "tokens/patch_embed_view0": seen["encoder.patch_embed"][0],
        "tokens/enc_block0_view0": seen["encoder.blocks.0"][0],
        "tokens/enc_block1_view0": seen["encoder.blocks.1"][0],
    }
    # In path 0 view 0 is the reference, and the other views follow in order.
    own = torch.stack([seen[f"decoder.reference_blocks.{d}"][0, 0] for d in range(depth)])
    other = torch.stack([seen[f"decoder.blocks.{d}"][0, 0] for d in range(depth)])
    for view, layers in enumerate((own, other)):
        ours[f"tokens/encoder_out_view{view}"] = seen["encoder"][view]
        ours[f"tokens/decoder_in_view{view}"] = seen["decoder.embed"][0, view]
        ours[f"tokens/{'cross_view_path0' if plus else 'dec_blocks'}_view{view}"] = layers
        ours[f"tokens/{'dec_normed_path0' if plus else 'dec_normed'}_view{view}"] = seen["decoder.norm"][0, view]
        head = "head" if view else "reference_head"
        ours[f"head/proj_view{view}"] = seen[f"{head}.points.proj"][:1]
        ours[f"head/skip_raw_view{view}"] = seen[f"{head}.points.skip_proj.3"][:1]
        for path in (0, 1) if plus else ():
            # Fused tokens are (view, path); of the last layer only path 0 is computed.
            layers = [seen[f"decoder.cross_reference_blocks.{d}"][view] for d in range(depth - path)]
            name = f"tokens/dec_blocks_path{path}_view{view}"
            ours[name] = torch.stack([layer[path] for layer in layers])
            golden[name] = golden[name][: depth - path]

    expected = {name for name in golden if name.startswith(("tokens/", "head/"))}
    assert expected <= ours.keys()
    for name in expected:
        # What leaves the skip CNN counts by a factor of 1e-4: its fast convolutions may lose a digit or two.
        atol = 1e-4 * np.abs(golden[name]).max() if "skip_raw" in name else 1e-5
        np.testing.assert_allclose(ours[name].numpy(), golden[name], rtol=1e-4, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def tiny() -> dict[ModelConfig, tuple[MVDUSt3R, NaiveMVDUSt3R]]:
    """Each network in both ways."""
    networks = {config: tiny_network(config) for config in (ALONE, PLUS)}
    return {config: (network, NaiveMVDUSt3R(config, network.state_dict())) for config, network in networks.items()}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equal_to_plain_loops(tiny: dict[ModelConfig, tuple[MVDUSt3R, NaiveMVDUSt3R]], data: st.DataObject) -> None:
    """Any views, references and batch: each scene alone, view by view and path by path, gives the same.

    Every path's answer is ours with its reference put first.
    """
    config = data.draw(st.sampled_from([ALONE, PLUS]))
    batch, views = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 7))
    count = 1 if config.paths == 1 else data.draw(st.integers(2, min(views, 5)))
    references = tuple(data.draw(st.permutations(range(views)))[:count])
    path = data.draw(st.integers(0, count - 1))
    height, width = data.draw(st.sampled_from([(32, 32), (32, 48), (48, 16)]))
    network, naive = tiny[config]
    images = torch.rand(batch, views, 3, height, width, generator=torch.Generator().manual_seed(views)) * 2 - 1
    first = (references[path], *(r for r in references if r != references[path]))
    with torch.inference_mode():
        scenes = [naive(scene, references)[path] for scene in images]
    fields = {field: torch.cat([getattr(scene, field) for scene in scenes]) for field in FIELDS.values()}
    assert_same(run(network, images, first), NetworkOutput(**fields))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_views_beside_the_references_are_exchangeable(data: st.DataObject) -> None:
    """Permuting the photos, and the references with them, permutes the answers and changes nothing else."""
    config = data.draw(st.sampled_from([ALONE, PLUS]))
    views = data.draw(st.integers(2, 6))
    count = 1 if config.paths == 1 else data.draw(st.integers(2, views))
    references = tuple(data.draw(st.permutations(range(views)))[:count])
    order = data.draw(st.permutations(range(views)))
    network = tiny_network(config)
    images = torch.rand(1, views, 3, 32, 32, generator=torch.Generator().manual_seed(views)) * 2 - 1
    output = run(network, images, references)
    permuted = run(network, images[:, order], tuple(order.index(r) for r in references))
    assert_same(permuted, NetworkOutput(**{field: getattr(output, field)[:, order] for field in FIELDS.values()}))


@given(views=st.integers(2, 30), data=st.data())
def test_slots_put_the_reference_first(views: int, data: st.DataObject) -> None:
    reference = data.draw(st.integers(0, views - 1))
    view_of_slot, slot_of_view = (order[0].tolist() for order in slot_order(torch.tensor([reference]), views))
    assert view_of_slot == [reference] + [view for view in range(views) if view != reference]
    assert [view_of_slot[slot] for slot in slot_of_view] == list(range(views))


def test_outputs_stay_in_their_ranges() -> None:
    output = run(tiny_network(), torch.rand(1, 3, 3, 32, 32) * 2 - 1)
    assert output.confidence.min() >= 1
    assert output.opacity.min() >= 0
    assert output.opacity.max() <= 1
    torch.testing.assert_close(output.rotation.norm(dim=-1), torch.ones(1, 3, 32, 32))


def test_wild_logits_stay_finite() -> None:
    network = tiny_network()
    with torch.no_grad():
        for head in (network.reference_head, network.head):
            head.points.proj.bias[3 * 256 :] = 200.0
    confidence = run(network, torch.zeros(1, 2, 3, 32, 32)).confidence
    assert confidence.max() == 1e9


def test_every_parameter_takes_part() -> None:
    network = tiny_network()
    output = network(torch.rand(1, 3, 3, 32, 32) * 2 - 1)
    sum(getattr(output, field).square().mean() for field in FIELDS.values()).backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


def test_training_takes_the_statistics_of_all_views_at_once() -> None:
    network = tiny_network().train()
    network(torch.rand(2, 6, 3, 32, 32) * 2 - 1)
    assert [layer.norm.num_batches_tracked.item() for layer in network.head.points.skip_proj] == [1, 1, 1, 1]


def test_a_fresh_network_has_idle_fusion_and_skip() -> None:
    """As upstream starts: MV-DUSt3R+ answers as its MV-DUSt3R part alone, whichever other references it has."""
    network = MVDUSt3R(PLUS).eval()
    images = torch.rand(1, 4, 3, 32, 32) * 2 - 1
    assert_same(run(network, images, (1, 0, 2, 3)), run(network, images, (1, 3)))
    assert not network.head.points.skip_proj[-1].conv.weight.any()


@pytest.mark.parametrize(
    ("config", "shape", "references", "words"),
    [
        (PLUS, (1, 1, 3, 32, 32), None, "two views"),
        (PLUS, (4, 3, 32, 32), None, "images are"),
        (PLUS, (1, 4, 3, 32, 40), None, "multiples of 16"),
        (PLUS, (1, 4, 3, 32, 32), (0,), "2 to 4 references"),
        (PLUS, (1, 4, 3, 32, 32), (0, 0), "all different"),
        (PLUS, (1, 4, 3, 32, 32), (0, 4), "not among 4 views"),
        (ALONE, (1, 4, 3, 32, 32), (0, 1), "1 to 1 references"),
    ],
)
def test_impossible_inputs_are_refused(
    config: ModelConfig, shape: tuple[int, ...], references: tuple[int, ...] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run(tiny_network(config), torch.zeros(shape), references)


@pytest.mark.parametrize(("config", "count"), [(MVDUST3R, 547_989_522), (MVDUST3R_PLUS, 661_429_266)])
def test_released_sizes(config: ModelConfig, count: int) -> None:
    with torch.device("meta"):
        network = MVDUSt3R(config)
    # Upstream counts its mask token, 768 values that nothing reads, too.
    assert sum(parameter.numel() for parameter in network.parameters()) == count - 768


@pytest.mark.parametrize("config", [ALONE, PLUS])
def test_half_precision_keeps_the_answer(config: ModelConfig) -> None:
    """In bfloat16, by autocast: attention, norms and the rest mix types without error, and the answer stays near."""
    network = tiny_network(config)
    images = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = run(network, images)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(network, images)
    error = (got.points.float() - expected.points).norm(dim=-1) / expected.points.norm(dim=-1)
    assert error.median() < 0.1
