"""DUSt3R, MASt3R, NoPoSplat and CroCo against the public reference code's outputs, and in themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.croco import cosine_table, from_patches, patches, random_mask
from model.families import Network
from model.output import NetworkOutput
from tests.golden.cases import CONFIGS, Case, cases, relative_error
from tests.golden.rule import golden_network

FAMILY = [folder for folder in CONFIGS if not folder.startswith("mvdust3r")]
PAIRS = ["dust3r_linear", "dust3r_dpt", "mast3r"]
CASES = [case for folder in FAMILY for case in cases(folder)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small only lose by sharing their work out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def network_of(folder: str) -> Network:
    return golden_network(CONFIGS[folder.removesuffix("_multi")])


def assert_golden(got: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Equal but for rounding; a rotation was divided by a norm that can be small."""
    assert got.shape == expected.shape, name
    if name == "points":
        assert relative_error(name, got, expected) < 1e-4
    else:
        atol = 1e-4 if name == "rotation" else 1e-5
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=atol, err_msg=name)


def assert_same(got: NetworkOutput, expected: NetworkOutput) -> None:
    for field in (f.name for f in fields(NetworkOutput)):
        a, b = getattr(got, field), getattr(expected, field)
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, field=field: f"{field}: {text}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.folder}-{case.name}")
def test_outputs_equal_the_golden_ones(case: Case) -> None:
    compared = set()
    for name, got, expected in case.compare(network_of(case.folder)):
        assert_golden(got, expected, name)
        compared.add(name)
    assert compared >= ({"patches"} if case.folder.startswith("croco") else {"points"})


def recorded(case: Case) -> dict[str, list[tuple[Tensor, ...]]]:
    """Every module's calls during a case, by its name: inputs, then the output."""
    seen = defaultdict(list)
    hooks = []
    network = network_of(case.folder)
    for name, module in network.named_modules():

        def keep(_: nn.Module, inputs: tuple, output: Tensor, name: str = name) -> None:
            seen[name].append((*inputs, output))

        hooks.append(module.register_forward_hook(keep))
    try:
        with torch.inference_mode():
            network(**case.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def with_tokens(*folders: str) -> list:
    chosen = [case for case in CASES if case.folder in folders and any("tokens/" in name for name in case.golden)]
    return [pytest.param(case, id=f"{case.folder}-{case.name}") for case in chosen]


def assert_tokens(case: Case, ours: dict[str, Tensor]) -> None:
    expected = {name: a for name, a in case.golden.items() if name.startswith(("tokens/", "head1/", "raw/"))}
    assert expected.keys() <= ours.keys()
    for name, array in expected.items():
        assert_golden(ours[name].numpy(), array, name)


@pytest.mark.parametrize("case", with_tokens("dust3r_linear", "dust3r_dpt", "mast3r", "noposplat", "noposplat_multi"))
def test_tokens_and_heads_equal_the_golden_ones(case: Case) -> None:
    seen = recorded(case)
    batch, views = case.inputs["images"].shape[:2]
    depth = network_of(case.folder).config.decoder_depth

    def view_major(tokens: Tensor) -> Tensor:
        return tokens.unflatten(0, (batch, views)).transpose(0, 1).flatten(0, 1)

    last = {module: [call[-1] for call in calls] for module, calls in seen.items()}
    for module in ("decoder.embed", "decoder.norm"):
        # Of networks whose views are of one size, one call for all of them.
        last[module] = [own for x in last[module] for own in (x.unbind(1) if x.ndim == 4 else [x])]
    ours = {
        "tokens/patch_embed": view_major(last["encoder.patch_embed"][0]),
        "tokens/encoder_out": view_major(last["encoder.norm"][0]),
        "tokens/decoder_in": torch.stack([x[0] for x in last["decoder.embed"]]),
        "tokens/dec_normed": torch.stack([x[0] for x in last["decoder.norm"]]),
    }
    for view, branch in enumerate(("reference_blocks", "blocks")):
        ours[f"tokens/decoder_in_view{view}"] = last["decoder.embed"][view][0]
        ours[f"tokens/dec_normed_view{view}"] = last["decoder.norm"][view][0]
        ours[f"tokens/dec_blocks_view{view}"] = torch.stack(
            [last[f"decoder.{branch}.{layer}"][0][0, 0] for layer in range(depth)]
        )
    if "intrinsics" in last:
        ours["tokens/intrinsics_token"] = last["intrinsics"][0]
        ours["raw/center_view0"] = last["reference_head.centres"][0]
        ours["raw/center_view1"] = last["head.centres"][0][:batch]
    else:
        ours["head1/raw"] = last["reference_head.proj" if "reference_head.proj" in last else "reference_head.dpt"][0]
        for level in range(4) if "reference_head.dpt" in last else ():
            ours[f"head1/layer_rn{level}_ch0_8"] = last[f"reference_head.dpt.reduce.{level}"][0][:, :8]
            ours[f"head1/refinenet{level + 1}_ch0_8"] = last[f"reference_head.dpt.fuse.{level}"][0][:, :8]
    assert_tokens(case, ours)


@pytest.mark.parametrize("case", with_tokens("croco"))
def test_croco_tokens_equal_the_golden_ones(case: Case) -> None:
    seen = recorded(case)
    first, second = seen["encoder.norm"]
    blocks = [seen[f"decoder.blocks.{layer}"][0][-1].squeeze(1) for layer in range(3)]
    ours = {
        "tokens/patch_embed_img1": seen["encoder.patch_embed"][0][-1][::2],
        "tokens/encoder_img1_visible": first[-1],
        "tokens/encoder_img2": second[-1],
        "tokens/decoder_in_img1": seen["decoder"][0][0],
        "tokens/dec_blocks": torch.stack(blocks),
        "tokens/dec_normed": seen["decoder.norm"][0][-1],
    }
    assert_tokens(case, ours)


def test_scale_and_rotation_make_the_golden_covariances() -> None:
    (case,) = cases("noposplat_multi")
    with torch.inference_mode():
        gaussians = network_of(case.folder)(**case.inputs).gaussians
    w, x, y, z = gaussians.rotation.double().flatten(1, 3).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    rotation = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    half = rotation * gaussians.scale.double().flatten(1, 3).unsqueeze(-2)
    got = (half @ half.mT).numpy()
    assert relative_error("covariances", got, case.golden["covariances"]) < 1e-4


@pytest.mark.parametrize(("name", "width"), [("enc_pos_embed", 64), ("dec_pos_embed", 48)])
def test_the_cosine_tables_are_upstreams(name: str, width: int) -> None:
    (case,) = cases("croco_cosine")
    np.testing.assert_allclose(cosine_table(6, width).numpy(), case.golden[name], atol=1e-6)


def test_images_are_cut_as_upstream_cuts_them() -> None:
    (case,) = cases("croco")
    image = case.inputs["images"][:, 0]
    cut = patches(image)
    np.testing.assert_array_equal(cut.numpy(), case.golden["target"])
    assert torch.equal(from_patches(cut, (6, 6)), image)


@given(batch=st.integers(1, 4), count=st.integers(10, 200), seed=st.integers(0, 1000))
def test_a_random_mask_hides_as_many_in_each_row(batch: int, count: int, seed: int) -> None:
    mask = random_mask(batch, count, torch.Generator().manual_seed(seed))
    assert mask.sum(dim=1).tolist() == [int(0.9 * count)] * batch


# What holds for any input.


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def inputs(folder: str, seed: int, batch: int, height: int, width: int) -> dict[str, Tensor]:
    """Random ones, as the network takes them."""
    views = 3 if folder.startswith("mvdust3r") or folder == "noposplat_multi" else 2
    called = {"images": noise(seed, batch, views, 3, height, width)}
    generator = torch.Generator().manual_seed(seed)
    if folder in PAIRS:
        called["portrait"] = torch.rand(batch, 2, generator=generator) < 0.5
    if folder.startswith("noposplat"):
        called["intrinsics"] = noise(seed + 1, batch, views, 3, 3)
    if folder.startswith("croco"):
        called["mask"] = random_mask(batch, height * width // 256, generator)
    return called


@settings(max_examples=3, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("folder", CONFIGS)
def test_a_batch_is_its_scenes(folder: str, data: st.DataObject) -> None:
    """Whatever the size, and however views of either orientation are mixed."""
    # A table of positions is made for one size.
    rows, columns = (6, 6) if folder == "croco_cosine" else (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)))
    called = inputs(folder, data.draw(st.integers(0, 99)), 2, 16 * rows, 16 * columns)
    network = network_of(folder)
    with torch.inference_mode():
        both = network(**called)
        for scene in range(2):
            one = network(**{name: value[scene : scene + 1] for name, value in called.items()})
            if folder.startswith("croco"):
                torch.testing.assert_close(both[scene : scene + 1], one, rtol=1e-3, atol=1e-4)
                continue
            own = {f.name: getattr(both, f.name) for f in fields(NetworkOutput)}
            assert_same(one, NetworkOutput(**{n: x if x is None else x[scene : scene + 1] for n, x in own.items()}))


@pytest.mark.parametrize("folder", PAIRS)
def test_a_turned_portrait_pair_answers_as_the_upright_one(folder: str) -> None:
    images = noise(0, 1, 2, 3, 48, 16)
    network = network_of(folder)
    with torch.inference_mode():
        upright = network(images)
        turned = network(images.mT.contiguous(), portrait=torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(turned.points.transpose(2, 3), upright.points, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(turned.confidence.transpose(2, 3), upright.confidence, rtol=1e-3, atol=1e-5)


def test_encoding_once_serves_every_pair() -> None:
    """Three photos' tokens, made once, give the six pairs that one forward pass each gives."""
    network, images = network_of("mast3r"), noise(1, 3, 3, 16, 32)
    pairs = torch.tensor([(a, b) for a in range(3) for b in range(3) if a != b])
    with torch.inference_mode():
        tokens = network.encode(images)
        answer = NetworkOutput.of_views(network.decode(tokens[pairs].unbind(1), ((1, 2), (1, 2))))
        expected = network(images[pairs])
    assert_same(answer, expected)


def test_views_of_different_sizes() -> None:
    """A landscape and a portrait view, each as it is, are what they are with the second one turned."""
    network, images = network_of("dust3r_linear"), noise(2, 1, 2, 3, 32, 48)
    first, second = images[:, 0], images[:, 1].mT.contiguous()
    with torch.inference_mode():
        tokens = [network.encode(first), network.encode(second)]
        apart = network.decode(tokens, ((2, 3), (3, 2)))
        together = network(images, portrait=torch.tensor([[False, True]]))
    torch.testing.assert_close(apart[0]["points"], together.points[:, 0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(apart[1]["points"].transpose(1, 2), together.points[:, 1], rtol=1e-3, atol=1e-5)


def test_order_of_the_later_views_does_not_matter() -> None:
    network, called = network_of("noposplat_multi"), inputs("noposplat_multi", 0, 1, 16, 32)
    with torch.inference_mode():
        output = network(**called)
        exchanged = network(**{name: value[:, [0, 2, 1]] for name, value in called.items()})
    torch.testing.assert_close(exchanged.points[:, [0, 2, 1]], output.points, rtol=1e-3, atol=1e-5)


def test_a_visible_patch_is_seen_and_a_hidden_one_is_not() -> None:
    network, called = network_of("croco"), inputs("croco", 0, 1, 48, 48)
    hidden = int(called["mask"][0].nonzero()[0])
    visible = int((~called["mask"][0]).nonzero()[0])
    with torch.inference_mode():
        before = network(**called)
        for patch, changes in ((hidden, False), (visible, True)):
            x = patches(called["images"][:, 0])
            x[:, patch] = 0
            images = torch.stack([from_patches(x, (3, 3)), called["images"][:, 1]], dim=1)
            assert torch.equal(network(images, called["mask"]), before) != changes


def test_outputs_stay_in_their_ranges() -> None:
    with torch.inference_mode():
        matching = network_of("mast3r")(noise(2, 1, 2, 3, 32, 32))
        splats = network_of("noposplat")(**inputs("noposplat", 2, 1, 32, 32))
    assert matching.gaussians is None
    assert matching.confidence.min() >= 1
    assert matching.descriptor_confidence.min() > 0
    torch.testing.assert_close(matching.descriptors.norm(dim=-1), torch.ones(1, 2, 32, 32))
    assert splats.descriptors is None
    gaussians = splats.gaussians
    assert 0 < gaussians.scale.min() <= gaussians.scale.max() <= 0.3
    assert 0 <= gaussians.opacity.min() <= gaussians.opacity.max() <= 1
    assert gaussians.colour.min() >= 0
    torch.testing.assert_close(gaussians.rotation.norm(dim=-1), torch.ones(1, 2, 32, 32))
    torch.testing.assert_close(splats.confidence, gaussians.opacity)


@pytest.mark.parametrize(
    ("folder", "changed", "words"),
    [
        ("dust3r_linear", {"images": torch.zeros(1, 3, 3, 32, 32)}, "2 views are needed, not 3"),
        ("dust3r_linear", {"images": torch.zeros(1, 2, 3, 32, 40)}, "multiples of 16"),
        ("dust3r_linear", {"portrait": torch.zeros(2, dtype=torch.bool)}, "portrait is"),
        ("noposplat", {"images": torch.zeros(1, 1, 3, 32, 32)}, "at least two views"),
        ("noposplat", {"intrinsics": torch.zeros(1, 3, 3, 3)}, "as many as images"),
        ("croco", {"mask": torch.zeros(1, 4)}, "the mask is bool"),
        ("croco", {"mask": torch.ones(1, 4, dtype=torch.bool)}, "not all"),
        ("croco", {"mask": torch.ones(1, 5, dtype=torch.bool)}, "the mask is bool"),
        ("croco_cosine", {"mask": torch.ones(1, 4, dtype=torch.bool)}, "96 x 96 pixels alone"),
    ],
)
def test_impossible_inputs_are_refused(folder: str, changed: dict[str, Tensor], words: str) -> None:
    called = inputs(folder.removesuffix("_cosine"), 0, 1, 32, 32)
    with pytest.raises(ValueError, match=words):
        network_of(folder)(**called | changed)


def test_masks_of_different_counts_are_refused() -> None:
    called = inputs("croco", 0, 2, 32, 32)
    called["mask"] = torch.tensor([[True, False, False, False], [True, True, False, False]])
    with pytest.raises(ValueError, match="as many patches"):
        network_of("croco")(**called)


@pytest.mark.parametrize("folder", ["dust3r_linear", "dust3r_dpt", "mast3r", "noposplat", "croco", "croco_cosine"])
def test_half_precision_comes_near(folder: str) -> None:
    """bfloat16 where autocast puts it, with the mask, the camera's token and views of either orientation."""
    network, called = network_of(folder), cases(folder)[0].inputs
    if folder in PAIRS:
        called = called | {"portrait": torch.tensor([[True, False]])}
    with torch.inference_mode():
        expected = network(**called)
        with torch.autocast("cpu", torch.bfloat16):
            got = network(**called)
    got, expected = (x if folder.startswith("croco") else x.points for x in (got, expected))
    error = (got.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.median() < 0.1


@pytest.mark.parametrize("degree", [0, 2])
def test_other_degrees_of_harmonics(degree: int) -> None:
    network = network_of("noposplat")
    config = replace(network.config, sh_degree=degree)
    with torch.inference_mode():
        output = type(network)(config)(**inputs("noposplat", 0, 1, 16, 16))
    assert output.harmonics.shape[-1] == (degree + 1) ** 2
