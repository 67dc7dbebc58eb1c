"""Training's losses: the reference implementation's goldens, laws, and what they must not be moved by."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.mvdust3r import MVDUSt3R
from model.output import NetworkOutput
from tests.tiny import TINY_CONFIG, tiny_network
from tests.train.posed import photographed
from train.batch import Batch, moved, rigid_inverse, times
from train.losses import (
    aligned,
    camera_loss,
    confidence_loss,
    depth_loss,
    distances,
    evaluate,
    mean_distance,
    psnr,
    regression_loss,
    rendering_loss,
    ssim,
    true_points,
)
from train.render import Room

NETWORKS = [(TINY_CONFIG, (2, 0, 3)), (TINY_CONFIG, (0, 1, 2, 3)), (replace(TINY_CONFIG, paths=1), (2,))]
GOLDEN = Path(__file__).parents[1] / "golden" / "geometry" / "mvdust3r_losses.npz"
CASES = {"single_ref": (0,), "multi_ref4": (0, 1, 2, 3)}


@pytest.fixture(scope="module")
def batch(plain_room: Room, walk: np.ndarray) -> Batch:
    """Two scenes of three views."""
    one, two = (photographed(plain_room, walk[part]) for part in (slice(0, 3), slice(3, 6)))
    return Batch(*(torch.cat([getattr(one, f.name), getattr(two, f.name)]) for f in fields(Batch)))


# ---------------------------------------------------------------- the network's paths


@pytest.mark.parametrize(("config", "references"), NETWORKS)
def test_every_path_is_what_the_network_answers_for_that_reference(config, references):
    """Path m of all is the one path of a forward pass with references[m] first."""
    network = tiny_network(config)
    images = torch.rand(2, 4, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        every = network.every_path(images, references)
        for path, reference in enumerate(references):
            alone = network(images, (reference, *(r for r in references if r != reference)))
            for name in ("points", "confidence", "scale", "rotation", "opacity", "colour"):
                got, expected = getattr(every, name)[:, path], getattr(alone, name)
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=5e-5)


def test_every_path_is_trained():
    network = MVDUSt3R(TINY_CONFIG)
    network.every_path(torch.rand(1, 4, 3, 32, 32)).points.square().mean().backward()
    assert all(block.mlp.fc2.weight.grad.abs().sum() > 0 for block in network.decoder.cross_reference_blocks)
    with pytest.raises(ValueError, match="all different"):
        network.every_path(torch.rand(1, 4, 3, 32, 32), (0, 0))


# ---------------------------------------------------------------- batches


def test_pointmaps_are_the_rooms_surfaces(batch, plain_room, walk):
    """In whichever camera's frame: one number, or one a scene."""
    world = moved(batch.points(0), batch.camera_to_world[:, :1])
    low, high = world[batch.valid].amin(0), world[batch.valid].amax(0)
    assert (low > -0.1).all()
    assert (high < torch.tensor(plain_room.size) + 0.1).all()
    own = batch.points(torch.tensor([1, 2]))
    for scene, view in ((0, 1), (1, 2)):
        torch.testing.assert_close(own[scene], batch.points(view)[scene])
        torch.testing.assert_close(own[scene, view, ..., 2], batch.depth[scene, view])
    some = batch[1:].select([2, 0])
    torch.testing.assert_close(some.points(1), batch.points(0)[1:, [2, 0]])
    assert len(some) == 1
    assert some.to("cpu").images.shape == (1, 2, 3, 32, 48)


def test_autocast_does_not_coarsen_the_truth(batch):
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(batch.points(1), batch.points(1).float(), rtol=0, atol=0)
        coarse = batch.points(1)
    torch.testing.assert_close(coarse, batch.points(1))


# ---------------------------------------------------------------- points


@dataclass
class Golden:
    """The reference implementation's case, in our order: (B, M, N, H, W, ...), views as they are."""

    arrays: dict[str, Tensor]
    references: tuple[int, ...]

    @classmethod
    def of(cls, case: str) -> Golden:
        with np.load(GOLDEN) as file:
            own = {k.removeprefix(f"{case}/"): torch.from_numpy(file[k]) for k in file.files if k.startswith(case)}
        return cls(own, CASES[case])

    def predicted(self, field: str, prefix: str = "pred") -> Tensor:
        """Points or confidence, or with the prefix `grad_pred` their slopes."""
        names = [field if field == "conf" or view == 0 else "pts3d_in_other_view" for view in range(self.views)]
        return self.ordered(torch.stack([self.arrays[f"{prefix}{v}/{name}"] for v, name in enumerate(names)], dim=1))

    def ordered(self, slots: Tensor) -> Tensor:
        """Slots (B * M, N, ...) to views (B, M, N, ...): in path m, views 0 and m are exchanged."""
        slots = slots.unflatten(0, (-1, len(self.references))).clone()
        for path in self.references:
            slots[:, path, [0, path]] = slots[:, path, [path, 0]]
        return slots

    def true(self, field: str) -> Tensor:
        """Of every view: pts3d, camera_pose or valid_mask."""
        return torch.stack([self.arrays[f"gt{view}/{field}"] for view in range(self.views)], dim=1)

    @property
    def views(self) -> int:
        return sum(name.endswith("valid_mask") for name in self.arrays)

    @property
    def truth(self) -> Tensor:
        """(B, M, N, H, W, 3)."""
        into = rigid_inverse(self.true("camera_pose")[:, list(self.references)])
        return moved(self.true("pts3d")[:, None], into[:, :, None])


@pytest.fixture(params=CASES)
def golden(request) -> Golden:
    return Golden.of(request.param)


def test_losses_and_slopes_are_the_golden_ones(golden):
    points, confidence = (golden.predicted(field).requires_grad_() for field in ("pts3d", "conf"))
    truth, valid, references = golden.truth, golden.true("valid_mask"), golden.references
    loss = confidence_loss(points, confidence, truth, valid, references)
    for name, got in {
        "conf_loss": loss.total,
        "conf_loss_1": loss.reference,
        "conf_loss_2_sum": loss.others,
        "regr3d": regression_loss(points, truth, valid, references).total,
        "regr3d_gt_scale": regression_loss(points, truth, valid, references, gt_scale=True).total,
    }.items():
        np.testing.assert_allclose(got.item(), golden.arrays[name].item(), rtol=2e-6, err_msg=name)
    loss.total.backward()
    for field, slope in (("pts3d", points.grad), ("conf", confidence.grad)):
        expected = golden.predicted(field, "grad_pred")
        assert (slope - expected).abs().max() < 1e-5 * expected.abs().max()


def test_alignment_is_the_golden_one(golden):
    points, truth = golden.predicted("pts3d").flatten(0, 1), golden.truth.flatten(0, 1)
    valid = golden.true("valid_mask").repeat_interleave(len(golden.references), dim=0)
    got, expected = aligned(points, truth, valid)
    slots = [golden.ordered(x.unflatten(0, (2, -1)).flatten(0, 1)).flatten(0, 1) for x in (got, expected, valid)]
    for name, ours in {"pred0": slots[0][:, 0], "pred1": slots[0][:, 1], "gt0": slots[1][:, 0]}.items():
        seen = slots[2][:, int(name[-1])]
        torch.testing.assert_close(ours[seen], golden.arrays[f"eval_aligned_{name}"][seen], rtol=1e-5, atol=5e-6)
    errors = evaluate(points, truth, valid, normalised=False)
    by_slot = golden.ordered(errors.by_view.unflatten(0, (2, -1)).flatten(0, 1)).flatten(0, 1)
    torch.testing.assert_close(by_slot, golden.arrays["eval_dist_per_sample_view"], rtol=1e-5, atol=1e-6)


def prediction(batch: Batch, references: tuple[int, ...], noise: float = 0.05) -> tuple[Tensor, Tensor, Tensor]:
    """Points near the truth, confidence, truth."""
    truth = true_points(batch, references)
    rng = torch.Generator().manual_seed(0)
    points = 3 * truth + noise * torch.randn(truth.shape, generator=rng)
    return points, 1 + torch.rand(truth.shape[:-1], generator=rng), truth


def test_neither_scale_nor_what_is_not_valid_counts(batch):
    references = (0, 2)
    points, confidence, truth = prediction(batch, references)
    valid = batch.valid & (torch.arange(batch.valid.shape[-1]) > 5)
    expected = confidence_loss(points, confidence, truth, valid, references).total
    hidden = ~valid[:, None]
    for value in (torch.nan, torch.inf, 1e30):
        wild = points.masked_fill(hidden[..., None], value).requires_grad_()
        doubt = confidence.masked_fill(hidden, value).requires_grad_()
        loss = confidence_loss(wild * 7, doubt, truth.masked_fill(hidden[..., None], value) / 3, valid, references)
        torch.testing.assert_close(loss.total, expected)
        loss.total.backward()
        assert wild.grad.isfinite().all()
        assert (wild.grad[hidden.expand(doubt.shape)] == 0).all()
        assert (doubt.grad[hidden.expand(doubt.shape)] == 0).all()


def test_the_truth_is_the_least(batch):
    """All of the loss is then the reward for confidence; and no slope is left, nor is one infinite."""
    _, confidence, truth = prediction(batch, (1,))
    points = (2 * truth).requires_grad_()
    loss = confidence_loss(points, confidence, truth, batch.valid, (1,))
    loss.total.backward()
    assert regression_loss(points, truth, batch.valid, (1,)).total < 1e-5
    assert points.grad.isfinite().all()
    assert loss.total < 0


def test_a_scene_without_a_valid_pixel_counts_nothing(batch):
    points, confidence, truth = prediction(batch, (0, 1))
    empty = batch.valid & torch.tensor([True, False])[:, None, None, None]
    points.requires_grad_()
    loss = confidence_loss(points, confidence, truth, empty, (0, 1)).total
    torch.testing.assert_close(loss, confidence_loss(points[:1], confidence[:1], truth[:1], empty[:1], (0, 1)).total)
    loss.backward()
    assert (points.grad[1] == 0).all()
    assert confidence_loss(points, confidence, truth, empty & False, (0, 1)).total == 0


def test_losses_are_in_float32_under_autocast(batch):
    points, confidence, truth = prediction(batch, (0,))
    expected = confidence_loss(points.bfloat16().float(), confidence.bfloat16().float(), truth, batch.valid, (0,))
    with torch.autocast("cpu", torch.bfloat16):
        got = confidence_loss(points.bfloat16(), confidence.bfloat16(), truth, batch.valid, (0,))
    assert got.total.dtype == torch.float32
    torch.testing.assert_close(got.total, expected.total)


def test_the_loss_compiles_as_one_graph(batch):
    points, confidence, truth = prediction(batch, (0, 2))
    inputs = points, confidence, truth, batch.valid, torch.tensor([0, 2])
    compiled = torch.compile(lambda *x: confidence_loss(*x).total, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), confidence_loss(*inputs).total)


# ---------------------------------------------------------------- what helps small networks


def cameras(batch: Batch, reference: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The true ones as a network with this scale would answer them: focal, camera_to_reference, size."""
    pose = times(batch.to_camera(reference), batch.camera_to_world)
    pose[..., :3, 3] *= scale
    size = mean_distance(scale * batch.points(reference), batch.valid)
    return batch.intrinsics[..., 0, 0].clone(), pose, size


@pytest.mark.parametrize("reference", [0, 2])
def test_true_cameras_of_any_scale_lose_nothing(batch, reference):
    loss = camera_loss(*cameras(batch, reference, 0.3), batch, reference)
    assert loss.total < 1e-4


def test_each_part_of_the_camera_loss_is_of_its_own(batch):
    focal, pose, size = cameras(batch, 0, 1.0)
    turn = torch.from_numpy(Rotation.from_euler("y", 20, degrees=True).as_matrix()).float()
    turned, longer = pose.clone(), pose.clone()
    turned[:, 1:, :3, :3] = times(turned[:, 1:, :3, :3], turn)
    longer[..., :3, 3] *= 1.5
    loss = camera_loss(1.1 * focal, turned, size, batch, torch.tensor([0, 0]))
    assert loss.focal.item() == pytest.approx(np.log(1.1), rel=1e-4)
    assert loss.rotation.item() == pytest.approx(2 * np.sqrt(2) * np.sin(np.radians(10)), rel=1e-4)
    assert max(loss.direction, loss.distance) < 1e-5
    loss = camera_loss(focal, longer, size, batch)
    steps = torch.linalg.vector_norm(pose[:, 1:, :3, 3], dim=-1) / size[:, None]
    assert loss.distance.item() == pytest.approx(0.5 * steps.mean().item(), rel=1e-4)
    assert max(loss.focal, loss.rotation, loss.direction) < 1e-5
    back = pose.clone()
    back[..., :3, 3] *= -1
    assert camera_loss(focal, back, size, batch).direction.item() == pytest.approx(2, rel=1e-4)


def test_a_camera_that_does_not_move_has_finite_slopes(batch):
    """Neither the network's nor the scene's."""
    focal, pose, size = cameras(batch, 0, 1.0)
    still = torch.eye(4).expand_as(pose).clone().requires_grad_()
    same = replace(batch, camera_to_world=batch.camera_to_world[:, :1].expand_as(batch.camera_to_world))
    for of in (batch, same):
        camera_loss(focal, still, size, of).total.backward()
        assert still.grad.isfinite().all()
    assert camera_loss(focal, still, size, same).total < 1e-5


def test_depth_may_have_any_one_scale(batch):
    log_depth = batch.depth.clamp_min(1e-3).log()
    assert depth_loss(log_depth + torch.tensor([0.7, -2.0])[:, None, None, None], batch.depth, batch.valid) < 1e-6
    by_view = log_depth + torch.tensor([0.0, 0.3, -0.3])[:, None, None]
    pixels = batch.valid.sum((2, 3)).float()
    offsets = torch.tensor([0.0, 0.3, -0.3])
    mean = (pixels * offsets).sum(1) / pixels.sum(1)
    expected = (pixels * (offsets - mean[:, None]) ** 2).sum(1) / pixels.sum(1)
    torch.testing.assert_close(depth_loss(by_view, batch.depth, batch.valid), expected.mean())
    wild = log_depth.masked_fill(~batch.valid, torch.nan).requires_grad_()
    depth_loss(wild, batch.depth * 0, batch.valid & False).backward()
    assert (wild.grad == 0).all()


# ---------------------------------------------------------------- pictures


def output(batch: Batch, reference: int, scale: float) -> NetworkOutput:
    """A perfect network's, a Gaussian of half a pixel's width on every pixel."""
    points, depth = scale * batch.points(reference), batch.depth[..., None]
    width = 0.5 * scale * depth / batch.intrinsics[:, :, None, None, :1, 0]
    rotation = torch.tensor([1.0, 0, 0, 0]).expand(*points.shape[:-1], 4)
    return NetworkOutput(
        points, torch.ones_like(depth[..., 0]), width.expand_as(points), rotation, depth[..., 0] * 0 + 0.95
    )


def test_true_gaussians_draw_the_view_between_and_any_scale_the_same(plain_room, walk):
    views = photographed(plain_room, walk[:3], (96, 64))
    inputs, target = views.select([0, 2]), views.select([1])
    true, scaled = (rendering_loss(output(inputs, 1, scale), inputs, target, 1) for scale in (1.0, 4.0))
    torch.testing.assert_close(true.total, scaled.total, rtol=1e-4, atol=1e-5)
    own = rendering_loss(output(inputs, 1, 1.0), inputs, inputs, 1)
    assert psnr(own.pictures, inputs.images / 2 + 0.5).min() > 20
    wrong = replace(output(inputs, 1, 1.0), points=inputs.points(1) * torch.tensor([1.0, 1.0, 1.3]))
    assert true.total < 0.8 * rendering_loss(wrong, inputs, target, 1).total


def test_pictures_teach_every_part_of_a_gaussian(batch):
    perfect = output(batch, 0, 1.0)
    parts = [getattr(perfect, name).clone() for name in ("points", "scale", "rotation", "opacity")]
    parts[1] = (
        0.002 * torch.ones_like(parts[1]) * mean_distance(batch.points(0), batch.valid)[:, None, None, None, None]
    )
    parts[1][..., 0] /= 2  # turning a ball changes nothing
    for part in parts:
        part.requires_grad_()
    loss = rendering_loss(NetworkOutput(parts[0], perfect.confidence, *parts[1:]), batch, batch.select([1]))
    loss.total.backward()
    for part in parts:
        assert part.grad.isfinite().all()
        assert part.grad.abs().max() > 0


def test_similarity_is_the_formula():
    rng = torch.Generator().manual_seed(0)
    one = torch.rand(2, 4, 3, 16, 20, generator=rng, dtype=torch.float64)
    two = (one + 0.2 * torch.randn(one.shape, generator=rng, dtype=torch.float64)).clamp(0, 1)
    torch.testing.assert_close(ssim(one, one), torch.ones(2, 4, dtype=torch.float64))
    flat = torch.full_like(one, 0.25), torch.full_like(one, 0.75)
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    torch.testing.assert_close(ssim(*flat), torch.full((2, 4), expected, dtype=torch.float64))
    # One window, by hand.
    near = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / 4.5)
    window = near[:, None] * near / near.sum() ** 2
    a, b = (x[0, 0, :, :11, :11] for x in (one, two))
    mean_a, mean_b = ((window * x).sum((1, 2)) for x in (a, b))
    da, db = a - mean_a[:, None, None], b - mean_b[:, None, None]
    variance_a, variance_b, together = ((window * x).sum((1, 2)) for x in (da * da, db * db, da * db))
    by_hand = (2 * mean_a * mean_b + 1e-4) * (2 * together + 9e-4)
    by_hand /= (mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4)
    torch.testing.assert_close(ssim(a, b), by_hand.mean())
    assert psnr(flat[0], flat[1])[0, 0].item() == pytest.approx(20 * np.log10(2))


# ---------------------------------------------------------------- evaluation


def test_evaluation_forgives_scale_and_place_alone(batch):
    truth = batch.points(0)
    moved_away = 0.2 * truth + torch.tensor([1.0, -2.0, 0.5])
    for normalised in (True, False):
        errors = evaluate(moved_away, truth, batch.valid, normalised=normalised)
        assert errors.nd.max() < 1e-4
        assert errors.chamfer.max() < 1e-8
        assert errors.accurate.all()
    metres, shares = (evaluate(truth.flip(1), truth, batch.valid, normalised=k) for k in (False, True))
    size = mean_distance(truth, batch.valid)
    torch.testing.assert_close(metres.nd, shares.nd * size)
    torch.testing.assert_close(metres.chamfer, shares.chamfer * size.double() ** 2, check_dtype=False)
    assert not metres.accurate.any()


def test_chamfer_is_the_mean_of_squares_both_ways():
    truth = torch.tensor([[-1.0, 0, 4], [0, 0, 4], [1, 0, 4]])[None, None, None]
    points = truth + torch.tensor([0, 0.1, 0])  # the alignment takes this off
    points = torch.cat([points, points[..., -1:, :] + torch.tensor([0.5, 0, 0])], dim=-2)
    truth = torch.cat([truth, truth[..., :1, :]], dim=-2)
    got, true = aligned(points, truth, torch.ones(1, 1, 1, 4, dtype=torch.bool))
    square = torch.cdist(got[0, 0, 0].double(), true[0, 0, 0].double()) ** 2
    errors = evaluate(points, truth, torch.ones(1, 1, 1, 4, dtype=torch.bool), normalised=False)
    assert errors.chamfer.item() == pytest.approx((square.amin(0).mean() + square.amin(1).mean()).item())


def test_a_wild_view_counts_at_most_ten(batch):
    truth = batch.points(0)
    wild = truth.clone()
    wild[:, 2] *= 1e3
    assert evaluate(wild, truth, batch.valid, normalised=True).by_view[:, 2].tolist() == [10, 10]


def test_distances_are_of_normalised_clouds(batch):
    truth = true_points(batch, (0, 1))
    farther = truth * torch.tensor([1.0, 2.0])[:, None, None, None, None]
    assert distances(farther, truth, batch.valid).max() < 1e-5
