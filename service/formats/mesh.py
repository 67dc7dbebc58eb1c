"""The scene as a textured mesh: what each view sees is a relief, and every place is shown by one view alone."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, sparse

from model.fusion import depth_in
from model.geometry.poses import invert_rigid
from model.types import Camera, Float32, Float64, Scene, View
from service.formats.cameras import intrinsics_of, upright_rotation
from service.formats.gltf import TRIANGLES, File

MOST_TRIANGLES = 300_000
TEXTURE_SIDE = 1024
"""Long side in pixels of a view's texture, at most, were it the whole photo."""
SLANT = 4.0
"""Neighbours are on one surface when they are at most so many times farther apart than on one that faces the camera."""
STRAIGHT = 0.02
"""Or when a straight line through two of them meets the third's inverse depth to this share: planes seen aslant."""
SAME_PLACE = 0.03
"""A view shows a point when its own surface there differs in depth by less than this share."""
FREE_SPACE_MARGIN = 0.06
"""A point floats when it lies this share before the surface that a surer view sees behind it."""
COARSER = 2.0
"""A view leaves what it sees to another one that sees it with pixels at most so many times larger."""
LOOKED_THROUGH = 12
"""Nearest views that a view is compared with; more cost time and find little."""
SPECK = 40
"""Vertices of a connected piece, at least."""


def encode(scene: Scene, most: int = MOST_TRIANGLES) -> bytearray:
    """mesh.glb: at most so many triangles in the axes of scene.glb, each view's with its photo as texture, unlit.

    Triangles join neighbouring pixels that lie on one surface. They show their front alone: from outside one looks
    through a room's near walls.
    """
    pixels = sum(camera is not None for camera in scene.cameras) * scene.prediction.confidence[0].size
    # A pixel makes two triangles, but views that see the same leave two thirds of them to each other, if not more.
    for step in count(max(1, round(np.sqrt(2 / 3 * pixels / most) + 0.3))):
        shown = reliefs(scene, step)
        if sum(len(triangles) for _, triangles in shown) <= most:
            break
    rotation = upright_rotation(scene)
    file = File()
    for relief, triangles in shown:
        used, indices = np.unique(triangles, return_inverse=True)
        view = scene.views.views[relief.index]
        crop, size = scene.prediction.crops[relief.index], np.array(view.original_size)
        places = (crop[:2] + relief.at.reshape(-1, 2)[used] * (crop[2:] - crop[:2])) / size
        picture, box = _texture(view, places)
        attributes = {
            "POSITION": file.vertices(relief.points.reshape(-1, 3)[used] @ rotation.T.astype(np.float32)),
            "TEXCOORD_0": file.vertices(((places - box[:2]) / (box[2:] - box[:2])).astype(np.float32)),
        }
        corners = file.corners(indices.astype(np.min_scalar_type(max(256, len(used)))))
        name = f"view {relief.index + 1}: {view.name}"
        file.node(name, TRIANGLES, attributes, corners=corners, texture=file.texture(picture))
    file.document["scenes"][0]["extras"] = {"world_to_gltf": rotation.tolist()}
    return file.bytes()


@dataclass(frozen=True, slots=True)
class Relief:
    """What one view sees, on a coarse grid of h x w blocks of its pixels; one vertex a block."""

    index: int
    camera: Camera
    K: Float64
    """(3, 3) in blocks."""
    points: Float32
    """(h, w, 3)."""
    at: Float32
    """(h, w, 2) where the vertex is in the view's grid: shares of its width and height."""
    depth: Float32
    """(h, w); 0: no vertex."""
    confidence: Float32
    """(h, w)."""

    @property
    def size(self) -> Float32:
        """(h, w) side of the square that a block covers, facing the camera."""
        return self.depth / np.float32(self.K[0, 0])


def reliefs(scene: Scene, step: int) -> list[tuple[Relief, NDArray[np.int64]]]:
    """The views that show something, in blocks of step x step pixels, and their triangles (T, 3), indices of blocks.

    A place is shown by the first view that sees it well; the one that sees most comes first.
    """
    least = scene.cloud.confidence.min()
    placed = [_relief(scene, i, camera, step, least) for i, camera in enumerate(scene.cameras) if camera is not None]
    solid = {relief.index: _solid(relief) for relief in placed}
    shown = []
    covered: dict[int, np.ndarray] = {}
    for relief in sorted(placed, key=lambda relief: -len(solid[relief.index])):
        centre = relief.camera.camera_to_world[:3, 3]
        others = sorted(
            (other for other in placed if other is not relief),
            key=lambda other: float(np.linalg.norm(other.camera.camera_to_world[:3, 3] - centre)),
        )
        floating = np.zeros(relief.depth.shape, bool)
        hidden = np.zeros(relief.depth.shape, bool)
        for other in others[:LOOKED_THROUGH]:
            z, depth, size, confidence, meshed = _seen(relief, other, covered.get(other.index))
            floating |= (depth > 0) & (z < (1 - FREE_SPACE_MARGIN) * depth) & (relief.confidence < confidence)
            hidden |= meshed & (np.abs(z - depth) < SAME_PLACE * depth) & (size < COARSER * relief.size)
        # One alone, before a thing's edge perhaps, is no proof.
        floating = ndimage.binary_opening(floating, np.ones((2, 2), bool))
        triangles = solid[relief.index]
        triangles = _without_specks(triangles[~floating.ravel()[triangles].any(axis=1)], relief.depth.size)
        covered[relief.index] = _touched(triangles, relief)
        # One block more than what is left, so that pieces overlap where they meet.
        hidden = ndimage.binary_erosion(hidden, np.ones((3, 3), bool), border_value=1)
        triangles = triangles[~hidden.ravel()[triangles].all(axis=1)]
        if len(triangles):
            shown.append((relief, triangles))
    return shown


def _relief(scene: Scene, index: int, camera: Camera, step: int, least: np.floating) -> Relief:
    """A view's blocks of step x step pixels; each the mean of those on the surface of its surest one."""
    prediction = scene.prediction
    height, width = (side // step for side in prediction.confidence.shape[1:])

    def blocks(values: np.ndarray) -> np.ndarray:
        """(H, W, ...) to (h, w, step * step, ...)."""
        part = values[: height * step, : width * step].reshape(height, step, width, step, *values.shape[2:])
        return part.swapaxes(1, 2).reshape(height, width, step * step, *values.shape[2:])

    points, confidence = blocks(prediction.points[index]), blocks(prediction.confidence[index])
    depth = depth_in(camera, points)
    confidence = np.where((confidence >= least) & (depth > 0), confidence, 0)
    K = intrinsics_of(camera, prediction.crops[index], (prediction.confidence.shape[2], prediction.confidence.shape[1]))
    surest = confidence.argmax(axis=2)[..., None]
    own = np.take_along_axis(depth, surest, axis=2)
    near = np.abs(depth - own) <= SLANT * step / np.float32(K[0, 0]) * own
    weight = (near & (confidence > 0)).astype(np.float32)
    weight /= np.maximum(weight.sum(axis=2, keepdims=True), 1)
    rows, columns = np.mgrid[: prediction.confidence.shape[1], : prediction.confidence.shape[2]].astype(np.float32)
    at = blocks(np.stack([(columns + 0.5) / columns.shape[1], (rows + 0.5) / rows.shape[0]], axis=-1))
    K[:2] /= step
    relief = Relief(
        index,
        camera,
        K,
        np.einsum("hwb,hwbc->hwc", weight, points),
        np.einsum("hwb,hwbc->hwc", weight, at),
        np.einsum("hwb,hwb->hw", weight, depth),
        np.take_along_axis(confidence, surest, axis=2)[..., 0],
    )
    for axis in (0, 1):
        _close(relief, axis)
    return relief


def _close(relief: Relief, axis: int) -> None:
    """Put vertices, in place, into gaps of one block between two neighbours on one surface."""
    fields = [np.moveaxis(v, axis, 0) for v in (relief.points, relief.at, relief.depth, relief.confidence)]
    depth, size = fields[2], np.moveaxis(relief.size, axis, 0)
    one = np.linalg.norm(fields[0][2:] - fields[0][:-2], axis=-1) < 2 * SLANT * np.minimum(size[2:], size[:-2])
    gap = (depth[1:-1] == 0) & (depth[2:] > 0) & (depth[:-2] > 0) & one
    for field in fields:
        field[1:-1][gap] = (field[:-2][gap] + field[2:][gap]) / 2


def _touched(triangles: NDArray[np.int64], relief: Relief) -> np.ndarray:
    """(h, w) blocks that are a corner of some triangle."""
    touched = np.zeros(relief.depth.size, bool)
    touched[triangles] = True
    return touched.reshape(relief.depth.shape)


def _seen(relief: Relief, other: Relief, covered: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """For each block of a view, what another one sees there: the block's depth in it, and that view's own depth, size,
    confidence (0: nothing), and whether it is `covered`."""
    height, width = other.depth.shape
    projection = (other.K @ invert_rigid(other.camera.camera_to_world)[:3]).astype(np.float32)
    x, y, z = np.moveaxis(relief.points @ projection[:, :3].T + projection[:, 3], -1, 0)
    inside = (relief.depth > 0) & (z > 0) & (x >= 0) & (x < width * z) & (y >= 0) & (y < height * z)
    ahead = np.where(inside, z, 1)
    column = np.minimum(np.where(inside, x / ahead, 0).astype(np.int64), width - 1)
    row = np.minimum(np.where(inside, y / ahead, 0).astype(np.int64), height - 1)
    depth = np.where(inside, other.depth[row, column], 0)
    confidence = np.where(inside, other.confidence[row, column], 0)
    meshed = np.zeros_like(inside) if covered is None else inside & covered[row, column]
    return z, depth, depth / np.float32(other.K[0, 0]), confidence, meshed


def _solid(relief: Relief) -> NDArray[np.int64]:
    """(T, 3) triangles between neighbouring blocks on one surface, counter-clockwise for who looks from the camera."""
    index = np.arange(relief.depth.size).reshape(relief.depth.shape)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    across, down = _joined(relief, axis=1), _joined(relief, axis=0)
    top, bottom, left, right = across[:-1], across[1:], down[:, :-1], down[:, 1:]
    flat = relief.points.reshape(-1, 3)
    falling = np.linalg.norm(flat[a] - flat[d], axis=-1) <= np.linalg.norm(flat[b] - flat[c], axis=-1)
    # The other diagonal where it alone has its corners.
    there = relief.depth.ravel() > 0
    falling = (falling & there[a] & there[d]) | ~(there[b] & there[c])
    kinds = (
        ((a, c, d), falling & left & bottom),
        ((a, d, b), falling & top & right),
        ((a, c, b), ~falling & left & top),
        ((b, c, d), ~falling & bottom & right),
    )
    return np.concatenate([np.stack([corner[where] for corner in corners], axis=1) for corners, where in kinds])


def _joined(relief: Relief, axis: int) -> np.ndarray:
    """Whether each block and the next one along an axis lie on one surface: (h - 1, w) or (h, w - 1)."""
    points, depth, size = (np.moveaxis(v, axis, 0) for v in (relief.points, relief.depth, relief.size))
    there = (depth[1:] > 0) & (depth[:-1] > 0)
    near = np.linalg.norm(points[1:] - points[:-1], axis=-1) < SLANT * np.minimum(size[1:], size[:-1])
    # On a plane, inverse depth is linear in the picture.
    inverse = 1 / np.where(depth > 0, depth, np.float32(np.inf))
    bend = np.abs(inverse[2:] - 2 * inverse[1:-1] + inverse[:-2]) < STRAIGHT * inverse[1:-1]
    bend &= (depth[2:] > 0) & (depth[:-2] > 0)
    straight = np.zeros_like(near)
    straight[:-1] |= bend
    straight[1:] |= bend
    return np.moveaxis(there & (near | straight), 0, axis)


def _without_specks(triangles: NDArray[np.int64], vertices: int) -> NDArray[np.int64]:
    ends = (triangles[:, [0, 1]].ravel(), triangles[:, [1, 2]].ravel())
    graph = sparse.coo_array((np.ones(len(ends[0]), bool), ends), (vertices, vertices))
    _, piece = sparse.csgraph.connected_components(graph, directed=False)
    return triangles[np.bincount(piece)[piece[triangles[:, 0]]] >= SPECK]


def _texture(view: View, places: Float64) -> tuple[bytes, Float64]:
    """A JPEG of the part of the photo that holds these places (P, 2), shares of the photo's width and height, and that
    part: (4,) left, top, right, bottom, likewise."""
    height, width = view.image.shape[:2]
    size = np.array([width, height])
    low = np.clip(np.floor(places.min(axis=0) * size) - 2, 0, size - 1)
    high = np.clip(np.ceil(places.max(axis=0) * size) + 2, low + 1, size)
    picture = Image.fromarray(view.image).crop((*low.astype(int).tolist(), *high.astype(int).tolist()))
    scale = min(1, TEXTURE_SIDE / max(width, height))
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), np.concatenate([low, high]) / [width, height, width, height]
