"""What every network answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GaussianOutput:
    """One Gaussian a pixel; its centre is the pixel's point. Fields as in NetworkOutput."""

    scale: Tensor
    rotation: Tensor
    opacity: Tensor
    colour: Tensor


@dataclass(frozen=True, slots=True)
class NetworkOutput:
    """The answer for B scenes of N views, in the frame of the reference view (the first, if none was named)."""

    points: Tensor
    """(B, N, H, W, 3)."""
    confidence: Tensor
    """(B, N, H, W), 1 to 1e9. NoPoSplat predicts none: its opacity, 0 to 1."""
    scale: Tensor | None = None
    """(B, N, H, W, 3). MV-DUSt3R's are raw: of either sign, before the scale rule (`export.sessions`)."""
    rotation: Tensor | None = None
    """(B, N, H, W, 4) unit quaternions, w x y z."""
    opacity: Tensor | None = None
    """(B, N, H, W), 0 to 1."""
    colour: Tensor | None = None
    """(B, N, H, W, 3), raw. Released MV-DUSt3R leaves it untrained: a Gaussian takes its pixel's colour instead.
    NoPoSplat's is RGB, 0 to about 1, from its harmonics of degree 0."""
    harmonics: Tensor | None = None
    """(B, N, H, W, 3, K) spherical harmonics of R, G, B, degree by degree; colour = 0.5 + their sum, at least 0."""
    descriptors: Tensor | None = None
    """(B, N, H, W, D), of length 1: pixels that show one point have like ones."""
    descriptor_confidence: Tensor | None = None
    """(B, N, H, W), > 0."""

    @property
    def gaussians(self) -> GaussianOutput | None:
        """Shape and colour of the Gaussians, where the network predicts them."""
        if self.scale is None:
            return None
        return GaussianOutput(self.scale, self.rotation, self.opacity, self.colour)

    @classmethod
    def of_views(cls, views: Sequence[Mapping[str, Tensor]]) -> NetworkOutput:
        """From one mapping a view, field to (B, H, W, ...)."""
        return cls(**{field: torch.stack([view[field] for view in views], dim=1) for field in views[0]})
