"""Checkpoints to networks: Scenelift's own (safetensors) and the released ones, strict, and none of their code is run.

A released checkpoint's network and sizes are read from its tensors' names and shapes alone; the text of its training
arguments tells how large the images were, and no more.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import MVDUST3R, BackboneConfig
from model.families import FAMILIES, Family, Network, Shapes, family_of

METADATA_KEY = "scenelift"

KNOWN = ", ".join(family.title for family in FAMILIES)
MOST_FAULTS = 20
"""Faults that a refusal names one by one."""

WRAPPERS = ("module.", "encoder.")
"""What training code puts before every name: parallel training, NoPoSplat's Lightning module."""
_TWIN = re.compile(r"\.layer([1-4])_rn\.")
"""A DPT head's file has four tensors under two names each, or under one of them: this, or `.layer_rn.0.` to `.3.`."""
_UNUSED = re.compile(r"(^|\.)mask_token$|\.refinenet4\.resConfUnit1\.")
"""What nothing reads: left over from pre-training, and a unit that has no input."""

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


def load(path: Path | str, device: torch.device | str = "cpu") -> Network:
    """A ready network: eval mode, float32, on `device`; from Scenelift's own form or a released checkpoint.

    Raises CheckpointError for a file that is no checkpoint, holds Python objects beyond tensors and plain settings, is
    of another network, or lacks, misshapes or adds a tensor (each is named); OSError for one that cannot be read.
    """
    path = Path(path)
    trained_on: Mapping[str, int] = {}
    stored = None
    if path.suffix == ".safetensors":
        state, stored = _read_safetensors(path)
    else:
        state, trained_on = _read_torch(path)
    try:
        network = build(state, stored, trained_on)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from None
    return network.to(device).eval()


def save(network: Network, path: Path | str) -> None:
    """Write Scenelift's own form: the tensors, and the configuration as JSON in the file's metadata."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    described = {"family": family_of(network.config).name, **asdict(network.config)}
    save_file(state, partial, metadata={METADATA_KEY: json.dumps(described)})
    partial.replace(path)


def build(
    state: Mapping[str, Tensor],
    stored: Mapping[str, Any] | None = None,
    trained_on: Mapping[str, int] = MappingProxyType({}),
) -> Network:
    """A network from tensors under upstream's names, or, with the `stored` configuration, under our own.

    The configuration's sizes are never trusted: they follow from the tensors, only the head counts and the images'
    size, which do not show in them, are taken from it. trained_on: `square` or `long_side` of what has no `stored` one.
    Raises CheckpointError.
    """
    family, state, called = _from_upstream(state) if stored is None else _from_own(state, stored)
    shapes = Shapes(state)
    config = family.config(**shapes.backbone(), **family.sizes(shapes), **trained_on)
    if stored is not None:
        try:
            config = replace(config, encoder_heads=stored["encoder_heads"], decoder_heads=stored["decoder_heads"])
        except KeyError as error:
            raise CheckpointError(f"the stored configuration lacks {error}") from None
        sides = {field: stored.get(field) for field in ("square", "long_side")}  # the first files did not have them
        for field, side in sides.items():
            if not isinstance(side, int | None):
                raise CheckpointError(f"the stored {field} of images is {side!r}, no number of pixels")
        config = replace(config, **sides)
    for width, heads in (
        (config.encoder_width, config.encoder_heads),
        (config.decoder_width, config.decoder_heads),
    ):
        if not isinstance(heads, int) or heads < 1 or width % (4 * heads):
            raise CheckpointError(f"a width of {width} cannot be cut into {heads} heads")
    with torch.device("meta"):
        network = family.network(config)
    expected = network.state_dict()
    state = {name: tensor for name, tensor in state.items() if name in expected or not _UNUSED.search(called(name))}
    if faults := _faults(state, expected, called):
        raise CheckpointError(f"this is no whole {family.title}: {'; '.join(faults)}")
    # Cloned: a tensor may be a window into the file, which could change or go.
    converted = {
        name: tensor.clone() if tensor.dtype == torch.int64 else tensor.to(torch.float32, copy=True)
        for name, tensor in state.items()
    }
    network.load_state_dict(converted, assign=True)
    return network


def upstream_name(name: str, config: BackboneConfig = MVDUST3R) -> str:
    """What upstream calls the tensor `name` of our network of this configuration."""
    return family_of(config).upstream_name(name)


Called = Callable[[str], str]
"""A tensor's name here -> what it is called, or would be, in the file."""


def _from_own(state: Mapping[str, Tensor], stored: Mapping[str, Any]) -> tuple[Family, Mapping[str, Tensor], Called]:
    name = stored.get("family", "mvdust3r")  # the first files did not say: there was one
    family = next((family for family in FAMILIES if family.name == name), None)
    if family is None:
        raise CheckpointError(f"its network {name!r} is not known here ({KNOWN} are)")
    return family, state, str


def _from_upstream(state: Mapping[str, Tensor]) -> tuple[Family, Mapping[str, Tensor], Called]:
    """The family, and the tensors under our names; those of no known name keep theirs."""
    prefix = ""
    for wrapper in WRAPPERS:
        if any(name.startswith(prefix + wrapper) for name in state):
            prefix += wrapper
    bare = [name.removeprefix(prefix) for name in state]
    family = next((f for f in FAMILIES if any(name.startswith(f.signs) for name in bare)), None)
    if family is None:
        raise CheckpointError(f"its tensors are of no network known here ({KNOWN} are)")
    own: dict[str, Tensor] = {}
    called: dict[str, str] = {}
    for name, tensor in state.items():
        ours = family.own_name(_TWIN.sub(lambda m: f".layer_rn.{int(m[1]) - 1}.", name.removeprefix(prefix)))
        if ours in own and not _same(own[ours], tensor):
            raise CheckpointError(f"{called[ours]} and {name} are one tensor, but differ")
        own[ours], called[ours] = tensor, name
    if not any(name.startswith("decoder.blocks.") for name in own):
        # Upstream's own rule: such a checkpoint was trained with one set of blocks.
        reference = "decoder.reference_blocks."
        own |= {n.replace(reference, "decoder.blocks.", 1): t for n, t in own.items() if n.startswith(reference)}
    return family, own, lambda ours: called.get(ours) or prefix + family.upstream_name(ours)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal; or not finite, which is a fault of its own."""
    return a.shape == b.shape and (a.is_meta or torch.equal(a, b) or not torch.isfinite(a).all())


def _faults(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], called: Called) -> list[str]:
    """What is missing, unknown, misshapen or not finite, each named as the file does."""
    faults = [f"{called(name)} is missing" for name in expected if name not in state]
    for name, tensor in state.items():
        if name not in expected:
            faults.append(f"{called(name)} is unknown")
        elif tensor.shape != expected[name].shape:
            faults.append(f"{called(name)} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}")
        elif not tensor.is_meta and not torch.isfinite(tensor).all():
            faults.append(f"{called(name)} has values that are not finite")
    if len(faults) > MOST_FAULTS:
        faults[MOST_FAULTS:] = [f"and {len(faults) - MOST_FAULTS} more"]
    return faults


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


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors of a file that torch.save wrote: a state dict, or a training checkpoint that has one as `model`.

    And how large images were in training, where its arguments tell.
    """
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
    return state, _trained_on(content.get("args"))


def _trained_on(args: object) -> dict[str, int]:
    """`square` or `long_side` of the images, from the constructor's text in the training arguments: read, never run."""
    text = getattr(args, "model", None)
    size = re.search(r"img_size=\((\d{1,5}), *(\d{1,5})\)", text) if isinstance(text, str) else None
    if size is None:
        return {}
    sides = [int(side) for side in size.groups()]
    if "ManyAR_PatchEmbed" in text:  # patches of images of several shapes
        return {"long_side": max(sides)}
    return {"square": sides[0]} if sides[0] == sides[1] else {}


def _foreign_globals(path: Path) -> list[str]:
    """Python objects, by name, that a torch file would import and that are not allowed."""
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        return []
