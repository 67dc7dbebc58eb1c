"""The networks' sizes, and the released ones by name. The view count is no part of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

PATCH = 16
"""Side of a patch in pixels: every network here cuts its images into 16 x 16 patches."""


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Encoder and decoder, which every network of the family has."""

    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    square: int | None = None
    """Side in pixels of the square images it was trained on, where its checkpoint tells."""
    long_side: int | None = None
    """Or the long side of images of several shapes."""


@dataclass(frozen=True, slots=True)
class ModelConfig(BackboneConfig):
    """MV-DUSt3R and MV-DUSt3R+."""

    paths: int = 1
    """Reference paths: views that each serve as a reference, fused after every layer (M of the paper); 1: no fusion."""
    skip_channels: int = 256
    gaussian_width: int = 768

    @property
    def network(self) -> str:
        return "mvdust3r-plus" if self.paths > 1 else "mvdust3r"


@dataclass(frozen=True, slots=True)
class DUSt3RConfig(BackboneConfig):
    network: ClassVar[str] = "dust3r"
    dense: bool = True
    """A DPT head, which reads four layers; else a linear one, which reads the last."""


@dataclass(frozen=True, slots=True)
class MASt3RConfig(BackboneConfig):
    network: ClassVar[str] = "mast3r"
    descriptor: int = 24
    """Channels of a pixel's descriptor."""


@dataclass(frozen=True, slots=True)
class NoPoSplatConfig(BackboneConfig):
    network: ClassVar[str] = "noposplat"
    sh_degree: int = 4
    """Of the spherical harmonics that give a Gaussian's colour: (sh_degree + 1)^2 coefficients a channel."""


@dataclass(frozen=True, slots=True)
class CroCoConfig(BackboneConfig):
    network: ClassVar[str] = "croco"
    cosine_grid: int = 0
    """Rows, and columns, of patches that a fixed sine-cosine position table is for (CroCo v1); 0: RoPE, any size."""


MVDUST3R = ModelConfig()
MVDUST3R_PLUS = replace(MVDUST3R, paths=4)
