"""One tiny artifact for the room's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import make_tiny_artifact


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: a test that changes an artifact copies it."""
    return make_tiny_artifact(tmp_path_factory.mktemp("models"))
