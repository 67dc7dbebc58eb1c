"""A model without weights whose behaviour the photos' names choose; `python fake_model.py` is a worker that serves it;
with a word, one that has engines built, as that word says.

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
from dataclasses import replace
from pathlib import Path

import numpy as np

from export.engine import Record
from model.types import Camera, DeviceLost, ModelInfo, Prediction, Progress, ReconstructionError, Views
from service.engines import Engine

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

    def engines(self) -> list[Engine]:
        return []

    def records(self, name: str) -> list[Record]:
        return []


class FakeEngines(FakeCatalogue):
    """Models whose engines a process builds that is no builder: see `fake_builder.py`. One is opened with its engine
    where that is there, as no engine at all is ever run."""

    def __init__(self, folder: Path, behaviour: str = "build", *models: FakeModel) -> None:
        super().__init__(*models)
        self.folder, self.behaviour = folder, behaviour
        self.opened: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def engines(self) -> list[Engine]:
        return [self._engine(name) for name in self.models]

    def _engine(self, model: str) -> Engine:
        command = (sys.executable, str(Path(__file__).with_name("fake_builder.py")), str(self.folder), model)
        present = (self.folder / f"{model}.engine").exists()
        return Engine(model, model, self.folder, present, (*command, self.behaviour))

    def open(self, name: str) -> FakeModel:
        model = FakeModel(name)
        if self._engine(name).present:
            model.info = replace(model.info, engine="tensorrt")
        else:
            model.info = replace(model.info, engine="torch", passed_over=("tensorrt: there is no engine", "other: x"))
        self.opened.append(model.info.engine)
        return model


class RudeCatalogue(FakeCatalogue):
    """Opening a model takes SIGTERM away from the process, as loading pycolmap does."""

    def open(self, name: str) -> FakeModel:
        ctypes.CDLL(None).signal(signal.SIGTERM, 0)
        return super().open(name)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from service.settings import Settings
    from service.worker import run

    settings = Settings()
    run(settings, FakeEngines(settings.engines_dir, *sys.argv[1:]) if sys.argv[1:] else RudeCatalogue())
