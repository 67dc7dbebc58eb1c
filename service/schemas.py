"""The documents of the API: options in, the job's record out."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

OUTPUTS: dict[str, str] = {
    "scene.ply": "application/vnd.ply",
    "scene.glb": "model/gltf-binary",
    "scene.splat": "application/octet-stream",
    "gaussians.ply": "application/vnd.ply",
    "gaussians.spz": "application/octet-stream",
    "cameras.json": "application/json",
    "colmap.zip": "application/zip",
    "transforms.json": "application/json",
    "pointmaps.npz": "application/octet-stream",
    "preview.webp": "image/webp",
}
"""Every result file and its content type."""


class Options(BaseModel):
    """How to reconstruct: the fields of `POST /reconstruct` beside the photos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    confidence_percentile: float = Field(3.0, ge=0, le=99)
    """Share, in percent, of the least sure pixels to leave out."""
    outputs: tuple[str, ...] = ()
    """Names of the result files wanted; empty: all that this installation can write."""
    max_points: int = Field(1_500_000, ge=1_000, le=10_000_000)
    reference: int = Field(0, ge=0)
    """Index of the photo whose camera is the origin."""
    focal: Literal["shared", "per-view"] = "shared"
