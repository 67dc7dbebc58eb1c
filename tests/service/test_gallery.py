"""What lies in the gallery is whole: documents that are jobs', the files they name, nothing large."""

from __future__ import annotations

import hashlib
import io
import json

import trimesh
from PIL import Image

from bench.gallery import ROOMS, once
from service.pages import STATIC
from service.schemas import JobDocument
from tests.service.scene_fixture import box_room

GALLERY = STATIC / "gallery"


def test_each_room_is_a_job_with_its_files():
    listing = json.loads((GALLERY / "index.json").read_text())
    assert [entry["name"] for entry in listing] == [room.name for room in ROOMS]
    for entry in listing:
        job = JobDocument.model_validate_json((STATIC / entry["job"]).read_text())
        folder = (STATIC / entry["job"]).parent
        assert (job.status, job.model, len(job.views)) == ("succeeded", "geometry", entry["views"])
        assert all(view.focal for view in job.views)
        assert {file.url for file in job.files} | {"job.json"} == {path.name for path in folder.iterdir()}
        for file in job.files:
            content = (folder / file.url).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
        assert len(trimesh.load(folder / "scene.ply").vertices) <= 250_000
        assert trimesh.load(folder / "mesh.glb").area > 0
        assert Image.open(io.BytesIO((STATIC / entry["preview"]).read_bytes())).size == (960, 720)
        assert len(json.loads((folder / "cameras.json").read_text())["views"]) == entry["views"]
    assert sum(path.stat().st_size for path in GALLERY.rglob("*") if path.is_file()) < 12e6


def test_each_place_is_in_one_view():
    scene = box_room(3, yaw_step=2, grid=(48, 64))
    seen = (once(scene).confidence > 0).mean(axis=(1, 2))
    assert seen.max() > 0.98
    assert seen.sum() < 2
