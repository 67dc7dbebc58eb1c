"""Prediction to files in a straight line, on a room whose every pixel and pose is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scene_fixture import box_room

from model.geometry.poses import invert_rigid
from model.types import ReconstructionError
from service import pipeline
from service.schemas import DEFAULT_OUTPUTS, Options


def ignore(stage: str, fraction: float) -> None:
    """Nobody watches."""


def test_a_network_s_prediction_gets_the_true_cameras_and_every_file() -> None:
    scene = box_room(3)
    stages = []
    outcome = pipeline.finish(scene.prediction, scene.views, Options(), lambda stage, _: stages.append(stage))
    assert set(outcome.files) == set(DEFAULT_OUTPUTS)
    assert all(len(data) > 0 for data in outcome.files.values())
    assert not outcome.low_confidence
    assert outcome.warnings == ()
    assert list(dict.fromkeys(stages)) == ["cameras", "fusion", "formats"]
    assert {"cameras", "fusion", "formats"} <= set(outcome.metrics)
    document = json.loads(bytes(outcome.files["cameras.json"]))
    for found, true, view in zip(document["views"], scene.cameras, outcome.views):
        assert view["placed"]
        assert view["reference"] == (view is outcome.views[0])
        assert view["focal"] == pytest.approx(true.focal, rel=0.01)
        np.testing.assert_allclose(found["camera_to_world"], true.camera_to_world, atol=0.02)


def test_a_focal_length_that_is_given_is_that_of_every_photo() -> None:
    """Whatever EXIF says; else that, and who shares one is the request's to say."""
    photos = [replace(view, exif_focal=50.0) for view in box_room(3).views.views]
    for focal, known, shared in (("1140", 1140.0, True), ("shared", 50.0, True), ("per-view", 50.0, False)):
        views = pipeline.gather(photos, Options.model_validate({"focal": focal}), lambda _: None)
        assert [view.exif_focal for view in views.views] == [known] * 3
        assert views.shared_focal == shared


def test_only_what_was_asked_for_is_written() -> None:
    scene = box_room(2)
    outcome = pipeline.finish(scene.prediction, scene.views, Options(outputs=("scene.splat",)), ignore)
    assert list(outcome.files) == ["scene.splat"]


def test_a_view_that_cannot_be_placed_is_named_and_the_rest_succeeds() -> None:
    scene = box_room(3)
    confidence = scene.prediction.confidence.copy()
    confidence[1] = 0
    outcome = pipeline.finish(replace(scene.prediction, confidence=confidence), scene.views, Options(), ignore)
    assert [view["placed"] for view in outcome.views] == [True, False, True]
    assert scene.views.views[1].name in outcome.warnings[0]
    assert outcome.low_confidence


def test_files_name_the_view_whose_camera_is_the_world_where_the_reference_could_not_be_placed() -> None:
    scene = box_room(3, unplaced=(0,))
    to_second = invert_rigid(scene.cameras[1].camera_to_world)
    cameras = tuple(c and replace(c, camera_to_world=to_second @ c.camera_to_world) for c in scene.cameras)
    points = scene.prediction.points @ to_second[:3, :3].T.astype(np.float32) + to_second[:3, 3].astype(np.float32)
    prediction = replace(scene.prediction, points=points, cameras=cameras, reference=1)
    outcome = pipeline.finish(prediction, scene.views, Options(), ignore)
    document = json.loads(bytes(outcome.files["cameras.json"]))
    assert document["reference"] == 1
    assert document["views"][0]["camera_to_world"] is None
    np.testing.assert_allclose(document["views"][1]["camera_to_world"], np.eye(4), atol=1e-12)
    assert [view["reference"] for view in outcome.views] == [False, True, False]
    asked = pipeline.finish(replace(prediction, reference=None), scene.views, Options(), ignore)
    assert asked.files["preview.webp"] != outcome.files["preview.webp"]


def test_points_of_no_sense_are_said_to_be_doubtful() -> None:
    scene = box_room(3)
    points = scene.prediction.points.copy()
    points[2] = np.random.default_rng(0).normal(size=points[2].shape)
    outcome = pipeline.finish(replace(scene.prediction, points=points), scene.views, Options(), ignore)
    assert outcome.low_confidence
    assert scene.views.views[2].name in " ".join(outcome.warnings)


@pytest.mark.parametrize("field", ["points", "confidence"])
def test_not_a_number_fails_the_job_in_a_sentence(field: str) -> None:
    scene = box_room(2)
    broken = getattr(scene.prediction, field).copy()
    broken.flat[7] = np.nan
    with pytest.raises(ReconstructionError, match="not numbers"):
        pipeline.finish(replace(scene.prediction, **{field: broken}), scene.views, Options(), ignore)


def test_a_cancellation_stops_the_work_between_files() -> None:
    scene = box_room(2)

    class CancelledError(Exception):
        """Raised by the progress callback."""

    def progress(stage: str, fraction: float) -> None:
        if stage == "formats" and fraction > 0.3:
            raise CancelledError

    with pytest.raises(CancelledError):
        pipeline.finish(scene.prediction, scene.views, Options(), progress)
