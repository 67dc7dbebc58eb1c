"""The training loop: what it keeps, what it survives, and that it learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import model
from model import checkpoint
from model.mvdust3r import MVDUSt3R
from tests.tiny import TINY_CONFIG, TINY_PAIRS, tiny_network, tiny_pair_network
from train import optimise, parts
from train.__main__ import app
from train.batch import Batch, moved
from train.feed import Feed, Mixed, Plan, smaller
from train.loop import METRICS_FILE, MODEL_FILE, STATE_FILE, Recipe, Run, Stage, StateError
from train.network import Learner, from_dust3r, multiply_adds, own, start

SIDE = 32
SMALL = replace(TINY_CONFIG, paths=1)
STEPS = Recipe((Stage(0.5, SIDE, 2, 3, 6), Stage(0.5, SIDE, 2, 4, 8)), minutes=None, steps=6, warm_up=2, log_every=1)


def box_room(scenes: int, views: int, seed: int, side: int = SIDE) -> Batch:
    """Cameras that stand about in a box of 4 m, painted by a smooth function of the place: depth is exact."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    angle = 0.5 * uniform(scenes, views) + 3 * uniform(scenes, 1)
    pose = torch.eye(4).repeat(scenes, views, 1, 1)
    pose[..., 0, 0] = pose[..., 2, 2] = angle.cos()
    pose[..., 0, 2], pose[..., 2, 0] = angle.sin(), -angle.sin()
    pose[..., :3, 3] = 0.7 * uniform(scenes, views, 3)
    K = torch.tensor([[0.8 * side, 0, side / 2], [0, 0.8 * side, side / 2], [0, 0, 1]]).repeat(scenes, views, 1, 1)
    empty = torch.zeros(scenes, views, side, side)
    blank = Batch(torch.zeros(scenes, views, 3, side, side), empty, empty > 0, K, pose)
    rays = torch.einsum("bnij,bnhwj->bnhwi", pose[..., :3, :3], blank.rays())
    eye = pose[..., None, None, :3, 3]
    depth = ((2 * rays.sign() - eye) / rays).amin(-1)
    place = eye + depth[..., None] * rays
    phase = 3 * uniform(scenes, 1, 1, 1, 3)
    return Batch((2 * place + phase).sin().movedim(-1, 2), depth, depth > 0, K, pose)


class Boxes:
    """A source of box rooms; `rooms` different ones, or as many as are asked for."""

    def __init__(self, rooms: int | None = None) -> None:
        self.rooms = rooms

    def batch(self, position: int, scenes: int, views: int, side: int) -> Batch:
        return box_room(scenes, views, position if self.rooms is None else position % self.rooms, side)


def make_run(folder: Path, recipe: Recipe = STEPS, network: MVDUSt3R | None = None, **more) -> Run:
    held_out = {2: [box_room(4, 2, 10_000)], 3: [box_room(2, 3, 10_001)]}
    return Run(folder, network or own(SMALL), recipe, Boxes(), held_out, **({"say": lambda line: None} | more))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(path).state_dict())


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


# ---------------------------------------------------------------- optimisers


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
def test_muon_goes_where_torchs_goes():
    torch.manual_seed(0)
    shapes = [(16, 16), (16, 16), (32, 8), (8, 32)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    one = optimise.Muon([(f"{i}.weight", p) for i, p in enumerate(ours)], 0.1, weight_decay=0.1)
    two = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        one.step()
        two.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=0.01, rtol=0)  # both iterate in bfloat16


def test_muon_turns_queries_keys_and_values_apart():
    weight = torch.nn.Parameter(torch.zeros(24, 8))
    weight.grad = torch.randn(24, 8) * torch.tensor([1.0, 1e-3, 1e3]).repeat_interleave(8)[:, None]
    optimise.Muon([("attn.qkv.weight", weight)], 1.0).step()
    for part in weight.detach().chunk(3):
        assert 0.4 < torch.linalg.svdvals(part).mean() < 1.3


def test_what_moves_how():
    learner = Learner(own(SMALL))
    muon, adamw = optimise.optimisers(learner, 1e-2, 2e-3)
    count = {id(p) for group in (*muon.param_groups, *adamw.param_groups) for p in group["params"]}
    assert count == {id(p) for p in learner.parameters()}
    hidden = {id(p) for group in muon.param_groups for p in group["params"]}
    assert id(learner.network.encoder.blocks[0].mlp.fc1.weight) in hidden
    for other in (learner.network.head.points.proj, learner.network.encoder.patch_embed.proj, learner.camera[1]):
        assert id(other.weight) not in hidden
    assert len(optimise.optimisers(learner, 0, 1e-4)) == 1


def test_the_rate_grows_stays_and_falls():
    assert optimise.rate(0, 0, 10, 0.4) == pytest.approx(0.1)
    assert optimise.rate(50, 0.3, 10, 0.4) == optimise.rate(90, 0.6, 10, 0.4) == 1
    assert optimise.rate(99, 0.9, 10, 0.4) == pytest.approx(0.25)
    assert optimise.rate(99, 1.0, 10, 0.4) == 0


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("views", [2, 4])
def test_from_dust3r_every_path_starts_as_the_plain_network(views):
    """Cross-reference blocks add nothing at first: a path answers what MV-DUSt3R answers for its reference."""
    pair = tiny_pair_network()
    plus, plain = from_dust3r(pair).eval(), from_dust3r(pair, paths=1).eval()
    images = torch.rand(1, views, 3, SIDE, SIDE) * 2 - 1
    # Heads that DUSt3R does not have start anew in each.
    plain.load_state_dict({n: t for n, t in plus.state_dict().items() if "cross_reference" not in n})
    with torch.inference_mode():
        every = plus.every_path(images, tuple(range(views)))
        for reference in range(views):
            alone = plain(images, (reference,))
            torch.testing.assert_close(every.points[:, reference], alone.points, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(every.confidence[:, reference], alone.confidence, rtol=1e-5, atol=1e-5)
        if views == 2:
            original = pair(images)
            torch.testing.assert_close(every.points[:, 0], original.points, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(every.confidence[:, 0], original.confidence, rtol=1e-5, atol=1e-5)


def test_training_starts_from_files_of_either_layout(tmp_path):
    checkpoint.save(tiny_pair_network(), tmp_path / "pair.safetensors")
    checkpoint.save(tiny_network(), tmp_path / "plus.safetensors")
    started = start(tmp_path / "pair.safetensors")
    assert started.config.network == "mvdust3r-plus"
    assert started.config.encoder_width == TINY_PAIRS.encoder_width
    whole = start(tmp_path / "plus.safetensors")
    assert torch.equal(whole.decoder.embed.weight, tiny_network().decoder.embed.weight)


def test_tied_branches_know_their_reference():
    """One set of matrices, yet what a view answers depends on which one is the reference."""
    network = own(SMALL).eval()
    block, reference = network.decoder.blocks[0], network.decoder.reference_blocks[0]
    assert block.attn.qkv.weight is reference.attn.qkv.weight
    assert block.mlp.fc2.bias is not reference.mlp.fc2.bias
    images = torch.rand(1, 3, 3, SIDE, SIDE)
    with torch.inference_mode():
        one, two = network(images, (0,)).points, network(images, (1,)).points
    assert (one[:, 2] - two[:, 2]).abs().max() > 1e-4


@pytest.mark.parametrize(("paths", "views"), [(1, 2), (1, 5), (4, 4)])
def test_work_is_counted_right(paths, views):
    config = replace(TINY_CONFIG, paths=paths)
    network = MVDUSt3R(config).train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.every_path(torch.zeros(1, views, 3, SIDE, SIDE))
    assert 2 * multiply_adds(config, views, SIDE, paths) == pytest.approx(counter.get_total_flops(), rel=0.01)


# ---------------------------------------------------------------- the feed


def test_the_feed_keeps_order_and_tells_what_went_wrong():
    class Broken(Boxes):
        def batch(self, position: int, *size: int) -> Batch:
            if position == 7:
                raise OSError("frame 7 is torn")
            return super().batch(position, *size)

    plan = Plan(1, 2, SIDE, (0,))
    with Feed(Broken(), lambda step: plan, 5, torch.device("cpu")) as feed:
        for position in (5, 6):
            assert torch.equal(feed.next()[1].depth, box_room(1, 2, position).depth)
        with pytest.raises(OSError, match="torn"):
            feed.next()


def test_mixed_sources_give_their_shares_and_the_same_at_every_call():
    class Flat:
        def batch(self, position: int, scenes: int, views: int, side: int) -> Batch:
            return replace(box_room(scenes, views, 0, side), depth=torch.ones(scenes, views, side, side))

    mixed = Mixed((Boxes(), Flat()), (1.0, 3.0))
    drawn = [mixed.batch(position, 8, 2, SIDE).depth for position in range(20)]
    flat = sum(float((d == 1).all(dim=(1, 2, 3)).sum()) for d in drawn) / (8 * 20)
    assert 0.6 < flat < 0.9
    assert torch.equal(mixed.batch(3, 8, 2, SIDE).depth, drawn[3])


@pytest.mark.parametrize("factor", [2, 3])
def test_smaller_pictures_are_as_exact(factor):
    """Every pixel's point lies on the box still, and its colour is about what the box is painted with there."""
    whole = box_room(2, 3, 0, 96)
    batch = smaller(whole, factor)
    assert batch.images.shape == (2, 3, 3, 96 // factor, 96 // factor)
    place = moved(batch.rays() * batch.depth[..., None], batch.camera_to_world)
    torch.testing.assert_close(place.abs().amax(-1), torch.full_like(batch.depth, 2.0), rtol=1e-4, atol=1e-4)
    finer = moved(whole.rays() * whole.depth[..., None], whole.camera_to_world)
    middle = factor // 2
    torch.testing.assert_close(place, finer[..., middle::factor, middle::factor, :], rtol=1e-4, atol=1e-4)
    assert (batch.images - whole.images[..., middle::factor, middle::factor]).abs().mean() < 0.01


# ---------------------------------------------------------------- runs


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """Bitwise: weights, averages and the curve; a line of a step that was lost with its process is not there twice."""
    whole = make_run(tmp_path / "whole")
    whole.train()
    first = make_run(tmp_path / "cut")
    for _ in range(3):
        plan = first.plan(first.step)
        first.update(plan, first.source.batch(first.step, plan.scenes, plan.views, plan.side))
    first.save(wait=True)
    for _ in range(2):  # lost
        plan = first.plan(first.step)
        first.update(plan, first.source.batch(first.step, plan.scenes, plan.views, plan.side))
    (tmp_path / "cut" / METRICS_FILE).write_text('{"step": 5, "seconds": 1}\n{"step": 6, "sec')
    second = make_run(tmp_path / "cut")
    assert second.step == 3
    second.train()
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")[3:]
    one, two = weights(tmp_path / "whole" / MODEL_FILE), weights(tmp_path / "cut" / MODEL_FILE)
    assert all(torch.equal(one[name], two[name]) for name in one)
    for a, b in zip(whole.learner.parameters(), second.learner.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_of_another_network_is_not_gone_on_with(tmp_path):
    make_run(tmp_path).save(wait=True)
    with pytest.raises(StateError, match="another run"):
        make_run(tmp_path, network=own(replace(SMALL, decoder_depth=3)))


def test_what_was_trained_is_what_is_loaded_split_and_joined(tmp_path):
    run = make_run(tmp_path)
    run.train()
    loaded = model.load(tmp_path / MODEL_FILE)
    assert loaded.config == replace(SMALL, square=SIDE)
    images = box_room(1, 3, 5).images
    with torch.inference_mode():
        expected, got = run.averaged(images), loaded(images)
    torch.testing.assert_close(got.points, expected.points, rtol=0.02, atol=0.02)  # float16 matrices
    pieces = parts.split(tmp_path / MODEL_FILE, tmp_path / "parts", 0.25)
    assert len(pieces) > 1
    assert all(piece.stat().st_size <= 250_000 for piece in pieces)
    parts.join(tmp_path / "parts", tmp_path / "joined.safetensors")
    assert (tmp_path / "joined.safetensors").read_bytes() == (tmp_path / MODEL_FILE).read_bytes()
    pieces[0].write_bytes(pieces[0].read_bytes()[:-1])
    with pytest.raises(parts.PartsError):
        parts.join(tmp_path / "parts", tmp_path / "again.safetensors")
    with pytest.raises(parts.PartsError, match="alone"):
        parts.split(tmp_path / MODEL_FILE, tmp_path / "none", 0.11)


def test_a_step_that_is_not_finite_moves_nothing(tmp_path):
    said: list[str] = []
    run = make_run(tmp_path, say=said.append)
    plan = Plan(2, 2, SIDE, (0,))
    before = [p.detach().clone() for p in run.learner.parameters()]
    bad = box_room(2, 2, 0)
    run.update(plan, replace(bad, images=bad.images * torch.inf))
    assert all(torch.equal(a, b) for a, b in zip(before, run.learner.parameters(), strict=True))
    assert run.skipped == 1
    assert "skipped" in said[-1]
    run.update(plan, bad)
    assert not torch.equal(before[0], next(iter(run.learner.parameters())))


def test_a_closed_gate_ends_the_run(tmp_path):
    recipe = replace(STEPS, gate_after=0.0, gate=1.0)  # no network exceeds it
    run = make_run(tmp_path, recipe)
    assert "the gate: RTA@15 at N = 2" in run.train()
    assert run.step == 1
    assert (tmp_path / MODEL_FILE).exists()
    assert "the gate" in make_run(tmp_path, recipe).train()  # once more changes nothing
    assert make_run(tmp_path / "open", replace(recipe, gate=-1.0)).train() == "the budget is spent"


def test_bfloat16_rounds_blocks_and_no_heads(tmp_path):
    exact, rounded = make_run(tmp_path / "1"), make_run(tmp_path / "2", replace(STEPS, bf16=True))
    plan, batch = exact.plan(0), box_room(3, exact.plan(0).views, 0)
    one, two = exact.update(plan, batch), rounded.update(plan, batch)
    assert one["loss"] == pytest.approx(two["loss"], rel=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        answer = rounded.learner(batch.images, plan.references)
    for field in (answer.output.points, answer.output.confidence, answer.camera_to_reference, answer.log_depth):
        assert field.dtype == torch.float32
    finest = answer.output.points.detach()
    assert not torch.equal(finest, finest.bfloat16().float())


def test_novel_views_teach_gaussians(tmp_path):
    run = make_run(tmp_path, replace(STEPS, novel=1))
    plan = run.plan(0)
    batch = box_room(2, plan.views + 1, 0)
    before = run.learner.network.head.gaussians.opacity[2].weight.detach().clone()
    run.update(plan, batch)
    now = run.update(plan, batch)
    assert now["pictures"] > 0
    assert "footprint" not in now
    assert not torch.equal(before, run.learner.network.head.gaussians.opacity[2].weight)


def test_a_cut_step_has_the_same_gradient(tmp_path):
    """Parts of a step add up, but for batch statistics, which each part has of its own."""
    whole = make_run(tmp_path / "1", replace(STEPS, stages=(Stage(1, SIDE, 2, 2, 8),)))
    cut = make_run(tmp_path / "2", replace(STEPS, stages=(Stage(1, SIDE, 2, 2, 8, parts=2),)))
    plan, batch = whole.plan(0), box_room(4, 2, 0)
    one, two = whole.update(plan, batch), cut.update(plan, batch)
    assert one["loss"] == pytest.approx(two["loss"], rel=0.02)
    assert one["norm"] == pytest.approx(two["norm"], rel=0.05)


@pytest.mark.gpu
def test_a_run_on_a_gpu_trains_compiled_and_goes_on(tmp_path):
    recipe = replace(STEPS, bf16=True, compiled=True)
    network = own(replace(SMALL, encoder_width=128, decoder_width=128))
    first = make_run(tmp_path, replace(recipe, steps=4), network, device="cuda")
    first.train()
    second = make_run(tmp_path, recipe, own(replace(SMALL, encoder_width=128, decoder_width=128)), device="cuda")
    assert second.step == 4
    second.train()
    assert second.skipped == 0
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert len(losses) == 6
    assert all(np.isfinite(losses))
    model.load(tmp_path / MODEL_FILE)


SCRIPT = """
import sys
from pathlib import Path
from tests.train.test_loop import STEPS, make_run, replace
make_run(Path(sys.argv[1]), replace(STEPS, steps=10**6, save_every=0.3, judge_every=1e9), say=print).train()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_ended_is_on_the_disk(tmp_path, number):
    """Killed, it loses what came after its last state; told to end, nothing, and its model is there."""
    folder = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (folder / STATE_FILE).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(number)
        assert process.wait(timeout=60) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    finally:
        process.kill()
        process.wait()
    lines = (folder / METRICS_FILE).read_text().splitlines(keepends=True)
    last = json.loads([line for line in lines if line.endswith("\n")][-1])
    again = make_run(folder)
    assert again.step > 0
    assert again.seconds > last["seconds"] - 2.0
    if number == signal.SIGTERM:
        assert again.step == last["step"]
        assert model.load(folder / MODEL_FILE).config.square == SIDE


# ---------------------------------------------------------------- learning


@pytest.mark.slow
def test_one_scene_is_learned_by_heart(tmp_path):
    scene = box_room(1, 2, 3)

    class One:
        def batch(self, *_: int) -> Batch:
            return scene

    recipe = replace(STEPS, stages=(Stage(1, SIDE, 2, 2, 2),), steps=200, warm_up=20, decay=0.5, average=0.95)
    network = own(replace(SMALL, encoder_width=64, encoder_depth=2, decoder_width=64))
    run = Run(tmp_path, network, recipe, One(), {2: [scene]}, say=lambda line: None)
    run.train()
    assert run.figures["before"][2]["error"] > 0.5
    assert run.figures["after"][2]["error"] < 0.03
    assert run.figures["after"][2]["rta_15"] == 1.0


def write_frames(folder: Path, batch: Batch) -> None:
    """The views of a batch's first scene, in the layout of 7-Scenes."""
    folder.mkdir()
    K = batch.intrinsics[0, 0].double().numpy()
    K[:2, 2] -= 0.5  # pixel centres at whole numbers
    np.savetxt(folder / "camera-intrinsics.txt", K)
    for index in range(batch.depth.shape[1]):
        name = folder / f"frame-{index:06}"
        rgb = ((batch.images[0, index].movedim(0, -1) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(rgb).save(f"{name}.color.png")
        Image.fromarray((1000 * batch.depth[0, index]).round().numpy().astype(np.uint16)).save(f"{name}.depth.png")
        np.savetxt(f"{name}.pose.txt", batch.camera_to_world[0, index].numpy())


def test_fine_tuning_on_frames_improves_what_is_held_out_of_them(tmp_path):
    """From the command line: a checkpoint of the released layout, a folder, a network that is better on its last
    frames; and the same command goes on with more steps."""
    checkpoint.save(tiny_network(), tmp_path / "released.safetensors")
    write_frames(tmp_path / "frames", box_room(1, 40, 1))
    run = tmp_path / "run"
    command = [
        "--out",
        run,
        "--start",
        tmp_path / "released.safetensors",
        "--frames",
        tmp_path / "frames",
        "--rooms",
        0,
    ]
    command += ["--rehearse", "--device", "cpu", "--adamw", 3e-3, "--split-mb", 15]
    for steps in (24, 25):
        answer = CliRunner().invoke(app, [str(word) for word in (*command, "--steps", steps)])
        assert answer.exit_code == 0, answer.output
    assert "goes on from step 24" in answer.output
    rows = [row.split("|")[1:-1] for row in (run / "table.md").read_text().splitlines()[2:]]
    nd = {(row[0].strip(), int(row[1])): float(row[2]) for row in rows}
    assert nd["after", 2] < 0.8 * nd["before", 2]
    assert nd["after", 4] < 0.8 * nd["before", 4]
    assert model.load(run / MODEL_FILE).config == replace(TINY_CONFIG, square=SIDE)
    parts.join(run / "parts", tmp_path / "joined.safetensors")


def test_the_command_says_in_a_line_what_it_cannot_use(tmp_path):
    (tmp_path / "empty").mkdir()
    for more in (["--frames", tmp_path / "empty", "--rooms", 0], ["--start", tmp_path / "none.pth"]):
        answer = CliRunner().invoke(app, [str(word) for word in ("--out", tmp_path / "run", "--rehearse", *more)])
        assert answer.exit_code == 2
        assert answer.stderr.startswith("error: ")
        assert len(answer.stderr.splitlines()) == 1
