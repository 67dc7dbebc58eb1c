"""What the bench of engines writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bench import engines

EXPORT: dict[str, Any] = {
    "what": "export", "precision": "fp16", "seconds": 60.0, "cpu_seconds": 55.0, "peak_mb": 5000.0, "mb": 1300.0,
    "parity": [{"batch": 2, "views": 3, "point_error_median": 1e-3, "point_error_p99": 5e-3}],
}  # fmt: skip
ENGINE: dict[str, Any] = {
    "what": "engine", "precision": "fp16", "target": "sm89", "views": [[2, 2], [3, 4]], "seconds": 90.0,
    "cpu_seconds": 80.0, "peak_mb": 6000.0, "mb": 1400.0, "attentions": 192, "fused_attentions": 190,
    "kernels": {"gemm": 250, "kgen": 700},
}  # fmt: skip


def test_records_are_kept_and_replaced(tmp_path: Path) -> None:
    engines.keep([EXPORT, ENGINE], tmp_path)
    engines.keep([ENGINE | {"seconds": 30.0}, ENGINE | {"target": "sm120"}], tmp_path)
    records = json.loads((tmp_path / "engines.json").read_text())
    assert [(r["what"], r.get("target"), r["seconds"]) for r in records] == [
        ("engine", "sm120", 90.0),
        ("engine", "sm89", 30.0),
        ("export", None, 60.0),
    ]
    report = (tmp_path / "engines.md").read_text()
    assert "| fp16 | sm89 | 2, 3-4 | 30 | 80 | 6000 | 1400 | 190 of 192 | 250 gemm, 700 kgen |" in report
    assert "| fp16 | 60 | 55 | 5000 | 1300 | 2 x 3 | 1.0e-03 | 5.0e-03 |" in report


def test_a_build_is_one_record(half_artifact: Path, built: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(half_artifact, tmp_path / "copy"))
    record = engines.build(copy, "sm89")
    assert (record["target"], record["precision"], record["views"]) == ("sm89", "fp16", [(2, 2), (3, 3)])
    assert record["mb"] == built.stat().st_size / 1e6
    assert record["fused_attentions"] == record["attentions"] == 26
    assert sum(record["kernels"].values()) > 100
    assert {"gemm", "kgen"} <= record["kernels"].keys()
    # An engine of the released size takes more than a gigabyte: it is not kept.
    assert not list(copy.glob("engines/*.engine"))
