"""What one pass of MV-DUSt3R+ takes at its released size: `python -m bench.forward` writes docs/bench/forward.*.

    python -m bench.forward                  4 and 8 views beside the naive version, then alone from 2 to 12 views
    python -m bench.forward --views 8        8 views beside the naive version, nothing else
    python -m bench.forward --views --most 48    alone from 2 to 48 views (memory and minutes of a pass grow)

The network has 661 M parameters, which follow from their names (`tests/golden/rule.py`), 4 reference paths and photos
of 224 x 224, float32 on the CPU. Naive is `tests/model/naive_mvdust3r.py`: view by view and path by path, as the
released code works. Each has a process of its own and runs while the other waits, in turn. Seconds are the least of
the rounds, by the clock, and of all threads, which other work on the machine disturbs less. Peak memory is the
process's own, weights included. The two answers are compared, too.

On a GPU: `bench/gpu.py`.

Every measurement is one record of forward.json; records of an earlier run are kept unless they are measured anew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from export.sessions import choose_references
from model.config import MVDUST3R_PLUS, PATCH, ModelConfig
from model.mvdust3r import NetworkOutput
from tests.golden.rule import golden_network
from tests.model.naive_mvdust3r import NaiveMVDUSt3R

FOLDER = Path(__file__).parents[1] / "docs" / "bench"
SQUARE = 224
GROWTH = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""View counts of the plot."""
Kind = Literal["ours", "naive"]
Pass = Callable[[Tensor, Sequence[int]], NetworkOutput]

KINDS = {
    "convolutions": ("convolution", "conv2d"),
    "matrix products": ("addmm", "bmm", "mm", "matmul", "linear"),
    "attention": ("attention",),
}
"""What a part of a profile is called -> parts of the names of the operators that do it; the first that fits."""


# ---------------------------------------------------------------- the work


def multiply_adds(config: ModelConfig, views: int, paths: int, square: int = SQUARE) -> dict[str, float]:
    """Multiply-adds that one pass needs, by part: every key and value projected once, heads on path 0 alone."""
    tokens, pixels = (square // PATCH) ** 2, square**2
    wide, d = config.encoder_width, config.decoder_width
    # Of width d, a decoder block has 16 d^2 weights, an encoder block 12; attention of t to s tokens takes 2 t s d.
    encoder = config.encoder_depth * (12 * wide**2 * tokens + 2 * tokens**2 * wide) + tokens * wide * 3 * PATCH**2
    attention = 2 * tokens**2 * d
    block = 16 * d**2 * tokens + attention
    # The reference's blocks make keys and values of the other views with weights of their own.
    layer = paths * (block + (views - 1) * (attention + 2 * d**2 * tokens / views))
    fusion = paths * (block + (paths - 1) * attention) if paths > 1 else 0
    # Of the last fusion, path 0 alone asks; the others are its memory, of which keys and values are made.
    unasked = (paths - 1) * (block + (paths - 1) * attention - 2 * d**2 * tokens) if paths > 1 else 0
    decoder = config.decoder_depth * (layer + fusion) - unasked + tokens * wide * d
    channels = config.skip_channels
    skip = pixels * (9 * 6 * channels + 2 * 25 * channels**2 + 9 * channels * 3)
    linear = tokens * (d * 4 * PATCH**2 + 4 * d * config.gaussian_width + config.gaussian_width * 11 * PATCH**2)
    parts = {"encoder": encoder, "decoder": decoder, "heads": skip + linear}
    return {name: float(views * part) for name, part in parts.items()}


def make_pass(kind: Kind, config: ModelConfig) -> Pass:
    """The pass for images (1, N, 3, H, W) and references; the naive one answers with its path 0."""
    network = golden_network(config)
    if kind == "ours":
        return network
    naive = NaiveMVDUSt3R(config, network.state_dict())
    return lambda images, references: naive(images[0], references)[0]


def photos(views: int, square: int = SQUARE) -> Tensor:
    """Noise (1, views, 3, square, square) in [-1, 1]: the time does not depend on what is to be seen."""
    return torch.rand(1, views, 3, square, square, generator=torch.Generator().manual_seed(views)) * 2 - 1


# ---------------------------------------------------------------- a process of its own


@dataclass(frozen=True, slots=True)
class Measured:
    seconds: float
    cpu_seconds: float
    """Of all threads: less at the mercy of what else the machine does."""
    peak_bytes: int
    """Of the process so far, weights included."""
    points: Tensor


class Contestant:
    """A network in a process of its own, that runs one pass when asked."""

    def __init__(self, kind: Kind, config: ModelConfig, square: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_answer, args=(kind, config, square, other), daemon=True)
        self._process.start()
        other.close()
        self._pipe.recv()

    def run(self, views: int) -> Measured:
        self._pipe.send(views)
        measured: Measured = self._pipe.recv()
        return measured

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _answer(kind: Kind, config: ModelConfig, square: int, pipe: Connection) -> None:
    """Passes of as many views as come through the pipe, until it is closed."""
    run = make_pass(kind, config)
    pipe.send("ready")
    while True:
        try:
            views = pipe.recv()
        except EOFError:
            return
        images, references = photos(views, square), choose_references(views, 0, config.paths)
        started, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            points = run(images, references).points
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send(Measured(seconds, cpu, peak, points.clone()))


# ---------------------------------------------------------------- what is measured


def compare(views: int, rounds: int, config: ModelConfig = MVDUST3R_PLUS, square: int = SQUARE) -> dict[str, Any]:
    """Ours and naive in turn, `rounds` times each: one record."""
    contestants: dict[Kind, Contestant] = {kind: Contestant(kind, config, square) for kind in ("ours", "naive")}
    taken: dict[Kind, list[Measured]] = {kind: [] for kind in contestants}
    for _ in range(rounds):
        for kind, contestant in contestants.items():
            taken[kind].append(contestant.run(views))
            print(f"{views} views, {kind}: {taken[kind][-1].seconds:.2f} s", flush=True)
    for contestant in contestants.values():
        contestant.close()
    ours, naive = (min(taken[kind], key=lambda m: m.seconds) for kind in ("ours", "naive"))
    cpu = {kind: [m.cpu_seconds for m in taken[kind]] for kind in taken}
    error = (ours.points - naive.points).norm(dim=-1) / naive.points.norm(dim=-1)
    return {
        "what": "compared",
        "views": views,
        "rounds": rounds,
        "seconds": [m.seconds for m in taken["ours"]],
        "naive_seconds": [m.seconds for m in taken["naive"]],
        "ratio": naive.seconds / ours.seconds,
        "cpu_seconds": cpu["ours"],
        "naive_cpu_seconds": cpu["naive"],
        "cpu_ratio": min(cpu["naive"]) / min(cpu["ours"]),
        "peak_mb": taken["ours"][-1].peak_bytes / 1e6,
        "naive_peak_mb": taken["naive"][-1].peak_bytes / 1e6,
        "point_error_median": float(error.median()),
        "point_error_max": float(error.max()),
    }


def grow(counts: Sequence[int], config: ModelConfig = MVDUST3R_PLUS, square: int = SQUARE) -> Iterator[dict[str, Any]]:
    """One record a view count: one pass of ours in a fresh process, whose peak is then of that count."""
    for views in counts:
        contestant = Contestant("ours", config, square)
        measured = contestant.run(views)
        contestant.close()
        work = sum(multiply_adds(config, views, len(choose_references(views, 0, config.paths)), square).values())
        yield {
            "what": "alone",
            "views": views,
            "seconds": [measured.seconds],
            "cpu_seconds": [measured.cpu_seconds],
            "peak_mb": measured.peak_bytes / 1e6,
            "multiply_adds": work,
        }


def profiled(run: Pass, views: int, paths: int, square: int = SQUARE) -> dict[str, float]:
    """Share of the seconds of one pass in each part of KINDS and in the rest."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as recorded:
        run(photos(views, square), choose_references(views, 0, paths))
    seconds = dict.fromkeys((*KINDS, "the rest"), 0.0)
    for event in recorded.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(n in event.key for n in names)), "the rest")
        seconds[kind] += event.self_cpu_time_total
    total = sum(seconds.values())
    return {kind: value / total for kind, value in seconds.items()}


# ---------------------------------------------------------------- the report


def table(document: dict[str, Any]) -> str:
    """forward.md."""
    lines = [
        "# A forward pass",
        "",
        "MV-DUSt3R+ at its released size, 224 x 224, at most 4 reference paths: `python -m bench.forward`",
        "(what exactly: `bench/forward.py`). MB are 10^6 bytes, weights (2646 MB) included.",
        "",
        *(f"- {key}: {value}" for key, value in document["setting"].items()),
        "",
    ]
    records = document["records"]
    if compared := [record for record in records if record["what"] == "compared"]:
        lines += [
            "Against the naive version, in turn, each in a process of its own; the least of the rounds. Where the",
            "machine did other work, seconds by the clock are upper bounds, and those of all threads say more:",
            "",
            "| views | ours s | naive s | times faster | ours CPU s | naive CPU s | times less | ours MB | naive MB "
            "| points differ by, median | at most |",
            "|" + " --: |" * 11,
        ]
        lines += [
            f"| {r['views']} | {min(r['seconds']):.1f} | {min(r['naive_seconds']):.1f} | {r['ratio']:.2f} "
            f"| {min(r['cpu_seconds']):.1f} | {min(r['naive_cpu_seconds']):.1f} | {r['cpu_ratio']:.2f} "
            f"| {r['peak_mb']:.0f} | {r['naive_peak_mb']:.0f} | {r['point_error_median']:.1e} "
            f"| {r['point_error_max']:.1e} |"
            for r in compared
        ]
        lines.append("")
    if profiles := [record for record in records if record["what"].startswith("profile")]:
        lines += [
            "Where the time goes:",
            "",
            "| | views | " + " | ".join(profiles[0]["shares"]) + " |",
            "| --- |" + " --: |" * (1 + len(profiles[0]["shares"])),
        ]
        for r in profiles:
            shares = " | ".join(f"{share:.1%}" for share in r["shares"].values())
            lines.append(f"| {r['what'].removeprefix('profile, ')} | {r['views']} | {shares} |")
        lines.append("")
    if alone := [record for record in records if record["what"] == "alone"]:
        lines += [
            "Alone, as the views grow (G: 10^9 multiply-adds, convolutions counted as they are written: on the CPU",
            "Winograd's method does the large ones with a sixth of them):",
            "",
            "| views | s | peak MB | needed G | G/s |",
            "|" + " --: |" * 5,
        ]
        lines += [
            f"| {r['views']} | {min(r['seconds']):.4g} | {r['peak_mb']:.0f} | {r['multiply_adds'] / 1e9:.0f} "
            f"| {r['multiply_adds'] / min(r['seconds']) / 1e9:.0f} |"
            for r in alone
        ]
        lines += ["", "![Seconds and memory as the views grow](forward.png)", ""]
    return "\n".join(lines)


def plot(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds of all threads and peak memory over views, alone or in turn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    rows = sorted((r for r in records if not r["what"].startswith("profile")), key=lambda r: r["views"])
    views = [r["views"] for r in rows]
    left.plot(views, [min(r["cpu_seconds"]) for r in rows], "o-", label="CPU, float32, all threads")
    right.plot(views, [r["peak_mb"] / 1000 for r in rows], "o-")
    left.set(xlabel="views", ylabel="seconds", ylim=(0, None))
    right.set(xlabel="views", ylabel="peak memory, GB", ylim=(0, None))
    left.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def keep(records: Sequence[dict[str, Any]], out: Path) -> None:
    """Add the records to those of earlier runs, and write the report anew."""
    from bench.latency import cpu_name  # imports all of the service, which may not be installed beside a GPU

    out.mkdir(parents=True, exist_ok=True)
    path = out / "forward.json"
    before = json.loads(path.read_text())["records"] if path.exists() else []
    known = {(r["what"], r["views"]): r for r in (*before, *records)}
    document = {
        "setting": {
            "machine": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores",
            "made with": f"torch {torch.__version__}, float32, {torch.get_num_threads()} threads",
        },
        "records": [known[key] for key in sorted(known)],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    (out / "forward.md").write_text(table(document))
    plot(document["records"], out / "forward.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and memory of a forward pass at the released size.")
    parser.add_argument("--views", type=int, nargs="*", default=[4, 8], help="view counts beside the naive version")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--most", type=int, default=12, help="views at most, alone; 0: none")
    parser.add_argument("--profile", type=int, nargs="*", default=[8], help="view counts to profile")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    for views in arguments.views:
        keep([compare(views, arguments.rounds)], arguments.out)
    for record in grow([views for views in GROWTH if views <= arguments.most]):
        keep([record], arguments.out)
    for views in arguments.profile:
        for kind in ("ours", "naive"):
            shares = profiled(make_pass(kind, MVDUST3R_PLUS), views, MVDUST3R_PLUS.paths)
            keep([{"what": f"profile, {kind}", "views": views, "shares": shares}], arguments.out)
    print((arguments.out / "forward.md").read_text())


if __name__ == "__main__":
    main()
