"""The stream of rendered batches: its truth, its order, its photos."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from train import drafts, scenes, stream
from train.drafts import Draft, Settings
from train.render import intrinsics, render
from train.stream import Stream

SMALL = Settings(
    side=48,
    views=4,
    rooms=2,
    views_per_room=12,
    sets_per_room=16,
    hold=2,
    supersample=1,
    texture_side=32,
    light_cell=1.0,
    light_samples=1,
)


@pytest.fixture(scope="module")
def made() -> Draft:
    return drafts.draft(SMALL, 3, 0)


@pytest.fixture
def drafted(monkeypatch, made) -> list[int]:
    """Rooms that cost nothing: one room whose poses tell its index; the indices that were asked for."""
    asked: list[int] = []

    def draft(settings: Settings, seed: int, index: int) -> Draft:
        asked.append(index)
        poses = made.camera_to_world.copy()
        poses[:, 3, 0] = index
        return dataclasses.replace(made, camera_to_world=poses)

    monkeypatch.setattr(stream, "draft", draft)
    monkeypatch.setattr(
        stream.cast,
        "render",
        lambda *_, **__: (torch.full((12, 48, 48, 3), 0.3), torch.full((12, 48, 48), 2.0)),
    )
    return asked


def test_views_of_a_batch_agree_with_each_other():
    """What one view sees at a depth, another view, if it sees it, sees at the depth that the poses say."""
    with Stream(SMALL, 3, "cpu") as photos:
        batch = photos.draw(3, 4)
    assert batch.images.shape == (3, 4, 3, 48, 48)
    assert batch.images.dtype == torch.float32
    assert batch.images.amin() >= -1
    assert batch.images.amax() <= 1
    assert batch.images.std() > 0.2
    assert batch.valid.float().mean() > 0.999
    K = batch.intrinsics
    fields = torch.rad2deg(2 * torch.atan(24 / K[..., 0, 0]))
    assert ((fields > 45) & (fields < 80)).all()
    points = batch.points(0)
    seen = []
    for scene in range(3):
        to_second = torch.linalg.inv(batch.camera_to_world[scene, 1]) @ batch.camera_to_world[scene, 0]
        local = points[scene, 0].reshape(-1, 3) @ to_second[:3, :3].T + to_second[:3, 3]
        pixel = local @ K[scene, 1].T
        x, y = (pixel[:, :2] / pixel[:, 2:]).T
        inside = (local[:, 2] > 0.1) & (x >= 0) & (x < 48) & (y >= 0) & (y < 48)
        there = batch.depth[scene, 1, y[inside].long(), x[inside].long()]
        agree = (there / local[inside, 2] - 1).abs() < 0.05
        seen.append(float(agree.sum() / len(local)))
    assert all(0.15 < share < 0.97 for share in seen)


def test_sets_overlap_as_wanted(made):
    fields = np.degrees(2 * np.arctan(SMALL.side / 2 / made.K[:, 0, 0]))
    shares = drafts.overlaps(made.room, made.camera_to_world, fields)
    for row in made.sets:
        assert len(set(row)) == 4
        for k in range(1, 4):
            assert 0.25 <= shares[row[k], row[:k]].max() <= 0.9
    # Two views of one camera, against the share that `scenes` counts on its own grid.
    for a, b in made.sets[:6, :2]:
        K, size = intrinsics((40, 40)), (40, 40)
        K[0, 0] = K[1, 1] = made.K[a, 0, 0] * 40 / SMALL.side
        if fields[a] == fields[b]:
            poses = made.camera_to_world
            pair = [scenes.overlap(made.room, poses[i], poses[j], K, size) for i, j in ((a, b), (b, a))]
            assert min(pair) == pytest.approx(shares[a, b], abs=0.05)


def test_sets_that_cannot_be_are_left_out():
    shares = np.eye(6)
    shares[0, 1] = shares[1, 0] = 0.5
    rng = np.random.default_rng(0)
    assert sorted({tuple(sorted(row)) for row in drafts.choose_sets(shares, 200, 2, (0.25, 0.9), rng)}) == [(0, 1)]
    assert len(drafts.choose_sets(shares, 200, 3, (0.25, 0.9), rng)) == 0


def test_cameras_stand_upright_in_free_places(made):
    poses = made.camera_to_world
    assert all(scenes.free(made.room, pose[:3, 3]) for pose in poses)
    assert (poses[:, 2, 1] < -0.3).all(), "the camera's y axis points down in a world with z up"
    assert poses[:, 2, 3].std() > 0.01


def test_a_draw_depends_on_seed_and_number_alone(drafted):
    with Stream(SMALL, 5, "cpu") as one:
        batches = [one.draw(4, 3) for _ in range(9)]
        state = one.state()
        after = one.draw(4, 3)
    assert drafted == list(range(6))
    with Stream(SMALL, 5, "cpu") as other:
        other.restore(state)
        again = other.draw(4, 3)
    for field in dataclasses.fields(after):
        torch.testing.assert_close(getattr(again, field.name), getattr(after, field.name), rtol=0, atol=0)
    assert not torch.equal(batches[0].camera_to_world, after.camera_to_world)
    # Forth and back, in a ring that is there: nothing is made that is there already.
    drafted.clear()
    other.restore({"position": 12, "room": 0})
    assert set(other.draw(32, 3).camera_to_world[:, 0, 3, 0].int().tolist()) == {6, 7}
    other.restore(state)
    torch.testing.assert_close(other.draw(4, 3).camera_to_world, after.camera_to_world)
    assert drafted == [6, 7, 4, 5]
    # Rooms grow older by one every two draws, and two are there at a time.
    rooms = [set(batch.camera_to_world[:, 0, 3, 0].int().tolist()) for batch in batches]
    assert all(found <= {k // 2, k // 2 + 1} for k, found in enumerate(rooms))
    with pytest.raises(ValueError, match="2 to 4 views"):
        one.draw(1, 5)


def test_without_hold_it_takes_what_is_ready(drafted):
    free = dataclasses.replace(SMALL, hold=0, rooms=3)
    with Stream(free, 5, "cpu") as photos:
        seen = [set(photos.draw(32, 2).camera_to_world[:, 0, 3, 0].int().tolist()) for _ in range(5)]
        state = photos.state()
        photos.restore({"position": 70, "room": 90})
        assert set(photos.draw(32, 2).camera_to_world[:, 0, 3, 0].int().tolist()) == {3, 4, 5}
    assert seen[0] == {0}
    assert seen[4] == {2, 3, 4}
    # Elsewhere it starts from what was there last.
    with Stream(free, 5, "cpu") as photos:
        photos.restore(state)
        assert photos.draw(8, 2).camera_to_world[:, 0, 3, 0].unique() == 2


@pytest.mark.slow
def test_processes_draft_the_same_rooms():
    with Stream(SMALL, 3, "cpu") as alone, Stream(SMALL, 3, "cpu", workers=1) as helped:
        torch.testing.assert_close(alone.draw(2, 3).images, helped.draw(2, 3).images)
        assert len(multiprocessing.active_children()) == 1
    assert not multiprocessing.active_children()


def test_photos_differ_from_the_exact_picture_as_photos_do(made):
    light = torch.full((16, 48, 48, 3), 0.2)
    photos = stream.develop(light, np.random.default_rng(1)).float()
    assert photos.shape == (16, 3, 48, 48)
    grey = photos.mean((2, 3))
    assert 5 < grey.mean(1).std() < 40, "exposure differs"
    assert 1 < (grey - grey.mean(1, keepdim=True)).std() < 15, "white balance differs"
    assert 0.2 < (photos[:, :, 16:32, 16:32] - photos[:, :, 16:32, 16:32].mean((2, 3), keepdim=True)).std() < 6, "noise"
    torch.testing.assert_close(photos, stream.develop(light, np.random.default_rng(1)).float())


def test_blur_is_small_and_keeps_the_light():
    point = torch.zeros(64, 3, 21, 21)
    point[:, :, 10, 10] = 1
    blurred = stream._blurred(point, np.random.default_rng(0))
    torch.testing.assert_close(blurred.sum((2, 3)), torch.ones(64, 3))
    assert (blurred[:, :, 8:13, 8:13].sum((2, 3)) > 0.97).all()
    assert (blurred[:, 0].amax((1, 2)) > 0.9).any()
    assert (blurred[:, 0].amax((1, 2)) < 0.5).any()


@pytest.mark.parametrize("quality", [60, 90])
def test_jpeg_is_pillows(made, quality):
    pose = made.camera_to_world[0]
    exact = render(made.room, pose, intrinsics((64, 48)), (64, 48)).rgb
    file = io.BytesIO()
    Image.fromarray(exact).save(file, "JPEG", quality=quality, subsampling=2)
    theirs = np.asarray(Image.open(file)).astype(float)
    value = torch.from_numpy(exact).permute(2, 0, 1)[None] / 255
    ours = stream.jpeg(value, torch.full((1, 1, 1, 1), float(quality)))[0].permute(1, 2, 0).numpy() * 255
    # It rounds twice more, and to integers.
    assert np.abs(ours - theirs).mean() < 2
    assert np.abs(ours - theirs).mean() < 0.5 * np.abs(exact - theirs).mean()
