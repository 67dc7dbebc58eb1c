"""Focal length from a pointmap: which pinhole looks at these points?

Every function takes `pixels` relative to the principal point, so that any pixel convention fits.
`None` means that the points say nothing.
"""

from __future__ import annotations

import numpy as np

from model.types import Float64


def weiszfeld_focal(points: np.ndarray, pixels: np.ndarray, iterations: int = 10) -> float | None:
    """Focal length in pixels minimising sum |pixel - f (x/z, y/z)| (DUSt3R, arXiv 2312.14132, section 3.3: Weiszfeld).

    points: (P, 3) in the camera's own frame; pixels: (P, 2). Ratios that are not finite count as zero.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        rays = points[:, :2].astype(np.float64) / points[:, 2:]
    rays[~np.isfinite(rays)] = 0.0
    pixels = pixels.astype(np.float64)
    dot_pixel_ray = (pixels * rays).sum(axis=1)
    dot_ray_ray = (rays * rays).sum(axis=1)
    if not dot_ray_ray.sum() > 0:
        return None
    focal = dot_pixel_ray.sum() / dot_ray_ray.sum()
    for _ in range(iterations):
        distance = np.linalg.norm(pixels - focal * rays, axis=1)
        weight = 1.0 / np.maximum(distance, 1e-8)
        focal = (weight * dot_pixel_ray).sum() / (weight * dot_ray_ray).sum()
    return float(focal)


def median_focal(points: np.ndarray, pixels: np.ndarray) -> float | None:
    """Focal length in pixels as the (lower) median of the votes u z / x and v z / y of all pixels.

    points: (P, 3) in the camera's own frame; pixels: (P, 2). Robust, but coarser than `weiszfeld_focal` under noise.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        votes = (pixels.astype(np.float64) * points[:, 2:] / points[:, :2]).ravel()
    votes = np.sort(votes[~np.isnan(votes)])
    return float(votes[(len(votes) - 1) // 2]) if len(votes) else None


def focal_and_depth_offset(points: np.ndarray, pixels: np.ndarray, iterations: int = 10) -> tuple[float, float] | None:
    """Focal length and z-translation of a camera whose rotation and x, y translation are known (a 1-D radial pose).

    From u (z + tz) = f x and v (z + tz) = f y, linear in (f, tz), robust by re-weighting (L1).
    points: (P, 3) rotated and moved in x and y into the camera's frame; pixels: (P, 2).
    """
    A = np.stack([points[:, :2].ravel(), -pixels.ravel()], axis=1).astype(np.float64)
    b = (pixels * points[:, 2:]).ravel().astype(np.float64)
    weight = np.ones(len(b))
    solution: Float64 = np.zeros(2)
    for _ in range(iterations):
        normal = A.T @ (A * weight[:, None])
        if np.linalg.cond(normal) > 1e14:
            return None
        solution = np.linalg.solve(normal, A.T @ (b * weight))
        # The residual is in pixels once divided by the depth: far points must not rule.
        depth = np.repeat(np.abs(points[:, 2] + solution[1]), 2)
        weight = 1.0 / (np.maximum(np.abs(A @ solution - b), 1e-8 * (1 + depth)) * np.maximum(depth, 1e-8))
    return float(solution[0]), float(solution[1])
