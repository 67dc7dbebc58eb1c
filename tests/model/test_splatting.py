"""Gaussians as a camera sees them: closed forms, laws, and derivatives against differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from model.geometry.splatting import LOW_PASS, Ellipsoids, draw, harmonic_basis, moved, seen_colours

SIZE = (48, 64)
K = np.array([[50.0, 0, 31], [0, 55, 25], [0, 0, 1]])


def ellipsoids(count: int, seed: int = 0, degree: int = 1) -> Ellipsoids:
    """Before a camera at the origin, large enough to be seen whole."""
    rng = np.random.default_rng(seed)
    return Ellipsoids.of(
        rng.uniform([-1, -1, 3], [1, 1, 5], (count, 3)),
        rng.uniform(0.05, 0.3, (count, 3)),
        Rotation.random(count, rng).as_quat(scalar_first=True),
        rng.uniform(0.2, 0.8, count),
        rng.normal(0, 0.3, (count, 3, (degree + 1) ** 2)).astype(np.float32),
    )


def pose(seed: int = 1, turn: float = 0.2) -> np.ndarray:
    return moved(np.eye(4), turn * np.random.default_rng(seed).uniform(-1, 1, 6))


def picture(ellipsoids: Ellipsoids, camera_to_world: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 4) colours and what is seen through them, and their derivatives."""
    drawn = draw(ellipsoids, seen_colours(ellipsoids, camera_to_world), camera_to_world, K, SIZE, **options)
    return np.dstack([drawn.colour, drawn.clear]), drawn.by_pose


def test_one_gaussian_is_the_closed_form() -> None:
    """On the axis, where the perspective is a mere scaling: a normal distribution of known covariance."""
    depth, scale, opacity = 4.0, np.array([0.2, 0.1, 0.3]), 0.6
    turn = Rotation.from_euler("z", 30, degrees=True)
    one = Ellipsoids.of(
        np.array([[0, 0, depth]]), scale[None], turn.as_quat(scalar_first=True)[None], np.array([opacity]),
        np.array([[[1.0], [0.5], [-0.5]]], np.float32),
    )  # fmt: skip
    drawn, _ = picture(one, np.eye(4))
    lens = np.diag([50, 55]) / depth
    inverse = np.linalg.inv(
        lens @ (turn.as_matrix() @ np.diag(scale**2) @ turn.as_matrix().T)[:2, :2] @ lens + LOW_PASS * np.eye(2)
    )
    offset = np.stack(np.meshgrid(np.arange(64) + 0.5 - 31, np.arange(48) + 0.5 - 25), axis=-1)
    cover = opacity * np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", offset, inverse, offset))
    cover[cover < 1 / 255] = 0
    colour = 0.5 + 0.28209479177387814 * np.array([1, 0.5, -0.5])
    np.testing.assert_allclose(drawn[..., :3], cover[..., None] * colour, atol=1e-12)
    np.testing.assert_allclose(drawn[..., 3], 1 - cover, atol=1e-12)


def test_the_nearer_hides_the_farther() -> None:
    """In whatever order they are given, by the product of what is clear before them."""
    near, far = 3.0, 4.0
    both = Ellipsoids(
        np.array([[0, 0, far], [0, 0, near]]), np.stack([np.eye(3)] * 2), np.array([0.5, 0.8]),
        np.zeros((2, 3, 1), np.float32),
    )  # fmt: skip
    colours = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    for order in ([0, 1], [1, 0]):
        chosen = Ellipsoids(*(getattr(both, name)[order] for name in Ellipsoids.__slots__))
        drawn = draw(chosen, colours[order], np.eye(4), K, SIZE)
        centre = drawn.colour[25, 31]  # half a pixel off: all but the peak
        np.testing.assert_allclose(centre, [0.2 * 0.5, 0.8, 0], atol=1e-3)
        assert drawn.clear[25, 31] == pytest.approx(0.2 * 0.5, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_slopes_are_those_of_small_steps(seed: int) -> None:
    """Colours and their order kept, as promised: their own change with the direction is left out."""
    some, camera, step = ellipsoids(30, seed), pose(seed), 1e-6
    colours = seen_colours(some, camera)
    slopes = draw(some, colours, camera, K, SIZE, by_pose=True).by_pose
    assert slopes.shape == (*SIZE, 6, 4)
    for k in range(6):
        ahead, behind = (draw(some, colours, moved(camera, sign * step * np.eye(6)[k]), K, SIZE) for sign in (1, -1))
        colour, clear = (ahead.colour - behind.colour) / (2 * step), (ahead.clear - behind.clear) / (2 * step)
        expected = np.dstack([colour, clear])
        # A pixel at the rim of a Gaussian, which is drawn after the step and not before, has no slope.
        steady = np.abs(expected) < 1e3
        assert steady.mean() > 0.99
        np.testing.assert_allclose(
            slopes[:, :, k][steady], expected[steady], atol=1e-6 * np.abs(expected[steady]).max()
        )


def test_slopes_are_not_drawn_unasked() -> None:
    some, camera = ellipsoids(30), pose()
    drawn, slopes = picture(some, camera)
    assert slopes.shape == (*SIZE, 0, 4)
    np.testing.assert_array_equal(drawn, picture(some, camera, by_pose=True)[0])


def test_the_worlds_frame_does_not_matter() -> None:
    """Without harmonics that differ by direction, which belong to a frame."""
    some, camera, motion = ellipsoids(30, degree=0), pose(), pose(2, 3.0)
    elsewhere = Ellipsoids(
        some.centres @ motion[:3, :3].T + motion[:3, 3],
        motion[:3, :3] @ some.covariances @ motion[:3, :3].T,
        some.opacity,
        some.harmonics,
    )
    np.testing.assert_allclose(picture(elsewhere, motion @ camera)[0], picture(some, camera)[0], atol=1e-9)


def test_what_is_behind_or_beside_is_not_drawn() -> None:
    some = ellipsoids(20)
    behind = Ellipsoids(some.centres * np.array([1, 1, -1]), some.covariances, some.opacity, some.harmonics)
    beside = Ellipsoids(some.centres + np.array([50, 0, 0]), some.covariances, some.opacity, some.harmonics)
    at_the_lens = Ellipsoids(some.centres[:1] * 1e-4, some.covariances[:1], some.opacity[:1], some.harmonics[:1])
    alone = picture(some, np.eye(4))[0]
    np.testing.assert_array_equal(picture(Ellipsoids.joined([some, behind, beside, at_the_lens]), np.eye(4))[0], alone)
    assert (picture(behind, np.eye(4))[0] == [0, 0, 0, 1]).all()


def test_harmonics_are_orthonormal_and_signed_as_splats_have_them() -> None:
    rng = np.random.default_rng(0)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    azimuth = np.arange(24) * np.pi / 12
    z, around = (grid.ravel() for grid in np.meshgrid(nodes, azimuth, indexing="ij"))
    sphere = np.stack([np.sqrt(1 - z**2) * np.cos(around), np.sqrt(1 - z**2) * np.sin(around), z], axis=1)
    basis = harmonic_basis(sphere, 4)
    np.testing.assert_allclose(basis.T @ (basis * (weights.repeat(24) * np.pi / 12)[:, None]), np.eye(25), atol=1e-12)
    directions = rng.normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    x, y, z = directions.T
    # Kerbl et al.'s order and signs, each up to its positive norm.
    expected = (
        np.ones(50), -y, z, -x, x * y, -y * z, 2 * z**2 - x**2 - y**2, -x * z, x**2 - y**2,
        -y * (3 * x**2 - y**2), x * y * z, -y * (4 * z**2 - x**2 - y**2), z * (2 * z**2 - 3 * x**2 - 3 * y**2),
        -x * (4 * z**2 - x**2 - y**2), z * (x**2 - y**2), -x * (x**2 - 3 * y**2),
    )  # fmt: skip
    for column, polynomial in zip(harmonic_basis(directions, 4).T, expected, strict=False):
        ratio = column / polynomial
        assert ratio.min() > 0
        np.testing.assert_allclose(ratio, ratio[0])


def test_colours_differ_by_where_they_are_seen_from() -> None:
    """Along x by the coefficient of -x: from the left it is red, from the right it is not."""
    harmonics = np.zeros((1, 3, 4), np.float32)
    harmonics[0, 0, 3] = -1
    one = Ellipsoids(np.array([[0, 0, 5.0]]), 0.01 * np.eye(3)[None], np.array([0.5]), harmonics)
    left, right = (moved(np.eye(4), np.array([side, 0, 0, 0, 0, 0])) for side in (5.0, -5.0))
    assert left[0, 3] == -5
    expected = np.sqrt(3 / (4 * np.pi)) * np.sqrt(0.5)
    np.testing.assert_allclose(seen_colours(one, left), [[0.5 + expected, 0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(seen_colours(one, right), [[0.5 - expected, 0.5, 0.5]], rtol=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_a_step_is_a_rigid_motion_and_its_reverse_undoes_it(step: list[float]) -> None:
    camera, ahead = pose(3, 2.0), np.array(step)
    there = moved(camera, ahead)
    np.testing.assert_allclose(there[:3, :3] @ there[:3, :3].T, np.eye(3), atol=1e-12)
    turn = Rotation.from_rotvec(ahead[3:]).as_matrix()
    np.testing.assert_allclose(moved(there, np.r_[-turn.T @ ahead[:3], -ahead[3:]]), camera, atol=1e-9)
