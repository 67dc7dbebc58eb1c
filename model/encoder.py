"""One view to tokens: the ViT that all networks of the family share."""

from __future__ import annotations

from torch import Tensor, nn

from model.config import PATCH, ModelConfig
from model.layers import NORM_EPS, EncoderBlock, PatchEmbed, rope_table


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads = config.encoder_width, config.encoder_heads
        self.head_width = width // heads
        self.patch_embed = PatchEmbed(width)
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(config.encoder_depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [-1, 1] to normed tokens (n, S, C), each image alone."""
        rope = rope_table(images.shape[-2] // PATCH, images.shape[-1] // PATCH, self.head_width, images.device)
        x = self.patch_embed(images)
        for block in self.blocks:
            x = block(x, rope)
        return self.norm(x)
