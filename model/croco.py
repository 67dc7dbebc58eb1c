"""CroCo (arXiv 2210.10716) and CroCo v2 (arXiv 2211.10408): the masked patches of a photo, completed with a second one.

The pre-training that gives the other networks their encoder and decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import PATCH, CroCoConfig
from model.encoder import Encoder, token_grid
from model.layers import NORM_EPS, DecoderBlock, Rope, rope_table

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""A channel's value u, 0 to 1, enters as (u - mean) / std: not as in the other networks."""
MASKED_SHARE = 0.9
VARIANCE_EPS = 1e-6


def patches(images: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, S, 768), a patch row by row, colour last."""
    b, _, h, w = images.shape
    x = images.reshape(b, 3, h // PATCH, PATCH, w // PATCH, PATCH)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, 3 * PATCH * PATCH)


def from_patches(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The way back: (B, S, 768) to (B, 3, H, W)."""
    rows, columns = grid
    x = x.reshape(-1, rows, columns, PATCH, PATCH, 3).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(-1, 3, rows * PATCH, columns * PATCH)


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, (B, S, 1): what a prediction is relative to."""
    variance, mean = torch.var_mean(patches(images), dim=-1, keepdim=True)
    return mean, (variance + VARIANCE_EPS).sqrt()


def random_mask(batch: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """(batch, count), True for the share of patches that training hides, as many in each row."""
    return torch.rand(batch, count, generator=generator).argsort(dim=1) < int(MASKED_SHARE * count)


def completion_loss(predicted: Tensor, images: Tensor, mask: Tensor, relative: bool = True) -> Tensor:
    """Mean squared error of the masked patches; relative: of patches of mean 0 and variance 1, as in training.

    predicted: (B, S, 768); images: (B, 3, H, W); mask: bool (B, S).
    """
    target = patches(images)
    if relative:
        mean, std = statistics(images)
        target = (target - mean) / std
    error = (predicted - target).square().mean(dim=-1)
    return (error * mask).sum() / mask.sum()


def cosine_table(side: int, width: int) -> Tensor:
    """Fixed positions of side x side patches, (S, width): of the column, then of the row, sines and cosines each."""
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=-1)
    rows, columns = wave[:, None].expand(side, side, -1), wave[None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).float()


class Completer(nn.Module):
    """Decoder of one branch: the first view's tokens read the second's, which stay as they were embedded."""

    def __init__(self, config: CroCoConfig) -> None:
        super().__init__()
        width, heads = config.decoder_width, config.decoder_heads
        self.head_width = width // heads
        self.embed = nn.Linear(config.encoder_width, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor, memory: Tensor, rope: Rope) -> Tensor:
        """Embedded tokens (B, S, C), both, to normed ones of the first view."""
        x, memory = x.unsqueeze(1), memory.unsqueeze(1)
        for block in self.blocks:
            x = block(x, memory, rope)
        return self.norm(x.squeeze(1))


class CroCo(nn.Module):
    def __init__(self, config: CroCoConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Completer(config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_width))
        self.head = nn.Linear(config.decoder_width, 3 * PATCH * PATCH)
        if config.cosine_grid:
            self.register_buffer("encoder_positions", cosine_table(config.cosine_grid, config.encoder_width))
            self.register_buffer("decoder_positions", cosine_table(config.cosine_grid, config.decoder_width))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """The first view's patches, (B, S, 768), relative to their own mean and deviation (see `complete`).

        images: float32 (B, 2, 3, H, W), normalised by MEAN and STD, H and W multiples of 16.
        mask: bool (B, S), True where a patch of the first view is hidden; as many in each row.
        Raises ValueError for other shapes or masks.
        """
        grid = token_grid(images, views=2)
        self._check(grid, mask, len(images))
        first, second = self.encoder.patch_embed(images.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        rope = self._rope(grid, self.encoder.head_width, images.device)
        if self.config.cosine_grid:
            first, second = first + self.encoder_positions, second + self.encoder_positions
        visible = mask.int().argsort(dim=1, stable=True)[:, : int((~mask[0]).sum())]
        place = visible.unsqueeze(-1)
        seen = self.encoder.encode(
            first.gather(1, place.expand(-1, -1, first.shape[-1])), tuple(table[visible] for table in rope)
        )
        second = self.decoder.embed(self.encoder.encode(second, rope))
        hidden = self.mask_token.to(second.dtype).expand_as(second)
        first = hidden.scatter(1, place.expand(-1, -1, second.shape[-1]), self.decoder.embed(seen))
        if self.config.cosine_grid:
            first, second = first + self.decoder_positions, second + self.decoder_positions
        return self.head(self.decoder(first, second, self._rope(grid, self.decoder.head_width, images.device)))

    def complete(self, images: Tensor, mask: Tensor) -> Tensor:
        """The first view, (B, 3, H, W), from the network alone: every patch with the true one's mean and deviation."""
        mean, std = statistics(images[:, 0])
        return from_patches(self(images, mask) * std + mean, token_grid(images))

    def _rope(self, grid: tuple[int, int], head_width: int, device: torch.device) -> Rope:
        """Angles of all tokens; with a fixed table instead, every token lies at 0, which turns nothing."""
        if self.config.cosine_grid:
            return tuple(t.expand(grid[0] * grid[1], -1, -1) for t in rope_table(1, 1, head_width, device))
        return rope_table(*grid, head_width, device)

    def _check(self, grid: tuple[int, int], mask: Tensor, batch: int) -> None:
        side = self.config.cosine_grid
        if side and grid != (side, side):
            raise ValueError(f"this network's positions are for {side * PATCH} x {side * PATCH} pixels alone")
        if mask.dtype != torch.bool or mask.shape != (batch, grid[0] * grid[1]):
            raise ValueError(f"the mask is bool {(batch, grid[0] * grid[1])}, not {mask.dtype} {tuple(mask.shape)}")
        hidden = mask.sum(dim=1)
        if (hidden != hidden[0]).any() or hidden[0] == mask.shape[1]:
            raise ValueError("each row of the mask hides as many patches, and not all")
