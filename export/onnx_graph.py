"""A torch network to an ONNX artifact: dynamic batch, views and references, standard operators only, checked."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from export.contract import (
    DIVISOR,
    GRAPH_FILE,
    INPUTS,
    MAX_BATCH,
    MAX_VIEWS,
    MIN_VIEWS,
    NAME,
    OPSET,
    OUTPUTS,
    ArtifactError,
    Description,
    sha256,
)
from export.parity import check_parity
from model.config import ModelConfig
from model.families import Network
from model.mvdust3r import MVDUSt3R

EXTERNAL_BYTES = 512 * 2**20
"""Weights beyond this lie in a file beside the graph: a protobuf ends at 2 GiB."""
SCORE_BYTES = 4 * 2**30
"""What one pass's largest attention may take where its scores are written out, as by ONNX Runtime: bounds the batch."""


SCORE_COPIES, SKIP_COPIES, PIXEL_BYTES = 3, 4, 500
"""What ONNX Runtime 1.31 holds on the CPU at a pass's widest points, measured and rounded up: attention scores so many
times, a layer of the skip CNN so many times, and this for the other fields of a pixel."""


class ServedGraph(nn.Module):
    """The network with the outputs that are served. Without its colour, the exporter drops that branch."""

    def __init__(self, network: MVDUSt3R) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, references: Tensor) -> tuple[Tensor, ...]:
        output = self.network(images, references)
        return tuple(getattr(output, name) for name in OUTPUTS)


def export_onnx(
    network: Network, folder: Path, name: str, licence: str, *, square: int = 224, max_views: int = MAX_VIEWS
) -> Description:
    """Write the artifact of `network`, in eval mode on the CPU, to `folder`, which must not exist yet; its description.

    The graph is compared with the network first: ParityError, and no folder, where they differ. Raises ArtifactError
    for another network, and for a name, square, number of views or folder that cannot be.
    """
    if not isinstance(network, MVDUSt3R):
        raise ArtifactError(f"{network.config.network} cannot be exported: MV-DUSt3R and MV-DUSt3R+ can")
    if not NAME.fullmatch(name):
        raise ArtifactError(f"a model's name is lower-case letters, digits, '.', '_' and '-', not {name!r}")
    if square <= 0 or square % DIVISOR:
        raise ArtifactError(f"a square's side is a multiple of {DIVISOR}, not {square}")
    if max_views < MIN_VIEWS:
        raise ArtifactError(f"a model takes at least {MIN_VIEWS} views, not {max_views}")
    if folder.exists():
        raise ArtifactError(f"{folder} exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        made = Path(scratch) / "artifact"
        made.mkdir()
        write_graph(network, made / GRAPH_FILE, square)
        description = Description(
            name=name,
            network=network.config.network,
            licence=licence,
            square=square,
            paths=network.config.paths,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            weights_sha256=weights_sha256(network),
            files={path.name: sha256(path) for path in sorted(made.iterdir())},
            max_views=max_views,
            max_batch=_max_batch(network.config, square, max_views),
            view_bytes=square**2 * (SKIP_COPIES * 4 * network.config.skip_channels + PIXEL_BYTES),
            pair_bytes=SCORE_COPIES * _score_bytes(network.config, (square // DIVISOR) ** 2),
            parity={"noise": check_parity(network, made / GRAPH_FILE, square)},
            made_with={"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        )
        description.write(made)
        made.replace(folder)
    return description


def write_graph(network: MVDUSt3R, path: Path, square: int) -> None:
    """Write the bare graph, and its weights beside it where they are large. The exporter folds batch normalisation."""
    plus = network.config.paths > 1
    # Sizes of an example are kept apart from 1 and from each other, so that none is taken for a constant.
    images = torch.zeros(2, 5, 3, square, square)
    references = torch.arange(3 if plus else 1)
    shapes = {
        INPUTS[0]: {0: Dim("batch"), 1: Dim("views", min=2)},
        INPUTS[1]: {0: Dim("references", min=2)} if plus else None,
    }
    with warnings.catch_warnings():
        # torch's exporter uses what torch itself has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            ServedGraph(network).eval(),
            (images, references),
            dynamo=True,
            input_names=INPUTS,
            output_names=OUTPUTS,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            verbose=False,
        )
    if program is None:
        raise ArtifactError("torch wrote no graph")
    foreign = {f"{node.domain}.{node.op_type}" for node in program.model.graph if node.domain}
    if foreign or program.model.functions:
        raise ArtifactError(f"the graph has operators beyond the standard: {sorted(foreign)}")
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    program.save(path, external_data=size > EXTERNAL_BYTES)


def weights_sha256(network: nn.Module) -> str:
    """One hash of all tensors: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _max_batch(config: ModelConfig, square: int, max_views: int) -> int:
    tokens = max_views * (square // DIVISOR) ** 2
    return max(1, min(MAX_BATCH, SCORE_BYTES // _score_bytes(config, tokens)))


def _score_bytes(config: ModelConfig, tokens: int) -> int:
    """Attention of so many tokens to as many, in all paths, float32."""
    return 4 * config.paths * config.decoder_heads * tokens**2
