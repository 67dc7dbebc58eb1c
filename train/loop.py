"""The training loop: one for CPU and GPU, for a network of our own and for fine-tuning.

A run is a folder. `state.safetensors` holds all that the next step needs, written whole in one rename at least once a
minute; `metrics.jsonl` a line for every few steps; `model.safetensors` the averaged weights, which a run is for. Every
draw follows from the seed and the step's number, so a run that was cut goes on as if it had not been.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model import checkpoint
from model.mvdust3r import MVDUSt3R
from train.batch import Batch
from train.feed import Feed, Plan, Source
from train.held_out import Figures, judge, table
from train.network import Learner, Weights, multiply_adds, objective, untied
from train.optimise import Average, optimisers, rate, restore, set_rate, state_tensors

STATE_FILE, METRICS_FILE, MODEL_FILE, TABLE_FILE = "state.safetensors", "metrics.jsonl", "model.safetensors", "table.md"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a run."""

    share: float
    """Of the budget."""
    side: int
    """Of the square images, pixels."""
    fewest: int
    most: int
    """Views a scene, drawn anew for every step."""
    at_once: int
    """Views a step, about: as many whole scenes as fit."""
    parts: int = 1
    """Passes a step is cut into where memory is short; their gradients are added."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a run goes. The budget is in minutes of the wall clock, or in steps, for what must be the same anywhere."""

    stages: tuple[Stage, ...]
    minutes: float | None = 25.0
    steps: int | None = None
    muon: float = 1e-2
    adamw: float = 2e-3
    weight_decay: float = 0.0
    warm_up: int = 100
    decay: float = 0.4
    clip: float = 1.0
    average: float = 0.999
    weights: Weights = field(default_factory=Weights)
    novel: int = 0
    """Views more a scene, which the network does not see: pictures that its Gaussians are to give."""
    bf16: bool = False
    compiled: bool = False
    seed: int = 0
    save_every: float = 40.0
    """Seconds between states on the disk."""
    judge_every: float = 240.0
    """Seconds between held-out figures."""
    log_every: int = 10
    """Steps between lines of metrics."""
    gate_after: float | None = None
    """Minutes after which the run ends unless it passes."""
    gate: float = 0.25
    """RTA@15 at the fewest held-out views that must be exceeded then."""

    def __post_init__(self) -> None:
        if self.minutes is None and self.steps is None:
            raise ValueError("a run needs a budget: minutes, steps or both")

    def stage(self, done: float) -> Stage:
        """The stage at a share `done` of the budget."""
        reached = 0.0
        for stage in self.stages:
            reached += stage.share
            if done < reached:
                return stage
        return self.stages[-1]


class StateError(Exception):
    """A run's folder cannot be gone on with, for the reason given."""


class Run:
    """One run, from its start or from the state that its folder holds."""

    def __init__(
        self,
        folder: Path,
        network: MVDUSt3R,
        recipe: Recipe,
        source: Source,
        held_out: Mapping[int, Sequence[Batch]],
        *,
        device: torch.device | str = "cpu",
        say: Say = print,
        started: float | None = None,
    ) -> None:
        """held_out: batches by view count, never trained on; `network` is trained in place. started: when the budget
        began, by time.monotonic. Raises StateError."""
        self.folder, self.recipe, self.source, self.say = folder, recipe, source, say
        self.device = torch.device(device)
        self.held_out = {views: [b.to(self.device) for b in batches] for views, batches in held_out.items()}
        self._started = time.monotonic() if started is None else started
        network.to(self.device).float()
        self.averaged = copy.deepcopy(network).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.learner = Learner(network).to(self.device).train()
        self.optimisers = optimisers(self.learner, recipe.muon, recipe.adamw, recipe.weight_decay)
        self.average = Average(network, recipe.average)
        self.step, self.skipped, self.views, self._before = 0, 0, 0, 0.0
        self.figures: dict[str, dict[int, Figures]] = {}
        self._stop: str | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[None] | None = None
        self._reserve = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE_FILE).exists():
            self._resume()
        if recipe.compiled:
            for part in (network.encoder.blocks, network.decoder.reference_blocks, network.decoder.blocks):
                for block in part:
                    block.compile(dynamic=True)

    # ------------------------------------------------------------ the budget

    @property
    def seconds(self) -> float:
        """Spent on this run, by all its processes."""
        return self._before + time.monotonic() - self._started

    def done(self, step: int) -> float:
        """Share of the budget spent at a step, 0 to 1."""
        shares = [0.0]
        if self.recipe.steps is not None:
            shares.append(step / max(1, self.recipe.steps))
        if self.recipe.minutes is not None:
            shares.append(self.seconds / max(1e-9, 60 * self.recipe.minutes - self._reserve))
        return min(1.0, max(shares))

    def plan(self, step: int) -> Plan:
        """What a step is made of: drawn from the seed and its number."""
        stage = self.recipe.stage(self.done(step))
        rng = np.random.default_rng([self.recipe.seed, step])
        views = int(rng.integers(stage.fewest, stage.most + 1))
        paths = min(self.learner.network.config.paths, views)
        references = tuple(int(r) for r in rng.permutation(views)[:paths])
        return Plan(max(1, stage.at_once // views), views, stage.side, references, self.recipe.novel)

    # ------------------------------------------------------------ the run

    def train(self) -> str:
        """Train until the budget is spent, the gate closes or a signal says so; why it ended. Writes the folder."""
        self.figures.pop("after", None)
        if "before" not in self.figures:
            self._judge("before")
        if "gate" in self.figures:
            self._check_gate()
        peak = matmul_peak(self.device, bf16=self.recipe.bf16)
        self.say(f"{self.device.type}: {peak / 1e12:.3g} TFLOP/s in a large {self._precision} product")
        saved = judged = self.seconds
        gate = self.recipe.gate_after
        pace = _Pace(self.seconds)
        metrics = (self.folder / METRICS_FILE).open("a", encoding="utf-8")
        with metrics, _signals(self._told), Feed(self.source, self.plan, self.step, self.device) as feed:
            while self._stop is None and self.done(self.step) < 1:
                try:
                    plan, batch = feed.next()
                except Exception:  # a signal to all of a terminal's processes ends those that make batches, too
                    if self._stop is None:
                        raise
                    break
                now = self.update(plan, batch)
                pace.add(plan, self._work(plan))
                if self.step % self.recipe.log_every == 0:
                    line = {"step": self.step, "seconds": round(self.seconds, 2), "views": plan.views, **now}
                    metrics.write(json.dumps(line) + "\n")
                    metrics.flush()
                    if said := pace.line(self.seconds, feed.waited, peak):
                        self.say(self._progress(line) + said)
                gate_due = gate is not None and self.seconds >= 60 * gate and "gate" not in self.figures
                judge_due = gate_due or self.seconds - judged >= self.recipe.judge_every
                if judge_due or self.seconds - saved >= self.recipe.save_every:
                    self.save()  # before figures, too: they take their time
                    saved = self.seconds
                if judge_due:
                    self._judge("gate" if gate_due else f"step {self.step}")
                    judged = self.seconds
                if gate_due:
                    self._check_gate()
        reason = self._stop or "the budget is spent"
        self.save(wait=True)
        if not reason.startswith("signal"):
            self._judge("after")
            self.save(wait=True)
        self.write_model()
        (self.folder / TABLE_FILE).write_text(table(self.figures), encoding="utf-8")
        self.say(f"ended after {self.step} steps, {self.seconds / 60:.1f} minutes: {reason}")
        return reason

    def update(self, plan: Plan, batch: Batch) -> dict[str, float]:
        """One step on one batch: its losses. A step whose loss or gradient is not finite moves nothing, and is said."""
        stage = self.recipe.stage(self.done(self.step))
        set_rate(self.optimisers, rate(self.step, self.done(self.step), self.recipe.warm_up, self.recipe.decay))
        self.learner.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        size = math.ceil(len(batch) / stage.parts)
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        for part in parts:
            seen = part.select(range(plan.views))
            novel = part.select(range(plan.views, plan.views + plan.novel)) if plan.novel else None
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
                answer = self.learner(seen.images, plan.references)
            losses = objective(answer, seen, plan.references, self.recipe.weights, novel)
            (losses["loss"] * len(part) / len(batch)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() * len(part) / len(batch)
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.clip)
        # In one go: a GPU is waited for once a step.
        now = dict(zip((*sums, "norm"), torch.stack([*sums.values(), norm]).tolist(), strict=True))
        if math.isfinite(now["norm"]) and math.isfinite(now["loss"]):
            for optimiser in self.optimisers:
                optimiser.step()
            self.average.update(self.learner.network, self.step - self.skipped)
        else:
            self.skipped += 1
            self.say(f"step {self.step} is skipped: loss {now['loss']}, gradient {now['norm']}")
        self.step += 1
        self.views += len(batch) * plan.views
        return now

    def _judge(self, name: str) -> None:
        """Held-out figures of the averaged weights, said and kept under a name."""
        started = time.monotonic()
        self.average.copy_to(self.averaged)
        self.figures[name] = judge(self.averaged, self.held_out)
        self._reserve = 1.5 * (time.monotonic() - started)  # the last one, and the writing, belong to the budget
        told = "; ".join(
            f"N = {views}: error {100 * f['error']:.1f} %, ND {f['nd']:.3f}, RTA@15 {f['rta_15']:.2f}"
            for views, f in self.figures[name].items()
        )
        self.say(f"held out, {name}: {told}")

    def _check_gate(self) -> None:
        views = min(self.held_out)
        reached = self.figures["gate"][views]["rta_15"]
        if not reached > self.recipe.gate:
            self._stop = (
                f"the gate: RTA@15 at N = {views} is {reached:.2f} after {self.seconds / 60:.1f} minutes,"
                f" and more than {self.recipe.gate:g} was asked for"
            )

    def _told(self, number: int) -> None:
        self._stop = f"signal {signal.Signals(number).name}"

    @property
    def _precision(self) -> str:
        return "bf16" if self.recipe.bf16 else "fp32"

    def _work(self, plan: Plan) -> float:
        """Floating-point operations of a step: two a multiply-add, the backward pass twice the forward one."""
        config = self.learner.network.config
        return 6.0 * plan.scenes * multiply_adds(config, plan.views, plan.side, len(plan.references))

    def _progress(self, line: Mapping[str, float]) -> str:
        done = self.done(self.step)
        left = (1 - done) / max(done, 1e-9) * self.seconds / 60
        return f"step {self.step}, {100 * done:.0f} %, {left:.1f} min left: loss {line['loss']:.3f}, "

    # ------------------------------------------------------------ what lies on the disk

    def save(self, *, wait: bool = False) -> None:
        """Write the state: copied now, written by another thread, in one rename."""
        if self._writing is not None:
            self._writing.result()
        tensors = {f"network.{name}": t for name, t in unique(self.learner)}
        tensors |= {f"average.{name}": t for name, t in self.average.tensors.items()}
        tensors |= {f"optimiser.{name}": t for name, t in state_tensors(self.optimisers).items()}
        copied = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        described = {
            "step": self.step,
            "skipped": self.skipped,
            "views": self.views,
            "seconds": self.seconds,
            "figures": self.figures,
            "identity": self._identity(),
        }
        self._writing = self._writer.submit(self._write, copied, described)
        if wait:
            self._writing.result()

    def _write(self, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
        partial = self.folder / (STATE_FILE + ".partial")
        save_file(tensors, partial, metadata={"run": json.dumps(described)})
        partial.replace(self.folder / STATE_FILE)

    def _identity(self) -> dict[str, Any]:
        """What must not change within a run; its budget may."""
        return json.loads(json.dumps({"config": asdict(self.learner.network.config), "seed": self.recipe.seed}))

    @torch.no_grad()
    def _resume(self) -> None:
        path = self.folder / STATE_FILE
        with safe_open(path, framework="pt", device=str(self.device)) as file:
            described = json.loads((file.metadata() or {}).get("run", "null"))
            if not isinstance(described, dict) or described.get("identity") != self._identity():
                raise StateError(f"{path} is of another run (network or seed): choose another folder, or remove it")
            parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}}
            for name in file.keys():  # noqa: SIM118 (no mapping)
                part, rest = name.split(".", 1)
                parts[part][rest] = file.get_tensor(name)
        for name, tensor in unique(self.learner):
            tensor.copy_(parts["network"][name])
        for name, tensor in self.average.tensors.items():
            tensor.copy_(parts["average"][name])
        restore(self.optimisers, parts["optimiser"])
        self.step, self.skipped, self.views = (described[name] for name in ("step", "skipped", "views"))
        self._before = described["seconds"]
        self.figures = {
            name: {int(views): figures for views, figures in rows.items()}
            for name, rows in described["figures"].items()
        }
        self._forget_after(self.step)
        self.say(f"goes on from step {self.step}, after {self._before / 60:.1f} minutes")

    def _forget_after(self, step: int) -> None:
        """Drop the metrics of steps that were lost with the process that made them."""
        path = self.folder / METRICS_FILE
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(kept), encoding="utf-8")
            partial.replace(path)

    def write_model(self) -> Path:
        """Write the averaged weights, matrices in float16, as `model.load` and `scenelift models add` read them."""
        self.average.copy_to(self.averaged)
        path = self.folder / MODEL_FILE
        checkpoint.save(untied(self.averaged, self.recipe.stages[-1].side, half=True), path)
        shutil.copymode(self.folder / METRICS_FILE, path)  # safetensors writes for its owner's eyes alone
        return path


def unique(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers of a module, each once."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def matmul_peak(device: torch.device, *, bf16: bool) -> float:
    """Floating-point operations a second that a large product reaches here: what shares of the peak are of."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = math.inf
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Pace:
    """How fast it goes, over the time since the line before."""

    def __init__(self, seconds: float) -> None:
        self._since, self._waited, self._views, self._work = seconds, 0.0, 0, 0.0

    def add(self, plan: Plan, work: float) -> None:
        self._views += plan.scenes * plan.views
        self._work += work

    def line(self, seconds: float, waited: float, peak: float, every: float = 5.0) -> str | None:
        """Views a second, share of the peak and share of the time that the device waited for data; now and then."""
        spent = seconds - self._since
        if spent < every:
            return None
        share, idle = self._work / spent / peak, (waited - self._waited) / spent
        said = (
            f"{self._views / spent:.0f} views/s, {100 * share:.0f} % of the peak, {100 * idle:.0f} % waiting for data"
        )
        self._since, self._waited, self._views, self._work = seconds, waited, 0, 0.0
        return said


@contextmanager
def _signals(told: Callable[[int], None]) -> Iterator[None]:
    """SIGTERM and SIGINT end the run after its step; a second one of a kind ends the process."""

    def handle(number: int, _: object) -> None:
        told(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
