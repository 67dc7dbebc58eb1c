"""Render the photos over which engines are compared with their checkpoint, once: `python -m train.gate_scenes`.

Two rooms, so that a pass of two jobs sees two scenes; small pictures, which travel with the package.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import export
from train.render import intrinsics, render
from train.scenes import make_cameras, make_room

SIDE = 224
WALKS = {"brick": (24, 8), "green": (7, 4)}
"""Of each room its seed, and how many photos are kept."""
WALK = 8
"""Photos of a walk; the first ones are kept."""


def main() -> None:
    folder = Path(export.__file__).parent / "scenes"
    folder.mkdir(exist_ok=True)
    K = intrinsics((SIDE, SIDE))
    for name, (seed, kept) in WALKS.items():
        room = make_room(seed, texture_side=256)
        for index, pose in enumerate(make_cameras(room, WALK, 1, aspect=1.0)[:kept]):
            photo = render(room, pose, K, (SIDE, SIDE), rng=np.random.default_rng([seed, index]))
            path = folder / f"{name}-{index + 1}.jpg"
            Image.fromarray(photo.rgb).save(path, quality=80, optimize=True)
            print(path.name, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
