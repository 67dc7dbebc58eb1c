"""`.splat` of antimatter15: 32 bytes a Gaussian, no header, the most visible first."""

from __future__ import annotations

import numpy as np

from model.types import Splats

RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("colour", "u1", 4), ("rotation", "u1", 4)])


def encode(splats: Splats) -> bytearray:
    """scene.splat: position, linear scale, RGBA and the quaternion w x y z as q * 128 + 128, OpenCV axes.

    `splats` are sorted by falling volume x opacity, as the format wants them: a viewer may show any beginning of it.
    """
    content = bytearray(len(splats) * RECORD.itemsize)
    records = np.frombuffer(content, RECORD)
    records["position"] = splats.centres
    records["scale"] = splats.scale
    records["colour"][:, :3] = splats.colours
    records["colour"][:, 3] = np.rint(np.clip(splats.opacity, 0, 1) * np.float32(255))
    records["rotation"] = np.clip(np.rint(splats.rotation * np.float32(128) + np.float32(128)), 0, 255)
    return content
