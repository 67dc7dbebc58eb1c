"""The steps between a network's products in one kernel each, on a CUDA GPU.

PyTorch runs a norm in float32 and its rounding to half precision, or the five steps of a rotation, one after the
other, each of which reads and writes all tokens. Counted in bytes that is as much time at 24 views, on an H100, as half
of all products. torch.compile makes one kernel of each, which reads and writes once; values are as before but for the
order of sums. It needs Triton, which PyTorch for CUDA brings, and a C compiler.
"""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers import Attention, CrossAttention, DecoderBlock, EncoderBlock, Rope, rope_table

log = logging.getLogger(__name__)


def fuse(network: nn.Module, dtype: torch.dtype, device: str, backend: str = "inductor") -> bool:
    """Fuse the norms and rotations of the blocks of a network whose products are in `dtype`, as `export.precision`
    writes it; whether that could be done here. Where not, it stays as it is, and the log says why.

    backend: of torch.compile.
    """
    norm, turn = (torch.compile(step, dynamic=True, backend=backend) for step in (_norm, _turn))

    def fused_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2) if x.is_contiguous() else x.flatten(1, -2)  # in as few forms as there are, unmoved
        return norm(flat, layer.weight, layer.bias, layer.eps, dtype).reshape(x.shape)

    def fused_rotation(x: Tensor, rope: Rope) -> Tensor:
        flat = x.flatten(0, -4) if rope[0].ndim == 3 else x
        return turn(flat, rope).reshape(x.shape)

    try:
        with torch.inference_mode():
            tokens = torch.zeros(2, 6, 64, device=device)
            fused_norm(nn.LayerNorm(64, device=device), tokens)
            fused_rotation(tokens.to(dtype).view(2, 6, 4, 16), rope_table(2, 3, 16, tokens.device))
    except Exception as error:  # whatever it lacks: Triton, a C compiler, a folder to write to
        log.warning("Norms and rotations are not fused: %s", " ".join(repr(error).split())[:300])
        return False
    for module in network.modules():
        if isinstance(module, EncoderBlock | DecoderBlock):
            for part in module.children():
                if isinstance(part, nn.LayerNorm):  # what reads it are products alone: they take it in `dtype`
                    part.forward = partial(fused_norm, part)  # type: ignore[method-assign]
        elif isinstance(module, Attention | CrossAttention):
            module.rotate = fused_rotation
    return True


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(dtype)


def _turn(x: Tensor, rope: Rope) -> Tensor:
    """`model.layers.rotate`; partners are found by a flip, which is fused, where a concatenation would not be."""
    cos, sin = rope
    partner = x.reshape(*x.shape[:-1], 2, 2, x.shape[-1] // 4).flip(-2).flatten(-3)
    return (x * cos + partner * sin).to(x.dtype)
