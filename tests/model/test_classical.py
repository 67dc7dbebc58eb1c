"""The geometric model on rendered rooms whose cameras and depth are known, and on photos that must be refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

from model.classical.model import GeometricModel
from model.types import Prediction, ReconstructionError, View, Views
from train.render import intrinsics, render
from train.scenes import look_at, make_cameras, make_room

SIZE = (640, 480)
K = intrinsics(SIZE)


@dataclass(frozen=True)
class Truth:
    views: Views
    poses: np.ndarray
    depths: list[np.ndarray]


def silent(stage: str, fraction: float) -> None:
    pass


def view(name: str, image: np.ndarray, **known: object) -> View:
    return View(name, np.ascontiguousarray(image), (image.shape[1], image.shape[0]), **known)


@pytest.fixture(scope="module")
def room():
    return make_room(2, texture_side=512, light_cell=0.15, light_samples=12)


@pytest.fixture(scope="module")
def truth(room) -> Truth:
    poses = make_cameras(room, 4, 0)
    rng = np.random.default_rng(2)
    photos = [render(room, pose, K, SIZE, rng=rng) for pose in poses]
    views = tuple(view(f"photo-{i}.jpg", photo.rgb) for i, photo in enumerate(photos))
    return Truth(Views(views), poses, [photo.depth for photo in photos])


@pytest.fixture(scope="module")
def model() -> GeometricModel:
    return GeometricModel()


@pytest.fixture(scope="module")
def solved(model, truth) -> tuple[Prediction, list[tuple[str, float]]]:
    told: list[tuple[str, float]] = []
    answer = model.run([truth.views], lambda stage, fraction: told.append((stage, fraction)))[0]
    assert isinstance(answer, Prediction)
    return answer, told


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


def turn(rotation: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))


def pose_errors(answer: Prediction, poses: np.ndarray, first: int, second: int) -> tuple[float, float]:
    """Degrees that the relative rotation and the direction of motion are off by."""
    a, b = answer.cameras[first], answer.cameras[second]
    found = np.linalg.inv(a.camera_to_world) @ b.camera_to_world
    true = np.linalg.inv(poses[first]) @ poses[second]
    return turn(found[:3, :3].T @ true[:3, :3]), degrees(found[:3, 3], true[:3, 3])


def depth_in_view(answer: Prediction, v: int) -> np.ndarray:
    world_to_camera = np.linalg.inv(answer.cameras[v].camera_to_world)
    return answer.points[v] @ world_to_camera[2, :3] + world_to_camera[2, 3]


def sampled(truth: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The true depth at the centres of a coarser grid over the whole picture."""
    rows = ((np.arange(shape[0]) + 0.5) * truth.shape[0] / shape[0]).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * truth.shape[1] / shape[1]).astype(int)
    return truth[np.ix_(rows, columns)]


@pytest.mark.slow
def test_poses_and_focal_length_are_found(solved, truth):
    answer, _ = solved
    assert not answer.low_confidence, answer.warnings
    np.testing.assert_allclose(answer.cameras[0].camera_to_world, np.eye(4), atol=1e-9)
    for other in range(1, 4):
        rotation, direction = pose_errors(answer, truth.poses, 0, other)
        assert rotation < 0.5
        assert direction < 1.5
    for camera in answer.cameras:
        assert camera.focal == pytest.approx(K[0, 0], rel=0.03)
        assert tuple(camera.K[:2, 2]) == (320, 240)
        assert 0.8 < camera.inlier_share <= 1


@pytest.mark.slow
def test_depth_is_right_and_confidence_is_honest(solved, truth):
    answer, _ = solved
    depth = np.concatenate([depth_in_view(answer, v).ravel() for v in range(4)])
    true = np.concatenate([sampled(d, answer.points.shape[1:3]).ravel() for d in truth.depths])
    confidence = answer.confidence.ravel()
    sure, filled = (confidence >= 0.5) & (true > 0), (confidence > 0) & (confidence <= 0.3) & (true > 0)
    assert (sure | filled | (confidence == 0) | (true == 0)).all()
    assert sure.mean() > 0.5
    scale = np.median(true[sure] / depth[sure])
    errors = np.abs(depth * scale - true) / np.maximum(true, 1e-9)
    assert np.median(errors[sure]) < 0.015
    assert (errors[sure] < 0.05).mean() > 0.85
    assert np.median(errors[filled]) < 0.12
    assert (errors[sure] < 0.05).mean() > (errors[filled] < 0.05).mean() + 0.1


@pytest.mark.slow
def test_the_prediction_is_complete(solved, truth):
    answer, told = solved
    assert answer.points.shape == (4, 288, 384, 3)
    assert answer.points.dtype == answer.confidence.dtype == np.float32
    assert answer.rgb.dtype == np.uint8
    assert np.isfinite(answer.points).all()
    np.testing.assert_allclose(answer.crops, np.tile([0, 0, 640, 480], (4, 1)))
    details = json.loads(json.dumps(answer.details))
    assert details["focal_source"] in {"refined", "prior"}
    assert details["sparse_points"] > 200
    assert 0 < details["reprojection_error"] < 1
    stages = [stage for stage, _ in told]
    assert sorted(set(stages), key=stages.index) == ["poses", "dense", "completion"]
    assert all(0 <= fraction <= 1 for _, fraction in told)
    # Every point projects to the centre of its own pixel.
    camera = answer.cameras[2]
    local = (answer.points[2] - camera.camera_to_world[:3, 3]) @ camera.camera_to_world[:3, :3]
    u = local[..., 0] / local[..., 2] * camera.focal + 320
    assert np.abs(u - (np.arange(384) + 0.5) * 640 / 384).max() < 0.01


@pytest.mark.slow
def test_sizes_and_orientations_may_differ_and_any_view_may_be_the_reference(model, truth):
    """One photo was shrunk after it was taken, one is stored sideways: both still fit the others."""
    photos = list(truth.views.views)
    photos[1] = replace(photos[1], original_size=(1280, 960), exif_focal=2 * K[0, 0], camera="other")
    photos[2] = view("sideways.jpg", np.rot90(photos[2].image), exif_focal=K[0, 0])
    photos = [photo if photo.exif_focal else replace(photo, exif_focal=K[0, 0]) for photo in photos[:3]]
    answer = model.run([Views(tuple(photos), reference=1)], silent)[0]
    assert answer.reference == 1
    assert answer.points.shape == (3, 384, 384, 3)
    np.testing.assert_allclose(answer.cameras[1].camera_to_world, np.eye(4), atol=1e-9)
    assert answer.details["focal_source"] == "exif"
    assert answer.cameras[1].focal == pytest.approx(2 * K[0, 0], rel=0.03)
    np.testing.assert_allclose(answer.crops, [[0, 0, 640, 640], [0, 0, 1280, 1280], [0, 0, 640, 640]])
    assert (answer.confidence[0, 288:] == 0).all()
    assert (answer.confidence[2, :, 288:] == 0).all()
    assert (answer.confidence[2, :, :288] > 0.5).mean() > 0.3
    # np.rot90 turns the picture, and with it the camera, a quarter to the left about its axis.
    quarter = np.eye(4)
    quarter[:2, :2] = [[0, -1], [1, 0]]
    poses = truth.poses.copy()
    poses[2] = poses[2] @ quarter
    rotation, direction = pose_errors(answer, poses, 1, 2)
    assert rotation < 0.7
    assert direction < 2.0


@pytest.mark.slow
def test_a_photo_of_something_else_is_named_and_left_out(model, truth):
    rng = np.random.default_rng(5)
    strange = np.kron(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    photos = (view("strange.jpg", strange), *truth.views.views[:2])
    answer = model.run([Views(photos, reference=0)], silent)[0]
    assert answer.cameras[0] is None
    assert answer.reference == 1
    assert answer.cameras[1] is not None
    assert answer.cameras[2] is not None
    assert (answer.confidence[0] == 0).all()
    assert np.isfinite(answer.points).all()
    np.testing.assert_allclose(answer.cameras[1].camera_to_world, np.eye(4), atol=1e-9)
    assert any("strange.jpg" in warning for warning in answer.warnings)
    assert any("seen from photo-0.jpg" in warning for warning in answer.warnings)


def test_photos_from_one_spot_are_refused(model, room, truth):
    position = truth.poses[0][:3, 3]
    forward = truth.poses[0][:3, 2]
    side = truth.poses[0][:3, 0]
    poses = [look_at(position, position + forward + shift * side) for shift in (-0.15, 0.0, 0.15)]
    rng = np.random.default_rng(1)
    photos = tuple(view(f"{i}.jpg", render(room, pose, K, SIZE, rng=rng).rgb) for i, pose in enumerate(poses))
    answer = model.run([Views(photos)], silent)[0]
    assert isinstance(answer, ReconstructionError)
    assert "one spot" in answer.detail


def test_one_photo_twice_is_refused(model, truth):
    photo = truth.views.views[0]
    answer = model.run([Views((photo, replace(photo, name="again.jpg")))], silent)[0]
    assert isinstance(answer, ReconstructionError)
    assert "one spot" in answer.detail


def test_pieces_of_one_photo_are_doubted(model, truth):
    """Their matches fit many scenes exactly: nothing but the homography tells."""
    image = truth.views.views[0].image
    pieces = tuple(view(f"{x}.jpg", image[y : y + 400, x : x + 500]) for x, y in ((0, 0), (60, 30), (130, 70)))
    answer = model.run([Views(pieces)], silent)[0]
    assert isinstance(answer, ReconstructionError) or answer.low_confidence


def test_blank_photos_are_refused_without_failing_the_next_job(model, truth):
    blank = Views(tuple(view(f"blank-{i}.jpg", np.full((480, 640, 3), 200, np.uint8)) for i in range(2)))
    first, second = model.run([blank, Views(truth.views.views[1:3])], silent)
    assert isinstance(first, ReconstructionError)
    assert first.detail
    assert first.suggestion
    assert isinstance(second, Prediction)
    assert all(camera is not None for camera in second.cameras)
    rotation, _ = pose_errors(second, truth.poses[1:3], 0, 1)
    assert rotation < 1


@pytest.mark.parametrize("stage", ["poses", "dense"])
def test_cancelling_stops_at_once(model, truth, stage):
    class CancelledError(Exception):
        pass

    def cancel(now: str, fraction: float) -> None:
        if now == stage:
            raise CancelledError

    with pytest.raises(CancelledError):
        model.run([Views(truth.views.views[:2])], cancel)


def test_warm_up_reconstructs_its_own_scene(model):
    model.warm_up()


def test_png_files_can_be_written_beside_pycolmap() -> None:
    program = (
        "import model.classical, pycolmap, io, numpy\n"
        "from PIL import Image\n"
        "photo = numpy.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype('uint8')\n"
        "for _ in range(8):\n"
        "    file = io.BytesIO()\n"
        "    Image.fromarray(photo).save(file, 'PNG')\n"
        "    assert (numpy.asarray(Image.open(file)) == photo).all()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
