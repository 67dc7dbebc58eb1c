"""A COLMAP model with its images, which COLMAP, nerfstudio and the 3D Gaussian trainers open.

Binary layout: https://colmap.github.io/format.html. Pixels are those of `View.image`.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from model.types import Float64, UInt8
from service.formats.archive import pack
from service.formats.cameras import image_path
from service.formats.tracks import PlacedView, Tracks

PINHOLE = 1
"""COLMAP's number of the camera model fx, fy, cx, cy."""
JPEG_QUALITY = 92


def encode(tracks: Tracks) -> memoryview:
    """colmap.zip: sparse/0/{cameras,images,points3D}.bin and images/NNN.jpg of every placed view.

    Since a view observes a point where its own pointmap has it, reprojection errors tell how well cameras and pointmaps
    agree, and bundle adjustment has something to do.
    """
    placed, points, colours, observed = tracks.views, tracks.points, tracks.colours, tracks.observed
    return pack(
        {
            "sparse/0/cameras.bin": _cameras(placed),
            "sparse/0/images.bin": _images(placed, observed),
            "sparse/0/points3D.bin": _points(placed, points, colours, observed),
            **{image_path(view.index): _jpeg(view.image) for view in placed},
        }
    )


def _camera_numbers(placed: list[PlacedView]) -> dict[tuple[tuple[int, int], bytes], int]:
    """COLMAP's camera number, from 1, for each different size and K: photos of one camera share it."""
    different = dict.fromkeys((view.size, view.K.tobytes()) for view in placed)
    return {key: number for number, key in enumerate(different, 1)}


def _cameras(placed: list[PlacedView]) -> bytes:
    numbers = _camera_numbers(placed)
    content = struct.pack("<Q", len(numbers))
    for (size, K), number in numbers.items():
        fx, _, cx, _, fy, cy, *_ = np.frombuffer(K)
        content += struct.pack("<IiQQ4d", number, PINHOLE, *size, fx, fy, cx, cy)
    return content


def _images(placed: list[PlacedView], observed: Float64) -> bytes:
    numbers = _camera_numbers(placed)
    parts = [struct.pack("<Q", len(placed))]
    for view, xy in zip(placed, observed):
        points = np.flatnonzero(np.isfinite(xy[:, 0]))
        records = np.empty(len(points), [("xy", "<f8", 2), ("point", "<u8")])
        records["xy"] = xy[points]
        records["point"] = points + 1
        quaternion = Rotation.from_matrix(view.world_to_camera[:3, :3]).as_quat(scalar_first=True)
        name = image_path(view.index).removeprefix("images/").encode() + b"\0"
        camera = numbers[view.size, view.K.tobytes()]
        parts += [
            struct.pack("<I7dI", view.index + 1, *quaternion, *view.world_to_camera[:3, 3], camera),
            name,
            struct.pack("<Q", len(records)),
            records.tobytes(),
        ]
    return b"".join(parts)


def _points(placed: list[PlacedView], points: Float64, colours: UInt8, observed: Float64) -> bytes:
    """Records of a fixed part and the track, whose length differs: written through byte offsets, without a loop."""
    seen = np.isfinite(observed[..., 0])
    length = seen.sum(axis=0)
    error = np.stack([np.linalg.norm(view.project(points)[0] - xy, axis=1) for view, xy in zip(placed, observed)])
    fixed = np.empty(
        len(points), [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")]
    )
    fixed["id"] = np.arange(len(points)) + 1
    fixed["xyz"] = points
    fixed["rgb"] = colours
    fixed["error"] = np.where(seen, error, 0).sum(axis=0) / length
    fixed["length"] = length
    point, view_number = np.nonzero(seen.T)
    track = np.empty(len(point), [("image", "<u4"), ("observation", "<u4")])
    track["image"] = np.array([view.index + 1 for view in placed])[view_number]
    track["observation"] = (seen.cumsum(axis=1) - 1)[view_number, point]

    content = np.empty(fixed.nbytes + track.nbytes, np.uint8)
    start = np.arange(len(fixed)) * fixed.itemsize + (length.cumsum() - length) * track.itemsize
    content[start[:, None] + np.arange(fixed.itemsize)] = fixed.view(np.uint8).reshape(-1, fixed.itemsize)
    start = (point + 1) * fixed.itemsize + np.arange(len(track)) * track.itemsize
    content[start[:, None] + np.arange(track.itemsize)] = track.view(np.uint8).reshape(-1, track.itemsize)
    return struct.pack("<Q", len(points)) + content.tobytes()


def _jpeg(image: UInt8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
