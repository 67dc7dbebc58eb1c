"""The accuracy bench's figures, against upstream's on stored poses and against answers known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import accuracy
from train.scenes import look_at

GOLDEN = Path(__file__).parents[1] / "golden" / "geometry" / "mvdust3r_demo_geometry.npz"


def test_pose_errors_equal_upstreams():
    golden = np.load(GOLDEN)
    batch = int(golden["metric/batch"][0])
    true, found = (golden[f"metric/{k}_c2w"].astype(np.float64).reshape(batch, -1, 4, 4) for k in ("gt", "pred"))
    # Upstream hands camera_to_world to a function made for world_to_camera; the figures stored are of that.
    errors = [accuracy.relative_errors(t, f) for t, f in zip(true, found)]
    np.testing.assert_allclose(np.concatenate([r for r, _ in errors]), golden["metric/rel_rot_deg"], atol=1e-3)
    np.testing.assert_allclose(np.concatenate([t for _, t in errors]), golden["metric/rel_trans_deg"], atol=1e-3)
    for index, (rotation, translation) in enumerate(errors):
        assert (rotation < 15).mean() == pytest.approx(golden["metric/RRA15"][index])
        assert (translation < 15).mean() == pytest.approx(golden["metric/RTA15"][index])
        assert accuracy.mean_average_accuracy(rotation, translation) == pytest.approx(golden["metric/mAA30"][index])


@pytest.fixture
def poses() -> np.ndarray:
    places = np.random.default_rng(0).normal((0, -4, 1), 1, (5, 3))
    return np.stack([look_at(place, np.zeros(3)) for place in places])


def test_right_poses_in_another_world_and_scale_are_right(poses):
    world = look_at(np.array([3.0, 1, 2]), np.array([0.0, 5, 1]))
    found = world @ poses
    found[:, :3, 3] = world[:3, 3] + 2.5 * (found[:, :3, 3] - world[:3, 3])
    figures = accuracy.pose_errors(poses, list(found))
    assert figures["placed"] == figures["rra_5"] == figures["rta_5"] == figures["maa_30"] == 1
    assert figures["median_rotation"] < 1e-4


def test_an_unplaced_view_makes_its_pairs_wrong(poses):
    figures = accuracy.pose_errors(poses, [*poses[:4], None])
    assert figures["placed"] == 0.8
    assert [figures[k] for k in ("rra_15", "rta_15", "maa_30")] == pytest.approx([0.6] * 3)  # 6 of 10 pairs
    assert accuracy.pose_errors(poses, [None] * 5)["maa_30"] == 0


def test_a_turned_view_shows_its_angle(poses):
    found = poses.copy()
    c, s = np.cos(np.radians(7)), np.sin(np.radians(7))
    found[1, :3, :3] = found[1, :3, :3] @ [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    rotation, _ = accuracy.relative_errors(np.linalg.inv(poses), list(np.linalg.inv(found)))
    touched = [0, 4, 5, 6]  # the pairs (0, 1), (1, 2), (1, 3), (1, 4)
    np.testing.assert_allclose(rotation[touched], 7, atol=1e-6)
    np.testing.assert_allclose(np.delete(rotation, touched), 0, atol=1e-3)


def test_point_errors():
    rng = np.random.default_rng(1)
    true = rng.normal((0, 0, 5), 1, (2, 30, 40, 3))
    noisy = true * (1 + 0.1 * rng.choice([-1, 1], size=(2, 30, 40, 1)))
    sure = np.ones((2, 30, 40))
    valid = sure > 0
    exact = accuracy.point_errors(true * 0.3, sure, true, valid)
    assert exact["covered"] == exact["within_5"] == 1
    assert exact["median_error"] < 2e-3
    assert exact["nd"] < 1e-9
    assert accuracy.point_errors(noisy, sure, true, valid)["nd"] == pytest.approx(0.1 * 1, rel=0.05)
    half = sure.copy()
    half[0] = 0
    figures = accuracy.point_errors(true, half, true, valid)
    assert figures["covered"] == figures["within_5"] == figures["within_10"] == 0.5
    assert accuracy.point_errors(true, 0 * sure, true, valid) == {"covered": 0, "within_5": 0, "within_10": 0}


def test_truth_lies_on_the_grid_of_the_crop(plain_room, walk):
    whole = np.array([[0.0, 0, *accuracy.SIZE]] * 2)
    part = np.array([[160.0, 120, 480, 360]] * 2)
    points, valid = accuracy.truth(plain_room, walk[:2], whole, (48, 64))
    inner, _ = accuracy.truth(plain_room, walk[:2], part, (24, 32))
    assert valid.all()
    np.testing.assert_allclose(points[:, 12:36, 16:48], inner, atol=1e-5)
    np.testing.assert_allclose(points[0, 24, 32, :2] / points[0, 24, 32, 2], [0.5 / 64 / 0.8087] * 2, rtol=1e-3)


def test_trivial_answers_score_as_such(plain_room, walk):
    found, prediction = accuracy.plane(np.ones((12, 16)))(accuracy.photograph(plain_room, walk[:2], 0))
    figures = accuracy.pose_errors(walk[:2], found)
    assert figures["rta_15"] == 0
    points = accuracy.points_of(prediction, plain_room, walk[:2])
    assert 0 < points["within_10"] < 0.5
    assert points["covered"] == 1


def test_report(tmp_path):
    records = [
        {"room": r, "views": v, "method": m, "seconds": 1.0, "maa_30": 0.5, "covered": 1.0, "within_10": 0.25, "nd": nd}
        for r, nd in ((0, 0.1), (1, 0.3))
        for v in (2, 4)
        for m in ("plane, identity", "geometry")
    ]
    rows = accuracy.summarise(records)
    assert [(row["method"], row["views"]) for row in rows][:2] == [("geometry", 2), ("geometry", 4)]
    assert rows[0]["dac"] == 0.5
    text = accuracy.table(rows).splitlines()
    assert len(text) == 2 + 4
    assert len({line.count("|") for line in text}) == 1
    accuracy.report(records, tmp_path)
    assert json.loads((tmp_path / "accuracy.json").read_text())["records"] == records
    assert accuracy.table(rows) in (tmp_path / "accuracy.md").read_text()
    assert (tmp_path / "accuracy.png").stat().st_size > 5000
