"""The ray caster against closed forms, and against itself from another place."""

from __future__ import annotations

import numpy as np
import pytest

from train.render import BOX, CYLINDER, ELLIPSOID, Light, Solid, Texture, build, cast, intrinsics, render
from train.scenes import look_at

SIZE = (64, 48)
GREY = Texture(np.full((4, 4, 3), 188, np.uint8), 1.0)  # sRGB 188 is half of white's light


def turned(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def solid(kind: int, centre: tuple, half: tuple, angle: float = 0.0, **more) -> Solid:
    return Solid(kind, np.array(centre, float), np.array(half, float), 0, turned(angle), **more)


def lamp(x: float, y: float, z: float, side: float = 1e-6) -> Light:
    edge = np.eye(3) * side
    return Light(np.array([x, y, z]), edge[0], edge[1], np.array([0, 0, -1.0]), np.array([2.0, 2.0, 2.0]))


@pytest.mark.parametrize("angle", [0.0, 0.4])
@pytest.mark.parametrize("kind", [BOX, CYLINDER, ELLIPSOID])
def test_hits_lie_on_the_surface(kind, angle):
    thing = solid(kind, (0.1, 4.0, 0.2), (0.5, 0.8, 0.6), angle)
    room = build([[thing]], [GREY], [lamp(0, 0, 5)], (1, 1, 1))
    pose = look_at(np.array([0.3, 0.0, 0.9]), np.array([0.1, 4.0, 0.2]))
    points, valid, depth = cast(room, pose, intrinsics(SIZE), SIZE)
    assert 0.02 < valid.mean() < 0.5
    x, y, z = np.abs(((points[valid] - thing.centre) @ thing.rotation) / thing.half).T
    surface = {BOX: np.maximum(np.maximum(x, y), z), CYLINDER: np.maximum(np.hypot(x, y), z)}
    np.testing.assert_allclose(surface.get(kind, np.sqrt(x**2 + y**2 + z**2)), 1, atol=1e-5)
    # The nearest of the two crossings: going a little further along the ray is inside.
    rays = points[valid] - pose[:3, 3]
    inside = np.abs(((points[valid] + rays * 1e-3 - thing.centre) @ thing.rotation) / thing.half)
    measure = {BOX: inside.max(1), CYLINDER: np.maximum(np.hypot(*inside.T[:2]), inside[:, 2])}
    assert (measure.get(kind, np.linalg.norm(inside, axis=1)) < 1).mean() > 0.95
    assert (depth[~valid] == 0).all()


def test_points_project_onto_their_own_pixel_centres(plain_room, walk):
    K = intrinsics(SIZE)
    points, valid, depth = cast(plain_room, walk[0], K, SIZE)
    assert valid.all()
    local = (points.reshape(-1, 3) - walk[0][:3, 3]) @ walk[0][:3, :3]
    pixel = local[:, :2] / local[:, 2:] * K[0, 0] + K[:2, 2]
    j, i = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    np.testing.assert_allclose(pixel, np.stack([j.ravel(), i.ravel()], 1), atol=1e-4)
    np.testing.assert_allclose(local[:, 2], depth.ravel(), rtol=1e-5)


def test_two_views_agree_on_depth_and_colour(plain_room, walk):
    """Depth never says that a view looks through a surface that the other one saw; colours do not depend on the
    view."""
    size = (160, 120)
    K = intrinsics(size)
    one, two = (render(plain_room, pose, K, size) for pose in walk[:2])
    local = (one.points.reshape(-1, 3) - walk[1][:3, 3]) @ walk[1][:3, :3]
    x, y = (local[:, :2] / local[:, 2:] * K[0, 0] + K[:2, 2]).T
    inside = (local[:, 2] > 0.1) & (x > 1) & (x < size[0] - 1) & (y > 1) & (y < size[1] - 1)
    j, i, z = x[inside].astype(int), y[inside].astype(int), local[inside, 2]
    # The point is there or hidden: within a pixel of it, the second view sees nothing but what is as near or nearer.
    nearest = np.min([two.depth[i + a, j + b] for a in (-1, 0, 1) for b in (-1, 0, 1)], axis=0)
    assert (nearest < z * 1.01).mean() > 0.999
    same = np.abs(two.depth[i, j] / z - 1) < 0.01
    assert same.mean() > 0.4
    difference = np.abs(one.rgb.reshape(-1, 3)[inside][same].astype(int) - two.rgb[i, j][same])
    assert np.median(difference) <= 4


def test_light_falls_off_with_distance_and_angle():
    floor = solid(BOX, (0, 0, -0.05), (2, 2, 0.05))
    room = build([[floor]], [GREY], [lamp(0, 0, 2.0)], (1, 1, 1), cell=0.02, samples=4, bounces=0)
    pose = look_at(np.array([0, -0.01, 6.0]), np.zeros(3))
    picture = render(room, pose, intrinsics(SIZE), SIZE, supersample=1)
    start, (cols, rows) = room.scene.face_start[0, 5], room.scene.face_cells[0, 5]
    cells = room.light[start : start + cols * rows, 0].reshape(rows, cols)
    x = (np.arange(cols) + 0.5) / cols * 4 - 2
    square = x[None] ** 2 + x[:, None] ** 2 + 4.0
    # One cosine at the floor, one at the lamp (it shines down), over the squared distance.
    np.testing.assert_allclose(cells, 2.0 * (4.0 / square) / square, rtol=0.02)
    assert picture.rgb[24, 32].mean() > picture.rgb[2, 2].mean()


def test_shadow_and_bounce():
    floor, table = solid(BOX, (0, 0, -0.05), (2, 2, 0.05)), solid(BOX, (0, 0, 0.75), (0.5, 0.5, 0.02))
    wall = solid(BOX, (0, 2.05, 1.5), (2, 0.05, 1.5))
    groups, lights = [[floor], [table], [wall]], [lamp(0, 0, 2.4, 0.1)]
    direct, lit = (build(groups, [GREY], lights, (1, 1, 1), bounces=n) for n in (0, 1))

    def at(room, x: float, y: float) -> float:
        start, (cols, rows) = room.scene.face_start[0, 5], room.scene.face_cells[0, 5]
        return float(room.light[start + int((2 - y) / 4 * rows) * cols + int((x + 2) / 4 * cols), 0])

    assert at(direct, 0, 0) == 0
    assert at(direct, 1.5, 0) > 0.1
    assert 0 < at(lit, 0, 0) < 0.2 * at(lit, 1.5, 0)
    assert at(lit, 0, 1.8) > at(direct, 0, 1.8)


def test_supersampling_tends_to_the_area_mean(plain_room, walk):
    large = (SIZE[0] * 4, SIZE[1] * 4)
    fine = render(plain_room, walk[0], intrinsics(large), large, supersample=1).rgb.astype(float)
    mean = fine.reshape(SIZE[1], 4, SIZE[0], 4, 3).mean((1, 3))
    one, three = (
        np.abs(render(plain_room, walk[0], intrinsics(SIZE), SIZE, supersample=n).rgb - mean).mean() for n in (1, 3)
    )
    assert three < 0.6 * one
    assert three < 6


def test_colours_and_noise(plain_room, walk):
    K = intrinsics(SIZE)
    still = render(plain_room, walk[0], K, SIZE)
    assert still.rgb.shape == (48, 64, 3)
    assert still.rgb.dtype == np.uint8
    assert 70 < still.rgb.mean() < 190
    assert still.rgb.std() > 25
    assert (still.rgb == 255).mean() < 0.2
    np.testing.assert_array_equal(render(plain_room, walk[0], K, SIZE).rgb, still.rgb)
    one, two, again = (render(plain_room, walk[0], K, SIZE, rng=np.random.default_rng(s)) for s in (1, 2, 1))
    np.testing.assert_array_equal(one.rgb, again.rgb)
    assert not np.array_equal(one.rgb, two.rgb)
    assert np.abs(one.rgb.astype(int) - still.rgb).mean() < 25
    np.testing.assert_array_equal(one.depth, still.depth)
