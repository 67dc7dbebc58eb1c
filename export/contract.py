"""What an exported network is: its files, tensors, shapes and limits. The only copy; without torch.

A network that sees all views at once is one graph. Its tensors, in this order (B scenes, N views, M references, S the
square's side):
    images      float32 (B, N, 3, S, S), RGB in [-1, 1]
    references  int64 (M,), view indices, all different; the first is the frame of the answer
    points      float32 (B, N, S, S, 3), in the frame of view references[0]
    confidence  float32 (B, N, S, S), 1 to 1e9
    scale       float32 (B, N, S, S, 3), raw, of either sign
    rotation    float32 (B, N, S, S, 4), w x y z
    opacity     float32 (B, N, S, S), 0 to 1

NoPoSplat is one graph, too, whose frame is its first view's:
    images      as above
    intrinsics  float32 (B, N, 3, 3), K with its first row divided by the square's width, its second by its height
    points, rotation, opacity   as above
    scale       float32 (B, N, S, S, 3), > 0
    harmonics   float32 (B, N, S, S, 3, K), of R, G, B

A pairwise network is two: an encoder, which sees a photo once however many pairs that is in, and a decoder, whose two
views may differ in size. Heights and widths are multiples of DIVISOR, rows and columns so many times less:
    images         float32 (B, 3, H, W), RGB in [-1, 1]
    tokens         float32 (B, rows, columns, C); the decoder takes those of the first_ and of the second_ views
    first_points   float32 (B, H, W, 3), second_points likewise: both in the frame of the first view
    first_confidence, second_confidence  float32 (B, H, W), 1 to 1e9
    first_descriptors, second_descriptors  float32 (B, H, W, D), of length 1 (MASt3R), and
    first_descriptor_confidence, second_descriptor_confidence  float32 (B, H, W), > 0
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

SPLAT_INPUTS = ("images", "intrinsics")
SPLAT_OUTPUTS = ("points", "scale", "rotation", "opacity", "harmonics")
SPLATS = "noposplat"

ENCODER_INPUTS = ("images",)
ENCODER_OUTPUTS = ("tokens",)
DECODER_INPUTS = ("first_tokens", "second_tokens")
PAIR_FIELDS = {
    "dust3r": ("points", "confidence"),
    "mast3r": ("points", "confidence", "descriptors", "descriptor_confidence"),
}
"""What a pairwise network answers for each view of a pair."""

GRAPH_FILE = "model.onnx"
ENCODER_FILE = "encoder.onnx"
DECODER_FILE = "decoder.onnx"
DESCRIPTION_FILE = "model.json"
ANSWERS_FILE = "answers.npz"
"""What the checkpoint answers for photos that are kept with it: see `export.gate`. Older artifacts have none."""
WEIGHTS_FILE = "weights.safetensors"
"""The checkpoint in our own form, kept by `export.weights` to make further engines of: serving does not read it."""
DEFAULT_FILE = "default"
"""In a folder of artifacts: the name of the one to use where none is named."""

MULTI_VIEW = ("mvdust3r-plus", "mvdust3r")
NETWORKS = (*MULTI_VIEW, *PAIR_FIELDS, SPLATS)
"""The networks that have these inputs and outputs: only they are exported and served."""

ENGINES = ("tensorrt", "torch", "onnxruntime")
"""What computes a network, the fastest first; the first two on a CUDA GPU."""

FORMAT = 1
OPSET = 20
PRECISIONS = ("fp32", "fp16", "bf16")
"""What a graph's products may be computed in: see `export.precision`. Its tensors above are the same in each."""
DIVISOR = 16
LONG_SIDE_DIVISOR = 64
"""A square photo becomes 4:3 where the long side is given: its short side is a multiple of DIVISOR, too."""
MIN_VIEWS = 2
MAX_VIEWS, SPLAT_MAX_VIEWS = 24, 2
"""The most views the networks were published with; one checkpoint of NoPoSplat's is for 3, which its tensors do not
tell."""
MAX_BATCH = 8
ALL_PAIRS, WINDOW = 12, 3
"""Up to how many views every pair is seen, and with how many that follow it a view of more makes a pair: so at most
132 passes for 12 views and 144 for 24, both ways counted."""
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
    square: int | None
    """Side of the square crop that it sees, in pixels; None: `long_side` is given."""
    paths: int
    """References the network was trained with: M = min(paths, N)."""
    parameters: int
    weights_sha256: str
    """Of the checkpoint's tensors, whatever graph they were put into."""
    files: dict[str, str]
    """Name -> sha256 of every file that serving reads, but this description."""
    long_side: int | None = None
    """Long side of the crop that it sees, in pixels, whose shape follows the photo's."""
    min_views: int = MIN_VIEWS
    max_views: int = MAX_VIEWS
    max_batch: int = 1
    view_bytes: int = 0
    """What a pass holds for each view while the heads compute, weights apart."""
    pair_bytes: int = 0
    """What a pass holds for each pair of views while views read each other, or, of a pairwise network, what is kept of
    each pair for the alignment; both 0: not known."""
    precision: str = PRECISIONS[0]
    opset: int = OPSET
    mean: float = MEAN
    std: float = STD
    format: int = FORMAT
    parity: dict[str, Any] = field(default_factory=dict)
    """Measured difference to the checkpoint: on noise (`export.parity`) and on rendered rooms (`export.gate`)."""
    made_with: dict[str, str] = field(default_factory=dict)

    def pass_bytes(self, batch: int, views: int) -> int:
        """Memory that a pass of `batch` scenes takes at its widest point, about, weights apart; 0: not known."""
        if self.network in PAIR_FIELDS:
            return batch * (self.view_bytes + self.pair_bytes * len(choose_pairs(views)))
        return batch * max(self.view_bytes * views, self.pair_bytes * views**2)

    def write(self, folder: Path) -> None:
        """Last of an artifact's files, in one step: a folder with a description is whole."""
        partial = folder / (DESCRIPTION_FILE + ".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n")
        partial.replace(folder / DESCRIPTION_FILE)


def choose_pairs(views: int) -> list[tuple[int, int]]:
    """Which pairs of views a pairwise network sees, each both ways.

    All up to ALL_PAIRS views; of more, in their order round a ring, each view with the WINDOW next ones.
    """
    if views <= ALL_PAIRS:
        one_way = [(i, j) for i in range(views) for j in range(i + 1, views)]
    else:
        one_way = [(i, (i + step) % views) for i in range(views) for step in range(1, WINDOW + 1)]
    return [pair for i, j in one_way for pair in ((i, j), (j, i))]


def read_description(folder: Path) -> Description:
    """The description in `folder`, checked. Raises ArtifactError."""
    path = folder / DESCRIPTION_FILE
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder.name}: its {DESCRIPTION_FILE} cannot be read: {words(error)}") from None
    known = {f.name for f in fields(Description)}
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() <= known:
        raise ArtifactError(f"{folder.name}: its {DESCRIPTION_FILE} is not of format {FORMAT}: export the model again")
    try:
        description = Description(**content)
        sound = (
            NAME.fullmatch(description.name) is not None
            and is_side(description.square, description.long_side)
            and MIN_VIEWS <= description.min_views <= description.max_views
            and description.paths >= 1
            and description.precision in PRECISIONS
            and description.max_batch >= 1
            and min(description.view_bytes, description.pair_bytes) >= 0
            and (description.mean, description.std) == (MEAN, STD)
            and graph_tensors(description.network).keys() <= description.files.keys()
            and all(Path(name).name == name for name in description.files)
        )
    except TypeError as error:
        raise ArtifactError(f"{folder.name}: its {DESCRIPTION_FILE} is wrong: {error}") from None
    if not sound:
        raise ArtifactError(f"{folder.name}: its {DESCRIPTION_FILE} holds impossible values")
    return description


def is_side(square: int | None, long_side: int | None) -> bool:
    """Whether they say how large a network's images are: just one of them, and as a multiple of its divisor."""
    if square is not None and long_side is not None:
        return False
    side, divisor = (square, DIVISOR) if long_side is None else (long_side, LONG_SIDE_DIVISOR)
    return side is not None and side > 0 and side % divisor == 0


def graph_tensors(network: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Of the file of each of its graphs: the inputs and the outputs."""
    if network in PAIR_FIELDS:
        return {
            ENCODER_FILE: (ENCODER_INPUTS, ENCODER_OUTPUTS),
            DECODER_FILE: (DECODER_INPUTS, decoder_outputs(network)),
        }
    return {GRAPH_FILE: (SPLAT_INPUTS, SPLAT_OUTPUTS) if network == SPLATS else (INPUTS, OUTPUTS)}


def decoder_outputs(network: str) -> tuple[str, ...]:
    """Of a pairwise network: its fields of the first view, then those of the second."""
    return tuple(f"{view}_{name}" for view in ("first", "second") for name in PAIR_FIELDS[network])


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


def words(error: Exception) -> str:
    """What an error says, to whoever may read it: of a file that cannot be used, without its path."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
