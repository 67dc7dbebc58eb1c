"""A finished scene to files: one module a format, arrays to bytes. `Encoder` finds the module by the file's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from model.types import Scene
from service.formats import cameras, colmap, depth, glb, matches, mesh, photos, ply, pointmaps, preview, splat, spz
from service.formats.tracks import Tracks, find_tracks

Buffer = bytes | bytearray | memoryview
"""A file's contents."""


class Encoder:
    """One scene's files. What several of them need is computed once, for the first one that asks."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    @cached_property
    def tracks(self) -> Tracks:
        return find_tracks(self.scene)

    def encode(self, name: str) -> Buffer:
        """The contents of the result file `name`, one of `schemas.OUTPUTS`; KeyError for another name."""
        return _ENCODERS[name](self)


_ENCODERS: dict[str, Callable[[Encoder], Buffer]] = {
    "scene.ply": lambda of: ply.encode_cloud(of.scene.cloud),
    "scene.glb": lambda of: glb.encode(of.scene),
    "mesh.glb": lambda of: mesh.encode(of.scene),
    "scene.splat": lambda of: splat.encode(of.scene.splats),
    "gaussians.ply": lambda of: ply.encode_gaussians(of.scene.splats),
    "gaussians.spz": lambda of: spz.encode(of.scene.splats),
    "cameras.json": lambda of: cameras.encode(of.scene),
    "colmap.zip": lambda of: colmap.encode(of.tracks),
    "transforms.json": lambda of: cameras.encode_transforms(of.scene),
    "pointmaps.npz": lambda of: pointmaps.encode(of.scene),
    "photos.webp": lambda of: photos.encode(of.scene.views),
    "preview.webp": lambda of: preview.encode(of.scene),
    "matches.npz": lambda of: matches.encode(of.scene, of.tracks),
    "matches.webp": lambda of: matches.encode_picture(of.tracks),
    "depth.zip": lambda of: depth.encode(of.scene),
}
