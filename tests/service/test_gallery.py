"""What lies in the gallery is whole: documents that are jobs', the files they name, nothing large."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import trimesh
from PIL import Image

from bench.gallery import ROOMS, thinned
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


def test_a_thinned_grid_is_where_it_says():
    """Its pixels' rays, by its crop and the cameras, lead to its points."""
    scene = box_room(2, grid=(48, 66))
    for step in (2, 3):
        thin = thinned(scene.prediction, step)
        assert thin.points.shape == (2, 48 // step, 66 // step, 3)
        for index, camera in enumerate(scene.cameras):
            local = (thin.points[index] - camera.camera_to_world[:3, 3]) @ camera.camera_to_world[:3, :3]
            x, y, z = np.moveaxis(local @ camera.K.T, -1, 0)
            left, top, right, bottom = thin.crops[index]
            height, width = z.shape
            columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
            np.testing.assert_allclose(x / z, left + columns * (right - left) / width, atol=1e-2)
            np.testing.assert_allclose(y / z, top + rows * (bottom - top) / height, atol=1e-2)
