from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

from model.types import Scene
from service.formats import mesh
from tests.service.scene_fixture import HIGH, LOW, box_room

READERS = Path(__file__).parents[1] / "readers" / "node_modules"


@pytest.fixture(scope="module")
def scene() -> Scene:
    return box_room(5, pitch=20, unplaced=(3,), grid=(60, 80))


def parts_of(scene: Scene, **options: int) -> dict[int, trimesh.Trimesh]:
    """Each view's part of mesh.glb as trimesh reads it, turned back to the scene's axes."""
    content = mesh.encode(scene, **options)
    (size,) = struct.unpack_from("<I", content, 12)
    rotation = np.array(json.loads(bytes(content[20 : 20 + size]))["scenes"][0]["extras"]["world_to_gltf"])
    parts = trimesh.load(io.BytesIO(content), file_type="glb", process=False).geometry
    for part in parts.values():
        part.vertices = part.vertices @ rotation
    return {int(name.split()[1].rstrip(":")) - 1: part for name, part in parts.items()}


def with_points(scene: Scene, index: int, where: tuple[slice, slice], share: float, sure: float = 1.0) -> Scene:
    """The scene with some of a view's points at a share of their distance from it, and so many times as sure."""
    points, confidence = scene.prediction.points.copy(), scene.prediction.confidence.copy()
    eye = scene.cameras[index].camera_to_world[:3, 3].astype(np.float32)
    points[index][where] = eye + share * (points[index][where] - eye)
    confidence[index][where] *= sure
    return replace(scene, prediction=replace(scene.prediction, points=points, confidence=confidence))


def test_the_mesh_lies_on_the_walls_and_shows_its_front_to_the_cameras():
    scene = box_room(4, yaw_step=0, grid=(60, 80), unplaced=(2,))
    parts = parts_of(scene)
    assert set(parts) <= {0, 1, 3}
    for index, part in parts.items():
        room = part.vertices + np.array([-0.35 * 1.5, 0.1, -2 + 0.1 * 1.5])  # where the fixture has the first camera
        distance = np.abs(np.stack([room - LOW, HIGH - room])).min(axis=(0, 2))
        assert np.median(distance) < 1e-4
        assert distance.max() < 0.05, "in the room's edges blocks are rounded"
        towards = scene.cameras[index].camera_to_world[:3, 3] - part.triangles_center
        assert ((part.face_normals * towards).sum(axis=1) > 0).mean() > 0.999


def test_every_point_is_on_the_mesh_and_no_place_is_there_twice():
    scene = box_room(4, yaw_step=4, grid=(60, 80))
    parts = parts_of(scene)
    vertices = np.concatenate([part.vertices for part in parts.values()])
    spacing = 3 / (0.8 * 640 * 80 / 480)
    distance, _ = cKDTree(vertices).query(scene.cloud.points)
    assert np.quantile(distance, 0.995) < 3 * spacing
    alone = [parts_of(replace(scene, cameras=only(scene.cameras, i)))[i].area for i in range(4)]
    assert max(alone) < sum(part.area for part in parts.values()) < 0.55 * sum(alone)


def only(cameras: tuple, index: int) -> tuple:
    return tuple(camera if i == index else None for i, camera in enumerate(cameras))


def test_the_texture_of_a_place_is_what_the_photo_shows_there(scene):
    for index, part in parts_of(scene).items():
        picture = np.asarray(part.visual.material.baseColorTexture.convert("RGB")).astype(float)
        view, camera = scene.views.views[index], scene.cameras[index]
        local = (part.vertices - camera.camera_to_world[:3, 3]) @ camera.camera_to_world[:3, :3]
        x, y, z = camera.K @ local.T
        photo = view.image[(y / z / 2).astype(int).clip(0, 239), (x / z / 2).astype(int).clip(0, 319)]
        u, v = part.visual.uv.T
        height, width = picture.shape[:2]
        # trimesh counts v from below.
        shown = picture[((1 - v) * height).astype(int).clip(0, height - 1), (u * width).astype(int).clip(0, width - 1)]
        assert np.median(np.abs(shown - photo)) < 3, index
        assert np.mean(np.abs(shown - photo).max(axis=1) > 30) < 0.1, "where tiles meet"


def test_nothing_hangs_between_a_thing_and_the_wall_behind_it():
    scene = box_room(1, grid=(60, 80))
    thing = with_points(scene, 0, (slice(20, 40), slice(30, 50)), 0.5)
    (part,) = parts_of(thing).values()
    (whole,) = parts_of(scene).values()
    local = np.linalg.norm(part.vertices - thing.cameras[0].camera_to_world[:3, 3], axis=1)
    assert part.edges_unique_length.max() < 1.5 * whole.edges_unique_length.max()
    near = local[part.faces] < 0.6 * np.median(local)
    assert near.all(axis=1).sum() > 600, "the thing is there"
    assert (near.all(axis=1) == near.any(axis=1)).all(), "and joined to nothing"


def test_what_others_look_through_is_left_out():
    scene = box_room(3, yaw_step=4, grid=(60, 80))
    patch = (slice(20, 32), slice(30, 42))
    floating = with_points(scene, 1, patch, 0.4, sure=0.3)
    eye = scene.cameras[1].camera_to_world[:3, 3]
    least = np.linalg.norm(scene.cloud.points - eye, axis=1).min()
    for told, there in ((floating, False), (with_points(scene, 1, patch, 0.4, sure=9.0), True)):
        told = replace(told, cloud=replace(told.cloud, confidence=told.cloud.confidence * np.float32(0.1)))
        vertices = np.concatenate([part.vertices for part in parts_of(told).values()])
        assert (np.linalg.norm(vertices - eye, axis=1).min() < 0.7 * least) == there


def test_fewer_triangles_still_show_the_whole(scene):
    coarse = parts_of(scene, most=1500)
    assert 500 < sum(len(part.faces) for part in coarse.values()) <= 1500
    vertices = np.concatenate([part.vertices for part in coarse.values()])
    distance, _ = cKDTree(vertices).query(scene.cloud.points)
    assert np.quantile(distance, 0.99) < 0.4, "metres, of a room of 5"


@pytest.mark.skipif(not shutil.which("npm"), reason="Node and npm are not on this machine")
@pytest.mark.parametrize("grid", [(60, 80), (4, 6)])
def test_the_file_is_valid_whether_it_shows_something_or_nothing(grid, tmp_path):
    (tmp_path / "mesh.glb").write_bytes(mesh.encode(box_room(2, grid=grid)))
    program = """
const validator = require(process.argv[1]), fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2]))).then(r => console.log(JSON.stringify(r)));
"""
    command = ["node", "-e", program, READERS / "gltf-validator", tmp_path / "mesh.glb"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert [message for message in report["issues"]["messages"] if message["severity"] < 2] == []
    assert (report["info"]["totalTriangleCount"] > 1000) == (grid[0] > 4)
    for picture in report["info"].get("resources", []):
        assert picture["mimeType"] in ("image/jpeg", "application/gltf-buffer")


def test_textures_are_no_larger_than_said():
    large = box_room(1, grid=(30, 40), image=(1200, 900))
    (part,) = parts_of(large).values()
    texture: Image.Image = part.visual.material.baseColorTexture
    # The grid shows three quarters of the photo's width.
    assert 0.7 * mesh.TEXTURE_SIDE < texture.width <= 0.8 * mesh.TEXTURE_SIDE
