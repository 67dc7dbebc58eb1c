"""The latency bench's clock, table and photos."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from bench import latency
from service import images


def test_clock_counts_work_and_bytes():
    clock = latency.Clock()
    data = clock("work", lambda: bytes(np.random.default_rng(0).bytes(2_000_000)), lambda made: float(len(made)))
    assert len(data) == 2_000_000
    (stage,) = clock.stages
    assert 0 < stage.wall < 10
    assert stage.megabytes == 2.0
    assert stage.peak_mb is not None
    assert 20 < stage.peak_mb < 100_000


def test_table_has_one_row_a_stage():
    stages = [latency.Stage("decode", 0.5, 0.9, 100.4, 10.0), latency.Stage("- poses", 2.0)]
    lines = latency.table(stages).splitlines()
    assert lines[2:] == ["| decode | 0.50 | 0.90 | 10.00 | 20.0 | 100 |", "| - poses | 2.00 |  |  |  |  |"]


def test_photos_are_jpegs_with_the_focal_length():
    photos = latency.photograph(2, (160, 120), (80, 60), texture_side=32, light_cell=0.5, light_samples=2)
    assert len(set(photos)) == 2
    checked = images.inspect("0.jpg", photos[0], max_pixels=10**6)
    assert (checked.width, checked.height) == (160, 120)
    assert abs(checked.exif_focal - 28 * 200 / np.hypot(36, 24)) < 0.01
    assert np.asarray(Image.open(io.BytesIO(photos[0]))).std() > 20
