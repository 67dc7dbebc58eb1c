"""Tiny artifacts for the room's tests. Read only: a test that changes one copies it."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.engine import ensure_engine
from export.onnx_graph import export_onnx
from tests.tiny import TINY_HEADS, TINY_SQUARE, make_tiny_artifact, tiny_network


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_artifact(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def half_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In fp16, for two or three views."""
    folder = tmp_path_factory.mktemp("half") / "half"
    export_onnx(tiny_network(TINY_HEADS), folder, "half", "none", square=TINY_SQUARE, max_views=3, precision="fp16")
    return folder


@pytest.fixture(scope="session")
def built(half_artifact: Path) -> Path:
    """An engine of it, in its folder `engines`."""
    pytest.importorskip("tensorrt_rtx")
    return ensure_engine(half_artifact, "sm89", half_artifact / "engines")
