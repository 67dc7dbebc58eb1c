"""What `reference=auto` gains over the first photo: `python -m bench.reference` writes docs/bench/reference.*.

Rendered rooms, walked along as in `bench.accuracy`: the first photo is one end of the walk. For each set of views and
each way to choose: the share of the other photos' pixels whose point the reference sees too (exact, from the rooms'
depth; mean over the others), which is what a network that answers in the reference's frame has to go by. And the
points of the geometric model in that frame, as `bench.accuracy` measures them; its poses do not depend on the choice.
Figures of an earlier run are kept unless they are computed anew, so that the bench can be run in parts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.accuracy import FOLDER, geometric, point_errors
from bench.sets import FIRST_ROOM, FOCAL, WALK, photograph, truth
from model.classical.overlap import choose_reference
from model.types import Float64, Views
from train.render import Room, intrinsics
from train.scenes import make_cameras, make_room, overlap

GRID = (40, 30)
"""Width and height at which it is counted what a camera sees."""


def seen_by(room: Room, poses: Float64) -> Float64:
    """(N,) share of the other views' pixels whose point view i sees, mean over the others."""
    K = intrinsics(GRID, FOCAL)
    others = [[overlap(room, b, a, K, GRID) for j, b in enumerate(poses) if j != i] for i, a in enumerate(poses)]
    return np.mean(others, axis=1)


def measure(number: int, counts: Sequence[int], reconstruct: bool) -> Iterator[dict[str, Any]]:
    """One record a view count and way to choose, of room `number`."""
    seed = FIRST_ROOM + number
    room = make_room(seed, texture_side=256, light_cell=0.2, light_samples=8)
    poses = make_cameras(room, max(counts), seed, **WALK)
    photos = photograph(room, poses, seed)
    for count in counts:
        seen = seen_by(room, poses[:count])
        choices = {
            "first": 0,
            "auto": choose_reference(Views(photos[:count]), lambda *_: None),
            "best": int(np.argmax(seen)),
        }
        _, prediction = geometric(photos[:count]) if reconstruct else (None, None)
        if prediction is not None:
            true, valid = truth(room, poses[:count], prediction.crops, prediction.points.shape[1:3])
        for choice, reference in choices.items():
            record: dict[str, Any] = {"room": number, "views": count, "choice": choice, "reference": reference}
            record["seen"] = float(seen[reference])
            camera = prediction.cameras[reference] if prediction is not None and prediction.cameras else None
            if prediction is not None and camera is not None:
                found = _moved(prediction.points, camera.camera_to_world)
                expected = _moved(true, np.linalg.inv(poses[0]) @ poses[reference])
                record |= point_errors(found, prediction.confidence, expected, valid)
            yield record


def _moved(points: np.ndarray, camera_to_world: Float64) -> Float64:
    """World points (..., 3) in the camera's frame."""
    return (points.astype(np.float64) - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]


def table(records: Sequence[dict[str, Any]]) -> str:
    """reference.md: means over the rooms."""
    lines = [
        "# Which photo is the reference",
        "",
        "Means over rendered rooms: `python -m bench.reference` (what exactly: `bench/reference.py`). Errors are of",
        "the geometric model, which treats all photos alike, relative to the distance from the reference. No network",
        "with trained weights was measured.",
        "",
        "| views | reference | rooms | share of the others it sees | median point error | points within 5 % |",
        "| --: | --- | --: | --: | --: | --: |",
    ]
    for count in sorted({r["views"] for r in records}):
        for choice in ("first", "auto", "best"):
            sets = [r for r in records if (r["views"], r["choice"]) == (count, choice)]
            cells = [
                "" if not values else f"{np.mean(values):.1%}"
                for values in ([r[key] for r in sets if key in r] for key in ("seen", "median_error", "within_5"))
            ]
            lines.append(f"| {count} | {choice} | {len(sets)} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def keep(record: dict[str, Any], out: Path) -> None:
    """Add a record to those of earlier runs, and write the table anew."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "reference.json"
    before = json.loads(path.read_text()) if path.exists() else []
    known = {(r["room"], r["views"], r["choice"]): r for r in before}
    key = record["room"], record["views"], record["choice"]
    known[key] = known.get(key, {}) | record
    path.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    (out / "reference.md").write_text(table(list(known.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description="What reference=auto gains over the first photo.")
    parser.add_argument("--rooms", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--views", type=int, nargs="+", default=[4, 8, 12])
    parser.add_argument("--no-reconstruction", action="store_true", help="only what the reference sees")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    for room in arguments.rooms:
        for record in measure(room, arguments.views, not arguments.no_reconstruction):
            print(record, flush=True)
            keep(record, arguments.out)
    print((arguments.out / "reference.md").read_text())


if __name__ == "__main__":
    main()
