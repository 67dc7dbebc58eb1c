"""The bench of the choice of reference: what a camera sees, and what its report says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import reference
from bench.sets import FOCAL
from train.render import intrinsics
from train.scenes import make_cameras, make_room, overlap


def test_who_stands_amid_the_others_sees_most_of_them() -> None:
    room = make_room(3, texture_side=16, light_cell=2.0, light_samples=1)
    poses = make_cameras(room, 3, 3)
    seen = reference.seen_by(room, poses[[0, 1, 2]])
    assert ((seen > 0) & (seen <= 1)).all()
    assert seen.argmax() == 1
    np.testing.assert_allclose(reference.seen_by(room, poses[[1, 0, 2]]), seen[[1, 0, 2]])
    first, last = poses[0], poses[2]
    pair = overlap(room, last, first, intrinsics(reference.GRID, FOCAL), reference.GRID)
    assert reference.seen_by(room, poses[[0, 2]])[0] == pytest.approx(pair)


def test_records_are_kept_and_averaged(tmp_path: Path) -> None:
    record = {"room": 0, "views": 4, "choice": "auto", "reference": 1, "seen": 0.5, "median_error": 0.02}
    reference.keep(record, tmp_path)
    reference.keep(record | {"room": 1, "seen": 0.7, "median_error": 0.04, "within_5": 0.9}, tmp_path)
    reference.keep(record | {"seen": 0.6}, tmp_path)
    assert [r["seen"] for r in json.loads((tmp_path / "reference.json").read_text())] == pytest.approx([0.6, 0.7])
    assert "| 4 | auto | 2 | 65.0% | 3.0% | 90.0% |" in (tmp_path / "reference.md").read_text()
