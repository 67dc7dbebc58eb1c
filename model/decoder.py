"""Many views to one frame: multi-view blocks, and the fusion of several reference paths (MV-DUSt3R+, arXiv 2412.06974);
few views whose heads read every layer (DUSt3R, arXiv 2312.14132).

Shapes: B scenes, M paths, N views, S tokens a view, C channels. In path m, view references[m] is the reference: it has
blocks of its own. Slots are a path's views with its reference first. Paths and views are batched, and a view's keys and
values are made once, whichever views read them: a bias of -inf, not a copy of the memory, hides a view from itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.config import BackboneConfig, ModelConfig
from model.layers import NORM_EPS, DecoderBlock, Rope, own_group_bias, rope_table


def slot_order(reference: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """For references (M,), two (M, views): the view in each slot, the reference first, and the slot of each view."""
    index = torch.arange(views, device=reference.device)
    reference = reference[:, None]
    view_of_slot = torch.where(index == 0, reference, index - (index <= reference).long())
    slot_of_view = torch.where(index == reference, 0, index + (index < reference).long())
    return view_of_slot, slot_of_view


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads, depth = config.decoder_width, config.decoder_heads, config.decoder_depth
        self.head_width = width // heads
        self.embed = nn.Linear(config.encoder_width, width)
        self.reference_blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        fusions = depth if config.paths > 1 else 0
        self.cross_reference_blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(fusions))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, tokens: Tensor, references: Tensor, grid: tuple[int, int], *, every_path: bool = False) -> Tensor:
        """Encoder tokens (B, N, S, C) to normed tokens of path 0, (B, N, S, C), views in the given order.

        references: int64 (M,), references[0] = 0: the first view is the frame of the answer. M = 1 without fusion.
        grid: rows and columns of a view's tokens.
        every_path: with fusion, answer all paths, (B, N, M, S, C); references[0] may be any view then.
        """
        x = self.embed(tokens)
        rope = rope_table(*grid, self.head_width, x.device)
        if not self.cross_reference_blocks:
            own_view = own_group_bias(x.shape[1], x.shape[2], x)[x.shape[2] :]
            for reference_block, block in zip(self.reference_blocks, self.blocks, strict=True):
                x = multi_view_layer(x, reference_block, block, rope, own_view)
        else:
            x = self._fused_paths(x, references, rope, every_path)
        return self.norm(x)

    def _fused_paths(self, x: Tensor, references: Tensor, rope: Rope, every_path: bool) -> Tensor:
        """Embedded tokens (B, N, S, C) through all layers of M paths; of the last path 0's alone, (B, N, S, C), or
        every path's, (B, N, M, S, C)."""
        batch, views, count, _ = x.shape
        paths = references.shape[0]
        view_of_slot, slot_of_view = slot_order(references, views)
        path = torch.arange(paths, device=x.device)[:, None]
        to_views = (path * views + slot_of_view).T.reshape(-1)  # (N * M): where (view, path) lies among (path, slot)
        to_slots = (view_of_slot * paths + path).reshape(-1)  # (M * N): and the way back
        own_view = own_group_bias(views, count, x)[count:]
        own_path = own_group_bias(paths, count, x)
        x = x.index_select(1, view_of_slot.reshape(-1))
        last = len(self.blocks) - 1
        layers = zip(self.reference_blocks, self.blocks, self.cross_reference_blocks, strict=True)
        for depth, (reference_block, block, fusion) in enumerate(layers):
            x = x.reshape(batch * paths, views, count, -1)
            x = multi_view_layer(x, reference_block, block, rope, own_view)
            x = x.reshape(batch, paths * views, count, -1).index_select(1, to_views)
            x = x.reshape(batch * views, paths, count, -1)
            if depth == last and not every_path:
                x = fusion(x[:, :1], x[:, 1:], rope)
            else:
                x = fusion(x, x, rope, own_path)
                if depth < last:
                    x = x.reshape(batch, views * paths, count, -1).index_select(1, to_slots)
        return x.reshape(batch, views, paths, count, -1) if every_path else x.reshape(batch, views, count, -1)


def multi_view_layer(x: Tensor, reference_block: nn.Module, block: nn.Module, rope: Rope, own_view: Tensor) -> Tensor:
    """One layer of one path a group, slots x (G, N, S, C): every view reads all others as they were before the layer.

    own_view: ((N - 1) * S, N * S), -inf where a view other than the reference would read itself, else 0.
    """
    reference = reference_block(x[:, :1], x[:, 1:], rope)
    rest = block(x[:, 1:], x, rope, own_view)
    return torch.cat([reference, rest], dim=1)


class LayeredDecoder(nn.Module):
    """View 0 has blocks of its own, as in `Decoder`; but every layer is answered, and views may differ in size."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width, heads, depth = config.decoder_width, config.decoder_heads, config.decoder_depth
        self.head_width = width // heads
        self.embed = nn.Linear(config.encoder_width, width)
        self.reference_blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, views: Sequence[Tensor], ropes: Sequence[Rope]) -> list[list[Tensor]]:
        """Encoder tokens, one (B, S, C) a view, to each view's layers, (B, S, C): the encoder's, then every block's.

        The last is normed, those between are not. ropes: of each view, (S, 1, d) or (B, S, 1, d).
        """
        others = [[other for other in range(len(views)) if other != view] for view in range(len(views))]
        ropes = [(cos.unsqueeze(-4), sin.unsqueeze(-4)) for cos, sin in ropes]
        memory_ropes = [tuple(torch.cat([ropes[o][part] for o in rest], dim=-3) for part in (0, 1)) for rest in others]
        layers = [list(views)]
        x = [self.embed(tokens).unsqueeze(1) for tokens in views]
        for reference_block, block in zip(self.reference_blocks, self.blocks, strict=True):
            memories = [torch.cat([x[other] for other in rest], dim=2) for rest in others]
            x = [
                (block if view else reference_block)(
                    x[view], memories[view], ropes[view], memory_rope=memory_ropes[view]
                )
                for view in range(len(views))
            ]
            layers.append([tokens.squeeze(1) for tokens in x])
        layers[-1] = [self.norm(tokens) for tokens in layers[-1]]
        return [list(of_view) for of_view in zip(*layers, strict=True)]
