"""Focal and poses against known cameras. The goldens: test_golden_geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from model.geometry.crop import square_crop, square_crop_in_original
from model.geometry.poses import intrinsics, invert_rigid, pixel_centres, solve_cameras, solve_focal
from model.types import Prediction, View, Views


def rotation_degrees(a: np.ndarray, b: np.ndarray) -> float:
    cosine = (np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def a_pose(rng: np.random.Generator, angle: float = 0.4) -> np.ndarray:
    axis = rng.normal(size=3)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(axis / np.linalg.norm(axis) * rng.uniform(0, angle)).as_matrix()
    pose[:3, 3] = rng.uniform(-0.5, 0.5, 3)
    return pose


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_poses_obey_the_laws_of_a_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (a_pose(rng, angle=3.1) for _ in range(3))
    unit = np.eye(4)
    np.testing.assert_array_equal(invert_rigid(unit), unit)
    for product, expected in (
        (invert_rigid(a) @ a, unit),
        (a @ invert_rigid(a), unit),
        (invert_rigid(invert_rigid(a)), a),
        (invert_rigid(a @ b), invert_rigid(b) @ invert_rigid(a)),
        # From a to c by way of b.
        ((invert_rigid(a) @ b) @ (invert_rigid(b) @ c), invert_rigid(a) @ c),
    ):
        np.testing.assert_allclose(product, expected, atol=1e-12)
        # Closed: what comes out is a pose again.
        np.testing.assert_allclose(product[:3, :3] @ product[:3, :3].T, np.eye(3), atol=1e-12)
        np.testing.assert_array_equal(product[3], unit[3])


def a_prediction(
    focals: list[float], poses: list[np.ndarray], sizes: list[tuple[int, int]], outliers: float, seed: int
) -> Prediction:
    """Pointmaps of a wavy surface as cameras of these focals (original pixels) see it in a 32 x 32 centre crop."""
    rng = np.random.default_rng(seed)
    points, crops = [], []
    for focal, pose, size in zip(focals, poses, sizes):
        crop = np.array(square_crop_in_original(*size, 32))
        rays = pixel_centres(crop, 32, 32) - np.array(size) / 2
        depth = 4 + rng.uniform(-1, 1, (32, 32))
        local = np.concatenate([rays / focal * depth[..., None], depth[..., None]], axis=-1)
        local[rng.random((32, 32)) < outliers] += 2.0
        points.append(local @ pose[:3, :3].T + pose[:3, 3])
        crops.append(crop)
    shape = (len(poses), 32, 32)
    return Prediction(
        points=np.stack(points).astype(np.float32),
        confidence=rng.uniform(1, 3, shape).astype(np.float32),
        rgb=np.zeros((*shape, 3), np.uint8),
        crops=np.stack(crops),
    )


def some_views(sizes: list[tuple[int, int]], **changes: object) -> Views:
    image = np.zeros((8, 8, 3), np.uint8)
    return replace(Views(tuple(View(f"{i}.jpg", image, size) for i, size in enumerate(sizes))), **changes)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), focal=st.floats(300, 1200), reference=st.integers(0, 2))
def test_cameras_of_a_pointmap_are_found_in_spite_of_outliers(seed: int, focal: float, reference: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(640, 480), (640, 480), (480, 640)]
    poses = [a_pose(rng) for _ in sizes]
    to_reference = invert_rigid(poses[reference])
    poses = [to_reference @ pose for pose in poses]
    prediction = a_prediction([focal] * 3, poses, sizes, 0.1, seed)
    cameras = solve_cameras(prediction, some_views(sizes, reference=reference))
    np.testing.assert_array_equal(cameras[reference].camera_to_world, np.eye(4))
    for camera, pose, size in zip(cameras, poses, sizes):
        assert camera.focal == pytest.approx(focal, rel=0.02)
        np.testing.assert_allclose(camera.K, intrinsics(camera.focal, size))
        assert rotation_degrees(camera.camera_to_world, pose) < 0.5
        assert np.linalg.norm(camera.camera_to_world[:3, 3] - pose[:3, 3]) < 0.05
        assert 0.85 < camera.inlier_share < 0.95


def test_a_focal_a_view_is_found_on_request_and_for_another_camera() -> None:
    rng = np.random.default_rng(3)
    sizes = [(640, 480), (640, 480), (800, 600)]
    poses = [np.eye(4), a_pose(rng), a_pose(rng)]
    focals = [500.0, 650.0, 900.0]
    prediction = a_prediction(focals, poses, sizes, 0.05, 3)
    own = solve_cameras(prediction, some_views(sizes, shared_focal=False))
    assert [camera.focal for camera in own] == pytest.approx(focals, rel=0.02)
    shared = solve_cameras(prediction, some_views(sizes))
    assert shared[1].focal == shared[0].focal
    assert shared[2].focal == pytest.approx(900, rel=0.02)


def test_points_that_no_pose_explains_give_no_camera() -> None:
    rng = np.random.default_rng(0)
    prediction = a_prediction([500.0, 500.0], [np.eye(4), a_pose(rng)], [(640, 480)] * 2, 0.0, 0)
    confidence = prediction.confidence.copy()
    confidence[1] = 0
    cameras = solve_cameras(replace(prediction, confidence=confidence), some_views([(640, 480)] * 2))
    assert cameras[0] is not None
    assert cameras[1] is None


def test_focal_without_a_pose_survives_noise() -> None:
    rng = np.random.default_rng(1)
    pose = a_pose(rng)
    prediction = a_prediction([700.0], [pose], [(640, 480)], 0.1, 1)
    pixels = pixel_centres(prediction.crops[0], 32, 32).reshape(-1, 2) - [320, 240]
    focal = solve_focal(prediction.points[0].reshape(-1, 3).astype(np.float64), pixels, np.ones(1024))
    assert focal == pytest.approx(700, rel=0.02)


@given(width=st.integers(64, 9000), height=st.integers(64, 9000), side=st.sampled_from([32, 224, 512]))
def test_the_square_crop_lies_in_the_photo_and_is_about_as_large_as_asked(width: int, height: int, side: int) -> None:
    (resized_width, resized_height), (left, top, right, bottom) = square_crop(width, height, side)
    assert right - left == bottom - top
    assert abs(right - left - side) <= 2
    assert 0 <= left < right <= resized_width
    assert 0 <= top < bottom <= resized_height
    box = square_crop_in_original(width, height, side)
    assert box[0] >= 0
    assert box[1] >= 0
    assert box[2] <= width + 1e-9
    assert box[3] <= height + 1e-9
