"""A box-shaped room whose every pixel is known, photographed by cameras whose every pose is known."""

from __future__ import annotations

import numpy as np

from model.types import Camera, PointCloud, Prediction, Scene, Splats, View, Views

LOW, HIGH = np.array([-2.0, -1.3, -3.0]), np.array([2.0, 1.3, 2.5])
"""Corners of the room; here y points down, as gravity does."""


def box_room(
    count: int = 4,
    *,
    grid: tuple[int, int] = (48, 64),
    original: tuple[int, int] = (640, 480),
    image: tuple[int, int] = (320, 240),
    pitch: float = 0.0,
    yaw_step: float = 12.0,
    unplaced: tuple[int, ...] = (),
    noise: float = 0.0,
) -> Scene:
    """`count` cameras, `yaw_step` degrees apart, pitched down by `pitch` degrees; the world is the first one's frame.

    grid is (height, width), original and image are (width, height). The grid shows the middle of the photo: its crop
    leaves out an eighth at the left and at the right. noise moves every point along its ray, as a share of its depth.
    """
    rng = np.random.default_rng(0)
    room_poses = []
    for index in range(count):
        side = index - (count - 1) / 2
        eye = np.array([0.35 * side, 0.1 * np.cos(index), -2.0 + 0.1 * abs(side)])
        room_poses.append(_pose(eye, np.radians(-yaw_step * side), np.radians(pitch)))
    to_world = np.linalg.inv(room_poses[0])

    width, height = original
    K = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]])
    crop = np.array([width / 8, 0, width * 7 / 8, height])
    views, points, colours, cameras = [], [], [], []
    for index, pose in enumerate(room_poses):
        picture = _look(pose, K, (0, 0, width, height), (image[1], image[0]))[1]
        seen, colour = _look(pose, K, crop, grid)
        eye = pose[:3, 3]
        seen = eye + (seen - eye) * (1 + noise * rng.standard_normal(seen.shape[:2]))[..., None]
        views.append(View(f"Küche {index + 1}.jpg", picture, original))
        points.append((seen @ to_world[:3, :3].T + to_world[:3, 3]).astype(np.float32))
        colours.append(colour)
        cameras.append(None if index in unplaced else Camera(K, to_world @ pose, 0.9))

    confidence = np.ones((count, *grid), np.float32) + rng.random((count, *grid), dtype=np.float32)
    confidence[:, 0, :3] = 0
    prediction = Prediction(np.stack(points), confidence, np.stack(colours), np.tile(crop, (count, 1)))
    placed = np.array([camera is not None for camera in cameras])
    flat = np.flatnonzero((confidence > 0) & placed[:, None, None])
    cloud = PointCloud(
        prediction.points.reshape(-1, 3)[flat],
        prediction.rgb.reshape(-1, 3)[flat],
        confidence.ravel()[flat],
        (flat // confidence[0].size).astype(np.uint8),
    )
    return Scene(Views(tuple(views)), prediction, tuple(cameras), cloud, _splats(cloud, rng))


def up_in_world(pitch: float) -> np.ndarray:
    """(3,) the room's up in the frame of any of its cameras: turning them to the side does not change it."""
    return _pose(np.zeros(3), 0, np.radians(pitch))[:3, :3].T @ np.array([0, -1.0, 0])


def _pose(eye: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """camera_to_room (4, 4): turned to the right by yaw, then down by pitch; both in radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = np.cos(pitch), np.sin(pitch)
    pose = np.eye(4)
    pose[:3, :3] = turn @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    pose[:3, 3] = eye
    return pose


def _look(pose: np.ndarray, K: np.ndarray, box, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Points (h, w, 3) in the room and colours (h, w, 3) uint8 seen through the part `box` of a photo."""
    left, top, right, bottom = box
    h, w = size
    x = left + (np.arange(w) + 0.5) * (right - left) / w
    y = top + (np.arange(h) + 0.5) * (bottom - top) / h
    rays = np.stack([*np.meshgrid((x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]), np.ones((h, w))], -1)
    rays = rays @ pose[:3, :3].T
    eye = pose[:3, 3]
    with np.errstate(divide="ignore"):
        leaving = np.where(rays > 0, (HIGH - eye) / rays, (LOW - eye) / rays)
    points = eye + rays * leaving.min(axis=-1, keepdims=True)
    wall = leaving.argmin(axis=-1)
    base = np.array([[200, 120, 80], [90, 150, 90], [90, 110, 190]])[wall]
    tiles = (np.floor(points * 2 + 1e-6).sum(axis=-1) % 2)[..., None]
    # The floor is dark: what is up and what is down can be seen.
    floor = ((wall == 1) & (points[..., 1] > 0))[..., None]
    shade = base * (0.75 + 0.25 * tiles) * np.where(floor, 0.4, 1) + 8 * np.sin(9 * points)
    return points, np.clip(shade, 0, 255).astype(np.uint8)


def _splats(cloud: PointCloud, rng: np.random.Generator) -> Splats:
    count = len(cloud)
    scale = (0.01 + 0.05 * rng.random((count, 3))).astype(np.float32)
    rotation = rng.standard_normal((count, 4)).astype(np.float32)
    rotation /= np.linalg.norm(rotation, axis=1, keepdims=True)
    opacity = (0.05 + 0.9 * rng.random(count)).astype(np.float32)
    order = np.argsort(-scale.prod(axis=1) * opacity)
    return Splats(cloud.points[order], scale[order], rotation[order], opacity[order], cloud.colours[order])
