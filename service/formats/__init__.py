"""A finished scene to files: one module a format, arrays to bytes. `encode` finds the module by the file's name."""

from __future__ import annotations

from collections.abc import Callable

from model.types import Scene
from service.formats import cameras, colmap, depth, glb, matches, ply, pointmaps, preview, splat, spz

Buffer = bytes | bytearray | memoryview
"""A file's contents."""

_ENCODERS: dict[str, Callable[[Scene], Buffer]] = {
    "scene.ply": lambda scene: ply.encode_cloud(scene.cloud),
    "scene.glb": glb.encode,
    "scene.splat": lambda scene: splat.encode(scene.splats),
    "gaussians.ply": lambda scene: ply.encode_gaussians(scene.splats),
    "gaussians.spz": lambda scene: spz.encode(scene.splats),
    "cameras.json": cameras.encode,
    "colmap.zip": colmap.encode,
    "transforms.json": cameras.encode_transforms,
    "pointmaps.npz": pointmaps.encode,
    "preview.webp": preview.encode,
    "matches.npz": matches.encode,
    "matches.webp": matches.encode_picture,
    "depth.zip": depth.encode,
}


def encode(name: str, scene: Scene) -> Buffer:
    """The contents of the result file `name`, one of `schemas.OUTPUTS`; KeyError for another name."""
    return _ENCODERS[name](scene)
