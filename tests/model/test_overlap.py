"""The photo that sees most of the others is found from the photos alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.classical.overlap import choose_reference, shared_content
from model.types import UInt8, View, Views


def silent(done: float) -> None:
    pass


def wall(seed: int = 0) -> UInt8:
    """(300, 1400, 3), textured at every size."""
    rng = np.random.default_rng(seed)
    sizes = ((4, 16), (20, 80), (100, 400))
    layers = [cv2.resize(rng.uniform(0, 80, (*size, 3)), (1400, 300), interpolation=cv2.INTER_CUBIC) for size in sizes]
    return np.clip(sum(layers), 0, 255).astype(np.uint8)


WALL = wall()


def photograph(*lefts: int) -> Views:
    """Photos 400 wide of the wall, from these columns on."""
    return Views(tuple(View(f"{left}.jpg", WALL[:, left : left + 400], (400, 300)) for left in lefts))


@settings(max_examples=6, deadline=None)
@given(order=st.permutations([0, 300, 600]))
def test_the_middle_of_a_walk_is_chosen_whatever_the_order(order: list[int]) -> None:
    assert choose_reference(photograph(*order), silent) == order.index(300)


def test_three_photos_of_one_spot_do_not_outvote_the_rest() -> None:
    """All but one photo of a spot say nothing new: who also sees the others is the better reference."""
    views = photograph(0, 2, 4, 250, 500, 750)
    assert choose_reference(views, silent) == 3


def test_shared_content_is_symmetric_and_bounded() -> None:
    shared = shared_content(photograph(0, 200, 1000), silent)
    np.testing.assert_array_equal(shared, shared.T)
    assert (np.diag(shared) == 0).all()
    assert shared[0, 1] > 0.8
    assert shared.max() < 1
    assert shared[:2, 2].max() < 0.5


@pytest.mark.parametrize("size", [(64, 64), (3, 500)])
def test_photos_of_nothing_leave_the_first(size: tuple[int, int]) -> None:
    blank = View("blank.jpg", np.full((*size, 3), 128, np.uint8), (size[1], size[0]))
    assert choose_reference(Views((blank, blank)), silent) == 0


def test_progress_is_told_and_may_cancel() -> None:
    told: list[float] = []
    choose_reference(photograph(0, 200), told.append)
    assert told == sorted(told)
    assert told[-1] == 1

    def cancel(done: float) -> None:
        raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        choose_reference(photograph(0, 200), cancel)
