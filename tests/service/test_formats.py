from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import gsply
import numpy as np
import pycolmap
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.types import Camera, PointCloud, Splats
from service import formats
from service.formats import cameras, colmap, depth, glb, matches, photos, ply, pointmaps, preview, splat, spz
from service.formats.tracks import find_tracks
from service.schemas import OUTPUTS
from tests.service.scene_fixture import box_room, up_in_world

READERS = Path(__file__).parents[1] / "readers" / "node_modules"
needs_node = pytest.mark.skipif(not shutil.which("npm"), reason="Node and npm are not on this machine")


@pytest.fixture(scope="module")
def scene():
    return box_room(5, pitch=20, unplaced=(3,))


def angle(a, b) -> float:
    """Degrees between two vectors."""
    return np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))


def splat_transform(tmp_path: Path, name: str, content) -> dict[str, np.ndarray]:
    """The columns that PlayCanvas' splat-transform reads from a file."""
    (tmp_path / name).write_bytes(content)
    program = READERS / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
    command = ["node", program, "--quiet", tmp_path / name, tmp_path / "table.csv"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    table = np.genfromtxt(tmp_path / "table.csv", delimiter=",", names=True)
    return {column: table[column] for column in table.dtype.names}


def columns(table: dict[str, np.ndarray], prefix: str, count: int) -> np.ndarray:
    return np.stack([table[f"{prefix}_{i}"] for i in range(count)], axis=1)


def test_every_output_can_be_written_and_equal_scenes_give_equal_files(scene):
    encoder = formats.Encoder(scene)
    for name in OUTPUTS:
        content = bytes(encoder.encode(name))
        assert len(content) > 100
        assert content == bytes(formats.Encoder(scene).encode(name))
    with pytest.raises(KeyError):
        encoder.encode("scene.obj")


def test_tracks_are_found_once_and_only_when_a_file_needs_them(scene, monkeypatch):
    found = []
    monkeypatch.setattr(formats, "find_tracks", lambda scene: found.append(scene) or find_tracks(scene))
    encoder = formats.Encoder(scene)
    encoder.encode("cameras.json")
    assert found == []
    for name in ("colmap.zip", "matches.npz", "matches.webp"):
        encoder.encode(name)
    assert found == [scene]


def test_cloud_ply_is_read_by_trimesh(scene):
    content = ply.encode_cloud(scene.cloud)
    read = trimesh.load(io.BytesIO(content), file_type="ply")
    np.testing.assert_array_equal(read.vertices, scene.cloud.points)
    np.testing.assert_array_equal(read.colors[:, :3], scene.cloud.colours)
    raw = read.metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(np.ravel(raw["confidence"]), scene.cloud.confidence)
    np.testing.assert_array_equal(np.ravel(raw["view"]), scene.cloud.view)
    assert b"comment axes: OpenCV, x right, y down, z forward" in content[:500]


@st.composite
def some_splats(draw) -> Splats:
    count = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    extent = 10.0 ** draw(st.floats(-3, 4))
    rotation = rng.standard_normal((count, 4))
    rotation[rng.random(count) < 0.2] = rng.choice([-1, 1]) * np.eye(4)[rng.integers(4)]
    return Splats(
        (extent * rng.standard_normal((count, 3))).astype(np.float32),
        np.exp(rng.uniform(-9, 5, (count, 3))).astype(np.float32),
        (rotation / np.linalg.norm(rotation, axis=1, keepdims=True)).astype(np.float32),
        rng.choice([0, 1, 0.5, rng.random()], count).astype(np.float32),
        rng.integers(0, 256, (count, 3), dtype=np.uint8),
    )


def colours_of(harmonics: np.ndarray) -> np.ndarray:
    return (0.5 + 0.28209479177387814 * harmonics) * 255


def turn(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees between unit quaternions; q and -q are one rotation."""
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    return np.degrees(2 * np.arccos(np.clip(np.abs((a * b).sum(axis=1)), 0, 1)))


@pytest.mark.parametrize(("predicted", "written"), [(1, 0), (4, 1), (9, 2), (16, 3), (25, 3)])
def test_gaussians_ply_keeps_harmonics_up_to_degree_3(tmp_path, predicted, written):
    rng = np.random.default_rng(0)
    count = 30
    harmonics = rng.normal(size=(count, 3, predicted)).astype(np.float32)
    splats = Splats(
        rng.normal(size=(count, 3)).astype(np.float32),
        np.full((count, 3), 0.1, np.float32),
        np.tile(np.float32([1, 0, 0, 0]), (count, 1)),
        np.full(count, 0.5, np.float32),
        np.zeros((count, 3), np.uint8),
        harmonics,
    )
    file = tmp_path / "gaussians.ply"
    file.write_bytes(ply.encode_gaussians(splats))
    read = gsply.plyread(file)
    np.testing.assert_array_equal(read.sh0, harmonics[:, :, 0])
    assert read.get_sh_degree() == written
    if written:
        np.testing.assert_array_equal(read.shN, harmonics[:, :, 1 : (written + 1) ** 2].swapaxes(1, 2))


@settings(max_examples=40, deadline=None)
@given(splats=some_splats())
def test_gaussians_ply_is_read_by_gsply(tmp_path_factory, splats):
    file = tmp_path_factory.mktemp("ply") / "gaussians.ply"
    file.write_bytes(ply.encode_gaussians(splats))
    read = gsply.plyread(file)
    np.testing.assert_array_equal(read.means, splats.centres)
    np.testing.assert_array_equal(read.quats, splats.rotation)
    np.testing.assert_allclose(np.exp(read.scales), splats.scale, rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-read.opacities)), splats.opacity, atol=1 / 254)
    np.testing.assert_allclose(colours_of(read.sh0), splats.colours, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(splats=some_splats())
def test_spz_is_read_by_gsply(tmp_path_factory, splats):
    file = tmp_path_factory.mktemp("spz") / "gaussians.spz"
    file.write_bytes(spz.encode(splats))
    read = gsply.read_spz(file)
    # The format's axes are OpenGL's. Half the extent at least is used by the 23 bits, or 20 are the fraction.
    extent = np.abs(splats.centres).max()
    tolerance = max(extent / 2**22, 2.0**-21) + extent * 1e-6
    np.testing.assert_allclose(read.means * [1, -1, -1], splats.centres, atol=tolerance, rtol=0)
    np.testing.assert_allclose(read.scales, np.log(splats.scale), atol=1 / 32 + 1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-read.opacities)), splats.opacity, atol=1 / 254)
    np.testing.assert_allclose(colours_of(read.sh0), splats.colours, atol=0.5 / (0.15 * 3.5449) + 0.1)
    assert turn(splats.rotation * [1, 1, -1, -1], read.quats).max() < 0.5


@settings(max_examples=40, deadline=None)
@given(splats=some_splats())
def test_splat_is_32_bytes_a_gaussian(splats):
    content = splat.encode(splats)
    assert len(content) == 32 * len(splats)
    for index in range(len(splats)):
        values = struct.unpack_from("<6f8B", content, 32 * index)
        np.testing.assert_array_equal(values[:3], splats.centres[index])
        np.testing.assert_array_equal(values[3:6], splats.scale[index])
        np.testing.assert_array_equal(values[6:9], splats.colours[index])
        assert abs(values[9] - 255 * splats.opacity[index]) <= 0.5001
        np.testing.assert_allclose((np.array(values[10:14]) - 128) / 128, splats.rotation[index], atol=1 / 127)


@needs_node
@pytest.mark.parametrize("name", ["scene.splat", "gaussians.ply", "gaussians.spz"])
def test_gaussians_are_read_by_splat_transform(name, scene, tmp_path):
    table = splat_transform(tmp_path, name, formats.Encoder(scene).encode(name))
    axes = np.array([1, -1, -1]) if name.endswith("spz") else np.ones(3)
    read = np.stack([table["x"], table["y"], table["z"]], axis=1) * axes
    splats = scene.splats
    assert len(read) == len(splats)
    np.testing.assert_allclose(read, splats.centres, atol=1e-5)
    np.testing.assert_allclose(columns(table, "scale", 3), np.log(splats.scale), atol=1 / 32 + 1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-table["opacity"])), splats.opacity, atol=1 / 254)
    np.testing.assert_allclose(colours_of(columns(table, "f_dc", 3)), splats.colours, atol=1.5)
    assert turn(splats.rotation * [1, *axes], columns(table, "rot", 4)).max() < 2


def glb_parts(content) -> tuple[dict, bytes]:
    magic, version, length, size = struct.unpack_from("<4sIII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content))
    return json.loads(bytes(content[20 : 20 + size])), bytes(content[28 + size :])


def test_glb_is_read_by_trimesh(scene):
    content = glb.encode(scene)
    document, binary = glb_parts(content)
    rotation = np.array(document["scenes"][0]["extras"]["world_to_gltf"])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) > 0
    read = trimesh.load(io.BytesIO(content), file_type="glb")
    np.testing.assert_allclose(read.geometry["points"].vertices, scene.cloud.points @ rotation.T, atol=1e-5)
    names = [node["name"] for node in document["nodes"] if node["name"].startswith("camera")]
    assert names == [f"camera {i}: Küche {i}.jpg" for i in (1, 2, 3, 5)]
    for name, camera in zip(names, (scene.cameras[i] for i in (0, 1, 2, 4))):
        pose = read.graph[name][0]
        np.testing.assert_allclose(pose[:3, 3], rotation @ camera.camera_to_world[:3, 3], atol=1e-6)
        np.testing.assert_allclose(-pose[:3, 2], rotation @ camera.camera_to_world[:3, 2], atol=1e-6)
    # The colours are linear light: back in sRGB they are the photos'.
    view = document["bufferViews"][document["accessors"][1]["bufferView"]]
    linear = np.frombuffer(binary, "<u2", view["byteLength"] // 2, view["byteOffset"]).reshape(-1, 4)[:, :3] / 65535
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(srgb * 255, scene.cloud.colours, atol=0.05)


def test_glb_frustum_covers_the_photo(scene):
    document, binary = glb_parts(glb.encode(scene))
    node = next(node for node in document["nodes"] if node["name"].startswith("camera"))
    accessor = document["accessors"][document["meshes"][node["mesh"]]["primitives"][0]["attributes"]["POSITION"]]
    view = document["bufferViews"][accessor["bufferView"]]
    ends = np.frombuffer(binary, "<f4", accessor["count"] * 3, view["byteOffset"]).reshape(-1, 3)
    # In the camera's own OpenGL axes, its corners project to the corners of the 640 x 480 photo.
    corners = ends[1:8:2] * [1, -1, -1] @ scene.cameras[0].K.T
    np.testing.assert_allclose(corners[:, :2] / corners[:, 2:], [[0, 0], [640, 0], [640, 480], [0, 480]], atol=1e-2)
    lens = document["cameras"][document["nodes"][node["children"][0]]["camera"]]["perspective"]
    assert np.tan(lens["yfov"] / 2) == pytest.approx(240 / scene.cameras[0].K[1, 1])
    assert lens["aspectRatio"] == pytest.approx(4 / 3)


@needs_node
def test_glb_is_valid(scene, tmp_path):
    (tmp_path / "scene.glb").write_bytes(glb.encode(scene))
    program = """
const validator = require(process.argv[1]), fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2]))).then(r => console.log(JSON.stringify(r)));
"""
    command = ["node", "-e", program, READERS / "gltf-validator", tmp_path / "scene.glb"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert report["issues"]["messages"] == []
    assert report["info"]["totalVertexCount"] > len(scene.cloud)


def rolled(camera: Camera, degrees: float) -> Camera:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    pose = camera.camera_to_world.copy()
    pose[:3, :3] = pose[:3, :3] @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return replace(camera, camera_to_world=pose)


@pytest.mark.parametrize("pitch", [-35, 0, 20, 50])
@pytest.mark.parametrize("yaw_step", [12, 25, 70])
def test_scenes_stand_upright(pitch, yaw_step):
    scene = box_room(6, pitch=pitch, yaw_step=yaw_step, grid=(12, 16), image=(64, 48))
    up = cameras.up_direction(scene.cameras)
    assert np.linalg.norm(up) == pytest.approx(1)
    assert angle(up, up_in_world(pitch)) < (1 if yaw_step == 12 else 0.3)
    # Unsteady hands, and one photo on its side.
    rng = np.random.default_rng(0)
    shaky = [rolled(camera, rng.normal(0, 2)) for camera in scene.cameras]
    assert angle(cameras.up_direction(shaky), up_in_world(pitch)) < 5
    shaky[2] = rolled(scene.cameras[2], 90)
    assert angle(cameras.up_direction(shaky), up_in_world(pitch)) < 6
    # In the file: up is y, and the reference camera's heading is -z.
    rotation = cameras.upright_rotation(scene)
    np.testing.assert_allclose(rotation @ up, [0, 1, 0], atol=1e-9)
    heading = rotation @ scene.cameras[0].camera_to_world[:3, 2]
    assert heading[0] == pytest.approx(0, abs=1e-9)
    assert heading[2] < 0


def test_one_heading_stands_as_the_photos_do():
    scene = box_room(3, pitch=10, yaw_step=0.5, grid=(12, 16), image=(64, 48))
    assert angle(cameras.up_direction(scene.cameras), np.array([0, -1.0, 0])) < 1
    assert angle(cameras.up_direction([None, None]), np.array([0, -1.0, 0])) == 0


def test_a_camera_that_looks_straight_down_still_has_a_rotation():
    scene = box_room(4, pitch=0, yaw_step=40, grid=(12, 16), image=(64, 48))
    down = Camera(scene.cameras[0].K, np.eye(4), 1.0)
    down.camera_to_world[:3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]) @ np.eye(3)
    scene = replace(scene, cameras=(down, *scene.cameras[1:]))
    rotation = cameras.upright_rotation(scene)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_cameras_json_explains_every_pixel(scene):
    document = json.loads(cameras.encode(scene), parse_constant=pytest.fail)
    assert document["reference"] == 0
    assert "y down" in document["conventions"]["axes"]
    assert angle(np.array(document["up"]), up_in_world(20)) < 1.5
    assert [view["name"] for view in document["views"]] == [f"Küche {i + 1}.jpg" for i in range(5)]
    lost = document["views"][3]
    assert (lost["K"], lost["K_grid"], lost["camera_to_world"], lost["image"], lost["inlier_share"]) == (None,) * 5
    for index in (0, 1, 2, 4):
        view = document["views"][index]
        assert (view["width"], view["height"], view["inlier_share"]) == (640, 480, 0.9)
        pose = np.array(view["camera_to_world"])
        local = (scene.prediction.points[index] - pose[:3, 3]) @ pose[:3, :3]
        grid = local @ np.array(view["K_grid"]).T
        grid = grid[..., :2] / grid[..., 2:]
        assert view["grid_size"] == [64, 48]
        columns, rows = np.meshgrid(np.arange(64) + 0.5, np.arange(48) + 0.5)
        np.testing.assert_allclose(grid, np.stack([columns, rows], -1), atol=1e-3)
        original = local @ np.array(view["K"]).T
        original = original[..., :2] / original[..., 2:]
        left, top, right, bottom = view["crop"]
        np.testing.assert_allclose(original[..., 0], left + columns * (right - left) / 64, atol=1e-2)
        np.testing.assert_allclose(original[..., 1], top + rows * (bottom - top) / 48, atol=1e-2)


def test_transforms_json_is_opengl_and_names_the_images(scene):
    document = json.loads(cameras.encode_transforms(scene))
    archive = zipfile.ZipFile(io.BytesIO(colmap.encode(find_tracks(scene))))
    assert len(document["frames"]) == 4
    for frame, index in zip(document["frames"], (0, 1, 2, 4)):
        picture = Image.open(archive.open(frame["file_path"]))
        assert picture.size == (frame["w"], frame["h"]) == (320, 240)
        pose = np.array(frame["transform_matrix"])
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        # A point right of, below and before the camera has x > 0, y < 0, z < 0 in its axes.
        point = scene.prediction.points[index][40, 60]
        x, y, z = (point - pose[:3, 3]) @ pose[:3, :3]
        column, row = frame["cx"] - frame["fl_x"] * x / z, frame["cy"] + frame["fl_y"] * y / z
        assert z < 0
        assert column == pytest.approx((80 + 60.5 * 7.5) / 2, abs=1e-2)
        assert row == pytest.approx(40.5 * 10 / 2, abs=1e-2)


def unpacked(scene, folder: Path) -> pycolmap.Reconstruction:
    zipfile.ZipFile(io.BytesIO(colmap.encode(find_tracks(scene)))).extractall(folder)
    return pycolmap.Reconstruction(folder / "sparse" / "0")


def test_colmap_model_is_read_by_colmap(scene, tmp_path):
    model = unpacked(scene, tmp_path)
    assert model.num_reg_images() == 4
    assert model.num_cameras() == 1
    camera = model.cameras[1]
    assert (camera.model.name, camera.width, camera.height) == ("PINHOLE", 320, 240)
    np.testing.assert_allclose(camera.params, [256, 256, 160, 120])
    for index in (0, 1, 2, 4):
        image = model.images[index + 1]
        assert image.name == f"{index + 1:03d}.jpg"
        pose = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
        np.testing.assert_allclose(pose @ scene.cameras[index].camera_to_world, np.eye(4), atol=1e-9)
        picture = np.asarray(Image.open(tmp_path / "images" / image.name))
        assert np.abs(picture.astype(int) - scene.views.views[index].image).mean() < 4
    written = [point.error for point in model.points3D.values()]
    assert model.num_points3D() > 5000
    assert model.compute_mean_track_length() > 2
    # Exact pointmaps and cameras: what is left is where a view's slopes cross an edge of the room.
    assert np.median(written) < 0.02
    assert model.compute_mean_reprojection_error() < 0.1
    model.update_point_3d_errors()
    np.testing.assert_allclose(written, [point.error for point in model.points3D.values()], atol=1e-6)


def test_colmap_errors_are_honest(scene, tmp_path):
    """Cameras that are off show in the errors, and bundle adjustment brings them back."""
    off = list(scene.cameras)
    off[1] = rolled(off[1], 0.4)
    model = unpacked(replace(scene, cameras=tuple(off)), tmp_path)
    before = model.compute_mean_reprojection_error()
    assert before > 0.15
    pycolmap.bundle_adjustment(model, pycolmap.BundleAdjustmentOptions(print_summary=False))
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < before / 2


def test_colmap_of_one_placed_view_has_its_own_pixels(tmp_path):
    scene = box_room(3, unplaced=(0, 2), grid=(24, 32))
    model = unpacked(scene, tmp_path)
    assert [image.name for image in model.images.values()] == ["002.jpg"]
    assert model.compute_mean_track_length() == 1
    assert model.compute_mean_reprojection_error() < 1e-3
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["002.jpg"]


def test_pointmaps(scene):
    with np.load(io.BytesIO(pointmaps.encode(scene)), allow_pickle=False) as read:
        assert set(read) == {"points", "confidence", "depth", "rgb", "crops", "names"}
        np.testing.assert_array_equal(read["points"], scene.prediction.points)
        np.testing.assert_array_equal(read["confidence"], scene.prediction.confidence)
        np.testing.assert_array_equal(read["rgb"], scene.prediction.rgb)
        assert read["names"].tolist() == [view.name for view in scene.views.views]
        depth = read["depth"]
    assert depth.dtype == np.float32
    assert (depth[3] == 0).all()
    assert (depth[:, 0, :3] == 0).all()
    pose = np.linalg.inv(scene.cameras[2].camera_to_world)
    expected = scene.prediction.points[2] @ pose[2, :3] + pose[2, 3]
    np.testing.assert_allclose(depth[2, 1:], expected[1:], atol=1e-5)


def test_a_view_rendered_from_its_own_camera_is_its_photo():
    scene = box_room(4, grid=(120, 160), pitch=10)
    view, camera = scene.views.views[1], scene.cameras[1]
    K = cameras.intrinsics_of(camera, (0, 0, *view.original_size), (320, 240))
    picture = preview.render(scene.cloud, K, camera.camera_to_world, (320, 240))
    # The pointmaps leave out an eighth at both sides. Tiles' edges are a pixel or two of 2.25 off.
    inner = np.abs(picture.astype(int) - view.image)[:, 45:-45]
    assert np.median(inner) <= 2
    assert np.mean(inner.max(axis=-1) > 20) < 0.06


def plane(z: float, step: float, extent: float, colour: tuple[int, int, int]) -> PointCloud:
    axis = np.arange(-extent, extent, step)
    points = np.stack([*np.meshgrid(axis, axis), np.full((len(axis),) * 2, z)], -1).reshape(-1, 3).astype(np.float32)
    count = len(points)
    return PointCloud(
        points, np.tile(np.uint8(colour), (count, 1)), np.ones(count, np.float32), np.zeros(count, np.uint8)
    )


def test_near_surfaces_hide_far_ones_even_where_their_points_are_sparse():
    near, far = plane(1.0, 0.04, 0.3, (255, 0, 0)), plane(3.0, 0.004, 1.4, (0, 0, 255))
    both = PointCloud(
        *(np.concatenate([getattr(far, name), getattr(near, name)]) for name in ("points", "colours", "confidence")),
        view=np.concatenate([far.view, near.view + 1]),
    )
    K = np.array([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]])
    picture = preview.render(both, K, np.eye(4), (160, 120))
    assert (picture[35:85, 55:105] == (255, 0, 0)).all()
    assert (picture[60, 45] == (0, 0, 255)).all()
    assert (picture[0, 0] == preview.BACKGROUND).all()
    behind = preview.render(both, K, np.diag([1.0, 1, -1, 1]) @ np.diag([1.0, -1, 1, 1]), (160, 120))
    assert (behind == preview.BACKGROUND).all()


def test_preview_shows_the_scene():
    scene = box_room(4, grid=(120, 160), pitch=20)
    picture = np.asarray(Image.open(io.BytesIO(preview.encode(scene))))
    assert picture.shape == (720, 960, 3)
    covered = np.abs(picture.astype(int) - preview.BACKGROUND).max(axis=-1) > 20
    assert covered.mean() > 0.5
    # Upright: the dark floor lies below.
    dark = picture.max(axis=-1) < 90
    assert dark[500:].mean() > 3 * dark[:220].mean()


def test_matches_show_the_same_point_in_the_original_photos():
    scene = box_room(4, unplaced=(2,))
    with np.load(io.BytesIO(matches.encode(scene, find_tracks(scene))), allow_pickle=False) as read:
        pairs, first, second = read["pairs"], read["first"].astype(float), read["second"].astype(float)
        names, point = read["names"], read["point"]
    assert names.tolist() == [view.name for view in scene.views.views]
    assert {tuple(pair) for pair in pairs.tolist()} == {(0, 1), (0, 3), (1, 3)}
    assert len(np.unique(np.column_stack([pairs, point]), axis=0)) == len(pairs) > 1000
    # Epipolar geometry of the true cameras: a match's second pixel lies on the line of its first, to the pixel.
    for i, j in ((0, 1), (1, 3)):
        rows = (pairs == (i, j)).all(axis=1)
        a, b = scene.cameras[i], scene.cameras[j]
        relative = np.linalg.inv(b.camera_to_world) @ a.camera_to_world
        x, y, z = relative[:3, 3]
        essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ relative[:3, :3]
        fundamental = np.linalg.inv(b.K).T @ essential @ np.linalg.inv(a.K)
        ones = np.ones((rows.sum(), 1))
        lines = np.hstack([first[rows], ones]) @ fundamental.T
        distance = np.abs((lines * np.hstack([second[rows], ones])).sum(axis=1)) / np.linalg.norm(lines[:, :2], axis=1)
        assert np.median(distance) < 0.5
        assert np.ptp(first[rows], axis=0).min() > 200


def test_the_picture_of_matches_shows_two_photos_and_lines():
    scene = box_room(3)
    picture = Image.open(io.BytesIO(matches.encode_picture(find_tracks(scene))))
    assert picture.size == (2 * 720 + 12, 540)
    photo = Image.fromarray(scene.views.views[0].image).resize((720, 540))
    changed = np.abs(np.asarray(picture)[:, :720].astype(int) - np.asarray(photo)).max(axis=2) > 60
    assert 0.005 < changed.mean() < 0.3
    alone = Image.open(io.BytesIO(matches.encode_picture(find_tracks(box_room(2, unplaced=(1,))))))
    assert alone.size == picture.size


def test_photos_lie_in_cells_row_by_row():
    """Upright, whole, at their cell's top left corner; wide, tall and small ones, of which some were not placed."""
    sizes = [(640, 480), (480, 640), (4000, 3000), (200, 100), (640, 480)]
    of = box_room(5, unplaced=(1,), grid=(6, 8)).views
    pictures = [Image.fromarray(view.image).resize((w // 4, h // 4)) for view, (w, h) in zip(of.views, sizes)]
    of = replace(
        of,
        views=tuple(
            replace(view, image=np.asarray(picture), original_size=size)
            for view, picture, size in zip(of.views, pictures, sizes)
        ),
    )
    atlas = Image.open(io.BytesIO(photos.encode(of)))
    assert atlas.size == (3 * 384, 2 * 384)
    shown = [(384, 288), (288, 384), (384, 288), (384, 192), (384, 288)]
    for index, (picture, size) in enumerate(zip(pictures, shown, strict=True)):
        left, top = index % 3 * 384, index // 3 * 384
        cell = np.asarray(atlas.crop((left, top, left + size[0], top + size[1])), float)
        assert np.median(np.abs(cell - np.asarray(picture.resize(size), float))) < 4
        beyond = np.ones((384, 384), bool)
        beyond[: size[1], : size[0]] = False
        whole = np.asarray(atlas.crop((left, top, left + 384, top + 384)), int)
        assert np.median(np.abs(whole[beyond] - photos.BETWEEN)) < 3


def test_depth_maps_are_16_bit_pngs_with_one_scale():
    scene = box_room(3, unplaced=(1,))
    archive = zipfile.ZipFile(io.BytesIO(depth.encode(scene)))
    listing = json.loads(archive.read("depth.json"))
    assert [view["name"] for view in listing["views"]] == ["Küche 1.jpg", "Küche 3.jpg"]
    for index, view in zip((0, 2), listing["views"], strict=True):
        values = np.asarray(Image.open(io.BytesIO(archive.read(view["depth"]))))
        assert values.dtype == np.uint16
        to_camera = np.linalg.inv(scene.cameras[index].camera_to_world)
        truth = scene.prediction.points[index] @ to_camera[2, :3] + to_camera[2, 3]
        seen = scene.prediction.confidence[index] > 0
        np.testing.assert_array_equal(values > 0, seen)
        np.testing.assert_allclose(values[seen] * view["scale"], truth[seen], atol=view["scale"])
        assert view["crop"] == scene.prediction.crops[index].tolist()
