"""What MV-DUSt3R+ at its released size takes on a CUDA GPU: `python -m bench.gpu` writes docs/bench/gpu.*.

    python -m bench.gpu                          within 480 seconds, the view counts of the goals first
    python -m bench.gpu --views 24 --batch 1     one cell
    python -m bench.gpu --tiny --device cpu --out /tmp/gpu    a rehearsal with a tiny network, anywhere

The network has 661 M parameters, which follow from their names (`tests/golden/rule.py`), 4 reference paths and photos
of 224 x 224. Contestants, of those that run here, in turn in one process, round by round:

    torch, bf16          the session of `export.torch_graph`
    torch, bf16 unfused  the same without `export.fused`
    tensorrt, fp16 ...   the session of an engine built for this GPU, where `tensorrt` is installed; fp16 and bf16
    onnxruntime, fp16    the session of `export.runtime`, where ONNX Runtime has CUDA
    eager, bf16          the network in PyTorch's autocast, operator by operator
    eager, TF32          in float32 whose products are TF32: the setting of the released code
    naive, TF32          the same, view by view and path by path, as the released code works

Seconds are from numpy to numpy, copies to the GPU and back included; those of the GPU alone are by CUDA events, around
a pass whose inputs lie there, or the replay of a captured one. Errors are of the points against the network in float32
without TF32, relative to their norm. The peak is this device's own, of a large bfloat16 product. Memory is that of the
weights, and what the device had less, at most, while a pass of that shape was made ready and run.

Every measurement is one record of gpu.json, kept at once: a run may be cut off anywhere. Records of an earlier run on
the same device are kept unless they are measured anew.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from bench.forward import FOLDER, SQUARE, multiply_adds
from export.contract import GRAPH_FILE, OUTPUTS, ArtifactError
from export.precision import written_in
from export.served import ServedGraph
from export.sessions import choose_references
from export.torch_graph import TorchGraph
from model.config import MVDUST3R_PLUS, ModelConfig
from model.layers import own_group_bias
from model.mvdust3r import MVDUSt3R
from tests.golden.rule import golden_network
from tests.model.naive_mvdust3r import NaiveMVDUSt3R

CELLS = [(views, 1) for views in (24, 12, 4, 8)] + [(views, batch) for batch in (2, 4) for views in (24, 12, 8, 4)]
"""(views, batch), the most telling first."""
PAPER_SECONDS = {4: 0.29, 12: 0.89, 24: 1.97}
"""Of arXiv 2412.06974, on an H100 by the authors' word."""
GOAL_SECONDS = {4: 0.010, 12: 0.028, 24: 0.060}
"""On an H100."""
CELL_SECONDS = 15.0
"""What the rounds of one cell may take."""
ROUNDS = (3, 40)
"""Least and most."""
NO_MEMORY = (MemoryError, torch.OutOfMemoryError)

Arrays = Sequence[NDArray[Any]]

KERNELS = {
    "convolution": ("conv", "fprop", "winograd"),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "addmm", "bmm", "::mm"),
    "norms": ("layer_norm", "layernorm", "fused_norm", "native_layer"),
    "copies": ("copy", "memcpy", "memset", "cat", "index", "gather"),
}
"""What a part of a profile is called -> parts of the names of its kernels; the first that fits, else element by
element."""


# ---------------------------------------------------------------- the device


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """By CUDA events: what the device takes. By the clock on the CPU."""
    if device != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def median_seconds(work: Callable[[], Any], device: str, rounds: int = 10) -> float:
    for _ in range(3):
        work()
    return statistics.median(seconds_of(work, device) for _ in range(rounds))


def used_memory() -> int:
    """Bytes in use on the GPU, by whomever; 0 on the CPU."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def limits(device: str, side: int) -> dict[str, Any]:
    """What the device reaches: one record. side: of the square matrices."""

    def product(dtype: torch.dtype, tf32: bool = False) -> float:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with tf32_products(tf32):
            return 2 * side**3 / median_seconds(lambda: a @ b, device)

    block = torch.empty(side * side * 8, device=device)
    other = torch.empty_like(block)
    return {
        "what": "limits",
        "side": side,
        "bf16": product(torch.bfloat16),
        "tf32": product(torch.float32, tf32=True),
        "fp32": product(torch.float32),
        "copy": 2 * block.nbytes / median_seconds(lambda: other.copy_(block), device),
    }


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Whether float32 products and convolutions may be rounded to TF32 meanwhile."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


# ---------------------------------------------------------------- the contestants


class Eager:
    """A pass in PyTorch, operator by operator."""

    def __init__(self, module: nn.Module, device: str, *, bf16: bool = False, tf32: bool = False) -> None:
        self.module = module.to(device)
        self.device = device
        self._bf16, self._tf32 = bf16, tf32

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        return [output.float().cpu().numpy() for output in self.pass_on(self.put(inputs))]

    def put(self, inputs: Arrays) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.device) for array in inputs]

    def pass_on(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with (
            torch.inference_mode(),
            torch.autocast(self.device, torch.bfloat16, enabled=self._bf16),
            tf32_products(self._tf32),
        ):
            return self.module(*tensors)

    def device_pass(self, inputs: Arrays) -> Callable[[], Any]:
        tensors = self.put(inputs)
        return lambda: self.pass_on(tensors)


class Session:
    """An opened graph, as a worker runs it."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.module = getattr(graph, "_module", None)

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        return self.graph.run(inputs, lambda _seconds: None)

    def device_pass(self, inputs: Arrays) -> Callable[[], Any] | None:
        """The replay alone, where the last run captured one."""
        if not isinstance(self.graph, TorchGraph) or self.graph.device != "cuda":
            return None
        return self.graph._captures[tuple(torch.Size(array.shape) for array in inputs)].graph.replay


class NaiveGraph(nn.Module):
    """The naive version as a graph of the contract: job by job, all heads on all paths, path 0 answers."""

    def __init__(self, config: ModelConfig, network: MVDUSt3R) -> None:
        super().__init__()
        self.config, self.network = config, network

    def forward(self, images: Tensor, references: Tensor) -> tuple[Tensor, ...]:
        naive = NaiveMVDUSt3R(self.config, self.network.state_dict())
        answers = [naive(job, references.tolist())[0] for job in images]
        return tuple(torch.cat([getattr(answer, name) for answer in answers]) for name in OUTPUTS)


Contestant = Eager | Session


class Contestants:
    """Made when first asked for; those that cannot be, with the reason, in `absent`."""

    def __init__(self, config: ModelConfig, square: int, device: str, scratch: Path) -> None:
        self.config, self.square, self.device = config, square, device
        self.network = golden_network(config)
        self.absent: dict[str, str] = {}
        self.weights: dict[str, int] = {}
        """Bytes, by contestant."""
        self._scratch = scratch
        self._made: dict[str, Contestant] = {}
        self._makers: dict[str, Callable[[], Contestant]] = {
            "torch, bf16": lambda: self._torch(fused=True),
            "torch, bf16 unfused": lambda: self._torch(fused=False),
            "eager, bf16": lambda: Eager(ServedGraph(self.network), device, bf16=True),
            "eager, TF32": lambda: Eager(ServedGraph(self.network), device, tf32=True),
            "naive, TF32": lambda: Eager(NaiveGraph(config, self.network), device, tf32=True),
            "tensorrt, fp16": lambda: self._exported("tensorrt", "fp16"),
            "tensorrt, bf16": lambda: self._exported("tensorrt", "bf16"),
            "onnxruntime, fp16": lambda: self._exported("onnxruntime", "fp16"),
        }

    @property
    def names(self) -> list[str]:
        return list(self._makers)

    def get(self, name: str) -> Contestant | None:
        if name not in self._made and name not in self.absent:
            before = used_memory()
            try:
                self._made[name] = self._makers[name]()
            except (ImportError, ArtifactError, *NO_MEMORY) as error:
                self.absent[name] = str(error).splitlines()[0]
                print(f"{name}: not here: {self.absent[name]}", flush=True)
            else:
                module = getattr(self._made[name], "module", None)
                tensors = [*module.parameters(), *module.buffers()] if module else []
                self.weights[name] = sum(t.nbytes for t in tensors) if tensors else used_memory() - before
        return self._made.get(name)

    def exact(self) -> Eager:
        """In float32, without TF32."""
        return Eager(ServedGraph(self.network), self.device)

    def _torch(self, fused: bool) -> Session:
        graph = ServedGraph(written_in(self.network, "bf16"))
        return Session(TorchGraph(graph, self.device, "bf16", fused=fused))

    def _exported(self, engine: str, precision: str) -> Session:
        from export import sessions
        from export.contract import read_description
        from export.onnx_graph import export_onnx

        if self.device == "cuda" and engine == "onnxruntime":
            import onnxruntime

            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise ArtifactError("this onnxruntime has no CUDA (onnxruntime-gpu has)")
        if engine == "tensorrt":
            import tensorrt  # noqa: F401 - before an export of minutes for nothing
        folder = self._scratch / precision
        if not folder.exists():
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            export_onnx(golden_network(self.config), folder, "full", "none", square=self.square, precision=precision)
        graphs = sessions._graphs(engine, folder, read_description(folder), None)
        return Session(graphs[GRAPH_FILE])


def inputs_of(views: int, batch: int, square: int, paths: int) -> Arrays:
    """Noise in [-1, 1], the time does not depend on what is to be seen; and references as they are served."""
    images = np.random.default_rng(views).uniform(-1, 1, (batch, views, 3, square, square)).astype(np.float32)
    return images, np.array(choose_references(views, 0, paths), np.int64)


# ---------------------------------------------------------------- what is measured


def cell(
    contestants: Contestants, names: Sequence[str], views: int, batch: int, peak: float, until: float
) -> Iterator[dict[str, Any]]:
    """One record a contestant: all of them in turn, round by round, no longer than `until`."""
    config, device = contestants.config, contestants.device
    inputs = inputs_of(views, batch, contestants.square, config.paths)
    work = 2 * batch * sum(multiply_adds(config, views, len(inputs[1]), contestants.square).values())
    exact = contestants.exact().run(inputs)[0]
    ready: dict[str, tuple[Contestant, int]] = {}
    answers: dict[str, NDArray[Any]] = {}
    for name in names:
        if time.monotonic() > until or (name.startswith("naive") and batch > 1):
            continue
        contestant = contestants.get(name)
        if contestant is None:
            continue
        before, reserved = used_memory(), torch.cuda.memory_reserved()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            answers[name] = contestant.run(inputs)[0]
            contestant.run(inputs)  # by now everything is chosen, compiled and captured
        except NO_MEMORY as error:
            yield record_of(name, views, batch, error="out of memory")
            print(f"{name}, {views} x {batch}: {error}", flush=True)
            continue
        ready[name] = contestant, max(torch.cuda.max_memory_reserved() - reserved, used_memory() - before)
    taken: dict[str, list[float]] = {name: [] for name in ready}
    alone: dict[str, list[float]] = {name: [] for name in ready}
    started = time.monotonic()
    for done in range(ROUNDS[1]):
        passed = time.monotonic() - started
        if done >= ROUNDS[0] and (passed * (done + 1) / done > CELL_SECONDS or time.monotonic() > until):
            break
        for name, (contestant, _) in ready.items():
            if name.startswith("naive") and done >= ROUNDS[0]:  # its rounds would take the others' time
                continue
            synchronise(device)
            before = time.perf_counter()
            contestant.run(inputs)
            taken[name].append(time.perf_counter() - before)
            if device == "cuda" and (again := contestant.device_pass(inputs)):
                alone[name].append(seconds_of(again, device))
    known = {"goal": GOAL_SECONDS.get(views), "paper": PAPER_SECONDS.get(views)}
    for name, (_, bytes_of_pass) in ready.items():
        errors = np.linalg.norm(answers[name] - exact, axis=-1) / np.maximum(np.linalg.norm(exact, axis=-1), 1e-12)
        seconds = statistics.median(alone[name] or taken[name])
        yield record_of(
            name,
            views,
            batch,
            seconds=taken[name],
            device_seconds=alone[name],
            views_per_second=views * batch / statistics.median(taken[name]),
            weights_mb=contestants.weights[name] / 1e6,
            pass_mb=bytes_of_pass / 1e6,
            flop=work,
            share_of_peak=work / seconds / peak,
            point_error_median=float(np.median(errors)),
            point_error_p99=float(np.quantile(errors, 0.99)),
            **(known if config == MVDUST3R_PLUS and batch == 1 else {}),
        )


def record_of(what: str, views: int, batch: int, **measured: Any) -> dict[str, Any]:
    return {"what": what, "views": views, "batch": batch} | measured


def profiled(contestants: Contestants, name: str, views: int) -> dict[str, Any]:
    """Where the device's time goes in one pass of the torch session, unfolded from its graph: one record."""
    contestant, device = contestants.get(name), contestants.device
    assert isinstance(contestant, Session)
    tensors = [
        torch.from_numpy(a).to(device) for a in inputs_of(views, 1, contestants.square, contestants.config.paths)
    ]
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with torch.inference_mode():
        contestant.module(*tensors)
        synchronise(device)
        with profile(activities=[activity]) as recorded:
            contestant.module(*tensors)
            synchronise(device)
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    spent = [(event.key, getattr(event, field) / 1e6, event.count) for event in recorded.key_averages()]
    shares = dict.fromkeys((*KERNELS, "element by element"), 0.0)
    for key, seconds, _ in spent:
        kind = next((kind for kind, parts in KERNELS.items() if any(p in key.lower() for p in parts)), None)
        shares[kind or "element by element"] += seconds
    top = sorted(spent, key=lambda row: -row[1])[:15]
    return record_of(
        f"profile, {name}",
        views,
        1,
        kinds=shares,
        kernels=[{"name": key[:100], "seconds": seconds, "calls": calls} for key, seconds, calls in top],
    )


def attentions(views: int, config: ModelConfig, square: int, device: str) -> dict[str, Any]:
    """Seconds of ways to let every view but the reference read all others, as one layer of all paths does: one record.

    masked: keys of all views, -inf where a view would read itself, with each of PyTorch's kernels that take a mask.
    ring: each view's keys are a window of the views laid out twice, no mask, one call a path.
    """
    tokens, heads = (square // 16) ** 2, config.decoder_heads
    shape = (config.paths, views * tokens, heads, config.decoder_width // heads)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q, k, v = (torch.randn(shape, device=device, dtype=dtype).transpose(1, 2) for _ in range(3))
    q = q[:, :, tokens:]
    bias = own_group_bias(views, tokens, q)[tokens:]
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias.float())

    def masked() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def ring() -> Tensor:
        return ring_attention(q, k, v, views)

    kernels = {
        "PyTorch's choice": None,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "memory efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    seconds: dict[str, float | None] = {}
    for way, work in (("masked", masked), ("ring", ring)):
        for kernel, backend in kernels.items():
            try:
                with sdpa_kernel(backend) if backend else torch.inference_mode():
                    error = float((work().float() - expected).abs().max() / expected.abs().max())
                    if error > 0.05:
                        raise RuntimeError(f"is off by {error:.2g}")
                    seconds[f"{way}, {kernel}"] = median_seconds(work, device)
            except RuntimeError as error:  # not every kernel takes every form
                print(f"{way}, {kernel}: {str(error).splitlines()[0]}", flush=True)
                seconds[f"{way}, {kernel}"] = None
    return record_of("attention", views, 1, ways=seconds)


def ring_attention(q: Tensor, k: Tensor, v: Tensor, views: int) -> Tensor:
    """Queries (G, h, (N - 1) S, d) of all views but the first to keys and values (G, h, N S, d) of all but their own.

    Views laid out twice, those other than view i are the N - 1 after its own: a window, read in place.
    """
    tokens = k.shape[2] // views
    length = (views - 1) * tokens

    def windows(x: Tensor) -> Tensor:
        """(h, N S, d) to (N - 1, h, (N - 1) S, d): what views 1, 2, ... read."""
        twice = torch.cat([x, x[:, :-tokens]], dim=1)
        return twice.unfold(1, length, tokens)[:, 2:].permute(1, 0, 3, 2)

    answers = []
    for queries, keys, values in zip(q, k, v, strict=True):
        own = queries.unflatten(1, (views - 1, tokens)).transpose(0, 1)
        out = F.scaled_dot_product_attention(own, windows(keys), windows(values))
        answers.append(out.transpose(0, 1).flatten(1, 2))
    return torch.stack(answers)


# ---------------------------------------------------------------- the report


def table(document: dict[str, Any]) -> str:
    """gpu.md."""
    lines = [
        "# MV-DUSt3R+ on a GPU",
        "",
        "At its released size, 224 x 224, at most 4 reference paths: `python -m bench.gpu` (what exactly:",
        "`bench/gpu.py`). Weights are random. MB are 10^6 bytes. Milliseconds: the median, and from the least to the",
        "most of the rounds, from numpy to numpy, copies included; then those of the GPU alone, of which the share of",
        "the device's own peak is.",
        "",
        *(f"- {key}: {value}" for key, value in document["setting"].items()),
        *(f"- not here: {name}: {why}" for name, why in document["absent"].items()),
    ]
    records = document["records"]
    for r in (r for r in records if r["what"] == "limits"):
        rates = ", ".join(f"{r[kind] / 1e12:.4g} TFLOP/s in {kind}" for kind in ("bf16", "tf32", "fp32"))
        lines.append(f"- peak: {rates} ({r['side']}^3 products); copies {r['copy'] / 1e9:.4g} GB/s")
    lines += [
        "",
        "| views | batch | | ms | least to most | GPU ms | views/s | weights MB | pass MB | share "
        "| points differ by, median | 99 % | goal ms | paper ms |",
        "| --: | --: | --- |" + " --: |" * 11,
    ]
    for r in sorted((r for r in records if "seconds" in r), key=lambda r: (r["batch"], r["views"], min(r["seconds"]))):
        alone = f"{1000 * statistics.median(r['device_seconds']):.4g}" if r["device_seconds"] else ""
        goal, paper = (f"{1000 * r[name]:g}" if r.get(name) else "" for name in ("goal", "paper"))
        lines.append(
            f"| {r['views']} | {r['batch']} | {r['what']} | {1000 * statistics.median(r['seconds']):.4g} "
            f"| {1000 * min(r['seconds']):.4g} to {1000 * max(r['seconds']):.4g} | {alone} "
            f"| {r['views_per_second']:.4g} | {r['weights_mb']:.0f} | {r['pass_mb']:.0f} | {r['share_of_peak']:.0%} "
            f"| {r['point_error_median']:.1e} | {r['point_error_p99']:.1e} | {goal} | {paper} |"
        )
    lines += [f"| {r['views']} | {r['batch']} | {r['what']} | {r['error']} |" for r in records if "error" in r]
    if found := [r for r in records if r["what"] == "attention"]:
        lines += ["", "Attention of every view to all others, one layer of all paths, in ms:", ""]
        lines += ["| | " + " | ".join(f"{r['views']} views" for r in found) + " |", "| --- |" + " --: |" * len(found)]
        for way in found[0]["ways"]:
            times = [f"{1000 * r['ways'][way]:.3g}" if r["ways"][way] else "no" for r in found]
            lines.append(f"| {way} | " + " | ".join(times) + " |")
    for r in (r for r in records if r["what"].startswith("profile")):
        total = sum(r["kinds"].values())
        kinds = ", ".join(f"{kind} {seconds / total:.1%}" for kind, seconds in r["kinds"].items())
        lines += ["", f"Where {1000 * total:.4g} ms of {r['what'].removeprefix('profile, ')}, {r['views']} views, go: "]
        lines += [f"{kinds}.", "", "| ms | calls | kernel |", "| --: | --: | --- |"]
        lines += [
            f"| {1000 * k['seconds']:.3g} | {k['calls']} | `{k['name'].replace('|', ' ')}` |" for k in r["kernels"]
        ]
    return "\n".join([*lines, "", "![Milliseconds and throughput](gpu.png)", ""])


def plot(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Milliseconds of one job over views, beside the paper's; views a second over jobs at once, of most views."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [r for r in records if "seconds" in r]
    most = max((r["views"] for r in measured), default=0)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for name in dict.fromkeys(r["what"] for r in measured):
        own = [r for r in measured if r["what"] == name]
        alone = sorted((r["views"], 1000 * statistics.median(r["seconds"])) for r in own if r["batch"] == 1)
        batched = sorted((r["batch"], r["views_per_second"]) for r in own if r["views"] == most)
        for axes, points in ((left, alone), (right, batched)):
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=name)
    for name, known in (("the paper", PAPER_SECONDS), ("goal, H100", GOAL_SECONDS)):
        left.plot(
            list(known), [1000 * seconds for seconds in known.values()], "k:" if "goal" in name else "k--", label=name
        )
    left.set(xlabel="views", ylabel="milliseconds of one job", yscale="log")
    right.set(xlabel="jobs at once", ylabel=f"views a second, jobs of {most}", ylim=(0, None))
    left.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def keep(records: Sequence[dict[str, Any]], setting: dict[str, str], absent: dict[str, str], out: Path) -> None:
    """Add the records to those of earlier runs in the same setting, and write the report anew."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gpu.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = before["records"] if before.get("setting") == setting else []
    known = {(r["what"], r.get("views", 0), r.get("batch", 0)): r for r in (*kept, *records)}
    document = {"setting": setting, "absent": absent, "records": [known[key] for key in sorted(known)]}
    path.write_text(json.dumps(document, indent=1) + "\n")
    (out / "gpu.md").write_text(table(document))
    plot(document["records"], out / "gpu.png")


def setting_of(device: str, config: ModelConfig) -> dict[str, str]:
    with torch.device("meta"):
        parameters = sum(t.numel() for t in MVDUSt3R(config).parameters())
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "the CPU: a rehearsal, no figure of a GPU",
        "network": f"{parameters} parameters",
        "made with": f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Latency, throughput, memory and errors on a CUDA GPU.")
    parser.add_argument("--views", type=int, nargs="+", help="view counts; else 24, 12, 4, 8")
    parser.add_argument("--batch", type=int, nargs="+", help="jobs at once; else 1, 2, 4")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants; else all that run here")
    parser.add_argument("--seconds", type=float, default=480, help="for all, about")
    parser.add_argument("--profile", action="store_true", help="where the time of the torch session goes, and no more")
    parser.add_argument("--tiny", action="store_true", help="a tiny network")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=FOLDER)
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "There is no CUDA GPU on this machine. A rehearsal: --tiny --device cpu --out FOLDER\n")
    if chosen.out == FOLDER and (chosen.tiny or chosen.device == "cpu"):
        parser.error("a rehearsal's figures do not go to docs/: name another --out")
    until = time.monotonic() + chosen.seconds
    config, square = MVDUST3R_PLUS, SQUARE
    if chosen.tiny:
        from tests import tiny

        config, square = tiny.TINY_HEADS, tiny.TINY_SQUARE
    setting, absent = setting_of(chosen.device, config), {}

    def kept(record: dict[str, Any]) -> dict[str, Any]:
        keep([record], setting, absent, chosen.out)
        return record

    peak = kept(limits(chosen.device, 256 if chosen.tiny else 8192))["bf16"]
    cells = [(n, b) for n, b in CELLS if n in (chosen.views or (n,)) and b in (chosen.batch or (b,))]
    with tempfile.TemporaryDirectory() as scratch:
        contestants = Contestants(config, square, chosen.device, Path(scratch))
        absent = contestants.absent
        names = chosen.only or contestants.names
        if not chosen.profile:
            for number, (views, batch) in enumerate(cells):
                if time.monotonic() > until:
                    break
                for record in cell(contestants, names, views, batch, peak, until):
                    kept(record)
                if number < len(GOAL_SECONDS) and batch == 1:
                    kept(attentions(views, config, square, chosen.device))
        if time.monotonic() < until:
            kept(profiled(contestants, "torch, bf16", cells[0][0]))
    print((chosen.out / "gpu.md").read_text())


if __name__ == "__main__":
    main()
