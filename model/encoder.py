"""One view to tokens: the ViT that all networks of the family share."""

from __future__ import annotations

from torch import Tensor, nn

from model.config import PATCH, BackboneConfig
from model.layers import NORM_EPS, EncoderBlock, PatchEmbed, Rope, rope_table


def token_grid(images: Tensor, views: int | None = None) -> tuple[int, int]:
    """Rows and columns of the tokens of images (B, N, 3, H, W). Raises ValueError for other shapes or counts of views.

    views: how many there must be; None: at least two.
    """
    if images.ndim != 5 or images.shape[2] != 3 or images.shape[-2] % PATCH or images.shape[-1] % PATCH:
        raise ValueError(f"images are (B, N, 3, H, W), H and W multiples of {PATCH}, not {tuple(images.shape)}")
    if images.shape[1] < 2 or views not in (None, images.shape[1]):
        raise ValueError(f"{'at least two' if views is None else views} views are needed, not {images.shape[1]}")
    return images.shape[-2] // PATCH, images.shape[-1] // PATCH


class Encoder(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width, heads = config.encoder_width, config.encoder_heads
        self.head_width = width // heads
        self.patch_embed = PatchEmbed(width)
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(config.encoder_depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [-1, 1] to normed tokens (n, S, C), each image alone."""
        rope = rope_table(images.shape[-2] // PATCH, images.shape[-1] // PATCH, self.head_width, images.device)
        return self.encode(self.patch_embed(images), rope)

    def encode(self, x: Tensor, rope: Rope) -> Tensor:
        """Embedded tokens (n, S, C), wherever they are, to normed ones."""
        for block in self.blocks:
            x = block(x, rope)
        return self.norm(x)
