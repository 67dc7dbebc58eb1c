"""DUSt3R (arXiv 2312.14132): two photos to points, both in the first one's frame, and confidence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.config import PATCH, BackboneConfig, DUSt3RConfig, MASt3RConfig
from model.decoder import LayeredDecoder
from model.dpt import DenseHead
from model.encoder import Encoder, token_grid
from model.heads import to_confidence, to_pixels, to_points
from model.layers import Rope, rope_table
from model.output import NetworkOutput

Fields = dict[str, Tensor]


class LinearHead(nn.Module):
    """Points and confidence, a linear layer a patch."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.decoder_width, 4 * PATCH * PATCH)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Fields:
        """All layers of a view, (n, S, C) each, to fields (n, H, W, ...)."""
        return points_and_confidence(to_pixels(self.proj(layers[-1]), grid))


class DPTHead(nn.Module):
    """Points and confidence, from four layers."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.dpt = DenseHead(config, channels=4)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Fields:
        """All layers of a view, (n, S, C) each, to fields (n, H, W, ...)."""
        return points_and_confidence(self.dpt(layers, grid))


def points_and_confidence(raw: Tensor) -> Fields:
    """(n, 4, H, W) to (n, H, W, 3) and (n, H, W)."""
    return {"points": to_points(raw[:, :3]), "confidence": to_confidence(raw[:, 3])}


class PairNetwork(nn.Module):
    """All but the heads, which are what differs between DUSt3R and MASt3R."""

    def __init__(self, config: DUSt3RConfig | MASt3RConfig, reference_head: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = LayeredDecoder(config)
        self.reference_head = reference_head
        self.head = head

    def forward(self, images: Tensor, portrait: Tensor | None = None) -> NetworkOutput:
        """Reconstruct B pairs in the frame of their first view.

        images: float32 (B, 2, 3, H, W) in [-1, 1], H and W multiples of 16.
        portrait: bool (B, 2), True where a view's image, and with it its answer, is stored with rows and columns
            exchanged: so views of either orientation share a batch. None: all are stored as they are.
        Raises ValueError for other shapes.
        """
        grid = token_grid(images, views=2)
        if portrait is not None and portrait.shape != images.shape[:2]:
            raise ValueError(f"portrait is (B, 2), not {tuple(portrait.shape)}")
        turned = None if portrait is None else portrait.flatten()
        tokens = self.encode(images.flatten(0, 1), turned).unflatten(0, (-1, 2))
        return NetworkOutput.of_views(self.decode(tokens.unbind(1), (grid, grid), portrait))

    def encode(self, images: Tensor, portrait: Tensor | None = None) -> Tensor:
        """Images (n, 3, H, W) to tokens (n, S, C), each alone: once a photo, however many pairs it is in."""
        x = self.encoder.patch_embed(images)
        if portrait is not None:
            x = torch.where(portrait[:, None, None], self.encoder.patch_embed(images.mT), x)
        grid = (images.shape[-2] // PATCH, images.shape[-1] // PATCH)
        return self.encoder.encode(x, _rope(grid, self.encoder.head_width, portrait, x.device))

    def decode(
        self, views: Sequence[Tensor], grids: Sequence[tuple[int, int]], portrait: Tensor | None = None
    ) -> list[Fields]:
        """Tokens of the two views of B pairs, (B, S, C) each, to each view's fields, (B, H, W, ...).

        grids: rows and columns of each view's tokens, as its images are stored: the views may differ in size.
        """
        turned = (None, None) if portrait is None else portrait.unbind(1)
        ropes = [_rope(g, self.decoder.head_width, t, x.device) for x, g, t in zip(views, grids, turned, strict=True)]
        layers = self.decoder(views, ropes)
        heads = (self.reference_head, self.head)
        return [_oriented(*view) for view in zip(heads, layers, grids, turned, strict=True)]


def _rope(grid: tuple[int, int], head_width: int, portrait: Tensor | None, device: torch.device) -> Rope:
    """Angles of the tokens, (S, 1, d), or (n, S, 1, d) where each image has its orientation, portrait (n,)."""
    upright = rope_table(*grid, head_width, device)
    if portrait is None:
        return upright
    pairs = zip(rope_table(*grid[::-1], head_width, device), upright, strict=True)
    cos, sin = (torch.where(portrait[:, None, None, None], turned, own) for turned, own in pairs)
    return cos, sin


def _oriented(head: nn.Module, layers: Sequence[Tensor], grid: tuple[int, int], portrait: Tensor | None) -> Fields:
    """The head's answer for n views, those stored with rows and columns exchanged (portrait, (n,)) apart."""
    if portrait is None or not portrait.any():
        return head(layers, grid)
    if portrait.all():
        return {name: field.transpose(1, 2) for name, field in head(layers, grid[::-1]).items()}
    upright = _oriented(head, [x[~portrait] for x in layers], grid, None)
    turned = _oriented(head, [x[portrait] for x in layers], grid, portrait[portrait])
    place = torch.cat([(~portrait).nonzero(), portrait.nonzero()]).squeeze(1).argsort()
    return {name: torch.cat([upright[name], turned[name]])[place] for name in upright}


class DUSt3R(PairNetwork):
    def __init__(self, config: DUSt3RConfig) -> None:
        head = DPTHead if config.dense else LinearHead
        super().__init__(config, head(config), head(config))
