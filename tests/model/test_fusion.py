"""What becomes of a prediction's pixels: kept, carved, sampled, sized."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from model.fusion import fuse
from model.geometry.poses import intrinsics, pixel_centres
from model.types import Camera, Gaussians, Prediction, ReconstructionError, Scene, View, Views

SIZE = (64, 48)
FOCAL = 60.0


def camera(x: float = 0.0) -> Camera:
    pose = np.eye(4)
    pose[0, 3] = x
    return Camera(intrinsics(FOCAL, SIZE), pose, 1.0)


def wall(cameras: list[Camera | None], depth: float = 5.0) -> tuple[Prediction, Views]:
    """A wall facing the cameras, seen by each in full."""
    crop = np.array([0.0, 0.0, *SIZE])
    rays = (pixel_centres(crop, 48, 64) - [32, 24]) / FOCAL
    local = np.concatenate([rays * depth, np.full((48, 64, 1), depth)], axis=-1)
    points = [local + (0 if c is None else c.camera_to_world[:3, 3]) for c in cameras]
    count = len(cameras)
    prediction = Prediction(
        points=np.stack(points).astype(np.float32),
        confidence=np.ones((count, 48, 64), np.float32),
        rgb=np.full((count, 48, 64, 3), 90, np.uint8),
        crops=np.tile(crop, (count, 1)),
    )
    views = Views(tuple(View(f"{i}.jpg", np.zeros((48, 64, 3), np.uint8), SIZE) for i in range(count)))
    return prediction, views


def fused(cameras: list[Camera | None], prediction: Prediction, views: Views, **options: float) -> Scene:
    return fuse(prediction, views, tuple(cameras), options.get("percentile", 0), int(options.get("most", 10**6)))


def test_every_sure_pixel_becomes_a_point_and_a_disc_on_its_surface() -> None:
    cameras = [camera(), camera(0.5)]
    prediction, views = wall(cameras)
    scene = fused(cameras, prediction, views)
    assert len(scene.cloud) == len(scene.splats) == 2 * 48 * 64
    assert np.bincount(scene.cloud.view).tolist() == [48 * 64] * 2
    normals = Rotation.from_quat(scene.splats.rotation, scalar_first=True).apply([0, 0, 1])
    np.testing.assert_allclose(np.abs(normals[:, 2]), 1, atol=1e-5)
    spacing = 5 / FOCAL
    np.testing.assert_allclose(scene.splats.scale[:, :2], 0.6 * spacing, rtol=1e-3)
    assert (scene.splats.scale[:, 2] < 0.2 * spacing).all()


def test_discs_lie_in_a_slanted_surface() -> None:
    cameras = [camera()]
    prediction, views = wall(cameras)
    rays = prediction.points[0] / 5
    depth = 5 / (1 + 0.5 * rays[..., 0])  # the plane z + x / 2 = 5
    points = (rays * depth[..., None])[None].astype(np.float32)
    scene = fused(cameras, replace(prediction, points=points), views)
    normals = Rotation.from_quat(scene.splats.rotation, scalar_first=True).apply([0, 0, 1])
    expected = np.array([0.5, 0, 1]) / np.sqrt(1.25)
    assert (np.abs(normals @ expected) > 0.999).all()


def test_a_floater_that_a_surer_view_looks_through_is_carved() -> None:
    cameras = [camera(), camera(0.5)]
    prediction, views = wall(cameras)
    points, confidence = prediction.points.copy(), prediction.confidence.copy()
    points[1, 10:30, 20:40] *= np.float32(0.5)
    points[1, 10:30, 20:40, 0] += np.float32(0.25)
    confidence[1, 10:30, 20:40] = 0.5
    scene = fused(cameras, replace(prediction, points=points, confidence=confidence), views)
    assert (scene.cloud.points[:, 2] > 4.9).all()
    sure = confidence.copy()
    sure[1, 10:30, 20:40] = 2
    scene = fused(cameras, replace(prediction, points=points, confidence=sure), views)
    assert (scene.cloud.points[:, 2] < 3).sum() == 400, "what is surer than the surface behind it stays"


def test_a_point_between_two_surfaces_is_dropped() -> None:
    cameras = [camera()]
    prediction, views = wall(cameras)
    points = prediction.points.copy()
    points[0, :, 32:] *= np.float32(4)
    points[0, ::2, 31] *= np.float32(1.8)
    points[0, 1::2, 31] *= np.float32(2.8)
    scene = fused(cameras, replace(prediction, points=points), views)
    assert len(scene.cloud) == 48 * 63


def test_unplaced_views_padding_and_points_behind_the_camera_are_left_out() -> None:
    cameras = [camera(), None, camera(0.5)]
    prediction, views = wall(cameras)
    confidence, points = prediction.confidence.copy(), prediction.points.copy()
    confidence[0, :10] = 0
    points[2, :5] *= -1
    scene = fused(cameras, replace(prediction, confidence=confidence, points=points), views)
    assert np.bincount(scene.cloud.view, minlength=3).tolist() == [38 * 64, 0, 43 * 64]


def test_percentile_and_max_points_bound_the_cloud() -> None:
    cameras = [camera()]
    prediction, views = wall(cameras)
    confidence = np.arange(1, 48 * 64 + 1, dtype=np.float32).reshape(1, 48, 64)
    prediction = replace(prediction, confidence=confidence)
    half = fused(cameras, prediction, views, percentile=50)
    assert len(half.cloud) == 48 * 64 / 2
    assert half.cloud.confidence.min() == 48 * 64 / 2 + 1
    few = fused(cameras, prediction, views, most=1000)
    assert len(few.cloud) == len(few.splats) == 1000


def test_gaussians_of_a_network_are_kept_with_their_pixels_and_sorted() -> None:
    cameras = [camera()]
    prediction, views = wall(cameras)
    rng = np.random.default_rng(0)
    shape = prediction.confidence.shape
    gaussians = Gaussians(
        scale=rng.uniform(0.01, 0.1, (*shape, 3)).astype(np.float32),
        rotation=np.broadcast_to(np.float32([1, 0, 0, 0]), (*shape, 4)),
        opacity=rng.uniform(0, 1, shape).astype(np.float32),
    )
    splats = fused(cameras, replace(prediction, gaussians=gaussians), views).splats
    importance = np.prod(splats.scale, axis=1) * splats.opacity
    assert (np.diff(importance) <= 1e-12).all()
    at = np.argmin(np.linalg.norm(prediction.points[0] - splats.centres[7], axis=-1))
    np.testing.assert_array_equal(gaussians.scale.reshape(-1, 3)[at], splats.scale[7])


def test_a_networks_harmonics_stay_with_their_gaussians() -> None:
    """Their mean is a Gaussian's colour; the cloud keeps the photo's."""
    cameras = [camera()]
    prediction, views = wall(cameras)
    rng = np.random.default_rng(0)
    shape = prediction.confidence.shape
    gaussians = Gaussians(
        scale=rng.uniform(0.01, 0.1, (*shape, 3)).astype(np.float32),
        rotation=np.broadcast_to(np.float32([1, 0, 0, 0]), (*shape, 4)),
        opacity=rng.uniform(0, 1, shape).astype(np.float32),
        harmonics=rng.normal(0, 1, (*shape, 3, 4)).astype(np.float32),
    )
    scene = fused(cameras, replace(prediction, gaussians=gaussians), views)
    for splat in range(0, len(scene.splats), 101):
        at = np.argmin(np.linalg.norm(prediction.points[0] - scene.splats.centres[splat], axis=-1))
        own = gaussians.harmonics.reshape(-1, 3, 4)[at]
        np.testing.assert_array_equal(scene.splats.harmonics[splat], own)
        np.testing.assert_allclose(
            scene.splats.colours[splat], np.clip(0.5 + 0.28209479 * own[:, 0], 0, 1) * 255, atol=0.51
        )
    assert (np.sort(scene.cloud.colours, axis=0) == np.sort(prediction.rgb.reshape(-1, 3), axis=0)).all()


def test_nothing_to_keep_is_said_in_a_sentence() -> None:
    cameras = [camera()]
    prediction, views = wall(cameras)
    nothing = replace(prediction, confidence=np.zeros_like(prediction.confidence))
    with pytest.raises(ReconstructionError, match="No point"):
        fused(cameras, nothing, views)
