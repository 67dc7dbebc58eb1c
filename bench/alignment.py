"""Seconds that N views take to align, and what it gains: `python -m bench.alignment` writes docs/bench/alignment.md.

Every pair of views of a rendered room has two pointmaps of 224 x 224, exact up to a scale of their own, a smooth error
of 4 % of depth (standard deviation) as networks make it, and 1 % of noise; wrong where the other view does not see.
Matches are pixels on a grid of 8, a pixel off (standard deviation). Errors are after the best similarity, as medians
over views. Wall and CPU seconds; on a busy machine only the second means something.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from bench.latency import FOLDER, cpu_name
from model.geometry.alignment import Alignment, Pair, align, fit_similarity
from model.geometry.poses import pixel_centres
from model.geometry.sparse_alignment import Matches, align_matches
from model.types import Float64
from train.render import Room, cast, intrinsics
from train.scenes import make_cameras, make_room

SIDE = 224
GRID = 8
ROOM = 107
SMOOTH_ERROR = 0.04
NOISE = 0.01


@dataclass(frozen=True)
class Photographed:
    """What is true of each view."""

    poses: Float64
    points: list[np.ndarray]
    pixels: list[Float64]
    focal: float

    def local(self, points: np.ndarray, view: int) -> np.ndarray:
        return (points - self.poses[view, :3, 3]) @ self.poses[view, :3, :3]

    def seen(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
        """Where view j sees the points of view i: (H, W, 2) pixels from the corner, (H, W) whether it does at all."""
        local = self.local(self.points[i], j)
        place = self.focal * local[..., :2] / np.maximum(local[..., 2:], 1e-6) + SIDE / 2
        inside = (local[..., 2] > 0) & (place >= 0).all(-1) & (place < SIDE).all(-1)
        column, row = np.clip(place, 0, SIDE - 1).astype(int).transpose(2, 0, 1)
        surface = self.local(self.points[j], j)[row, column, 2]
        return place, inside & (np.abs(local[..., 2] / surface - 1) < 0.03)


def photograph(room: Room, views: int) -> Photographed:
    poses = make_cameras(room, views, ROOM, aspect=1.0)
    K = intrinsics((SIDE, SIDE))
    points = [cast(room, pose, K, (SIDE, SIDE))[0].astype(np.float64) for pose in poses]
    pixels = pixel_centres(np.array([0.0, 0, SIDE, SIDE]), SIDE, SIDE) - SIDE / 2
    return Photographed(poses, points, [pixels] * views, float(K[0, 0]))


def predict(scene: Photographed, i: int, j: int) -> Pair:
    rng = np.random.default_rng((i, j))
    scale = rng.uniform(0.7, 1.6)
    maps, confidences = [], []
    for view, other in ((i, j), (j, i)):
        smooth = cv2.resize(rng.normal(size=(7, 7)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        error = SMOOTH_ERROR * smooth / smooth.std() + NOISE * rng.normal(size=(SIDE, SIDE))
        sure = scene.seen(view, other)[1]
        maps.append((scene.local(scene.points[view], i) * scale * (1 + error)[..., None]).astype(np.float32))
        confidences.append(np.where(sure, 1 + rng.gamma(4, 2, sure.shape), 1.1).astype(np.float32))
    return Pair(i, j, *maps, *confidences)


def match(scene: Photographed, i: int, j: int) -> Matches:
    rng = np.random.default_rng((i, j, 1))
    place, sees = (part[GRID // 2 :: GRID, GRID // 2 :: GRID] for part in scene.seen(i, j))
    there = np.clip(place + rng.normal(size=place.shape), 0, SIDE - 1).astype(int)
    here = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)[GRID // 2 :: GRID, GRID // 2 :: GRID]
    indices = np.stack([here[sees], there[sees] @ (1, SIDE)], axis=1)
    return Matches(i, j, indices, np.ones(len(indices), np.float32))


def errors(scene: Photographed, found: Alignment) -> str:
    """Rotation in degrees, centres and points in cm, focal length in percent."""
    estimate, true = (np.concatenate([p.reshape(-1, 3) for p in points]) for points in (found.points, scene.points))
    to_truth = fit_similarity(estimate.astype(np.float64), true, np.ones(len(true)))
    moved = to_truth @ found.camera_to_world
    turns = scene.poses[:, :3, :3].transpose(0, 2, 1) @ (moved[:, :3, :3] / np.cbrt(np.linalg.det(to_truth[:3, :3])))
    degrees = np.degrees(Rotation.from_matrix(turns).magnitude())
    centres = 100 * np.linalg.norm(moved[:, :3, 3] - scene.poses[:, :3, 3], axis=1)
    points = 100 * np.linalg.norm(estimate @ to_truth[:3, :3].T + to_truth[:3, 3] - true, axis=1)
    focals = 100 * np.abs(found.focals / scene.focal - 1)
    return " | ".join(f"{np.median(figures):.2f}" for figures in (degrees, centres, points, focals))


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and accuracy of aligning N views.")
    parser.add_argument("--views", type=int, nargs="+", default=[4, 8, 12])
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    lines = [
        "# Alignment",
        "",
        "Pairwise pointmaps to one scene, each view paired with each other: `python -m bench.alignment` (what exactly:",
        "`bench/alignment.py`). Pointmaps of 224 x 224 with errors of 4 % smooth and 1 % noise.",
        "",
        f"- machine: {cpu_name()}, {os.cpu_count()} cores",
        "",
        "| views | way | wall s | CPU s | rotation deg | centre cm | points cm | focal % |",
        "| --: | --- | --: | --: | --: | --: | --: | --: |",
    ]
    room = make_room(ROOM)
    for views in arguments.views:
        scene = photograph(room, views)
        pairs = [predict(scene, i, j) for i, j in permutations(range(views), 2)]
        matches = [match(scene, i, j) for i, j in combinations(range(views), 2)]
        align(pairs[:1], scene.pixels[:2], iterations=1)  # compiles
        ways: dict[str, Callable[[], Alignment]] = {
            "spanning tree": lambda: align(pairs, scene.pixels, iterations=0),  # noqa: B023 (called at once)
            "300 steps of Adam": lambda: align(pairs, scene.pixels),  # noqa: B023
            "on matches": lambda: align_matches(pairs, matches, scene.pixels),  # noqa: B023
        }
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found = way()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            lines.append(f"| {views} | {name} | {wall:.1f} | {cpu:.1f} | {errors(scene, found)} |")
            print(lines[-1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "alignment.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
