"""The rooms for evaluation: whole, and out of training's reach."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np

from train import materials, scenes, unseen
from train.furniture import Kit, Workshop
from train.render import intrinsics, render

ROOT = Path(__file__).parents[2]


def imported(path: Path) -> set[str]:
    """Every name that a file imports, with its module before it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_nothing_that_trains_can_reach_it():
    # Rooms come of `make_room`, which takes a workshop: nobody hands it another than training's.
    for path in ROOT.glob("train/*.py"):
        if path.name != "unseen.py":
            assert not any("unseen" in name for name in imported(path)), path
            assert "import_module" not in path.read_text() or "unseen" not in path.read_text(), path


def test_it_shares_neither_materials_nor_furniture():
    mine = {name.removeprefix("train.materials.") for name in imported(ROOT / "train" / "unseen.py")}
    drawn = {
        name for name in vars(materials) if getattr(getattr(materials, name), "__module__", "") == materials.__name__
    }
    assert mine & drawn == {"hue", "noise"}
    pieces = {name for name in vars(Kit) if not name.startswith("_")} - set(vars(Workshop))
    assert not pieces & set(vars(unseen.Storeroom))


def test_rooms_are_whole():
    settings = {"texture_side": 32, "light_cell": 1.0, "light_samples": 1, "workshop": unseen.Storeroom}
    makers = set()
    for seed in (0, 4):
        room = scenes.make_room(seed, **settings)
        makers.add(len(room.scene.kind))
        assert np.isfinite(room.light).all()
        low, high = room.scene.bounds[8:, :3], room.scene.bounds[8:, 3:]
        assert (low.min(0) > -0.3).all()
        assert (high.max(0) < np.array(room.size) + 0.3).all()
    assert len(makers) == 2
    again = scenes.make_room(4, **settings)
    np.testing.assert_array_equal(again.light, room.light)
    picture = render(room, scenes.make_cameras(room, 1, 0)[0], intrinsics((64, 48)), (64, 48))
    assert picture.valid.all()
    assert picture.rgb.std() > 20
