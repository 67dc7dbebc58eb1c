"""One command for every training: `python -m train --out runs/own`.

    python -m train --out runs/own                                          a network of our own, on rendered rooms
    python -m train --out runs/mine --start weights.pth --frames my-rooms   fine-tuning on rooms of one's own
    python -m train --out runs/own                                          once more: goes on where it was

The same on a CPU and on a GPU; see docs/training.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import typer

from model.checkpoint import CheckpointError
from model.mvdust3r import MVDUSt3R
from train import parts
from train.batch import Batch
from train.feed import Mixed, Own, Rooms, Source
from train.frames import Frames, FramesError, open_frames
from train.held_out import table
from train.loop import MODEL_FILE, Recipe, Run, Stage, StateError
from train.network import OWN, own, start
from train.stream import Settings

STARTED = time.monotonic()
"""The budget is of the whole command."""

# Sides, views a scene and views a step by ../docs/training.md; both stages draw from one ring of rendered views.
OWN_RECIPE = Recipe(
    stages=(Stage(0.6, 112, 2, 4, 1024), Stage(0.4, 224, 2, 8, 512, parts=2)),
    gate_after=5.0,
)
FINE_TUNING = Recipe(
    stages=(Stage(0.6, 224, 2, 4, 16, parts=2), Stage(0.4, 224, 2, 8, 16, parts=2)),
    muon=0.0,
    adamw=5e-5,
    weight_decay=0.05,
    warm_up=200,
)
RING = Settings(side=224, views=8, rooms=3000, hold=0, supersample=1)
"""Of a GPU: 3,000 rooms of 32 views, 24 GB of its memory. One ray a pixel: halved for a smaller side, four."""
RING_BESIDE = replace(RING, rooms=1000)
"""Beside a released network, which needs the memory."""
RING_OF_CPU = replace(RING, rooms=48)
SMALL_RING = Settings(
    side=64,
    views=4,
    rooms=6,
    views_per_room=16,
    hold=0,
    supersample=1,
    texture_side=64,
    light_cell=0.5,
    light_samples=2,
)
HELD_OUT = {2: 64, 4: 24, 8: 8}
"""Scenes that a network is judged on, by view count."""
FEW_HELD_OUT = {2: 12, 4: 6}
"""In a rehearsal."""
HELD_OUT_ROOMS, HELD_OUT_SEED = 32, 1_000_003
"""How many rooms they are of, and what is added to the seed: rooms of another seed are other rooms."""


def on_cpu(recipe: Recipe) -> Recipe:
    """The same with as many views a step as a CPU computes in seconds."""
    return replace(recipe, stages=tuple(replace(s, at_once=max(8, s.at_once // 32), parts=1) for s in recipe.stages))


def rehearsal(recipe: Recipe) -> Recipe:
    """The same course at a size for a CPU: every stage, the gate (open), states and figures, in a minute and a half."""
    sides = sorted({stage.side for stage in recipe.stages})
    small = {side: 32 * 2**index for index, side in enumerate(sides)}
    stages = tuple(
        replace(stage, side=small[stage.side], most=min(stage.most, 4), at_once=16) for stage in recipe.stages
    )
    return replace(
        recipe,
        stages=stages,
        minutes=1.5 if recipe.steps is None else None,
        warm_up=20,
        average=0.95,
        gate_after=0.75 if recipe.gate_after else None,
        gate=-1.0,
        save_every=10,
        log_every=5,
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of the run. One that holds a run already is gone on with.")],
    start_from: Annotated[
        Path | None, typer.Option("--start", help="Checkpoint to fine-tune: MV-DUSt3R(+), or a DUSt3R to start from.")
    ] = None,
    frames: Annotated[
        list[Path] | None, typer.Option(help="Folder of posed RGB-D frames to train on; may be given repeatedly.")
    ] = None,
    rooms: Annotated[float, typer.Option(help="Share of rendered rooms among the scenes, beside --frames.")] = 0.5,
    minutes: Annotated[float | None, typer.Option(help="Budget of the whole command, by the clock.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps.")] = None,
    paths: Annotated[int, typer.Option(help="Reference paths of a network that starts anew or from a DUSt3R.")] = 0,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cuda, cpu; else what is there.")] = "",
    muon: Annotated[float | None, typer.Option(help="Rate of Muon; 0: AdamW for all.")] = None,
    adamw: Annotated[float | None, typer.Option(help="Rate of AdamW.")] = None,
    novel: Annotated[int, typer.Option(help="Views a scene more, to supervise Gaussians with pictures.")] = 0,
    gate: Annotated[
        float | None, typer.Option(help="RTA@15 at 2 views to exceed after five minutes; -1: none.")
    ] = None,
    split_mb: Annotated[
        float | None, typer.Option(help="Also write the weights in parts of at most so many MB.")
    ] = None,
    eager: Annotated[bool, typer.Option("--eager", help="Compile nothing, on a GPU too.")] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="The whole course, small, in under two minutes.")
    ] = False,
) -> None:
    """Train a network on rendered rooms, on frames of your own, or on both."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = FINE_TUNING if start_from else OWN_RECIPE
    recipe = replace(recipe, seed=seed, steps=steps, novel=novel)
    if minutes is not None or steps is not None:
        recipe = replace(recipe, minutes=minutes)
    if where.type == "cuda":
        recipe = replace(recipe, bf16=True, compiled=not eager)
        torch.set_float32_matmul_precision("high")
    else:
        recipe = on_cpu(recipe)
    if rehearse:
        recipe = rehearsal(recipe)
    for name, value in (("muon", muon), ("adamw", adamw), ("gate", gate)):
        if value is not None:
            recipe = replace(recipe, **{name: value})
    rendered: Rooms | None = None
    try:
        network = _network(start_from, paths, seed, small=rehearse)
        ring = RING_OF_CPU if where.type == "cpu" else RING_BESIDE if start_from else RING
        if rehearse:
            ring = SMALL_RING
        ring = replace(ring, views=ring.views + novel)
        own_frames = [open_frames(folder).split() for folder in frames or []]
        counts = FEW_HELD_OUT if rehearse else HELD_OUT
        if rooms or not own_frames:
            rendered, held_out = _rooms(recipe, ring, counts, where)
        source: Source | None = rendered
        if own_frames:
            recipe = _within(recipe, Own([train for train, _ in own_frames], seed))
            source, held_out = _with_frames(recipe, own_frames, counts, rendered, rooms)
        run = Run(out, network, recipe, source, held_out, device=where, say=_say, started=STARTED)
        reason = run.train()
        typer.echo(table(run.figures))
        if split_mb:
            pieces = parts.split(out / MODEL_FILE, out / "parts", split_mb)
            _say(f"{len(pieces)} parts in {out / 'parts'}; one file again: {parts.JOIN.format(folder=out / 'parts')}")
    except (CheckpointError, FramesError, StateError, parts.PartsError, OSError) as error:
        _fail(str(error))
    finally:
        if rendered is not None:
            rendered.close()
    if reason.startswith("the gate"):
        raise typer.Exit(3)


def _network(start_from: Path | None, paths: int, seed: int, *, small: bool) -> MVDUSt3R:
    if start_from:
        return start(start_from, paths or 4)
    config = replace(OWN, paths=paths or 1)
    if small:
        config = replace(config, encoder_width=96, encoder_depth=2, encoder_heads=3)
        config = replace(config, decoder_width=96, decoder_depth=2, decoder_heads=3)
    return own(config, seed)


HeldOut = dict[int, list[Batch]]


def _rooms(recipe: Recipe, ring: Settings, counts: Mapping[int, int], device: torch.device) -> tuple[Rooms, HeldOut]:
    """Rendered rooms, and scenes of other rooms."""
    workers = max(1, len(os.sched_getaffinity(0)) - 1)
    few = replace(ring, rooms=min(ring.rooms, HELD_OUT_ROOMS), hold=1000)
    with closing(Rooms(few, recipe.seed + HELD_OUT_SEED, device, workers=workers)) as rooms:
        held_out = _drawn(rooms, recipe, counts)
    return Rooms(ring, recipe.seed, device, workers=workers), held_out


def _within(recipe: Recipe, frames: Own) -> Recipe:
    """The recipe with no more views a scene than the frames have sets of."""
    most = max(stage.most for stage in recipe.stages) + recipe.novel
    while most > 2 + recipe.novel:
        try:
            frames.batch(0, 4, most, recipe.stages[0].side)
            break
        except FramesError as error:
            most -= 1
            _say(f"{error}: trains with {most} views a scene at most")
    views = most - recipe.novel
    return replace(recipe, stages=tuple(replace(stage, most=min(stage.most, views)) for stage in recipe.stages))


def _with_frames(
    recipe: Recipe,
    folders: Sequence[tuple[Frames, Frames]],
    counts: Mapping[int, int],
    rooms: Source | None,
    share: float,
) -> tuple[Source, HeldOut]:
    """Frames to train on and, of those held out of them, what a run is judged on; rooms beside them by share."""
    kept = Own([train for train, _ in folders], recipe.seed)
    held_out = _drawn(Own([held_out for _, held_out in folders], recipe.seed), recipe, counts)
    return (kept if rooms is None else Mixed((rooms, kept), (share, 1 - share), recipe.seed)), held_out


def _drawn(source: Source, recipe: Recipe, counts: Mapping[int, int]) -> HeldOut:
    """Scenes of every view count; of folders with few frames, of the counts that they have."""
    drawn = {}
    for index, (views, scenes) in enumerate(counts.items()):
        if views > recipe.stages[-1].most:
            break
        try:
            drawn[views] = [source.batch(index, scenes, views, recipe.stages[-1].side)]
        except FramesError:
            if not drawn:
                raise
    return drawn


def _say(line: str) -> None:
    print(line, flush=True)


def _fail(reason: str) -> NoReturn:
    typer.echo(f"error: {reason}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
