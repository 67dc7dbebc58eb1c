"""Cameras from pointmaps: one focal a camera, one robust pose a view (perspective-n-point)."""

from __future__ import annotations

import numpy as np
import poselib

from model.geometry.focal import focal_and_depth_offset, weiszfeld_focal
from model.types import Camera, Float64, Prediction, View, Views

SAMPLE = 4000
"""Points a pose is searched on; more cost time and gain nothing, since the refinement takes all."""
INLIER_SHARE_OF_FOCAL = 0.02
"""A correspondence agrees with a pose when it reprojects within this share of the focal length (8 px at 400 px)."""
MIN_POINTS = 12


def pixel_centres(crop: Float64, height: int, width: int) -> Float64:
    """(H, W, 2) x, y of a grid's pixel centres in pixels of the original; crop is left, top, right, bottom there."""
    left, top, right, bottom = crop
    x = left + (np.arange(width) + 0.5) * (right - left) / width
    y = top + (np.arange(height) + 0.5) * (bottom - top) / height
    return np.stack(np.meshgrid(x, y), axis=-1)


def intrinsics(focal: float, size: tuple[int, int]) -> Float64:
    """(3, 3) pinhole matrix of a camera with a centred principal point; size is (width, height)."""
    return np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]], dtype=np.float64)


def invert_rigid(transform: Float64) -> Float64:
    """Inverse of a (4, 4) rigid transform, exact in its rotation."""
    inverse = np.eye(4)
    inverse[:3, :3] = transform[:3, :3].T
    inverse[:3, 3] = -transform[:3, :3].T @ transform[:3, 3]
    return inverse


def solve_cameras(prediction: Prediction, views: Views, percentile: float = 3.0) -> tuple[Camera | None, ...]:
    """A camera for every view of a prediction that came without; None where no pose explains a view's points.

    The reference camera is the origin; its focal comes from its own pointmap (Weiszfeld). Photos that one camera took
    share one focal when `views.shared_focal`, else every view has its own. EXIF's focal fills in where the points say
    nothing. `percentile` of each view's least sure pixels stay out.
    """
    count, height, width = prediction.confidence.shape
    chosen = []
    for index in range(count):
        confidence = prediction.confidence[index].ravel()
        keep = confidence > 0
        if keep.any():
            keep &= confidence >= np.percentile(confidence[keep], percentile)
        points = prediction.points[index].reshape(-1, 3)[keep].astype(np.float64)
        pixels = pixel_centres(prediction.crops[index], height, width).reshape(-1, 2)[keep]
        centre = np.array(views.views[index].original_size) / 2
        chosen.append((points, pixels - centre, confidence[keep].astype(np.float64)))

    focals = _focals(chosen, views)
    cameras: list[Camera | None] = []
    for index, (points, pixels, confidence) in enumerate(chosen):
        focal = focals[index]
        if focal is None or len(points) < MIN_POINTS:
            cameras.append(None)
            continue
        if index == views.reference:
            pose, share = np.eye(4), inlier_share(np.eye(4), focal, points, pixels)
        else:
            solved = solve_pose(points, pixels, focal, confidence)
            if solved is None:
                cameras.append(None)
                continue
            pose, share = solved
        cameras.append(Camera(intrinsics(focal, views.views[index].original_size), pose, share))
    return tuple(cameras)


def solve_pose(
    points: Float64, pixels: Float64, focal: float, confidence: Float64, seed: int = 0
) -> tuple[Float64, float] | None:
    """Pose of a camera of known focal: (camera_to_world (4, 4), inlier share), or None.

    points: (P, 3) world; pixels: (P, 2) relative to the principal point; confidence: (P,) weights of the random sample.
    RANSAC with P3P and local optimisation (PoseLib) on a confidence-weighted sample, then refined on all points.
    """
    chosen = _sample(confidence, seed)
    camera = {"model": "SIMPLE_PINHOLE", "width": 1, "height": 1, "params": [focal, 0.0, 0.0]}
    threshold = INLIER_SHARE_OF_FOCAL * focal
    found, info = poselib.estimate_absolute_pose(
        pixels[chosen], points[chosen], camera, {"max_reproj_error": threshold, "max_iterations": 2000}
    )
    if info["num_inliers"] < MIN_POINTS or not np.isfinite(found.t).all():
        return None
    found, _ = poselib.refine_absolute_pose(
        pixels, points, found, camera, {"loss_type": "CAUCHY", "loss_scale": threshold / 4}
    )
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3], world_to_camera[:3, 3] = found.R, found.t
    if not np.isfinite(world_to_camera).all():
        return None
    camera_to_world = invert_rigid(world_to_camera)
    return camera_to_world, inlier_share(camera_to_world, focal, points, pixels)


def solve_focal(points: Float64, pixels: Float64, confidence: Float64, seed: int = 0) -> float | None:
    """Focal length in pixels of a camera of unknown pose that sees world `points` at `pixels`, or None.

    Pixels are relative to the principal point. A 1-D radial pose (which needs no focal) fixes rotation and x, y
    translation; focal and z translation follow linearly.
    """
    chosen = _sample(confidence, seed)
    found, info = poselib.estimate_1D_radial_absolute_pose(
        pixels[chosen], points[chosen], {"max_reproj_error": 0.01 * float(np.abs(pixels).max()), "max_iterations": 2000}
    )
    inliers = chosen[np.asarray(info["inliers"], dtype=bool)]
    if len(inliers) < MIN_POINTS:
        return None
    moved = points[inliers] @ found.R.T + np.append(np.asarray(found.t)[:2], 0.0)
    solved = focal_and_depth_offset(moved, pixels[inliers])
    return solved[0] if solved is not None and np.isfinite(solved[0]) and solved[0] > 0 else None


def _focals(chosen: list[tuple[Float64, Float64, Float64]], views: Views) -> list[float | None]:
    own: dict[int, float] = {}

    def estimate(index: int) -> float | None:
        points, pixels, confidence = chosen[index]
        if len(points) < MIN_POINTS:
            return None
        if index == views.reference:
            focal = weiszfeld_focal(points, pixels)
            return focal if focal is not None and focal > 0 else None
        return solve_focal(points, pixels, confidence)

    groups: dict[object, list[int]] = {}
    for index, view in enumerate(views.views):
        groups.setdefault(camera_key(view) if views.shared_focal else index, []).append(index)
    for members in groups.values():
        # The reference's own pointmap is its camera's frame: no pose has to be guessed, so its focal is the surest.
        asked = [views.reference] if views.reference in members else members
        found = [focal for focal in map(estimate, asked) if focal is not None]
        exif = [views.views[index].exif_focal for index in members]
        fallback = next((focal for focal in exif if focal is not None), None)
        focal = float(np.median(found)) if found else fallback
        for index in members:
            if focal is not None:
                own[index] = focal
    return [own.get(index) for index in range(len(chosen))]


def camera_key(view: View) -> tuple[str, int, int]:
    """Photos with equal keys were taken by one camera, as far as one can tell: turning it does not change its lens."""
    return (view.camera, min(view.original_size), max(view.original_size))


def _sample(confidence: Float64, seed: int) -> np.ndarray:
    if len(confidence) <= SAMPLE:
        return np.arange(len(confidence))
    # Exponential keys: a weighted sample without replacement in one pass (Efraimidis and Spirakis, 2006).
    keys = np.random.default_rng(seed).exponential(size=len(confidence)) / np.maximum(confidence, 1e-12)
    return np.argpartition(keys, SAMPLE)[:SAMPLE]


def inlier_share(camera_to_world: Float64, focal: float, points: Float64, pixels: Float64) -> float:
    """Share of world points (P, 3) that a camera sees where it should, at pixels (P, 2) relative to its principal
    point, within INLIER_SHARE_OF_FOCAL."""
    local = (points - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]
    ahead = local[:, 2] > 0
    error = np.linalg.norm(focal * local[ahead, :2] / local[ahead, 2:] - pixels[ahead], axis=1)
    return float((error < INLIER_SHARE_OF_FOCAL * focal).sum() / max(len(points), 1))
