"""What training minimises, and what evaluation measures.

A network answers B scenes of N views over M reference paths: points (B, M, N, H, W, 3), those of path m in the camera
frame of view references[m], as `MVDUSt3R.every_path` has them; where there is one path, M = 1. The truth of those paths
is `true_points`. A reconstruction is right up to one positive factor, so every cloud is first divided by its mean
distance from its reference camera, taken over the valid pixels of all views together.

Sums are in float32 at least, whatever autocast says; shapes never depend on values; pixels that are not valid move
nothing, not even where they are not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional as F

from export.sessions import SCALE_LIMITS
from model.output import NetworkOutput
from train.batch import Batch, times
from train.rasterise import rasterise

CONFIDENCE_WEIGHT = 0.2
"""Alpha of DUSt3R, eq. 4: how much a confident network is rewarded."""
WORST_ERROR = 10.0
"""What a view's mean error counts at most in ND (MV-DUSt3R's released evaluation)."""
ACCURATE = 0.2
"""A set with a smaller ND counts in DAc."""


# ---------------------------------------------------------------- points


@dataclass(frozen=True, slots=True)
class PointmapLoss:
    """Scalars."""

    reference: Tensor
    """Of the paths' own reference views."""
    others: Tensor
    """Of all other views: a sum over them, not a mean, so that more views weigh more (DUSt3R, MV-DUSt3R)."""

    @property
    def total(self) -> Tensor:
        return self.reference + self.others


def true_points(batch: Batch, references: Sequence[int]) -> Tensor:
    """(B, M, N, H, W, 3) float32, metres: the truth of every path, in its reference's camera frame."""
    return torch.stack([batch.points(reference) for reference in references], dim=1)


def confidence_loss(
    points: Tensor,
    confidence: Tensor,
    truth: Tensor,
    valid: Tensor,
    references: Sequence[int] | Tensor,
    *,
    alpha: float = CONFIDENCE_WEIGHT,
) -> PointmapLoss:
    """Distances weighted by confidence, and a reward for confidence: c d - alpha log c (DUSt3R, arXiv 2312.14132, eq. 2
    to 4; over all paths: MV-DUSt3R+, arXiv 2412.06974).

    points, truth (B, M, N, H, W, 3); confidence (B, M, N, H, W) > 0; valid (B, N, H, W) bool; references: int64 (M,).
    """
    distance = distances(points, truth, valid)
    confidence = torch.where(valid[:, None], _wide(confidence), 1)
    return _over_slots(confidence * distance - alpha * confidence.log(), valid, references)


def regression_loss(
    points: Tensor, truth: Tensor, valid: Tensor, references: Sequence[int] | Tensor, *, gt_scale: bool = False
) -> PointmapLoss:
    """Mean distances alone (DUSt3R, eq. 2); arguments as of `confidence_loss` and `distances`."""
    return _over_slots(distances(points, truth, valid, gt_scale=gt_scale), valid, references)


def distances(points: Tensor, truth: Tensor, valid: Tensor, *, gt_scale: bool = False) -> Tensor:
    """(B, M, N, H, W) between points and truth (B, M, N, H, W, 3), both normalised; 0 where not valid (B, N, H, W).

    gt_scale: leave the truth as it is, as the released evaluation does before it aligns the scales.
    """
    own, true = _cleared(points, valid[:, None]), _cleared(truth, valid[:, None])
    own = own / mean_distance(own, valid[:, None])[..., None, None, None, None]
    if not gt_scale:
        true = true / mean_distance(true, valid[:, None])[..., None, None, None, None]
    return torch.linalg.vector_norm(own - true, dim=-1)


def mean_distance(points: Tensor, valid: Tensor) -> Tensor:
    """(...) of the points (..., N, H, W, 3) from the origin, their reference camera, over the valid pixels of all N
    views."""
    length = torch.linalg.vector_norm(_cleared(points, valid), dim=-1)
    count = valid.sum((-3, -2, -1)).clamp_min(1)
    return (length.sum((-3, -2, -1)) / count).clamp_min(1e-8)


def _over_slots(values: Tensor, valid: Tensor, references: Sequence[int] | Tensor) -> PointmapLoss:
    """Means over the pixels of each slot, all scenes and paths together; values (B, M, N, H, W) of views in order, 0
    where not valid.

    Slots as upstream has them: view references[m] and view 0 have changed places in path m.
    """
    if not isinstance(references, Tensor):
        references = torch.tensor(references, device=values.device)
    view, reference = torch.arange(values.shape[2], device=values.device), references[:, None]
    view_of_slot = torch.where(view == 0, reference, torch.where(view == reference, 0, view))
    path = torch.arange(len(references), device=values.device)[:, None]
    sums = values.sum((-2, -1))[:, path, view_of_slot].sum((0, 1))
    counts = valid.sum((-2, -1))[:, view_of_slot].sum((0, 1)).clamp_min(1)
    means = sums / counts
    return PointmapLoss(means[0], means[1:].sum())


def _cleared(points: Tensor, valid: Tensor) -> Tensor:
    """0 where not valid. Before any norm: 0 times the slope of what is not finite is not finite."""
    return torch.where(valid[..., None], _wide(points), 0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ---------------------------------------------------------------- what helps small networks


@dataclass(frozen=True, slots=True)
class CameraLoss:
    """Scalars, each a mean over scenes and views."""

    focal: Tensor
    """|log| of the ratio of focal lengths."""
    rotation: Tensor
    """Frobenius norm of the difference of rotations: 2 sqrt(2) sin(angle / 2)."""
    direction: Tensor
    """1 - cosine of the angle between translations."""
    distance: Tensor
    """|difference| of the translations' lengths, in scene sizes."""

    @property
    def total(self) -> Tensor:
        return self.focal + self.rotation + self.direction + self.distance


def camera_loss(
    focal: Tensor, camera_to_reference: Tensor, size: Tensor, batch: Batch, reference: int | Tensor = 0
) -> CameraLoss:
    """How far predicted cameras are from the true ones.

    focal (B, N), pixels of the images, > 0; camera_to_reference (B, N, 4, 4), in the network's own scale; size (B,):
    the mean distance of the scene in that scale, which the network's points have (`mean_distance`).
    The reference's own pose is known and does not count. Translations are compared by direction and, divided by the
    scene's size, by length: after VGGT (arXiv 2503.11651: cameras beside points, the truth normalised) and Reloc3r
    (arXiv 2412.08376: direction apart from length), here with each part in a norm of its own.
    """
    true_focal = batch.intrinsics[..., (0, 1), (0, 1)].mean(-1)
    true = times(batch.to_camera(reference), batch.camera_to_world)
    found, focal, size = _wide(camera_to_reference), _wide(focal), _wide(size)[:, None]
    true_size = mean_distance(batch.points(reference), batch.valid)[:, None]
    step, true_step = found[..., :3, 3] / size[..., None], true[..., :3, 3] / true_size[..., None]
    length, true_length = (torch.linalg.vector_norm(x, dim=-1) for x in (step, true_step))

    views = torch.arange(focal.shape[1], device=focal.device)
    own = views == (reference[:, None] if isinstance(reference, Tensor) and reference.dim() else reference)
    other = (~own).expand_as(focal)
    # Where a camera did not move, its direction is noise.
    directed = other & (true_length > 1e-3)
    cosine = (step * true_step).sum(-1) / (length.clamp_min(1e-3) * true_length.clamp_min(1e-3))
    turned = torch.linalg.matrix_norm(found[..., :3, :3] - true[..., :3, :3])
    return CameraLoss(
        focal=(focal / true_focal).log().abs().mean(),
        rotation=_mean(turned, other),
        direction=_mean(1 - cosine, directed),
        distance=_mean((length - true_length).abs(), other),
    )


def depth_loss(log_depth: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """Scalar: the variance of log_depth - log depth over each scene, so that one factor a scene is free.

    log_depth, depth (B, N, H, W): along z of each view's own camera. Eigen et al., arXiv 1406.2283, eq. 4 with
    lambda = 1, over all views of a scene together, which share their unknown factor.
    """
    difference = torch.where(valid, _wide(log_depth), 0) - torch.where(valid, _wide(depth), 1).log()
    count = valid.sum((1, 2, 3)).clamp_min(1)
    mean = difference.sum((1, 2, 3)) / count
    around = torch.where(valid, difference - mean[:, None, None, None], 0)
    return (around.square().sum((1, 2, 3)) / count).mean()


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0).sum() / counted.sum().clamp_min(1)


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True, slots=True)
class RenderingLoss:
    """Scalars, and the pictures they are of."""

    mse: Tensor
    dissimilarity: Tensor
    """1 - SSIM."""
    pictures: Tensor
    """(B, V, 3, H, W), 0 to 1."""

    @property
    def total(self) -> Tensor:
        """MV-DUSt3R adds LPIPS to the squared error, whose trained network cannot be shipped: SSIM stands in for it,
        weighted as in 3D Gaussian Splatting (arXiv 2308.04079, eq. 7)."""
        return 0.8 * self.mse + 0.2 * self.dissimilarity


def rendering_loss(
    output: NetworkOutput, inputs: Batch, targets: Batch, reference: int | Tensor = 0, *, background: float = 1.0
) -> RenderingLoss:
    """How unlike a network's Gaussians are to pictures of the same scenes from other places (MV-DUSt3R).

    output: of one path, fields (B, N, ...), in the camera frame of inputs' view `reference`, raw scales. inputs
    (B, N) is what the network saw: a Gaussian takes its pixel's colour. targets (B, V) are views in the same world.
    Both worlds are divided by their mean distance, over the valid pixels of the inputs: the targets' poses in metres
    become poses among the Gaussians. Scales are clipped there to the limits that serving has.
    """
    points = _wide(output.points)
    size = mean_distance(points, inputs.valid)[:, None, None]
    true_size = mean_distance(inputs.points(reference), inputs.valid)
    poses = times(inputs.to_camera(reference), targets.camera_to_world)
    scaled = torch.cat([poses[..., :3, 3] / true_size[:, None, None], poses[..., 3, 3:]], dim=-1)
    poses = torch.cat([poses[..., :3], scaled[..., None]], dim=-1)
    drawn = rasterise(
        points.flatten(1, 3) / size,
        (_wide(output.scale).flatten(1, 3) / size).clamp(*SCALE_LIMITS),
        _wide(output.rotation).flatten(1, 3),
        _wide(output.opacity).flatten(1, 3),
        (inputs.images / 2 + 0.5).movedim(2, -1).flatten(1, 3),
        poses,
        targets.intrinsics,
        tuple(targets.depth.shape[-2:]),
    )
    pictures = (drawn.colour + (1 - drawn.alpha[..., None]) * background).movedim(-1, 2)
    seen = targets.images / 2 + 0.5
    return RenderingLoss((pictures - seen).square().mean(), 1 - ssim(pictures, seen).mean(), pictures)


def ssim(one: Tensor, two: Tensor) -> Tensor:
    """(...) of pictures (..., 3, H, W) with values 0 to 1: their mean structural similarity, -1 to 1.

    Wang et al., Image Quality Assessment, IEEE TIP 2004, eq. 13, with its 11 x 11 window of deviation 1.5, each channel
    alone, over the windows that lie in the picture. H and W are at least 11.
    """
    offset = torch.arange(11, device=one.device, dtype=one.dtype) - 5
    window = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blurred(x: Tensor) -> Tensor:
        x = x.flatten(0, -3)[:, None]
        return F.conv2d(F.conv2d(x, window[None, None, None]), window[None, None, :, None])

    with torch.autocast(one.device.type, enabled=False):  # variances are differences of squares
        mean_one, mean_two = blurred(one), blurred(two)
        variances = blurred(one * one) - mean_one**2 + blurred(two * two) - mean_two**2
        covariance = blurred(one * two) - mean_one * mean_two
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_one * mean_two + c1) / (mean_one**2 + mean_two**2 + c1) * (2 * covariance + c2)
    similar = similar / (variances + c2)
    return similar.mean((-3, -2, -1)).reshape(one.shape[:-2]).mean(-1)


def psnr(one: Tensor, two: Tensor) -> Tensor:
    """(...) of pictures (..., 3, H, W) with values 0 to 1, in decibels; infinite where they are equal."""
    return -10 * (one - two).square().mean((-3, -2, -1)).log10()


# ---------------------------------------------------------------- evaluation


@dataclass(frozen=True, slots=True)
class SetErrors:
    """The paper's measures of S sets of N views. Lengths in metres, or, normalised, in mean distances of the truth."""

    by_view: Tensor
    """(S, N) mean distance, at most WORST_ERROR; of valid pixels."""
    chamfer: Tensor
    """(S,) CD: mean squared distance to the nearest point of the other cloud, both ways together."""

    @property
    def nd(self) -> Tensor:
        """(S,)."""
        return self.by_view.mean(-1)

    @property
    def accurate(self) -> Tensor:
        """(S,) bool; their share is DAc."""
        return self.nd < ACCURATE


def aligned(points: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Both clouds (S, N, H, W, 3) moved so that they can be compared: medians to the origin, then points scaled.

    By the released evaluation of MV-DUSt3R, in the truth's units: points are divided by their mean distance; the median
    of each coordinate over all views is taken off each cloud; then points get the truth's median distance from the
    median. No rotation: the reference's camera frame is known. Even counts have the lower of two middle values.
    """
    points, truth = _cleared(points, valid), _cleared(truth, valid)
    points = points / mean_distance(points, valid)[:, None, None, None, None]
    points, truth = (x - _median(x, valid)[:, None, None, None] for x in (points, truth))

    def spread(x: Tensor) -> Tensor:
        around = x - _median(x, valid)[:, None, None, None]
        return _median(torch.linalg.vector_norm(around, dim=-1, keepdim=True), valid)

    factor = spread(truth) / spread(points).clamp(1e-3, 1e3)
    return points * factor[:, None, None, None], truth


def evaluate(points: Tensor, truth: Tensor, valid: Tensor, *, normalised: bool) -> SetErrors:
    """ND, DAc and CD (MV-DUSt3R, arXiv 2412.06974) of S sets of N views, `aligned`.

    points, truth (S, N, H, W, 3) in the reference camera's frame; valid (S, N, H, W), at least one pixel a set.
    normalised: divide lengths by the truth's mean distance from the reference camera, as the paper's tables are said to
    be; else metres, as the released criterion has them.
    """
    size = mean_distance(truth, valid) if normalised else torch.ones_like(mean_distance(truth, valid))
    points, truth = (x / size[:, None, None, None, None] for x in aligned(points, truth, valid))
    distance = torch.linalg.vector_norm(points - truth, dim=-1)
    by_view = torch.where(valid, distance, 0).sum((-2, -1)) / valid.sum((-2, -1)).clamp_min(1)
    clouds = ((one[ok].cpu().numpy(), two[ok].cpu().numpy()) for one, two, ok in zip(points, truth, valid))
    chamfer = [_nearest_squares(one, two) + _nearest_squares(two, one) for one, two in clouds]
    return SetErrors(by_view.clamp_max(WORST_ERROR), torch.tensor(chamfer, device=by_view.device))


def _nearest_squares(of: np.ndarray, among: np.ndarray) -> float:
    """Mean squared distance of points (P, 3) to their nearest among (Q, 3)."""
    return float(np.square(cKDTree(among).query(of)[0]).mean())


def _median(x: Tensor, valid: Tensor) -> Tensor:
    """(S, k) of x (S, N, H, W, k) over its valid pixels."""
    return torch.where(valid[..., None], x, torch.nan).flatten(1, 3).nanmedian(dim=1).values
