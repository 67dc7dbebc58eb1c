"""What an exported network is: its files, tensors, shapes and limits. The only copy; without torch.

Tensors, in this order (B scenes, N views, M references, S the square's side):
    images      float32 (B, N, 3, S, S), RGB in [-1, 1]
    references  int64 (M,), view indices, all different; the first is the frame of the answer
    points      float32 (B, N, S, S, 3), in the frame of view references[0]
    confidence  float32 (B, N, S, S), 1 to 1e9
    scale       float32 (B, N, S, S, 3), raw, of either sign
    rotation    float32 (B, N, S, S, 4), w x y z
    opacity     float32 (B, N, S, S), 0 to 1
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

INPUTS = ("images", "references")
OUTPUTS = ("points", "confidence", "scale", "rotation", "opacity")

GRAPH_FILE = "model.onnx"
DESCRIPTION_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
"""The checkpoint in our own form, kept by `export.weights` to make further engines of: serving does not read it."""
DEFAULT_FILE = "default"
"""In a folder of artifacts: the name of the one to use where none is named."""

NETWORKS = ("mvdust3r-plus", "mvdust3r")
"""The networks that have these inputs and outputs: only they are exported and served."""

FORMAT = 1
OPSET = 20
DIVISOR = 16
MIN_VIEWS = 2
MAX_VIEWS = 24
"""The most views the networks were published with."""
MAX_BATCH = 8
MEAN, STD = 0.5, 0.5
"""A pixel value u of 0..255 enters the network as (u / 255 - MEAN) / STD."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class ArtifactError(Exception):
    """This folder is no artifact that can be served, for the reason given."""


@dataclass(frozen=True, slots=True)
class Description:
    """The content of `model.json`."""

    name: str
    network: str
    licence: str
    square: int
    paths: int
    """References the network was trained with: M = min(paths, N)."""
    parameters: int
    weights_sha256: str
    """Of the checkpoint's tensors, whatever graph they were put into."""
    files: dict[str, str]
    """Name -> sha256 of every file that serving reads, but this description."""
    min_views: int = MIN_VIEWS
    max_views: int = MAX_VIEWS
    max_batch: int = 1
    view_bytes: int = 0
    """What a pass holds for each view while the heads compute, weights apart."""
    pair_bytes: int = 0
    """What a pass holds for each pair of views while views read each other; both 0: not known."""
    opset: int = OPSET
    mean: float = MEAN
    std: float = STD
    format: int = FORMAT
    parity: dict[str, Any] = field(default_factory=dict)
    """Measured difference to the checkpoint: see `export.parity`."""
    made_with: dict[str, str] = field(default_factory=dict)

    def pass_bytes(self, batch: int, views: int) -> int:
        """Memory that a pass of `batch` scenes takes at its widest point, about, weights apart; 0: not known."""
        return batch * max(self.view_bytes * views, self.pair_bytes * views**2)

    def write(self, folder: Path) -> None:
        """Last of an artifact's files, in one step: a folder with a description is whole."""
        partial = folder / (DESCRIPTION_FILE + ".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n")
        partial.replace(folder / DESCRIPTION_FILE)


def read_description(folder: Path) -> Description:
    """The description in `folder`, checked. Raises ArtifactError."""
    path = folder / DESCRIPTION_FILE
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder.name}: its {DESCRIPTION_FILE} cannot be read: {error}") from None
    known = {f.name for f in fields(Description)}
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() <= known:
        raise ArtifactError(f"{folder.name}: its {DESCRIPTION_FILE} is not of format {FORMAT}: export the model again")
    try:
        description = Description(**content)
        sound = (
            NAME.fullmatch(description.name) is not None
            and description.square > 0
            and description.square % DIVISOR == 0
            and MIN_VIEWS <= description.min_views <= description.max_views
            and description.paths >= 1
            and description.max_batch >= 1
            and min(description.view_bytes, description.pair_bytes) >= 0
            and (description.mean, description.std) == (MEAN, STD)
            and GRAPH_FILE in description.files
            and all(Path(name).name == name for name in description.files)
        )
    except TypeError as error:
        raise ArtifactError(f"{folder.name}: its {DESCRIPTION_FILE} is wrong: {error}") from None
    if not sound:
        raise ArtifactError(f"{folder.name}: its {DESCRIPTION_FILE} holds impossible values")
    return description


def check_files(folder: Path, description: Description) -> int:
    """The artifact's size in bytes, once every file is what was exported. Raises ArtifactError."""
    size = 0
    for name, expected in description.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{description.name}: the file {name} is missing")
        if sha256(path) != expected:
            raise ArtifactError(f"{description.name}: the file {name} has changed since its export")
        size += path.stat().st_size
    return size


def name_after(file: Path) -> str:
    """What the model of a checkpoint is called where nobody says."""
    return re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")


def write_default(models: Path, name: str) -> None:
    """Make the artifact `name` the default one of the folder `models`, in one step."""
    partial = models / f".{DEFAULT_FILE}.partial"
    partial.write_text(name + "\n", encoding="utf-8")
    partial.replace(models / DEFAULT_FILE)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
