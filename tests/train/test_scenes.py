"""Rooms, walks through them and the example photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from train import materials, scenes
from train.render import intrinsics

EXAMPLE = Path(__file__).parents[2] / "docs" / "example"
COARSE = {"texture_side": 32, "light_cell": 0.5, "light_samples": 2}


def test_a_seed_gives_one_room(plain_room):
    one, two, other = (scenes.make_room(seed, **COARSE) for seed in (7, 7, 8))
    for a, b in zip([*one.scene, one.light], [*two.scene, two.light], strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.size != other.size
    assert not np.array_equal(one.scene.centre[:50], other.scene.centre[:50])


def test_furniture_does_not_depend_on_the_textures_size(plain_room):
    coarse = scenes.make_room(3, **COARSE)
    np.testing.assert_array_equal(coarse.scene.centre, plain_room.scene.centre)
    np.testing.assert_array_equal(coarse.scene.texture, plain_room.scene.texture)


def test_furniture_stands_in_the_room(plain_room):
    low, high = plain_room.scene.bounds[8:, :3], plain_room.scene.bounds[8:, 3:]  # behind the shell's eight groups
    assert len(low) > 10
    # The leaves of a plant in a corner may touch the wall.
    assert (low.min(0) > -0.25).all()
    assert (high.max(0) < np.array(plain_room.size) + 0.25).all()
    assert np.isfinite(plain_room.light).all()
    assert (plain_room.light >= 0).all()


def test_varied_rooms_differ_in_more_and_are_whole():
    coarse = {"texture_side": 16, "light_cell": 2.0, "light_samples": 1}
    rooms = [scenes.make_room(seed, varied=True, **coarse) for seed in range(8)]
    size = np.array([room.size for room in rooms])
    assert (size.min(0) >= (3, 3, 2.35)).all()
    assert (np.ptp(size, axis=0) > (1, 1, 0.3)).all()
    for room in rooms:
        assert (room.light >= 0).all()
        assert room.light.mean() > 0
        assert (room.scene.bounds[:, :3].min(0) > -0.4).all()
        assert (room.scene.bounds[:, 3:].max(0) < np.array(room.size) + 0.4).all()
    # At night windows show next to nothing, by day they are as bright as white.
    glass = [room.exposure * room.scene.emission.max() for room in rooms]
    assert min(glass) < 0.9 < max(glass)
    np.testing.assert_array_equal(rooms[0].light, scenes.make_room(0, varied=True, **coarse).light)


@pytest.mark.parametrize("views", [2, 12])
def test_walk(plain_room, views):
    poses = scenes.make_cameras(plain_room, views, 5)
    assert poses.shape == (views, 4, 4)
    R, t = poses[:, :3, :3], poses[:, :3, 3]
    np.testing.assert_allclose(R.transpose(0, 2, 1) @ R, np.broadcast_to(np.eye(3), R.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(R), 1)
    np.testing.assert_array_equal(poses[:, 3], np.broadcast_to([0, 0, 0, 1], (views, 4)))
    assert (R[:, 2, 1] < -0.5).all(), "the camera's y axis points down in a world with z up"
    assert ((t > 0.2) & (t < np.array(plain_room.size) - 0.2)).all()
    steps = np.linalg.norm(np.diff(t[:, :2], axis=0), axis=1)
    assert ((steps > 0.24) & (steps < 0.61)).all()
    size = (80, 60)
    for one, two in zip(poses[1:], poses[:-1], strict=True):
        assert 0.4 < scenes.overlap(plain_room, one, two, intrinsics(size), size) < 0.97
    np.testing.assert_array_equal(scenes.make_cameras(plain_room, views, 5), poses)
    assert not np.array_equal(scenes.make_cameras(plain_room, views, 6), poses)


def test_overlap_of_a_view_with_itself_and_with_its_back(plain_room, walk):
    size = (40, 30)
    K = intrinsics(size)
    assert scenes.overlap(plain_room, walk[0], walk[0], K, size) > 0.97
    behind = walk[0] @ np.diag([-1.0, 1.0, -1.0, 1.0])
    assert scenes.overlap(plain_room, walk[0], behind, K, size) == 0


def test_an_impossible_walk_is_refused(plain_room):
    with pytest.raises(ValueError, match="no walk with 3 views"):
        scenes.make_cameras(plain_room, 3, 0, step=(9.0, 10.0))


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: materials.wood(rng, 128, (0.6, 0.4, 0.3)),
        lambda rng: materials.brick(rng, 128, (0.6, 0.3, 0.2)),
        lambda rng: materials.tiles(rng, 128, (0.8, 0.8, 0.8)),
        lambda rng: materials.plaster(rng, 128, (0.9, 0.9, 0.8)),
        lambda rng: materials.stone(rng, 128, (0.7, 0.7, 0.7)),
        lambda rng: materials.carpet(rng, 128, (0.4, 0.5, 0.5)),
        lambda rng: materials.wallpaper(rng, 128, (0.4, 0.5, 0.5)),
    ],
)
def test_repeating_materials_have_no_seam(draw):
    image = draw(np.random.default_rng(4)).astype(int)
    assert image.shape == (128, 128, 3)
    for axis in (0, 1):
        steps = np.abs(image - np.roll(image, 1, axis)).mean(axis=(1 - axis, 2))
        assert steps[0] <= 1.2 * steps.max(initial=0, where=np.arange(128) > 0) + 1


def test_example_photos_carry_their_focal_length():
    photos = sorted(EXAMPLE.glob("*.jpg"))
    assert len(photos) == 6
    for path in photos:
        assert path.stat().st_size < 400_000
        with Image.open(path) as photo:
            assert photo.size == scenes.EXAMPLE_SIZE
            details = photo.getexif().get_ifd(ExifTags.IFD.Exif)
            assert details[ExifTags.Base.FocalLengthIn35mmFilm] == scenes.EXAMPLE_FOCAL_35MM
            pixels = np.asarray(photo.resize((64, 48)))
        assert pixels.std() > 25
