"""What works on this machine, looked at and tried."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from dataclasses import dataclass

from service import machine
from service.jobs import answers
from service.models import Registry
from service.settings import Settings
from service.supervisor import SupervisorError, server_binary


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    ok: bool | None
    """None: absent, and not needed."""
    detail: str


async def examine(settings: Settings) -> list[Finding]:
    """Every finding, the last a real tiny forward pass of the default model."""
    cpu = machine.describe("cpu")
    findings = [
        Finding("Python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("CPU", True, f"{cpu.name}, {cpu.memory_total / 2**30:.1f} GiB, {cpu.memory_used / 2**30:.1f} used"),
    ]
    gpus = machine.list_gpus()
    findings += [Finding("GPU", True, f"{gpu.name}, {gpu.memory_total / 2**30:.1f} GiB") for gpu in gpus]
    if not gpus:
        findings.append(Finding("GPU", None, "none found; everything runs on the CPU"))
    for package in ("onnxruntime", "pycolmap", "opencv-python-headless", "numba", "av", "tensorrt", "torch"):
        try:
            findings.append(Finding(package[:12], True, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(package[:12], None, "not installed"))
    findings += [await _queue(settings), _data(settings)]
    return findings + _models(settings)


async def _queue(settings: Settings) -> Finding:
    if await answers(settings.queue_url):
        return Finding("queue", True, "answers")
    if settings.redis_url:
        return Finding("queue", False, "SCENELIFT_REDIS_URL does not answer")
    try:
        return Finding("queue", True, f"not running; `scenelift serve` starts {server_binary()}")
    except SupervisorError as error:
        return Finding("queue", False, str(error))


def _data(settings: Settings) -> Finding:
    folder = settings.data_dir.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("data", False, f"{folder}: {error.strerror}")
    return Finding("data", free > 1 << 30, f"{folder}, {free / 2**30:.1f} GiB free")


def _models(settings: Settings) -> list[Finding]:
    registry = Registry(settings.models_dir, settings.engine)
    default = registry.default()
    names = [info.name for info in registry.infos()]
    began = time.perf_counter()
    try:
        registry.open(default).warm_up()
    except Exception as error:
        check = Finding("forward", False, f"{default}: {type(error).__name__}: {error}")
    else:
        check = Finding("forward", True, f"{default}: a tiny one in {time.perf_counter() - began:.1f} s with loading")
    return [Finding("models", default in names, f"{', '.join(names)}; the default is {default}"), check]
