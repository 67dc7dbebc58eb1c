"""What is photographed: rooms with their light, the ways of somebody with a phone, and sets of views that overlap.

The share of training's data that is made on the CPU, by processes in the background; without torch, so that they
start fast and stay small.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from dataclasses import dataclass

import cv2
import numpy as np

from model.types import Float64
from train.render import Room, cast
from train.scenes import free, look_at, make_room

COARSE = 28
"""Side in pixels of the pictures on which overlap is counted."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the stream is to show. The same settings and seed give the same rooms and views."""

    side: int = 112
    """Pixels of the square pictures."""
    views: int = 8
    """Of the largest sets that can be drawn, 2 to 12."""
    rooms: int = 64
    """In the ring at a time."""
    views_per_room: int = 32
    sets_per_room: int = 256
    hold: int = 4
    """Draws after which the oldest room is replaced. 0: whenever a new one is ready, so that nothing is waited for;
    then the seed settles the rooms, but not which of them a draw finds."""
    overlap: tuple[float, float] = (0.25, 0.9)
    """Each view of a set, with that of the views before it which it shares most with: of the two shares of one's
    pixels that the other sees, the smaller lies in these bounds."""
    field_of_view: tuple[float, float] = (45.0, 80.0)
    """Degrees across the picture; each walk has one camera."""
    supersample: int = 2
    texture_side: int = 256
    light_cell: float = 0.2
    light_samples: int = 8


@dataclass(frozen=True, slots=True)
class Draft:
    """A room to be photographed, with V views and P sets of them."""

    room: Room
    camera_to_world: Float64
    """(V, 4, 4)."""
    K: Float64
    """(V, 3, 3) pixels."""
    sets: np.ndarray
    """(P, views) int64: each row, and each first part of it, is a set of overlapping views."""


def draft(settings: Settings, seed: int, index: int) -> Draft:
    """The index-th room of a seed. Rooms and walks that give no set are passed over."""
    for attempt in range(50):
        rng = np.random.default_rng([seed, index, attempt])
        room = make_room(
            int(rng.integers(1 << 62)),
            texture_side=settings.texture_side,
            light_cell=settings.light_cell,
            light_samples=settings.light_samples,
            varied=True,
        )
        for _ in range(4):
            poses, fields = _walks(room, rng, settings)
            if len(poses) == settings.views_per_room:
                shares = overlaps(room, poses, fields)
                sets = choose_sets(shares, settings.sets_per_room, settings.views, settings.overlap, rng)
                if len(sets):
                    return Draft(room, poses, intrinsics(fields, settings.side), sets)
    raise ValueError("these settings give no set of views in any room")


def settle() -> None:
    """Make a process of the background one core's, and end it when its parent is gone, however that went."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def intrinsics(fields: Float64, side: int) -> Float64:
    """(V, 3, 3) K of square pictures with fields of view (V,) in degrees from border to border."""
    K = np.zeros((len(fields), 3, 3))
    K[:, 0, 0] = K[:, 1, 1] = side / 2 / np.tan(np.radians(fields) / 2)
    K[:, :2, 2], K[:, 2, 2] = side / 2, 1
    return K


def _walks(room: Room, rng: np.random.Generator, settings: Settings) -> tuple[Float64, Float64]:
    """Poses (V, 4, 4) and fields of view (V,) of several walks with a phone; fewer than wanted where there is no way.

    Somebody goes around a thing, turns on the spot with the phone at arm's length, or strolls along looking ahead; now
    and then sits. The hand shakes, and sometimes holds the phone askew.
    """
    poses: list[Float64] = []
    fields: list[float] = []
    extent = np.array(room.size)
    for _ in range(40):
        count = min(settings.views_per_room - len(poses), int(rng.integers(6, 13)))
        style = rng.choice(["around", "turn", "stroll"], p=[0.5, 0.2, 0.3])
        field = float(rng.uniform(*settings.field_of_view))
        height = rng.uniform(0.7, 1.1) if rng.uniform() < 0.15 else rng.uniform(1.2, 1.75)
        ground, heading = rng.uniform(0.3, extent[:2] - 0.3), rng.uniform(0, 2 * math.pi)
        target = np.array([*(rng.uniform(0.2, 0.8, 2) * extent[:2]), rng.uniform(0.3, 1.3)])
        sense, stride, turn = rng.choice([-1.0, 1.0]), rng.uniform(0.15, 0.8), math.radians(rng.uniform(8, 30))
        askew = 0.2 if rng.uniform() < 0.15 else 0.04
        K = intrinsics(np.array([field]), COARSE)[0]
        placed = 0
        for _ in range(3 * count):
            if placed == count:
                break
            place, aim = np.array([*ground, height + rng.normal(0, 0.05)]), target
            if style == "turn":
                reach = np.array([math.cos(heading), math.sin(heading)])
                place[:2] += 0.4 * reach
                aim = np.array([*(place[:2] + 2 * reach), target[2]])
                heading += sense * turn * rng.uniform(0.7, 1.3)
            else:
                away = target[:2] - ground
                along = math.atan2(away[1], away[0]) + (sense * math.pi / 2 if style == "around" else 0)
                along += rng.normal(0, 0.4)
                ground = ground + stride * rng.uniform(0.6, 1.4) * np.array([math.cos(along), math.sin(along)])
                if style == "stroll" and np.linalg.norm(target[:2] - ground) < 1.5:
                    break
            if np.linalg.norm(aim[:2] - place[:2]) < 0.6 or not free(room, place):
                continue
            pose = look_at(place, aim + rng.normal(0, 0.12, 3), float(rng.normal(0, askew)))
            _, _, depth = cast(room, pose, K, (COARSE, COARSE))
            if depth.min() > 0.3 and np.median(depth) > 1.0:
                poses.append(pose)
                fields.append(field)
                placed += 1
        if len(poses) == settings.views_per_room:
            break
    return np.array(poses).reshape(-1, 4, 4), np.array(fields)


def overlaps(room: Room, camera_to_world: Float64, fields: Float64) -> Float64:
    """(V, V): the share of each view's pixels (rows) that each other view (columns) sees too, and back; the smaller."""
    K = intrinsics(fields, COARSE)
    shots = [cast(room, pose, k, (COARSE, COARSE)) for pose, k in zip(camera_to_world, K)]
    points = np.stack([points.reshape(-1, 3) for points, _, _ in shots]).astype(np.float64)
    depth = np.stack([depth for _, _, depth in shots])
    # One product a view: its camera's frame, of all points.
    turned = [(points.reshape(-1, 3) - pose[:3, 3]) @ pose[:3, :3] for pose in camera_to_world]
    local = np.stack(turned, axis=1).reshape(len(K), -1, len(K), 3)
    z = np.maximum(local[..., 2], 1e-6)
    x, y = (K[:, 0, 0] * local[..., k] / z + COARSE / 2 for k in (0, 1))
    inside = (local[..., 2] > 0.05) & (x >= 0) & (x < COARSE) & (y >= 0) & (y < COARSE)
    i, j = (np.where(inside, value, 0).astype(int) for value in (y, x))
    # A coarse pixel spans some centimetres of a slanted wall, hence 5 %.
    there = np.abs(depth[np.arange(len(K)), i, j] / z - 1) < 0.05
    share = (inside & there).mean(1)
    return np.minimum(share, share.T)


def choose_sets(
    shares: Float64, count: int, views: int, bounds: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """(P, views) int64, P <= count: rows in which each view's largest share with those before it lies in bounds."""
    chosen = np.zeros((count, len(shares)), dtype=bool)
    every, sets = np.arange(count), np.empty((count, views), dtype=np.int64)
    best, going = np.zeros((count, len(shares))), np.ones(count, dtype=bool)
    for k in range(views):
        fits = np.ones_like(chosen) if k == 0 else (best >= bounds[0]) & (best <= bounds[1]) & ~chosen
        going &= fits.any(1)
        sets[:, k] = np.where(fits, rng.uniform(size=fits.shape), -1).argmax(1)
        chosen[every, sets[:, k]] = True
        best = np.maximum(best, shares[sets[:, k]])
    return sets[going]
