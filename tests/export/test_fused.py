"""That fused steps are the same steps. How fast they are, and that Triton takes them, only a GPU can tell."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from export.fused import fuse
from export.precision import written_in
from model.layers import Attention, CrossAttention
from tests.tiny import TINY_HEADS, tiny_network, tiny_pair_network


def test_fused_steps_give_the_same_values() -> None:
    network = tiny_network(TINY_HEADS)
    plain, fused = written_in(network, "bf16"), written_in(network, "bf16")
    assert fuse(fused, torch.bfloat16, "cpu", backend="eager")
    turned = [part for part in fused.modules() if isinstance(part, Attention | CrossAttention)]
    assert len({part.rotate for part in turned}) == 1
    assert turned[0].rotate is not Attention.rotate
    for views, batch in ((5, 1), (2, 2)):
        images = torch.rand(batch, views, 3, 32, 32, generator=torch.Generator().manual_seed(views)) * 2 - 1
        with torch.inference_mode():
            torch.testing.assert_close(fused(images).points, plain(images).points)


def test_fused_norms_answer_in_half_precision() -> None:
    """That is what saves the time; the last norms, which heads read in float32, are as they were."""
    network = written_in(tiny_network(), "bf16")
    assert fuse(network, torch.bfloat16, "cpu", backend="eager")
    types = {}
    for name, part in network.named_modules():
        if isinstance(part, nn.LayerNorm):
            part.register_forward_hook(lambda _part, _inputs, output, name=name: types.update({name: output.dtype}))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 3, 32, 32))
    of_blocks = {dtype for name, dtype in types.items() if "blocks." in name}
    assert of_blocks == {torch.bfloat16}
    assert {types[name] for name in ("encoder.norm", "decoder.norm", "head.gaussians.norm")} == {torch.float32}


def test_views_of_two_sizes() -> None:
    network = tiny_pair_network()
    plain, fused = written_in(network, "fp16"), written_in(network, "fp16")
    assert fuse(fused, torch.float16, "cpu", backend="eager")
    images = torch.rand(2, 2, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    portrait = torch.tensor([[True, False], [False, True]])
    with torch.inference_mode():
        torch.testing.assert_close(fused(images, portrait).points, plain(images, portrait).points)


def test_where_nothing_can_be_compiled_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_graph, _inputs):
        raise RuntimeError("no C compiler")

    network = written_in(tiny_network(), "bf16")
    with caplog.at_level(logging.WARNING):
        assert not fuse(network, torch.bfloat16, "cpu", backend=broken)
    assert "not fused" in caplog.text
    assert "no C compiler" in caplog.text
    assert all("forward" not in vars(part) for part in network.modules())
