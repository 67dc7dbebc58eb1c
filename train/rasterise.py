"""Gaussians to pictures, differentiable by all they are made of; plain torch, on any device.

Elliptical weighted averaging (Zwicker et al., EWA Volume Splatting, IEEE Visualization 2001), drawn front to back
(Kerbl et al., 3D Gaussian Splatting, arXiv 2308.04079, eq. 2 to 5), by the rules of `model.geometry.splatting`, which
draws without torch. A network's Gaussians are about a pixel large, so the work is a list of (pixel, Gaussian) pairs:
sorted by pixel, then depth, what is clear before each is one running sum over the list.

Where there is CUDA and `gsplat` (Apache-2.0) is installed, that draws instead.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.geometry.splatting import DENSEST, FAINTEST, FIELD, LOW_PASS, OPAQUE
from train.batch import rigid_inverse

NEAR = 0.01
"""A Gaussian nearer than this along the camera's axis is not drawn, in scene units."""
PAIRS_AT_ONCE = 1 << 22
"""200 bytes each are kept for their slopes: above it rows are drawn in bands, and drawn again for their slopes."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """V pictures of each of B scenes, before nothing."""

    colour: Tensor
    """(B, V, H, W, 3): what the Gaussians send."""
    alpha: Tensor
    """(B, V, H, W), 0 to 1: how much of what lies behind them they hide."""
    depth: Tensor
    """(B, V, H, W) along z: the mean of the Gaussians, weighted as their colours are; 0 where there is none."""


def rasterise(
    centres: Tensor,  # (B, P, 3)
    scale: Tensor,  # (B, P, 3) standard deviations along their own axes
    rotation: Tensor,  # (B, P, 4) w x y z, of any length but 0
    opacity: Tensor,  # (B, P) 0 to 1
    colour: Tensor,  # (B, P, 3)
    camera_to_world: Tensor,  # (B, V, 4, 4) OpenCV axes
    intrinsics: Tensor,  # (B, V, 3, 3) pixels, without skew
    size: tuple[int, int],
    *,
    low_pass: float = LOW_PASS,
) -> Drawn:
    """Draw B scenes of P Gaussians as V cameras each see them. size: (height, width).

    Float32 or float64, all alike. low_pass: variance in square pixels that every Gaussian gets in the picture. Slopes
    go to all tensor arguments; the order in depth, and which pixels a Gaussian reaches, have none.
    """
    fields = (centres, scale, rotation, opacity, colour, camera_to_world, intrinsics)
    by = by_gsplat if centres.is_cuda and importlib.util.find_spec("gsplat") else by_pairs
    with torch.autocast(centres.device.type, enabled=False):
        return by(*fields, size, low_pass=low_pass)


def by_gsplat(
    centres: Tensor,
    scale: Tensor,
    rotation: Tensor,
    opacity: Tensor,
    colour: Tensor,
    camera_to_world: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    *,
    low_pass: float = LOW_PASS,
) -> Drawn:
    """`rasterise` by the library, one scene at a time. Its Gaussians beyond the picture's border count a little more.

    Written from its documentation; never run beside `by_pairs`, for want of a GPU.
    """
    from gsplat import rasterization

    scenes = []
    for scene in range(len(centres)):
        drawn, alpha, _ = rasterization(
            centres[scene],
            rotation[scene],
            scale[scene],
            opacity[scene],
            colour[scene],
            rigid_inverse(camera_to_world[scene]),
            intrinsics[scene],
            size[1],
            size[0],
            near_plane=NEAR,
            eps2d=low_pass,
            render_mode="RGB+ED",
        )
        scenes.append((drawn[..., :3], alpha[..., 0], drawn[..., 3]))
    return Drawn(*(torch.stack(field) for field in zip(*scenes, strict=True)))


def by_pairs(
    centres: Tensor,
    scale: Tensor,
    rotation: Tensor,
    opacity: Tensor,
    colour: Tensor,
    camera_to_world: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    *,
    low_pass: float = LOW_PASS,
) -> Drawn:
    """`rasterise` here. Memory: some hundred bytes a Gaussian and view, and 200 a pair of a pixel and a Gaussian that
    reaches it, PAIRS_AT_ONCE or those of one row of pixels at a time."""
    height, width = size
    scenes, views = camera_to_world.shape[:2]
    flat, variances, depth = _flatten(centres, scale, rotation, camera_to_world, intrinsics, low_pass)
    shape = (scenes, views, centres.shape[1])
    with torch.no_grad():
        x, y = (flat[..., k] * 2 / side - 1 for k, side in ((0, width), (1, height)))
        drawn = (depth > NEAR) & (x.abs() < FIELD) & (y.abs() < FIELD) & (opacity[:, None] >= FAINTEST)
        chosen = drawn.flatten().nonzero().squeeze(1)
        chosen = chosen[depth.flatten()[chosen].argsort(stable=True)]
    # Nearest first, all pictures mixed; their rows lie one under the other in one tall picture.
    flat, depth = flat.flatten(0, 2)[chosen], depth.flatten()[chosen]
    looks = torch.cat([opacity[..., None], colour], dim=-1)[:, None].expand(*shape, 4).flatten(0, 2)[chosen]
    splats = torch.cat([flat, looks, depth[:, None]], dim=1)
    boxes = _boxes(splats, variances.flatten(0, 2)[chosen], chosen // shape[2] * height, size)
    bands = _bands(boxes, scenes * views * height)
    parts = []
    for top, bottom in bands:
        if len(bands) > 1:
            parts.append(
                checkpoint(_compose, splats, boxes, top, bottom, size, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            parts.append(_compose(splats, boxes, top, bottom, size))
    sent = torch.cat(parts).unflatten(0, (scenes, views, height, width))
    alpha = sent[..., 3]
    return Drawn(sent[..., :3], alpha, sent[..., 4] / alpha.clamp_min(1e-10))


def _flatten(
    centres: Tensor, scale: Tensor, rotation: Tensor, camera_to_world: Tensor, intrinsics: Tensor, low_pass: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussians as they lie in the picture: (B, V, P, 5) the centre in pixels and the inverse covariance's xx, xy, yy;
    (B, V, P, 2) variances along the picture's axes; and (B, V, P) depth. Of no meaning where that is below NEAR."""
    # By hand, as geometry must not go through TF32 (`train.batch`).
    into = rigid_inverse(camera_to_world)[:, :, None]
    rows, at = into[..., :3, :3], centres[:, None, :, None]
    x, y, depth = ((rows * at).sum(-1) + into[..., :3, 3]).unbind(-1)
    z = torch.where(depth > NEAR, depth, 1)
    fx, fy, cx, cy = (intrinsics[..., i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    # Half of the covariance, R S, seen through the perspective's slope at the centre.
    half = (rotation_matrix(rotation) * scale[..., None, :])[:, None]
    slopes = (
        (f / z)[..., None] * (rows[..., k, :] - (side / z)[..., None] * rows[..., 2, :])
        for k, f, side in ((0, fx, x), (1, fy, y))
    )
    right, down = (sum(slope[..., j, None] * half[..., j, :] for j in range(3)) for slope in slopes)
    xx, xy, yy = (right * right).sum(-1), (right * down).sum(-1), (down * down).sum(-1)
    # As a sum of what is not negative: of a long thin Gaussian the usual difference would be rounding alone.
    area = torch.linalg.cross(right, down).square().sum(-1)
    determinant = area + low_pass * (xx + yy + low_pass)
    inverse = (yy + low_pass) / determinant, -xy / determinant, (xx + low_pass) / determinant
    flat = torch.stack([fx * x / z + cx, fy * y / z + cy, *inverse], dim=-1)
    return flat, torch.stack([xx, yy], dim=-1) + low_pass, depth


@torch.no_grad()
def _boxes(splats: Tensor, variances: Tensor, first_row: Tensor, size: tuple[int, int]) -> Tensor:
    """(G, 5) int64 pixels that each of the splats covers by FAINTEST or more: left, right, top, bottom, in the tall
    picture and past the end; and its picture's first row. Where there are none, the box is empty."""
    height, width = size
    x, y, opacity = splats[:, 0], splats[:, 1], splats[:, 5]
    across, down = (2 * (opacity / FAINTEST).log()[:, None] * variances).sqrt().unbind(1)
    left, top = (x - across - 0.5).ceil().clamp(0, width), (y - down - 0.5).ceil().clamp(0, height)
    right = (x + across - 0.5).floor().add(1).clamp(0, width).maximum(left)
    bottom = (y + down - 0.5).floor().add(1).clamp(0, height).maximum(top)
    left, right, top, bottom = (edge.long() for edge in (left, right, top, bottom))
    return torch.stack([left, right, top + first_row, bottom + first_row, first_row], dim=1)


def _bands(boxes: Tensor, rows: int) -> list[tuple[int, int]]:
    """Consecutive rows, top to bottom, of PAIRS_AT_ONCE pairs at most, or of one row."""
    left, right, top, bottom, _ = boxes.unbind(1)
    change = boxes.new_zeros(rows + 1).index_add_(0, top, right - left).index_add_(0, bottom, left - right)
    pairs = change.cumsum(0)[:rows].cumsum(0).tolist()  # up to each row, itself included
    bands, start, before = [], 0, 0
    for row in range(1, rows + 1):
        if row == rows or pairs[row] - before > PAIRS_AT_ONCE:
            bands.append((start, row))
            start, before = row, pairs[row - 1]
    return bands


def _compose(splats: Tensor, boxes: Tensor, top: int, bottom: int, size: tuple[int, int]) -> Tensor:
    """(rows * width, 5) rows `top` to `bottom` of the tall picture: R, G, B, alpha, and depth times alpha."""
    width = size[1]
    with torch.no_grad():
        left, right, first, last, picture = boxes.unbind(1)
        first, last = first.clamp_min(top), last.clamp_max(bottom)
        columns = right - left
        counts = columns * (last - first).clamp_min(0)
        ends = counts.cumsum(0)
        splat = torch.repeat_interleave(counts)
        within = torch.arange(len(splat), device=splat.device) - (ends - counts)[splat]
        row = first[splat] + within // columns[splat]
        column = left[splat] + within % columns[splat]
        # Pairs come nearest first: a stable sort by pixel keeps that within each.
        pixel, order = ((row - top) * width + column).sort(stable=True)
        splat, row, column = splat[order], (row - picture[splat])[order], column[order]
    x, y, xx, xy, yy, opacity, *sent = splats.index_select(0, splat).unbind(1)
    u, v = column + 0.5 - x, row + 0.5 - y
    cover = opacity * torch.exp(-0.5 * (xx * u * u + 2 * xy * u * v + yy * v * v))
    cover = torch.where(cover >= FAINTEST, cover, 0).clamp_max(DENSEST)
    # One sum runs over all pixels, in float64: its differences within one pixel are what counts.
    passed = torch.log1p(-cover).double().cumsum(0)
    with torch.no_grad():
        start = torch.searchsorted(pixel, pixel)
    before = torch.cat([passed.new_zeros(1), passed])
    clear = torch.exp(before[:-1] - before.index_select(0, start)).to(cover)
    weight = torch.where(clear >= OPAQUE, cover * clear, 0)
    values = torch.stack([*sent[:3], torch.ones_like(weight), sent[3]], dim=1) * weight[:, None]
    return values.new_zeros((bottom - top) * width, 5).index_add(0, pixel, values)


def rotation_matrix(quaternion: Tensor) -> Tensor:
    """(..., 3, 3) of quaternions w x y z (..., 4) of any length but 0."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))  # fmt: skip
