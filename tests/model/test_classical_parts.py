"""The parts of the geometric model, each on a case whose answer is known."""

from __future__ import annotations

import threading
import time

import numba
import numpy as np
import pytest

from model.classical import completion, dense, gate
from model.classical.poses import Pose, Solution, match
from model.parallel import compiled, each
from model.types import ReconstructionError


def grid(grey: np.ndarray, x: float = 0.0) -> dense.Grid:
    h, w = grey.shape
    K = np.array([[100.0, 0, w / 2], [0, 100.0, h / 2], [0, 0, 1]])
    return dense.Grid(grey.astype(np.float32), K, np.eye(3), np.array([-x, 0.0, 0.0]))


@pytest.fixture(scope="module")
def wall() -> list[dense.Grid]:
    """A textured wall at depth 2, seen by cameras at x = 0, 0.1 and 0.2: five pixels of disparity each."""
    import cv2

    noise = np.random.default_rng(0).uniform(0, 255, (60, 110)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (3, 3), 0.8)
    return [grid(texture[:, 5 * k : 5 * k + 96], 0.1 * k) for k in range(3)]


def test_stereo_finds_a_wall(wall):
    planes = dense.inverse_depths(wall[1], [wall[0], wall[2]], 1.0, 6.0)
    assert planes[0] == pytest.approx(1 / 6)
    assert planes[-1] == pytest.approx(1)
    inverse, score = dense.stereo(wall[1], [wall[0], wall[2]], planes)
    assert np.abs(1 / inverse[5:-5, 12:-12] - 2).max() < 0.05
    assert score[5:-5, 12:-12].min() > 0.9


def test_views_confirm_each_other_or_not(wall):
    flat = np.full(wall[0].grey.shape, 0.5, np.float32)
    good = np.ones_like(flat)
    agreed = dense.check(wall[:2], [(flat, good), (flat * 1.01, good)], [{1}, {0}])
    assert agreed[0].sure[:, 10:].all()
    # What both see is averaged.
    assert np.median(agreed[0].inverse) == pytest.approx(0.5025, abs=1e-4)
    apart = dense.check(wall[:2], [(flat, good), (flat * 1.2, good)], [{1}, {0}])
    assert not apart[0].sure.any()
    vague = dense.check(wall[:2], [(flat, 0.3 * good), (flat, good)], [{1}, {0}])
    assert not vague[0].sure.any()


def test_a_point_before_a_measured_surface_is_in_the_way(wall):
    flat = np.full(wall[0].grey.shape, 0.5, np.float32)
    sure = np.ones(flat.shape, bool)
    points = dense.unproject(wall[0], flat)
    assert points[0, 0] == pytest.approx([(0.5 - 48) / 100 * 2, (0.5 - 30) / 100 * 2, 2], abs=1e-5)
    assert not dense.obstructions(points, [(wall[1], flat, sure)]).any()
    assert dense.obstructions(points * 0.8, [(wall[1], flat, sure)])[:, 20:-20].all()
    assert not dense.obstructions(points * 0.8, [(wall[1], flat, ~sure)]).any()


def test_neighbours_are_those_with_shared_points_and_parallax():
    rng = np.random.default_rng(0)
    points = rng.uniform((-1, -1, 4), (1, 1, 6), (50, 3))
    centres = np.array([[0, 0, 0], [0.001, 0, 0], [0.6, 0, 0], [0.5, 0, 0.0]])
    everything = np.arange(50)
    chosen = dense.choose_neighbours(centres, points, [everything, everything, everything, everything[:0]], most=2)
    assert chosen[0][0] == 2
    assert 3 not in chosen[0]
    assert chosen[3] == []


def test_kernels_compile_where_no_folder_can_be_written(monkeypatch):
    real = numba.njit

    def unwritable(**options: object):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", unwritable)
    assert compiled(lambda x: x + 1)(1) == 2


def test_filling_continues_a_surface_and_stops_at_colours():
    rgb = np.zeros((64, 96, 3), np.uint8)
    rgb[:, 48:] = 200
    inverse = np.full((64, 96), 0.5, np.float32)
    inverse[:, 48:] = 0.25
    sure = np.zeros((64, 96), bool)
    sure[:, :16] = sure[:, 80:] = True
    filled = completion.fill(rgb, np.where(sure, inverse, 9).astype(np.float32), sure, np.zeros((0, 2)), np.zeros(0))
    assert np.abs(filled[:, :46] - 0.5).max() < 0.02
    assert np.abs(filled[:, 50:] - 0.25).max() < 0.02
    np.testing.assert_array_equal(filled[sure], inverse[sure])


def test_sparse_points_guide_the_filling():
    rgb = np.zeros((64, 96, 3), np.uint8)
    nothing = np.zeros((64, 96), bool)
    at = np.array([[10.0, 30.0], [80.0, 30.0]])
    filled = completion.fill(rgb, np.ones((64, 96), np.float32), nothing, at, np.array([0.4, 0.6]))
    assert filled[30, 10] < 0.47 < 0.53 < filled[30, 80]


def test_confidence_tells_measured_from_filled_from_hidden():
    rgb = np.full((60, 80, 3), 90, np.uint8)
    inverse = np.full((60, 80), 0.5, np.float32)
    inverse[:, 40:] = 0.25
    sure = np.zeros((60, 80), bool)
    sure[:, :20] = True
    none = np.zeros((60, 80), np.uint8)
    seen_through = none.copy()
    seen_through[10, 25] = seen_through[10, 5] = 2
    score = np.full((60, 80), 0.9, np.float32)
    confidence = completion.trust(rgb, inverse, sure, score, sure.astype(np.uint8), seen_through)
    assert (confidence[30, :20] >= 0.5).all()
    assert 0 < confidence[30, 25] <= 0.3
    assert confidence[30, 22] > confidence[30, 30]
    # At the depth edge, too far from anything measured, or before what another photo sees.
    assert confidence[30, 40] == confidence[30, 70] == confidence[10, 25] == confidence[10, 5] == 0


def test_what_is_filled_and_tied_to_nothing_measured_is_hidden():
    rgb = np.full((60, 80, 3), 90, np.uint8)
    inverse = np.full((60, 80), 0.5, np.float32)
    inverse[20:40, 22:32] = 0.6
    sure = np.zeros((60, 80), bool)
    sure[:, :20] = True
    none, score = np.zeros((60, 80), np.uint8), np.full((60, 80), 0.9, np.float32)
    confidence = completion.trust(rgb, inverse, sure, score, none, none)
    assert (confidence[20:40, 22:32] == 0).all()
    assert (confidence[30, [20, 34]] > 0).all()
    sure[28:32, 25:29] = True
    confidence = completion.trust(rgb, inverse, sure, score, none, none)
    assert (confidence[21:39, 23:31] > 0).all()


def test_sky_is_smooth_bright_and_up():
    rgb = np.full((120, 160, 3), 60, np.uint8)
    rgb[:50] = (120, 160, 220)
    nothing = np.zeros((120, 160), bool)
    found = completion.sky(rgb, nothing)
    assert found[:45].all()
    assert not found[56:].any()
    assert not completion.sky(np.ascontiguousarray(rgb[::-1]), nothing)[60:].any()
    assert not completion.sky(rgb, ~nothing).any()


def test_matching_wants_a_clear_and_mutual_winner():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 128)).astype(np.float32)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    order = rng.permutation(30)
    b = a[order]
    found = match(a, b)
    np.testing.assert_array_equal(order[found[:, 1]], found[:, 0])
    assert len(found) == 30
    # Two equal candidates are no match.
    assert len(match(a, np.concatenate([b, b]))) == 0
    assert match(a[:0], b).shape == (0, 2)


def two_views(baseline: float, error: float = 0.3, count: int = 300, **changes: object) -> Solution:
    rng = np.random.default_rng(3)
    points = rng.uniform((-1, -1, 3), (1, 1, 5), (count, 3))
    K = np.array([[540.0, 0, 320], [0, 540, 240], [0, 0, 1]])
    poses = tuple(
        Pose(K, np.eye(3), np.array([-x, 0.0, 0.0]), np.arange(count), np.zeros((count, 2)), 1.0) for x in (0, baseline)
    )
    known = {"focal_source": "refined", "focal_spread": 0.05, "flat_share": 0.6, "rotation_disagreement": 0.0}
    return Solution(poses, points, error, **(known | changes))


def said(solution: Solution, support: float = 0.8) -> str:
    return " ".join(gate.doubts(solution, gate.motion(solution), [640, 640], support))


def test_the_gate_lets_a_sound_solution_through():
    sound = two_views(0.4)
    assert gate.motion(sound).angle == pytest.approx(np.degrees(0.1), rel=0.1)
    assert gate.refuse(sound, gate.motion(sound)) is None
    assert said(sound) == ""


def test_the_gate_refuses_what_has_no_depth():
    still = two_views(0.002)
    assert isinstance(gate.refuse(still, gate.motion(still)), ReconstructionError)
    assert isinstance(gate.refuse(None, None), ReconstructionError)
    turned = two_views(0.02, flat_share=1.0)
    assert "one spot" in gate.refuse(turned, gate.motion(turned)).detail
    twice = two_views(0.0, count=0, flat_share=1.0)
    assert "one spot" in gate.refuse(twice, gate.motion(twice)).detail


def test_the_gate_says_what_it_doubts():
    assert "hardly moved" in said(two_views(0.02))
    assert "points" in said(two_views(0.4, count=40))
    assert "agree" in said(two_views(0.4, error=2.0))
    assert "Two different scenes" in said(two_views(0.4, rotation_disagreement=20.0))
    assert "wrongly" in said(two_views(0.4), support=0.05)
    assert "flat" in said(two_views(0.4, flat_share=1.0))
    wide = two_views(0.4)
    for pose in wide.poses:
        pose.K[0, 0] = 900
    assert "focal" in said(wide)


def test_each_keeps_order_and_tells_its_progress():
    told: list[float] = []
    assert each(lambda x: x * x, [3, 1, 2], told.append) == [9, 1, 4]
    assert told[-1] == 1.0
    assert told == sorted(told)


def test_each_is_cancelled_while_work_goes_on():
    begun = []
    release = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        release.wait(5)

    def cancel(fraction: float) -> None:
        release.set()
        raise InterruptedError

    start = time.monotonic()
    with pytest.raises(InterruptedError):
        each(work, list(range(50)), cancel)
    assert len(begun) < 50
    assert time.monotonic() - start < 4


def test_each_raises_what_the_work_raises():
    with pytest.raises(ZeroDivisionError):
        each(lambda x: 1 // x, [1, 0], lambda fraction: None)
