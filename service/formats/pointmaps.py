"""pointmaps.npz: every pixel's point, for those who go on with numpy."""

from __future__ import annotations

import io

import numpy as np

from model.fusion import depth_in
from model.types import Scene


def encode(scene: Scene) -> memoryview:
    """An uncompressed npz, N views of H x W: points (N, H, W, 3) float32 in the reference frame, confidence (N, H, W)
    float32 (0: no point here), depth (N, H, W) float32 along the view's own axis (0: no point or no camera), rgb
    (N, H, W, 3) uint8, crops (N, 4) as in cameras.json, names (N,)."""
    prediction = scene.prediction
    depth = np.stack([depth_in(camera, points) for camera, points in zip(scene.cameras, prediction.points)])
    depth[prediction.confidence <= 0] = 0
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        points=prediction.points,
        confidence=prediction.confidence,
        depth=depth,
        rgb=prediction.rgb,
        crops=prediction.crops,
        names=np.array([view.name for view in scene.views.views]),
    )
    return buffer.getbuffer()
