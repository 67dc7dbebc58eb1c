"""glTF 2.0 in one binary file: the points and a frustum for every camera, standing upright in any viewer."""

from __future__ import annotations

import colorsys
import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.types import Float32, Scene
from service.formats.cameras import OPENGL, upright_rotation

FLOAT, UNSIGNED_SHORT = 5126, 5123
POINTS, LINES = 0, 1
ARRAY_BUFFER = 34962
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
    colours = np.full((len(points), 4), 65535, "<u2")
    colours[:, :3] = _linear16()[scene.cloud.colours]
    spread = np.linalg.norm(points[:: max(1, len(points) // 100_000)] - np.median(points[::97], axis=0), axis=1)
    length = FRUSTUM_SHARE * float(np.median(spread)) or 1.0

    file = _File()
    accessors = file.add(points, "VEC3", FLOAT), file.add(colours, "VEC4", UNSIGNED_SHORT)
    file.node("points", {"POSITION": accessors[0], "COLOR_0": accessors[1]}, POINTS, [1.0, 1.0, 1.0])
    for index, (view, camera) in enumerate(zip(scene.views.views, scene.cameras)):
        if camera is None:
            continue
        width, height = view.original_size
        corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) @ np.linalg.inv(camera.K).T
        lines = _frustum(corners * length) @ OPENGL[:3, :3]
        pose = np.eye(4)
        pose[:3] = rotation @ camera.camera_to_world[:3] @ OPENGL
        hue = colorsys.hsv_to_rgb(index / len(scene.cameras), 0.85, 0.9)
        node = file.node(f"camera {index + 1}: {view.name}", {"POSITION": file.add(lines, "VEC3", FLOAT)}, LINES, hue)
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


class _File:
    """A glTF document and its one binary buffer, grown together."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "Scenelift"},
            "extensionsUsed": ["KHR_materials_unlit"],
            "scene": 0,
            "scenes": [{"name": "scene", "nodes": []}],
            "nodes": [],
            "meshes": [],
            "materials": [],
            "cameras": [],
            "accessors": [],
            "bufferViews": [],
            "buffers": [{"byteLength": 0}],
        }
        self._arrays: list[np.ndarray] = []

    def add(self, values: np.ndarray, kind: str, component: int) -> int:
        """Index of a new accessor of (P, 3) or (P, 4) values; every array is a multiple of 4 bytes long."""
        dtype = "<f4" if component == FLOAT else "<u2"
        values = np.ascontiguousarray(values, dtype)
        accessor: dict[str, Any] = {
            "bufferView": len(self._arrays),
            "componentType": component,
            "count": len(values),
            "type": kind,
        }
        if component == FLOAT:
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        else:
            accessor["normalized"] = True
        buffer = self.document["buffers"][0]
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": buffer["byteLength"], "byteLength": values.nbytes, "target": ARRAY_BUFFER}
        )
        buffer["byteLength"] += values.nbytes
        self.document["accessors"].append(accessor)
        self._arrays.append(values)
        return len(self._arrays) - 1

    def node(self, name: str, attributes: dict[str, int], mode: int, colour: Any) -> dict[str, Any]:
        """A new root node with one unlit mesh of its own; `colour` is linear RGB."""
        node = {"name": name, "mesh": len(self.document["meshes"])}
        self.document["scenes"][0]["nodes"].append(len(self.document["nodes"]))
        self.document["nodes"].append(node)
        material = {
            "name": name,
            "pbrMetallicRoughness": {"baseColorFactor": [*colour, 1.0], "metallicFactor": 0.0},
            "extensions": {"KHR_materials_unlit": {}},
        }
        primitive = {"attributes": attributes, "mode": mode, "material": len(self.document["materials"])}
        self.document["materials"].append(material)
        self.document["meshes"].append({"name": name, "primitives": [primitive]})
        return node

    def bytes(self) -> bytearray:
        """The whole file: header, JSON chunk, binary chunk."""
        document = {key: value for key, value in self.document.items() if value != []}
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        size = self.document["buffers"][0]["byteLength"]
        content = bytearray(28 + len(text) + size)
        struct.pack_into("<4sIII4s", content, 0, b"glTF", 2, len(content), len(text), b"JSON")
        content[20 : 20 + len(text)] = text
        struct.pack_into("<I4s", content, 20 + len(text), size, b"BIN\0")
        offset = 28 + len(text)
        for values in self._arrays:
            np.frombuffer(content, values.dtype, values.size, offset)[:] = values.ravel()
            offset += values.nbytes
        return content


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
