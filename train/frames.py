"""A folder of posed pictures with depth as a set for training and evaluation.

    frames = open_frames(Path("scans"))
    batch = frames.draw(seed=7, scenes=4, views=8, size=(224, 224))

Layouts, of the folder itself, or one for all folders in it, which are a scene each:

    ScanNet     color/*.jpg, depth/*.png (16 bit, mm), pose/*.txt (4 x 4), intrinsic/intrinsic_color.txt and
                intrinsic_depth.txt, pixel centres at whole numbers
    7-Scenes    frame-*.color.png, frame-*.depth.png (16 bit, mm), frame-*.pose.txt; camera-intrinsics.txt (3 x 3, pixel
                centres at whole numbers) where it is there, else the focal length of 585 for pictures 640 wide that
                the set's page names
    nerfstudio  transforms.json, whose frames have a depth_file_path; OpenGL axes
    COLMAP      sparse/0 or sparse (cameras and images, .bin or .txt), images/, and depth/ with a map for each picture,
                of the same name but .npy or .png; cameras without distortion

Depth is along z: integers in millimetres, floating-point numbers in the poses' own unit; 0, 65535 and what is not
finite is unknown. A frame without a picture, depth or a finite pose is left out. Nothing is read outside of the folder.
"""

from __future__ import annotations

import json
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from model.types import Float32, Float64, UInt8
from train.batch import Batch

MILLIMETRE = 0.001
UNKNOWN = 65535
KINECT = np.array([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]]), (640, 480)
COARSE = 48
"""Long side in pixels of what overlap is measured on."""
SAME_SURFACE = 0.05
"""Depths that differ by less than this share are of one surface: on the coarse grid a pixel spans centimetres."""
STARTS, CANDIDATES = 24, 48
"""How many first views of a set are tried, and for each how many frames near what it sees."""
KEPT_BYTES = 2 << 30
"""Of views in memory, so that they are decoded once: some 6,000 of 224 x 224 pixels, or 200,000 coarse ones."""
MOST_BYTES = 256 << 20
"""Of a text, model or depth map; a larger one is none."""

NOT_A_PICTURE = OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError
"""What Pillow raises over a broken picture."""


class FramesError(Exception):
    """This folder, or a file in it, cannot be used; one line says which and why."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one view lies on the disk, and its camera."""

    image: Path
    depth: Path
    K: Float64
    """(3, 3) pixels of a picture of `size`, pixel centres at + 0.5."""
    camera_to_world: Float64
    """(4, 4) rigid, OpenCV axes."""
    size: tuple[int, int] | None = None
    """(width, height) that K is for; None: the picture's own."""
    K_depth: Float64 | None = None
    """(3, 3) of the depth camera, at the same place, in pixels of the depth map; None: K, scaled to it."""
    unit: float = MILLIMETRE
    """Of depth maps of integers."""


@dataclass(frozen=True, slots=True)
class Posed:
    """One view, cut and resized."""

    rgb: UInt8
    """(H, W, 3)."""
    depth: Float32
    """(H, W) metres (or the poses' unit) along z; 0 where unknown."""
    intrinsics: Float64
    """(3, 3) pixels of `rgb`, the principal point in its middle."""
    camera_to_world: Float64
    """(4, 4)."""

    @property
    def valid(self) -> np.ndarray:
        """(H, W) bool."""
        return self.depth > 0


class Kept:
    """Views as they were read, while they fit: draws are at random, so none is better kept than another."""

    def __init__(self) -> None:
        self._views: dict[tuple[Path, Path, tuple[int, int], bool], Posed] = {}
        self._bytes = 0

    def read(self, frame: Frame, size: tuple[int, int], picture: bool) -> Posed:
        key = (frame.image, frame.depth, size, picture)
        view = self._views.get(key)
        if view is None:
            view = read(frame, size, picture=picture)
            more = view.rgb.nbytes + view.depth.nbytes
            if self._bytes + more <= KEPT_BYTES:
                self._views[key] = view
                self._bytes += more
        return view


@dataclass(frozen=True)
class Frames:
    """The frames of every scene, in the order they were taken."""

    folder: Path
    layout: str
    """Its name, one of LAYOUTS."""
    scenes: tuple[tuple[Frame, ...], ...]
    _kept: Kept = field(default_factory=Kept, repr=False, compare=False)

    def __len__(self) -> int:
        """Of all scenes."""
        return sum(len(scene) for scene in self.scenes)

    def split(self, share: float = 0.1) -> tuple[Frames, Frames]:
        """To train on and to hold out: the last scenes, or of a single scene the last frames."""
        if len(self.scenes) > 1:
            kept = len(self.scenes) - max(1, round(share * len(self.scenes)))
            parts = self.scenes[:kept], self.scenes[kept:]
        else:
            kept = len(self) - max(2, round(share * len(self)))
            parts = (self.scenes[0][:kept],), (self.scenes[0][kept:],)
        return tuple(replace(self, scenes=part, _kept=Kept()) for part in parts)

    def draw(
        self,
        seed: int,
        scenes: int,
        views: int,
        size: tuple[int, int],
        overlap: tuple[float, float] = (0.25, 0.9),
    ) -> Batch:
        """`scenes` sets of `views` views of (width, height), each of one scene; the same for the same seed."""
        sets = [self.choose([seed, index], views, size, overlap) for index in range(scenes)]
        return collate([[self._kept.read(frame, size, True) for frame in chosen] for chosen in sets])

    def choose(
        self, seed: int | Sequence[int], views: int, size: tuple[int, int], overlap: tuple[float, float] = (0.25, 0.9)
    ) -> list[Frame]:
        """Frames of one scene, each of which shares between `overlap` of its crop to `size` with the earlier one that
        it shares most with (`shared`). Raises FramesError where such were not found."""
        rng = np.random.default_rng(seed)
        width, height = (max(1, round(side * COARSE / max(size))) for side in size)
        for _ in range(STARTS):
            scene = self.scenes[rng.integers(len(self.scenes))]
            chosen = self._around(scene, rng, views, (width, height), overlap)
            if len(chosen) == views:
                return chosen
        raise FramesError(f"{self.folder}: found no {views} views that share {overlap[0]:.0%} to {overlap[1]:.0%}")

    def _around(
        self,
        scene: tuple[Frame, ...],
        rng: np.random.Generator,
        views: int,
        size: tuple[int, int],
        overlap: tuple[float, float],
    ) -> list[Frame]:
        first = scene[rng.integers(len(scene))]
        depth = self._kept.read(first, size, False).depth
        if not depth.any():
            return []
        # Who looks at the same place comes first, more or less.
        reach = float(np.median(depth[depth > 0]))
        poses = np.stack([frame.camera_to_world for frame in scene])
        looked_at = poses[:, :3, 3] + reach * poses[:, :3, 2]
        away = np.linalg.norm(looked_at - first.camera_to_world[:3, 3] - reach * first.camera_to_world[:3, 2], axis=1)
        order = np.argsort(away / reach + 0.5 * rng.gumbel(size=len(scene)))
        chosen = [first]
        for index in order[:CANDIDATES]:
            if len(chosen) == views:
                break
            candidate = self._kept.read(scene[index], size, False)
            most = max(shared(candidate, self._kept.read(frame, size, False)) for frame in chosen)
            if scene[index] is not first and overlap[0] <= most <= overlap[1]:
                chosen.append(scene[index])
        return chosen


def open_frames(folder: Path) -> Frames:
    """The set in a folder. Raises FramesError."""
    if not folder.is_dir():
        raise FramesError(f"{folder} is not a folder")
    root = folder.resolve()
    for scenes in ([root], sorted(path for path in root.iterdir() if path.is_dir())):
        for layout, (is_one, frames_of) in LAYOUTS.items():
            found = [tuple(frames_of(inside(root, path))) for path in scenes if is_one(path)]
            kept = tuple(scene for scene in found if scene)
            if kept:
                return Frames(folder, layout, kept)
            if found:
                raise FramesError(f"{folder}: looks like {layout}, but no frame has a picture, depth and a finite pose")
    raise FramesError(
        f"{folder}: found neither color/, depth/, pose/ and intrinsic/ (ScanNet), nor frame-*.pose.txt (7-Scenes), "
        "nor transforms.json (nerfstudio), nor sparse/ with cameras and images (COLMAP), nor folders with one of these"
    )


def collate(sets: Sequence[Sequence[Posed]]) -> Batch:
    """B sets of N views of one size."""

    def stacked(of: Callable[[Posed], np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.stack([of(view) for view in views]) for views in sets]))

    depth = stacked(lambda view: view.depth)
    return Batch(
        images=stacked(lambda view: view.rgb).movedim(-1, 2).float() / 127.5 - 1,
        depth=depth,
        valid=depth > 0,
        intrinsics=stacked(lambda view: view.intrinsics).float(),
        camera_to_world=stacked(lambda view: view.camera_to_world).float(),
    )


def shared(one: Posed, two: Posed) -> float:
    """The smaller share, 0 to 1, of one view's pixels whose surface the other sees too; places whose depth is unknown
    in either do not count."""
    return min(_seen(one, two), _seen(two, one))


def _seen(one: Posed, two: Posed) -> float:
    height, width = one.depth.shape
    row, column = np.nonzero(one.valid)
    rays = np.stack([column + 0.5, row + 0.5, np.ones(len(row))]) * one.depth[row, column]
    into = np.linalg.inv(two.camera_to_world) @ one.camera_to_world
    local = into[:3, :3] @ np.linalg.inv(one.intrinsics) @ rays + into[:3, 3:]
    z = np.maximum(local[2], 1e-9)
    x, y = (two.intrinsics[:2] @ (local / z)).clip(-1e6, 1e6)
    inside_picture = (local[2] > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    seen = two.depth[y[inside_picture].astype(int), x[inside_picture].astype(int)]
    same = np.abs(seen / z[inside_picture] - 1) < SAME_SURFACE
    counted = len(row) - (seen == 0).sum()
    return float(same.sum() / counted) if counted else 0.0


# ---------------------------------------------------------------- files


def read(frame: Frame, size: tuple[int, int], *, picture: bool = True) -> Posed:
    """A frame as (width, height): the largest crop of that shape about the principal point, resized.

    Depth is taken from the nearest place of the map, never mixed over an edge. picture: False leaves `rgb` black.
    Raises FramesError.
    """
    width, height = size
    with _opened(frame.image) as image:
        seen = image.size
        K = _fitted(frame, seen)
        (cx, cy), (w, h) = K[:2, 2], seen
        pixel = 2 * min(cx / width, (w - cx) / width, cy / height, (h - cy) / height)  # of ours, in the picture's
        reach = np.array([width, height]) * pixel / 2
        (left, top), (right, bottom) = np.maximum(K[:2, 2] - reach, 0), np.minimum(K[:2, 2] + reach, seen)
        rgb = np.zeros((height, width, 3), np.uint8)
        if picture:
            try:
                cut = image.convert("RGB").resize(size, Image.Resampling.LANCZOS, (left, top, right, bottom))
            except NOT_A_PICTURE as error:
                raise FramesError(f"{frame.image}: not a whole picture ({error})") from None
            rgb = np.array(cut)
    whole = _depth(frame.depth, frame.unit)
    K_depth = frame.K_depth
    if K_depth is None:
        K_depth = np.diag([whole.shape[1] / w, whole.shape[0] / h, 1]) @ K
    # Both cameras look along the same axes from the same place.
    x = (np.arange(width) + 0.5 - width / 2) * pixel / K[0, 0] * K_depth[0, 0] + K_depth[0, 2]
    y = (np.arange(height) + 0.5 - height / 2) * pixel / K[1, 1] * K_depth[1, 1] + K_depth[1, 2]
    known = ((y >= 0) & (y < whole.shape[0]))[:, None] & (x >= 0) & (x < whole.shape[1])
    # The least bit further: a place right between two pixels is in the second one, however it was rounded.
    column, row = ((at + 1e-6).clip(0, side - 1).astype(int) for at, side in ((x, whole.shape[1]), (y, whole.shape[0])))
    depth = np.where(known, whole[row[:, None], column], 0).astype(np.float32)
    own = np.array([[K[0, 0] / pixel, 0, width / 2], [0, K[1, 1] / pixel, height / 2], [0, 0, 1]])
    return Posed(rgb, depth, own, frame.camera_to_world)


def _fitted(frame: Frame, size: tuple[int, int]) -> Float64:
    """K for a picture of (width, height). Raises FramesError where it cannot be of this picture."""
    K = frame.K * 1.0
    if frame.size is not None:
        K[:2] *= np.divide(size, frame.size)[:, None]
    middle, focal = K[:2, 2] / size, np.diag(K)[:2] / size
    if not ((middle > 0.25) & (middle < 0.75) & (focal > 0.05) & (focal < 100)).all():
        raise FramesError(f"{frame.image}: its {size[0]} x {size[1]} pixels are not those of its camera")
    return K


def inside(root: Path, path: Path) -> Path:
    """The path itself, if what it leads to lies in the folder `root`. Raises FramesError."""
    if not path.resolve().is_relative_to(root):
        raise FramesError(f"{path}: leads out of the folder")
    return path


def _opened(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(path, formats=["JPEG", "PNG", "WEBP"])
        except NOT_A_PICTURE as error:
            raise FramesError(f"{path}: not a picture ({error})") from None


def _depth(path: Path, unit: float) -> np.ndarray:
    """(h, w) of float64; 0 where unknown."""
    if path.suffix == ".npy":
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)  # a header that promises more than there is fails
        except (OSError, ValueError, EOFError) as error:
            raise FramesError(f"{path}: not an array ({error})") from None
    else:
        with _opened(path) as image:
            if image.mode not in ("I;16", "I"):
                raise FramesError(f"{path}: not a depth map of 16 bits, but of mode {image.mode}")
            try:
                values = np.asarray(image)
            except NOT_A_PICTURE as error:
                raise FramesError(f"{path}: not a whole picture ({error})") from None
    values = values.squeeze()
    if values.ndim != 2 or values.dtype.kind not in "uif" or values.nbytes > MOST_BYTES:
        raise FramesError(f"{path}: not a depth map, but {values.dtype} of shape {values.shape}")
    if values.dtype.kind == "f":
        return np.where(np.isfinite(values) & (values > 0), values, 0.0)
    return np.where((values > 0) & (values != UNKNOWN), values * unit, 0.0)


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FramesError(f"{path}: too large")
        return path.read_bytes()
    except OSError as error:
        raise FramesError(f"{path}: {error.strerror}") from None


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError:
        raise FramesError(f"{path}: not a text") from None


def _matrix(path: Path, side: int) -> Float64:
    """The first `side` rows and columns of a square matrix of numbers."""
    try:
        numbers = np.array(_text(path).split(), np.float64)
    except ValueError:
        raise FramesError(f"{path}: holds something else than numbers") from None
    whole = math.isqrt(len(numbers))
    if whole * whole != len(numbers) or whole < side:
        raise FramesError(f"{path}: not a matrix of {side} x {side}, but {len(numbers)} numbers")
    return numbers.reshape(whole, whole)[:side, :side]


def _lens(path: Path) -> Float64:
    """K of a file that counts pixel centres as whole numbers."""
    K = _matrix(path, 3)
    return _camera(path, K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5)


def _camera(path: Path, fx: float, fy: float, cx: float, cy: float) -> Float64:
    """K of what the file at `path` tells."""
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
        raise FramesError(f"{path}: not a camera's focal lengths and middle: {fx:g}, {fy:g}, {cx:g}, {cy:g}")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def _pose(pose: Float64, path: Path) -> Float64 | None:
    """The pose where it is rigid, None where it is not finite: tracking was lost there."""
    if not np.isfinite(pose).all():
        return None
    rotation = pose[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 0.01 or np.linalg.det(rotation) < 0:
        raise FramesError(f"{path}: not a rigid pose")
    return pose


def _natural(path: Path) -> list[Any]:
    """Sorts 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


# ---------------------------------------------------------------- layouts


def _scannet(folder: Path) -> Iterator[Frame]:
    K = _lens(inside(folder, folder / "intrinsic" / "intrinsic_color.txt"))
    of_depth = folder / "intrinsic" / "intrinsic_depth.txt"
    K_depth = _lens(inside(folder, of_depth)) if of_depth.exists() else None
    for path in sorted((folder / "pose").glob("*.txt"), key=_natural):
        pose = _pose(_matrix(inside(folder, path), 4), path)
        pictures = [folder / "color" / f"{path.stem}{suffix}" for suffix in (".jpg", ".png")]
        depth = folder / "depth" / f"{path.stem}.png"
        image = next((picture for picture in pictures if picture.exists()), None)
        if pose is not None and image is not None and depth.exists():
            yield Frame(inside(folder, image), inside(folder, depth), K, pose, K_depth=K_depth)


def _seven_scenes(folder: Path) -> Iterator[Frame]:
    own = folder / "camera-intrinsics.txt"
    K, size = (_lens(inside(folder, own)), None) if own.exists() else KINECT
    for path in sorted(folder.glob("frame-*.pose.txt"), key=_natural):
        pose = _pose(_matrix(inside(folder, path), 4), path)
        image, depth = (folder / path.name.replace("pose.txt", f"{kind}.png") for kind in ("color", "depth"))
        if pose is not None and image.exists() and depth.exists():
            yield Frame(inside(folder, image), inside(folder, depth), K, pose, size)


def _nerfstudio(folder: Path) -> Iterator[Frame]:
    path = inside(folder, folder / "transforms.json")
    try:
        told = json.loads(_text(path))
        for one in told["frames"]:
            camera = told | one
            if any(camera.get(name) for name in ("k1", "k2", "k3", "k4", "p1", "p2")):
                raise FramesError(f"{path}: its pictures are distorted; undistort them first")
            K = _camera(path, *(float(camera[name]) for name in ("fl_x", "fl_y", "cx", "cy")))
            pose = _pose(np.array(one["transform_matrix"], np.float64).reshape(4, 4) * [1, -1, -1, 1], path)
            image, depth = folder / one["file_path"], folder / one.get("depth_file_path", "")
            if pose is not None and image.is_file() and depth.is_file():
                yield Frame(
                    inside(folder, image),
                    inside(folder, depth),
                    K,
                    pose,
                    (int(camera["w"]), int(camera["h"])),
                    unit=float(told.get("integer_depth_scale", MILLIMETRE)),
                )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FramesError(f"{path}: not what nerfstudio writes ({error!r})") from None


def _colmap(folder: Path) -> Iterator[Frame]:
    model = inside(folder, _colmap_model(folder))
    suffix = ".bin" if (model / "cameras.bin").exists() else ".txt"
    cameras, images = (inside(folder, model / f"{name}{suffix}") for name in ("cameras", "images"))
    path = cameras
    try:
        lenses = {number: lens for number, *lens in (_cameras_bin if suffix == ".bin" else _cameras_txt)(cameras)}
        path = images
        for camera, numbers, name in (_images_bin if suffix == ".bin" else _images_txt)(images):
            pose = np.eye(4)
            if np.isfinite(numbers).all():
                rotation = Rotation.from_quat(numbers[:4], scalar_first=True).as_matrix()
                pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ numbers[4:]
                image, depth = folder / "images" / name, _depth_beside(folder, name)
                if image.is_file() and depth is not None:
                    K, size = lenses[camera]
                    yield Frame(inside(folder, image), inside(folder, depth), K, pose, size)
    except (KeyError, IndexError, ValueError, struct.error) as error:
        raise FramesError(f"{path}: not what COLMAP writes ({error!r})") from None


def _colmap_model(folder: Path) -> Path:
    """Where its files are, or would be."""
    models = [folder / "sparse" / "0", folder / "sparse", folder]
    return next((m for m in models if any((m / f"images{suffix}").exists() for suffix in (".bin", ".txt"))), models[0])


def _depth_beside(folder: Path, name: str) -> Path | None:
    stem = Path(name).with_suffix("").as_posix()
    found = (folder / "depth" / f"{start}{suffix}" for start in (stem, name) for suffix in (".npy", ".png"))
    return next((path for path in found if path.is_file()), None)


PINHOLES = {0: "SIMPLE_PINHOLE", 1: "PINHOLE"}
"""COLMAP's models without distortion, by their numbers."""


def _pinhole(
    path: Path, model: str, size: tuple[int, int], numbers: Sequence[float]
) -> tuple[Float64, tuple[int, int]]:
    """K, and the size of the pictures it is for."""
    if model not in PINHOLES.values():
        raise FramesError(f"{path}: a camera of model {model}; undistort the pictures first")
    fx, fy, cx, cy = numbers if model == "PINHOLE" else (numbers[0], *numbers)
    return _camera(path, fx, fy, cx, cy), size


def _cameras_txt(path: Path) -> Iterator[tuple[Any, ...]]:
    for line in _text(path).splitlines():
        if line.strip() and not line.startswith("#"):
            number, model, width, height, *numbers = line.split()
            yield int(number), *_pinhole(path, model, (int(width), int(height)), [float(x) for x in numbers])


def _images_txt(path: Path) -> Iterator[tuple[int, Float64, str]]:
    lines = [line for line in _text(path).splitlines() if not line.startswith("#")]
    for line in lines[::2]:  # the other ones hold the picture's points
        if line.strip():
            _, *numbers, camera, name = line.split(maxsplit=9)
            yield int(camera), np.array(numbers, np.float64), name


def _cameras_bin(path: Path) -> Iterator[tuple[Any, ...]]:
    data = _bytes(path)
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        number, model, width, height = struct.unpack_from("<iiQQ", data, at)
        numbers = struct.unpack_from(f"<{3 if model == 0 else 4}d", data, at + 24)
        yield number, *_pinhole(path, PINHOLES.get(model, f"number {model}"), (width, height), numbers)
        at += 24 + 8 * len(numbers)


def _images_bin(path: Path) -> Iterator[tuple[int, Float64, str]]:
    data = _bytes(path)
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        _, *numbers, camera = struct.unpack_from("<i7di", data, at)
        end = data.index(b"\0", at + 64)
        yield camera, np.array(numbers), data[at + 64 : end].decode()
        (points,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9 + 24 * points


LAYOUTS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Iterator[Frame]]]] = {
    "ScanNet": (lambda folder: (folder / "pose").is_dir() and (folder / "intrinsic").is_dir(), _scannet),
    "7-Scenes": (lambda folder: any(folder.glob("frame-*.pose.txt")), _seven_scenes),
    "nerfstudio": (lambda folder: (folder / "transforms.json").is_file(), _nerfstudio),
    "COLMAP": (lambda folder: _colmap_model(folder).is_dir(), _colmap),
}
