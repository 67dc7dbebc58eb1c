"""Alignment on matches, on scenes whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.geometry.alignment import Pair, align
from model.geometry.sparse_alignment import Matches, align_matches
from model.types import ReconstructionError
from tests.wavy import Scene

EVERY = list(combinations(range(4), 2))
PIXEL = np.degrees(1 / 60)
"""About what a pixel spans in these scenes: matches are whole pixels."""


@pytest.fixture(scope="module")
def mixed() -> Scene:
    return Scene([(48, 64), (64, 48), (48, 64), (32, 64)], [70.0, 60.0, 72.0, 80.0])


@pytest.fixture(scope="module")
def matches(mixed: Scene) -> list[Matches]:
    return [mixed.matches(i, j, wrong=0.2) for i, j in EVERY]


def test_matches_mend_what_noisy_pointmaps_got_wrong(mixed: Scene, matches: list[Matches]) -> None:
    pairs = mixed.pairs(noise=0.03)
    start = mixed.errors(align(pairs, mixed.pixels, iterations=0))
    degrees, distance, focal = mixed.errors(align_matches(pairs, matches, mixed.pixels))
    assert degrees < min(PIXEL, 0.5 * start[0])
    assert distance < min(0.07, 0.5 * start[1])
    assert focal < 0.005


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_wrong_first_focal_is_put_right(mixed: Scene, matches: list[Matches], factor: float) -> None:
    aligned = align_matches(mixed.pairs(), matches, mixed.pixels, focals=list(factor * mixed.focals))
    degrees, distance, focal = mixed.errors(aligned)
    assert degrees < PIXEL
    assert distance < 0.07
    assert focal < 0.02


def test_views_of_one_camera_share_one_focal(mixed: Scene, matches: list[Matches]) -> None:
    pairs, first = mixed.pairs(noise=0.03), [77.0, 60.0, 70.0, 80.0]
    shared = align_matches(pairs, matches, mixed.pixels, focals=first, cameras=["a", "b", "c", "d"])
    assert len(set(shared.focals)) == 4
    shared = align_matches(pairs, matches, mixed.pixels, focals=first, cameras=["a", "b", "a", "c"])
    assert shared.focals[0] == shared.focals[2] == pytest.approx(71, rel=0.01)  # they are 70 and 72


def test_one_camera_of_all_views_is_found() -> None:
    scene = Scene([(48, 64), (48, 64), (64, 48), (48, 64)], [70.0] * 4)
    pairs, matches = scene.pairs(noise=0.03), [scene.matches(i, j, wrong=0.2) for i, j in EVERY]
    found = align_matches(pairs, matches, scene.pixels, cameras=["a"] * 4, focals=[63, 77, None, 77])
    assert len(set(found.focals)) == 1
    degrees, distance, focal = scene.errors(found)
    assert degrees < PIXEL
    assert distance < 0.07
    assert focal < 0.01


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_other_scenes_are_found_as_well(seed: int) -> None:
    scene = Scene([(32, 48)] * 4, [50.0] * 4, seed)
    aligned = align_matches(scene.pairs(noise=0.01), [scene.matches(i, j, 0.1) for i, j in EVERY], scene.pixels)
    degrees, distance, focal = scene.errors(aligned)
    assert degrees < PIXEL
    assert distance < 0.1
    assert focal < 0.01


def test_depths_bend_to_where_the_matches_want_them() -> None:
    scene = Scene([(48, 64)] * 4, [60.0] * 4)
    rows, columns = np.mgrid[0:48, 0:64]
    bent = (1 + 0.06 * np.sin(columns / 9) * np.cos(rows / 11)).astype(np.float32)[..., None]
    pairs = [replace(p, points_i=p.points_i * bent, points_j=p.points_j * bent) for p in scene.pairs()]
    found = align_matches(pairs, [scene.matches(i, j) for i, j in EVERY], scene.pixels)

    def spread(depths: tuple[np.ndarray, ...]) -> float:
        true = [((x - p[:3, 3]) @ p[:3, 2]) for x, p in zip(scene.points, scene.poses)]
        return float(np.mean([np.std(np.log(d / t)) for d, t in zip(depths, true)]))

    assert spread(found.depths) < 0.8 * spread(align(pairs, scene.pixels, iterations=0).depths)


def test_permuting_the_views_permutes_the_answer(mixed: Scene, matches: list[Matches]) -> None:
    order = [2, 0, 3, 1]
    at = np.argsort(order)
    pairs = mixed.pairs(noise=0.01)
    plain = align_matches(pairs, matches, mixed.pixels)
    permuted = align_matches(
        [replace(pair, i=order[pair.i], j=order[pair.j]) for pair in pairs[::-1]],
        [replace(m, i=order[m.i], j=order[m.j]) for m in matches[::-1]],
        [mixed.pixels[v] for v in at],
    )
    np.testing.assert_allclose(permuted.camera_to_world, plain.camera_to_world[at], atol=1e-4)
    np.testing.assert_allclose(permuted.focals, plain.focals[at], rtol=1e-4)
    for new, old in enumerate(at):
        np.testing.assert_allclose(permuted.depths[new], plain.depths[old], rtol=1e-3)


def test_costs_fall_and_progress_rises_and_may_cancel(mixed: Scene, matches: list[Matches]) -> None:
    ticks: list[float] = []
    align_matches(mixed.pairs(noise=0.02), matches, mixed.pixels, ticks.append)
    assert ticks == sorted(ticks)
    assert ticks[-1] == 1

    def cancel(done: float) -> None:
        if done >= 0.4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        align_matches(mixed.pairs(), matches, mixed.pixels, cancel)


def test_too_few_matches_are_refused_in_a_sentence(mixed: Scene, matches: list[Matches]) -> None:
    def few(m: Matches) -> Matches:
        return replace(m, indices=m.indices[:5], confidence=m.confidence[:5])

    pairs: list[Pair] = mixed.pairs()
    with pytest.raises(ReconstructionError, match="too few points in common"):
        align_matches(pairs, [few(m) for m in matches], mixed.pixels)
    with pytest.raises(ReconstructionError, match="No pair of photos links photo 4 to the others"):
        align_matches(pairs, [few(m) if 3 in (m.i, m.j) else m for m in matches], mixed.pixels)
