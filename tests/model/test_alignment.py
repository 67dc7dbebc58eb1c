"""Global alignment, on scenes whose truth is known. Its goldens: test_golden_geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from model.geometry import alignment
from model.geometry.alignment import Pair, align, clear_air, fit_similarity, scheduled_rate
from model.geometry.poses import invert_rigid
from model.types import ReconstructionError
from tests.wavy import Scene


def test_the_step_size_falls_in_a_line_as_well() -> None:
    assert scheduled_rate(0.25, 0.01, "linear") == pytest.approx(0.0075, rel=1e-3)


@pytest.fixture(scope="module")
def mixed() -> Scene:
    return Scene([(24, 32), (32, 24), (24, 32), (16, 32)], [36.0, 30.0, 36.0, 40.0])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_views_of_any_size_and_lens_find_their_places(mixed: Scene, schedule: alignment.Schedule) -> None:
    start = mixed.errors(align(mixed.pairs(noise=0.01), mixed.pixels, iterations=0))
    degrees, distance, focal = mixed.errors(align(mixed.pairs(noise=0.01), mixed.pixels, schedule=schedule))
    assert degrees < 0.6
    assert distance < 0.03
    assert focal < 0.01
    assert distance < start[1]


@pytest.mark.parametrize("edges", [[(1, 0), (1, 2), (2, 3)], [(0, 1), (2, 1), (3, 1)], [(0, 1), (2, 3), (1, 2)]])
def test_a_tree_of_pairs_in_one_direction_is_enough(mixed: Scene, edges: list[tuple[int, int]]) -> None:
    degrees, distance, focal = mixed.errors(align(mixed.pairs(edges), mixed.pixels, iterations=0))
    assert degrees < 0.1
    assert distance < 0.01
    assert focal < 0.005


def test_the_scene_can_be_seen_from_any_camera(mixed: Scene) -> None:
    aligned = align(mixed.pairs(), mixed.pixels, iterations=0)
    seen = aligned.seen_from(2)
    np.testing.assert_array_equal(seen.camera_to_world[2], np.eye(4))
    to_view = invert_rigid(aligned.camera_to_world[2])
    for before, after in zip(aligned.points, seen.points):
        np.testing.assert_allclose(before @ to_view[:3, :3].T + to_view[:3, 3], after, atol=1e-5)
    pair, moved = mixed.pairs()[0], seen.pair_to_world[0]
    np.testing.assert_allclose(pair.points_i @ moved[:3, :3].T + moved[:3, 3], seen.points[pair.i], atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 3), second=st.integers(0, 3))
def test_changing_the_frame_obeys_the_laws_of_a_group(mixed: Scene, first: int, second: int) -> None:
    aligned = align(mixed.pairs(), mixed.pixels, iterations=0)
    twice, once = aligned.seen_from(first).seen_from(second), aligned.seen_from(second)
    np.testing.assert_allclose(twice.camera_to_world, once.camera_to_world, atol=1e-12)
    np.testing.assert_allclose(twice.pair_to_world, once.pair_to_world, atol=1e-12)
    relative = [np.linalg.inv(a.camera_to_world[0]) @ a.camera_to_world for a in (aligned, once)]
    np.testing.assert_allclose(*relative, atol=1e-12)


def test_views_of_one_camera_share_one_focal_and_gain_by_it(mixed: Scene) -> None:
    pairs = mixed.pairs(noise=0.05)
    alone = align(pairs, mixed.pixels)
    shared = align(pairs, mixed.pixels, cameras=["a", "b", "a", "c"])
    assert alone.focals[0] != alone.focals[2]
    assert shared.focals[0] == shared.focals[2]
    assert len(set(shared.focals)) == 3
    assert abs(shared.focals[0] / 36 - 1) < max(abs(alone.focals[[0, 2]] / 36 - 1))


@pytest.mark.parametrize("iterations", [0, 100])
def test_one_camera_of_all_views_is_found(iterations: int) -> None:
    scene = Scene([(24, 32), (24, 32), (32, 24), (24, 32)], [36.0] * 4)
    found = align(scene.pairs(noise=0.01), scene.pixels, cameras=["a"] * 4, iterations=iterations)
    assert len(set(found.focals)) == 1
    degrees, distance, focal = scene.errors(found)
    assert degrees < 0.6
    assert distance < 0.05
    assert focal < 0.01
    known = align(scene.pairs(), scene.pixels, cameras=["a"] * 4, focals=[None, 40, None, 41], iterations=0)
    assert known.focals == pytest.approx(40.5)


def test_a_first_focal_stays_within_what_cameras_have(mixed: Scene) -> None:
    pair = mixed.pair(0, 1)
    flattened = replace(pair, points_i=pair.points_i * np.array([1, 1, 100], np.float32))
    found = align([flattened, mixed.pair(1, 0)], mixed.pixels[:2], iterations=0)
    assert found.focals[0] == pytest.approx(3.5 * 32 / (2 * np.tan(np.pi / 6)))


def test_permuting_the_views_permutes_the_answer(mixed: Scene) -> None:
    order = [2, 0, 3, 1]  # new name of each view
    pairs, pixels = mixed.pairs(noise=0.01), mixed.pixels
    renamed = [replace(pair, i=order[pair.i], j=order[pair.j]) for pair in reversed(pairs)]
    at = np.argsort(order)
    plain = align(pairs, pixels, iterations=5)
    permuted = align(renamed, [pixels[v] for v in at], iterations=5)
    np.testing.assert_allclose(permuted.camera_to_world, plain.camera_to_world[at], atol=2e-4)
    np.testing.assert_allclose(permuted.focals, plain.focals[at], rtol=1e-4)
    for new, old in enumerate(at):
        np.testing.assert_allclose(permuted.depths[new], plain.depths[old], rtol=2e-2)
        assert np.median(np.abs(permuted.depths[new] / plain.depths[old] - 1)) < 1e-5


@pytest.mark.parametrize("camera_of", [[0, 1, 2, 3], [0, 1, 0, 0]])
def test_gradients_are_those_of_finite_differences(mixed: Scene, camera_of: list[int]) -> None:
    pairs = mixed.pairs(noise=0.05)
    problem = alignment.Problem(pairs, mixed.pixels)
    state = alignment._start(pairs, mixed.pixels, [None] * 4, np.array(camera_of), lambda: None)
    rng = np.random.default_rng(0)
    for array in state.arrays():
        array += 0.1 * rng.normal(size=array.shape)
    gradient = problem.loss_and_gradient(state)[1]
    for array, slope in zip(state.arrays(), gradient.arrays()):
        direction = rng.choice([-1.0, 1.0], size=array.shape) + np.sign(slope)
        # A focal length moves little by its parameter: a small step drowns in single precision.
        step, kept = 1e-2 if array is state.log_focals else 1e-3, array.copy()
        losses = []
        for side in (1, -1):
            array[:] = kept + side * step * direction
            losses.append(problem.loss_and_gradient(state)[0])
        array[:] = kept
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx((slope * direction).sum(), rel=5e-3, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100), flat=st.booleans())
def test_a_known_similarity_is_recovered(seed: int, scale: float, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(20, 3)) * (1, 1, 0 if flat else 1)
    true = np.eye(4)
    true[:3, :3], true[:3, 3] = scale * Rotation.random(rng=rng).as_matrix(), rng.normal(size=3)
    target = source @ true[:3, :3].T + true[:3, 3]
    weight = rng.uniform(0.1, 1, 20)
    spoilt = target.copy()
    spoilt[:3] += 10
    weight[:3] = 0
    found = fit_similarity(source, spoilt, weight)
    np.testing.assert_allclose(found, true, atol=1e-9 * max(scale, 1))
    back = fit_similarity(target, source, weight)
    np.testing.assert_allclose(back @ found, np.eye(4), atol=1e-8 * max(scale, 1 / scale))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_one_similarity_after_another_is_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (np.eye(4), np.eye(4))
    for similarity in (first, second):
        similarity[:3, :3] = rng.uniform(0.2, 5) * Rotation.random(rng=rng).as_matrix()
        similarity[:3, 3] = rng.normal(size=3)
    source, weight = rng.normal(size=(20, 3)), rng.uniform(0.1, 1, 20)
    there = source @ first[:3, :3].T + first[:3, 3]
    on = there @ second[:3, :3].T + second[:3, 3]
    np.testing.assert_allclose(fit_similarity(source, on, weight), second @ first, atol=1e-9)
    found = fit_similarity(there, on, weight) @ fit_similarity(source, there, weight)
    np.testing.assert_allclose(found, second @ first, atol=1e-9)
    np.testing.assert_allclose(fit_similarity(source, source, weight), np.eye(4), atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.floats(0.1, 10), sign=st.sampled_from([-1, 1]))
def test_poses_survive_their_parameters(seed: int, length: float, sign: int) -> None:
    """Quaternions of any length and either sign, folded translations from tiny to huge."""
    rng = np.random.default_rng(seed)
    turns, moves = Rotation.random(5, rng=rng), rng.normal(size=(5, 3)) * 10 ** rng.uniform(-3, 3, (5, 1))
    quaternions, folded = sign * length * turns.as_quat(), np.sign(moves) * np.log1p(np.abs(moves))
    scales = rng.uniform(-1, 1, 5)
    state = alignment.State(quaternions, folded, np.zeros(5), quaternions, folded, scales, [], np.arange(5))
    poses, similarities = state.camera_to_world(), state.pair_to_world()
    np.testing.assert_allclose(poses[:, :3, :3], turns.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(poses[:, :3, 3], moves, rtol=1e-9)
    np.testing.assert_allclose(similarities[:, :3], state.scales()[:, None, None] * poses[:, :3], rtol=1e-9, atol=1e-12)
    assert np.exp(np.log(state.scales()).mean()) == pytest.approx(alignment.MEAN_PAIR_SCALE)


def without_confidence(pair: Pair) -> Pair:
    return replace(pair, confidence_i=np.ones_like(pair.confidence_i), confidence_j=np.zeros_like(pair.confidence_j))


def test_what_cannot_be_aligned_is_refused_in_a_sentence(mixed: Scene) -> None:
    pairs, pixels = mixed.pairs(), mixed.pixels
    spoilt = pairs[0].points_j.copy()
    spoilt[3, 4, 1] = np.nan
    for given_pairs, given_pixels, reason in (
        ([without_confidence(pairs[0])], pixels[:2], "No pair of photos links photo 2 to the others"),
        ([p for p in pairs if {p.i, p.j} in ({0, 1}, {0, 2})], pixels, "No pair of photos links photo 4 to the others"),
        ([p for p in pairs if {p.i, p.j} in ({0, 1}, {2, 3})], pixels, "links photo 3, 4 to the others"),
        ([replace(pairs[0], points_j=spoilt), *pairs[1:]], pixels, "photos 1 and 2 holds numbers that are not finite"),
        ([], pixels[:1], "One photo makes no pair"),
    ):
        with pytest.raises(ReconstructionError, match=reason) as caught:
            align(given_pairs, given_pixels)
        assert caught.value.suggestion
    with pytest.raises(ValueError, match="pointmap"):
        align(pairs, [pixels[0]] * 4)


@pytest.mark.parametrize("shape", [(24, 32, 1), (1, 1, 3)], ids=["noise", "one point"])
def test_pointmaps_that_no_camera_sees_are_refused(shape: tuple[int, ...]) -> None:
    scene = Scene([(24, 32)] * 2, [36.0] * 2)
    pair = scene.pair(0, 1)
    nonsense = np.random.default_rng(0).normal(size=shape).astype(np.float32) * np.ones((24, 32, 3), np.float32)
    with pytest.raises(ReconstructionError, match="No camera explains what the network sees in photo 2"):
        align([replace(pair, points_j=nonsense)], scene.pixels)


def test_a_pair_without_confidence_has_no_say(mixed: Scene) -> None:
    pairs = mixed.pairs()
    wrong = replace(without_confidence(pairs[0]), points_i=pairs[0].points_i[::-1] * 3)
    np.testing.assert_array_equal(
        align([wrong, *pairs], mixed.pixels, iterations=3).focals, align(pairs, mixed.pixels, iterations=3).focals
    )


def test_progress_rises_to_the_end_and_may_cancel(mixed: Scene) -> None:
    ticks: list[float] = []
    align(mixed.pairs(), mixed.pixels, ticks.append, iterations=10)
    assert ticks == sorted(ticks)
    assert (ticks[0], ticks[-1]) == (0, 1)

    def cancel(done: float) -> None:
        if done >= 0.5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        align(mixed.pairs(), mixed.pixels, cancel, iterations=10)
    # The start takes its time as well.
    align(mixed.pairs(), mixed.pixels, ticks.append, iterations=0)
    assert ticks.count(0) > 12


def test_clearing_the_air_may_be_cancelled(mixed: Scene) -> None:
    def cancel() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        clear_air(align(mixed.pairs(), mixed.pixels, iterations=0), cancel)


def test_points_that_float_before_a_surer_surface_lose_their_confidence(mixed: Scene) -> None:
    aligned = align(mixed.pairs(), mixed.pixels, iterations=0)
    confidence = [np.full_like(c, 5.0) for c in aligned.confidence]
    confidence[0][10:14, 10:14] = 2.0
    depths = [depth.copy() for depth in aligned.depths]
    depths[0][10:14, 10:14] *= 0.7
    cleared = clear_air(replace(aligned, confidence=tuple(confidence), depths=tuple(depths)))
    assert (cleared[0][10:14, 10:14] == 0).all()
    assert all((c[c > 2] == 5).all() for c in cleared)
    assert sum((c == 0).sum() for c in cleared) == 16
