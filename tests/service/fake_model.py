"""A model without weights whose behaviour the photos' names choose; `python fake_model.py` is a worker that serves it.

Names that contain: nan (not a number), refuse (cannot be reconstructed), raise (a bug), oom (out of memory), lost (as
is the device), crash (kills the process), slow and steady (take 3 s and 0.6 s, and report), hang (takes very long, and
does not report).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.types import Camera, DeviceLost, ModelInfo, Prediction, Progress, ReconstructionError, Views

SIDE = 32


class FakeModel:
    def __init__(self, name: str = "fake", max_batch: int = 8) -> None:
        self.info = ModelInfo(name, "none", "Apache-2.0", "cpu", square=SIDE, max_batch=max_batch, max_views=8)
        self.batches: list[int] = []

    def warm_up(self) -> None:
        """Always warm."""

    def run(self, batch: Sequence[Views], progress: Progress) -> list[Prediction | ReconstructionError]:
        names = " ".join(view.name for views in batch for view in views.views)
        if "crash" in names:
            os.kill(os.getpid(), signal.SIGKILL)
        if "oom" in names:
            raise MemoryError
        if "lost" in names:
            raise DeviceLost
        if "raise" in names:
            raise RuntimeError("a bug, with a secret path /etc/passwd")
        if "hang" in names:
            time.sleep(30)
        for step in range(100 if "slow" in names else 20 if "steady" in names else 1):
            progress("forward", step / 100)
            time.sleep(0.03)
        self.batches.append(len(batch))
        return [self._answer(views) for views in batch]

    def _answer(self, views: Views) -> Prediction | ReconstructionError:
        names = " ".join(view.name for view in views.views)
        if "refuse" in names:
            return ReconstructionError("These photos show different places.", "Photograph one place.")
        n = len(views)
        y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
        points = np.stack([np.stack([x + 0.1 * i, y, 2 + 0 * x], axis=-1) for i in range(n)]).astype(np.float32)
        if "nan" in names:
            points[0, 0, 0, 0] = np.nan
        cameras = []
        for i, view in enumerate(views.views):
            width, height = view.original_size
            pose = np.eye(4)
            pose[0, 3] = 0.1 * i
            cameras.append(Camera(np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]]), pose, 1.0))
        sizes = [view.original_size for view in views.views]
        return Prediction(
            points=points,
            confidence=np.ones((n, SIDE, SIDE), np.float32),
            rgb=np.stack([view.crop for view in views.views]),
            crops=np.array([(0, 0, *size) for size in sizes], np.float64),
            cameras=tuple(cameras),
            warnings=("A warning.",),
        )


class FakeCatalogue:
    def __init__(self, *models: FakeModel) -> None:
        self.models = {model.info.name: model for model in models or (FakeModel(),)}

    def infos(self) -> list[ModelInfo]:
        return [model.info for model in self.models.values()]

    def default(self) -> str:
        return next(iter(self.models))

    def open(self, name: str) -> FakeModel:
        return self.models[name]


class RudeCatalogue(FakeCatalogue):
    """Opening a model takes SIGTERM away from the process, as loading pycolmap does."""

    def open(self, name: str) -> FakeModel:
        ctypes.CDLL(None).signal(signal.SIGTERM, 0)
        return super().open(name)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from service.settings import Settings
    from service.worker import run

    run(Settings(), RudeCatalogue())
