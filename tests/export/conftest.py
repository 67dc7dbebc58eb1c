"""Tiny artifacts for the room's tests. Read only: a test that changes one copies it."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.engine import ensure_engine
from export.onnx_graph import export_onnx
from tests.tiny import TINY_HEADS, TINY_SQUARE, exported_once, make_tiny_artifact, one_at_a_time, tiny_network


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_artifact(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def half_artifact() -> Path:
    """In fp16, for two or three views."""
    network = tiny_network(TINY_HEADS)
    return exported_once(
        "half",
        lambda folder: export_onnx(network, folder, "half", "none", square=TINY_SQUARE, max_views=3, precision="fp16"),
    )


@pytest.fixture(scope="session")
def built(half_artifact: Path) -> Path:
    """An engine of it, in its folder `engines`."""
    pytest.importorskip("tensorrt_rtx")
    with one_at_a_time("built"):
        return ensure_engine(half_artifact, "sm89", half_artifact / "engines")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that what other processes do takes place beside it."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
