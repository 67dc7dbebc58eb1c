"""MV-DUSt3R and MV-DUSt3R+ (arXiv 2412.06974): N photos to points, confidence and Gaussians in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.decoder import Decoder, slot_order
from model.encoder import Encoder, token_grid
from model.heads import Head
from model.output import NetworkOutput


class MVDUSt3R(nn.Module):
    """Both networks: with `config.paths` > 1 the reference paths are fused after every layer (MV-DUSt3R+)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.reference_head = Head(config)
        self.head = Head(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform linear layers; fusion blocks and the skip CNN start out adding nothing (upstream)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.decoder.cross_reference_blocks:
            for linear in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):
                nn.init.zeros_(linear.weight)
        for head in (self.reference_head, self.head):
            nn.init.zeros_(head.points.skip_proj[-1].conv.weight)
            nn.init.zeros_(head.points.skip_proj[-1].conv.bias)

    def default_references(self, views: int) -> tuple[int, ...]:
        """The first views, as many as the network has paths."""
        return tuple(range(min(self.config.paths, views)))

    def forward(self, images: Tensor, references: Sequence[int] | Tensor | None = None) -> NetworkOutput:
        """Reconstruct B scenes of N >= 2 views.

        images: float32 (B, N, 3, H, W) in [-1, 1], H and W multiples of 16 (released weights: 224 x 224).
        references: M different view indices, the first is the frame of the answer; None: `default_references`.
            MV-DUSt3R takes M = 1; MV-DUSt3R+ any M from 2 to N and was trained with 4.
        Raises ValueError for other shapes or references.
        """
        grid = token_grid(images)
        views = images.shape[1]
        if references is None:
            references = self.default_references(views)
        if not isinstance(references, Tensor):
            self._check_references(references, views)
            references = torch.tensor(references, device=images.device)

        # From here on path 0's reference is view 0.
        view_of_slot, slot_of_view = (order[0] for order in slot_order(references[:1], views))
        images = images.index_select(1, view_of_slot)
        references = slot_of_view.index_select(0, references)

        tokens = self.encoder(images.flatten(0, 1)).unflatten(0, (-1, views))
        tokens = self.decoder(tokens, references, grid)
        slots = torch.arange(views, device=images.device)
        answers = []
        for head, part in ((self.reference_head, slots[:1]), (self.head, slots[1:])):
            # Gathered, not sliced: torch.export cannot settle whether a slice of dynamic sizes can be flattened.
            own = (x.index_select(1, part).flatten(0, 1) for x in (tokens, images))
            answers.append([field.unflatten(0, (-1, part.shape[0])) for field in head(*own, grid)])
        fields = (torch.cat(pair, dim=1).index_select(1, slot_of_view) for pair in zip(*answers, strict=True))
        return NetworkOutput(*fields)

    def every_path(self, images: Tensor, references: Sequence[int] | None = None) -> NetworkOutput:
        """The answers of all M paths, as training supervises them: fields (B, M, N, H, W, ...), those of path m in the
        frame of view references[m]; views in the given order.

        Arguments and errors as of `forward`, which computes path 0 alone.
        """
        grid = token_grid(images)
        batch, views = images.shape[:2]
        if references is None:
            references = self.default_references(views)
        self._check_references(references, views)
        paths, references = len(references), torch.tensor(references, device=images.device)
        view_of_slot, slot_of_view = slot_order(references, views)
        path = torch.arange(paths, device=images.device)[:, None]

        # A path's slots have its reference first: (B, M, N, ...).
        tokens = self.encoder(images.flatten(0, 1)).unflatten(0, (-1, views))
        if self.config.paths == 1:
            tokens = self.decoder(tokens.index_select(1, view_of_slot[0]), references, grid)[:, None]
        else:
            tokens = self.decoder(tokens, references, grid, every_path=True).transpose(1, 2)[:, path, view_of_slot]
        images = images[:, view_of_slot]
        answers = []
        for head, part in ((self.reference_head, slice(0, 1)), (self.head, slice(1, views))):
            own = (x[:, :, part].flatten(0, 2) for x in (tokens, images))
            answers.append([field.unflatten(0, (batch, paths, -1)) for field in head(*own, grid)])
        fields = (torch.cat(pair, dim=2)[:, path, slot_of_view] for pair in zip(*answers, strict=True))
        return NetworkOutput(*fields)

    def _check_references(self, references: Sequence[int], views: int) -> None:
        low, high = (1, 1) if self.config.paths == 1 else (2, views)
        if not low <= len(references) <= high or len(set(references)) != len(references):
            raise ValueError(f"{self.config.network} takes {low} to {high} references, all different: {references}")
        if not all(0 <= r < views for r in references):
            raise ValueError(f"references {tuple(references)} are not among {views} views")
