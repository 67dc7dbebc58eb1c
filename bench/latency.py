"""Where the seconds and the memory of a job go on this machine: `python -m bench.latency` writes docs/bench/latency.*.

The job is 8 photos of 12 megapixels (4000 x 3000, JPEG q90): a rendered room at 1600 x 1200, enlarged, with sensor
noise on the full size. A process of its own renders them and exports a small network with random weights, so that the
memory measured here is that of serving. Each stage runs alone, one job at a time, on all cores; CPU seconds are those
of all threads. Peak memory is the process's so far, after the stage. MB are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from export import sessions
from model.types import Prediction, ReconstructionError, Views
from service import formats, images
from service.schemas import DEFAULT_OUTPUTS, Options
from service.storage import Storage

FOLDER = Path(__file__).parents[1] / "docs" / "bench"
RENDERED = (1600, 1200)
ORIGINAL = (4000, 3000)
FOCAL_35MM = 28
ROOM = 107
T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    name: str
    wall: float
    cpu: float | None = None
    peak_mb: float | None = None
    megabytes: float | None = None
    """Size of what came in (decoding) or out (formats, storage)."""


class Clock:
    """Runs stages one after the other and keeps what they took."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def __call__(self, name: str, work: Callable[[], T], size: Callable[[T], float] | None = None) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        self.stages.append(Stage(name, wall, cpu, peak, None if size is None else size(result) / 1e6))
        print(f"{name:32s} {wall:7.2f} s wall  {cpu:7.2f} s CPU  {peak:7.0f} MB peak", flush=True)
        return result


def photograph(count: int, size: tuple[int, int], rendered: tuple[int, int] = RENDERED, **detail: Any) -> list[bytes]:
    """JPEG files of `size`, with EXIF, of one room rendered at a lower size; `detail` is passed on to `make_room`."""
    from PIL import ExifTags, Image

    from train.render import intrinsics, render
    from train.scenes import make_cameras, make_room

    focal = FOCAL_35MM * float(np.hypot(*rendered) / np.hypot(36, 24)) / max(rendered)
    room = make_room(ROOM, **detail)
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = FOCAL_35MM
    photos = []
    for index, pose in enumerate(make_cameras(room, count, ROOM, focal=focal)):
        rng = np.random.default_rng([ROOM, index])
        picture = render(room, pose, intrinsics(rendered, focal), rendered, rng=rng, supersample=1).rgb
        large = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        large += 3 * rng.standard_normal(large.shape, dtype=np.float32)
        buffer = io.BytesIO()
        photo = Image.fromarray(np.clip(large + 0.5, 0, 255).astype(np.uint8))
        photo.save(buffer, "JPEG", quality=90, exif=exif)
        photos.append(buffer.getvalue())
    return photos


def export_small_network(folder: Path) -> int:
    """An artifact of MV-DUSt3R+'s structure with random weights; its parameter count."""
    import torch

    from export.onnx_graph import export_onnx
    from model.config import ModelConfig
    from model.mvdust3r import MVDUSt3R

    torch.manual_seed(0)
    config = ModelConfig(
        encoder_width=192,
        encoder_depth=6,
        encoder_heads=3,
        decoder_width=192,
        decoder_depth=3,
        decoder_heads=3,
        paths=4,
        skip_channels=32,
        gaussian_width=64,
    )
    network = MVDUSt3R(config).eval()
    export_onnx(network, folder, "small", "Apache-2.0", square=224)
    return sum(parameter.numel() for parameter in network.parameters())


def answer_of(answers: list[Prediction | ReconstructionError]) -> Prediction:
    if isinstance(answers[0], ReconstructionError):
        raise answers[0]
    return answers[0]


def measure(photos: list[bytes], artifact: Path | None) -> tuple[list[Stage], dict[str, Any]]:
    """Every stage of the job with the geometric model, then the network's own stages; and facts about the scene."""
    from model.classical.model import GeometricModel
    from model.fusion import fuse

    clock, silent = Clock(), lambda *_: None
    total = float(sum(map(len, photos)))

    def check() -> None:
        for index, data in enumerate(photos):
            images.inspect(f"{index}.jpg", data, max_pixels=100_000_000)

    def load(square: int | None) -> Views:
        return Views(tuple(images.load_view(f"{i}.jpg", data, square) for i, data in enumerate(photos)))

    clock("check uploads", check, lambda _: total)
    views = clock("decode", lambda: load(None), lambda _: total)
    model = GeometricModel()
    clock("warm up", model.warm_up)
    prediction = clock("poses and dense depth", lambda: answer_of(model.run([views], silent)))
    clock.stages += [Stage(f"- {name}", seconds) for name, seconds in prediction.details["seconds"].items()]
    assert prediction.cameras is not None
    cameras, options = prediction.cameras, Options()
    scene = clock("fuse", lambda: fuse(prediction, views, cameras, options.confidence_percentile, options.max_points))
    encoder, files = formats.Encoder(scene), {}
    for name in DEFAULT_OUTPUTS:
        files[name] = bytes(clock(name, lambda name=name: encoder.encode(name), lambda data: float(len(data))))
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(Path(folder))

        async def store() -> None:
            for name, data in files.items():
                await storage.put(f"jobs/bench/1/{name}", data)

        clock("store", lambda: asyncio.run(store()), lambda _: float(sum(map(len, files.values()))))
    facts: dict[str, Any] = {
        "placed": sum(camera is not None for camera in cameras),
        "points": len(scene.cloud),
        "grid": list(prediction.points.shape[:3]),
        "details": prediction.details,
    }
    if artifact is not None:
        session = sessions.open_model(artifact)
        squares = clock("network: decode and crop", lambda: load(session.info.square), lambda _: total)
        answer_of(session.run([squares], silent))
        predicted = clock("network: forward", lambda: answer_of(session.run([squares], silent)))
        assert predicted.confidence.shape[0] == len(photos)
    return clock.stages, facts


def table(stages: list[Stage]) -> str:
    lines = ["| stage | wall s | CPU s | MB | MB/s | peak memory MB |", "| --- | --: | --: | --: | --: | --: |"]
    for s in stages:
        size, rate = ("", "") if s.megabytes is None else (f"{s.megabytes:.2f}", f"{s.megabytes / s.wall:.1f}")
        cpu, peak = "" if s.cpu is None else f"{s.cpu:.2f}", "" if s.peak_mb is None else f"{s.peak_mb:.0f}"
        lines.append(f"| {s.name} | {s.wall:.2f} | {cpu} | {size} | {rate} | {peak} |")
    return "\n".join(lines)


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    names = [line for line in path.read_text().splitlines() if "model name" in line] if path.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and memory of one job, stage by stage.")
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="photos of 1600 x 1200, no network")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    size = RENDERED if arguments.quick else ORIGINAL
    with tempfile.TemporaryDirectory() as scratch:
        artifact, parameters = None, 0
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            photos = other.submit(photograph, arguments.photos, size).result()
            if not arguments.quick:
                artifact = Path(scratch) / "small"
                parameters = other.submit(export_small_network, artifact).result()
        stages, facts = measure(photos, artifact)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    setting = {
        "photos": f"{arguments.photos} JPEG of {size[0]} x {size[1]}, {sum(map(len, photos)) / 1e6:.1f} MB",
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
    }
    if artifact is not None:
        setting["network"] = f"{parameters / 1e6:.1f} M parameters, 4 reference paths, 224 px, ONNX Runtime, float32"
    document = {"setting": setting, "stages": [asdict(stage) for stage in stages], "scene": facts}
    (out / "latency.json").write_text(json.dumps(document, indent=1) + "\n")
    job = [stage for stage in stages if not stage.name.startswith(("network", "warm", "-"))]
    wall, cpu = sum(s.wall for s in job), sum(s.cpu or 0 for s in job)
    lines = [
        "# Latency",
        "",
        "One job, stage by stage: `python -m bench.latency` (what exactly: `bench/latency.py`).",
        "",
        *(f"- {key}: {value}" for key, value in setting.items()),
        f"- geometric model: {facts['placed']} of {arguments.photos} photos placed, {facts['points']:,} points",
        f"- a whole job: {wall:.1f} s wall, {cpu:.1f} s CPU, stages in a row",
        "",
        table(stages),
        "",
    ]
    (out / "latency.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
