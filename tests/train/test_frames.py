"""Folders of posed frames: each layout written from a rendered room and read back; and folders of ill will."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from train.batch import moved
from train.frames import LAYOUTS, FramesError, collate, open_frames, read, shared
from train.render import Rendered, Room, cast, intrinsics, render

SIZE = (48, 36)
K = intrinsics(SIZE)
OWN = np.diag([1.0, -1, -1, 1])
"""OpenGL's camera axes in OpenCV's."""


@pytest.fixture(scope="module")
def seen(plain_room: Room, walk: np.ndarray) -> list[Rendered]:
    return [render(plain_room, pose, K, SIZE) for pose in walk]


Write = Callable[[Path, list[Rendered], np.ndarray], None]


def put(path: Path, what: np.ndarray | str | bytes) -> None:
    """A picture, an array, or a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(what, str):
        path.write_text(what)
    elif isinstance(what, bytes):
        path.write_bytes(what)
    elif path.suffix == ".npy":
        np.save(path, what)
    else:
        Image.fromarray(what).save(path, quality=95)


def millimetres(one: Rendered) -> np.ndarray:
    return np.rint(one.depth * 1000).astype(np.uint16)


def numbers(matrix: np.ndarray) -> str:
    return "\n".join(" ".join(f"{x:.9g}" for x in row) for row in matrix)


def write_scannet(folder: Path, seen: list[Rendered], poses: np.ndarray) -> None:
    for index, (one, pose) in enumerate(zip(seen, poses, strict=True)):
        put(folder / "color" / f"{index}.jpg", one.rgb)
        put(folder / "depth" / f"{index}.png", millimetres(one))
        put(folder / "pose" / f"{index}.txt", numbers(pose))
    whole = np.eye(4)
    whole[:3, :3] = K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    for kind in ("color", "depth"):
        put(folder / "intrinsic" / f"intrinsic_{kind}.txt", numbers(whole))


def write_seven_scenes(folder: Path, seen: list[Rendered], poses: np.ndarray) -> None:
    for index, (one, pose) in enumerate(zip(seen, poses, strict=True)):
        start = f"frame-{index:06}"
        put(folder / f"{start}.color.png", one.rgb)
        put(folder / f"{start}.depth.png", np.where(one.valid, millimetres(one), 65535).astype(np.uint16))
        put(folder / f"{start}.pose.txt", numbers(pose).replace(" ", "\t"))
    put(folder / "camera-intrinsics.txt", numbers(K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]))


def write_nerfstudio(folder: Path, seen: list[Rendered], poses: np.ndarray) -> None:
    listed = []
    for index, (one, pose) in enumerate(zip(seen, poses, strict=True)):
        put(folder / "images" / f"{index}.png", one.rgb)
        put(folder / "depths" / f"{index}.png", millimetres(one))
        of_one = {"file_path": f"images/{index}.png", "depth_file_path": f"depths/{index}.png"}
        listed.append(of_one | {"transform_matrix": (pose @ OWN).tolist()})
    lens = {"w": SIZE[0], "h": SIZE[1], "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "k1": 0.0}
    put(folder / "transforms.json", json.dumps(lens | {"camera_model": "OPENCV", "frames": listed}))


def write_colmap(folder: Path, seen: list[Rendered], poses: np.ndarray, *, text: bool) -> None:
    """By COLMAP itself."""
    model = pycolmap.Reconstruction()
    lens = {"model": "PINHOLE", "params": [K[0, 0], K[1, 1], *K[:2, 2]]} if text else {"model": "SIMPLE_PINHOLE"}
    lens.setdefault("params", [K[0, 0], *K[:2, 2]])
    model.add_camera_with_trivial_rig(pycolmap.Camera(camera_id=9, width=SIZE[0], height=SIZE[1], **lens))
    for index, (one, pose) in enumerate(zip(seen, np.linalg.inv(poses), strict=True)):
        name = f"walk/{index} of {len(seen)}"
        put(folder / "images" / f"{name}.png", one.rgb)
        put(folder / "depth" / f"{name}.npy", np.where(one.valid, one.depth, np.nan))
        marks = [pycolmap.Point2D(np.array([3.5, 4.5]))] * (index % 3)
        image = pycolmap.Image(image_id=index + 1, name=f"{name}.png", camera_id=9, points2D=marks)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]))
    target = folder / "sparse" if text else folder / "sparse" / "0"
    target.mkdir(parents=True)
    (model.write_text if text else model.write)(target)


WRITERS: dict[str, tuple[str, Write, float]] = {
    "scannet": ("ScanNet", write_scannet, 6e-4),
    "seven_scenes": ("7-Scenes", write_seven_scenes, 6e-4),
    "nerfstudio": ("nerfstudio", write_nerfstudio, 6e-4),
    "colmap_text": ("COLMAP", partial(write_colmap, text=True), 1e-5),
    "colmap_binary": ("COLMAP", partial(write_colmap, text=False), 1e-5),
}
"""Its layout, who writes it, and how far in metres depth may be off: it is in millimetres, or exact."""


@pytest.fixture(params=WRITERS)
def written(request, tmp_path, seen, walk) -> tuple[Path, str, float]:
    layout, write, coarseness = WRITERS[request.param]
    write(tmp_path, seen, walk)
    return tmp_path, layout, coarseness


def test_what_was_written_is_read(written, seen, walk):
    """Order, poses, pictures, and surfaces where they were."""
    folder, layout, coarseness = written
    frames = open_frames(folder)
    assert frames.layout == layout
    assert len(frames) == 6
    views = [read(frame, SIZE) for frame in frames.scenes[0]]
    for view, one, pose in zip(views, seen, walk, strict=True):
        np.testing.assert_allclose(view.camera_to_world, pose, atol=1e-7)
        np.testing.assert_allclose(view.intrinsics, K, atol=1e-9)
        np.testing.assert_array_equal(view.valid, one.valid)
        assert np.abs(view.depth - one.depth).max() < coarseness
        assert np.abs(view.rgb.astype(int) - one.rgb).mean() < (6 if layout == "ScanNet" else 0.01)
    batch = collate([views])
    world = moved(batch.points(2), batch.camera_to_world[:, 2:3])[0]
    true = torch.from_numpy(np.stack([one.points for one in seen]))
    assert (world - true)[batch.valid[0]].norm(dim=-1).max() < 2 * coarseness + 1e-5
    torch.testing.assert_close(
        (batch.images[0, 0] + 1) * 127.5, torch.from_numpy(views[0].rgb).permute(2, 0, 1).float()
    )


@pytest.mark.parametrize("size", [(24, 24), (32, 16), (16, 32), (96, 72)])
def test_crops_have_the_cameras_that_see_them(tmp_path, plain_room, walk, size):
    """With a middle beside the picture's, and depth of another camera."""
    width, height = 160, 120
    lens, of_depth = intrinsics((width, height)), intrinsics((256, 192), focal=0.7)
    lens[:2, 2] += [9, -6]
    picture, depth = (render(plain_room, walk[0], of, s) for of, s in ((lens, (160, 120)), (of_depth, (256, 192))))
    write_scannet(tmp_path, [picture], walk[:1])
    put(tmp_path / "depth" / "0.png", millimetres(depth))
    for kind, of in (("color", lens), ("depth", of_depth)):
        put(tmp_path / "intrinsic" / f"intrinsic_{kind}.txt", numbers(of - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]))
    view = read(open_frames(tmp_path).scenes[0][0], size)
    K = view.intrinsics
    assert view.rgb.shape == (size[1], size[0], 3)
    np.testing.assert_allclose(K[:2, 2], np.array(size) / 2)
    exact = render(plain_room, walk[0], K, size, supersample=3)
    assert np.abs(view.rgb.astype(int) - exact.rgb).mean() < 14
    # Half a pixel of the depth camera beside: as far as the surface slopes there.
    error = np.abs(view.depth - exact.depth) / exact.depth
    assert view.valid.mean() > 0.97
    assert np.median(error[view.valid]) < 0.006
    # The crop is as large as it can be: it reaches the picture's border on one axis at least.
    pixel = lens[0, 0] / K[0, 0]
    reach = np.array(size) * pixel / 2
    room = np.minimum(lens[:2, 2], np.array([width, height]) - lens[:2, 2])
    assert (reach <= room + 1e-9).all()
    assert (np.abs(reach - room) < 1e-9).any()


def test_intrinsics_follow_a_resized_picture(tmp_path, seen, walk):
    write_nerfstudio(tmp_path, seen, walk)
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as image:
            half = image.resize((24, 18))
        half.save(path)
    view = read(open_frames(tmp_path).scenes[0][0], (24, 18))
    np.testing.assert_allclose(view.intrinsics, np.diag([0.5, 0.5, 1]) @ K)
    # The depth map is as large as before: a pixel's centre is a corner between four of its.
    np.testing.assert_allclose(view.depth, seen[0].depth[1::2, 1::2], atol=6e-4)


def test_lost_tracking_and_lone_files_are_left_out(tmp_path, seen, walk):
    poses = walk.copy()
    poses[1], poses[2, 0, 3] = -np.inf, np.nan
    write_scannet(tmp_path, seen, poses)
    (tmp_path / "depth" / "3.png").unlink()
    frames = open_frames(tmp_path)
    assert [frame.image.stem for frame in frames.scenes[0]] == ["0", "4", "5"]


def test_folders_of_scenes(tmp_path, seen, walk):
    for name in ("b", "a"):
        write_seven_scenes(tmp_path / name, seen, walk)
    put(tmp_path / "notes" / "read.me", "x")
    frames = open_frames(tmp_path)
    assert [scene[0].image.parent.name for scene in frames.scenes] == ["a", "b"]
    train, held_out = frames.split()
    assert [scene[0].image.parent.name for scene in (*train.scenes, *held_out.scenes)] == ["a", "b"]
    alone = open_frames(tmp_path / "a")
    assert [len(part) for part in alone.split()] == [4, 2]


def test_kinect_is_assumed_where_no_lens_is_told(tmp_path, seen, walk):
    write_seven_scenes(tmp_path, seen, walk)
    (tmp_path / "camera-intrinsics.txt").unlink()
    view = read(open_frames(tmp_path).scenes[0][0], (640, 480))
    np.testing.assert_allclose(view.intrinsics, [[585, 0, 320], [0, 585, 240], [0, 0, 1]])


def test_numbers_sort_as_numbers(tmp_path, seen, walk):
    write_scannet(tmp_path, seen * 2, np.concatenate([walk, walk]))
    assert [frame.image.stem for frame in open_frames(tmp_path).scenes[0]] == [str(k) for k in range(12)]


# ---------------------------------------------------------------- sets


def test_sets_share_what_is_asked_for(tmp_path, seen, walk, plain_room):
    write_colmap(tmp_path, seen, walk, text=False)
    frames = open_frames(tmp_path)
    low, high = 0.4, 0.85
    starts = set()
    for seed in range(8):
        chosen = frames.choose(seed, 3, SIZE, (low, high))
        starts.add(chosen[0].image.name)
        views = [read(frame, SIZE) for frame in chosen]
        assert len({frame.image for frame in chosen}) == 3
        for k in (1, 2):
            assert low - 0.02 <= max(shared(views[k], views[j]) for j in range(k)) <= high + 0.02
    assert len(starts) > 2
    with pytest.raises(FramesError, match="found no 3 views that share 99% to 100%"):
        frames.choose(0, 3, SIZE, (0.99, 1.0))


def test_what_two_views_share(tmp_path, seen, walk, plain_room):
    write_colmap(tmp_path, seen, walk, text=True)
    one, two, *_ = (read(frame, SIZE) for frame in open_frames(tmp_path).scenes[0])
    assert shared(one, one) == 1
    # Once more, through the room itself: a point is shared where nothing hides it from the other camera.
    expected = []
    for a, b in ((0, 1), (1, 0)):
        points = seen[a].points.reshape(-1, 3)
        local = (points - walk[b][:3, 3]) @ walk[b][:3, :3]
        pixel = local[:, :2] / local[:, 2:] * K[0, 0] + K[:2, 2]
        inside = (local[:, 2] > 0) & (pixel >= 0).all(1) & (pixel < SIZE).all(1)
        hit = np.zeros(len(points), bool)
        for k in np.flatnonzero(inside):
            lens = K.copy()
            lens[:2, 2] += 0.5 - pixel[k]
            hit[k] = abs(cast(plain_room, walk[b], lens, (1, 1))[2][0, 0] - local[k, 2]) < 0.02
        expected.append(hit.mean())
    assert shared(one, two) == pytest.approx(min(expected), abs=0.04)
    behind = two.camera_to_world @ np.diag([-1.0, 1, -1, 1])
    away = type(two)(two.rgb, two.depth, two.intrinsics, behind)
    assert shared(two, away) == 0


def test_a_seed_gives_one_batch(tmp_path, seen, walk):
    write_seven_scenes(tmp_path, seen, walk)
    one, two, other = (open_frames(tmp_path).draw(seed, 2, 3, (32, 32)) for seed in (3, 3, 4))
    assert one.images.shape == (2, 3, 3, 32, 32)
    torch.testing.assert_close(one.images, two.images, rtol=0, atol=0)
    torch.testing.assert_close(one.camera_to_world, two.camera_to_world, rtol=0, atol=0)
    assert not torch.equal(one.camera_to_world, other.camera_to_world)
    assert not torch.equal(one.images[0], one.images[1])
    assert one.images.abs().max() <= 1
    assert one.valid.equal(one.depth > 0)


def test_what_fits_is_decoded_once(tmp_path, seen, walk, monkeypatch):
    write_seven_scenes(tmp_path, seen, walk)
    frames, forgetful = open_frames(tmp_path), open_frames(tmp_path)
    first = frames.draw(1, 2, 3, (32, 32))
    with monkeypatch.context() as patched:
        patched.setattr("train.frames.KEPT_BYTES", 20_000)
        torch.testing.assert_close(forgetful.draw(1, 2, 3, (32, 32)).images, first.images, rtol=0, atol=0)
        assert forgetful._kept._bytes <= 20_000
    for path in tmp_path.glob("*.png"):
        path.unlink()
    torch.testing.assert_close(frames.draw(1, 2, 3, (32, 32)).images, first.images, rtol=0, atol=0)
    with pytest.raises(FramesError, match="not a picture"):
        forgetful.draw(1, 2, 3, (32, 32))


# ---------------------------------------------------------------- ill will


def test_an_unknown_folder_names_what_was_looked_for(tmp_path):
    with pytest.raises(FramesError) as caught:
        open_frames(tmp_path)
    for layout in LAYOUTS:
        assert layout in str(caught.value)
    with pytest.raises(FramesError, match="is not a folder"):
        open_frames(tmp_path / "none")


def outwards(folder: Path) -> Path:
    """A file beside the folder that could be a picture."""
    outside = folder.parent / f"{folder.name}-outside.png"
    put(outside, np.zeros((36, 48, 3), np.uint8))
    return outside


@pytest.mark.parametrize("name", ["color/1.jpg", "depth/1.png", "pose/1.txt", "intrinsic/intrinsic_color.txt"])
def test_links_that_lead_out_are_refused(tmp_path, seen, walk, name):
    folder = tmp_path / "scan"
    write_scannet(folder, seen, walk)
    (folder / name).unlink()
    (folder / name).symlink_to(outwards(folder))
    with pytest.raises(FramesError, match=f"{name.split('/')[1]}: leads out of the folder"):
        open_frames(folder)


def test_a_folder_that_leads_out_is_refused(tmp_path, seen, walk):
    write_scannet(tmp_path / "elsewhere", seen, walk)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "one").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FramesError, match="one: leads out of the folder"):
        open_frames(tmp_path / "scans")


@pytest.mark.parametrize("path", ["../scan-outside.png", "{outside}"])
def test_names_that_lead_out_are_refused(tmp_path, seen, walk, path):
    folder = tmp_path / "scan"
    write_nerfstudio(folder, seen, walk)
    told = json.loads((folder / "transforms.json").read_text())
    told["frames"][0]["file_path"] = path.format(outside=outwards(folder))
    put(folder / "transforms.json", json.dumps(told))
    with pytest.raises(FramesError, match="leads out of the folder"):
        open_frames(folder)


BROKEN: dict[str, tuple[str, str, bytes, str]] = {
    "a pose that is no matrix": ("scannet", "pose/2.txt", b"1 2 3", "not a matrix of 4 x 4"),
    "a pose of words": ("scannet", "pose/2.txt", b"one two", "something else than numbers"),
    "a pose that stretches": ("scannet", "pose/2.txt", b"2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1", "not a rigid pose"),
    "a mirror": ("scannet", "pose/2.txt", b"-1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "not a rigid pose"),
    "binary numbers": ("scannet", "intrinsic/intrinsic_color.txt", b"\xff\xfe\x00", "not a text"),
    "no focal length": ("scannet", "intrinsic/intrinsic_color.txt", b"0 0 9 0 0 9 0 0 1", "focal lengths"),
    "an empty lens": ("seven_scenes", "camera-intrinsics.txt", b"", "not a matrix of 3 x 3"),
    "half a JSON": ("nerfstudio", "transforms.json", b'{"frames": [', "not what nerfstudio writes"),
    "another JSON": ("nerfstudio", "transforms.json", b'{"frames": {"a": 1}}', "not what nerfstudio writes"),
    "a list": ("nerfstudio", "transforms.json", b"[1]", "not what nerfstudio writes"),
    "a deep JSON": ("nerfstudio", "transforms.json", b"[" * 100_000, "not what nerfstudio writes"),
    "distortion": ("nerfstudio", "transforms.json", b'{"k1": 0.1, "frames": [{}]}', "undistort"),
    "an unknown model": ("colmap_text", "sparse/cameras.txt", b"9 OPENCV 48 36 1 1 1 1 0 0 0 0", "of model OPENCV"),
    "a short camera": ("colmap_text", "sparse/cameras.txt", b"9 PINHOLE 48 36", "not what COLMAP writes"),
    "a missing camera": ("colmap_text", "sparse/images.txt", b"1 1 0 0 0 0 0 0 7 walk/0 of 3.png", "not what COLMAP"),
    "a short image": ("colmap_text", "sparse/images.txt", b"1 1 0 0 0 0 0 0", "not what COLMAP writes"),
    "no rotation": ("colmap_text", "sparse/images.txt", b"1 0 0 0 0 0 0 0 9 walk/0 of 3.png", "not what COLMAP writes"),
    "a cut file": ("colmap_binary", "sparse/0/images.bin", b"\x09" + bytes(40), "not what COLMAP writes"),
    "a vast count": ("colmap_binary", "sparse/0/images.bin", b"\xff" * 8 + bytes(80), "not what COLMAP writes"),
    "a nameless image": ("colmap_binary", "sparse/0/images.bin", b"\x01" + bytes(7) + b"\x01" * 90, "not what COLMAP"),
    "a strange camera": (
        "colmap_binary", "sparse/0/cameras.bin", struct.pack("<QiiQQ8d", 1, 9, 4, 48, 36, *[1.0] * 8), "number 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(tmp_path, seen, walk, case):
    layout, name, content, reason = BROKEN[case]
    WRITERS[layout][1](tmp_path, seen[:3], walk[:3])
    put(tmp_path / name, content)
    with pytest.raises(FramesError, match=reason) as caught:
        open_frames(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def truncated(path: Path) -> None:
    put(path, path.read_bytes()[:-100])


def promising(path: Path) -> None:
    """An array's header that tells of far more than is there."""
    header = b"(36, 48), }       "
    assert header in path.read_bytes()
    put(path, path.read_bytes().replace(header, b"(36, 480000000), }"))


SPOILT: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "half a JPEG": ("scannet", "color/0.jpg", truncated, "not a whole picture"),
    "half a depth map": ("scannet", "depth/0.png", truncated, "not a whole picture"),
    "a text": ("scannet", "color/0.jpg", lambda path: put(path, b"hello"), "not a picture"),
    "depth of 8 bits": (
        "scannet", "depth/0.png", lambda path: put(path, np.zeros((36, 48), np.uint8)), "not a depth map of 16 bits",
    ),
    "another size": (
        "scannet", "color/0.jpg", lambda path: put(path, np.zeros((200, 300, 3), np.uint8)), "not those of its camera",
    ),
    "half an array": ("colmap_text", "depth/walk/0 of 2.npy", truncated, "not an array"),
    "an array that promises": ("colmap_text", "depth/walk/0 of 2.npy", promising, "not an array"),
    "an array of objects": (
        "colmap_text", "depth/walk/0 of 2.npy", lambda path: put(path, np.array([{}, []], object)), "not an array",
    ),
    "an array of colours": (
        "colmap_text", "depth/walk/0 of 2.npy", lambda path: put(path, np.zeros((36, 48, 3))), "not a depth map",
    ),
    "an array of words": (
        "colmap_text", "depth/walk/0 of 2.npy", lambda path: put(path, np.full((36, 48), "x")), "not a depth map",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_picture_is_named_when_it_is_read(tmp_path, seen, walk, case):
    layout, name, spoil, reason = SPOILT[case]
    WRITERS[layout][1](tmp_path, seen[:2], walk[:2])
    spoil(tmp_path / name)
    with pytest.raises(FramesError, match=reason) as caught:
        read(open_frames(tmp_path).scenes[0][0], SIZE)
    assert str(tmp_path / name) in str(caught.value)
