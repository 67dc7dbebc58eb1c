"""A rendered room as a perfect network of Gaussians would see it: photos, cameras, and a Gaussian a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from model.geometry.crop import square_crop_in_original
from model.geometry.poses import intrinsics
from model.geometry.splatting import Ellipsoids
from model.types import SH_C0, View, Views
from train.render import render
from train.scenes import make_cameras, make_room

SIDE = 64
SIZES = ((800, 600), (600, 800), (800, 600))
"""Of the original photos: across and upright, so that the squares are cut from them differently."""
FOCAL = 0.95
"""In long sides of the photos."""
OPACITY = 0.7


class Splatted:
    def __init__(self, count: int = 3, side: int = SIDE, noise: float = 0.0) -> None:
        """noise: of each view's depths, relative."""
        room = make_room(3, texture_side=128, light_cell=0.5, light_samples=4)
        self.poses = make_cameras(room, count, 0)
        self.focals = np.array([FOCAL * max(size) for size in SIZES[:count]])
        self.Ks, self.squares, self.points, self.depths = [], [], [], []
        rng = np.random.default_rng(0)
        for pose, focal, size in zip(self.poses, self.focals, SIZES, strict=False):
            left, top, right, bottom = square_crop_in_original(*size, side)
            K = intrinsics(focal, size)
            K[:2, 2] -= left, top
            K[0] *= side / (right - left)
            K[1] *= side / (bottom - top)
            seen = render(room, pose, K, (side, side))
            depth = seen.depth[..., None] * (1 + noise * rng.normal(size=(side, side, 1)))
            self.Ks.append(K)
            self.squares.append(seen.rgb)
            self.depths.append(seen.depth)
            self.points.append(pose[:3, 3] + (seen.points - pose[:3, 3]) * depth / seen.depth[..., None])
        self.depth = float(np.median(self.depths))

    def views(self, *chosen: int, exif: Sequence[int] = (), reference: int = 0) -> Views:
        """Photos of these views; EXIF of those in `exif` tells the true focal length."""
        photos = [
            View(
                f"{view}.jpg",
                np.zeros((6, 8, 3), np.uint8),
                SIZES[view],
                exif_focal=self.focals[view] if view in exif else None,
                crop=self.squares[view],
            )
            for view in chosen
        ]
        return Views(tuple(photos), reference=reference)

    def fields(self, view: int, frame: int) -> list[np.ndarray]:
        """(S, S, ...) centres in camera `frame`'s frame, scale, rotation, opacity and harmonics of a view's pixels."""
        side = len(self.squares[view])
        pose = self.poses[frame]
        harmonics = np.zeros((side, side, 3, 25), np.float32)
        harmonics[..., 0] = (self.squares[view] / 255 - 0.5) / SH_C0
        rotation = np.zeros((side, side, 4), np.float32)
        rotation[..., 0] = 1
        scale = np.repeat(0.4 * self.depths[view][..., None] / self.Ks[view][0, 0], 3, axis=-1)
        centres = (self.points[view] - pose[:3, 3]) @ pose[:3, :3]
        opacity = np.full((side, side), OPACITY, np.float32)
        return [centres.astype(np.float32), scale.astype(np.float32), rotation, opacity, harmonics]

    def ellipsoids(self, view: int, frame: int) -> Ellipsoids:
        return Ellipsoids.of(*self.fields(view, frame))

    def pose(self, view: int, frame: int) -> np.ndarray:
        """(4, 4) camera_to_world of a view in camera `frame`'s frame."""
        return np.linalg.inv(self.poses[frame]) @ self.poses[view]


def pose_errors(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Degrees, and the distance of the centres."""
    turn = Rotation.from_matrix(found[:3, :3].T @ true[:3, :3])
    return float(np.degrees(turn.magnitude())), float(np.linalg.norm(found[:3, 3] - true[:3, 3]))
