"""NoPoSplat from a request to its files: API, queue, worker and artifact are real."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import gsply
import httpx
import numpy as np
import pytest
from PIL import Image

from export.splat_sessions import SplatSession
from model.geometry.crop import square_crop_in_original
from service import local
from service.errors import Problem
from service.models import Registry
from service.schemas import DEFAULT_OUTPUTS
from service.settings import Settings
from tests.service.support import ended, jpeg, serving, working
from tests.splatted import SIZES, Splatted, pose_errors
from tests.tiny import TINY_SPLAT_SQUARE, make_tiny_splat_artifact


@pytest.fixture(scope="module")
def scene() -> Splatted:
    return Splatted(3, side=TINY_SPLAT_SQUARE, noise=0.002)


@pytest.fixture
def skilled(scene: Splatted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny network as if it had been trained: photos are told apart by the order in which they come."""

    def forward(self: SplatSession, squares: np.ndarray, K: np.ndarray, progress) -> list[np.ndarray]:
        progress("forward", 0.0)
        return [np.stack(field) for field in zip(*(scene.fields(view, 0) for view in range(len(squares))), strict=True)]

    monkeypatch.setattr(SplatSession, "warm_up", lambda self: None)
    monkeypatch.setattr(SplatSession, "_forward", forward)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The API and a ready worker that serves the tiny artifact."""
    settings.models_dir.mkdir(parents=True)
    make_tiny_splat_artifact(settings.models_dir, "noposplat-tiny")
    async with working(settings, catalogue=Registry(settings.models_dir)), serving(settings) as client:
        yield client


def photos(scene: Splatted, count: int) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Whole photos, of which the network sees its squares."""
    files = []
    for view in range(count):
        buffer = io.BytesIO()
        size = SIZES[view % 3]
        left, top, right, bottom = (round(edge) for edge in square_crop_in_original(*size, TINY_SPLAT_SQUARE))
        whole = Image.new("RGB", size)
        whole.paste(Image.fromarray(scene.squares[view % 3]).resize((right - left, bottom - top)), (left, top))
        whole.save(buffer, "PNG")
        files.append(("images", (f"{view}.png", buffer.getvalue(), "image/png")))
    return files


async def reconstructed(client: httpx.AsyncClient, files: list) -> dict:
    answer = await client.post("/reconstruct", files=files, data={"model": "noposplat-tiny"})
    assert answer.status_code == 202, answer.text
    return await ended(client, answer.json()["id"], seconds=60)


async def test_photos_become_every_file(skilled: None, api: httpx.AsyncClient, scene: Splatted, tmp_path: Path) -> None:
    document = await reconstructed(api, photos(scene, 3))
    assert document["status"] == "succeeded", document["error"]
    assert {file["name"] for file in document["files"]} == set(DEFAULT_OUTPUTS)
    assert not document["low_confidence"]
    assert "No focal length is known of 0.png, 1.png, 2.png" in document["warnings"][0]
    assert {"forward_seconds", "poses_seconds"} <= document["metrics"].keys()
    for view, focal in zip(document["views"], scene.focals, strict=True):
        assert view["placed"]
        assert view["focal"] == pytest.approx(focal, rel=0.02)
    files = f"/jobs/{document['id']}/files"
    cameras = (await api.get(f"{files}/cameras.json")).json()
    for index, view in enumerate(cameras["views"]):
        turned, off = pose_errors(np.array(view["camera_to_world"]), scene.pose(index, 0))
        assert turned < 1
        assert off < 0.03 * scene.depth
    (tmp_path / "gaussians.ply").write_bytes((await api.get(f"{files}/gaussians.ply")).content)
    splats = gsply.plyread(str(tmp_path / "gaussians.ply"))
    assert splats.shN.shape[1] == 15
    data = (await api.get(f"{files}/pointmaps.npz")).content
    with np.load(io.BytesIO(data)) as arrays:
        assert arrays["points"].shape == (3, TINY_SPLAT_SQUARE, TINY_SPLAT_SQUARE, 3)


async def test_a_network_without_skill_ends_its_job_cleanly(api: httpx.AsyncClient, scene: Splatted) -> None:
    """The artifact as it is, of random weights: refused or doubted, never an error of ours."""
    document = await reconstructed(api, photos(scene, 2))
    if document["status"] == "failed":
        assert document["error"]["type"] == "cannot-reconstruct"
        assert document["error"]["suggestion"]
    else:
        assert document["status"] == "succeeded"
        assert document["low_confidence"]
        assert {file["name"] for file in document["files"]} == set(DEFAULT_OUTPUTS)


async def test_more_photos_than_it_takes_are_refused_in_a_sentence(api: httpx.AsyncClient, scene: Splatted) -> None:
    answer = await api.post("/reconstruct", files=photos(scene, 4), data={"model": "noposplat-tiny"})
    assert answer.status_code == 422
    assert answer.json()["type"] == "too-many-photos"
    assert answer.json()["detail"] == "noposplat-tiny takes at most 3 photos."
    assert answer.json()["suggestion"].endswith("or a model that takes 4: geometry.")


def test_without_a_server_the_same_happens(skilled: None, scene: Splatted, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path / "data")
    settings.models_dir.mkdir(parents=True)
    make_tiny_splat_artifact(settings.models_dir, "noposplat-tiny")
    paths = []
    for index in range(4):
        paths.append(tmp_path / f"{index}.jpg")
        paths[-1].write_bytes(jpeg(index, SIZES[index % 3]))
    stages: list[str] = []
    options = {"outputs": ["scene.splat", "cameras.json"]}
    outcome = local.reconstruct(
        paths[:2], settings, "noposplat-tiny", None, options, lambda stage, _: stages.append(stage)
    )
    assert set(outcome.files) == set(options["outputs"])
    assert all(view["placed"] for view in outcome.views)
    assert {"forward", "poses"} <= set(stages)
    with pytest.raises(Problem, match=r"4 photos: noposplat-tiny takes 2 to 3\.") as problem:
        local.reconstruct(paths, settings, "noposplat-tiny", None, options, lambda stage, _: None)
    assert problem.value.suggestion == "So many take geometry."
