"""How right models are, beside trivial answers and COLMAP's defaults.

    python -m bench.accuracy                          rooms and unseen: 4 rooms each x 2, 4, 8 views; some 10 minutes
    python -m bench.accuracy --quick                  1 room x 2, 4 views
    python -m bench.accuracy --set unseen --rooms 3 5 --views 4 --model geometry --model colmap
    python -m bench.accuracy --set scans/kitchen --model data/models/mine

Models: `geometry`, `geometry-without-exif`, `colmap`, `plane`, `mean-depth`; one that is served, by its name, or the
folder of its artifact. Sets: see `bench.sets`.
Every set of views is one record of docs/bench/accuracy.json; records of an earlier run are kept unless they are
computed anew, so that the bench can be run in parts. The tables (accuracy.md) and the plot (accuracy.png) beside it
are made from all records.

Poses, over all pairs of views: angle between relative rotations, angle between relative translations without its sign
(RRA@d, RTA@d: share below d degrees; mAA@30: mean over 1 to 30 degrees of the share where both are below;
PoseDiffusion, Wang et al. 2023, and DUSt3R). A pair with an unplaced view counts as wrong everywhere, and is left out
of medians.
Points, in the reference camera's frame: distance to the true point over the true point's distance from
that camera, after the one scale of a set that makes the median least. A pixel without a point counts as wrong in
shares, and is left out of the median and of the paper's measures.
The paper's measures (MV-DUSt3R, Tang et al. 2024). ND: both clouds divided by their mean distance from the reference
camera; the mean distance, capped at 10. DAc: the share of sets with ND < 0.2, a set without an answer being wrong.
And as the released evaluation aligns clouds, by their medians too (`train.losses.evaluate`): ND and CD in mean
distances of the truth, and the mean error in metres, over the views that have points.
Novel views: pictures half way between neighbouring photos (of a folder: frames that were held out), drawn from the
scene's Gaussians over white, and compared with what is there to be seen: PSNR in decibels, and SSIM.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from bench.sets import FOCAL, MOST_VIEWS, SIZE, WALK, WORKSHOPS, Novel, PosedSet, posed_sets, seen_by
from export.sessions import open_model
from model.fusion import fuse
from model.geometry.poses import solve_cameras
from model.geometry.splatting import Ellipsoids, draw, seen_colours
from model.types import SH_C0, Camera, Float64, Model, Prediction, ReconstructionError, View, Views
from service.models import Registry
from train.losses import evaluate, psnr, ssim
from train.render import cast, intrinsics
from train.scenes import make_cameras, make_room

FOLDER = Path(__file__).parents[1] / "docs" / "bench"
MODELS = Path("data/models")
MOST_POINTS = 20_000
"""Of a view, in what takes long."""
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
    return aligned_errors(found, placed, true) | {
        "covered": float(placed.sum() / valid.sum()),
        "median_error": float(np.median(errors)),
        "within_5": float((errors < 0.05).sum() / valid.sum()),
        "within_10": float((errors < 0.10).sum() / valid.sum()),
        "nd": float(np.minimum(np.linalg.norm(a - b, axis=1), 10).mean()),
    }


def aligned_errors(found: Float64, placed: np.ndarray, true: Float64) -> dict[str, float]:
    """The paper's measures of one set, on a share of its pixels: found, true (N, H, W, 3), placed (N, H, W)."""
    step = max(1, round((placed.shape[1] * placed.shape[2] / MOST_POINTS) ** 0.5))
    some = (slice(None), slice(step // 2, None, step), slice(step // 2, None, step))
    valid = torch.from_numpy(placed[some])
    seen = valid.flatten(1).any(1)
    if not seen.any():
        return {}
    points, truth = (torch.from_numpy(np.ascontiguousarray(x[some], dtype=np.float64))[seen] for x in (found, true))
    one, metres = (evaluate(points[None], truth[None], valid[None, seen], normalised=by) for by in (True, False))
    return {"nd_aligned": float(one.nd), "cd": float(one.chamfer), "metres": float(metres.nd)}


def novel_errors(
    prediction: Prediction,
    cameras: Sequence[Camera | None],
    views: Views,
    scale: float,
    novel: Sequence[Novel],
    true: Float64,
) -> dict[str, float]:
    """PSNR and SSIM of pictures from the scene's Gaussians: means over `novel`.

    scale: metres in a unit of the prediction; true (4, 4): the reference's camera_to_world.
    """
    try:
        splats = fuse(prediction, views, tuple(cameras), 3.0, 1_500_000).splats
    except ReconstructionError:
        return {}
    harmonics = splats.harmonics
    if harmonics is None:
        harmonics = ((splats.colours / 255 - 0.5) / SH_C0)[..., None].astype(np.float32)
    scene = Ellipsoids.of(splats.centres, splats.scale, splats.rotation, splats.opacity, harmonics)
    figures = []
    for view in novel:
        pose = np.linalg.inv(true) @ view.camera_to_world
        pose[:3, 3] /= scale
        drawn = draw(scene, seen_colours(scene, pose), pose, view.K, view.rgb.shape[:2])
        picture = (drawn.colour + drawn.clear[..., None]).clip(0, 1)
        pair = [torch.from_numpy(x).movedim(-1, 0)[None] for x in (picture, view.rgb / 255)]
        figures.append((float(psnr(*pair)), float(ssim(*pair))))
    return dict(zip(("psnr", "ssim"), np.mean(figures, axis=0).tolist(), strict=True)) if figures else {}


def pose_errors(true: Float64, found: Poses) -> dict[str, float]:
    """Figures of one set from (N, 4, 4) camera_to_world."""
    inverse = [None if pose is None else np.linalg.inv(pose) for pose in found]
    rotation, translation = relative_errors(np.linalg.inv(true), inverse)
    figures = {"placed": float(np.mean([pose is not None for pose in found]))}
    for degrees in (5, 15, 30):
        figures[f"rra_{degrees}"] = float((rotation < degrees).mean())
        figures[f"rta_{degrees}"] = float((translation < degrees).mean())
    figures["maa_30"] = mean_average_accuracy(rotation, translation)
    for name, errors in (("median_rotation", rotation), ("median_direction", translation)):
        if np.isfinite(errors).any():
            figures[name] = float(np.median(errors[np.isfinite(errors)]))
    return figures


# ---------------------------------------------------------------- who answers


Answer = tuple[Poses, Prediction | None]
"""camera_to_world a view, and the points where the method has any."""


def geometric(views: tuple[View, ...]) -> Answer:
    from model.classical.model import GeometricModel

    return answer_of(GeometricModel(), views)


def geometric_without_exif(views: tuple[View, ...]) -> Answer:
    return geometric(tuple(replace(view, exif_focal=None) for view in views))


def answer_of(model: Model, photos: tuple[View, ...]) -> Answer:
    """A model's prediction for the photos, and its cameras: as the service has them."""
    views = Views(seen_by(photos, model.info.square, model.info.long_side))
    answer = model.run([views], lambda *_: None)[0]
    if isinstance(answer, ReconstructionError):
        return [None] * len(views), None
    if answer.cameras is None:
        answer = replace(answer, cameras=solve_cameras(answer, views))
    return [None if camera is None else camera.camera_to_world for camera in answer.cameras or ()], answer


def served(name: str, folder: Path) -> Callable[[tuple[View, ...]], Answer]:
    """The answers of an artifact's folder, or of the model served under a name from a models folder."""
    model = open_model(Path(name)) if Path(name).is_dir() else Registry(folder).open(name)
    return lambda photos: answer_of(model, photos)


def colmap_defaults(views: tuple[View, ...]) -> Answer:
    """pycolmap's extraction, exhaustive matching and mapping as they come; the focal length is in the EXIF."""
    import pycolmap

    pycolmap.logging.minloglevel = 3
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Rendered", "Room"
    focal = (views[0].exif_focal or 0.0) * float(np.hypot(36, 24) / np.hypot(*views[0].original_size))
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = round(focal)
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
        K = intrinsics((w, h), (views[0].exif_focal or 0.0) / max(views[0].original_size))
        j, i = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
        points = (
            np.stack([(j - K[0, 2]) / K[0, 0], (i - K[1, 2]) / K[1, 1], np.ones_like(j)], axis=-1) * depth[..., None]
        )
        n = len(views)
        prediction = Prediction(
            points=np.broadcast_to(points, (n, h, w, 3)).astype(np.float32),
            confidence=np.ones((n, h, w), dtype=np.float32),
            rgb=np.zeros((n, h, w, 3), dtype=np.uint8),
            crops=np.array([[0.0, 0.0, *view.original_size] for view in views]),
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

BUILT_IN: dict[str, tuple[str, Callable[[], Callable[[tuple[View, ...]], Answer]]]] = {
    "geometry": ("geometry", lambda: geometric),
    "geometry-without-exif": ("geometry, no EXIF", lambda: geometric_without_exif),
    "colmap": ("COLMAP defaults", lambda: colmap_defaults),
    "plane": ("plane, identity", lambda: plane(np.ones((120, 160)))),
    "mean-depth": ("mean depth, identity", lambda: plane(mean_depth())),
}
"""What needs no weights: the name in the tables, and how to get it ready."""


def run(sets: Iterator[PosedSet], methods: dict[str, Callable[[tuple[View, ...]], Answer]]) -> Iterator[dict[str, Any]]:
    """One record for each set of views and method, as they come."""
    for one in sets:
        count = len(one.photos)
        for name, method in methods.items():
            started = time.process_time()
            found, prediction = method(one.photos)
            seconds = time.process_time() - started
            record: dict[str, Any] = {"room": one.number, "views": count, "method": name, "seconds": round(seconds, 2)}
            record |= pose_errors(one.camera_to_world, found)
            if name != "COLMAP defaults":
                record |= points_of(prediction, one)
            yield record


def points_of(prediction: Prediction | None, one: PosedSet) -> dict[str, float]:
    """Figures of the points, in the frame of the reference that the model took, and of novel views."""
    if prediction is None:
        return {"covered": 0.0, "within_5": 0.0, "within_10": 0.0}
    true, valid = one.truth(prediction.crops, prediction.points.shape[1:3])
    reference = prediction.reference or 0
    to_first = np.linalg.inv(one.camera_to_world[0]) @ one.camera_to_world[reference]
    true = (true - to_first[:3, 3]) @ to_first[:3, :3]
    figures = point_errors(prediction.points, prediction.confidence, true, valid)
    if prediction.cameras is None or figures["covered"] == 0:
        return figures
    placed = valid & (prediction.confidence > 0)
    few = slice(None, None, max(1, int(placed.sum()) // MOST_POINTS))
    scale = best_scale(prediction.points[placed][few].astype(np.float64), true[placed][few])
    views = Views(one.photos, reference=reference)
    pose = one.camera_to_world[reference]
    return figures | novel_errors(prediction, prediction.cameras, views, scale, one.novel, pose)


# ---------------------------------------------------------------- the report

CAMERAS = {
    "placed": "placed",
    "rra_5": "RRA@5",
    "rra_15": "RRA@15",
    "rra_30": "RRA@30",
    "rta_5": "RTA@5",
    "rta_15": "RTA@15",
    "rta_30": "RTA@30",
    "maa_30": "mAA@30",
    "median_rotation": "rot. °",
    "median_direction": "dir. °",
    "seconds": "CPU s",
}
SCENE = {
    "covered": "covered",
    "median_error": "point error",
    "within_5": "< 5 %",
    "within_10": "< 10 %",
    "nd": "ND",
    "dac": "DAc",
    "nd_aligned": "ND aligned",
    "cd": "CD aligned",
    "metres": "error m",
    "psnr": "PSNR",
    "ssim": "SSIM",
}
ONE_DECIMAL = {"seconds", "psnr"}


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a set, method and view count: means over its rooms of the figures that each has."""
    rows = []
    ranked = sorted(records, key=lambda r: (list(WORKSHOPS).index(r["set"]) if r["set"] in WORKSHOPS else 9, _order(r)))
    for name, method in dict.fromkeys((record["set"], record["method"]) for record in ranked):
        for count in sorted({record["views"] for record in records}):
            sets = [r for r in records if (r["set"], r["method"], r["views"]) == (name, method, count)]
            if not sets:
                continue
            row: dict[str, Any] = {"set": name, "method": method, "views": count, "rooms": len(sets)}
            for key in (*CAMERAS, *SCENE):
                values = [r[key] for r in sets if key in r]
                if values:
                    row[key] = float(np.mean(values))
            if any("covered" in r for r in sets):
                row["dac"] = float(np.mean([r.get("nd", np.inf) < 0.2 for r in sets]))
            rows.append(row)
    return rows


def _order(record: dict[str, Any]) -> int:
    """Models first, then what they are compared with."""
    first = record["method"].split()[0].strip(",")
    return {"geometry": 0, "COLMAP": 2, "plane": 3, "mean": 4}.get(first, 1)


def table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Those of the rows that have any of the columns, as Markdown."""
    lines = ["| method | views | rooms | " + " | ".join(columns.values()) + " |", "| --- " * (len(columns) + 3) + "|"]
    for row in rows:
        if set(columns) & set(row):
            cells = [f"{row[k]:.{1 if k in ONE_DECIMAL else 3}f}" if k in row else "" for k in columns]
            lines.append(f"| {row['method']} | {row['views']} | {row['rooms']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """mAA@30, the share of points within 10 %, and PSNR of novel views, over the number of views; a row a set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["set"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    panels = (("maa_30", "cameras, mAA@30"), ("within_10", "pixels within 10 %"), ("psnr", "novel views, PSNR"))
    figure, grid = pyplot.subplots(len(names), 3, figsize=(12, 3.2 * len(names)), layout="constrained", squeeze=False)
    for axes, name in zip(grid, names, strict=True):
        for axis, (key, title) in zip(axes, panels, strict=True):
            for number, method in enumerate(methods):
                mine = [row for row in rows if (row["set"], row["method"]) == (name, method) and key in row]
                if mine:
                    counts, values = [row["views"] for row in mine], [row[key] for row in mine]
                    axis.plot(counts, values, "o-", color=f"C{number}", label=method)
            axis.set(title=f"{name}: {title}", xlabel="views", xticks=sorted({row["views"] for row in rows}))
            axis.set_ylim(*((-0.02, 1.02) if key != "psnr" else (5, 30)))
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)
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
    parts = [
        "# Accuracy",
        "`python -m bench.accuracy`; definitions in `bench/accuracy.py`. Means over rooms; empty: not measured.",
    ]
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name]
        parts += [f"## {TITLES.get(name, name)}", table(mine, CAMERAS), table(mine, SCENE)]
    parts.append("![Accuracy over views](accuracy.png)\n")
    (out / "accuracy.md").write_text("\n\n".join(part.rstrip("\n") for part in parts) + "\n")
    plot(rows, out / "accuracy.png")


TITLES = {
    "rooms": "Rooms, furnished as training's are",
    "unseen": "Unseen: materials and furniture that training never draws from",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of models on photos whose cameras and points are known.")
    parser.add_argument("--set", action="append", metavar="rooms|unseen|FOLDER", help="default: rooms and unseen")
    parser.add_argument("--model", action="append", metavar="NAME|FOLDER", help=f"default: {', '.join(BUILT_IN)}")
    parser.add_argument(
        "--rooms", type=int, nargs=2, default=(0, 4), metavar=("FROM", "TO"), help="rooms FROM to TO - 1"
    )
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--quick", action="store_true", help="1 room, 2 and 4 views")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the served models")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    rooms, counts = range(*arguments.rooms), arguments.views
    if arguments.quick:
        rooms, counts = range(1), [2, 4]
    if not 2 <= min(counts) <= max(counts) <= MOST_VIEWS:
        parser.error(f"2 to {MOST_VIEWS} views")
    methods = {}
    for name in arguments.model or list(BUILT_IN):
        if name in BUILT_IN:
            shown, ready = BUILT_IN[name]
            methods[shown] = ready()
        else:
            methods[Path(name).name] = served(name, arguments.models)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    store = out / "accuracy.json"
    kept = json.loads(store.read_text())["records"] if store.exists() else []
    records = {_key(record): record for record in kept}
    for name in arguments.set or list(WORKSHOPS):
        label = name if name in WORKSHOPS else Path(name).resolve().name
        for figures in run(posed_sets(name, rooms, counts), methods):
            record = {"set": label} | figures
            records[_key(record)] = record
            shown = {key: round(value, 3) for key, value in record.items() if isinstance(value, float)}
            print(f"{label} {record['room']}, {record['views']} views, {record['method']}: {shown}", flush=True)
            report([records[key] for key in sorted(records)], out)
    print((out / "accuracy.md").read_text())


def _key(record: dict[str, Any]) -> tuple[str, int, int, str]:
    return record["set"], record["room"], record["views"], record["method"]


if __name__ == "__main__":
    main()
