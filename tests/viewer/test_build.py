"""What is served is what viewer/ says, and viewer/ knows the interface that the service has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.viewer.conftest import ROOT

VIEWER, STATIC = ROOT / "viewer", ROOT / "service" / "static"

pytestmark = pytest.mark.skipif(
    shutil.which("npx") is None or not (VIEWER / "node_modules").is_dir(), reason="the page's tools are not installed"
)


def npx(*command: str) -> None:
    result = subprocess.run(("npx", "--no", *command), cwd=VIEWER, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_types_are_those_of_the_interface() -> None:
    npx("openapi-typescript", "../openapi.json", "--output", "src/schema.d.ts", "--check")
    npx("tsc")


def test_what_is_served_is_what_the_sources_make(tmp_path: Path) -> None:
    npx("vite", "build", "--outDir", str(tmp_path), "--emptyOutDir")

    def files(folder: Path) -> dict[str, bytes]:
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    built = files(tmp_path)
    served = {name: content for name, content in files(STATIC).items() if not name.startswith("gallery/")}
    assert served.keys() == built.keys(), "run `make viewer`, and commit what it writes"
    assert [name for name in built if built[name] != served[name]] == []
