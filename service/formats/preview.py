"""A picture of the scene, from a little behind and beside the reference camera, so that it shows its depth."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

from model.geometry.poses import intrinsics, invert_rigid
from model.types import Float32, Float64, PointCloud, Scene, UInt8
from service.formats.cameras import level_right, up_direction

SIZE = (960, 720)
BACKGROUND = (236, 237, 240)
BACK, ASIDE, ABOVE = 0.18, 0.25, 0.15
"""Where the picture is taken from: steps from the reference camera, in distances to what it looks at."""
NEAR = 0.15
"""Points nearer than this share of that distance would cover the picture."""
LARGEST_RADIUS = 8
"""Pixels; a disc that would be larger is no disc at all: its point stands alone, or at the edge of a gap."""
DISC = 0.85
"""Radius of a point's disc in spacings: half of one would just touch; more closes surfaces seen from nearer."""
WINDOW, FEW = 13, 20
"""Side in pixels of the square in which the points on the picture are counted, and how few are strays."""
SAME_SURFACE = 1.01
"""Points of one pixel whose depths differ by less than this factor are averaged."""
FILL_PASSES = 3
OPEN, INDEX = np.uint64(2**64 - 1), np.uint64(2**32 - 1)
"""A pixel of the depth buffer without a point, and the part of one that is its point's index."""


def encode(scene: Scene) -> memoryview:
    """preview.webp, 960 x 720."""
    K, camera_to_world, near = viewpoint(scene, SIZE)
    picture = render(scene.cloud, K, camera_to_world, SIZE, near)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=82, method=2)
    return buffer.getbuffer()


def viewpoint(scene: Scene, size: tuple[int, int]) -> tuple[Float64, Float64, float]:
    """K (3, 3), camera_to_world (4, 4) and the nearest depth of an upright view of what the reference camera sees."""
    cloud, up = scene.cloud, up_direction(scene.cameras)
    reference = scene.cameras[scene.views.reference]
    pose = np.eye(4) if reference is None else reference.camera_to_world
    own = cloud.points[cloud.view == scene.views.reference]
    points = _sample(cloud.points)
    centre = np.median(_sample(own) if len(own) else points, axis=0).astype(np.float64)
    towards = centre - pose[:3, 3]
    distance = float(np.linalg.norm(towards)) or 1.0
    # Step to the side where the other cameras are: from there, most of what comes into sight was photographed too.
    others = np.mean(
        [camera.camera_to_world[:3, 3] for camera in scene.cameras if camera is not None] or [centre], axis=0
    )
    side = pose[:3, 0] if (others - pose[:3, 3]) @ pose[:3, 0] >= 0 else -pose[:3, 0]
    eye = pose[:3, 3] - BACK * towards + distance * (ASIDE * side + ABOVE * up)

    forward = (centre - eye) / np.linalg.norm(centre - eye)
    right = level_right(pose, forward, up)
    camera_to_world = np.eye(4)
    camera_to_world[:3] = np.stack([right, np.cross(forward, right), forward, eye], axis=1)

    x, y, z = ((points - eye) @ camera_to_world[:3, :3]).T
    ahead = z > np.maximum(NEAR * distance, 0.5 * np.hypot(x, y))
    slopes = np.stack([x, y])[:, ahead] / z[ahead] if ahead.any() else np.array([[-1.0, 1.0], [-1.0, 1.0]])
    low, high = np.percentile(slopes, (3, 97), axis=1)
    focal = float(np.clip((size / np.maximum(high - low, 1e-6)).min(), 0.6 * size[0], 2 * size[0]))
    K = intrinsics(focal, size)
    K[:2, 2] -= focal * (low + high) / 2
    return K, camera_to_world, NEAR * distance


def render(cloud: PointCloud, K: Float64, camera_to_world: Float64, size: tuple[int, int], near: float = 1e-6) -> UInt8:
    """(height, width, 3) picture of a cloud by a pinhole camera (K in pixels, OpenCV axes); size is (width, height).

    Every point is a disc as wide as the spacing of points, through a depth buffer; points of the front surface that
    share a pixel are averaged; what stays open inside surfaces is filled from the farther neighbours.
    """
    width, height = size
    world_to_camera = invert_rigid(camera_to_world).astype(np.float32)
    x, y, z = (cloud.points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]).T
    column, row = K[:2].astype(np.float32) @ np.stack([x, y, np.maximum(z, near)]) / np.maximum(z, near)
    inside = np.flatnonzero((z > near) & (column >= 0) & (column < width) & (row >= 0) & (row < height))
    column, row, z = column[inside].astype(np.int64), row[inside].astype(np.int64), z[inside]

    # A border as wide as the largest disc saves the check of every disc's pixels against the picture's edges.
    stride = width + 2 * LARGEST_RADIUS
    pixel = (row + LARGEST_RADIUS) * stride + column + LARGEST_RADIUS
    spacing = np.float32(K[0, 0]) * _spacing(cloud)[inside] / z
    point, depth = _front(pixel, z, spacing, (height + 2 * LARGEST_RADIUS, stride))

    colours = cloud.colours[inside]
    shared = z <= depth[pixel] * np.float32(SAME_SURFACE)
    members = np.bincount(pixel[shared], minlength=len(depth))
    picture = colours[point].astype(np.float32) if len(colours) else np.zeros((len(depth), 3), np.float32)
    for channel in range(3):
        total = np.bincount(pixel[shared], colours[shared, channel], len(depth))
        np.divide(total, members, out=picture[:, channel], where=members > 0, casting="same_kind")
    _fill(picture, depth, stride)
    picture[depth == 0] = BACKGROUND
    inner = slice(LARGEST_RADIUS, -LARGEST_RADIUS)
    return np.rint(picture.reshape(-1, stride, 3)[inner, inner]).astype(np.uint8)


def _front(
    pixel: NDArray[np.int64], z: Float32, spacing: Float32, shape: tuple[int, int]
) -> tuple[NDArray[np.int64], Float32]:
    """What each pixel of a flat (rows * stride) picture shows: the index of a point and its depth, 0 without one.

    pixel, z, spacing: (P,) each point's own pixel, depth, and distance to its neighbours in pixels. That distance knows
    nothing of neighbours beside the cloud's order; counting the points around on the picture does, but takes a surface
    behind for points of the one in front: the larger of the two it is.
    """
    # Depth and index in one number, so that the smallest is the nearest: positive floats sort like their bits.
    buffer = np.full(shape[0] * shape[1], OPEN)
    np.minimum.at(buffer, pixel, _keys(z, np.arange(len(z))))

    # Only points in front at their own pixel get a disc, the widest first: an offset is for those that reach it.
    own = np.flatnonzero(buffer != OPEN)
    disc = (buffer[own] & INDEX).astype(np.int64)
    density = uniform_filter((buffer != OPEN).astype(np.float32).reshape(shape), WINDOW).ravel()[own]
    counted = np.where(density * WINDOW**2 >= FEW, 1 / np.sqrt(np.maximum(density, 1e-3)), 0)
    radius = DISC * np.maximum(np.where(DISC * spacing[disc] > LARGEST_RADIUS, 0, spacing[disc]), counted)
    order = np.argsort(-radius)
    own, disc, radius = own[order], disc[order], -radius[order]
    reach = np.arange(-LARGEST_RADIUS, LARGEST_RADIUS + 1)
    for dy, dx in np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2).tolist():
        distance = float(np.hypot(dx, dy))
        count = np.searchsorted(radius, -distance)
        # Discs bend back from their centres: where two overlap, each pixel goes to the nearer centre.
        depth = z[disc[:count]] * np.float32(1 + 0.001 * distance)
        np.minimum.at(buffer, own[:count] + dy * shape[1] + dx, _keys(depth, disc[:count]))

    depth = (buffer >> np.uint64(32)).astype(np.uint32).view(np.float32)
    depth[buffer == OPEN] = 0
    return np.where(buffer == OPEN, 0, buffer & INDEX).astype(np.int64), depth


def _keys(depth: Float32, index: NDArray[np.int64]) -> NDArray[np.uint64]:
    return depth.view(np.uint32).astype(np.uint64) << np.uint64(32) | index.astype(np.uint64)


def _spacing(cloud: PointCloud) -> Float32:
    """(P,) distance of each point to the nearer of its two neighbours in the cloud's order, which is the pixels' order;
    0 for a point alone."""
    step = np.linalg.norm(np.diff(cloud.points, axis=0), axis=1)
    step[np.diff(cloud.view) != 0] = np.inf
    ends = np.full(1, np.inf, np.float32)
    spacing: Float32 = np.minimum(np.concatenate([ends, step]), np.concatenate([step, ends]))
    return np.where(np.isfinite(spacing), spacing, np.float32(0))


def _fill(picture: Float32, depth: Float32, stride: int) -> None:
    """Fill, in place, open pixels (depth 0) with most neighbours set; at a depth edge with the farther ones."""
    around = np.array([dy * stride + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dx or dy])
    for _ in range(FILL_PASSES):
        holes = np.flatnonzero(depth == 0)
        holes = holes[(holes > stride) & (holes < len(depth) - stride - 1)]
        near = depth[holes[:, None] + around]
        enough = (near > 0).sum(axis=1) >= 5
        holes, near = holes[enough], near[enough]
        farthest = near.max(axis=1, keepdims=True, initial=0)
        weight = (near * np.float32(SAME_SURFACE + 0.04) > farthest).astype(np.float32)
        weight /= weight.sum(axis=1, keepdims=True)
        picture[holes] = np.einsum("hn,hnc->hc", weight, picture[holes[:, None] + around])
        depth[holes] = farthest[:, 0]


def _sample(points: Float32) -> Float32:
    """At most about 50,000 of the points, evenly."""
    return points[:: max(1, len(points) // 50_000)]
