"""What the bench of the forward pass counts and compares."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import forward
from model.config import MVDUST3R, MVDUST3R_PLUS, ModelConfig
from model.mvdust3r import MVDUSt3R
from tests.tiny import TINY_CONFIG, tiny_network

CONFIG = replace(TINY_CONFIG, encoder_width=64, decoder_width=64, encoder_heads=4, decoder_heads=4)


@pytest.mark.parametrize(("config", "paths"), [(MVDUST3R, 1), (MVDUST3R_PLUS, 4)])
def test_the_work_is_what_torch_counts(config: ModelConfig, paths: int) -> None:
    """But for the hidden parts of an attention with a mask, which torch computes and the network does not need."""
    with torch.device("meta"):
        network, images, references = MVDUSt3R(config).eval(), torch.zeros(1, 8, 3, 224, 224), torch.arange(paths)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(images, references)
    needed = sum(forward.multiply_adds(config, 8, paths).values())
    assert needed < counter.get_total_flops() / 2 < 1.02 * needed


def test_both_versions_run_in_turn_and_agree() -> None:
    record = forward.compare(3, 2, CONFIG, 32)
    assert record["point_error_max"] < 1e-3
    assert len(record["seconds"]) == len(record["naive_seconds"]) == 2
    assert record["ratio"] == pytest.approx(min(record["naive_seconds"]) / min(record["seconds"]))
    assert min(record["peak_mb"], record["naive_peak_mb"]) > 50


def test_a_profile_shares_out_the_whole() -> None:
    shares = forward.profiled(tiny_network(), 3, 4, 64)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())


def test_records_are_kept_and_replaced(tmp_path: Path) -> None:
    first = {"what": "alone", "views": 2, "seconds": [1.0], "cpu_seconds": [2.0], "peak_mb": 10.0, "multiply_adds": 2e9}
    other = first | {"views": 3}
    forward.keep([first, other], tmp_path)
    forward.keep([first | {"seconds": [0.5]}], tmp_path)
    records = json.loads((tmp_path / "forward.json").read_text())["records"]
    assert [(r["views"], r["seconds"]) for r in records] == [(2, [0.5]), (3, [1.0])]
    report = (tmp_path / "forward.md").read_text()
    assert "| 2 | 0.5 | 10 | 2 | 4 |" in report
    assert "| 3 | 1 | 10 | 2 | 2 |" in report
    assert (tmp_path / "forward.png").stat().st_size > 5000
