"""NoPoSplat (arXiv 2410.24207): two or three photos and their intrinsics to Gaussians in the first one's frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import NoPoSplatConfig
from model.decoder import LayeredDecoder, multi_view_layer
from model.dpt import DenseHead, DenseImageHead
from model.encoder import Encoder, token_grid
from model.heads import to_points
from model.layers import Rope, own_group_bias, rope_table
from model.output import NetworkOutput
from model.types import SH_C0

SCALE_GAIN = 0.001
SCALE_LIMIT = 0.3
HARMONIC_GAIN = 0.1
HARMONIC_DECAY = 0.25
"""Harmonics of degree l >= 1 are 0.1 * 0.25^l of what the head says: colours start out nearly the same all round."""


def harmonic_gains(degree: int) -> list[float]:
    """One a coefficient, (degree + 1)^2."""
    return [1.0] + [HARMONIC_GAIN * HARMONIC_DECAY**d for d in range(1, degree + 1) for _ in range(2 * d + 1)]


class ViewsDecoder(LayeredDecoder):
    """`LayeredDecoder` for views of one size, batched: one graph for any number of them."""

    def forward(self, tokens: Tensor, rope: Rope) -> list[Tensor]:
        """Encoder tokens (B, N, S, C) to layers (B, N, S, C): the encoder's, then every block's, the last normed."""
        x = self.embed(tokens)
        layers = [tokens]
        own_view = own_group_bias(x.shape[1], x.shape[2], x)[x.shape[2] :]
        for reference_block, block in zip(self.reference_blocks, self.blocks, strict=True):
            x = multi_view_layer(x, reference_block, block, rope, own_view)
            layers.append(x)
        return [*layers[:-1], self.norm(x)]


class GaussianHead(nn.Module):
    """Centres, and the Gaussians around them."""

    def __init__(self, config: NoPoSplatConfig) -> None:
        super().__init__()
        self.degree = config.sh_degree
        self.centres = DenseHead(config, channels=3)
        self.gaussians = DenseImageHead(config, channels=8 + 3 * (self.degree + 1) ** 2)

    def forward(self, layers: Sequence[Tensor], image: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        """All layers of a view, (n, S, C) each, and its image (n, 3, H, W), to fields (n, H, W, ...)."""
        raw = self.gaussians(layers, image, grid).permute(0, 2, 3, 1)
        opacity, scale, rotation, harmonics = raw.split([1, 3, 4, raw.shape[-1] - 8], dim=-1)
        opacity = opacity.squeeze(-1).sigmoid()
        rotation = rotation / (torch.linalg.vector_norm(rotation, dim=-1, keepdim=True) + 1e-8)
        harmonics = harmonics.unflatten(-1, (3, -1)) * harmonics.new_tensor(harmonic_gains(self.degree))
        return {
            "points": to_points(self.centres(layers, grid)),
            "confidence": opacity,
            "scale": (SCALE_GAIN * F.softplus(scale)).clamp_max(SCALE_LIMIT),
            "rotation": rotation.roll(1, dims=-1),  # the head's order is x y z w
            "opacity": opacity,
            "colour": (0.5 + SH_C0 * harmonics[..., 0]).clamp_min(0),
            "harmonics": harmonics,
        }


class NoPoSplat(nn.Module):
    def __init__(self, config: NoPoSplatConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.intrinsics = nn.Linear(9, config.encoder_width)
        self.decoder = ViewsDecoder(config)
        self.reference_head = GaussianHead(config)
        self.head = GaussianHead(config)

    def forward(self, images: Tensor, intrinsics: Tensor) -> NetworkOutput:
        """Reconstruct B scenes of N >= 2 views (released weights: 2 or 3) in the frame of their first view.

        images: float32 (B, N, 3, H, W) in [-1, 1], H and W multiples of 16 (released weights: 256 x 256, 512 x 512).
        intrinsics: float32 (B, N, 3, 3), K with its first row divided by the image's width, its second by the height.
        Raises ValueError for other shapes.
        """
        rows, columns = grid = token_grid(images)
        views = images.shape[1]
        if intrinsics.shape != (*images.shape[:2], 3, 3):
            raise ValueError(f"intrinsics are (B, N, 3, 3), as many as images, not {tuple(intrinsics.shape)}")

        # The camera is one more token of its view, placed where a further row would begin.
        def rope(head_width: int) -> Rope:
            cos, sin = rope_table(rows + 1, columns, head_width, images.device)
            return cos[: rows * columns + 1], sin[: rows * columns + 1]

        camera = self.intrinsics(intrinsics.flatten(-2)).flatten(0, 1).unsqueeze(1)
        tokens = torch.cat([self.encoder.patch_embed(images.flatten(0, 1)), camera], dim=1)
        tokens = self.encoder.encode(tokens, rope(self.encoder.head_width)).unflatten(0, (-1, views))
        layers = self.decoder(tokens, rope(self.decoder.head_width))
        index = torch.arange(views, device=images.device)
        answers = []
        for head, part in ((self.reference_head, index[:1]), (self.head, index[1:])):
            # Gathered, not sliced: torch.export cannot settle whether a slice of dynamic sizes can be flattened.
            own, image = ([x.index_select(1, part).flatten(0, 1) for x in group] for group in (layers, [images]))
            fields = head([x[:, :-1] for x in own], image[0], grid)
            answers.append({name: field.unflatten(0, (-1, part.shape[0])) for name, field in fields.items()})
        return NetworkOutput(**{name: torch.cat([answer[name] for answer in answers], dim=1) for name in answers[0]})
