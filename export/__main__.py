"""`python -m export CHECKPOINT -o DIR`: a checkpoint to an artifact that can be served."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from export.contract import PRECISIONS, ArtifactError, name_after
from export.engine import TARGETS, build_all, load_builder


def export(
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .safetensors or .pth file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make; must not exist yet.")],
    name: Annotated[str, typer.Option(help="What to call the model; else after the file.")] = "",
    licence: Annotated[str, typer.Option(help="The weights' licence, shown to users.")] = "that of its checkpoint",
    square: Annotated[int | None, typer.Option(help="Side in pixels of the squares it will see.")] = None,
    long_side: Annotated[int | None, typer.Option(help="Or the long side of images of the photos' own shape.")] = None,
    max_views: Annotated[int | None, typer.Option(help="The most photos a job may have.")] = None,
    precision: Annotated[
        str, typer.Option(help=f"What products are computed in: {', '.join(PRECISIONS)}.")
    ] = PRECISIONS[0],
    target: Annotated[
        list[str] | None, typer.Option(help=f"GPUs to build TensorRT engines for: {', '.join(TARGETS)}.")
    ] = None,
) -> None:
    """Write CHECKPOINT as an ONNX artifact, once its answers have been compared with the checkpoint's own."""
    try:
        from export.onnx_graph import export_onnx
        from model.checkpoint import CheckpointError, load
    except ImportError as error:
        typer.echo(f"error: exporting needs PyTorch and the packages of the extra `torch`: {error}", err=True)
        raise typer.Exit(2) from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    name = name or name_after(checkpoint)
    try:
        for wanted in target or []:
            load_builder(wanted)  # before the minutes that the graph takes
        network = load(checkpoint)
        size = sum(parameter.numel() for parameter in network.parameters())
        typer.echo(f"Read {checkpoint.name}: {network.config.network}, {size / 1e6:.1f} M parameters")
        typer.echo("Writing the graph and comparing it with the checkpoint ...")
        description = export_onnx(
            network,
            output,
            name,
            licence,
            square=square,
            long_side=long_side,
            max_views=max_views,
            precision=precision,
        )
    except (CheckpointError, ArtifactError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    for what, cases in description.parity.items():
        for case in cases:
            typer.echo(
                f"Compared on {what} of {case['batch']} x {case['views']} views: relative error of the points "
                f"{case['point_error_median']:.1e} median, {case['point_error_p99']:.1e} at 99 %"
            )
    written = sum(path.stat().st_size for path in output.iterdir())
    typer.echo(f"Wrote {output}: {description.name}, {description.precision}, {written / 2**20:.1f} MiB")
    try:
        build_all(output, target or [])
    except (ArtifactError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(export)
