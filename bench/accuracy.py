"""How right the geometric model is on rendered rooms, beside trivial answers and COLMAP's defaults.

    python -m bench.accuracy                          6 rooms x 2, 4, 8, 12 views; about 10 minutes on two cores
    python -m bench.accuracy --quick                  2 rooms x 2, 4 views
    python -m bench.accuracy --rooms 3 5 --views 4    rooms 3 and 4 alone

Every set of views is one record of docs/bench/accuracy.json; records of an earlier run are kept unless they are
computed anew, so that the bench can be run in parts. The table (accuracy.md) and the plot (accuracy.png) beside it
are made from all records.

Poses, over all pairs of views: angle between relative rotations, angle between relative translations without its sign
(RRA@d, RTA@d: share below d degrees; mAA@30: mean over 1 to 30 degrees of the share where both are below;
PoseDiffusion, Wang et al. 2023, and DUSt3R). A pair with an unplaced view counts as wrong everywhere, and is left out
of medians.
Points, in the reference camera's frame: distance to the true point over the true point's distance from
that camera, after the one scale of a set that makes the median least. A pixel without a point counts as wrong in
shares, and is left out of the median and of ND.
ND and DAc (MV-DUSt3R, Tang et al. 2024): both clouds divided by
their mean distance from the reference camera; ND the mean distance, capped at 10; DAc the share of sets with
ND < 0.2, a set without an answer being wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from model.types import Camera, Float64, Prediction, ReconstructionError, View, Views
from train.render import Room, cast, intrinsics, render
from train.scenes import make_cameras, make_room

SIZE = (640, 480)
FOCAL_35MM = 28
FOCAL = FOCAL_35MM * float(np.hypot(*SIZE) / np.hypot(36, 24)) / max(SIZE)
MOST_VIEWS = 12
"""Every room has one walk of so many; fewer views are its first ones."""
FIRST_ROOM = 100
"""Seeds from here on are the bench's own."""
WALK: dict[str, Any] = {"step": (0.35, 0.8), "shared": (0.35, 0.85), "focal": FOCAL}
"""Sparser than the example photos: neighbours are 0.35 to 0.8 m apart and share 35 to 85 % of the picture."""
FOLDER = Path(__file__).parents[1] / "docs" / "bench"
Poses = Sequence[Float64 | None]


# ---------------------------------------------------------------- metrics


def relative_errors(true: Float64, found: Poses) -> tuple[Float64, Float64]:
    """Angles in degrees between true and found relative rotations, and relative translations, of all pairs i < j.

    true (N, 4, 4) world_to_camera, found likewise or None for a view without a pose; each in a world of its own.
    (P,) and (P,); infinite where a pose is missing or a found translation is zero.
    """
    rotation, translation = [], []
    for i in range(len(true)):
        for j in range(i + 1, len(true)):
            a, b = found[i], found[j]
            if a is None or b is None:
                rotation.append(np.inf)
                translation.append(np.inf)
                continue
            one, two = true[i] @ np.linalg.inv(true[j]), a @ np.linalg.inv(b)
            cosine = (np.trace(one[:3, :3].T @ two[:3, :3]) - 1) / 2
            rotation.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
            length = np.linalg.norm(one[:3, 3]) * np.linalg.norm(two[:3, 3])
            if length < 1e-12:
                translation.append(np.inf)
                continue
            cosine = abs(one[:3, 3] @ two[:3, 3]) / length
            translation.append(np.degrees(np.arccos(min(cosine, 1.0))))
    return np.array(rotation), np.array(translation)


def mean_average_accuracy(rotation: Float64, translation: Float64, limit: int = 30) -> float:
    """mAA@limit: the mean over whole degrees 1 to `limit` of the share of pairs whose two errors lie below."""
    worse = np.maximum(rotation, translation)
    return float(np.mean([(worse < degrees).mean() for degrees in range(1, limit + 1)]))


def best_scale(found: Float64, true: Float64) -> float:
    """The factor on found (P, 3) that makes the median relative error to true (P, 3) least, to 0.1 %."""
    distance = np.linalg.norm(true, axis=1)
    start = float(np.median(distance / np.maximum(np.linalg.norm(found, axis=1), 1e-9)))
    for span in (1.0, 0.1, 0.01):
        factors = start * np.exp(np.linspace(-span, span, 41))
        errors = [np.median(np.linalg.norm(found * f - true, axis=1) / distance) for f in factors]
        start = float(factors[int(np.argmin(errors))])
    return start


def point_errors(found: Float64, confidence: Float64, true: Float64, valid: np.ndarray) -> dict[str, float]:
    """Figures of one set: found, true (..., 3) in the reference camera's frame; confidence (...) > 0: there is a
    point."""
    placed = valid & (confidence > 0)
    if placed.sum() < 10:
        return {"covered": 0.0, "within_5": 0.0, "within_10": 0.0}
    a, b = found[placed].astype(np.float64), true[placed].astype(np.float64)
    # The scale needs no more than some ten thousand points.
    few = slice(None, None, max(1, len(a) // 20_000))
    errors = np.linalg.norm(a * best_scale(a[few], b[few]) - b, axis=1) / np.linalg.norm(b, axis=1)
    a, b = a / np.linalg.norm(a, axis=1).mean(), b / np.linalg.norm(b, axis=1).mean()
    return {
        "covered": float(placed.sum() / valid.sum()),
        "median_error": float(np.median(errors)),
        "within_5": float((errors < 0.05).sum() / valid.sum()),
        "within_10": float((errors < 0.10).sum() / valid.sum()),
        "nd": float(np.minimum(np.linalg.norm(a - b, axis=1), 10).mean()),
    }


def pose_errors(true: Float64, found: Poses) -> dict[str, float]:
    """Figures of one set from (N, 4, 4) camera_to_world."""
    inverse = [None if pose is None else np.linalg.inv(pose) for pose in found]
    rotation, translation = relative_errors(np.linalg.inv(true), inverse)
    figures = {"placed": float(np.mean([pose is not None for pose in found]))}
    for degrees in (5, 15):
        figures[f"rra_{degrees}"] = float((rotation < degrees).mean())
        figures[f"rta_{degrees}"] = float((translation < degrees).mean())
    figures["maa_30"] = mean_average_accuracy(rotation, translation)
    for name, errors in (("median_rotation", rotation), ("median_direction", translation)):
        if np.isfinite(errors).any():
            figures[name] = float(np.median(errors[np.isfinite(errors)]))
    return figures


# ---------------------------------------------------------------- the sets and who answers


def photograph(room: Room, poses: Float64, seed: int) -> tuple[View, ...]:
    """Photos of SIZE at poses (N, 4, 4), with noise and uneven exposure, as a phone with EXIF would take them."""
    K = intrinsics(SIZE, FOCAL)
    return tuple(
        View(
            name=f"{index}.jpg",
            image=render(room, pose, K, SIZE, rng=np.random.default_rng([seed, index])).rgb,
            original_size=SIZE,
            exif_focal=float(K[0, 0]),
            camera="rendered",
        )
        for index, pose in enumerate(poses)
    )


def truth(room: Room, poses: Float64, crops: Float64, grid: tuple[int, int]) -> tuple[Float64, np.ndarray]:
    """Points (N, H, W, 3) in view 0's frame at the centres of the cells of `crops`, and where there are some."""
    points, valid = [], []
    to_reference = np.linalg.inv(poses[0])
    for pose, (left, top, right, bottom) in zip(poses, crops):
        K = intrinsics(SIZE, FOCAL)
        K[:2, 2] -= left, top
        K[:2] *= [[grid[1] / (right - left)], [grid[0] / (bottom - top)]]
        world, seen, _ = cast(room, pose, K, (grid[1], grid[0]))
        points.append(world @ to_reference[:3, :3].T + to_reference[:3, 3])
        valid.append(seen)
    return np.stack(points), np.stack(valid)


Answer = tuple[Poses, Prediction | None]
"""camera_to_world a view, and the points where the method has any."""


def geometric(views: tuple[View, ...]) -> Answer:
    from model.classical.model import GeometricModel

    answer = GeometricModel().run([Views(views)], lambda *_: None)[0]
    if isinstance(answer, ReconstructionError):
        return [None] * len(views), None
    cameras: Sequence[Camera | None] = answer.cameras or [None] * len(views)
    return [None if camera is None else camera.camera_to_world for camera in cameras], answer


def geometric_without_exif(views: tuple[View, ...]) -> Answer:
    return geometric(tuple(View(v.name, v.image, v.original_size, camera=v.camera) for v in views))


def colmap_defaults(views: tuple[View, ...]) -> Answer:
    """pycolmap's extraction, exhaustive matching and mapping as they come; the focal length is in the EXIF."""
    import pycolmap

    pycolmap.logging.minloglevel = 3
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Rendered", "Room"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = FOCAL_35MM
    found: list[Float64 | None] = [None] * len(views)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos, database = folder / "photos", folder / "database.db"
        photos.mkdir()
        for view in views:
            Image.fromarray(view.image).save(photos / view.name, quality=95, exif=exif)
        pycolmap.extract_features(database, photos)
        pycolmap.match_exhaustive(database)
        models = pycolmap.incremental_mapping(database, photos, folder)
        if models:
            largest = max(models.values(), key=lambda model: model.num_reg_images())
            for image in largest.images.values():
                if image.has_pose:
                    pose = np.eye(4)
                    pose[:3] = image.cam_from_world().inverse().matrix()
                    found[int(Path(image.name).stem)] = pose
    return found, None


def plane(depth: np.ndarray) -> Callable[[tuple[View, ...]], Answer]:
    """Identity poses and one depth map (h, w) for every view."""

    def answer(views: tuple[View, ...]) -> Answer:
        h, w = depth.shape
        K = intrinsics((w, h), FOCAL)
        j, i = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
        points = (
            np.stack([(j - K[0, 2]) / K[0, 0], (i - K[1, 2]) / K[1, 1], np.ones_like(j)], axis=-1) * depth[..., None]
        )
        n = len(views)
        prediction = Prediction(
            points=np.broadcast_to(points, (n, h, w, 3)).astype(np.float32),
            confidence=np.ones((n, h, w), dtype=np.float32),
            rgb=np.zeros((n, h, w, 3), dtype=np.uint8),
            crops=np.array([[0.0, 0.0, *SIZE]] * n),
        )
        return [np.eye(4)] * n, prediction

    return answer


def mean_depth(rooms: int = 4, views: int = 6, size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """(h, w) mean over views of other rooms of depth over its own mean: what a room looks like on average."""
    total = np.zeros((size[1], size[0]))
    for seed in range(rooms):
        room = make_room(seed, texture_side=32, light_cell=1.0, light_samples=1)
        for pose in make_cameras(room, views, seed, **WALK):
            _, _, depth = cast(room, pose, intrinsics(size, FOCAL), size)
            total += depth / depth.mean()
    return total / (rooms * views)


# ---------------------------------------------------------------- the run


def run(rooms: Sequence[int], counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One record for each room, view count and method, as they come."""
    methods: dict[str, Callable[[tuple[View, ...]], Answer]] = {
        "geometry": geometric,
        "geometry, no EXIF": geometric_without_exif,
        "COLMAP defaults": colmap_defaults,
        "plane, identity": plane(np.ones((120, 160))),
        "mean depth, identity": plane(mean_depth()),
    }
    for number in rooms:
        seed = FIRST_ROOM + number
        room = make_room(seed)
        poses = make_cameras(room, MOST_VIEWS, seed, **WALK)
        photos = photograph(room, poses[: max(counts)], seed)
        for count in counts:
            for name, method in methods.items():
                if name == "geometry, no EXIF" and count > 8:
                    continue  # its focal length is settled by eight views, and a dozen take a minute
                wall = time.perf_counter()
                found, prediction = method(photos[:count])
                wall = time.perf_counter() - wall
                record: dict[str, Any] = {"room": number, "views": count, "method": name, "seconds": round(wall, 2)}
                record |= pose_errors(poses[:count], found)
                if name != "COLMAP defaults":
                    record |= points_of(prediction, room, poses[:count])
                yield record


def points_of(prediction: Prediction | None, room: Room, poses: Float64) -> dict[str, float]:
    if prediction is None:
        return {"covered": 0.0, "within_5": 0.0, "within_10": 0.0}
    h, w = prediction.points.shape[1:3]
    true, valid = truth(room, poses, prediction.crops, (h, w))
    return point_errors(prediction.points, prediction.confidence, true, valid)


# ---------------------------------------------------------------- the report

COLUMNS = {
    "placed": "placed",
    "rra_5": "RRA@5",
    "rra_15": "RRA@15",
    "rta_5": "RTA@5",
    "rta_15": "RTA@15",
    "maa_30": "mAA@30",
    "median_rotation": "rot. °",
    "median_direction": "dir. °",
    "covered": "covered",
    "median_error": "point error",
    "within_5": "< 5 %",
    "within_10": "< 10 %",
    "nd": "ND",
    "dac": "DAc",
    "seconds": "s",
}


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a method and view count: means over its sets of the figures that each has."""
    rows = []
    for method in dict.fromkeys(record["method"] for record in sorted(records, key=_order)):
        for count in sorted({record["views"] for record in records}):
            sets = [r for r in records if r["method"] == method and r["views"] == count]
            if not sets:
                continue
            row: dict[str, Any] = {"method": method, "views": count, "sets": len(sets)}
            for key in COLUMNS:
                values = [r[key] for r in sets if key in r]
                if values:
                    row[key] = float(np.mean(values))
            if any("covered" in r for r in sets):
                row["dac"] = float(np.mean([r.get("nd", np.inf) < 0.2 for r in sets]))
            rows.append(row)
    return rows


def _order(record: dict[str, Any]) -> int:
    return ("geometry", "COLMAP", "plane", "mean").index(record["method"].split(",")[0].split()[0])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| method | views | sets | " + " | ".join(COLUMNS.values()) + " |", "| --- " * (len(COLUMNS) + 3) + "|"]
    for row in rows:
        cells = [f"{row[k]:.{1 if k == 'seconds' else 3}f}" if k in row else "" for k in COLUMNS]
        lines.append(f"| {row['method']} | {row['views']} | {row['sets']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """mAA@30 and the share of points within 10 % over the number of views."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    panels = (("maa_30", "pose accuracy, mAA@30"), ("within_10", "pixels with a point within 10 %"))
    for axis, (key, title) in zip(axes, panels, strict=True):
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            mine = [row for row in rows if row["method"] == method and key in row]
            if mine:
                counts, values = [row["views"] for row in mine], [row[key] for row in mine]
                axis.plot(counts, values, "o-", color=f"C{number}", label=method)
        axis.set(title=title, xlabel="views", ylim=(-0.02, 1.02), xticks=sorted({row["views"] for row in rows}))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def report(records: Sequence[dict[str, Any]], out: Path) -> None:
    """Write accuracy.json, accuracy.md and accuracy.png."""
    setting = {
        "photo": f"{SIZE[0]} x {SIZE[1]}, noise and uneven exposure",
        "walk": WALK,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    rows = summarise(records)
    document = {"setting": setting, "summary": rows, "records": list(records)}
    (out / "accuracy.json").write_text(json.dumps(document, indent=1) + "\n")
    head = "Rendered rooms: `python -m bench.accuracy`; definitions in `bench/accuracy.py`. Means over sets of photos."
    (out / "accuracy.md").write_text(f"# Accuracy\n\n{head}\n\n{table(rows)}\n![Accuracy over views](accuracy.png)\n")
    plot(rows, out / "accuracy.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy on rendered rooms.")
    parser.add_argument(
        "--rooms", type=int, nargs=2, default=(0, 6), metavar=("FROM", "TO"), help="rooms FROM to TO - 1"
    )
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 8, 12])
    parser.add_argument("--quick", action="store_true", help="2 rooms, 2 and 4 views")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    rooms, counts = range(*arguments.rooms), arguments.views
    if arguments.quick:
        rooms, counts = range(2), [2, 4]
    if max(counts) > MOST_VIEWS:
        parser.error(f"at most {MOST_VIEWS} views")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    store = out / "accuracy.json"
    kept = json.loads(store.read_text())["records"] if store.exists() else []
    records = {(r["room"], r["views"], r["method"]): r for r in kept}
    for record in run(rooms, counts):
        records[record["room"], record["views"], record["method"]] = record
        shown = {key: round(value, 3) for key, value in record.items() if isinstance(value, float)}
        print(f"room {record['room']}, {record['views']} views, {record['method']}: {shown}", flush=True)
        report([records[key] for key in sorted(records)], out)
    print((out / "accuracy.md").read_text())


if __name__ == "__main__":
    main()
