"""Cameras as JSON, in our own form and nerfstudio's, and which way is up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from model.types import Camera, Float64, Scene

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""OpenCV camera axes (x right, y down, z forward) to OpenGL's (x right, y up, z back), and back."""

LEVEL, AIM = np.radians(2.0), np.radians(15.0)
"""Standard deviations of how people hold a camera: turned about its axis, and aimed up or down."""

CONVENTIONS = {
    "axes": "OpenCV: x right, y down, z forward, for the world and every camera",
    "world": "the frame of the reference view's camera; its scale is arbitrary",
    "reference": "index, from 0, in views: the one asked for, or another where that one could not be placed",
    "camera_to_world": "4 x 4, row by row: point_in_world = camera_to_world * point_in_camera",
    "K": "3 x 3, row by row, in pixels of the upright original image, no distortion",
    "K_grid": "the same for the view's grid in pointmaps.npz, which shows the part `crop` of the original",
    "crop": "left, top, right, bottom edges of the grid in pixels of the original; outside the photo is padding",
    "pixels": "the image's corner is at (0, 0), the centre of its first pixel at (0.5, 0.5)",
    "image": "the photo's upright copy in colmap.zip",
    "inlier_share": "share of the correspondences used for this pose that agree with it",
    "up": "unit vector in the world that points up, away from gravity, as far as the cameras tell",
}


def encode(scene: Scene) -> bytes:
    """cameras.json: one entry a view in the order of the upload, nulls where a photo could not be placed."""
    views = []
    for index, (view, camera) in enumerate(zip(scene.views.views, scene.cameras)):
        crop = scene.prediction.crops[index]
        height, width = scene.prediction.confidence.shape[1:]
        views.append(
            {
                "name": view.name,
                "width": view.original_size[0],
                "height": view.original_size[1],
                "K": None if camera is None else camera.K.tolist(),
                "K_grid": None if camera is None else intrinsics_of(camera, crop, (width, height)).tolist(),
                "grid_size": [width, height],
                "crop": crop.tolist(),
                "camera_to_world": None if camera is None else camera.camera_to_world.tolist(),
                "inlier_share": None if camera is None else float(camera.inlier_share),
                "image": None if camera is None else image_path(index),
            }
        )
    return _json(
        {
            "conventions": CONVENTIONS,
            "reference": scene.views.reference,
            "up": up_direction(scene.cameras).tolist(),
            "views": views,
        }
    )


def encode_transforms(scene: Scene) -> bytes:
    """transforms.json of nerfstudio: OpenGL camera axes, the world as it is, colmap.zip's images beside the file."""
    frames = []
    for index, (view, camera) in enumerate(zip(scene.views.views, scene.cameras)):
        if camera is None:
            continue
        height, width = view.image.shape[:2]
        K = intrinsics_of(camera, (0, 0, *view.original_size), (width, height))
        frames.append(
            {
                "file_path": image_path(index),
                "w": width,
                "h": height,
                "fl_x": K[0, 0],
                "fl_y": K[1, 1],
                "cx": K[0, 2],
                "cy": K[1, 2],
                "transform_matrix": (camera.camera_to_world @ OPENGL).tolist(),
            }
        )
    return _json({"camera_model": "PINHOLE", "ply_file_path": "scene.ply", "frames": frames})


def image_path(index: int) -> str:
    """Where colmap.zip keeps the photo of view `index`: plain ASCII, whatever the photo was called."""
    return f"images/{index + 1:03d}.jpg"


def intrinsics_of(camera: Camera, box: Sequence[float] | Float64, size: tuple[int, int]) -> Float64:
    """(3, 3) K in pixels of a width x height picture of the part `box` (left, top, right, bottom) of the original."""
    left, top, right, bottom = box
    x, y = size[0] / (right - left), size[1] / (bottom - top)
    return np.array([[x, 0, -left * x], [0, y, -top * y], [0, 0, 1]]) @ camera.K


def up_direction(cameras: Sequence[Camera | None]) -> Float64:
    """(3,) unit vector in the world that points up.

    Cameras are held level more exactly than they are aimed level. Their x axes x_i being horizontal within `LEVEL` and
    their mean up m right within `AIM`, up is the most likely u, which minimises sum (x_i . u)^2 - (LEVEL / AIM)^2
    (m . u)^2: an eigenvector. So headings that differ tell the pitch, and alike ones leave the word to the photos' own
    tops. Reweighted with Cauchy's loss, ever narrower down to 0.1, which leaves out photos that lie on their side.
    """
    placed = [camera.camera_to_world for camera in cameras if camera is not None]
    if not placed:
        return np.array([0.0, -1.0, 0.0])
    horizons = np.array([pose[:3, 0] for pose in placed])
    ups = np.array([-pose[:3, 1] for pose in placed])
    up = _unit(ups.sum(axis=0) + 1e-6 * ups[0])
    for width in np.geomspace(1, 0.1, 20):
        weight = 1 / (1 + (horizons @ up / width) ** 2) * (ups @ up > -0.5)
        mean = _unit(weight @ ups)
        form = (horizons * weight[:, None]).T @ horizons - (LEVEL / AIM) ** 2 * np.outer(mean, mean)
        up = np.linalg.eigh(form)[1][:, 0]
        up = -up if up @ mean < 0 else up
    return up


def level_right(pose: Float64, forward: Float64, up: Float64) -> Float64:
    """(3,) unit vector to the right of `forward` and level; `forward` is about where the camera at `pose` looks.

    Straight up or down there is no such direction but the camera's own right, about.
    """
    right = np.cross(forward, up)
    return _unit(right if np.linalg.norm(right) > 0.2 else pose[:3, 0] - (pose[:3, 0] @ forward) * forward)


def upright_rotation(scene: Scene) -> Float64:
    """(3, 3) rotation from the world to x right, y up, z back.

    The scene stands upright, and the reference camera, turned level, looks along -z.
    """
    up = up_direction(scene.cameras)
    reference = scene.cameras[scene.views.reference]
    pose = np.eye(4) if reference is None else reference.camera_to_world
    back = _unit(np.cross(level_right(pose, pose[:3, 2], up), up))
    return np.stack([np.cross(up, back), up, back])


def _unit(vector: Float64) -> Float64:
    return np.asarray(vector / np.linalg.norm(vector), np.float64)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()
