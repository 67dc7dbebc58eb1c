from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from train.render import Room

# What makes rooms is imported where rooms are made: a machine for the GPU's tests may lack it.


@pytest.fixture(scope="session")
def plain_room() -> Room:
    """A furnished room in coarse light and small textures."""
    from train import scenes

    return scenes.make_room(3, texture_side=128, light_cell=0.3, light_samples=8)


@pytest.fixture(scope="session")
def walk(plain_room: Room) -> np.ndarray:
    from train import scenes

    return scenes.make_cameras(plain_room, 6, 0)
