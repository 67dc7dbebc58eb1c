"""What this machine is: names and memory of its processor and of its GPU, as far as the system tells."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from service.schemas import DeviceDocument


def describe(device: str) -> DeviceDocument:
    """The device that computes: `cpu`, or a name that starts with `cuda`."""
    gpus = list_gpus() if device.startswith("cuda") else []
    if gpus:
        _, _, index = device.partition(":")
        return gpus[min(int(index or 0), len(gpus) - 1)]
    total, available = _memory()
    return DeviceDocument(name=_processor(), memory_total=total, memory_used=total - available)


def list_gpus() -> list[DeviceDocument]:
    """The NVIDIA GPUs that the driver reports."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ("--query-gpu=name,memory.total,memory.used,utilization.gpu", "--format=csv,noheader,nounits")
    try:
        answer = subprocess.run(("nvidia-smi", *query), capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (map(str.strip, line.rsplit(",", 3)) for line in answer.stdout.splitlines() if line.count(",") >= 3)
    return [
        DeviceDocument(
            name=name,
            memory_total=int(total) << 20,
            memory_used=int(used) << 20,
            use=int(use) / 100 if use.isdigit() else None,
        )
        for name, total, used, use in rows
        if total.isdigit() and used.isdigit()
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} threads)"


def _memory() -> tuple[int, int]:
    """(total, available) bytes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0
    known = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines}
    return known["MemTotal"], known["MemAvailable"]
