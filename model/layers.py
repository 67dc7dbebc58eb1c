"""What every network of the family is made of: patches, RoPE-2D, attention, MLP, pre-norm blocks.

Shapes: G groups, V views in a group, S tokens a view, C channels, h heads of d = C / h channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import PATCH

NORM_EPS = 1e-6
ROPE_BASE = 100.0

Rope = tuple[Tensor, Tensor]
"""Cosines and signed sines of the tokens' angles, each (S, 1, d), with axes before them where views differ."""


def rope_table(rows: int, columns: int, head_width: int, device: torch.device) -> Rope:
    """Angles of RoPE-2D for a rows x columns grid of tokens, row-major (RoFormer, arXiv 2104.09864; CroCo v2).

    The first half of a head turns with the token's row, the second with its column; frequency k of a half of
    width d / 2 is 100^(-2k / (d / 2)).
    """
    half = head_width // 2
    frequency = ROPE_BASE ** (-torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns).reshape(-1, 1, 1) * frequency
    column = torch.arange(columns, device=device)[None, :].expand(rows, columns).reshape(-1, 1, 1) * frequency
    cos = torch.cat([row.cos(), row.cos(), column.cos(), column.cos()], dim=-1)
    sin = torch.cat([-row.sin(), row.sin(), -column.sin(), column.sin()], dim=-1)
    return cos, sin


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn the heads x (..., S, h, d) by their tokens' positions.

    A half of a head is (x1, x2) and becomes (x1 cos - x2 sin, x2 cos + x1 sin).
    """
    cos, sin = rope
    row1, row2, column1, column2 = x.chunk(4, dim=-1)
    return (x * cos + torch.cat([row2, row1, column2, column1], dim=-1) * sin).to(x.dtype)


def own_group_bias(count: int, tokens: int, like: Tensor) -> Tensor:
    """(count * tokens, count * tokens), to add to logits: -inf where query and key are of one group, else 0.

    Its type and device are those of `like`.
    """
    group = torch.arange(count, device=like.device)[:, None].expand(count, tokens).reshape(-1)
    same = group[:, None] == group[None, :]
    return like.new_zeros(()).masked_fill(same, -torch.inf)


class PatchEmbed(nn.Module):
    """Images (n, 3, H, W) to tokens (n, S, C), row-major."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        # In the order they have here: else every sum after them lies channel by channel, and every norm turns its copy.
        return self.proj(images).flatten(2).transpose(1, 2).contiguous()


class Mlp(nn.Module):
    def __init__(self, width: int, ratio: int = 4, width_out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width_out or width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Self-attention inside each view: x (..., S, C) to the same shape; all leading axes are batch."""

    rotate = staticmethod(rotate)

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, dim=-1))
        q, k, v = (t.flatten(0, -4).transpose(1, 2) for t in (self.rotate(q, rope), self.rotate(k, rope), v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2)).reshape(x.shape)


class CrossAttention(nn.Module):
    """Attention of one set of views to another. Keys and values are made once a view, whoever reads them."""

    rotate = staticmethod(rotate)

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, memory: Tensor, rope: Rope, bias: Tensor | None, memory_rope: Rope | None = None
    ) -> Tensor:
        """Queries x (G, V, S, C), memory (G, W, S, C), bias (V * S, W * S) added to the logits.

        memory_rope: where the memory's tokens are; None: where those of x are.
        """
        q = self.rotate(self._heads(self.projq(x)), rope)
        k = self.rotate(self._heads(self.projk(memory)), memory_rope or rope)
        v = self._heads(self.projv(memory))
        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).flatten(2)).reshape(x.shape)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        """Tokens x (n, S, C) to the same shape."""
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Self-attention inside each view, cross-attention to a memory, MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm_y = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)

    def forward(
        self, x: Tensor, memory: Tensor, rope: Rope, bias: Tensor | None = None, memory_rope: Rope | None = None
    ) -> Tensor:
        """Tokens x (G, V, S, C) read memory (G, W, S, C): see CrossAttention."""
        x = x + self.attn(self.norm1(x), rope)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), rope, bias, memory_rope)
        return x + self.mlp(self.norm3(x))
