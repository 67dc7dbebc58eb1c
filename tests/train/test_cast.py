"""The device's ray caster against the CPU's, and what it adds to that."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train import cast
from train import render as cpu
from train.render import BOX, CYLINDER, ELLIPSOID, Light, Solid, Texture, build, intrinsics
from train.scenes import look_at

SIZE = (60, 44)


def tensors(poses: np.ndarray, K: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(poses), torch.from_numpy(K).expand(len(poses), 3, 3)


def test_a_furnished_room_is_the_cpus(plain_room, walk):
    K = intrinsics(SIZE)
    light, depth = cast.render(cast.upload(plain_room, "cpu"), *tensors(walk[:3], K), SIZE, gloss=False)
    true = [cpu.render(plain_room, pose, K, SIZE) for pose in walk[:3]]
    far = np.abs(depth.numpy() / np.stack([t.depth for t in true]) - 1)
    assert light.shape == (3, 44, 60, 3)
    assert (far < 1e-4).mean() > 0.999
    shades = cast.tone(light).numpy() * 255 - np.stack([t.rgb for t in true])
    assert (np.abs(shades) < 2).mean() > 0.99
    assert np.abs(shades).mean() < 0.5


@pytest.mark.parametrize("kind", [BOX, CYLINDER, ELLIPSOID])
def test_turned_solids_near_and_far_are_the_cpus(kind):
    rng = np.random.default_rng(kind)
    axes = np.linalg.qr(rng.normal(size=(12, 3, 3)))[0]
    axes[:, :, 0] *= np.linalg.det(axes)[:, None]
    places, halves = rng.uniform((-3, 1, -2), (3, 9, 2), (12, 3)), rng.choice([0.004, 0.05, 0.6], (12, 3))
    solids = [Solid(kind, place, half, 0, turn) for place, half, turn in zip(places, halves, axes)]
    grey = Texture(np.full((4, 4, 3), 188, np.uint8), 1.0)
    edge = np.eye(3) * 0.1
    lamp = Light(np.array([0, 0, 4.0]), edge[0], edge[1], np.zeros(3), np.ones(3))
    room = build([solids], [grey], [lamp], (1, 1, 1), cell=0.3, samples=2, bounces=0)
    pose, K = look_at(np.zeros(3), np.array([0, 5.0, 0]), 0.3), intrinsics((161, 122))
    _, depth = cast.render(cast.upload(room, "cpu"), *tensors(pose[None], K), (161, 122), supersample=1)
    _, valid, true = cpu.cast(room, pose, K, (161, 122))
    assert 0.02 < valid.mean() < 0.9
    wrong = np.abs(depth[0].numpy() - true) > 1e-4 * np.maximum(true, 1e-3)
    assert wrong.sum() <= 2, "at an outline, rounding decides what is hit"


def test_memory_bounds_do_not_show(plain_room, walk, monkeypatch):
    scenery, (poses, K) = cast.upload(plain_room, "cpu"), tensors(walk[:3], intrinsics(SIZE))
    whole = cast.render(scenery, poses, K, SIZE)
    monkeypatch.setitem(cast.BUDGET, "cpu", 3000)
    for one, other in zip(whole, cast.render(scenery, poses, K, SIZE)):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_a_lamp_is_mirrored_where_geometry_says():
    """In a polished floor, from 2 m before a ball lamp at equal height, half way; on a matt one nowhere."""
    bulb = Light(np.array([0, 1.0, 1.5]), np.array([0.1, 0, 0]), np.array([0, 0.1, 0]), np.zeros(3), np.ones(3))
    floor = Solid(BOX, np.array([0, 0, -0.1]), np.array([3, 3, 0.1]), 0, np.eye(3))
    pose, K = look_at(np.array([0, -1.0, 1.5]), np.zeros(3)), intrinsics((64, 64))
    excess = []
    for gloss in ((0.5, 0.1), (0.0, 0.5)):
        room = build([[floor]], [Texture(np.full((4, 4, 3), 120, np.uint8), 1.0, gloss)], [bulb], (1, 1, 1), bounces=0)
        with_gloss, without = (
            cast.render(cast.upload(room, "cpu"), *tensors(pose[None], K), (64, 64), gloss=on)[0][0].mean(-1)
            for on in (True, False)
        )
        excess.append(with_gloss - without)
    assert (excess[0] >= 0).all()
    assert excess[0][31:33, 31:33].mean() > 0.2
    assert excess[0][:, :8].max() < 0.02
    assert excess[1].abs().max() == 0


def test_matmul_settings_and_autocast_leave_depth_exact(plain_room, walk):
    scenery, (poses, K) = cast.upload(plain_room, "cpu"), tensors(walk[:1], intrinsics(SIZE))
    _, plain = cast.render(scenery, poses, K, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        _, other = cast.render(scenery, poses, K, SIZE)
    torch.testing.assert_close(plain, other)
