"""`scenelift`: the command line. Heavy imports happen inside the commands."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from service.schemas import OUTPUTS
from service.settings import Settings

if TYPE_CHECKING:
    from service.keys import Keys

BAD_INPUT = 2

app = typer.Typer(
    name="scenelift",
    help="A handful of photos in; a coloured point cloud, cameras and Gaussians out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    app()


def _settings_help() -> str:
    """Every setting with its default, as `scenelift serve --help` prints them."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default if field.default != "" else "empty"
        rows.append(f"`SCENELIFT_{name.upper()}` = {default}: {field.description}")
    return "**Settings**, from the environment or a `.env` file:\n\n" + "\n\n".join(rows)


def _fail(line: str) -> NoReturn:
    """One clear line, exit code 2."""
    err.print(line, style="red")
    raise typer.Exit(BAD_INPUT)


@app.command(epilog=_settings_help())
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: SCENELIFT_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default: SCENELIFT_PORT.")] = None,
) -> None:
    """Run everything on this machine: queue (unless SCENELIFT_REDIS_URL is set), worker and API."""
    from service import logs
    from service.supervisor import Supervisor, SupervisorError, environment

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = Settings().model_copy(update=given)
    logs.configure(json=settings.log_json)
    environment(settings)
    keyed = _refuse_exposure(settings)

    def started() -> None:
        address = f"http://{settings.host}:{settings.port}"
        out.print(f"\n[bold]Scenelift[/bold] is on [bold]{address}[/bold]  (stop with Ctrl-C)\n")
        out.print("Open that in a browser, or try:\n")
        out.print(f"  {example(address, keyed=keyed)}\n", soft_wrap=True)

    try:
        Supervisor(settings).run(started)
    except (SupervisorError, PermissionError) as error:
        _fail(str(error))


def example(address: str, *, keyed: bool) -> str:
    """One command to try, with the example photos that come with the source."""
    photos = sorted((Path(__file__).parents[1] / "docs" / "example").glob("*.jpg"))
    names = [os.path.relpath(photo) for photo in photos] or ["one.jpg", "two.jpg", "three.jpg"]
    headers = "-H 'Prefer: wait=120'" + " -H 'Authorization: Bearer sk_...'" * keyed
    return f"curl {' '.join(f'-F images=@{name}' for name in names)} {headers} {address}/reconstruct"


@app.command()
def api() -> None:
    """Run the API alone; the queue is SCENELIFT_REDIS_URL, or that of a `serve` on the same data folder."""
    from service import logs
    from service.app import serve as serve_api

    settings = Settings()
    logs.configure(json=settings.log_json)
    _refuse_exposure(settings)
    serve_api(settings)


def _refuse_exposure(settings: Settings) -> bool:
    """Whether there are keys; the end where there would have to be."""
    from service.access import ExposedError, refuse_exposure
    from service.keys import Keys
    from service.storage import Storage

    try:
        return asyncio.run(refuse_exposure(settings, Keys(Storage.of(settings))))
    except ExposedError as error:
        _fail(str(error))


@app.command()
def worker() -> None:
    """Run one worker alone; the queue is SCENELIFT_REDIS_URL, or that of a `serve` on the same data folder."""
    from service.models import Registry
    from service.worker import run

    settings = Settings()
    run(settings, Registry(settings.models_dir, settings.engine, settings.engines_dir))


@app.command()
def reconstruct(
    photos: Annotated[
        list[Path],
        typer.Argument(
            help="Photos of one place, at least two; or one zip file of them, or one video.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write the files to.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="One of `scenelift models`; default: the default one.")] = None,
    confidence_percentile: Annotated[float, typer.Option(help="Percent of the least sure pixels to leave out.")] = 3.0,
    outputs: Annotated[
        str, typer.Option(help=f"Comma-separated, of {', '.join(OUTPUTS)}; default: up to preview.")
    ] = "",
    max_points: Annotated[int, typer.Option(help="Points to keep, at most.")] = 1_500_000,
    reference: Annotated[
        str, typer.Option(help="Number, from 0, of the photo whose camera is the origin; `auto`: a central one.")
    ] = "0",
    frames: Annotated[int | None, typer.Option(min=2, help="Frames to take of a video, at most.")] = None,
    focal: Annotated[
        str, typer.Option(help="`shared` by the photos of one camera, `per-view`, or in pixels.")
    ] = "shared",
) -> None:
    """Reconstruct without a server: photos in, files out."""
    from service import local
    from service.errors import Problem

    with Progress(
        TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        console=err, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("loading", total=1.0)
        try:
            outcome = local.reconstruct(
                photos,
                Settings(),
                model,
                frames,
                {
                    "confidence_percentile": confidence_percentile,
                    "outputs": [name.strip() for name in outputs.split(",") if name.strip()],
                    "max_points": max_points,
                    "reference": reference,
                    "focal": focal,
                },
                lambda stage, done: bar.update(task, description=stage, completed=done),
            )
        except Problem as problem:
            bar.stop()
            _fail(" ".join((problem.detail, problem.suggestion)).strip())
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, data in outcome.files.items():
            (output / name).write_bytes(data)
    except OSError as error:
        _fail(f"Cannot write to {output}: {error.strerror}.")
    for warning in outcome.warnings:
        err.print(warning, style="yellow")
    if outcome.low_confidence:
        err.print("The reconstruction is doubtful as a whole.", style="yellow")
    out.print(f"{len(outcome.files)} files in {output}: {', '.join(outcome.files)}")


models_app = typer.Typer(help="The models that this installation can serve.", invoke_without_command=True)
app.add_typer(models_app, name="models")


@models_app.callback()
def models(context: typer.Context) -> None:
    """List the models that this installation can serve."""
    if context.invoked_subcommand is not None:
        return
    from service.models import Registry

    settings = Settings()
    registry = Registry(settings.models_dir, engines=settings.engines_dir)
    default = registry.default()
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "network", "photos", "size", "licence", "engine", "engines present"):
        table.add_column(heading, no_wrap=heading == "name")
    for info in registry.infos():
        name = f"{info.name} (default)" if info.name == default else info.name
        size = f"{info.bytes / 1e6:.0f} MB" if info.bytes else "-"
        engine = f"{info.engine} on {info.device}" if info.engine != info.device else info.engine
        engines = "\n".join(f"{record.key.target} {record.key.precision}" for record in registry.records(info.name))
        photos = f"{info.min_views}-{info.max_views}"
        table.add_row(name, info.network, photos, size, info.licence, engine, engines or "-")
    out.print(table)


@models_app.command("default")
def models_default(name: str) -> None:
    """Make NAME the model that is used where none is named."""
    from service.models import Registry

    registry = Registry(Settings().models_dir)
    try:
        registry.set_default(name)
    except KeyError:
        _fail(f"There is no model {name!r}; there are {', '.join(info.name for info in registry.infos())}.")
    out.print(f"{name} is the default.")


@models_app.command("download")
def models_download(
    name: Annotated[str, typer.Argument(help="A released checkpoint, such as mvdust3r-plus.", show_default=False)],
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Do not ask.")] = False,
) -> None:
    """Fetch a released checkpoint, once its licence is accepted, and serve it as the default model.

    Run again, it goes on where it was stopped.
    """
    _weights("download", name, *(["--accept-licence"] if accept_licence else []))


@models_app.command("add")
def models_add(
    file: Annotated[Path, typer.Argument(help="A released or own checkpoint.", show_default=False)],
    name: Annotated[str, typer.Option(help="What to call the model; default: after the file.")] = "",
    licence: Annotated[str, typer.Option(help="The weights' licence, shown to users.")] = "that of its checkpoint",
    square: Annotated[
        int | None, typer.Option(help="Side in pixels of the squares it was trained with, where that is unusual.")
    ] = None,
    max_views: Annotated[
        int | None, typer.Option(help="The most photos a job may have; of NoPoSplat 2, unless it was trained with 3.")
    ] = None,
) -> None:
    """Convert, export and check a checkpoint, and serve it as the default model.

    Run again, it goes on where it was stopped.
    """
    sizes = {"--square": square, "--max-views": max_views}
    given = [word for option, value in sizes.items() if value is not None for word in (option, str(value))]
    _weights("add", str(file), "--name", name, "--licence", licence, *given)


def _weights(*arguments: str) -> NoReturn:
    """Run the part that needs torch, in a process of its own."""
    command = (sys.executable, "-m", "export.weights", *arguments, "--models", str(Settings().models_dir))
    raise typer.Exit(subprocess.run(command, check=False).returncode)


keys_app = typer.Typer(help="The API keys. Once there is one, every request needs one.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


@keys_app.command("create")
def keys_create(name: Annotated[str, typer.Argument(help="Whose it is, or what for.", show_default=False)]) -> None:
    """Make a key and print it: only now, what is kept cannot be turned back into it."""
    key, text = asyncio.run(_keys().create(name))
    out.print(text, markup=False)
    err.print(f"Key {key.id} for {name!r}. It is not shown again; send it as `Authorization: Bearer sk_...`.")


@keys_app.command("list")
def keys_list() -> None:
    """List the keys: ids, names and dates, never the keys themselves."""
    table = Table("id", "name", "created", "revoked", box=None, pad_edge=False)
    for key in asyncio.run(_keys().all()):
        revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "-"
        table.add_row(key.id, Text(key.name), f"{key.created_at:%Y-%m-%d %H:%M}", revoked)
    out.print(table)


@keys_app.command("revoke")
def keys_revoke(id: Annotated[str, typer.Argument(help="As in `keys list`.", show_default=False)]) -> None:
    """Let a key be taken no more, from two seconds on; what it was given links to closes with it."""
    try:
        key = asyncio.run(_keys().revoke(id))
    except KeyError:
        _fail(f"There is no key {id!r}: `scenelift keys list` has their ids.")
    out.print(f"{key.id} is revoked.")


webhooks_app = typer.Typer(help="What is sent when a job has ended.", no_args_is_help=True)
app.add_typer(webhooks_app, name="webhooks")


@webhooks_app.command("secret")
def webhooks_secret() -> None:
    """Print the secret that webhooks are signed with, for those who receive them."""
    from service.storage import Storage
    from service.webhooks import signing_secret

    settings = Settings()
    typer.echo(asyncio.run(signing_secret(settings, Storage.of(settings))))


def _keys() -> Keys:
    from service.keys import Keys
    from service.storage import Storage

    return Keys(Storage.of(Settings()))


@app.command()
def doctor() -> None:
    """Say what works on this machine; exit code 1 where something that is needed does not."""
    from service.doctor import examine

    findings = asyncio.run(examine(Settings()))
    marks = {True: "[green]ok[/green]  ", False: "[red]fail[/red]", None: "-   "}
    for finding in findings:
        out.print(f"{marks[finding.ok]}  {finding.what:<15} {finding.detail}")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


@app.command()
def healthcheck() -> None:
    """Say what this machine's workers are doing; exit code 1 where one cannot take jobs, or where there is none.

    What a container's health check asks: the heartbeats that its worker sends, not whether a port is open.
    """
    from redis.exceptions import RedisError

    from service.jobs import Queue

    async def ask() -> list[str]:
        queue = Queue(Settings())
        try:
            return [worker.state for worker in await queue.workers() if worker.host == socket.gethostname()]
        finally:
            await queue.close()

    try:
        states = asyncio.run(ask())
    except (RedisError, OSError):
        states = []
        out.print("the queue cannot be reached")
    else:
        out.print(", ".join(states) or "no worker on this machine")
    if not states or not {"ready", "busy", "draining"}.issuperset(states):
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def export(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="A released or own checkpoint.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the artifact.", show_default=False)],
) -> None:
    """Export a checkpoint to ONNX and check it. Further options go to `python -m export`."""
    command = (sys.executable, "-m", "export", str(checkpoint), "-o", str(output), *context.args)
    raise typer.Exit(subprocess.run(command, check=False).returncode)


@app.command()
def openapi(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; default: standard output.")
    ] = None,
) -> None:
    """Print the API's description, the content of openapi.json."""
    text = openapi_text()
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")


def openapi_text() -> str:
    from service.app import create_app

    return json.dumps(create_app(Settings()).openapi(), indent=1, ensure_ascii=False) + "\n"
