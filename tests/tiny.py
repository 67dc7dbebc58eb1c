"""A tiny random network as an artifact: everything of a served model but its size and its skill."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch

from export.contract import DESCRIPTION_FILE
from model.config import BackboneConfig, DUSt3RConfig, MASt3RConfig, ModelConfig, NoPoSplatConfig
from model.dust3r import DUSt3R
from model.families import Network
from model.mast3r import MASt3R
from model.mvdust3r import MVDUSt3R
from model.noposplat import NoPoSplat

TINY_CONFIG = ModelConfig(
    encoder_width=32,
    encoder_depth=1,
    encoder_heads=2,
    decoder_width=32,
    decoder_depth=2,
    decoder_heads=2,
    paths=4,
    skip_channels=8,
    gaussian_width=16,
)
TINY_SQUARE = 32
TINY_HEADS = dataclasses.replace(TINY_CONFIG, encoder_width=128, decoder_width=128)
"""Its heads have 64 channels, as those of all released networks: attention of other widths is planned otherwise."""
TINY_PAIRS = DUSt3RConfig(
    encoder_width=32,
    encoder_depth=1,
    encoder_heads=4,
    decoder_width=32,
    decoder_depth=1,
    decoder_heads=4,
    dense=False,
)
"""Head counts that the rule for foreign checkpoints finds."""
TINY_MATCHES = MASt3RConfig(
    **{name: getattr(TINY_PAIRS, name) for name in BackboneConfig.__slots__},
    descriptor=8,
)
TINY_LONG_SIDE = 64
TINY_SPLATS = NoPoSplatConfig(
    **{name: getattr(TINY_PAIRS, name) for name in BackboneConfig.__slots__},
)
TINY_SPLAT_SQUARE = 64
NARROW = {"CHANNELS": 16, "OUTPUT_CHANNELS": 8, "LEVEL_CHANNELS": (8, 8, 16, 16)}
"""Widths of a dense head that computes at once: no released network's differ."""
SHARED = "SCENELIFT_TESTS_SHARED"
"""Environment: the folder that all processes of one run of the tests share (`tests/conftest.py`)."""


N = TypeVar("N", bound=Network)


def export_onnx(network: Network, folder: Path, name: str, licence: str, **limits: Any) -> None:
    """`export.onnx_graph.export_onnx`, imported when asked for: where there is a GPU, what it needs may be missing."""
    from export import onnx_graph

    onnx_graph.export_onnx(network, folder, name, licence, **limits)


def tiny_network(config: ModelConfig = TINY_CONFIG, seed: int = 0) -> MVDUSt3R:
    """A network with random weights, none of them zero, in eval mode."""
    return with_random_weights(MVDUSt3R(config), seed)


def tiny_pair_network(config: DUSt3RConfig | MASt3RConfig = TINY_PAIRS, seed: int = 0) -> DUSt3R | MASt3R:
    """The same for a pairwise network."""
    return with_random_weights(MASt3R(config) if isinstance(config, MASt3RConfig) else DUSt3R(config), seed)


def tiny_splat_network(seed: int = 0) -> NoPoSplat:
    """The same for NoPoSplat, its heads narrow."""
    with patch.multiple("model.dpt", **NARROW):
        return with_random_weights(NoPoSplat(TINY_SPLATS), seed)


def with_random_weights(network: N, seed: int) -> N:
    """None of them zero; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            gain = parameter.shape[1:].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(gain * noise + (1.0 if is_norm else 0.0))
    return network.eval()


def make_tiny_artifact(folder: Path, name: str = "tiny") -> Path:
    """Write the tiny artifact to `folder / name`, where `export.sessions.open_model` opens it; that folder.

    The export takes some 15 s, once a run of the tests; further ones are copies.
    """
    return _copy(_exported(), folder / name, name)


def make_tiny_pair_artifact(folder: Path, name: str = "tiny-pairs") -> Path:
    """The same of a pairwise network."""
    return _copy(_exported_pairs(), folder / name, name)


def make_tiny_splat_artifact(folder: Path, name: str = "tiny-splats") -> Path:
    """The same of NoPoSplat, for two or three views."""
    return _copy(_exported_splats(), folder / name, name)


def _copy(artifact: Path, target: Path, name: str) -> Path:
    shutil.copytree(artifact, target)
    description = json.loads((target / DESCRIPTION_FILE).read_text())
    (target / DESCRIPTION_FILE).write_text(json.dumps(description | {"name": name}))
    return target


def exported_once(name: str, export: Callable[[Path], object]) -> Path:
    """The folder that `export(folder)` writes, whole or not at all: by the first of this run's processes that asks.

    Read only: a test that changes it copies it.
    """
    with one_at_a_time(name) as shared:
        folder = shared / name
        if not folder.exists():
            export(folder)
    return folder


@contextmanager
def one_at_a_time(name: str) -> Iterator[Path]:
    """The folder that this run's processes share, for one of them that does what is called `name`; others wait."""
    shared = Path(os.environ[SHARED])
    with (shared / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shared


def _exported() -> Path:
    return exported_once(
        "tiny", lambda folder: export_onnx(tiny_network(), folder, "tiny", "Apache-2.0", square=TINY_SQUARE)
    )


def _exported_pairs() -> Path:
    return exported_once(
        "tiny-pairs",
        lambda folder: export_onnx(tiny_pair_network(), folder, "tiny-pairs", "Apache-2.0", long_side=TINY_LONG_SIDE),
    )


def _exported_splats() -> Path:
    return exported_once(
        "tiny-splats",
        lambda folder: export_onnx(
            tiny_splat_network(), folder, "tiny-splats", "Apache-2.0", square=TINY_SPLAT_SQUARE, max_views=3
        ),
    )
