"""Matches against exhaustive search; two views from matches. The goldens: test_golden_geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from model.geometry.matching import (
    match_both_ways,
    mutual_nearest_points,
    nearest,
    reciprocal_matches,
    relative_pose,
    two_view,
)
from model.geometry.poses import invert_rigid
from model.types import ReconstructionError
from tests.wavy import Scene

GOLDEN = Path(__file__).parents[1] / "golden" / "geometry"
POINTS = np.load(GOLDEN / "reciprocal_dust3r.npz")
DESCRIPTORS = np.load(GOLDEN / "reciprocal_mast3r.npz")
A, B = DESCRIPTORS["descA"], DESCRIPTORS["descB"]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    metric=st.sampled_from(["dot", "l2"]),
    queries=st.integers(1, 600),
    candidates=st.integers(1, 9000),
)
def test_nearest_in_blocks_equals_an_exhaustive_search(seed: int, metric: str, queries: int, candidates: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(queries, 4)).astype(np.float32)
    c = rng.normal(size=(candidates, 4)).astype(np.float32)
    found = nearest(q, c, metric)
    if metric == "dot":
        chosen, best = (q * c[found]).sum(axis=1), (q @ c.T).max(axis=1)
    else:
        chosen, best = ((q - c[found]) ** 2).sum(axis=1), ((q[:, None] - c[None]) ** 2).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(chosen, best, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spacing=st.sampled_from([1, 2, 3]))
def test_a_reciprocal_match_is_mutual_and_the_densest_grid_misses_few(seed: int, spacing: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (rng.normal(size=(h, w, 8)).astype(np.float32) for h, w in ((9, 11), (12, 7)))
    forth = nearest(first.reshape(-1, 8), second.reshape(-1, 8))
    back = nearest(second.reshape(-1, 8), first.reshape(-1, 8))
    mutual = {(i, int(j)) for i, j in enumerate(forth) if back[j] == i}
    found = {tuple(match) for match in reciprocal_matches(first, second, spacing).tolist()}
    assert found <= mutual
    if spacing == 1:
        assert found == mutual
    confidence = [np.ones(d.shape[:2], np.float32) for d in (first, second)]
    there, _ = match_both_ways(first, second, *confidence, spacing)
    again, _ = match_both_ways(second, first, *confidence[::-1], spacing)
    assert {tuple(m) for m in there.tolist()} == {(i, j) for j, i in again.tolist()}


def test_descriptors_and_points_that_are_not_finite() -> None:
    spoilt = A.copy()
    spoilt[3, 4, 5] = np.nan
    with pytest.raises(ReconstructionError, match="not finite"):
        match_both_ways(spoilt, B, DESCRIPTORS["confA"], DESCRIPTORS["confB"])
    points = POINTS["P1"].copy()
    points[::2] = np.inf
    assert (mutual_nearest_points(points, POINTS["P2"])[:, 0] % 2 == 1).all()
    assert mutual_nearest_points(points * np.nan, POINTS["P2"]).shape == (0, 2)


def test_a_long_search_may_be_cancelled_on_its_way() -> None:
    beats: list[int] = []

    def heartbeat() -> None:
        beats.append(len(beats))
        if len(beats) == 3:
            raise InterruptedError

    confidence = [DESCRIPTORS[name] for name in ("confA", "confB")]
    with pytest.raises(InterruptedError):
        match_both_ways(A, B, *confidence, spacing=1, heartbeat=heartbeat)
    assert len(beats) == 3


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_relative_pose_follows_from_matches_and_its_inverse_from_the_other_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = np.eye(4)
    true[:3, :3] = Rotation.from_rotvec(0.2 * rng.normal(size=3)).as_matrix()
    true[:3, 3] = (rng.choice([-1, 1]), *rng.uniform(-0.5, 0.5, 2))
    points = rng.uniform((-2, -2, 4), (2, 2, 7), (200, 3))
    local = (points - true[:3, 3]) @ true[:3, :3]
    first, second = 500 * points[:, :2] / points[:, 2:], 600 * local[:, :2] / local[:, 2:]
    second[:40] = rng.uniform(-300, 300, (40, 2))
    found = relative_pose(first, second, (500.0, 600.0))
    direction = true[:3, 3] / np.linalg.norm(true[:3, 3])
    np.testing.assert_allclose(found.second_to_first[:3, :3], true[:3, :3], atol=5e-3)
    np.testing.assert_allclose(found.second_to_first[:3, 3], direction, atol=2e-2)
    assert found.inliers[40:].all()
    assert found.inliers[:40].mean() < 0.3
    back = relative_pose(second, first, (600.0, 500.0))
    np.testing.assert_allclose((back.second_to_first @ found.second_to_first)[:3, :3], np.eye(3), atol=1e-2)


def test_no_relative_pose_from_a_handful_of_matches() -> None:
    assert relative_pose(np.zeros((5, 2)), np.zeros((5, 2)), (500.0, 500.0)) is None


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_two_views_have_cameras(noise: float) -> None:
    scene = Scene([(96, 128), (128, 96)], [140.0, 130.0])
    pair, back, matches = scene.pair(0, 1, noise), scene.pair(1, 0, noise), scene.matches(0, 1, wrong=0.2)
    found = two_view(pair, back, matches.indices, *scene.pixels)
    true = invert_rigid(scene.poses[0]) @ scene.poses[1]
    assert found.focals == pytest.approx([140, 130], rel=0.03)
    turn = Rotation.from_matrix(true[:3, :3].T @ found.second_to_first[:3, :3]).magnitude()
    assert np.degrees(turn) < 1
    # The pointmaps' scale is their own.
    scale = np.median(pair.points_i[..., 2] / ((scene.points[0] - scene.poses[0][:3, 3]) @ scene.poses[0][:3, 2]))
    np.testing.assert_allclose(found.second_to_first[:3, 3], scale * true[:3, 3], atol=0.05 * scale)
    right = matches.indices[:, 1] == scene.matches(0, 1).indices[:, 1]
    assert found.inliers[right].mean() > 0.9
    assert found.inliers[~right].mean() < 0.2


def test_two_views_from_one_spot_have_a_pose_too() -> None:
    scene = Scene([(96, 128), (96, 128)], [140.0, 140.0], centres=0.0)
    found = two_view(*scene.pairs(noise=0.02), scene.matches(0, 1, wrong=0.2).indices, *scene.pixels)
    true = invert_rigid(scene.poses[0]) @ scene.poses[1]
    turn = Rotation.from_matrix(true[:3, :3].T @ found.second_to_first[:3, :3]).magnitude()
    assert np.degrees(turn) < 0.3
    assert np.linalg.norm(found.second_to_first[:3, 3]) < 0.03


def test_two_views_without_matches_are_refused() -> None:
    scene = Scene([(24, 32)] * 2, [36.0] * 2)
    with pytest.raises(ReconstructionError, match="Photos 1 and 2 have too few points in common"):
        two_view(*scene.pairs(), scene.matches(0, 1).indices[:5], *scene.pixels)
