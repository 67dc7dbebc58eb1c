"""The house itself: rooms where they belong, torch only where it may be."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", ["service", "model", "export", "train", "bench"])
def test_packages_are_the_ones_of_this_repository(package: str) -> None:
    assert Path(import_module(package).__file__).parent == ROOT / package


def test_serving_imports_no_torch() -> None:
    program = (
        "import sys\n"
        "import service.cli, service.app, service.worker, service.pipeline, model.classical.model\n"
        "import export.sessions, export.pair_sessions, export.splat_sessions\n"
        "print(*sorted({'torch', 'onnx', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("\n", 0), result.stderr


def test_the_api_imports_no_numerics_of_the_worker() -> None:
    program = (
        "import sys\nimport service.app\n"
        "print(*sorted({'pycolmap', 'cv2', 'numba', 'onnxruntime', 'poselib', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("\n", 0), result.stderr


def test_readme_opens_with_the_two_commands() -> None:
    start = (ROOT / "README.md").read_text()[:1500]
    assert "make run" in start
    assert "make test" in start
