"""Pairwise networks as models: any number of Views in, one scene out."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from export import pair_sessions, runtime
from export.contract import ALL_PAIRS, DECODER_FILE, ENCODER_FILE, ArtifactError, choose_pairs, read_description
from export.pair_sessions import PairSession, agreement
from export.sessions import list_models, open_model
from model.geometry.alignment import Alignment, Pair, fit_similarity
from model.geometry.poses import pixel_centres
from model.types import Model, Prediction, ReconstructionError, View, Views
from tests.tiny import TINY_LONG_SIDE, make_tiny_pair_artifact, tiny_pair_network
from train.render import Room, cast
from train.scenes import make_cameras, make_room

PHOTOS = ((800, 600), (600, 800), (800, 600), (640, 400))
"""Widths and heights: across and upright, of two cameras."""
GRIDS = ((48, 64), (64, 48), (48, 64), (32, 64))


def silent(stage: str, fraction: float) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_pair_artifact(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def session(folder: Path) -> PairSession:
    return open_model(folder, threads=1)


def job(views: int, seed: int = 0, reference: int = 0) -> Views:
    rng = np.random.default_rng(seed)
    photos = []
    for index in range(views):
        size, (height, width) = PHOTOS[index % 4], GRIDS[index % 4]
        crop = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        photos.append(View(f"{index}.jpg", np.zeros((6, 8, 3), np.uint8), size, crop=crop))
    return Views(tuple(photos), reference=reference)


def test_pairs_are_what_the_network_says_of_them(session: PairSession) -> None:
    """Whatever the photos' sizes, and whichever shared a pass."""
    network, images = tiny_pair_network(), [view.crop for view in job(4).views]
    pairs, matches = session._see(images, silent)
    assert matches is None
    assert sorted((pair.i, pair.j) for pair in pairs) == sorted(choose_pairs(4))
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1 for image in images]
    for pair in pairs:
        ends = (pair.i, pair.j)
        with torch.inference_mode():
            tokens = [network.encode(tensors[view]) for view in ends]
            grids = [(GRIDS[view][0] // 16, GRIDS[view][1] // 16) for view in ends]
            first, second = network.decode(tokens, grids)
        np.testing.assert_allclose(pair.points_i, first["points"][0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(pair.points_j, second["points"][0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(pair.confidence_i, first["confidence"][0], rtol=1e-3)
        np.testing.assert_allclose(pair.confidence_j, second["confidence"][0], rtol=1e-3)


@dataclasses.dataclass
class Truth:
    """A room, its cameras, and graphs that answer as a perfect network of any scale a pair would."""

    views: Views
    poses: np.ndarray
    points: list[np.ndarray]
    focals: np.ndarray
    encoded: int = 0

    def encode(self, image: np.ndarray, heartbeat=None) -> np.ndarray:
        self.encoded += 1
        height, width, _ = image.shape
        return np.full((height // 16, width // 16, 1), image[0, 0, 0], np.float32)

    def decode(self, first: list[np.ndarray], second: list[np.ndarray], heartbeat=None) -> list[np.ndarray]:
        answers = []
        for tokens_i, tokens_j in zip(first, second, strict=True):
            i, j = int(tokens_i[0, 0, 0]), int(tokens_j[0, 0, 0])
            rng = np.random.default_rng((i, j))
            scale, answer = rng.uniform(0.5, 2), []
            for view in (i, j):
                local = (self.points[view] - self.poses[i][:3, 3]) @ self.poses[i][:3, :3]
                noise = 1 + 0.002 * rng.normal(size=(*local.shape[:2], 1))
                answer += [(scale * noise * local).astype(np.float32), np.full(local.shape[:2], 9.0, np.float32)]
            answers.append(answer)
        return [np.stack(field) for field in zip(*answers, strict=True)]


@pytest.fixture(scope="module")
def room() -> tuple[Room, np.ndarray]:
    room = make_room(3, texture_side=64, light_cell=0.5, light_samples=4)
    return room, make_cameras(room, 4, 0)


@pytest.fixture
def truth(session: PairSession, room: tuple[Room, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Truth:
    poses, points, photos = room[1], [], []
    focals = np.array([0.9 * max(size) for size in PHOTOS])
    bare = job(4)
    for index, (view, box) in enumerate(zip(bare.views, session._boxes(bare), strict=True)):
        left, top, right, bottom = box
        height, width, _ = view.crop.shape
        x, y = width / (right - left), height / (bottom - top)
        original = view.original_size
        K = np.array(
            [
                [focals[index] * x, 0, (original[0] / 2 - left) * x],
                [0, focals[index] * y, (original[1] / 2 - top) * y],
                [0, 0, 1],
            ]
        )
        points.append(cast(room[0], poses[index], K, (width, height))[0].astype(np.float64))
        photos.append(dataclasses.replace(view, crop=np.full_like(view.crop, index)))
    made = Truth(Views(tuple(photos)), poses, points, focals)
    monkeypatch.setattr(session, "_encode", made.encode)
    monkeypatch.setattr(session, "_decode", made.decode)
    return made


def assert_true(truth: Truth, prediction: Prediction, slack: float = 1) -> None:
    """Cameras, points and crops are the truth's, in the reference's frame, up to one scale."""
    order = range(len(prediction.points))
    found = np.stack([camera.camera_to_world for camera in prediction.cameras])
    masks = [prediction.confidence[k] > 0 for k in range(len(order))]
    theirs = np.concatenate([prediction.points[k][mask] for k, mask in enumerate(masks)]).astype(np.float64)
    ours = np.concatenate([truth.points[v][masks[k][: GRIDS[v][0], : GRIDS[v][1]]] for k, v in enumerate(order)])
    to_truth = fit_similarity(theirs, ours, np.ones(len(ours)))
    scale = np.cbrt(np.linalg.det(to_truth[:3, :3]))
    assert np.median(np.linalg.norm(theirs @ to_truth[:3, :3].T + to_truth[:3, 3] - ours, axis=1)) < 0.02 * slack
    for k, view in enumerate(order):
        moved = to_truth @ found[k]
        turn = np.linalg.inv(truth.poses[view][:3, :3]) @ moved[:3, :3] / scale
        assert np.degrees(np.linalg.norm(Rotation.from_matrix(turn).as_rotvec())) < 0.7 * slack
        assert np.linalg.norm(moved[:3, 3] - truth.poses[view][:3, 3]) < 0.05 * slack
        camera, size = prediction.cameras[k], PHOTOS[view]
        assert camera.focal == pytest.approx(truth.focals[view], rel=0.02 * slack)
        np.testing.assert_allclose(camera.K[:2, 2], np.array(size) / 2)
        assert camera.inlier_share > (0.95 if slack == 1 else 0.7)
        # What the files rely on: a point lies on the ray of its pixel in the original photo.
        local = (prediction.points[k][masks[k]] - found[k][:3, 3]) @ found[k][:3, :3] @ camera.K.T
        centres = pixel_centres(prediction.crops[k], *prediction.confidence.shape[1:])[masks[k]]
        np.testing.assert_allclose(local[:, :2] / local[:, 2:], centres, atol=0.05)


@pytest.mark.parametrize("reference", [0, 2])
def test_a_room_is_found_from_its_pairs(session: PairSession, truth: Truth, reference: int) -> None:
    """Photos upright and across in one job, each encoded once."""
    (prediction,) = session.run([dataclasses.replace(truth.views, reference=reference)], silent)
    assert isinstance(prediction, Prediction)
    assert truth.encoded == 4
    assert_true(truth, prediction)
    np.testing.assert_allclose(prediction.cameras[reference].camera_to_world, np.eye(4), atol=1e-9)
    assert not prediction.low_confidence
    assert prediction.warnings == ()
    assert prediction.details["pairs"] == 12
    assert prediction.points.shape == (4, 64, 64, 3)
    for view, (height, width) in enumerate(GRIDS):
        inside = np.zeros((64, 64), bool)
        inside[:height, :width] = True
        assert (prediction.confidence[view][~inside] == 0).all()
        assert (prediction.confidence[view][inside] > 0).mean() > 0.9
        assert (prediction.rgb[view][inside] == view).all()


@pytest.mark.parametrize("reference", [0, 1])
def test_two_photos_need_no_alignment(session: PairSession, truth: Truth, reference: int) -> None:
    two = Views(truth.views.views[:2], reference=reference)
    (prediction,) = session.run([two], silent)
    assert isinstance(prediction, Prediction)
    assert_true(truth, prediction)
    np.testing.assert_allclose(prediction.cameras[reference].camera_to_world, np.eye(4), atol=1e-9)


@pytest.fixture
def matching(session: PairSession, truth: Truth, monkeypatch: pytest.MonkeyPatch) -> PairSession:
    """The same as a network that tells points by descriptors: random waves over the room."""
    rng = np.random.default_rng(5)
    waves, phases = rng.normal(0, 4, (3, 24)), rng.uniform(0, 6, 24)
    description = dataclasses.replace(session._description, network="mast3r")
    graphs = {ENCODER_FILE: session._encoder, DECODER_FILE: session._decoder}
    matching = PairSession(description, graphs, session.info)

    def decode(first: list[np.ndarray], second: list[np.ndarray], heartbeat=None) -> list[np.ndarray]:
        points_i, sure_i, points_j, sure_j = truth.decode(first, second)
        described = []
        for tokens in (first, second):
            raw = [np.cos(truth.points[int(view[0, 0, 0])] @ waves + phases) for view in tokens]
            described.append([(d / np.linalg.norm(d, axis=-1, keepdims=True)).astype(np.float32) for d in raw])
        at_i, at_j = map(np.stack, described)
        return [points_i, sure_i, at_i, sure_i, points_j, sure_j, at_j, sure_j]

    monkeypatch.setattr(matching, "_encode", truth.encode)
    monkeypatch.setattr(matching, "_decode", decode)
    return matching


@pytest.mark.parametrize(("count", "reference"), [(4, 0), (4, 2), (2, 1)])
def test_a_room_is_found_from_what_descriptors_match(
    matching: PairSession, truth: Truth, count: int, reference: int
) -> None:
    views = Views(truth.views.views[:count], reference=reference)
    stages: list[str] = []
    (prediction,) = matching.run([views], lambda stage, _: stages.append(stage))
    assert isinstance(prediction, Prediction)
    assert_true(truth, prediction, slack=2.5)  # matches are whole pixels, and pixels are coarse here
    np.testing.assert_allclose(prediction.cameras[reference].camera_to_world, np.eye(4), atol=1e-9)
    assert list(dict.fromkeys(stages)) == ["forward", "alignment"]


def test_photos_without_matches_are_refused(
    matching: PairSession, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    see = matching._see
    monkeypatch.setattr(matching, "_see", lambda *a: (see(*a)[0], []))
    (failure,) = matching.run([truth.views], silent)
    assert isinstance(failure, ReconstructionError)
    assert "too few points in common" in failure.detail


def test_exif_is_where_focal_lengths_start(session: PairSession, truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pixels of the original, as the pointmaps' own are."""
    given, align = [], pair_sessions.align

    def seen(*arguments, focals, **more):
        given.extend(focals)
        return align(*arguments, focals=focals, **more)

    monkeypatch.setattr(pair_sessions, "align", seen)
    photos = [dataclasses.replace(v, exif_focal=f) for v, f in zip(truth.views.views, truth.focals, strict=True)]
    (prediction,) = session.run([Views((*photos[:3], truth.views.views[3]))], silent)
    assert given == [*truth.focals[:3], None]
    assert_true(truth, prediction)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("by", ["pointmaps", "descriptors"])
def test_photos_of_one_camera_share_one_focal_or_not(request, truth: Truth, by: str, count: int) -> None:
    session = request.getfixturevalue("session" if by == "pointmaps" else "matching")
    for shared in (True, False):
        (prediction,) = session.run([Views(truth.views.views[:count], shared_focal=shared)], silent)
        focals = [camera.focal for camera in prediction.cameras]
        # Three by one camera, one of them upright, and one by another.
        assert len(set(focals[:3])) == (1 if shared else min(count, 3))
        assert len(set(focals)) == ({2: 1, 4: 2}[count] if shared else count)
        assert_true(truth, prediction, slack=1 if by == "pointmaps" else 2.5)


def test_what_does_not_agree_is_said_to_be_doubtful(session: PairSession) -> None:
    """Random weights: whatever comes, it is not handed out as sure."""
    for views in (2, 3):
        (answer,) = session.run([job(views)], silent)
        assert isinstance(answer, ReconstructionError) or (answer.low_confidence and "doubtful" in answer.warnings[0])


@pytest.mark.parametrize("views", [2, 3])
def test_one_jobs_failure_is_its_own(
    session: PairSession, truth: Truth, monkeypatch: pytest.MonkeyPatch, views: int
) -> None:
    good = Views(truth.views.views[:views])
    poisoned = dataclasses.replace(good, reference=1)
    see = session._see

    def seen(images, progress):
        pairs, matches = see(images, progress)
        if len(answered) == 1:
            pairs[0].points_j[0, 0] = np.nan
        answered.append(pairs)
        return pairs, matches

    answered: list[list] = []
    monkeypatch.setattr(session, "_see", seen)
    first, failure, last = session.run([good, poisoned, good], silent)
    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    assert isinstance(failure, ReconstructionError)
    assert "not finite" in failure.detail
    assert failure.suggestion


def test_progress_rises_through_both_stages(session: PairSession, truth: Truth) -> None:
    told: list[tuple[str, float]] = []
    session.run([truth.views], lambda stage, done: told.append((stage, done)))
    for stage in ("forward", "alignment"):
        shares = [done for name, done in told if name == stage]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 1)
        assert len(shares) > 10
    assert [name for name, _ in told] == sorted((name for name, _ in told), reverse=True)


@pytest.mark.parametrize("stage", ["forward", "alignment"])
def test_progress_may_cancel(session: PairSession, truth: Truth, stage: str) -> None:
    calls: list[float] = []

    def cancel(name: str, fraction: float) -> None:
        calls.append(fraction)
        if name == stage and fraction > 0.3:
            raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        session.run([truth.views], cancel)
    assert 0.3 < calls[-1] < 0.5


def test_a_pass_may_be_cancelled_while_it_runs(session: PairSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one, which here ends no sooner: a busy machine may do it between two heartbeats."""
    monkeypatch.setattr(runtime, "HEARTBEAT", 0.0)
    beats: list[float] = []
    cancelled = threading.Event()
    graph = session._encoder._session
    run = graph.run
    monkeypatch.setattr(graph, "run", lambda *arguments: cancelled.wait(60) and run(*arguments))

    def cancel(stage: str, fraction: float) -> None:
        beats.append(fraction)
        if len(beats) == 3:
            cancelled.set()
            raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        session.run([job(4)], cancel)
    assert beats == [0, 0, 0]


def test_a_pair_may_be_cancelled_while_it_is_matched(matching: PairSession, truth: Truth) -> None:
    told: list[float] = []

    def cancel(stage: str, fraction: float) -> None:
        if fraction > 0.3 and told[-1] == fraction:
            raise KeyError("cancelled")
        told.append(fraction)

    with pytest.raises(KeyError, match="cancelled"):
        matching.run([truth.views], cancel)
    assert told[-1] == told[-2] + 1 / 16  # nothing but the search for matches tells a share twice here


def test_a_job_too_large_is_refused_before_it_runs(
    session: PairSession, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the refusal is right: so many views as it says do fit."""
    free = int(session._description.pass_bytes(1, 3) / runtime.MEMORY_SHARE) + 1
    monkeypatch.setattr(runtime, "free_memory", lambda: free)
    (refusal,) = session.run([truth.views], silent)
    assert isinstance(refusal, ReconstructionError)
    assert "3 fit" in refusal.detail
    assert truth.encoded == 0
    assert isinstance(session.run([Views(truth.views.views[:3])], silent)[0], Prediction)
    monkeypatch.setattr(runtime, "free_memory", lambda: 0)
    assert "not even 2 fit" in session.run([truth.views], silent)[0].detail


@given(st.integers(2, 64))
def test_pairs_link_all_views_both_ways_and_are_few(views: int) -> None:
    pairs = choose_pairs(views)
    assert len(set(pairs)) == len(pairs) <= max(ALL_PAIRS * (ALL_PAIRS - 1), 6 * views)
    assert all(i != j and (j, i) in set(pairs) for i, j in pairs)
    reached = {0}
    while more := {j for i, j in pairs if i in reached} - reached:
        reached |= more
    assert reached == set(range(views))
    if views <= ALL_PAIRS:
        assert len(pairs) == views * (views - 1)


def test_agreement_is_of_each_view() -> None:
    """A camera that is turned away loses what is seen by it, and no other does."""
    rng = np.random.default_rng(0)
    pixels = np.stack(np.meshgrid(np.arange(16) - 7.5, np.arange(12) - 5.5), axis=-1)
    rays = np.concatenate([pixels / 14, np.ones((12, 16, 1))], axis=-1)
    depths = [rng.uniform(2, 4, (12, 16)).astype(np.float32) for _ in range(3)]
    poses = np.stack([np.eye(4)] * 3)
    poses[:, 0, 3] = (0, 0.5, 1)
    sure = np.full((12, 16), 5, np.float32)
    clouds = [rays * depth[..., None] + pose[:3, 3] for depth, pose in zip(depths, poses, strict=True)]
    pairs = [
        Pair(i, j, *((2 * (clouds[v] - poses[i][:3, 3])).astype(np.float32) for v in (i, j)), sure, sure)
        for i, j in choose_pairs(3)
    ]
    scene = Alignment(poses, np.full(3, 14.0), tuple(depths), (sure,) * 3, (pixels,) * 3, np.eye(4)[None], np.zeros(0))
    np.testing.assert_allclose(agreement(scene, pairs), 1)
    wrong = poses.copy()
    wrong[2, :3, :3] = Rotation.from_euler("y", 20, degrees=True).as_matrix()
    shares = agreement(dataclasses.replace(scene, camera_to_world=wrong), pairs)
    assert shares[2] < 0.1


def test_wrong_jobs_are_a_callers_bug(session: PairSession) -> None:
    for wrong in (job(25), job(1), job(3, reference=3)):
        with pytest.raises(ValueError):
            session.run([wrong], silent)
    for shape in ((40, 64, 3), (32, 32, 3), None):
        crop = None if shape is None else np.zeros(shape, np.uint8)
        photos = [dataclasses.replace(view, crop=crop) for view in job(2).views]
        with pytest.raises(ValueError, match="bug"):
            session.run([Views(tuple(photos))], silent)


def test_warm_up_is_a_real_pass(session: PairSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session.warm_up()
    decode = session._decode
    monkeypatch.setattr(session, "_decode", lambda *a: [np.full_like(o, np.nan) for o in decode(*a)])
    with pytest.raises(RuntimeError, match="not finite"):
        session.warm_up()


def test_the_model_is_described(folder: Path, session: PairSession) -> None:
    model: Model = session
    assert list_models(folder.parent) == [dataclasses.replace(model.info, device="cpu")]
    assert (model.info.square, model.info.long_side, model.info.stages) == (None, TINY_LONG_SIDE, 2)
    assert model.info.network == "dust3r"


def test_an_artifact_without_one_of_its_graphs_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_pair_artifact(tmp_path)
    (folder / DECODER_FILE).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        open_model(folder)
    description = read_description(folder)
    dataclasses.replace(description, files={"encoder.onnx": description.files["encoder.onnx"]}).write(folder)
    with pytest.raises(ArtifactError, match="impossible"):
        open_model(folder)
