"""glTF: the points and a frustum for every camera, standing upright in any viewer."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from model.types import Float32, Scene
from service.formats.cameras import OPENGL, upright_rotation
from service.formats.gltf import LINES, POINTS, File

FRUSTUM_SHARE = 0.06
"""Length of a frustum as a share of the median distance of the points from their centre."""


def encode(scene: Scene) -> bytearray:
    """scene.glb: y up, the reference camera at the origin with its heading along -z (see `upright_rotation`).

    Colours are linear, as glTF wants COLOR_0, with 16 bits so that dark tones survive it. Each camera is a node named
    after its photo, with its pose, its frustum as lines and, as a child, a glTF camera to look through.
    `extras.world_to_gltf` of the scene is the rotation (row by row) from the other files' axes.
    """
    rotation = upright_rotation(scene)
    points: Float32 = scene.cloud.points @ rotation.T.astype(np.float32)
    colours = np.full((len(points), 4), 65535, np.uint16)
    colours[:, :3] = _linear16()[scene.cloud.colours]
    spread = np.linalg.norm(points[:: max(1, len(points) // 100_000)] - np.median(points[::97], axis=0), axis=1)
    length = FRUSTUM_SHARE * float(np.median(spread)) or 1.0

    file = File()
    file.node("points", POINTS, {"POSITION": file.vertices(points), "COLOR_0": file.vertices(colours)})
    for index, (view, camera) in enumerate(zip(scene.views.views, scene.cameras)):
        if camera is None:
            continue
        width, height = view.original_size
        corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) @ np.linalg.inv(camera.K).T
        lines = _frustum(corners * length) @ OPENGL[:3, :3]
        pose = np.eye(4)
        pose[:3] = rotation @ camera.camera_to_world[:3] @ OPENGL
        hue = colorsys.hsv_to_rgb(index / len(scene.cameras), 0.85, 0.9)
        vertices = file.vertices(lines.astype(np.float32))
        node = file.node(f"camera {index + 1}: {view.name}", LINES, {"POSITION": vertices}, colour=hue)
        node["matrix"] = pose.T.ravel().tolist()
        # The lens is a node of its own: some readers take a node with a camera for nothing else.
        node["children"] = [len(file.document["nodes"])]
        file.document["nodes"].append({"name": f"lens {index + 1}", "camera": len(file.document["cameras"])})
        file.document["cameras"].append(
            {
                "type": "perspective",
                "perspective": {
                    "yfov": float(2 * np.arctan(height / (2 * camera.K[1, 1]))),
                    "aspectRatio": width / height,
                    "znear": length / 10,
                },
            }
        )
    file.document["scenes"][0]["extras"] = {"world_to_gltf": rotation.tolist()}
    return file.bytes()


def _frustum(corners: np.ndarray) -> np.ndarray:
    """(20, 3) ends of line segments: apex to corners (4, 3), the picture's edge, and a roof over its upper edge."""
    apex = np.zeros(3)
    roof = 1.25 * (corners[0] + corners[1]) / 2 - 0.25 * (corners[2] + corners[3]) / 2
    lines = [end for corner in corners for end in (apex, corner)]
    lines += [end for i in range(4) for end in (corners[i], corners[(i + 1) % 4])]
    return np.array([*lines, corners[0], roof, roof, corners[1]])


def _linear16() -> NDArray[np.uint16]:
    """(256,) sRGB's 8-bit values as linear light, IEC 61966-2-1."""
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.rint(linear * 65535), np.uint16)
