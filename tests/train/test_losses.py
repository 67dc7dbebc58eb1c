"""Training's losses: the reference implementation's goldens, laws, and what they must not be moved by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.mvdust3r import MVDUSt3R
from tests.tiny import TINY_CONFIG, tiny_network

NETWORKS = [(TINY_CONFIG, (2, 0, 3)), (TINY_CONFIG, (0, 1, 2, 3)), (replace(TINY_CONFIG, paths=1), (2,))]


@pytest.mark.parametrize(("config", "references"), NETWORKS)
def test_every_path_is_what_the_network_answers_for_that_reference(config, references):
    """Path m of all is the one path of a forward pass with references[m] first."""
    network = tiny_network(config)
    images = torch.rand(2, 4, 3, 32, 48) * 2 - 1
    with torch.inference_mode():
        every = network.every_path(images, references)
        for path, reference in enumerate(references):
            alone = network(images, (reference, *(r for r in references if r != reference)))
            for name in ("points", "confidence", "scale", "rotation", "opacity", "colour"):
                got, expected = getattr(every, name)[:, path], getattr(alone, name)
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=5e-5)


def test_every_path_is_trained():
    network = MVDUSt3R(TINY_CONFIG)
    network.every_path(torch.rand(1, 4, 3, 32, 32)).points.square().mean().backward()
    assert all(block.mlp.fc2.weight.grad.abs().sum() > 0 for block in network.decoder.cross_reference_blocks)
    with pytest.raises(ValueError, match="all different"):
        network.every_path(torch.rand(1, 4, 3, 32, 32), (0, 0))
