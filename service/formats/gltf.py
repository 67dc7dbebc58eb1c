"""glTF 2.0 in one binary file, grown piece by piece. Everything is unlit: photos bring their own light."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

POINTS, LINES, TRIANGLES = 0, 1, 4
COMPONENTS = {"f4": 5126, "u2": 5123, "u4": 5125}
KINDS = {2: "VEC2", 3: "VEC3", 4: "VEC4"}
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963


class File:
    """A glTF document and its one binary buffer."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "Scenelift"},
            "extensionsUsed": ["KHR_materials_unlit"],
            "scene": 0,
            "scenes": [{"name": "scene"}],
            "nodes": [],
            "meshes": [],
            "materials": [],
            "textures": [],
            "images": [],
            "cameras": [],
            "accessors": [],
            "bufferViews": [],
            "buffers": [],
        }
        self._parts: list[NDArray[np.uint8]] = []

    def vertices(self, values: np.ndarray) -> int:
        """Index of a new accessor of (P, 2 to 4) float32, or uint16 that stand for 0 to 1. P > 0."""
        accessor = self._accessor(values.dtype, len(values), KINDS[values.shape[1]], self._view(values, ARRAY_BUFFER))
        if values.dtype == np.float32:
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        else:
            accessor["normalized"] = True
        return len(self.document["accessors"]) - 1

    def corners(self, triangles: NDArray[np.unsignedinteger[Any]]) -> int:
        """Index of a new accessor of triangles (T, 3) uint16 or uint32, indices of vertices."""
        self._accessor(triangles.dtype, triangles.size, "SCALAR", self._view(triangles, ELEMENT_ARRAY_BUFFER))
        return len(self.document["accessors"]) - 1

    def texture(self, jpeg: bytes) -> int:
        """Index of a new texture."""
        picture = {"bufferView": self._view(np.frombuffer(jpeg, np.uint8)), "mimeType": "image/jpeg"}
        self.document["images"].append(picture)
        self.document["textures"].append({"source": len(self.document["images"]) - 1})
        return len(self.document["textures"]) - 1

    def node(
        self,
        name: str,
        mode: int,
        attributes: dict[str, int],
        *,
        colour: Sequence[float] = (1, 1, 1),
        corners: int | None = None,
        texture: int | None = None,
    ) -> dict[str, Any]:
        """A new root node with one mesh of its own; `colour` is linear RGB, and multiplies what the vertices or the
        texture have."""
        node = {"name": name, "mesh": len(self.document["meshes"])}
        self.document["scenes"][0].setdefault("nodes", []).append(len(self.document["nodes"]))
        self.document["nodes"].append(node)
        surface: dict[str, Any] = {"baseColorFactor": [*colour, 1.0], "metallicFactor": 0.0}
        if texture is not None:
            surface["baseColorTexture"] = {"index": texture}
        primitive = {"attributes": attributes, "mode": mode, "material": len(self.document["materials"])}
        if corners is not None:
            primitive["indices"] = corners
        self.document["materials"].append(
            {"name": name, "pbrMetallicRoughness": surface, "extensions": {"KHR_materials_unlit": {}}}
        )
        self.document["meshes"].append({"name": name, "primitives": [primitive]})
        return node

    def bytes(self) -> bytearray:
        """The whole file: header, JSON chunk, and, where there is anything, binary chunk."""
        size = sum(map(len, self._parts))
        if size:
            self.document["buffers"] = [{"byteLength": size}]
        document = {key: value for key, value in self.document.items() if value != []}
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        content = bytearray(20 + len(text) + (8 + size if size else 0))
        struct.pack_into("<4sIII4s", content, 0, b"glTF", 2, len(content), len(text), b"JSON")
        content[20 : 20 + len(text)] = text
        if size:
            struct.pack_into("<I4s", content, 20 + len(text), size, b"BIN\0")
        offset = 28 + len(text)
        for part in self._parts:
            np.frombuffer(content, np.uint8, len(part), offset)[:] = part
            offset += len(part)
        return content

    def _accessor(self, dtype: np.dtype[Any], count: int, kind: str, view: int) -> dict[str, Any]:
        accessor = {"bufferView": view, "componentType": COMPONENTS[dtype.str[1:]], "count": count, "type": kind}
        self.document["accessors"].append(accessor)
        return accessor

    def _view(self, values: np.ndarray, target: int | None = None) -> int:
        """Index of a new view of the buffer, which holds the values and begins at a multiple of 4 bytes."""
        part = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        view = {"buffer": 0, "byteOffset": sum(map(len, self._parts)), "byteLength": len(part)}
        self._parts += [part, np.zeros(-len(part) % 4, np.uint8)]
        self.document["bufferViews"].append(view if target is None else view | {"target": target})
        return len(self.document["bufferViews"]) - 1
