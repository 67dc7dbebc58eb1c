"""A scene whose truth is known: cameras before a wavy surface, and what pairwise networks would say of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from model.geometry.alignment import Alignment, Pair, fit_similarity
from model.geometry.sparse_alignment import Matches


def wavy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A surface's z."""
    return 4 + 0.35 * np.sin(1.1 * x + 0.3) * np.cos(0.9 * y - 0.4) + 0.15 * np.sin(2.3 * x - 1.7 * y)


class Scene:
    """Cameras that look at a wavy surface, and what a perfect pairwise network would say, in any scale a pair."""

    def __init__(
        self, sizes: Sequence[tuple[int, int]], focals: Sequence[float], seed: int = 0, centres: float = 1.0
    ) -> None:
        """Views of (height, width) and focal length in pixels, within `centres` of the origin, the surface 4 off."""
        rng = np.random.default_rng(seed)
        self.focals = np.array(focals)
        self.poses, self.pixels, self.points = [], [], []
        for (height, width), focal in zip(sizes, focals):
            pose = np.eye(4)
            pose[:3, :3] = Rotation.from_rotvec(0.1 * rng.normal(size=3)).as_matrix()
            pose[:3, 3] = centres * rng.uniform(-1, 1, 3) * (1, 0.6, 0.3)
            pixels = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1) - (
                width / 2,
                height / 2,
            )
            rays = np.concatenate([pixels / focal, np.ones((height, width, 1))], -1) @ pose[:3, :3].T
            depth = np.full((height, width, 1), 4.0)
            for _ in range(80):
                point = pose[:3, 3] + depth * rays
                depth += 0.7 * (wavy(point[..., :1], point[..., 1:2]) - point[..., 2:]) / rays[..., 2:]
            self.poses.append(pose)
            self.pixels.append(pixels)
            self.points.append(pose[:3, 3] + depth * rays)

    def pair(self, i: int, j: int, noise: float = 0.0) -> Pair:
        rng = np.random.default_rng((i, j))
        scale, R, centre = rng.uniform(0.7, 1.6), self.poses[i][:3, :3], self.poses[i][:3, 3]
        maps, confidences = [], []
        for points in (self.points[i], self.points[j]):
            shape = points.shape[:2]
            errors = 1 + noise * rng.normal(size=(*shape, 1))
            maps.append(((points - centre) @ R * scale * errors).astype(np.float32))
            confidences.append((1 + rng.uniform(1, 3) + rng.gamma(2, 1, shape)).astype(np.float32))
        return Pair(i, j, *maps, *confidences)

    def pairs(self, edges: Sequence[tuple[int, int]] | None = None, noise: float = 0.0) -> list[Pair]:
        views = range(len(self.poses))
        return [self.pair(i, j, noise) for i, j in edges or [(i, j) for i in views for j in views if i != j]]

    def matches(self, i: int, j: int, wrong: float = 0.0) -> Matches:
        """Pixels of view i and the pixels of j nearest to where their points are seen; a share of them `wrong`."""
        rng = np.random.default_rng((i, j, 7))
        local = (self.points[i].reshape(-1, 3) - self.poses[j][:3, 3]) @ self.poses[j][:3, :3]
        height, width = self.points[j].shape[:2]
        seen = np.floor(self.focals[j] * local[:, :2] / local[:, 2:] + (width / 2, height / 2)).astype(int)
        inside = ((seen >= 0) & (seen < (width, height))).all(axis=1)
        first, second = np.flatnonzero(inside), (seen[inside] @ (1, width))
        spoilt = rng.random(len(second)) < wrong
        second[spoilt] = rng.integers(0, height * width, spoilt.sum())
        confidence = rng.uniform(0.5, 2, len(first)).astype(np.float32)
        return Matches(i, j, np.stack([first, second], axis=1), confidence)

    def errors(self, found: Alignment) -> tuple[float, float, float]:
        """Worst rotation in degrees, worst distance of centres and points, worst relative focal; after a similarity."""
        every, true = (np.concatenate([p.reshape(-1, 3) for p in points]) for points in (found.points, self.points))
        to_truth = fit_similarity(every.astype(np.float64), true, np.ones(len(true)))
        moved = to_truth @ found.camera_to_world
        scale = np.cbrt(np.linalg.det(to_truth[:3, :3]))
        turns = [np.linalg.inv(p[:3, :3]) @ m[:3, :3] / scale for p, m in zip(self.poses, moved)]
        degrees = max(np.degrees(np.linalg.norm(Rotation.from_matrix(turn).as_rotvec())) for turn in turns)
        centres = max(np.linalg.norm(p[:3, 3] - m[:3, 3]) for p, m in zip(self.poses, moved))
        points = np.median(np.linalg.norm(every @ to_truth[:3, :3].T + to_truth[:3, 3] - true, axis=1))
        return float(degrees), float(max(centres, points)), float(np.abs(found.focals / self.focals - 1).max())
