"""A prediction and its cameras become one scene: sure pixels chosen, floaters carved, Gaussians sized, all merged."""

from __future__ import annotations

import numpy as np

from model.geometry.poses import invert_rigid
from model.types import SH_C0, Camera, Float32, PointCloud, Prediction, ReconstructionError, Scene, Splats, Views

CARVING_NEIGHBOURS = 8
"""Nearest views whose free space is looked through; more cost time and carve little."""
FREE_SPACE_MARGIN = 0.06
"""A point floats when it lies this share before the surface that another view sees behind it."""
FLYING = 12.0
"""A pixel whose nearest neighbour in the image is more footprints away than this hangs between two surfaces."""
DISC_RADIUS = 0.6
"""Standard deviation of a Gaussian in its surface, in spacings of the pixels there: neighbours blend without holes."""
DISC_THICKNESS = 0.1
"""Standard deviation across the surface, in pixel footprints."""


def fuse(
    prediction: Prediction,
    views: Views,
    cameras: tuple[Camera | None, ...],
    confidence_percentile: float,
    max_points: int,
) -> Scene:
    """The scene of one job. Raises ReconstructionError when no point is left.

    confidence_percentile: share, in percent, of the least sure pixels of all views together to leave out.
    max_points: above it a seeded, confidence-weighted sample is kept.
    """
    placed = np.array([camera is not None for camera in cameras])
    confidence = np.where(placed[:, None, None], prediction.confidence, np.float32(0))
    keep = confident(confidence, confidence_percentile)
    depth = [depth_in(camera, points) for camera, points in zip(cameras, prediction.points)]
    footprint = np.stack([_footprint(z, crop, c) for z, crop, c in zip(depth, prediction.crops, cameras)])
    keep &= footprint > 0
    keep &= _nearest_neighbour_distance(prediction.points, keep) < FLYING * footprint
    _carve(keep, confidence, depth, prediction, cameras)
    if not keep.any():
        raise ReconstructionError(
            "No point of the scene was sure enough to keep.",
            "Take photos with more overlap and more visible texture, or lower confidence_percentile.",
        )

    flat = np.flatnonzero(keep)
    if len(flat) > max_points:
        keys = np.random.default_rng(0).exponential(size=len(flat)) / confidence.ravel()[flat]
        flat = np.sort(flat[np.argpartition(keys, max_points)[:max_points]])
    cloud = PointCloud(
        points=prediction.points.reshape(-1, 3)[flat],
        colours=prediction.rgb.reshape(-1, 3)[flat],
        confidence=confidence.ravel()[flat],
        view=(flat // confidence[0].size).astype(np.uint8),
    )
    return Scene(views, prediction, cameras, cloud, _splats(prediction, cloud, footprint, keep, flat))


def confident(confidence: Float32, percentile: float) -> np.ndarray:
    """(N, H, W) mask of the pixels with a point, less the `percentile` percent least sure of all views together.

    The threshold is the value at rank int(n * percentile / 100) of the n positive ones, as MV-DUSt3R's demo takes it.
    """
    positive = confidence[confidence > 0]
    if not len(positive):
        return np.zeros(confidence.shape, dtype=bool)
    rank = int(len(positive) * percentile * 0.01)
    return confidence >= np.partition(positive, rank)[rank]


def depth_in(camera: Camera | None, points: Float32) -> Float32:
    """Depth (...) of world points (..., 3) along a camera's viewing axis; 0 where there is no camera."""
    if camera is None:
        return np.zeros(points.shape[:-1], np.float32)
    axis = camera.camera_to_world[:3, 2]
    return points @ axis.astype(np.float32) - np.float32(axis @ camera.camera_to_world[:3, 3])


def _footprint(depth: Float32, crop: np.ndarray, camera: Camera | None) -> Float32:
    """(H, W) side of the square that a pixel covers at its depth, facing the camera; 0 behind it or without one."""
    if camera is None:
        return np.zeros_like(depth)
    left, _, right, _ = crop
    grid_focal = camera.focal * depth.shape[1] / (right - left)
    return np.maximum(depth, 0) / np.float32(grid_focal)


def _nearest_neighbour_distance(points: Float32, valid: np.ndarray) -> Float32:
    """(N, H, W) distance from each pixel's point to the nearest point among its four valid neighbours in the image."""
    nearest = np.full(valid.shape, np.inf, np.float32)
    for ahead, behind in _neighbours():
        distance = np.linalg.norm(points[ahead] - points[behind], axis=-1)
        distance[~(valid[ahead] & valid[behind])] = np.inf
        nearest[ahead] = np.minimum(nearest[ahead], distance)
        nearest[behind] = np.minimum(nearest[behind], distance)
    return nearest


def _neighbours() -> tuple[tuple[tuple[slice, ...], tuple[slice, ...]], ...]:
    """Index pairs (ahead, behind) of neighbouring pixels in (N, H, W): along columns, then along rows."""
    every, ahead, behind = slice(None), slice(1, None), slice(None, -1)
    return ((every, every, ahead), (every, every, behind)), ((every, ahead, every), (every, behind, every))


def _carve(
    keep: np.ndarray,
    confidence: Float32,
    depth: list[Float32],
    prediction: Prediction,
    cameras: tuple[Camera | None, ...],
) -> None:
    """Drop, in place, points that float in front of a surface which another view sees with more confidence.

    A point that projects into view j well before j's own depth there lies in space that j looks through.
    """
    _, height, width = confidence.shape
    placed = {i: camera for i, camera in enumerate(cameras) if camera is not None}
    centres = {i: camera.camera_to_world[:3, 3] for i, camera in placed.items()}
    seen = keep.copy()
    for i in placed:
        others = sorted((j for j in placed if j != i), key=lambda j: float(np.linalg.norm(centres[j] - centres[i])))
        points = np.ascontiguousarray(prediction.points[i].reshape(-1, 3).T)
        floats = np.zeros(height * width, dtype=bool)
        for j in others[:CARVING_NEIGHBOURS]:
            at, z = _project(points, placed[j], prediction.crops[j], height, width)
            floats |= (
                seen[j].ravel()[at]
                & (z > 0)
                & (z < (1 - FREE_SPACE_MARGIN) * depth[j].ravel()[at])
                & (confidence[i].ravel() < confidence[j].ravel()[at])
            )
        keep[i].ravel()[floats] = False


def _project(points: Float32, camera: Camera, crop: np.ndarray, height: int, width: int) -> tuple[np.ndarray, Float32]:
    """Flat pixel (P,) in a view's grid where it sees world points (3, P), and their depth; depth 0 off the grid."""
    left, top, right, bottom = crop
    to_grid = np.diag([width / (right - left), height / (bottom - top), 1.0])
    to_grid[:2, 2] = -left * to_grid[0, 0], -top * to_grid[1, 1]
    projection = (to_grid @ camera.K @ invert_rigid(camera.camera_to_world)[:3]).astype(np.float32)
    x, y, z = projection[:, :3] @ points + projection[:, 3:]
    inside = (z > 0) & (x >= 0) & (x < width * z) & (y >= 0) & (y < height * z)
    z = np.where(inside, z, np.float32(1))
    column = np.where(inside, x / z, np.float32(0)).astype(np.int32)
    row = np.where(inside, y / z, np.float32(0)).astype(np.int32)
    # Rounding may put a point on the very edge one pixel beyond it.
    at = np.minimum(row, height - 1) * width + np.minimum(column, width - 1)
    return at, np.where(inside, z, np.float32(0))


def _splats(
    prediction: Prediction, cloud: PointCloud, footprint: Float32, keep: np.ndarray, flat: np.ndarray
) -> Splats:
    colours, harmonics = cloud.colours, None
    if prediction.gaussians is not None:
        if prediction.gaussians.harmonics is not None:
            harmonics = prediction.gaussians.harmonics.reshape(-1, *prediction.gaussians.harmonics.shape[3:])[flat]
            base = np.clip(0.5 + SH_C0 * harmonics[:, :, 0], 0, 1)
            colours = np.rint(base * np.float32(255)).astype(np.uint8)
        scale = prediction.gaussians.scale.reshape(-1, 3)[flat]
        rotation = prediction.gaussians.rotation.reshape(-1, 4)[flat]
        opacity = prediction.gaussians.opacity.ravel()[flat]
    else:
        scale, rotation = _discs(prediction.points, footprint, keep, flat)
        opacity = (0.5 + 0.49 * np.minimum(cloud.confidence / np.median(cloud.confidence), 1)).astype(np.float32)
    order = np.argsort(-(np.prod(scale, axis=1) * opacity), kind="stable")
    return Splats(
        cloud.points[order],
        scale[order],
        rotation[order],
        opacity[order],
        colours[order],
        None if harmonics is None else harmonics[order],
    )


def _discs(points: Float32, footprint: Float32, keep: np.ndarray, flat: np.ndarray) -> tuple[Float32, Float32]:
    """Flat discs on the surface, wide enough to touch: scale (P, 3) and rotation wxyz (P, 4) of the pixels `flat`."""
    across, down = (_tangent(points, keep, pair).reshape(-1, 3)[flat] for pair in _neighbours())
    side = footprint.ravel()[flat]
    spacing = np.maximum(np.linalg.norm(across, axis=1), np.linalg.norm(down, axis=1))
    radius = DISC_RADIUS * np.clip(spacing, side, 3 * side)
    normal = np.cross(across, down)
    length = np.linalg.norm(normal, axis=1)
    # Without two tangents there is no normal: a ball then.
    is_disc = length > 1e-4 * side**2
    normal = np.where(is_disc[:, None], normal / np.maximum(length, 1e-30)[:, None], np.float32([0, 0, 1]))
    normal *= np.where(normal[:, 2:] < 0, -1, 1)
    # The half-way rotation from the z axis to the normal: (1 + z.n, z x n), normalised.
    rotation = np.stack([1 + normal[:, 2], -normal[:, 1], normal[:, 0], np.zeros(len(normal))], axis=1)
    rotation /= np.linalg.norm(rotation, axis=1, keepdims=True)
    scale = np.stack([radius, radius, np.where(is_disc, DISC_THICKNESS * side, radius)], axis=1)
    return scale.astype(np.float32), rotation.astype(np.float32)


def _tangent(points: Float32, keep: np.ndarray, neighbours: tuple[tuple[slice, ...], tuple[slice, ...]]) -> Float32:
    """(N, H, W, 3) step on the surface to the nearer of two opposite neighbours in the image, 0 without either.

    The nearer one lies on the pixel's own surface at a depth edge.
    """
    ahead, behind = neighbours
    step = points[ahead] - points[behind]
    length = np.where(keep[ahead] & keep[behind], np.linalg.norm(step, axis=-1), np.inf).astype(np.float32)
    tangent = np.zeros_like(points)
    shortest = np.full(keep.shape, np.inf, np.float32)
    for here in neighbours:
        closer = length < shortest[here]
        tangent[here] = np.where(closer[..., None], step, tangent[here])
        shortest[here] = np.minimum(shortest[here], length)
    return tangent
