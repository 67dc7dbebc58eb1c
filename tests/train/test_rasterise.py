"""Gaussians drawn with slopes: closed forms, the renderer that serving has, and finite differences."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.geometry.splatting import LOW_PASS, Ellipsoids, draw, moved
from train import rasterise as rasteriser
from train.batch import rigid_inverse
from train.rasterise import Drawn, by_gsplat, rasterise

SIZE = (24, 32)
K = torch.tensor([[30.0, 0, 15.5], [0, 33, 12.5], [0, 0, 1]], dtype=torch.float64)


def gaussians(count: int, seed: int = 0, scenes: int = 1) -> list[Tensor]:
    """Centres, scale, rotation, opacity and colour before a camera at the origin, float64."""
    rng = np.random.default_rng(seed)
    fields = (
        rng.uniform([-1, -1, 3], [1, 1, 5], (scenes, count, 3)),
        rng.uniform(0.02, 0.3, (scenes, count, 3)),
        rng.normal(size=(scenes, count, 4)),
        rng.uniform(0.1, 1, (scenes, count)),
        rng.uniform(0, 1, (scenes, count, 3)),
    )
    return [torch.from_numpy(field) for field in fields]


def cameras(views: int, scenes: int = 1) -> tuple[Tensor, Tensor]:
    """Poses and intrinsics."""
    rng = np.random.default_rng(1)
    poses = [moved(np.eye(4), 0.15 * rng.uniform(-1, 1, 6)) for _ in range(scenes * views)]
    return torch.from_numpy(np.stack(poses)).unflatten(0, (scenes, views)), K.expand(scenes, views, 3, 3)


def one(centre: tuple[float, float, float], opacity: float, colour: tuple[float, float, float]) -> list[Tensor]:
    fields = (centre, (0.2, 0.1, 0.3), (1.0, 0, 0, 0), opacity, colour)
    return [torch.tensor(field, dtype=torch.float64)[None, None] for field in fields]


def joined(*scenes: list[Tensor]) -> list[Tensor]:
    return [torch.cat(field, dim=1) for field in zip(*scenes, strict=True)]


STILL = torch.eye(4, dtype=torch.float64)[None, None]


def test_one_gaussian_is_the_closed_form():
    """On the axis, where the perspective is a mere scaling: a normal distribution of known covariance."""
    fields = one((0, 0, 4), 0.6, (1.0, 0.5, 0.25))
    turn = Rotation.from_euler("z", 30, degrees=True)
    fields[2] = torch.from_numpy(turn.as_quat(scalar_first=True))[None, None] * 2.5
    drawn = rasterise(*fields, STILL, K[None, None], SIZE)
    axes = torch.from_numpy(turn.as_matrix()) * fields[1][0, 0]
    lens = torch.diag(torch.tensor([30.0, 33.0], dtype=torch.float64)) / 4
    inverse = torch.linalg.inv(lens @ (axes @ axes.T)[:2, :2] @ lens + LOW_PASS * torch.eye(2, dtype=torch.float64))
    v, u = torch.meshgrid(torch.arange(24) + 0.5 - 12.5, torch.arange(32) + 0.5 - 15.5, indexing="ij")
    offset = torch.stack([u, v], dim=-1).double()
    cover = 0.6 * torch.exp(-0.5 * torch.einsum("hwi,ij,hwj->hw", offset, inverse, offset))
    cover[cover < 1 / 255] = 0
    torch.testing.assert_close(drawn.alpha[0, 0], cover, atol=1e-12, rtol=0)
    torch.testing.assert_close(drawn.colour[0, 0], cover[..., None] * fields[4][0, 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(drawn.depth[0, 0], 4.0 * (cover > 0).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_hides_the_farther(order):
    both = one((0, 0, 3), 0.8, (0, 1, 0)), one((0, 0, 4), 0.5, (1, 0, 0))
    drawn = rasterise(*joined(*(both[k] for k in order)), STILL, K[None, None], SIZE)
    centre = 12, 15  # the pixel whose middle is the principal point
    torch.testing.assert_close(drawn.colour[0, 0][centre], torch.tensor([0.1, 0.8, 0], dtype=torch.float64))
    assert drawn.alpha[0, 0][centre].item() == pytest.approx(0.9)
    assert drawn.depth[0, 0][centre].item() == pytest.approx((0.8 * 3 + 0.1 * 4) / 0.9)


def test_an_opaque_wall_lets_nothing_through():
    """And no slope reaches what it hides."""
    wall = joined(*(one((0, 0, 2 + k / 10), 1.0, (0, 0, 1)) for k in range(3)))
    hidden = one((0, 0, 4), 0.9, (1, 0, 0))
    hidden[4].requires_grad_()
    drawn = rasterise(*joined(wall, hidden), STILL, K[None, None], SIZE).colour[0, 0, 12, 15]
    drawn.sum().backward()
    assert drawn[0] == 0
    assert drawn[2] > 0.9999
    assert (hidden[4].grad == 0).all()


def test_pictures_are_those_of_the_renderer_without_torch():
    scenes, views = 2, 3
    fields, (poses, lenses) = gaussians(60, scenes=scenes), cameras(views, scenes)
    drawn = rasterise(*fields, poses, lenses, SIZE)
    assert 0.2 < drawn.alpha.mean() < 0.9
    for scene in range(scenes):
        centres, scale, rotation, opacity, colour = (field[scene].numpy() for field in fields)
        some = Ellipsoids.of(centres, scale, rotation, opacity, np.zeros((len(centres), 3, 1), np.float32))
        for view in range(views):
            expected = draw(some, colour, poses[scene, view].numpy(), K.numpy(), SIZE)
            np.testing.assert_allclose(drawn.colour[scene, view], expected.colour, atol=1e-9)
            np.testing.assert_allclose(drawn.alpha[scene, view], 1 - expected.clear, atol=1e-9)


def test_slopes_are_those_of_small_steps():
    fields, (poses, _) = gaussians(6), cameras(2)
    lens = torch.tensor([[7.0, 0, 4], [0, 8, 3], [0, 0, 1]], dtype=torch.float64).expand(1, 2, 3, 3)

    def picture(*inputs: Tensor) -> tuple[Tensor, ...]:
        *shapes, pose, lens = inputs
        drawn = rasterise(*shapes, torch.cat([pose, poses[..., 3:, :]], dim=-2), lens, (6, 8))
        return drawn.colour, drawn.alpha, drawn.depth * drawn.alpha

    # Of a pose the rotation's slopes are those of an inverse by transposition, and so are the steps.
    inputs = [*fields, poses[..., :3, :], lens.clone()]
    assert torch.autograd.gradcheck(picture, [x.clone().requires_grad_() for x in inputs], fast_mode=True)
    some = [x.clone().requires_grad_() for x in inputs[:5]] + inputs[5:]
    assert torch.autograd.gradcheck(lambda *x: picture(*x)[0].sum((0, 1, 2)), some)


def test_bands_change_nothing(monkeypatch):
    """Neither pictures nor slopes, however little is drawn at once."""
    poses, lenses = cameras(3)

    def run() -> list[Tensor]:
        fields = [field.requires_grad_() for field in gaussians(40)]
        drawn = rasterise(*fields, poses, lenses, SIZE)
        (drawn.colour.square().sum() + drawn.depth.sum()).backward()
        return [drawn.colour, drawn.alpha, drawn.depth, *(field.grad for field in fields)]

    whole = run()
    monkeypatch.setattr(rasteriser, "PAIRS_AT_ONCE", 500)
    for got, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(got, expected)


def test_float32_is_near_float64():
    """With a long list, whose running sum must not lose what is clear at its end."""
    fields, (poses, lenses) = gaussians(3000), cameras(2)
    exact = rasterise(*fields, poses, lenses, SIZE)
    coarse = rasterise(*(x.float() for x in fields), poses.float(), lenses.float(), SIZE)
    assert coarse.colour.dtype == torch.float32
    assert (coarse.colour - exact.colour).abs().quantile(0.99) < 1e-4


def test_a_long_thin_gaussian_keeps_its_width():
    """A needle as long as the picture, aslant: in float32 as in float64."""
    fields = one((0, 0, 4), 0.9, (1, 0, 0))
    fields[1] = torch.tensor([1e-4, 3e3, 1e-4], dtype=torch.float64)[None, None]
    fields[2] = torch.from_numpy(Rotation.from_euler("z", 30, degrees=True).as_quat(scalar_first=True))[None, None]
    exact = rasterise(*fields, STILL, K[None, None], SIZE)
    coarse = rasterise(*(x.float() for x in fields), STILL.float(), K[None, None].float(), SIZE)
    assert 0.02 < exact.alpha.mean() < 0.1
    assert (coarse.alpha - exact.alpha).abs().max() < 0.01


def test_nothing_to_see():
    fields, (poses, lenses) = gaussians(5), cameras(2)
    behind = rasterise(fields[0] * torch.tensor([1, 1, -1]), *fields[1:], poses, lenses, SIZE)
    faint = rasterise(*fields[:3], fields[3] / 1000, fields[4], poses, lenses, SIZE)
    for drawn in (behind, faint):
        assert drawn.colour.shape == (1, 2, *SIZE, 3)
        assert not drawn.colour.any()
        assert not drawn.alpha.any()
        assert not drawn.depth.any()


def test_a_fit_by_gradient_finds_the_gaussians():
    """From wrong colours, opacities and places to those that made the pictures."""
    fields, (poses, lenses) = gaussians(8), cameras(4)
    with torch.no_grad():
        target = rasterise(*fields, poses, lenses, SIZE)
    rng = torch.Generator().manual_seed(0)
    found = [fields[0] + 0.05 * torch.randn(fields[0].shape, generator=rng), *fields[1:3], fields[3] * 0 + 0.5]
    found = [x.clone().requires_grad_() for x in [*found, torch.full_like(fields[4], 0.5)]]
    optimiser = torch.optim.Adam(found, lr=0.02)
    errors = []
    for _ in range(60):
        drawn = rasterise(*found[:3], found[3].clamp(0.01, 1), found[4], poses, lenses, SIZE)
        errors.append((drawn.colour - target.colour).square().mean())
        optimiser.zero_grad()
        errors[-1].backward()
        optimiser.step()
    assert errors[-1] < 0.02 * errors[0]


def test_the_library_is_called_as_it_is_documented(monkeypatch):
    """With a library that draws as we do: what it is handed, and what is made of its answer."""

    def rasterization(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, eps2d, render_mode
    ):
        assert near_plane == rasteriser.NEAR
        assert render_mode == "RGB+ED"
        drawn = rasterise(
            *(x[None] for x in (means, scales, quats, opacities, colors, rigid_inverse(viewmats), Ks)),
            (height, width),
            low_pass=eps2d,
        )
        return torch.cat([drawn.colour, drawn.depth[..., None]], dim=-1)[0], drawn.alpha[0, ..., None], {}

    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(rasterization=rasterization))
    fields, (poses, lenses) = gaussians(10, scenes=2), cameras(2, 2)
    called, expected = (make(*fields, poses, lenses, SIZE, low_pass=0.1) for make in (by_gsplat, rasterise))
    for name in Drawn.__slots__:
        torch.testing.assert_close(getattr(called, name), getattr(expected, name))
