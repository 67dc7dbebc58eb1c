"""A network's sizes, and the released ones by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

PATCH = 16
"""Side of a patch in pixels: every network here cuts its images into 16 x 16 patches."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of an MV-DUSt3R or MV-DUSt3R+ network. The view count is no part of it: any N >= 2 works."""

    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    paths: int = 1
    """Reference paths: views that each serve as a reference, fused after every layer (M of the paper); 1: no fusion."""
    skip_channels: int = 256
    gaussian_width: int = 768

    @property
    def network(self) -> str:
        return "mvdust3r-plus" if self.paths > 1 else "mvdust3r"


MVDUST3R = ModelConfig()
MVDUST3R_PLUS = replace(MVDUST3R, paths=4)
