"""NoPoSplat as a model: two or three Views in, one scene with cameras out."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export import runtime
from export.contract import ArtifactError, read_description
from export.sessions import list_models, open_model
from export.splat_sessions import DOUBTFUL, GUESS, ROUNDS, SplatSession
from model.geometry.poses import pixel_centres
from model.types import Model, Prediction, ReconstructionError, View, Views
from service.images import load_view
from tests.splatted import FOCAL, SIDE, SIZES, Splatted, pose_errors
from tests.tiny import TINY_SPLAT_SQUARE, make_tiny_splat_artifact, tiny_splat_network

GOLDEN = Path(__file__).parents[1] / "golden" / "geometry" / "image_loading_noposplat.npz"


def silent(stage: str, fraction: float) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_splat_artifact(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def session(folder: Path) -> SplatSession:
    return open_model(folder, threads=1)


@pytest.fixture(scope="module")
def scene() -> Splatted:
    return Splatted(3, noise=0.002)


@dataclasses.dataclass
class Skilled:
    """The network as if it had been trained: it knows the photos, and answers in its first one's frame."""

    scene: Splatted
    trust: float = 0.0
    """How far it takes the lens that it is told for the true one: 1 is wholly."""
    misplaced: np.ndarray | None = None
    """(4, 4) motion of what it says of every view but its first."""
    told: list[np.ndarray] = dataclasses.field(default_factory=list)

    def forward(self, squares: np.ndarray, K: np.ndarray, progress) -> list[np.ndarray]:
        progress("forward", 0.0)
        self.told.append(K)
        known = [next(v for v, own in enumerate(self.scene.squares) if (own == s).all()) for s in squares]
        answer = []
        for view, lens in zip(known, K, strict=True):
            fields = self.scene.fields(view, known[0])
            if self.misplaced is not None and view != known[0]:
                fields[0] = (fields[0] @ self.misplaced[:3, :3].T + self.misplaced[:3, 3]).astype(np.float32)
            fields[0][..., :2] *= (self.scene.Ks[view][0, 0] / SIDE / lens[0, 0]) ** self.trust
            answer.append(fields)
        return [np.stack(field) for field in zip(*answer, strict=True)]


@pytest.fixture
def skilled(session: SplatSession, scene: Splatted, monkeypatch: pytest.MonkeyPatch) -> Skilled:
    made = Skilled(scene)
    monkeypatch.setattr(session, "_forward", made.forward)
    return made


def noise(views: int, seed: int = 0, reference: int = 0) -> Views:
    rng = np.random.default_rng(seed)
    shape = (TINY_SPLAT_SQUARE, TINY_SPLAT_SQUARE, 3)
    photos = [
        View(f"{i}.jpg", np.zeros((6, 8, 3), np.uint8), SIZES[i % 3], crop=rng.integers(0, 256, shape, dtype=np.uint8))
        for i in range(views)
    ]
    return Views(tuple(photos), reference=reference)


@pytest.mark.parametrize(("views", "reference"), [(2, 0), (3, 1)])
def test_a_prediction_is_the_networks_answer(
    session: SplatSession, views: int, reference: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told the lenses that EXIF states, the reference first, in the order of the photos."""
    job = noise(views, reference=reference)
    focals = 700 + 10 * np.arange(views)
    photos = tuple(dataclasses.replace(v, exif_focal=float(f)) for v, f in zip(job.views, focals, strict=True))
    (prediction,) = session.run([dataclasses.replace(job, views=photos, shared_focal=False)], silent)
    assert isinstance(prediction, Prediction)
    order = [reference, *(view for view in range(views) if view != reference)]
    squares = np.stack([photos[view].crop for view in order])
    images = torch.from_numpy(squares).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
    K = np.zeros((1, views, 3, 3), np.float32)
    for k, view in enumerate(order):
        left, top, right, bottom = prediction.crops[view]
        width, height = photos[view].original_size
        K[0, k] = [
            [focals[view] / (right - left), 0, (width / 2 - left) / (right - left)],
            [0, focals[view] / (bottom - top), (height / 2 - top) / (bottom - top)],
            [0, 0, 1],
        ]
    with torch.inference_mode():
        expected = tiny_splat_network()(images, torch.from_numpy(K))
    for name, ours in {
        "points": prediction.points,
        "opacity": prediction.confidence,
        "scale": prediction.gaussians.scale,
        "rotation": prediction.gaussians.rotation,
        "harmonics": prediction.gaussians.harmonics,
    }.items():
        theirs = getattr(expected, name)[0].numpy()
        np.testing.assert_allclose(ours[order], theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
        assert ours.dtype == np.float32
    np.testing.assert_array_equal(prediction.rgb[order], squares)


def test_photos_and_lenses_are_cut_as_upstream_cuts_them(session: SplatSession) -> None:
    """Resized so that they cover the square, LANCZOS, the middle of it; the lens follows."""
    with np.load(GOLDEN) as arrays:
        golden = {name.rpartition("/")[2]: arrays[name] for name in arrays.files}
    buffer = io.BytesIO()
    Image.fromarray(golden["input_u8"]).save(buffer, "PNG")
    photo = load_view("a.png", buffer.getvalue(), TINY_SPLAT_SQUARE)
    assert golden["image_0_1"].shape[1] == TINY_SPLAT_SQUARE
    np.testing.assert_array_equal(photo.crop, np.rint(golden["image_0_1"].transpose(1, 2, 0) * 255).astype(np.uint8))
    seen = session._look(Views((photo, photo)))
    focal = golden["intrinsics_in"][0, 0] * photo.original_size[0]
    across = seen.in_square(0, focal)[0]
    np.testing.assert_allclose(across, golden["intrinsics_out"][0], rtol=1e-6)


@pytest.mark.parametrize("reference", [0, 2])
def test_a_room_is_found(session: SplatSession, scene: Splatted, skilled: Skilled, reference: int) -> None:
    """EXIF known: one pass, told the true lenses."""
    (prediction,) = session.run([scene.views(0, 1, 2, exif=(0, 1, 2), reference=reference)], silent)
    assert isinstance(prediction, Prediction)
    order = [reference, *(view for view in range(3) if view != reference)]
    (told,) = skilled.told
    np.testing.assert_allclose(told, [np.diag([1 / SIDE, 1 / SIDE, 1]) @ scene.Ks[view] for view in order])
    assert (prediction.warnings, prediction.low_confidence) == ((), False)
    np.testing.assert_array_equal(prediction.cameras[reference].camera_to_world, np.eye(4))
    for view, camera in enumerate(prediction.cameras):
        turned, off = pose_errors(camera.camera_to_world, scene.pose(view, reference))
        assert turned < 0.8  # a pixel of the square
        assert off < 0.02 * scene.depth
        assert camera.inlier_share > 0.95
        assert camera.focal == pytest.approx(scene.focals[view])
        np.testing.assert_allclose(camera.K[:2, 2], np.array(SIZES[view]) / 2)
        local = (prediction.points[view] - camera.camera_to_world[:3, 3]) @ camera.camera_to_world[:3, :3]
        seen = (local @ camera.K.T)[..., :2] / local[..., 2:]
        miss = np.linalg.norm(seen - pixel_centres(prediction.crops[view], SIDE, SIDE), axis=-1)
        assert np.median(miss) < 600 / SIDE


def test_the_others_gaussians_put_right_what_a_views_own_points_say(
    session: SplatSession, scene: Splatted, skilled: Skilled
) -> None:
    """All that the network says of view 1 is off by 2 degrees, and so is where it seems to have been taken (PnP)."""
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(0.035), 0, np.sin(0.035)], [0, 1, 0], [-np.sin(0.035), 0, np.cos(0.035)]]
    skilled.misplaced = turn
    (prediction,) = session.run([scene.views(0, 1, exif=(0, 1))], silent)
    assert isinstance(prediction, Prediction)
    assert pose_errors(turn @ scene.pose(1, 0), scene.pose(1, 0))[0] > 1.9
    assert pose_errors(prediction.cameras[1].camera_to_world, scene.pose(1, 0))[0] < 0.8
    first, (before, after) = prediction.details["refinement"]
    assert first is None
    assert after < 0.7 * before


def test_an_unknown_lens_is_measured(session: SplatSession, scene: Splatted, skilled: Skilled) -> None:
    """A guess first, then what the reference's points look like, then settled. Photos of one size share a lens."""
    (prediction,) = session.run([scene.views(0, 1, 2)], silent)
    assert isinstance(prediction, Prediction)
    assert len(skilled.told) == 2
    np.testing.assert_allclose(skilled.told[0][:, 0, 0], GUESS)
    np.testing.assert_allclose(skilled.told[1][:, 0, 0] * SIDE, [K[0, 0] for K in scene.Ks], rtol=0.01)
    for view, camera in enumerate(prediction.cameras):
        assert camera.focal == pytest.approx(scene.focals[view], rel=0.01)
    assert not prediction.low_confidence
    (said,) = prediction.warnings
    assert "No focal length is known of 0.jpg, 1.jpg, 2.jpg" in said
    assert f"about {FOCAL * 800:.0f} pixels" in said


def test_each_unknown_lens_is_measured_where_they_differ(
    session: SplatSession, scene: Splatted, skilled: Skilled
) -> None:
    """EXIF has a say where it is there, for all photos of that camera; per view, only for its own."""
    views = scene.views(0, 1, 2, exif=(1,))
    for shared, count in ((True, 0), (False, 2)):
        (prediction,) = session.run([dataclasses.replace(views, shared_focal=shared)], silent)
        assert len(prediction.warnings) == count
        for view, camera in enumerate(prediction.cameras):
            assert camera.focal == pytest.approx(scene.focals[view], rel=0.03)


def test_a_lens_that_does_not_settle_is_doubtful(session: SplatSession, scene: Splatted, skilled: Skilled) -> None:
    """A network that believes half of what it is told comes nearer with every pass, and passes are few."""
    skilled.trust = 0.5
    (prediction,) = session.run([scene.views(0, 1)], silent)
    assert len(skilled.told) == ROUNDS
    lenses = [K[0, 0, 0] for K in skilled.told]
    true = scene.Ks[0][0, 0] / SIDE
    errors = np.abs(np.log(np.array([*lenses, prediction.cameras[0].focal / 600]) / true))
    assert (errors[1:] < 0.7 * errors[:-1]).all()
    assert prediction.low_confidence
    assert "did not settle" in prediction.warnings[0]


def test_a_view_that_no_pose_explains_is_left_out(
    session: SplatSession, scene: Splatted, skilled: Skilled, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = skilled.forward

    def scrambled(*arguments) -> list[np.ndarray]:
        outputs = forward(*arguments)
        outputs[0][2] = np.random.default_rng(0).normal(size=outputs[0][2].shape)
        return outputs

    monkeypatch.setattr(session, "_forward", scrambled)
    (prediction,) = session.run([scene.views(0, 1, 2, exif=(0, 1, 2))], silent)
    camera = prediction.cameras[2]
    assert camera is None or camera.inlier_share < DOUBTFUL
    assert prediction.low_confidence
    assert "2.jpg" in prediction.warnings[-1]
    assert prediction.cameras[1].inlier_share > 0.9


def test_one_jobs_failure_is_its_own(
    session: SplatSession, scene: Splatted, skilled: Skilled, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = scene.views(0, 1, exif=(0, 1))
    forward = skilled.forward

    def poisoned(*arguments) -> list[np.ndarray]:
        outputs = forward(*arguments)
        if len(skilled.told) == 2:
            outputs[4][0, 0, 0] = np.nan
        return outputs

    monkeypatch.setattr(session, "_forward", poisoned)
    first, failure, last = session.run([good, good, good], silent)
    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    assert isinstance(failure, ReconstructionError)
    assert "not finite" in failure.detail


def test_progress_rises_through_both_stages_and_may_cancel(
    session: SplatSession, scene: Splatted, skilled: Skilled
) -> None:
    told: list[tuple[str, float]] = []
    session.run([scene.views(0, 1, 2)], lambda stage, done: told.append((stage, done)))
    for stage in ("forward", "poses"):
        shares = [done for name, done in told if name == stage]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 1)
    assert [name for name, _ in told] == sorted(name for name, _ in told)
    for stage in ("forward", "poses"):

        def cancel(name: str, fraction: float, stage: str = stage) -> None:
            if name == stage and fraction > 0.3:
                raise KeyError("cancelled")

        with pytest.raises(KeyError, match="cancelled"):
            session.run([scene.views(0, 1, 2)], cancel)


def test_a_pass_may_be_cancelled_while_it_runs(session: SplatSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "HEARTBEAT", 0.0)
    beats: list[float] = []

    def cancel(stage: str, fraction: float) -> None:
        beats.append(fraction)
        if len(beats) == 3:
            raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        session.run([noise(3)], cancel)
    assert beats == sorted(beats)
    assert beats[0] == 0
    assert len(beats) == 3


def test_a_job_too_large_is_refused_before_it_runs(
    session: SplatSession, scene: Splatted, skilled: Skilled, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = int(session._description.pass_bytes(1, 2) / runtime.MEMORY_SHARE) + 1
    monkeypatch.setattr(runtime, "free_memory", lambda: free)
    (refusal,) = session.run([scene.views(0, 1, 2)], silent)
    assert isinstance(refusal, ReconstructionError)
    assert "2 fit" in refusal.detail
    assert skilled.told == []
    assert isinstance(session.run([scene.views(0, 1)], silent)[0], Prediction)


def test_wrong_jobs_are_a_callers_bug(session: SplatSession) -> None:
    for wrong in (noise(4), noise(1), noise(3, reference=3)):
        with pytest.raises(ValueError):
            session.run([wrong], silent)
    photos = tuple(dataclasses.replace(view, crop=None) for view in noise(2).views)
    with pytest.raises(ValueError, match="bug"):
        session.run([Views(photos)], silent)


def test_warm_up_is_a_real_pass(session: SplatSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session.warm_up()
    forward = session._forward
    monkeypatch.setattr(session, "_forward", lambda *a: [np.full_like(o, np.nan) for o in forward(*a)])
    with pytest.raises(RuntimeError, match="not finite"):
        session.warm_up()


def test_the_model_is_described(folder: Path, session: SplatSession) -> None:
    model: Model = session
    assert list_models(folder.parent) == [dataclasses.replace(model.info, device="cpu")]
    info = model.info
    assert (info.network, info.square, info.long_side, info.stages) == ("noposplat", TINY_SPLAT_SQUARE, None, 2)
    assert (info.min_views, info.max_views, info.max_batch) == (2, 3, 1)


def test_an_artifact_without_its_graph_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_splat_artifact(tmp_path)
    dataclasses.replace(read_description(folder), network="mvdust3r").write(folder)
    with pytest.raises(ArtifactError, match="inputs and outputs"):
        open_model(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        open_model(folder)
