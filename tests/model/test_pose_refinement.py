"""A camera follows how the Gaussians look to where its photo was taken."""

from __future__ import annotations

import numpy as np
import pytest

from model.geometry import pose_refinement
from model.geometry.pose_refinement import refine_pose
from model.geometry.splatting import draw, moved, seen_colours
from tests.splatted import Splatted, pose_errors


@pytest.fixture(scope="module")
def scene() -> Splatted:
    return Splatted(2, side=96, noise=0.003)


def disturbed(scene: Splatted, degrees: float, share: float, seed: int) -> np.ndarray:
    """View 1's pose, turned about some axis and moved some way, as a share of the scene's depth."""
    axes = np.random.default_rng(seed).normal(size=(2, 3))
    way, axis = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    return moved(scene.pose(1, 0), np.r_[share * scene.depth * way, np.radians(degrees) * axis])


@pytest.mark.parametrize(("degrees", "share", "seed"), [(1, 0.01, 0), (3, 0.03, 1), (5, 0.04, 2)])
def test_a_disturbed_pose_comes_back(scene: Splatted, degrees: float, share: float, seed: int) -> None:
    """By the Gaussians of the other view alone, to the same place from anywhere. They are not quite what the room looks
    like from elsewhere: pixels are 0.5 degrees wide."""
    start = disturbed(scene, degrees, share, seed)
    found = refine_pose(scene.ellipsoids(0, 0), scene.squares[1], scene.Ks[1], start)
    turned, off = pose_errors(found.camera_to_world, scene.pose(1, 0))
    assert turned < 0.35
    assert off < 0.01 * scene.depth
    assert found.after < 0.5 * found.before


def test_a_picture_of_the_gaussians_themselves_is_found_exactly(scene: Splatted) -> None:
    ellipsoids, pose, K = scene.ellipsoids(0, 0), scene.pose(1, 0), scene.Ks[1]
    drawn = draw(ellipsoids, seen_colours(ellipsoids, pose), pose, K, scene.squares[1].shape[:2])
    photo = np.rint(255 * np.clip(drawn.colour / np.maximum(1 - drawn.clear, 1e-3)[..., None], 0, 1)).astype(np.uint8)
    found = refine_pose(ellipsoids, photo, K, disturbed(scene, 3, 0.03, 4))
    turned, off = pose_errors(found.camera_to_world, pose)
    assert turned < 0.02
    assert off < 0.001 * scene.depth


def test_a_pose_is_kept_where_nothing_looks_better(scene: Splatted) -> None:
    """A grey wall before a grey photo: every pose looks alike; a view away from all: none looks like anything."""
    wall = scene.ellipsoids(0, 0)
    grey = np.full_like(scene.squares[1], 128)
    wall.harmonics[:] = 0
    wall.harmonics[:, :, 0] = (128 / 255 - 0.5) / 0.28209479177387814
    start = disturbed(scene, 1, 0.01, 0)
    for photo, pose in ((grey, start), (scene.squares[1], start @ np.diag([-1, 1, -1, 1.0]))):
        found = refine_pose(wall, photo, scene.Ks[1], pose)
        np.testing.assert_array_equal(found.camera_to_world, pose)
        assert found.after == found.before
    assert not np.isfinite(found.after)


def test_a_right_pose_is_kept(scene: Splatted) -> None:
    """Even if another looks a little better: what the Gaussians lack is not the camera's fault."""
    pose = scene.pose(1, 0)
    found = refine_pose(scene.ellipsoids(0, 0), scene.squares[1], scene.Ks[1], pose)
    np.testing.assert_array_equal(found.camera_to_world, pose)
    assert found.after == found.before


def test_a_pose_that_goes_far_is_not_trusted(scene: Splatted, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (scene.ellipsoids(0, 0), scene.squares[1], scene.Ks[1], disturbed(scene, 3, 0.03, 1))
    monkeypatch.setattr(pose_refinement, "FARTHEST", 4.0)
    assert refine_pose(*arguments).after < 0.5 * refine_pose(*arguments).before
    monkeypatch.setattr(pose_refinement, "FARTHEST", 2.0)
    found = refine_pose(*arguments)
    np.testing.assert_array_equal(found.camera_to_world, arguments[-1])
    assert found.after == found.before


def test_it_can_be_cancelled_and_tells_how_far_it_is(scene: Splatted) -> None:
    told: list[float] = []
    arguments = (scene.ellipsoids(0, 0), scene.squares[1], scene.Ks[1], disturbed(scene, 2, 0.02, 3))
    refine_pose(*arguments, told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 1)

    def cancel(share: float) -> None:
        if share > 0.3:
            raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        refine_pose(*arguments, cancel)
