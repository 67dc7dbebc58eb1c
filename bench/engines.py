"""What engines of MV-DUSt3R+ take to make at its released size: `python -m bench.engines` writes docs/bench/engines.*.

    python -m bench.engines                                   fp16 for sm89
    python -m bench.engines --precision fp16 bf16 fp32 --target sm86 sm89 sm120

Needs TensorRT for RTX and no GPU: so nothing here says how fast an engine is, only that NVIDIA's parser and builder
take the whole network, what they plan, and what that costs. The network has 661 M parameters, which follow from their
names (`tests/golden/rule.py`). Every export, which compares the graph with the network, and every build has a process
of its own, whose peak memory it is.

Every measurement is one record of engines.json; records of an earlier run are kept unless they are measured anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from export.engine import ENGINES_FOLDER, ensure_engine, read_record
from model.config import MVDUST3R_PLUS, ModelConfig

FOLDER = Path(__file__).parents[1] / "docs" / "bench"


def export(precision: str, folder: Path, config: ModelConfig, square: int) -> dict[str, Any]:
    """Write the artifact to `folder`; one record."""
    from export.onnx_graph import export_onnx
    from tests.golden.rule import golden_network

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    network = golden_network(config)
    wall, cpu = time.perf_counter(), time.process_time()
    description = export_onnx(network, folder, "full", "none", square=square, precision=precision)
    return {
        "what": "export",
        "precision": precision,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "mb": sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
        "parity": description.parity["noise"],
    }


def build(artifact: Path, target: str) -> dict[str, Any]:
    """Build the engine of an artifact for `target`; one record."""
    cpu = time.process_time()
    path = ensure_engine(artifact, target, artifact / ENGINES_FOLDER)
    record = read_record(path)
    path.unlink()
    kinds: Counter[str] = Counter()
    for name, count in record.kernels.items():
        kinds[name.split()[0]] += count
    return {
        "what": "engine",
        "precision": record.key.precision,
        "target": target,
        "builder": f"{record.key.builder} {record.key.version}",
        "views": [profile.views for profile in record.key.profiles],
        "seconds": record.seconds,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": record.peak_memory / 1e6,
        "mb": record.size / 1e6,
        "attentions": record.attentions,
        "fused_attentions": record.fused_attentions,
        "kernels": dict(kinds.most_common()),
    }


def measure(
    precisions: Sequence[str], targets: Sequence[str], config: ModelConfig = MVDUST3R_PLUS, square: int = 224
) -> list[dict[str, Any]]:
    """One record an export and one an engine."""
    records = []
    for precision in precisions:
        with (
            tempfile.TemporaryDirectory() as scratch,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as process,
        ):
            artifact = Path(scratch) / precision
            records.append(process.submit(export, precision, artifact, config, square).result())
            print(records[-1], flush=True)
            for target in targets:
                records.append(process.submit(build, artifact, target).result())
                print(records[-1], flush=True)
    return records


def table(records: Sequence[dict[str, Any]]) -> str:
    """engines.md."""
    lines = [
        "# Engines of MV-DUSt3R+ at its released size",
        "",
        "Built ahead of time, without a GPU: `python -m bench.engines` (what exactly: `bench/engines.py`). MB are 10^6",
        "bytes. CPU seconds are those of all threads; by the clock, they are upper bounds where the machine did other",
        "work. An attention is fused where the plan has it as one kernel; counts are over all profiles of view counts.",
        "",
        "| precision | target | profiles | s | CPU s | peak MB | engine MB | fused attentions | kernels |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --- |",
    ]
    for r in (r for r in records if r["what"] == "engine"):
        views = ", ".join(f"{first}-{last}" if first < last else str(last) for first, last in r["views"])
        kernels = ", ".join(f"{count} {kind}" for kind, count in r["kernels"].items())
        lines.append(
            f"| {r['precision']} | {r['target']} | {views} | {r['seconds']:.0f} | {r['cpu_seconds']:.0f} "
            f"| {r['peak_mb']:.0f} | {r['mb']:.0f} | {r['fused_attentions']} of {r['attentions']} | {kernels} |"
        )
    lines += [
        "",
        "The graph against the network in float32, in ONNX Runtime on the CPU (how bf16 runs there: `export.parity`).",
        "Weights are random, and so is what is seen; points relative to their norm:",
        "",
        "| precision | export s | CPU s | peak MB | graph MB | scenes x views | points differ by, median | 99 % |",
        "| --- | --: | --: | --: | --: | --- | --: | --: |",
    ]
    for r in (r for r in records if r["what"] == "export"):
        cost = " | ".join(f"{r[name]:.0f}" for name in ("seconds", "cpu_seconds", "peak_mb", "mb"))
        lines += [
            f"| {r['precision']} | {cost} | {case['batch']} x {case['views']} | {case['point_error_median']:.1e} "
            f"| {case['point_error_p99']:.1e} |"
            for case in r["parity"]
        ]
    return "\n".join([*lines, ""])


def keep(records: Sequence[dict[str, Any]], out: Path) -> None:
    """Add the records to those of earlier runs, and write the table anew."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "engines.json"
    before = json.loads(path.read_text()) if path.exists() else []
    known = {(r["what"], r["precision"], r.get("target", "")): r for r in (*before, *records)}
    kept = [known[key] for key in sorted(known)]
    path.write_text(json.dumps(kept, indent=1) + "\n")
    (out / "engines.md").write_text(table(kept))


def main() -> None:
    parser = argparse.ArgumentParser(description="Engines of MV-DUSt3R+ at its released size, without a GPU.")
    parser.add_argument("--precision", nargs="+", default=["fp16"])
    parser.add_argument("--target", nargs="+", default=["sm89"])
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    for precision in arguments.precision:
        keep(measure([precision], arguments.target), arguments.out)
    print((arguments.out / "engines.md").read_text())


if __name__ == "__main__":
    main()
