"""Structure from motion for a handful of photos: cameras and sparse points, with thresholds made for few views.

SIFT (Lowe 2004) with RootSIFT distances, mutual nearest neighbours, RANSAC on epipolar geometry, incremental mapping
and bundle adjustment, the last three by COLMAP (Schonberger and Frahm, CVPR 2016) in memory, nothing on disk.
Focal lengths without EXIF are chosen by their posterior: reprojection cost plus a prior on what cameras usually have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray

from model.parallel import compiled, each
from model.types import Float32, Float64, Tick, UInt8, Views

PRIOR_RATIO = 0.84
"""Focal length over the photo's long side where nothing is known: between a phone's main lens and a webcam's."""
PRIOR_SPREAD = 0.12
"""Standard deviation of the logarithm of that ratio."""
SYSTEMATIC = 0.06
"""Standard deviation of log focal that bundle adjustment cannot get below on real lenses without distortion terms."""
EXIF_SPREAD = 0.04
"""Standard deviation of the logarithm of an EXIF focal length: rounding, crop and focus breathing."""
GUESSES = (0.84, 0.70, 1.05)
"""Ratios tried in turn when mapping without EXIF."""
PLAUSIBLE_RATIO = (0.75, 1.05)
ALL_PAIRS_UP_TO = 12
"""Up to so many views every pair is matched; above, the most alike neighbours of each."""
NEIGHBOURS = 10
FLAT_TOLERANCE = 0.0025
"""Share of the photo's side that a match may miss a homography by."""
MANY_VIEWS = 8
"""Above, the photos settle the focal length from any guess."""
RIVAL = 0.9
"""A solution from another guess counts as a rival if it explains this share of what the best one does."""


@dataclass(frozen=True, slots=True)
class Pose:
    """One placed view."""

    K: Float64
    """(3, 3) intrinsics in pixels of `View.image`, corner origin."""
    R: Float64
    """(3, 3) camera from world."""
    t: Float64
    """(3,) camera from world."""
    points: NDArray[np.int64]
    """(p,) indices of the sparse points it sees."""
    pixels: Float64
    """(p, 2) where it sees them, pixels of `View.image`, corner origin."""
    inlier_share: float
    """Share of its verified matches to other placed views that became points."""

    @property
    def centre(self) -> Float64:
        return -self.R.T @ self.t


@dataclass(frozen=True, slots=True)
class Solution:
    """What structure from motion found, in an arbitrary world frame and scale."""

    poses: tuple[Pose | None, ...]
    """One a view; None: not placed."""
    points: Float64
    """(P, 3) sparse points."""
    error: float
    """Mean reprojection error in pixels of `View.image`."""
    focal_source: str
    """`exif`, `refined` (the photos decide) or `prior` (they could not)."""
    focal_spread: float
    """Standard deviation of log focal that remains."""
    flat_share: float
    """Share of the matches that one homography explains, in the pair of placed views where it is lowest: near 1 where
    all was flat, or the camera only turned."""
    rotation_disagreement: float
    """Largest difference in degrees of rotations to a rival solution from another focal guess; 0 without one."""


@dataclass(frozen=True, slots=True)
class Features:
    """Keypoints of one photo, by falling scale."""

    xy: Float32
    """(n, 2) pixels of `View.image`, corner origin."""
    descriptors: Float32
    """(n, 128) RootSIFT, unit length."""


Pairs = dict[tuple[int, int], pycolmap.TwoViewGeometry]


def detect(image: UInt8, most: int) -> Features:
    """SIFT on an (h, w, 3) RGB photo: at most `most` keypoints, the largest first."""
    options = pycolmap.FeatureExtractionOptions()
    options.use_gpu = False
    options.num_threads = 1
    options.sift.max_num_features = most
    # Small photos are enlarged first: their finest structures would be lost otherwise.
    options.sift.first_octave = -1 if max(image.shape[:2]) <= 800 else 0
    # Dark or flat photos keep their features: contrast is a matter of exposure.
    grey = _even_exposure(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    keypoints, descriptors = pycolmap.FeatureExtractor.create(options).extract_from_uint8_array(grey)
    if len(keypoints) == 0:
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    frames = pycolmap.keypoints_to_matrix(keypoints)
    data = descriptors.data.astype(np.float32)
    order = np.argsort(-np.linalg.norm(frames[:, 2:], axis=1) if frames.shape[1] > 4 else -frames[:, 2], kind="stable")
    data /= np.maximum(np.linalg.norm(data, axis=1, keepdims=True), 1e-9)
    return Features(frames[order, :2].astype(np.float32), data[order])


def match(a: Float32, b: Float32, ratio: float = 0.8, farthest: float = 0.7) -> np.ndarray:
    """(m, 2) uint32 mutual nearest neighbours between unit descriptors (n, 128), by angle, with Lowe's ratio test."""
    if len(a) < 2 or len(b) < 2:
        return np.zeros((0, 2), np.uint32)
    similarity = a @ b.T
    nearest, best, second, backwards = _two_nearest(similarity)
    angle = np.arccos(np.clip(best, -1.0, 1.0))
    next_angle = np.arccos(np.clip(second, -1.0, 1.0))
    good = (backwards[nearest] == np.arange(len(a))) & (angle < ratio * next_angle) & (angle < farthest)
    return np.stack([np.flatnonzero(good), nearest[good]], axis=1).astype(np.uint32)


@compiled
def _two_nearest(similarity):  # noqa: ANN001, ANN202
    """Of each row the place and value of the largest entry and the value of the next, of each column the place of the
    largest, in one pass: the matrix is larger than any cache."""
    rows, columns = similarity.shape
    nearest = np.zeros(rows, np.int64)
    best = np.empty(rows, np.float32)
    second = np.empty(rows, np.float32)
    backwards = np.zeros(columns, np.int64)
    highest = np.full(columns, -np.inf, np.float32)
    for i in range(rows):
        first, next_one, place = np.float32(-np.inf), np.float32(-np.inf), 0
        for j in range(columns):
            value = similarity[i, j]
            if value > highest[j]:
                highest[j] = value
                backwards[j] = i
            if value > next_one:
                if value > first:
                    next_one, first, place = first, value, j
                else:
                    next_one = value
        nearest[i], best[i], second[i] = place, first, next_one
    return nearest, best, second, backwards


def solve(views: Views, tick: Tick) -> Solution | None:
    """Cameras and sparse points of the largest connected set of photos; None where no two are related.

    Where photos are related but no depth comes of it (one photo twice), the solution has no points.
    """
    most = 4096 if len(views) <= ALL_PAIRS_UP_TO else 2048
    features = each(lambda view: detect(view.image, most), views.views, lambda done: tick(0.35 * done))
    cameras = _cameras(views)
    pairs = _match_all(features, cameras, lambda done: tick(0.35 + 0.25 * done))
    if not pairs:
        return None
    known = all(camera.has_prior_focal_length for camera in cameras)
    factors = [guess / PRIOR_RATIO for guess in (GUESSES[:1] if known or len(views) > MANY_VIEWS else GUESSES)]
    models = each(
        lambda factor: _map(features, _scaled(cameras, factor), pairs), factors, lambda done: tick(0.6 + 0.3 * done)
    )
    found = [model for model in models if model is not None]
    if not found:
        nothing = (None,) * len(views)
        flat_share = _flat_share(features, pairs)
        return Solution(nothing, np.zeros((0, 3)), 0.0, "prior", PRIOR_SPREAD, flat_share, 0.0)
    best = max(found, key=_merit)
    rivals = [m for m in found if m is not best and _support(m) > RIVAL * _support(best)]
    disagreement = max((_rotation_difference(best, rival) for rival in rivals), default=0.0)
    source, spread = _choose_focal(best, cameras, lambda done: tick(0.9 + 0.1 * done))
    placed = {image_id - 1 for image_id in best.reg_image_ids()}
    inner = {pair: geometry for pair, geometry in pairs.items() if placed.issuperset(pair)}
    poses, points = _placed(best, len(views), inner)
    error = float(np.sqrt(_squared_errors(best)).mean())
    return Solution(poses, points, error, source, spread, _flat_share(features, inner), disagreement)


def _even_exposure(grey: UInt8) -> UInt8:
    low, high = np.percentile(grey, (1, 99))
    if high - low >= 128 or high - low < 8:
        return grey
    return np.clip((grey.astype(np.float32) - low) * (255.0 / (high - low)), 0, 255).astype(np.uint8)


def _cameras(views: Views) -> list[pycolmap.Camera]:
    """One COLMAP camera a view; equal camera_id where the focal length is shared."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, view in enumerate(views.views):
        key = (view.camera, view.original_size) if views.shared_focal else (index,)
        groups.setdefault(key, []).append(index)
    cameras: list[pycolmap.Camera] = [pycolmap.Camera()] * len(views)
    for number, members in enumerate(groups.values()):
        view = views.views[members[0]]
        height, width = view.image.shape[:2]
        exif = [f for i in members if (f := views.views[i].exif_focal) is not None]
        scale = width / view.original_size[0]
        focal = float(np.median(exif)) * scale if exif else PRIOR_RATIO * max(width, height)
        for index in members:
            camera = pycolmap.Camera.create_from_model_name(number + 1, "SIMPLE_PINHOLE", focal, width, height)
            camera.has_prior_focal_length = bool(exif)
            cameras[index] = camera
    return cameras


def _scaled(cameras: Sequence[pycolmap.Camera], factor: float) -> list[pycolmap.Camera]:
    """Copies, the focal lengths that are guesses multiplied by `factor`."""
    out = []
    for camera in cameras:
        focal = camera.focal_length * (1.0 if camera.has_prior_focal_length else factor)
        copy = pycolmap.Camera.create_from_model_name(
            camera.camera_id, "SIMPLE_PINHOLE", focal, camera.width, camera.height
        )
        copy.has_prior_focal_length = camera.has_prior_focal_length
        out.append(copy)
    return out


def _match_all(features: Sequence[Features], cameras: Sequence[pycolmap.Camera], tick: Tick) -> Pairs:
    """Matches that one epipolar geometry explains, of every pair that has enough of them."""

    def verified(pair: tuple[int, int]) -> pycolmap.TwoViewGeometry | None:
        i, j = pair
        found = match(features[i].descriptors, features[j].descriptors)
        options = pycolmap.TwoViewGeometryOptions()
        options.detect_watermark = False
        options.ransac.random_seed = 1
        # Matches miss by more pixels where a photo has more of them.
        options.ransac.max_error = 4.0 * max(1.0, max(cameras[i].width, cameras[i].height) / 1000.0)
        if len(found) < options.min_num_inliers:
            return None
        ends = [features[k].xy.astype(np.float64) for k in pair]
        geometry = pycolmap.estimate_two_view_geometry(cameras[i], ends[0], cameras[j], ends[1], found, options)
        return geometry if len(geometry.inlier_matches) >= options.min_num_inliers else None

    chosen = _choose_pairs(features)
    results = each(verified, chosen, tick)
    return {pair: geometry for pair, geometry in zip(chosen, results) if geometry is not None}


def _choose_pairs(features: Sequence[Features]) -> list[tuple[int, int]]:
    every = list(combinations(range(len(features)), 2))
    if len(features) <= ALL_PAIRS_UP_TO:
        return every
    # The largest structures alone tell which photos look at the same things, at a tenth of the cost.
    alike = np.zeros((len(features), len(features)))
    for i, j in every:
        alike[i, j] = alike[j, i] = len(match(features[i].descriptors[:400], features[j].descriptors[:400], 0.9, 1.0))
    nearest = np.argsort(-alike, axis=1, kind="stable")[:, :NEIGHBOURS]
    return sorted({(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row if i != j})


def _map(
    features: Sequence[Features], cameras: Sequence[pycolmap.Camera], pairs: Pairs
) -> pycolmap.Reconstruction | None:
    """Incremental mapping with fixed focal lengths; the model with most views, or None."""
    database = pycolmap.Database.open(":memory:")
    for camera in {camera.camera_id: camera for camera in cameras}.values():
        database.write_camera(camera, use_camera_id=True)
        rig = pycolmap.Rig()
        rig.rig_id = camera.camera_id
        rig.add_ref_sensor(camera.sensor_id)
        database.write_rig(rig, use_rig_id=True)
    for index, (photo, camera) in enumerate(zip(features, cameras)):
        image = pycolmap.Image(name=str(index), camera_id=camera.camera_id, image_id=index + 1)
        database.write_image(image, use_image_id=True)
        frame = pycolmap.Frame()
        frame.frame_id = index + 1
        frame.rig_id = camera.camera_id
        frame.add_data_id(image.data_id)
        database.write_frame(frame, use_frame_id=True)
        database.write_keypoints(index + 1, photo.xy)
    for (i, j), geometry in pairs.items():
        database.write_two_view_geometry(i + 1, j + 1, geometry)
    for angle in (4.0, 1.5):
        models = _run_mapper(database, angle, {camera.camera_id for camera in cameras})
        if models:
            return max(models, key=_merit)
    return None


def _run_mapper(database: pycolmap.Database, angle: float, constant: set[int]) -> list[pycolmap.Reconstruction]:
    options = pycolmap.IncrementalPipelineOptions()
    options.min_num_matches = 10
    options.min_model_size = 2
    options.extract_colors = False
    options.random_seed = 1
    options.max_num_models = 5
    options.num_threads = 1
    options.constant_cameras = constant
    options.ba_refine_focal_length = False
    options.ba_refine_extra_params = False
    options.mapper.abs_pose_refine_focal_length = False
    options.mapper.abs_pose_refine_extra_params = False
    options.mapper.init_min_num_inliers = 30
    options.mapper.init_min_tri_angle = angle
    options.mapper.abs_pose_min_num_inliers = 12
    options.mapper.filter_min_tri_angle = min(1.5, angle / 2)
    options.triangulation.min_angle = min(1.5, angle / 2)
    # Two photos have only two-view tracks.
    options.triangulation.ignore_two_view_tracks = False
    options.mapper.random_seed = 1
    options.triangulation.random_seed = 1
    manager = pycolmap.ReconstructionManager()
    pipeline = pycolmap.IncrementalPipeline(options, database, manager)
    pipeline.run()
    return [model for k in range(manager.size()) if (model := manager.get(k)).num_reg_images() >= 2]


def _merit(model: pycolmap.Reconstruction) -> tuple[int, float]:
    return model.num_reg_images(), _support(model)


def _support(model: pycolmap.Reconstruction) -> float:
    """How much a model explains: its observations, each worth less the worse it fits."""
    model.update_point_3d_errors()
    return float(sum(point.track.length() * np.exp(-point.error / 2.0) for point in model.points3D.values()))


def _rotation_difference(a: pycolmap.Reconstruction, b: pycolmap.Reconstruction) -> float:
    shared = sorted(set(a.reg_image_ids()) & set(b.reg_image_ids()))
    if len(shared) < 2:
        return 0.0
    turns = []
    for model in (a, b):
        rotations = [model.image(i).cam_from_world().rotation.matrix() for i in shared]
        turns.append([rotation @ rotations[0].T for rotation in rotations[1:]])
    cosines = [(np.trace(p @ q.T) - 1.0) / 2.0 for p, q in zip(*turns)]
    return float(np.degrees(np.arccos(np.clip(min(cosines), -1.0, 1.0))))


def _adjust(model: pycolmap.Reconstruction, free: Sequence[int] = ()) -> float:
    """Bundle adjustment with a robust loss; focal lengths move only for cameras in `free`. Returns the Cauchy cost."""
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
    for camera_id in model.cameras:
        if camera_id not in free:
            config.set_constant_cam_intrinsics(camera_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_extra_params = False
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = 1.0
    options.ceres.solver_options.max_num_iterations = 50
    options.ceres.solver_options.function_tolerance = 1e-6
    pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    return float(np.log1p(_squared_errors(model)).sum())


def _squared_errors(model: pycolmap.Reconstruction) -> Float64:
    """Squared reprojection errors of all observations, in pixels."""
    squared = []
    for image in model.images.values():
        if not image.has_pose:
            continue
        seen = [p for p in image.points2D if p.has_point3D()]
        if not seen:
            continue
        world = np.array([model.points3D[p.point3D_id].xyz for p in seen])
        pose = image.cam_from_world().matrix()
        local = world @ pose[:, :3].T + pose[:, 3]
        camera = model.cameras[image.camera_id]
        centre = np.array([camera.principal_point_x, camera.principal_point_y])
        projected = camera.focal_length * local[:, :2] / local[:, 2:] + centre
        squared.append(((projected - np.array([p.xy for p in seen])) ** 2).sum(axis=1))
    return np.concatenate(squared) if squared else np.zeros(0)


def _choose_focal(model: pycolmap.Reconstruction, cameras: Sequence[pycolmap.Camera], tick: Tick) -> tuple[str, float]:
    """Set the model's focal lengths to the most probable ones and adjust it; returns their source and log spread.

    Bundle adjustment with free focal lengths says what the photos prefer, the curvature of its cost how strongly. That
    is weighed against the prior (EXIF, or what cameras usually have). The photos' opinion is never taken for surer than
    SYSTEMATIC: lens distortion and rolling shutters bend it in a way that more points do not mend.
    """
    base = {camera.camera_id: camera for camera in cameras}
    placed = [model.image(i).camera_id for i in model.reg_image_ids()]
    known = all(base[i].has_prior_focal_length for i in placed)
    spread = EXIF_SPREAD if known else PRIOR_SPREAD
    moving = sorted({i for i in placed if known or not base[i].has_prior_focal_length})
    free = [i for i in moving if placed.count(i) >= 3] or moving
    wanted = pycolmap.Reconstruction(model)
    lowest = _adjust(wanted, free)
    tick(0.4)
    offsets = {i: float(np.log(wanted.cameras[i].focal_length / base[i].focal_length)) for i in free}
    common = float(np.mean(list(offsets.values())))
    curvature = []
    for step in (-0.06, 0.06):
        trial = pycolmap.Reconstruction(wanted)
        for i in moving:
            trial.cameras[i].focal_length = base[i].focal_length * float(np.exp(offsets.get(i, common) + step))
        curvature.append(2.0 * (_adjust(trial) - lowest) / step**2)
        tick(0.6 if step < 0 else 0.8)
    # Twice the cost over the noise is a chi-square; errors of one track and one view go together: a tenth counts.
    noise = max(float(np.median(_squared_errors(wanted))), 0.05)
    precision = max(min(curvature), 0.0) / noise / 10.0
    precision = 1.0 / (1.0 / max(precision, 1e-6) + SYSTEMATIC**2)
    trust = precision / (precision + spread**-2)
    for i in moving:
        model.cameras[i].focal_length = base[i].focal_length * float(np.exp(trust * offsets.get(i, common)))
    _adjust(model)
    remaining = float((precision + spread**-2) ** -0.5)
    return "exif" if known else ("refined" if trust > 0.5 else "prior"), remaining


def _placed(model: pycolmap.Reconstruction, count: int, pairs: Pairs) -> tuple[tuple[Pose | None, ...], Float64]:
    """The model's poses, one a view, and its points (P, 3). `pairs` are those between placed views."""
    ids = sorted(model.point3D_ids())
    row = {point_id: k for k, point_id in enumerate(ids)}
    points = np.array([model.points3D[i].xyz for i in ids]).reshape(-1, 3)
    matched: dict[int, set[int]] = {}
    for pair, geometry in pairs.items():
        for view, keypoints in zip(pair, geometry.inlier_matches.T):
            matched.setdefault(view, set()).update(keypoints.tolist())
    poses: list[Pose | None] = [None] * count
    for image in model.images.values():
        if not image.has_pose:
            continue
        view = image.image_id - 1
        seen = [(row[p.point3D_id], p.xy) for p in image.points2D if p.has_point3D()]
        matrix = image.cam_from_world().matrix()
        poses[view] = Pose(
            # Copies: COLMAP's arrays may outlive what they point into.
            K=model.cameras[image.camera_id].calibration_matrix().copy(),
            R=matrix[:, :3].copy(),
            t=matrix[:, 3].copy(),
            points=np.array([k for k, _ in seen], np.int64),
            pixels=np.array([xy for _, xy in seen], np.float64).reshape(-1, 2),
            inlier_share=min(1.0, len(seen) / max(len(matched.get(view, ())), 1)),
        )
    return tuple(poses), points


def _flat_share(features: Sequence[Features], pairs: Pairs) -> float:
    shares = []
    for (i, j), geometry in pairs.items():
        matches = geometry.inlier_matches
        ends = features[i].xy[matches[:, 0]], features[j].xy[matches[:, 1]]
        tolerance = FLAT_TOLERANCE * max(float(xy.max()) for xy in ends)
        _, flat = cv2.findHomography(*ends, cv2.RANSAC, tolerance)
        shares.append(float(np.mean(flat)) if flat is not None else 0.0)
    return min(shares, default=0.0)
