"""A pairwise network from a request to its files: API, queue, worker and artifact are real."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from export.pair_sessions import PairSession
from service import images, local
from service.models import Registry
from service.schemas import DEFAULT_OUTPUTS
from service.settings import Settings
from tests.service.support import ended, jpeg, serving, working
from tests.tiny import TINY_LONG_SIDE, make_tiny_pair_artifact

SIZES = ((160, 120), (120, 160), (160, 120))
FOCAL = 0.9
"""In units of the long side."""


def corner(view: int, rows: int, columns: int) -> np.ndarray:
    """(16 rows, 16 columns, 3): what a camera, one step to the right of the one before, sees of a room's corner."""
    height, width = 16 * rows, 16 * columns
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2), axis=-1)
    rays = np.concatenate([grid / (FOCAL * TINY_LONG_SIDE), np.ones((height, width, 1))], axis=-1)
    centre = np.array([0.4 * view, 0, 0])
    walls = [(np.array([side, 0.2, 1]), 3.0) for side in (-0.6, 0.5)]
    depth = np.min([(distance - normal @ centre) / (rays @ normal) for normal, distance in walls], axis=0)
    return centre + rays * depth[..., None]


@pytest.fixture
def skilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny network as if it had been trained: photos are told apart by the order in which they come."""
    count = 0

    def encode(self: PairSession, image: np.ndarray, heartbeat: object = None) -> np.ndarray:
        nonlocal count
        height, width, _ = image.shape
        count += 1
        return np.full((height // 16, width // 16, 1), count - 1, np.float32)

    def decode(self: PairSession, first: list, second: list, heartbeat: object = None) -> list[np.ndarray]:
        (tokens_i,), (tokens_j,) = first, second
        i, j = int(tokens_i[0, 0, 0]), int(tokens_j[0, 0, 0])
        maps = [corner(view, *tokens.shape[:2]) - [0.4 * i, 0, 0] for view, tokens in ((i, tokens_i), (j, tokens_j))]
        sure = [np.full((1, *points.shape[:2]), 8, np.float32) for points in maps]
        first_points, second_points = (points[None].astype(np.float32) for points in maps)
        return [first_points, sure[0], second_points, sure[1]]

    monkeypatch.setattr(PairSession, "warm_up", lambda self: None)
    monkeypatch.setattr(PairSession, "_encode", encode)
    monkeypatch.setattr(PairSession, "_decode", decode)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The API and a ready worker that serves the tiny artifact."""
    settings.models_dir.mkdir(parents=True)
    make_tiny_pair_artifact(settings.models_dir, "dust3r-tiny")
    async with working(settings, catalogue=Registry(settings.models_dir)), serving(settings) as client:
        yield client


async def reconstructed(client: httpx.AsyncClient) -> dict:
    photos = [("images", (f"{i}.jpg", jpeg(i, size), "image/jpeg")) for i, size in enumerate(SIZES)]
    answer = await client.post("/reconstruct", files=photos, data={"model": "dust3r-tiny"})
    assert answer.status_code == 202, answer.text
    return await ended(client, answer.json()["id"], seconds=60)


async def test_photos_upright_and_across_become_every_file(skilled: None, api: httpx.AsyncClient) -> None:
    document = await reconstructed(api)
    assert document["status"] == "succeeded", document["error"]
    assert {file["name"] for file in document["files"]} == set(DEFAULT_OUTPUTS)
    assert not document["low_confidence"]
    assert {"pairs_seconds", "alignment_seconds"} <= document["metrics"].keys()
    for view in document["views"]:
        assert view["placed"]
        assert view["focal"] == pytest.approx(FOCAL * 160, rel=0.02)
    cameras = (await api.get(f"/jobs/{document['id']}/files/cameras.json")).json()
    steps = [np.array(view["camera_to_world"])[:3, 3] for view in cameras["views"]]
    np.testing.assert_allclose(steps[2] / np.linalg.norm(steps[2]), [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(steps[2], 2 * steps[1], atol=0.02 * np.linalg.norm(steps[2]))
    data = (await api.get(f"/jobs/{document['id']}/files/pointmaps.npz")).content
    with np.load(io.BytesIO(data)) as arrays:
        assert arrays["points"].shape == (3, 64, 64, 3)
        assert (arrays["confidence"][0, 48:] == 0).all()
        assert (arrays["confidence"][1, :, 48:] == 0).all()


async def test_a_network_without_skill_ends_its_job_cleanly(api: httpx.AsyncClient) -> None:
    """The artifact as it is, of random weights: refused or doubted, never an error of ours."""
    document = await reconstructed(api)
    if document["status"] == "failed":
        assert document["error"]["type"] == "cannot-reconstruct"
        assert document["error"]["suggestion"]
    else:
        assert document["status"] == "succeeded"
        assert document["low_confidence"]
        assert {file["name"] for file in document["files"]} == set(DEFAULT_OUTPUTS)


def test_without_a_server_the_same_happens(skilled: None, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path / "data")
    settings.models_dir.mkdir(parents=True)
    make_tiny_pair_artifact(settings.models_dir, "dust3r-tiny")
    photos = []
    for index, size in enumerate(SIZES[:2]):
        photos.append(tmp_path / f"{index}.jpg")
        photos[-1].write_bytes(jpeg(index, size))
        assert max(images.load_view("a", jpeg(index, size), None, TINY_LONG_SIDE).crop.shape) == TINY_LONG_SIDE
    stages: list[str] = []
    options = {"outputs": []}
    outcome = local.reconstruct(photos, settings, "dust3r-tiny", None, options, lambda stage, _: stages.append(stage))
    assert set(outcome.files) == set(DEFAULT_OUTPUTS)
    assert all(view["placed"] for view in outcome.views)
    assert {"forward", "alignment"} <= set(stages)
