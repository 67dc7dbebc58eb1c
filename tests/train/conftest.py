from __future__ import annotations

import numpy as np
import pytest

from train import scenes
from train.render import Room


@pytest.fixture(scope="session")
def plain_room() -> Room:
    """A furnished room in coarse light and small textures."""
    return scenes.make_room(3, texture_side=128, light_cell=0.3, light_samples=8)


@pytest.fixture(scope="session")
def walk(plain_room: Room) -> np.ndarray:
    return scenes.make_cameras(plain_room, 6, 0)
