"""What works on this machine, looked at and tried."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
import time
from dataclasses import dataclass

from service import machine
from service.jobs import Queue, answers
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
    for package in (
        "onnxruntime",
        "onnxruntime-gpu",
        "pycolmap",
        "opencv-python-headless",
        "numba",
        "tensorrt",
        "torch",
    ):
        try:
            findings.append(Finding(package[:15], True, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(package[:15], None, "not installed"))
    findings += [await _queue(settings), _data(settings)]
    registry = Registry(settings.models_dir, settings.engine, settings.engines_dir)
    return findings + await _engines(settings, registry) + _models(registry)


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


async def _engines(settings: Settings, registry: Registry) -> list[Finding]:
    """TensorRT engines: those that are there, and those that this machine's GPU asks for and has not."""
    findings = []
    for info in registry.infos():
        for record in registry.records(info.name):
            key = record.key
            made = f"{key.target} in {key.precision} by {key.builder} {key.version}, {record.size / 1e6:.0f} MB"
            findings.append(Finding("engine", True, f"{info.name}: for {made}"))
    missing = [engine for engine in registry.engines() if not engine.present]
    if not missing:
        return findings
    queue = Queue(settings)
    try:
        reached = await answers(settings.queue_url)
        workers = {worker.id: worker for worker in await queue.workers()} if reached else {}
        for engine in missing:
            state, holder = "missing; a worker builds it when it starts", None
            with contextlib.suppress(OSError):  # a folder that no worker has written to, and nobody here may
                holder = await queue.holder(engine.lock()) if reached and engine.folder.is_dir() else None
            if holder is not None:
                building = workers[holder].building if holder in workers else None
                share = f", {100 * building.progress:.0f} %" if building else ""
                state = f"being built by worker {holder}{share}"
            findings.append(Finding("engine", None, f"{engine.model}: {state}"))
    finally:
        await queue.close()
    return findings


def _models(registry: Registry) -> list[Finding]:
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
