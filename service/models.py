"""The models this installation serves: `geometry`, which needs no weights, and the artifacts in the models folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from export.contract import DEFAULT_FILE, ArtifactError, Description, read_description, write_default
from export.engine import ENGINES_FOLDER, EngineError, Key, Record, check_engine, wanted_engine
from export.sessions import list_models, open_model
from model.types import Model, ModelInfo
from service.engines import Engine, build_command, list_records

GEOMETRY = ModelInfo(
    name="geometry",
    network="structure from motion and multi-view stereo",
    licence="Apache-2.0",
    engine="cpu",
    stages=3,
)
BEST = ("mvdust3r-plus", "mvdust3r")
"""Of the networks under their released names, which to prefer."""


class ServedModel(Model, Protocol):
    """A model with a deep check."""

    def warm_up(self) -> None:
        """A real tiny forward pass. Raises whatever goes wrong, and where the answer is not all finite numbers."""
        ...


class Catalogue(Protocol):
    """What can be served, and how to get it ready."""

    def infos(self) -> list[ModelInfo]: ...

    def default(self) -> str: ...

    def open(self, name: str) -> ServedModel:
        """A ready model. Slow; KeyError for a name that is not in `infos`."""
        ...

    def engines(self) -> list[Engine]:
        """The engines that this machine's GPU asks for, present or not."""
        ...


class Registry:
    """The catalogue of a models folder: one folder an artifact, and a file `default` that names the default."""

    def __init__(
        self, folder: Path, engine: str = "auto", engines: Path | None = None, target: str | None = None
    ) -> None:
        """engine: what is to compute networks, see `export.sessions.open_model`. engines: where those lie that were
        built on this machine. target: the GPU to build for, see `export.engine.wanted_engine`."""
        self._folder = folder
        self._engine = engine
        self._engines = engines
        self._target = target
        self._whole: dict[Path, tuple[int, int]] = {}
        """Engines that were read and found whole, with the time and size of their files."""

    def infos(self) -> list[ModelInfo]:
        """`geometry` first, then the artifacts."""
        return [GEOMETRY, *(info for info in list_models(self._folder) if info.name != GEOMETRY.name)]

    def default(self) -> str:
        """What the folder's `default` file says; else a network with weights, the best first; else `geometry`."""
        try:
            chosen = (self._folder / DEFAULT_FILE).read_text(encoding="utf-8").strip()
        except OSError:
            chosen = ""
        networks = [info.name for info in self.infos()[1:]]
        return chosen or next((name for name in BEST if name in networks), (networks or [GEOMETRY.name])[0])

    def set_default(self, name: str) -> None:
        """KeyError for a name that is not served."""
        if all(info.name != name for info in self.infos()):
            raise KeyError(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_default(self._folder, name)

    def open(self, name: str) -> ServedModel:
        if name == GEOMETRY.name:
            from model.classical.model import GeometricModel

            return GeometricModel()
        return open_model(self._find(name), engine=self._engine, engines=self._engines)

    def engines(self) -> list[Engine]:
        """Of each network that takes one; none where TensorRT is not to be used or cannot be."""
        found: list[Engine] = []
        if self._engines is None or self._engine not in ("auto", "tensorrt"):
            return found
        for artifact, description in self._artifacts():
            try:
                key = wanted_engine(description, self._target)
            except EngineError:  # opening the model says why
                continue
            present = any(self._is_whole(key, folder) for folder in (self._engines, artifact / ENGINES_FOLDER))
            command = build_command(artifact, self._engines, self._target)
            found.append(Engine(description.name, key.name, self._engines, present, command))
        return found

    def records(self, name: str) -> list[Record]:
        """Of a model's engines, for whatever GPU: those built here, and those that came with it."""
        for artifact, description in self._artifacts():
            if description.name == name:
                return list_records(description, artifact / ENGINES_FOLDER, *([self._engines] if self._engines else []))
        return []

    def _is_whole(self, key: Key, folder: Path) -> bool:
        path = folder / f"{key.name}.engine"
        try:
            stat = path.stat()
            looked_at = (stat.st_mtime_ns, stat.st_size)
            if self._whole.get(path) != looked_at:
                check_engine(path, key)
                self._whole[path] = looked_at
        except (EngineError, OSError):
            return False
        return True

    def _find(self, name: str) -> Path:
        """The artifact's folder, whatever that is called."""
        for folder, description in self._artifacts():
            if description.name == name:
                return folder
        raise KeyError(name)

    def _artifacts(self) -> Iterator[tuple[Path, Description]]:
        for folder in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            if not folder.name.startswith(".") and folder.is_dir():
                try:
                    yield folder, read_description(folder)
                except ArtifactError:
                    continue
