from __future__ import annotations

import cv2
import numpy as np
import pytest

from model.classical.keyframes import Step, keyframes, sharpness, thin

SIZE = (180, 320)
FOCAL = 267.0
K = np.array([[FOCAL, 0, 160], [0, FOCAL, 90], [0, 0, 1.0]])


def texture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Blobs of every size, fit to be tracked."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.uniform(size=(size[0] // n, size[1] // n)), size[::-1]) for n in (6, 15, 40)]
    return np.uint8(255 * np.mean(layers, axis=0))


WALL, BOX = texture(0, (900, 2000)), texture(1, (900, 2000))
BOXES = np.kron(np.random.default_rng(2).uniform(size=(6, 14)) < 0.35, np.ones((150, 143), bool))[:900, :2000]


def shot(x: float = 0, turn: float = 0, noise: int = 0) -> np.ndarray:
    """(180, 320) grey: what a camera at x, turned by so many radians, sees of a wall 4 and boxes 2 before it."""
    image = np.zeros(SIZE, np.uint8)
    R = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
    for depth, picture, mask in ((4, WALL, None), (2, BOX, BOXES)):
        # Pixels of the picture to points of a plane, 250 to the unit of a wall at depth 4, to pixels of the camera.
        to_plane = np.array(
            [[depth / 600, 0, -depth * 1000 / 600], [0, depth / 600, -depth * 450 / 600], [0, 0, depth]]
        )
        H = K @ R @ (to_plane - np.outer([x, 0, 0], [0, 0, 1]))
        seen = cv2.warpPerspective(picture, H, SIZE[::-1])
        where = np.ones(SIZE, bool) if mask is None else cv2.warpPerspective(np.uint8(mask), H, SIZE[::-1]) > 0
        image[where] = seen[where]
    if noise:
        added = np.random.default_rng(noise).integers(-3, 4, SIZE)
        image = np.uint8(np.clip(image.astype(int) + added, 0, 255))
    return image


def taken(frames: list[np.ndarray]) -> tuple[list[int], list]:
    found = list(keyframes(enumerate(frames)))
    return [index for index, _ in found], [step for _, step in found]


def test_a_walk_gives_frames_at_even_distances():
    xs = np.linspace(0, 1.2, 50)
    indices, steps = taken([shot(x, noise=i + 1) for i, x in enumerate(xs)])
    assert len(indices) >= 5
    gaps = np.diff(xs[indices])
    assert gaps.max() < 2.5 * gaps.min()
    assert all(step.moved and step.shared > 0.4 for step in steps[1:])


def test_where_the_camera_stands_no_frames_are_taken():
    walk = list(np.linspace(0, 0.6, 25))
    xs = np.array([0.0] * 20 + walk + [0.6] * 30 + [x + 0.6 for x in walk])
    indices, _ = taken([shot(x, noise=i + 1) for i, x in enumerate(xs)])
    standing = [i for i in indices if i < 20 or 50 <= i < 72]
    assert len(standing) <= 2
    assert len(indices) >= 5


def test_a_still_film_yields_one_frame():
    indices, _ = taken([shot(noise=i + 1) for i in range(40)])
    assert len(indices) == 1


@pytest.mark.parametrize("degrees", [8, 50])
def test_a_turn_on_the_spot_is_not_taken_for_a_move(degrees):
    turns = np.radians(np.linspace(0, degrees, 40)) - np.radians(degrees / 2)
    indices, steps = taken([shot(turn=turn, noise=i + 1) for i, turn in enumerate(turns)])
    assert not any(step.moved for step in steps[1:])
    assert len(indices) <= 4
    if degrees > 40:
        assert len(indices) >= 2, "frames are spent on what comes into sight"


def test_of_neighbours_the_sharpest_is_taken():
    frames = [shot(x) for x in np.linspace(0, 0.8, 60)]
    blurred = [frame if i % 3 == 1 else cv2.blur(frame, (9, 1)) for i, frame in enumerate(frames)]
    assert sharpness(blurred[1]) > sharpness(blurred[0])
    indices, _ = taken(blurred)
    assert len(indices) >= 4
    assert all(i % 3 == 1 for i in indices[:-1])


def test_films_that_cannot_be_tracked_are_taken_evenly():
    blank = [np.full(SIZE, 90, np.uint8)] * 40
    indices, steps = taken(blank)
    assert np.diff(indices).max() <= 5
    assert all(step.moved for step in steps[1:])
    cuts = [shot(x=3.0 * (i // 10), turn=0.3 * (i // 10 % 2)) for i in range(40)]
    assert len(taken(cuts)[0]) >= 4


def test_short_films():
    assert taken([]) == ([], [])
    assert taken([shot()])[0] == [0]
    assert taken([shot(0), shot(0.3)])[0][0] in (0, 1)


def test_of_many_keyframes_an_even_part_is_kept_and_few_of_a_turn():
    move, turn = Step(0.015, 0.8), Step(0.001, 0.4)
    assert thin([move] * 5, 9) == [0, 1, 2, 3, 4]
    gaps = np.diff(thin([move] * 33, 9))
    assert len(gaps) == 8
    assert gaps.max() <= 2 * gaps.min()
    steps = [move] * 10 + [turn] * 20 + [move] * 10
    kept = thin(steps, 10)
    assert (kept[0], kept[-1], len(kept)) == (0, 39, 10)
    assert sum(10 <= i < 30 for i in kept) <= 4
    assert thin([move] * 7, 2) == [0, 6]
