"""MASt3R (arXiv 2406.09756): DUSt3R, and a descriptor a pixel to match the views by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import PATCH, MASt3RConfig
from model.dust3r import DPTHead, Fields, PairNetwork
from model.heads import to_confidence, to_pixels
from model.layers import Mlp


class MatchingHead(DPTHead):
    """Points and confidence, and descriptors from the encoder's and the decoder's last tokens."""

    def __init__(self, config: MASt3RConfig) -> None:
        super().__init__(config)
        width = config.encoder_width + config.decoder_width
        self.local_features = Mlp(width, width_out=(config.descriptor + 1) * PATCH * PATCH)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Fields:
        """All layers of a view, (n, S, C) each, to fields (n, H, W, ...)."""
        raw = to_pixels(self.local_features(torch.cat([layers[0], layers[-1]], dim=-1)), grid)
        descriptors = F.normalize(raw[:, :-1], dim=1).permute(0, 2, 3, 1)
        matching = {"descriptors": descriptors, "descriptor_confidence": to_confidence(raw[:, -1], least=0.0)}
        return super().forward(layers, grid) | matching


class MASt3R(PairNetwork):
    def __init__(self, config: MASt3RConfig) -> None:
        super().__init__(config, MatchingHead(config), MatchingHead(config))
