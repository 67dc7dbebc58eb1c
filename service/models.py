"""The models this installation serves: `geometry`, which needs no weights, and the artifacts in the models folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from export.contract import DEFAULT_FILE, ArtifactError, read_description, write_default
from export.sessions import list_models, open_model
from model.types import Model, ModelInfo

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


class Registry:
    """The catalogue of a models folder: one folder an artifact, and a file `default` that names the default."""

    def __init__(self, folder: Path, engine: str = "auto") -> None:
        """engine: what is to compute networks, see `export.sessions.open_model`."""
        self._folder = folder
        self._engine = engine

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
        return open_model(self._find(name), engine=self._engine)

    def _find(self, name: str) -> Path:
        """The artifact's folder, whatever that is called."""
        for folder in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            try:
                if not folder.name.startswith(".") and folder.is_dir() and read_description(folder).name == name:
                    return folder
            except ArtifactError:
                continue
        raise KeyError(name)
