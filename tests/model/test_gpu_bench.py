"""What the bench of GPUs counts, compares and writes, rehearsed on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bench import gpu
from model.layers import own_group_bias


def test_a_rehearsal_writes_the_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROUNDS", (2, 2))
    arguments = ["--tiny", "--device", "cpu", "--out", str(tmp_path), "--views", "4", "--batch", "1", "2"]
    gpu.main([*arguments, "--only", "torch, bf16", "eager, bf16", "naive, TF32", "tensorrt, fp16"])
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert "rehearsal" in document["setting"]["device"]
    assert list(document["absent"]) == ["tensorrt, fp16"]
    records = {(r["what"], r.get("views"), r.get("batch")): r for r in document["records"]}
    cells = [("torch, bf16", 4, 1), ("torch, bf16", 4, 2), ("eager, bf16", 4, 1), ("eager, bf16", 4, 2)]
    assert records.keys() == {
        *cells, ("naive, TF32", 4, 1), ("attention", 4, 1), ("profile, torch, bf16", 4, 1), ("limits", None, None),
    }  # fmt: skip
    for cell in cells:
        record = records[cell]
        assert len(record["seconds"]) == 2
        assert 1e-4 < record["point_error_median"] < record["point_error_p99"] < 0.2
    assert records["naive, TF32", 4, 1]["point_error_p99"] < 1e-4
    # A tiny network's figures are no one's goal.
    assert "goal" not in records["torch, bf16", 4, 1]
    assert set(records["profile, torch, bf16", 4, 1]["kinds"]) == {*gpu.KERNELS, "element by element"}
    assert (tmp_path / "gpu.png").stat().st_size > 5000
    report = (tmp_path / "gpu.md").read_text()
    assert all(text in report for text in ("| 4 | 2 | torch, bf16 |", "not here: tensorrt, fp16", "| ring, flash |"))


def test_records_of_another_device_are_not_kept(tmp_path: Path) -> None:
    failed = gpu.record_of("torch, bf16", 24, 4, error="out of memory")
    gpu.keep([failed], {"device": "A"}, {}, tmp_path)
    gpu.keep([failed | {"batch": 2}], {"device": "A"}, {}, tmp_path)
    assert len(json.loads((tmp_path / "gpu.json").read_text())["records"]) == 2
    assert "| 24 | 4 | torch, bf16 | out of memory |" in (tmp_path / "gpu.md").read_text()
    gpu.keep([failed], {"device": "B"}, {}, tmp_path)
    assert len(json.loads((tmp_path / "gpu.json").read_text())["records"]) == 1


def test_nothing_of_a_rehearsal_goes_to_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--tiny", "--device", "cpu"])
    assert "do not go to docs/" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 1
    assert "no CUDA GPU" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tests_that_require_a_gpu_fail_without_one() -> None:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/model/test_gpu.py"]
    root = Path(gpu.__file__).parents[1]
    required = subprocess.run([*command, "--require-gpu"], cwd=root, capture_output=True, text=True)
    assert required.returncode == 1
    assert "--require-gpu: there is no CUDA GPU on this machine" in required.stdout + required.stderr
    skipped = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert skipped.returncode == 0
    assert "Nothing ran on a GPU" in skipped.stdout


@pytest.mark.parametrize("views", [2, 3, 7])
def test_a_ring_of_views_is_the_masked_attention(views: int) -> None:
    generator = torch.Generator().manual_seed(views)
    q, k, v = (torch.randn(2, 3, views * 4, 8, generator=generator) for _ in range(3))
    q = q[:, :, 4:]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=own_group_bias(views, 4, q)[4:])
    torch.testing.assert_close(gpu.ring_attention(q, k, v, views), expected)
