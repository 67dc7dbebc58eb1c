"""The API does what its description says, and answers whatever may be sent by it (schemathesis)."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.service.support import SMALL, ended, form

HERE = Path(__file__).parent


@pytest.mark.slow
async def test_the_description_is_kept(api, tmp_path):
    job = (await api.post("/reconstruct", files=form(), data=SMALL)).json()["id"]
    await ended(api, job)
    begun = await api.post("/uploads", headers={"Tus-Resumable": "1.0.0", "Upload-Length": "100"})
    run = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        *("--config-file", str(HERE / "schemathesis.toml")),
        *("run", str(HERE.parents[1] / "openapi.json"), "--url", str(api.base_url)),
        *("--phases", "coverage,fuzzing", "--max-examples", "10"),
        *("--continue-on-failure", "--generation-deterministic", "--workers", "1", "--no-color"),
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(HERE), "SCHEMATHESIS_HOOKS": "schema_hooks", "JOB": job}
        | {"UPLOAD": begun.headers["location"].rpartition("/")[2]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    report, _ = await run.communicate()
    assert run.returncode == 0, report.decode()
