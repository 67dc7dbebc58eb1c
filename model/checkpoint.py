"""Checkpoints to networks: Scenelift's own (safetensors) and the released ones, strict, and none of their code is run.

A released checkpoint's network and sizes are read from its tensors' names and shapes alone.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.mvdust3r import MVDUSt3R

METADATA_KEY = "scenelift"

UPSTREAM_NAMES = {
    "patch_embed.": "encoder.patch_embed.",
    "enc_blocks.": "encoder.blocks.",
    "enc_norm.": "encoder.norm.",
    "decoder_embed.": "decoder.embed.",
    "dec_blocks.": "decoder.reference_blocks.",
    "dec_blocks2.": "decoder.blocks.",
    "dec_same_view_blocks.": "decoder.cross_reference_blocks.",
    "dec_norm.": "decoder.norm.",
    "downstream_head1.": "reference_head.points.",
    "downstream_head2.": "head.points.",
    **{
        f"downstream_GS_head.{index}.{theirs}.": f"{head}.gaussians.{ours}."
        for index, head in enumerate(("reference_head", "head"))
        for theirs, ours in {
            "norm": "norm",
            "mlp_rgb": "colour",
            "mlp_opacity": "opacity",
            "mlp_scale2": "scale",
            "mlp_rotation": "rotation",
        }.items()
    },
}
"""Prefix of a tensor's name upstream -> here."""

UNUSED_UPSTREAM = {"mask_token"}
"""Left over from pre-training: no network here reads it."""

# A path in the training arguments is made as a pure one: it names a place on a system that may not be this one.
_SAFE_GLOBALS = [
    argparse.Namespace,
    *(
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name, pure in {
            "Path": pathlib.PurePath,
            "PurePath": pathlib.PurePath,
            "PosixPath": pathlib.PurePosixPath,
            "PurePosixPath": pathlib.PurePosixPath,
            "WindowsPath": pathlib.PureWindowsPath,
            "PureWindowsPath": pathlib.PureWindowsPath,
        }.items()
    ),
]


class CheckpointError(Exception):
    """This file cannot become a network, for the reason given."""


def load(path: Path | str, device: torch.device | str = "cpu") -> MVDUSt3R:
    """A ready network: eval mode, float32, on `device`; from Scenelift's own form or a released checkpoint.

    Raises CheckpointError for a file that is no checkpoint, holds Python objects beyond tensors and plain settings, is
    of another network, or lacks, misshapes or adds a tensor (each is named); OSError for one that cannot be read.
    """
    path = Path(path)
    state, stored = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path), None)
    try:
        network = build(state, stored)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from None
    return network.to(device).eval()


def save(network: MVDUSt3R, path: Path | str) -> None:
    """Write Scenelift's own form: the tensors, and the configuration as JSON in the file's metadata."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, partial, metadata={METADATA_KEY: json.dumps(asdict(network.config))})
    partial.replace(path)


def build(state: Mapping[str, Tensor], stored: Mapping[str, Any] | None = None) -> MVDUSt3R:
    """A network from tensors under upstream's names, or, with the `stored` configuration, under our own.

    The configuration's sizes are never trusted: they follow from the tensors, only the head counts, which do not show
    in them, are taken from it. Raises CheckpointError.
    """
    if stored is None:
        state = _own_names(state)
    config = _config(state)
    if stored is not None:
        try:
            config = replace(config, encoder_heads=stored["encoder_heads"], decoder_heads=stored["decoder_heads"])
        except KeyError as error:
            raise CheckpointError(f"the stored configuration lacks {error}") from None
    for width, heads in (
        (config.encoder_width, config.encoder_heads),
        (config.decoder_width, config.decoder_heads),
    ):
        if not isinstance(heads, int) or heads < 1 or width % (4 * heads):
            raise CheckpointError(f"a width of {width} cannot be cut into {heads} heads")
    with torch.device("meta"):
        network = MVDUSt3R(config)
    _compare(state, network.state_dict(), upstream=stored is None)
    # Cloned: a tensor may be a window into the file, which could change or go.
    converted = {
        name: tensor.clone() if tensor.dtype == torch.int64 else tensor.to(torch.float32, copy=True)
        for name, tensor in state.items()
    }
    network.load_state_dict(converted, assign=True)
    return network


def upstream_name(name: str) -> str:
    """What upstream calls our tensor `name`."""
    theirs, ours = next((t, o) for t, o in UPSTREAM_NAMES.items() if name.startswith(o))
    return theirs + name.removeprefix(ours)


def _own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's tensors under our names; those of no known name keep theirs."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if not any(name.startswith("downstream_GS_head.") for name in state):
        raise CheckpointError(_which(state))
    if not any(name.startswith("dec_blocks2.") for name in state):
        # Upstream's own rule: such a checkpoint was trained with one set of blocks.
        shared = [name for name in state if name.startswith("dec_blocks.")]
        state |= {name.replace("dec_blocks.", "dec_blocks2.", 1): state[name] for name in shared}
    own = {}
    for name, tensor in state.items():
        if name not in UNUSED_UPSTREAM:
            theirs = next((prefix for prefix in UPSTREAM_NAMES if name.startswith(prefix)), "")
            own[UPSTREAM_NAMES.get(theirs, "") + name.removeprefix(theirs)] = tensor
    return own


def _which(names: Mapping[str, Tensor]) -> str:
    """Why a checkpoint without MV-DUSt3R's Gaussian head is refused."""
    signs = {
        "gaussian_param_head": "NoPoSplat",
        "head_local_features": "MASt3R",
        "downstream_head1.dpt.": "DUSt3R with a DPT head",
        "downstream_head1.skip_proj.": "MV-DUSt3R without its Gaussian head",
        "downstream_head1.proj.": "DUSt3R with a linear head",
        "prediction_head.": "CroCo",
    }
    for sign, network in signs.items():
        if any(sign in name for name in names):
            return f"this looks like {network}, which is not supported yet: MV-DUSt3R and MV-DUSt3R+ are"
    return "its tensors are of no network known here: MV-DUSt3R and MV-DUSt3R+ are supported"


def _config(state: Mapping[str, Tensor]) -> ModelConfig:
    """Sizes, from names and shapes; where a tensor is missing, the released size (the comparison then names it)."""

    def size(name: str, default: int) -> int:
        return state[name].shape[0] if name in state and state[name].ndim else default

    def depth(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})

    def heads(width: int) -> int:
        # Released networks have heads 64 wide. Shapes do not show it; small ones, made for tests, have 4 heads.
        return width // 64 if width >= 256 and width % 64 == 0 else 4

    released = ModelConfig()
    encoder_width = size("encoder.patch_embed.proj.weight", released.encoder_width)
    decoder_width = size("decoder.embed.weight", released.decoder_width)
    return ModelConfig(
        encoder_width=encoder_width,
        encoder_depth=depth("encoder.blocks."),
        encoder_heads=heads(encoder_width),
        decoder_width=decoder_width,
        decoder_depth=depth("decoder.reference_blocks."),
        decoder_heads=heads(decoder_width),
        paths=4 if depth("decoder.cross_reference_blocks.") else 1,
        skip_channels=size("reference_head.points.skip_proj.0.conv.weight", released.skip_channels),
        gaussian_width=size("reference_head.gaussians.colour.0.weight", released.gaussian_width),
    )


def _compare(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], upstream: bool) -> None:
    """Raise CheckpointError naming every tensor that is missing, unknown or of another shape, as the file calls it."""

    def called(name: str) -> str:
        return upstream_name(name) if upstream and name in expected else name

    faults = [f"{called(name)} is missing" for name in expected if name not in state]
    for name, tensor in state.items():
        if name not in expected:
            faults.append(f"{called(name)} is unknown")
        elif tensor.shape != expected[name].shape:
            faults.append(f"{called(name)} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}")
    if faults:
        raise CheckpointError("; ".join(faults))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors, and the configuration if the file is our own."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
            stored = None if metadata is None else json.loads(metadata)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path.name} is not a readable safetensors file: {error}") from None
    if stored is not None and not isinstance(stored, dict):
        raise CheckpointError(f"{path.name}: its stored configuration is not a JSON object")
    return state, stored


def _read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote: a state dict, or a training checkpoint that has one as `model`."""
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            # Mapped, an optimiser's state, twice the size of the weights, is never read.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        names = _foreign_globals(path)
        reason = f"it calls {', '.join(names)}" if names else str(error).splitlines()[0]
        raise CheckpointError(
            f"{path.name} is refused: more than tensors and plain settings, and no file's code is run ({reason})"
        ) from None
    except OSError:
        raise
    except Exception as error:  # whatever torch's readers stumble over in a file that is none of theirs
        raise CheckpointError(f"{path.name} is not a readable checkpoint: {error}") from None
    state = content
    if isinstance(content, dict):
        state = next((content[key] for key in ("model", "state_dict") if key in content), content)
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise CheckpointError(f"{path.name} holds no state dict")
    return state


def _foreign_globals(path: Path) -> list[str]:
    """Python objects, by name, that a torch file would import and that are not allowed."""
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        return []
