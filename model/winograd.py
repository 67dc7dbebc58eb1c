"""5x5 convolutions with a sixth of the multiplications (Winograd 1980; Lavin and Gray, arXiv 1509.09308).

A tile of 4 x 4 outputs is a bilinear form of 8 x 8 inputs and 5 x 5 weights. Both are read as polynomials, evaluated at
8 points an axis, multiplied point by point (64 products in place of 400), and the products are taken back to outputs.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

KERNEL = 5
TILE = 4
"""Outputs a side. Larger tiles save products, and lose digits: their points lie further from 1."""
SPAN = TILE + KERNEL - 1
POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2)
"""And infinity. Rounding errors grow with the powers of the points, and of their inverses."""
TILE_ROWS_AT_ONCE = 4
"""Few enough that what lies between the steps stays in the cache."""


@cache
@torch.inference_mode(False)  # a tensor made in inference mode could never serve training
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Of weights (64, 25), inputs (64, 64) and outputs (16, 64), both axes at once; float32.

    With the values of a polynomial of k coefficients at the points as matrix V_k, evaluating, multiplying and
    interpolating gives products of polynomials, V_8^-1 (V_4 a * V_5 b); a convolution as networks know it is its
    transpose: V_4^T (V_5 weights * V_8^-T inputs).
    """

    def values(coefficients: int) -> np.ndarray:
        finite = np.array(POINTS, dtype=float)[:, None] ** np.arange(coefficients)
        return np.vstack([finite, np.eye(coefficients)[-1]])

    one_axis = values(KERNEL), np.linalg.inv(values(SPAN)).T, values(TILE).T
    weights, inputs, outputs = (torch.from_numpy(np.kron(m, m)).float() for m in one_axis)
    return weights, inputs, outputs


def conv5x5(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What F.conv2d(x, weight, bias, padding=2) gives, up to rounding: relative errors of about 1e-5, on the CPU.

    x: float32 (n, C, H, W); weight (K, C, 5, 5); bias (K,). Returns (n, K, H, W).
    """
    of_weights, of_inputs, of_outputs = _transforms()
    width_out, width_in = weight.shape[:2]
    height, width = x.shape[-2:]
    rows, columns = -(-height // TILE), -(-width // TILE)
    margin = KERNEL // 2
    x = F.pad(x, (margin, TILE * columns - width + margin, margin, TILE * rows - height + margin))
    factors = (of_weights @ weight.flatten(2).permute(2, 0, 1).flatten(1)).view(-1, width_out, width_in)

    def strip(view: Tensor, first: int, count: int) -> Tensor:
        """`count` rows of tiles of one view (C, ...) to (K, 4 * count, 4 * columns)."""
        read = view[:, None, TILE * first : TILE * (first + count) + KERNEL - 1]
        # The inputs' transform is a convolution by itself: 64 filters of 8 x 8, a step of 4.
        points = F.conv2d(read, of_inputs.view(-1, 1, SPAN, SPAN), stride=TILE).flatten(2).transpose(0, 1)
        tiles = (of_outputs @ torch.bmm(factors, points).flatten(1)).view(TILE, TILE, width_out, count, columns)
        return tiles.permute(2, 3, 0, 4, 1).reshape(width_out, TILE * count, TILE * columns)

    firsts = range(0, rows, TILE_ROWS_AT_ONCE)
    views = [
        torch.cat([strip(view, first, min(TILE_ROWS_AT_ONCE, rows - first)) for first in firsts], dim=1) for view in x
    ]
    return torch.stack(views)[:, :, :height, :width] + bias[:, None, None]
