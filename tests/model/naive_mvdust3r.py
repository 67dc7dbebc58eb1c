"""MV-DUSt3R and MV-DUSt3R+ once more, the slow way: what the fast networks are compared with, in values and in time.

Written from the paper (arXiv 2412.06974) and from what is known of the released code's way of working, in its order:
one path after the other, one view after the other, the memory of a view gathered and projected anew for that view,
batch normalisation on its own, the heads on every path. Only tensors are shared with the networks, by their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import ModelConfig
from model.mvdust3r import NetworkOutput


class NaiveMVDUSt3R:
    """The network of `config` whose tensors are `state`, named as in the state dict of `model.mvdust3r.MVDUSt3R`."""

    def __init__(self, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
        self.config = config
        self.state = state

    def __call__(self, images: Tensor, references: Sequence[int]) -> list[NetworkOutput]:
        """Images (N, 3, H, W) of one scene to one answer a path, each with B = 1 and the views in the given order.

        Path m answers in the frame of view references[m].
        """
        views, paths = range(len(images)), range(len(references))
        self.grid = images.shape[-2] // 16, images.shape[-1] // 16
        # Upstream batches the views here, as they share all weights and do not meet.
        tokens = F.conv2d(images, *self.weights("encoder.patch_embed.proj"), stride=16).flatten(2).transpose(1, 2)
        for depth in range(self.config.encoder_depth):
            tokens = self.encoder_block(f"encoder.blocks.{depth}", tokens)
        tokens = self.linear("decoder.embed", self.norm("encoder.norm", tokens))

        state = [[tokens[view : view + 1] for view in views] for _ in paths]
        for depth in range(self.config.decoder_depth):
            state = [self.multi_view_layer(depth, state[m], references[m]) for m in paths]
            if self.config.paths > 1:
                state = self.cross_reference_layer(depth, state)

        answers = []
        for view in views:
            tokens = self.norm("decoder.norm", torch.cat([state[m][view] for m in paths]))
            for m in paths:
                head = "reference_head" if view == references[m] else "head"
                answers.append(self.head(head, tokens[m : m + 1], images[view : view + 1]))
        of_path = (answers[m :: len(paths)] for m in paths)
        return [NetworkOutput(*(torch.stack(field, dim=1) for field in zip(*path, strict=True))) for path in of_path]

    def multi_view_layer(self, depth: int, state: list[Tensor], reference: int) -> list[Tensor]:
        """One path: every view reads all other views as they were before this layer."""
        new = []
        for view, tokens in enumerate(state):
            blocks = "decoder.reference_blocks" if view == reference else "decoder.blocks"
            memory = torch.cat([other for index, other in enumerate(state) if index != view], dim=1)
            new.append(self.decoder_block(f"{blocks}.{depth}", tokens, memory))
        return new

    def cross_reference_layer(self, depth: int, state: list[list[Tensor]]) -> list[list[Tensor]]:
        """Every view in every path reads the same view in the other paths as it was before this layer."""
        new = []
        for m, path in enumerate(state):
            new.append([])
            for view, tokens in enumerate(path):
                memory = torch.cat([other[view] for index, other in enumerate(state) if index != m], dim=1)
                new[m].append(self.decoder_block(f"decoder.cross_reference_blocks.{depth}", tokens, memory))
        return new

    def encoder_block(self, name: str, x: Tensor) -> Tensor:
        x = x + self.self_attention(f"{name}.attn", self.norm(f"{name}.norm1", x), self.config.encoder_heads)
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x))

    def decoder_block(self, name: str, x: Tensor, memory: Tensor) -> Tensor:
        heads = self.config.decoder_heads
        x = x + self.self_attention(f"{name}.attn", self.norm(f"{name}.norm1", x), heads)
        query, memory = self.norm(f"{name}.norm2", x), self.norm(f"{name}.norm_y", memory)
        q, k, v = (
            self.linear(f"{name}.cross_attn.{role}", read)
            for role, read in (("projq", query), ("projk", memory), ("projv", memory))
        )
        x = x + self.linear(f"{name}.cross_attn.proj", self.attention(q, k, v, heads))
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm3", x))

    def self_attention(self, name: str, x: Tensor, heads: int) -> Tensor:
        q, k, v = self.linear(f"{name}.qkv", x).chunk(3, dim=-1)
        return self.linear(f"{name}.proj", self.attention(q, k, v, heads))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Queries (n, S, C), keys and values (n, k * S, C) of k views to (n, S, C)."""
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v)
        return out.transpose(1, 2).flatten(2)

    def rotated(self, x: Tensor) -> Tensor:
        """Tokens (n, heads, k * S, d) of k views, the first half of d turned by their row, the second by their column.

        Frequency j of a half (x1, x2) of width h turns the pair (x1[j], x2[j]) by position * 100^(-2 j / h).
        """
        rows, columns = self.grid
        half = x.shape[-1] // 2
        frequency = 100 ** (-2 * torch.arange(half // 2) / half)
        turned = []
        row, column = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
        for positions, part in zip((row, column), x.chunk(2, dim=-1), strict=True):
            angle = positions.repeat(x.shape[-2] // (rows * columns))[:, None] * frequency
            x1, x2 = part.chunk(2, dim=-1)
            turned += [x1 * angle.cos() - x2 * angle.sin(), x2 * angle.cos() + x1 * angle.sin()]
        return torch.cat(turned, dim=-1)

    def head(self, name: str, tokens: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        """Tokens (1, S, C) and the image (1, 3, H, W) to the fields of NetworkOutput without their axis of views."""
        raw = self.pixels(self.linear(f"{name}.points.proj", tokens))
        xyz, logit = raw[:, :3], raw[:, 3]
        x = torch.cat([image, xyz], dim=1)
        for index in range(4):
            layer = f"{name}.points.skip_proj.{index}"
            weight, bias = self.weights(f"{layer}.conv")
            x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
            mean, variance = self.state[f"{layer}.norm.running_mean"], self.state[f"{layer}.norm.running_var"]
            x = F.batch_norm(x, mean, variance, *self.weights(f"{layer}.norm"))
            x = F.selu(x) if index < 3 else x
        xyz = xyz + 1e-4 * x
        distance = xyz.norm(dim=1, keepdim=True)
        points = xyz / distance.clamp_min(1e-8) * torch.expm1(distance)
        confidence = 1 + logit.exp().clamp_max(1e9 - 1)

        normed = F.layer_norm(tokens, tokens.shape[-1:], *self.weights(f"{name}.gaussians.norm"))
        scale, rotation, opacity, colour = (
            self.pixels(self.linear(f"{mlp}.2", F.relu(self.linear(f"{mlp}.0", normed)))).permute(0, 2, 3, 1)
            for mlp in (f"{name}.gaussians.{kind}" for kind in ("scale", "rotation", "opacity", "colour"))
        )
        rotation = rotation / rotation.norm(dim=-1, keepdim=True).clamp_min(1e-5)
        return points.permute(0, 2, 3, 1), confidence, 0.1 * scale, rotation, opacity[..., 0].sigmoid(), colour

    def pixels(self, x: Tensor) -> Tensor:
        """(n, S, k * 256), channels ordered (k, row in the patch, column in the patch), to (n, k, H, W)."""
        n, (rows, columns) = len(x), self.grid
        x = x.reshape(n, rows, columns, -1, 16, 16)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(n, -1, 16 * rows, 16 * columns)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x)))

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self.weights(name), eps=1e-6)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self.weights(name))

    def weights(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
