"""Shared by every test: what needs a CUDA GPU is marked `gpu`, and is skipped where there is none.

`@pytest.mark.gpu` is for PyTorch, `@pytest.mark.gpu("tensorrt")` for another of ENGINES. With --require-gpu a skip of
theirs is a failure, and the end of a run tells what ran on what. `-m gpu` opens only the files that hold such tests:
the others may need what is not installed where there is a GPU.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ENGINES = ("torch", "tensorrt", "tensorrt_rtx", "onnxruntime")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail where a GPU test would be skipped")
    if find_spec("pytest_asyncio") is None:  # tests of the service need it, and they alone
        for name in ("asyncio_mode", "asyncio_default_fixture_loop_scope"):
            parser.addini(name, "of pytest-asyncio, which is not installed")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.getoption("markexpr") != "gpu" or collection_path.name == "node_modules":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any("mark.gpu" in file.read_text(encoding="utf-8") for file in files) else True


def pytest_configure(config: pytest.Config) -> None:
    """A folder for what the processes of this run share: see tests/tiny.py."""
    if not hasattr(config, "workerinput"):
        shared = tempfile.TemporaryDirectory(prefix="scenelift-tests-")
        config.add_cleanup(shared.cleanup)
        os.environ["SCENELIFT_TESTS_SHARED"] = shared.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if mark := item.get_closest_marker("gpu"):
            if config.getoption("--require-gpu") and (why := why_not("torch")):
                pytest.exit(f"--require-gpu: {why}", returncode=1)
            engine = mark.args[0] if mark.args else "torch"
            item.user_properties.append(("engine", engine))
            if why := why_not(engine):
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.get_closest_marker("gpu") and item.config.getoption("--require-gpu"):
        report.outcome = "failed"
        report.longrepr = f"--require-gpu: {_reason(report)}"
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows: dict[str, dict[str, int]] = {}
    reasons = set()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            engine = dict(getattr(report, "user_properties", ())).get("engine")
            if engine and (report.when == "call" or outcome != "passed"):
                row = rows.setdefault(engine, dict.fromkeys(("passed", "failed", "error", "skipped"), 0))
                row[outcome] += 1
                if outcome == "skipped":
                    reasons.add(f"{engine}: {_reason(report)}")
    if config.getoption("markexpr") != "gpu" and (not rows or why_not("torch")):
        return  # what pytest itself tells of skips is enough
    terminalreporter.section("GPU")
    terminalreporter.line(_device())
    for engine in ENGINES:
        ran = rows.get(engine)
        told = ", ".join(f"{count} {outcome}" for outcome, count in ran.items() if count) if ran else "no tests"
        terminalreporter.line(f"{engine} {_version(engine)}: {told}")
    for reason in sorted(reasons):
        terminalreporter.line(f"skipped, {reason}")


@cache
def why_not(engine: str) -> str | None:
    """Why an engine cannot run on a GPU here; None: it can."""
    if find_spec("torch") is None:
        return "PyTorch, which every GPU test needs, is not installed"
    import torch

    if not torch.cuda.is_available():
        return "there is no CUDA GPU on this machine"
    if find_spec(engine) is None:
        return f"{engine} is not installed"
    if engine == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "this onnxruntime has no CUDA (onnxruntime-gpu has)"
    return None


def _reason(report: Any) -> str:
    """Why a test was skipped."""
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")


def _device() -> str:
    if why := why_not("torch"):
        return f"Nothing ran on a GPU: {why}."
    import torch

    about = torch.cuda.get_device_properties(0)
    return (
        f"{about.name}, compute capability {about.major}.{about.minor}, {about.total_memory / 1e9:.0f} GB; "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )


def _version(engine: str) -> str:
    for package in {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}.get(engine, (engine, f"{engine}_cu13")):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "(not installed)"
