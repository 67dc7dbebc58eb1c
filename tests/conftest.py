"""Shared by every test: `gpu` tests skip without a CUDA GPU unless --require-gpu makes that a failure."""

from __future__ import annotations

import os
import tempfile

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail where a GPU test would be skipped")


def pytest_configure(config: pytest.Config) -> None:
    """A folder for what the processes of this run share: see tests/tiny.py."""
    if not hasattr(config, "workerinput"):
        shared = tempfile.TemporaryDirectory(prefix="scenelift-tests-")
        config.add_cleanup(shared.cleanup)
        os.environ["SCENELIFT_TESTS_SHARED"] = shared.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items or config.getoption("--require-gpu"):
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))
