"""The networks by their released checkpoints: what tells one from the others, and its tensors' names there and here.

One more network is one more entry of FAMILIES.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.config import (
    PATCH,
    BackboneConfig,
    CroCoConfig,
    DUSt3RConfig,
    MASt3RConfig,
    ModelConfig,
    NoPoSplatConfig,
)
from model.croco import CroCo
from model.dust3r import DUSt3R
from model.mast3r import MASt3R
from model.mvdust3r import MVDUSt3R
from model.noposplat import NoPoSplat

Network = MVDUSt3R | DUSt3R | MASt3R | NoPoSplat | CroCo


class Shapes:
    """Sizes, as the names and shapes of tensors (under our names) tell them."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self._state)

    def size(self, released: int, *names: str) -> int:
        """First axis of most of these tensors, so that one misshapen changes nothing; the released size without any."""
        found = Counter(self._state[n].shape[0] for n in names if n in self._state and self._state[n].ndim)
        return found.most_common(1)[0][0] if found else released

    def depth(self, prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in self._state if name.startswith(prefix)})

    def backbone(self) -> dict[str, Any]:
        released = BackboneConfig()
        encoder_width = self.size(
            released.encoder_width,
            "encoder.patch_embed.proj.weight",
            "encoder.patch_embed.proj.bias",
            "encoder.norm.bias",
        )
        decoder_width = self.size(
            released.decoder_width, "decoder.embed.weight", "decoder.embed.bias", "decoder.norm.bias"
        )
        return {
            "encoder_width": encoder_width,
            "encoder_depth": self.depth("encoder.blocks."),
            "encoder_heads": _heads(encoder_width),
            "decoder_width": decoder_width,
            "decoder_depth": self.depth("decoder.blocks."),
            "decoder_heads": _heads(decoder_width),
        }


def _heads(width: int) -> int:
    """Attention heads, which shapes do not show.

    Released ones are 64 wide, but for the small decoder of CroCo (512: 32 wide); networks made for tests have 4.
    """
    if width == 512:
        return 16
    return width // 64 if width >= 256 and width % 64 == 0 else 4


@dataclass(frozen=True)
class Family:
    """A network, and how its released checkpoints call things."""

    name: str
    title: str
    network: type[Network]
    config: type[BackboneConfig]
    signs: tuple[str, ...]
    """Beginnings of tensors' names upstream. A checkpoint with one is of this family, if of none listed before it."""
    names: Mapping[str, str]
    """Beginning of a tensor's name upstream -> here; the first that fits counts."""
    sizes: Callable[[Shapes], dict[str, Any]]
    """What the configuration says beyond the backbone."""

    def own_name(self, name: str) -> str:
        """What we call upstream's tensor `name`; one of no known name keeps it."""
        theirs, ours = next((pair for pair in self.names.items() if name.startswith(pair[0])), ("", ""))
        return ours + name.removeprefix(theirs)

    def upstream_name(self, name: str) -> str:
        """What upstream calls our tensor `name`."""
        theirs, ours = next((pair for pair in self.names.items() if name.startswith(pair[1])), ("", ""))
        return theirs + name.removeprefix(ours)


def _under(theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    return {theirs + inner: ours + own for inner, own in names.items()}


def _in_heads(layer: str) -> list[str]:
    """Weight and bias of a layer that both heads have."""
    return [f"{head}.{layer}.{kind}" for head in ("reference_head", "head") for kind in ("weight", "bias")]


BACKBONE = {
    "patch_embed.": "encoder.patch_embed.",
    "enc_blocks.": "encoder.blocks.",
    "enc_norm.": "encoder.norm.",
    "decoder_embed.": "decoder.embed.",
    "dec_blocks.": "decoder.reference_blocks.",
    "dec_blocks2.": "decoder.blocks.",
    "dec_norm.": "decoder.norm.",
}
GAUSSIAN_MLPS = {
    "norm.": "norm.",
    "mlp_rgb.": "colour.",
    "mlp_opacity.": "opacity.",
    "mlp_scale2.": "scale.",
    "mlp_rotation.": "rotation.",
}
PYRAMID = {
    "act_postprocess.": "levels.",
    "scratch.layer_rn.": "reduce.",
    **{
        f"scratch.refinenet{level + 1}.{theirs}.": f"fuse.{level}.{ours}."
        for level in range(4)
        for theirs, ours in {"resConfUnit1": "skip", "resConfUnit2": "residual", "out_conv": "project"}.items()
    },
}
DENSE = PYRAMID | {"head.0.": "conv1.", "head.2.": "conv2.", "head.4.": "out."}
DENSE_IMAGE = PYRAMID | {"input_merger.0.": "image.", "head.0.": "conv.", "head.4.": "out."}

FAMILIES = (
    Family(
        name="mvdust3r",
        title="MV-DUSt3R",
        network=MVDUSt3R,
        config=ModelConfig,
        signs=("downstream_GS_head.", "downstream_head1.skip_proj."),
        names={
            **BACKBONE,
            "dec_same_view_blocks.": "decoder.cross_reference_blocks.",
            "downstream_head1.": "reference_head.points.",
            "downstream_head2.": "head.points.",
            **_under("downstream_GS_head.0.", "reference_head.gaussians.", GAUSSIAN_MLPS),
            **_under("downstream_GS_head.1.", "head.gaussians.", GAUSSIAN_MLPS),
        },
        sizes=lambda shapes: {
            "paths": 4 if shapes.has("decoder.cross_reference_blocks.") else 1,
            "skip_channels": shapes.size(256, *_in_heads("points.skip_proj.0.conv")),
            "gaussian_width": shapes.size(768, *_in_heads("gaussians.colour.0"), *_in_heads("gaussians.scale.0")),
        },
    ),
    Family(
        name="noposplat",
        title="NoPoSplat",
        network=NoPoSplat,
        config=NoPoSplatConfig,
        signs=("gaussian_param_head.", "backbone.intrinsic_encoder."),
        names={
            **_under("backbone.", "", BACKBONE | {"intrinsic_encoder.": "intrinsics."}),
            **_under("downstream_head1.dpt.", "reference_head.centres.", DENSE),
            **_under("downstream_head2.dpt.", "head.centres.", DENSE),
            **_under("gaussian_param_head.dpt.", "reference_head.gaussians.", DENSE_IMAGE),
            **_under("gaussian_param_head2.dpt.", "head.gaussians.", DENSE_IMAGE),
        },
        # Opacity, scale and rotation are 8 channels, each colour has (degree + 1)^2.
        sizes=lambda shapes: {
            "sh_degree": math.isqrt((max(11, shapes.size(83, *_in_heads("gaussians.out"))) - 8) // 3) - 1
        },
    ),
    Family(
        name="mast3r",
        title="MASt3R",
        network=MASt3R,
        config=MASt3RConfig,
        signs=("downstream_head1.head_local_features.",),
        names={
            **BACKBONE,
            "downstream_head1.head_local_features.": "reference_head.local_features.",
            "downstream_head2.head_local_features.": "head.local_features.",
            **_under("downstream_head1.dpt.", "reference_head.dpt.", DENSE),
            **_under("downstream_head2.dpt.", "head.dpt.", DENSE),
        },
        # A descriptor's channels and its confidence, for every pixel of a patch.
        sizes=lambda shapes: {
            "descriptor": max(2, shapes.size(25 * PATCH**2, *_in_heads("local_features.fc2")) // PATCH**2) - 1
        },
    ),
    Family(
        name="dust3r",
        title="DUSt3R",
        network=DUSt3R,
        config=DUSt3RConfig,
        signs=("downstream_head1.dpt.", "downstream_head1.proj."),
        names={
            **BACKBONE,
            "downstream_head1.proj.": "reference_head.proj.",
            "downstream_head2.proj.": "head.proj.",
            **_under("downstream_head1.dpt.", "reference_head.dpt.", DENSE),
            **_under("downstream_head2.dpt.", "head.dpt.", DENSE),
        },
        sizes=lambda shapes: {"dense": shapes.has("reference_head.dpt.")},
    ),
    Family(
        name="croco",
        title="CroCo",
        network=CroCo,
        config=CroCoConfig,
        signs=("prediction_head.",),
        names={
            **BACKBONE,
            "dec_blocks.": "decoder.blocks.",
            "prediction_head.": "head.",
            "enc_pos_embed": "encoder_positions",
            "dec_pos_embed": "decoder_positions",
        },
        sizes=lambda shapes: {"cosine_grid": math.isqrt(shapes.size(0, "encoder_positions", "decoder_positions"))},
    ),
)


def family_of(config: BackboneConfig) -> Family:
    return next(family for family in FAMILIES if family.config is type(config))
