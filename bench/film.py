"""Frames chosen by what moves in a film, beside as many taken at even times: `python -m bench.film`, some minutes.

The film is rendered: somebody stands in a room, walks, stops to look around and back, walks on, and stands again; hands
shake, and what moves is blurred over a quarter of the time between two frames. The truth of every camera is known.
Writes docs/bench/film.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from bench.accuracy import pose_errors
from model.classical.keyframes import keyframes, thin
from model.classical.model import GeometricModel
from model.types import Float64, UInt8, View, Views
from train.render import Room, intrinsics, render
from train.scenes import EXAMPLE_ROOM, EXAMPLE_WALK, make_cameras, make_room

SIZE = (400, 300)
STOPS = 6
"""Places that the walk goes through, some decimetres apart."""
BLUR = (0.12, 0.24)
"""Moments within the time between two frames that a picture holds beside its own."""


def walk() -> Float64:
    """(frames, 2) how far along the walk, in stops, and how far turned aside, in radians: ten frames a second."""
    end, middle = STOPS - 1, (STOPS - 1) / 2
    aside = np.concatenate([np.linspace(0, 0.9, 10), np.linspace(0.9, 0, 10)])
    parts = [
        (np.zeros(25), np.zeros(25)),
        (np.linspace(0, middle, 30), np.zeros(30)),
        (np.full(20, middle), aside),
        (np.full(25, middle), np.zeros(25)),
        (np.linspace(middle, end, 30), np.zeros(30)),
        (np.full(20, end), np.zeros(20)),
    ]
    return np.concatenate([np.column_stack(part) for part in parts])


def film(room: Room, stops: Float64, seed: int) -> tuple[list[UInt8], Float64]:
    """The (h, w, 3) frames of the walk through these cameras (STOPS, 4, 4), and the camera of each, (frames, 4, 4)."""
    rng = np.random.default_rng(seed)
    K, turns = intrinsics(SIZE), Slerp(range(STOPS), Rotation.from_matrix(stops[:, :3, :3]))

    def camera(at: Float64) -> Float64:
        pose = np.eye(4)
        pose[:3, :3] = (turns(at[0]) * Rotation.from_rotvec([0, at[1], 0])).as_matrix()
        pose[:3, 3] = [np.interp(at[0], range(STOPS), stops[:, axis, 3]) for axis in range(3)]
        return pose

    frames, cameras = [], []
    track = walk()
    for at, after in zip(track, [*track[1:], track[-1]]):
        pose = camera(at)
        pose[:3, 3] += rng.normal(0, 0.002, 3)
        pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(rng.normal(0, 0.002, 3)).as_matrix()
        moments = [pose, *(camera(at + share * (after - at)) for share in BLUR if (at != after).any())]
        pictures = [render(room, moment, K, SIZE, supersample=1).rgb.astype(np.float64) for moment in moments]
        noisy = np.mean(pictures, axis=0) + rng.normal(0, 2, pictures[0].shape)
        frames.append(np.clip(noisy, 0, 255).astype(np.uint8))
        cameras.append(pose)
    return frames, np.array(cameras)


def compare(frames: list[UInt8], cameras: Float64, count: int) -> dict[str, Any]:
    """What comes of `count` frames, chosen and at even times."""
    found = list(keyframes((i, cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for i, frame in enumerate(frames)))
    chosen = [found[i][0] for i in thin([step for _, step in found], count)]
    even = [round(i) for i in np.linspace(0, len(frames) - 1, len(chosen))]
    record: dict[str, Any] = {"keyframes": [index for index, _ in found], "film": len(frames)}
    for name, indices in (("chosen", chosen), ("even", even)):
        views = Views(tuple(View(str(i), frames[i], SIZE) for i in indices))
        answer = GeometricModel().run([views], lambda *_: None)[0]
        found_poses = [camera.camera_to_world if camera else None for camera in getattr(answer, "cameras", None) or ()]
        if not found_poses:
            record[name] = {"frames": indices, "failed": str(answer)}
            continue
        true = np.linalg.inv(cameras[indices[0]]) @ cameras[indices]
        errors = {key: round(float(value), 4) for key, value in pose_errors(true, found_poses).items()}
        record[name] = {"frames": indices, "low_confidence": bool(answer.low_confidence), **errors}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/bench"))
    parser.add_argument("--frames", type=int, default=8)
    out, count = parser.parse_args().out, parser.parse_args().frames
    room = make_room(EXAMPLE_ROOM, texture_side=512, light_cell=0.15, light_samples=8)
    stops = make_cameras(room, STOPS, EXAMPLE_WALK)
    record = compare(*film(room, stops, seed=0), count)
    (out / "film.json").write_text(json.dumps(record, indent=1) + "\n")
    for name in ("chosen", "even"):
        print(name, record[name])


if __name__ == "__main__":
    main()
