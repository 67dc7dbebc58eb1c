"""A torch network to an ONNX artifact: standard operators only, checked.

Batch, views and references are dynamic, or, of a pairwise network, batch and both views' height and width.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir.passes.common as passes
import onnxruntime
import torch
from onnxscript import ir, optimizer
from torch import Tensor, nn
from torch.export import Dim

from export.contract import (
    DECODER_FILE,
    DECODER_INPUTS,
    DIVISOR,
    ENCODER_FILE,
    ENCODER_INPUTS,
    ENCODER_OUTPUTS,
    GRAPH_FILE,
    INPUTS,
    LONG_SIDE_DIVISOR,
    MAX_BATCH,
    MAX_VIEWS,
    MIN_VIEWS,
    NAME,
    NETWORKS,
    OPSET,
    OUTPUTS,
    PRECISIONS,
    SPLAT_INPUTS,
    SPLAT_MAX_VIEWS,
    SPLAT_OUTPUTS,
    ArtifactError,
    Description,
    decoder_outputs,
    is_side,
    sha256,
)
from export.drift import where_it_drifts
from export.gate import ParityError
from export.parity import Exported, check_noise, check_rendered
from export.precision import written_in
from export.served import PairDecoder, PairEncoder, ServedGraph, SplatGraph, weights_sha256
from model.config import PATCH, DUSt3RConfig, MASt3RConfig, ModelConfig
from model.dust3r import PairNetwork
from model.families import Network
from model.mvdust3r import MVDUSt3R
from model.noposplat import NoPoSplat

EXTERNAL_BYTES = 512 * 2**20
"""Weights beyond this lie in a file beside the graph: a protobuf ends at 2 GiB."""
SCORE_BYTES = 4 * 2**30
"""What one pass's largest attention may take where its scores are written out, as by ONNX Runtime: bounds the batch."""

SCORE_COPIES, SKIP_COPIES, PIXEL_BYTES = 3, 4, 500
"""What ONNX Runtime 1.31 holds on the CPU at a pass's widest points, measured and rounded up: attention scores so many
times, a layer of the skip CNN so many times, and this for the other fields of a pixel."""

PAIR_POINT_BYTES, KEPT_COPIES = 16, 3
"""A point and its confidence, and how many times those of all pairs are held while they are aligned."""
LINEAR_PIXEL_BYTES, DENSE_PIXEL_BYTES, DESCRIPTOR_COPIES = 450, 1400, 5
"""What the heads of a pairwise network hold for a pixel of one view, likewise, and how many times its descriptor."""
IMAGE_PIXEL_BYTES, FIELD_COPIES = 5000, 3
"""What NoPoSplat's heads hold for a pixel of one view, likewise, and how many times what they answer for it."""


def export_onnx(
    network: Network,
    folder: Path,
    name: str,
    licence: str,
    *,
    square: int | None = None,
    long_side: int | None = None,
    max_views: int | None = None,
    precision: str = PRECISIONS[0],
) -> Description:
    """Write the artifact of `network`, in eval mode on the CPU, to `folder`, which must not exist yet; its description.

    square, long_side: how large the images are that it will see (`model.geometry.crop`), one of them; neither: as it
    was trained, or, where its checkpoint does not tell, as the released networks of its kind were. Only a pairwise
    network takes a long side.
    max_views: the most views a job may have; None: as many as most released networks of its kind are for.
    precision: one of PRECISIONS, what its products are computed in (`export.precision`).
    The graphs are compared with the network first: ParityError, and no folder, where they differ. What it answers for
    rendered rooms is kept, to compare engines of the graphs with (`export.gate`).
    Raises ArtifactError for another network, for weights that are not finite, and for a name, size, number of views,
    precision or folder that cannot be.
    """
    if not isinstance(network, MVDUSt3R | PairNetwork | NoPoSplat) or network.config.network not in NETWORKS:
        raise ArtifactError(f"{network.config.network} cannot be exported: {', '.join(NETWORKS)} can")
    pairwise = isinstance(network, PairNetwork)
    if square is None and long_side is None:
        square, long_side = _trained_sides(network)
    if max_views is None:
        max_views = SPLAT_MAX_VIEWS if isinstance(network, NoPoSplat) else MAX_VIEWS
    if not NAME.fullmatch(name):
        raise ArtifactError(f"a model's name is lower-case letters, digits, '.', '_' and '-', not {name!r}")
    if not is_side(square, long_side):
        raise ArtifactError(
            f"a square's side is a multiple of {DIVISOR}, a long side one of {LONG_SIDE_DIVISOR}, and a network has "
            f"one of them, not {square} and {long_side}"
        )
    if long_side is not None and not pairwise:
        raise ArtifactError(f"{network.config.network} sees squares alone")
    if max_views < MIN_VIEWS:
        raise ArtifactError(f"a model takes at least {MIN_VIEWS} views, not {max_views}")
    if precision not in PRECISIONS:
        raise ArtifactError(f"there is no precision {precision!r}: there are {', '.join(PRECISIONS)}")
    if folder.exists():
        raise ArtifactError(f"{folder} exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        made = Path(scratch) / "artifact"
        made.mkdir()
        side = square or long_side or 0
        if isinstance(network, PairNetwork):
            special = _write_pair_artifact(network, made, side, precision)
        elif isinstance(network, NoPoSplat):
            special = _write_splat_artifact(network, made, side, precision)
        else:
            special = _write_multi_view_artifact(network, made, side, max_views, precision)
        oblong = long_side is not None
        parity = _compared(network, made, side, oblong=oblong, max_views=max_views, precision=precision)
        description = Description(
            name=name,
            network=network.config.network,
            licence=licence,
            square=square,
            long_side=long_side,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            weights_sha256=weights_sha256(network),
            files={path.name: sha256(path) for path in sorted(made.iterdir())},
            max_views=max_views,
            precision=precision,
            parity=parity,
            made_with={"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
            **special,
        )
        description.write(made)
        made.replace(folder)
    return description


def _trained_sides(network: MVDUSt3R | PairNetwork | NoPoSplat) -> tuple[int | None, int | None]:
    """Square and long side of the images that it was trained with, or, not told, released networks of its kind."""
    if network.config.square is not None or network.config.long_side is not None:
        return network.config.square, network.config.long_side
    if isinstance(network, NoPoSplat):
        return 256, None
    return (None, 512) if isinstance(network, PairNetwork) and not _linear(network) else (224, None)


def _linear(network: Network | PairNetwork) -> bool:
    """Whether it is DUSt3R with linear heads, alone of the pairwise networks released for squares of 224."""
    return isinstance(network.config, DUSt3RConfig) and not network.config.dense


def _compared(
    network: Exported, folder: Path, side: int, *, oblong: bool, max_views: int, precision: str
) -> dict[str, Any]:
    """What its graphs in `folder` differ in from the network, on noise and on rooms. Raises ParityError."""
    try:
        rendered = check_rendered(network, folder, side, oblong=oblong, max_views=max_views, precision=precision)
        return {"noise": check_noise(network, folder, side, precision), "rendered": rendered}
    except ParityError as error:
        if precision == "fp32":
            raise
        raise ParityError(f"{error}; {where_it_drifts(network, precision, side)}") from None


def _write_multi_view_artifact(
    network: MVDUSt3R, folder: Path, square: int, max_views: int, precision: str
) -> dict[str, Any]:
    """Write the graph; what its description says of it."""
    write_graph(written_in(network, precision), folder / GRAPH_FILE, square)
    return {
        "paths": network.config.paths,
        "max_batch": _max_batch(network.config, square, max_views),
        "view_bytes": square**2 * (SKIP_COPIES * 4 * network.config.skip_channels + PIXEL_BYTES),
        "pair_bytes": SCORE_COPIES * _score_bytes(network.config, (square // DIVISOR) ** 2),
    }


def _write_pair_artifact(network: PairNetwork, folder: Path, side: int, precision: str) -> dict[str, Any]:
    """Write both graphs; what their description says of them."""
    write_pair_graphs(written_in(network, precision), folder)
    # The widest photos are nearly squares of the long side.
    pixels, tokens = side**2, (side // DIVISOR) ** 2
    scores = 4 * max(network.config.encoder_heads, network.config.decoder_heads) * tokens**2
    each = LINEAR_PIXEL_BYTES if _linear(network) else DENSE_PIXEL_BYTES
    if isinstance(network.config, MASt3RConfig):
        each += DESCRIPTOR_COPIES * 4 * (network.config.descriptor + 1)
    return {
        "paths": 1,
        "view_bytes": pixels * each + SCORE_COPIES * scores,
        "pair_bytes": KEPT_COPIES * 2 * pixels * PAIR_POINT_BYTES,
    }


def _write_splat_artifact(network: NoPoSplat, folder: Path, square: int, precision: str) -> dict[str, Any]:
    """Write the graph; what its description says of it."""
    write_splat_graph(written_in(network, precision), folder / GRAPH_FILE, square)
    tokens = (square // DIVISOR) ** 2 + 1
    each = IMAGE_PIXEL_BYTES + 4 * (8 + 3 * (network.config.sh_degree + 1) ** 2) * FIELD_COPIES
    return {
        "paths": 1,
        "view_bytes": square**2 * each,
        "pair_bytes": SCORE_COPIES * 4 * network.config.decoder_heads * tokens**2,
    }


def write_splat_graph(network: NoPoSplat, path: Path, square: int) -> None:
    """Write the bare graph, and its weights beside it where they are large."""
    # As in `write_graph`.
    images, intrinsics = torch.zeros(2, 5, 3, square, square), torch.eye(3).repeat(2, 5, 1, 1)
    dynamic = {0: Dim("batch"), 1: Dim("views", min=2)}
    example = dict(zip(SPLAT_INPUTS, (images, intrinsics), strict=True))
    _write(SplatGraph(network), example, SPLAT_OUTPUTS, dict.fromkeys(SPLAT_INPUTS, dynamic), path)


def write_pair_graphs(network: PairNetwork, folder: Path) -> None:
    """Write the bare graphs of a pairwise network, and their weights beside them where they are large."""
    width = network.config.encoder_width
    side = Dim("rows"), Dim("columns")
    # Sizes of an example are kept apart from 1 and from each other, so that none is taken for a constant.
    _write(
        PairEncoder(network),
        {ENCODER_INPUTS[0]: torch.zeros(2, 3, 4 * PATCH, 6 * PATCH)},
        ENCODER_OUTPUTS,
        {ENCODER_INPUTS[0]: {0: Dim("batch"), 2: PATCH * side[0], 3: PATCH * side[1]}},
        folder / ENCODER_FILE,
    )
    batch = Dim("batch")
    grids = {name: (Dim(f"{name}_rows"), Dim(f"{name}_columns")) for name in DECODER_INPUTS}
    _write(
        PairDecoder(network),
        dict(zip(DECODER_INPUTS, (torch.zeros(2, 4, 6, width), torch.zeros(2, 5, 7, width)), strict=True)),
        decoder_outputs(network.config.network),
        {name: {0: batch, 1: rows, 2: columns} for name, (rows, columns) in grids.items()},
        folder / DECODER_FILE,
    )


def write_graph(network: MVDUSt3R, path: Path, square: int) -> None:
    """Write the bare graph, and its weights beside it where they are large."""
    plus = network.config.paths > 1
    # Sizes of an example are kept apart from 1 and from each other, so that none is taken for a constant.
    images = torch.zeros(2, 5, 3, square, square)
    references = torch.arange(3 if plus else 1)
    shapes = {
        INPUTS[0]: {0: Dim("batch"), 1: Dim("views", min=2)},
        INPUTS[1]: {0: Dim("references", min=2)} if plus else None,
    }
    _write(ServedGraph(network), dict(zip(INPUTS, (images, references), strict=True)), OUTPUTS, shapes, path)


def _write(
    graph: nn.Module,
    example: Mapping[str, Tensor],
    outputs: Sequence[str],
    shapes: Mapping[str, Any],
    path: Path,
) -> None:
    """Write the graph of a module, with the names of `example` and `outputs`, dynamic in `shapes`."""
    with warnings.catch_warnings():
        # torch's exporter uses what torch itself has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)  # both views' batch is one
        program = torch.onnx.export(
            graph.eval(),
            tuple(example.values()),
            dynamo=True,
            input_names=list(example),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_shapes=dict(shapes),
            optimize=False,  # that takes minutes: see _simplify
            verbose=False,
        )
    if program is None:
        raise ArtifactError("torch wrote no graph")
    _simplify(program.model)
    foreign = {f"{node.domain}.{node.op_type}" for node in program.model.graph if node.domain}
    if foreign or program.model.functions:
        raise ArtifactError(f"the graph has operators beyond the standard: {sorted(foreign)}")
    constants = program.model.graph.initializers.values()
    for value in (*constants, *(value for node in program.model.graph for value in node.outputs)):
        if value.dtype == ir.DataType.DOUBLE:  # TensorRT would make float32 of it and say nothing
            raise ArtifactError(f"the graph computes in float64: {value.name}")
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    held = (value.const_value for value in constants)
    size = sum(int(value.nbytes) for value in held if value is not None)
    program.save(path, external_data=size > EXTERNAL_BYTES)


def _simplify(model: ir.Model) -> None:
    """Fold what is constant, and say nothing twice.

    What the exporter would do, without its rewriting of patterns: that compares every node with all others, which takes
    most of the minutes that a network of the released depth does, to find some shapes that need no computing.
    """
    optimizer.inline(model)
    for _ in range(2):
        optimizer.fold_constants_ir(model)
        passes.RemoveUnusedNodesPass()(model)
    for tidy in (
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        tidy(model)


def _max_batch(config: ModelConfig, square: int, max_views: int) -> int:
    tokens = max_views * (square // DIVISOR) ** 2
    return max(1, min(MAX_BATCH, SCORE_BYTES // _score_bytes(config, tokens)))


def _score_bytes(config: ModelConfig, tokens: int) -> int:
    """Attention of so many tokens to as many, in all paths, float32."""
    return 4 * config.paths * config.decoder_heads * tokens**2
