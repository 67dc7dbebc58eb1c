"""A COLMAP model with its images, which COLMAP, nerfstudio and the 3D Gaussian trainers open.

Binary layout: https://colmap.github.io/format.html. Pixels are those of `View.image`.
"""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from model.fusion import confident, depth_in
from model.geometry.poses import invert_rigid
from model.types import Camera, Float64, Scene, UInt8
from service.formats.cameras import image_path, intrinsics_of

MOST_POINTS = 20_000
CANDIDATES = 30_000
"""Pixels tried as points: those that another view confirms are kept."""
ENOUGH_TRACKS = 100
"""With as many points that two views or more observe, the others are left out: bundle adjustment cannot take them."""
LEAST_SURE_PERCENT = 25.0
"""Share of the pixels that is not tried."""
DEPTH_TOLERANCE = 0.02
"""A view sees a point when its own pointmap's depth there differs by less than this share."""
PINHOLE = 1
"""COLMAP's number of the camera model fx, fy, cx, cy."""
JPEG_QUALITY = 92


def encode(scene: Scene) -> memoryview:
    """colmap.zip: sparse/0/{cameras,images,points3D}.bin and images/NNN.jpg of every placed view.

    Points are those of sure pixels. A view observes a point where its own pointmap has it, not where the point projects
    to: reprojection errors then tell how well cameras and pointmaps agree, and bundle adjustment has something to do.
    """
    placed = [_Placed(scene, index, camera) for index, camera in enumerate(scene.cameras) if camera is not None]
    points, colours, observed = _tracks(scene, placed)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        contents = {
            "sparse/0/cameras.bin": _cameras(placed),
            "sparse/0/images.bin": _images(placed, observed),
            "sparse/0/points3D.bin": _points(placed, points, colours, observed),
            **{image_path(view.index): _jpeg(view.image) for view in placed},
        }
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)  # Equal scenes give equal files.
    return buffer.getbuffer()


class _Placed:
    """One placed view: its picture, and its pointmap with what takes world points to the grid and to the picture."""

    def __init__(self, scene: Scene, index: int, camera: Camera) -> None:
        view, crop = scene.views.views[index], scene.prediction.crops[index]
        self.index = index
        self.image = view.image
        self.points = scene.prediction.points[index]
        self.depth = depth_in(camera, self.points)
        self.depth[scene.prediction.confidence[index] <= 0] = 0
        self.rows, self.columns = self.depth.shape
        self.size = (view.image.shape[1], view.image.shape[0])
        self.K = intrinsics_of(camera, (0, 0, *view.original_size), self.size)
        self.world_to_camera = invert_rigid(camera.camera_to_world)
        # The grid shows the part `crop` of the original, the picture all of it: pixels differ by a scale and a shift.
        self.pixel = (crop[2:] - crop[:2]) / (self.columns, self.rows) * self.size / view.original_size
        self.corner = crop[:2] * self.size / view.original_size

    def project(self, points: Float64) -> tuple[Float64, Float64]:
        """Pixels (P, 2) of the picture and depths (P,) of world points (P, 3)."""
        local = points @ self.world_to_camera[:3, :3].T + self.world_to_camera[:3, 3]
        depth = local[:, 2]
        ahead = np.where(depth > 0, depth, np.nan)
        return local[:, :2] / ahead[:, None] @ self.K[:2, :2].T + self.K[:2, 2], depth

    def observe(self, points: Float64) -> Float64:
        """Pixels (P, 2) of the picture where this view's pointmap has world points (P, 3); nan where it does not.

        Around the pixel a point projects to, the nearest point of the pointmap is looked up, then refined below a pixel
        with the pointmap's slope there.
        """
        observed = np.full((len(points), 2), np.nan)
        xy, depth = self.project(points)
        column, row = np.floor((xy - self.corner) / self.pixel).T
        # Two pixels from the edge: one for the search, one for the slopes. Comparisons with nan are false.
        inside = np.flatnonzero((column >= 2) & (column < self.columns - 2) & (row >= 2) & (row < self.rows - 2))
        row, column = row[inside].astype(np.int64), column[inside].astype(np.int64)
        agrees = np.abs(self.depth[row, column] - depth[inside]) < DEPTH_TOLERANCE * depth[inside]
        seen, row, column = inside[agrees], row[agrees], column[agrees]

        around = np.array([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
        rows, columns = row + around[:, :1], column + around[:, 1:]
        distance = ((self.points[rows, columns] - points[seen].astype(np.float32)) ** 2).sum(axis=2)
        distance[self.depth[rows, columns] <= 0] = np.inf
        nearest = around[distance.argmin(axis=0)]
        row, column = row + nearest[:, 0], column + nearest[:, 1]

        # Least squares for the step (s, t) that makes point + s across + t down the point searched, by Cramer's rule.
        across = (self.points[row, column + 1] - self.points[row, column - 1]) / 2
        down = (self.points[row + 1, column] - self.points[row - 1, column]) / 2
        rest = points[seen] - self.points[row, column]
        pairs = ((across, across), (across, down), (down, down), (across, rest), (down, rest))
        aa, ad, dd, ar, dr = ((a * b).sum(axis=1) for a, b in pairs)
        determinant = aa * dd - ad * ad
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.stack([dd * ar - ad * dr, aa * dr - ad * ar], axis=1) / determinant[:, None]
        step = np.clip(np.nan_to_num(step, posinf=0, neginf=0), -1, 1)
        observed[seen] = self.corner + self.pixel * (np.stack([column, row], axis=1) + 0.5 + step)
        return observed


def _tracks(scene: Scene, placed: list[_Placed]) -> tuple[Float64, UInt8, Float64]:
    """Points (P, 3), their colours (P, 3), and the pixels (V, P, 2) where each view observes them, nan where not."""
    sure = np.stack([scene.prediction.confidence[view.index] * (view.depth > 0) for view in placed])
    chosen = np.flatnonzero(confident(sure, LEAST_SURE_PERCENT))
    if len(chosen) > CANDIDATES:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, CANDIDATES, replace=False))
    own, row, column = np.unravel_index(chosen, sure.shape)
    points = np.stack([view.points for view in placed])[own, row, column].astype(np.float64)
    colours = scene.prediction.rgb[[view.index for view in placed]][own, row, column]
    observed = np.stack([view.observe(points) for view in placed])
    for number, view in enumerate(placed):
        mine = own == number
        observed[number, mine] = view.corner + view.pixel * (np.stack([column, row], axis=1)[mine] + 0.5)
    kept = np.flatnonzero(np.isfinite(observed[..., 0]).sum(axis=0) > 1)
    if len(kept) < ENOUGH_TRACKS:
        kept = np.arange(len(points))
    # In the pixels' order, so that evenly thinned they cover what the photos cover.
    kept = kept[np.linspace(0, len(kept) - 1, min(len(kept), MOST_POINTS)).astype(np.int64)]
    return points[kept], colours[kept], observed[:, kept]


def _camera_numbers(placed: list[_Placed]) -> dict[tuple[tuple[int, int], bytes], int]:
    """COLMAP's camera number, from 1, for each different size and K: photos of one camera share it."""
    different = dict.fromkeys((view.size, view.K.tobytes()) for view in placed)
    return {key: number for number, key in enumerate(different, 1)}


def _cameras(placed: list[_Placed]) -> bytes:
    numbers = _camera_numbers(placed)
    content = struct.pack("<Q", len(numbers))
    for (size, K), number in numbers.items():
        fx, _, cx, _, fy, cy, *_ = np.frombuffer(K)
        content += struct.pack("<IiQQ4d", number, PINHOLE, *size, fx, fy, cx, cy)
    return content


def _images(placed: list[_Placed], observed: Float64) -> bytes:
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


def _points(placed: list[_Placed], points: Float64, colours: UInt8, observed: Float64) -> bytes:
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
