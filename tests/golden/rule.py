"""The weights that the golden outputs were made with: every tensor follows from its upstream name and shape."""

from __future__ import annotations

import re
import zlib

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoint import upstream_name
from model.config import BackboneConfig
from model.croco import cosine_table
from model.families import Network, family_of


def golden_tensor(name: str, shape: tuple[int, ...]) -> NDArray:
    """The tensor called `name` upstream."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    name = re.sub(r"\.layer_rn\.(\d)\.", lambda m: f".layer{int(m[1]) + 1}_rn.", name)
    n = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, dtype=np.float32)
    if name.endswith("running_mean"):
        return np.float32(0.1) * n
    if name.endswith("running_var"):
        return np.float32(1) + np.float32(0.1) * np.abs(n)
    if len(shape) >= 2:
        gain = 0.85 if len(shape) == 4 else 1.0
        return n * np.float32(gain / np.sqrt(np.prod(shape[1:])))
    if name.endswith("weight"):
        return np.float32(1) + np.float32(0.1) * n
    return np.float32(0.02) * n


def golden_network(config: BackboneConfig) -> Network:
    """The network of the golden outputs, in eval mode."""
    with torch.device("meta"):
        network = family_of(config).network(config)
    state = {
        name: torch.from_numpy(np.array(golden_tensor(upstream_name(name, config), tuple(tensor.shape))))
        for name, tensor in network.state_dict().items()
    }
    # Not weights: upstream, too, computes its table of positions.
    state |= {n: cosine_table(config.cosine_grid, t.shape[1]) for n, t in state.items() if n.endswith("_positions")}
    network.load_state_dict(state, assign=True)
    return network.eval()
