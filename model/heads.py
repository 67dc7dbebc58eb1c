"""Tokens to pixels: points with confidence, and Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import PATCH, ModelConfig
from model.winograd import KERNEL, conv5x5

SKIP_GAIN = 1e-4
SCALE_GAIN = 0.1
CONFIDENCE_LIMIT = 1e9
"""Upper bound of a confidence: the exponential of a wild logit must not become infinite."""
VIEWS_AT_ONCE = 2
"""Views in the skip CNN at a time: one view fills any device, and one layer of it holds 51 MB at the released size."""


def _as_a_whole(module: nn.Module) -> bool:
    """Whether a module must show its plain layers and take all views at once: batch statistics are learned from all of
    them, and an exported graph has no loop over a number of views it does not know; its runtime folds layers itself."""
    return module.training or torch.compiler.is_exporting()


def to_pixels(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (n, S, k * 256), channels ordered (k, row, column), to an image (n, k, H, W).

    In float32, whatever the tokens are: what follows are exponentials, which would magnify a coarser rounding.
    """
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), PATCH).float()


def to_points(xyz: Tensor) -> Tensor:
    """Raw (n, 3, H, W) to points (n, H, W, 3): the length r of a raw vector becomes exp(r) - 1 (DUSt3R)."""
    xyz = xyz.float()  # an exponential would magnify a coarser rounding
    norm = torch.linalg.vector_norm(xyz, dim=1, keepdim=True)
    return (xyz / norm.clamp_min(1e-8) * torch.expm1(norm)).permute(0, 2, 3, 1)


def to_confidence(logit: Tensor, least: float = 1.0) -> Tensor:
    """Logits to confidences in [least, CONFIDENCE_LIMIT]."""
    return least + logit.float().exp().clamp_max(CONFIDENCE_LIMIT - least)


class ConvNorm(nn.Module):
    """Convolution of equal size, then batch normalisation; in eval mode one convolution."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        if _as_a_whole(self):
            return self.norm(self.conv(x))
        scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        bias = (self.conv.bias - self.norm.running_mean) * scale + self.norm.bias
        weight = self.conv.weight * scale[:, None, None, None]
        if x.device.type == "cpu" and self.conv.kernel_size == (KERNEL, KERNEL):  # GPUs' libraries know better
            return conv5x5(x, weight, bias)
        return F.conv2d(x, weight, bias, padding=self.conv.padding)


class PointHead(nn.Module):
    """Points and confidence: a linear layer a patch, refined by a small CNN that sees the image."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.skip_channels
        self.proj = nn.Linear(config.decoder_width, 4 * PATCH * PATCH)
        self.skip_proj = nn.ModuleList(
            [
                ConvNorm(6, channels, 3),
                ConvNorm(channels, channels, 5),
                ConvNorm(channels, channels, 5),
                ConvNorm(channels, 3, 3),
            ]
        )

    def forward(self, tokens: Tensor, images: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens (n, S, C) and images (n, 3, H, W) to points (n, H, W, 3) and confidence (n, H, W) in [1, 1e9]."""
        xyz, logit = to_pixels(self.proj(tokens), grid).split([3, 1], dim=1)
        x = torch.cat([images, xyz], dim=1)
        parts = (x,) if _as_a_whole(self) else x.split(VIEWS_AT_ONCE)
        xyz = xyz + SKIP_GAIN * torch.cat([self._skip(part) for part in parts])
        return to_points(xyz), to_confidence(logit.squeeze(1))

    def _skip(self, x: Tensor) -> Tensor:
        for layer in self.skip_proj[:-1]:
            x = F.selu(layer(x), inplace=True)
        return self.skip_proj[-1](x)


class GaussianHead(nn.Module):
    """Shape, opacity and colour of one Gaussian a pixel, from the tokens alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.decoder_width, config.gaussian_width

        def mlp(channels: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels * PATCH**2, bias=False)
            )

        self.norm = nn.LayerNorm(width)  # eps 1e-5, unlike the rest of the network
        self.colour = mlp(3)
        self.opacity = mlp(1)
        self.scale = mlp(3)
        self.rotation = mlp(4)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (n, S, C) to scale (n, H, W, 3) of either sign, unit rotation w x y z (n, H, W, 4), opacity (n, H, W)
        in [0, 1] and colour (n, H, W, 3), unbounded."""
        x = self.norm(tokens)
        scale, rotation, opacity, colour = (
            to_pixels(mlp(x), grid).permute(0, 2, 3, 1)
            for mlp in (self.scale, self.rotation, self.opacity, self.colour)
        )
        rotation = rotation / torch.linalg.vector_norm(rotation, dim=-1, keepdim=True).clamp_min(1e-5)
        return SCALE_GAIN * scale, rotation, opacity.squeeze(-1).sigmoid(), colour


class Head(nn.Module):
    """All that is read from one view's tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.points = PointHead(config)
        self.gaussians = GaussianHead(config)

    def forward(self, tokens: Tensor, images: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        """Tokens (n, S, C), images (n, 3, H, W): points, confidence, scale, rotation, opacity, colour; (n, H, W, k)."""
        return *self.points(tokens, images, grid), *self.gaussians(tokens, grid)
