"""The page's gallery: rooms of our own, photographed and reconstructed as any job is.

    python -m bench.gallery                  all of them, about two minutes on two quiet cores
    python -m bench.gallery living-room      one alone

Writes service/static/gallery/NAME/, which holds a job document (job.json, addresses relative to it) and its files, and
index.json, which lists them. The geometric model answers, through the pipeline that jobs take. What is shown is thinned
so that a page loads it in a moment: Gaussians of each place from one view alone, a coarser mesh, few points.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import shutil
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from model.classical.model import GeometricModel
from model.fusion import fuse
from model.types import Prediction, ReconstructionError, Scene, View, Views
from service import images, pages, pipeline
from service.formats import mesh
from service.schemas import OUTPUTS, FileDocument, JobDocument, Links, Options, ViewDocument
from train.render import intrinsics, render
from train.scenes import make_cameras, make_room

FOLDER = pages.STATIC / "gallery"
EXAMPLE = Path(__file__).parents[1] / "docs" / "example"
SIZE = (960, 720)
FOCAL_35MM = 28
POINTS, TRIANGLES = 50_000, 60_000
GRAIN = 2.0**-12
"""What positions are rounded to: a tenth of a pixel or less, which compresses better."""
TEXTURE_SIDE = 640


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One room of the gallery."""

    name: str
    title: str
    seed: int
    """Of the room; 0: the photos of docs/example."""
    walk: int = 1
    photos: int = 7


ROOMS = (
    Exhibit("dining-room", "A dining room", 0),
    Exhibit("living-room", "A living room", 225),
)


def photograph(exhibit: Exhibit) -> list[tuple[str, bytes]]:
    """Names and JPEG files of the room, with the EXIF that a phone would write."""
    if not exhibit.seed:
        return [(path.name, path.read_bytes()) for path in sorted(EXAMPLE.glob("*.jpg"))]
    room = make_room(exhibit.seed, texture_side=512, light_cell=0.08, light_samples=32)
    focal = FOCAL_35MM * math.hypot(*SIZE) / math.hypot(36, 24) / max(SIZE)
    K = intrinsics(SIZE, focal)
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Scenelift", "Rendered room"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = FOCAL_35MM
    photos = []
    for index, pose in enumerate(make_cameras(room, exhibit.photos, exhibit.walk, focal=focal)):
        rng = np.random.default_rng([exhibit.seed, index])
        buffer = io.BytesIO()
        Image.fromarray(render(room, pose, K, SIZE, rng=rng).rgb).save(buffer, "JPEG", quality=90, exif=exif)
        photos.append((f"{index + 1}.jpg", buffer.getvalue()))
    return photos


def reconstruct(exhibit: Exhibit) -> dict[str, Any]:
    """Write a room's folder; its entry in index.json. Seconds are those of one processor: others may want it, too."""
    views = tuple(images.load_view(name, data, None) for name, data in photograph(exhibit))
    options = Options()
    began = time.process_time()
    job = pipeline.gather(views, options, lambda _: None)
    (answer,) = GeometricModel().run([job], lambda *_: None)
    if isinstance(answer, ReconstructionError):
        raise answer
    whole = _finish(answer, job, "cameras.json", "photos.webp", "preview.webp")
    seconds = time.process_time() - began
    assert answer.cameras is not None
    scene = fuse(answer, job, answer.cameras, options.confidence_percentile, options.max_points)
    sparse = once(scene)
    small = replace(scene, views=replace(job, views=tuple(map(_smaller, views))))
    contents = {
        **_finish(sparse, job, "gaussians.spz").files,
        **_finish(sparse, job, "scene.ply", max_points=POINTS).files,
        "mesh.glb": mesh.encode(small, most=TRIANGLES),
        **whole.files,
    }
    folder = FOLDER / exhibit.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = []
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        files.append(FileDocument(name=name, bytes=len(data), content_type=OUTPUTS[name], url=name, sha256=digest))
    ended = datetime.now(UTC).replace(microsecond=0)
    began_at = ended - timedelta(seconds=round(seconds))
    document = JobDocument(
        id=exhibit.name,
        status="succeeded",
        stage="succeeded",
        progress=1.0,
        queue_position=None,
        model="geometry",
        options=options,
        created_at=began_at,
        started_at=began_at,
        finished_at=ended,
        expires_at=None,
        views=[
            ViewDocument(name=view.name, width=view.original_size[0], height=view.original_size[1], **found)
            for view, found in zip(views, whole.views)
        ],
        files=files,
        error=None,
        warnings=list(whole.warnings),
        low_confidence=whole.low_confidence,
        metrics={"processor": round(seconds, 1)},
        links=Links(self="job.json", events="", cancel="", files=""),
    )
    (folder / "job.json").write_text(document.model_dump_json(indent=1) + "\n")
    placed = sum(view["placed"] for view in whole.views)
    return {
        "name": exhibit.name,
        "title": exhibit.title,
        "note": f"{placed} rendered photos, the geometric model on a CPU; thinned for this page",
        "views": len(views),
        "seconds": round(seconds, 1),
        "job": f"gallery/{exhibit.name}/job.json",
        "preview": f"gallery/{exhibit.name}/preview.webp",
    }


def _finish(prediction: Prediction, job: Views, *outputs: str, max_points: int = 1_500_000) -> pipeline.Outcome:
    options = Options(outputs=outputs, max_points=max_points)
    return pipeline.finish(prediction, job, options, lambda *_: None)


def once(scene: Scene) -> Prediction:
    """The scene's prediction with each place in one view alone, and round positions."""
    prediction = scene.prediction
    shown = np.zeros(prediction.confidence.shape, bool)
    for relief, triangles in mesh.reliefs(scene, step=1):
        shown[relief.index].ravel()[triangles] = True
    points = np.round(prediction.points / np.float32(GRAIN)) * np.float32(GRAIN)
    return replace(prediction, points=points, confidence=np.where(shown, prediction.confidence, np.float32(0)))


def _smaller(view: View) -> View:
    picture = Image.fromarray(view.image)
    picture.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE))
    return replace(view, image=np.asarray(picture))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(room.name for room in ROOMS))
    names = parser.parse_args().names
    listing = FOLDER / "index.json"
    known = {entry["name"]: entry for entry in json.loads(listing.read_text())} if listing.exists() else {}
    for exhibit in ROOMS:
        if exhibit.name in names or not names:
            known[exhibit.name] = reconstruct(exhibit)
            print(exhibit.name, sum(file.stat().st_size for file in (FOLDER / exhibit.name).iterdir()) / 1e6, "MB")
    listing.write_text(json.dumps([known[room.name] for room in ROOMS if room.name in known], indent=1) + "\n")


if __name__ == "__main__":
    main()
