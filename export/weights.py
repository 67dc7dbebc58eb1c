"""Weights to a served model: `python -m export.weights download NAME`, `python -m export.weights add FILE`.

Both go the same way: read the checkpoint strictly (tensors only, none of its code), write it in Scenelift's own form,
export it to ONNX, compare the graph with it, put the artifact among the models in one rename, make it the default one.
What is under way lies in a hidden folder among the models. After an interruption the same command goes on from the last
finished step, and a download from its last byte; weights that are refused leave nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from export.contract import (
    DEFAULT_FILE,
    NAME,
    NETWORKS,
    WEIGHTS_FILE,
    ArtifactError,
    name_after,
    read_description,
    sha256,
    write_default,
)

BY_NC, BY_NC_SA, OWN = "CC BY-NC 4.0", "CC BY-NC-SA 4.0", "its authors' own"
TERMS = {
    BY_NC: "non-commercial use only, https://creativecommons.org/licenses/by-nc/4.0/",
    BY_NC_SA: "non-commercial use only, share alike, https://creativecommons.org/licenses/by-nc-sa/4.0/",
    OWN: "read the page above",
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a checkpoint's tensors do not tell of what it was trained for; None: as most of its kind."""

    square: int | None = None
    max_views: int | None = None


USUAL = Sizes()


@dataclass(frozen=True, slots=True)
class Released:
    """A checkpoint that its authors put on the Hugging Face hub."""

    network: str
    repository: str
    file: str
    licences: tuple[str, ...]
    """Of the weights, and of those they were trained from: all bind."""
    sizes: Sizes = USUAL

    @property
    def licence(self) -> str:
        return " and ".join(self.licences)


MVDUST3R = "Zhenggang/MV-DUSt3R"
NOPOSPLAT = "botaoye/NoPoSplat"
NAVER = "naver/{}_ViTLarge_BaseDecoder_{}".format

RELEASED = {
    # Trained on 4 to 12 views; -s1, its first stage, on 8.
    "mvdust3r-plus": Released("mvdust3r-plus", MVDUST3R, "checkpoints/MVDp_s2.pth", (BY_NC, BY_NC_SA)),
    "mvdust3r-plus-s1": Released("mvdust3r-plus", MVDUST3R, "checkpoints/MVDp_s1.pth", (BY_NC, BY_NC_SA)),
    "mvdust3r": Released("mvdust3r", MVDUST3R, "checkpoints/MVD.pth", (BY_NC, BY_NC_SA)),
    "dust3r-224": Released("dust3r", NAVER("DUSt3R", "224_linear"), "model.safetensors", (BY_NC_SA,)),
    "dust3r-512": Released("dust3r", NAVER("DUSt3R", "512_dpt"), "model.safetensors", (BY_NC_SA,)),
    "mast3r": Released("mast3r", NAVER("MASt3R", "512_catmlpdpt_metric"), "model.safetensors", (BY_NC_SA,)),
    "noposplat": Released("noposplat", NOPOSPLAT, "mixRe10kDl3dv.ckpt", (OWN,)),
    "noposplat-512": Released("noposplat", NOPOSPLAT, "mixRe10kDl3dv_512x512.ckpt", (OWN,), Sizes(square=512)),
    "noposplat-re10k": Released("noposplat", NOPOSPLAT, "re10k.ckpt", (OWN,)),
    "noposplat-3views": Released("noposplat", NOPOSPLAT, "re10k_3views.ckpt", (OWN,), Sizes(max_views=3)),
}
"""The released checkpoints by their names here."""

SOURCE_FILE = "source.json"
PARTIAL = ".partial"
"""Ends the name of what is not whole yet."""
TAKEN = (DEFAULT_FILE, "geometry")
"""Names that mean something else in a folder of models."""

# Read when the hub's client is imported: it asks for the file, and tells nothing about this machine.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

out = Console(highlight=False, soft_wrap=True)


class WeightsError(Exception):
    """These weights do not become a model, for the reason given in one sentence."""


@dataclass(frozen=True, slots=True)
class Source:
    """The content of `source.json`, in the artifact: where its weights come from, and on what terms they are used."""

    file: str
    sha256: str
    size: int
    """In bytes."""
    licence: str
    repository: str = ""
    """On the hub; empty for a local file."""
    commit: str = ""
    """The state of the repository that was downloaded."""

    def write(self, folder: Path) -> None:
        partial = folder / (SOURCE_FILE + PARTIAL)
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / SOURCE_FILE)


def download(name: str, models: Path, accept: Callable[[Released], bool], endpoint: str | None = None) -> bool:
    """Fetch the released checkpoint `name`, make it a model of that name in the folder `models`, and the default one.

    `accept` answers whether its licence is accepted: it is asked before anything is fetched, and not again when an
    interrupted run goes on. The file is checked against the size and the SHA-256 that the hub (`endpoint`; else
    HF_ENDPOINT, else huggingface.co) states for it. That finds what broke on the way, not what its owner exchanged;
    `source.json` keeps which commit it was.

    False: the model was there already. Raises WeightsError; OSError where the disk or the network fails, and then the
    same call goes on later.
    """
    released = RELEASED.get(name)
    if released is None:
        raise WeightsError(f"there is no released checkpoint {name!r}: there are {', '.join(RELEASED)}")
    with _place(name, models, lambda s: (s.repository, s.file) == (released.repository, released.file)) as work:
        if work is None:
            return False
        source = _read_source(work)
        if source is None:
            if not accept(released):
                raise WeightsError(f"{name} is not fetched: its licence was not accepted")
            source = _ask_hub(released, endpoint)
            source.write(work)
        fetch = partial(_fetch, source, work / "download", endpoint)
        _make(name, source, work, fetch, (released.network,), released.sizes)
        _install(name, work, models)
    return True


def add(
    file: Path, models: Path, name: str = "", licence: str = "that of its checkpoint", sizes: Sizes = USUAL
) -> bool:
    """Make the checkpoint `file` a model called `name` (else after the file) in the folder `models`, the default one.

    sizes: counted when the graph is made; a run that goes on after that keeps those it was made with.
    False: the model was there already. Raises WeightsError; OSError where the disk fails.
    """
    name = name or name_after(file)
    if not file.is_file():
        raise WeightsError(f"there is no file {file}")
    with _step(f"Reading {file.name}"):
        source = Source(file.name, sha256(file), file.stat().st_size, licence)
    with _place(name, models, lambda s: s.sha256 == source.sha256) as work:
        if work is None:
            return False
        source.write(work)
        _make(name, source, work, lambda: file, NETWORKS, sizes)
        _install(name, work, models)
    return True


def _work(name: str, models: Path) -> Path:
    return models / f".{name}{PARTIAL}"


@contextmanager
def _place(name: str, models: Path, same: Callable[[Source], bool]) -> Iterator[Path | None]:
    """The hidden folder to make the model `name` in, with what an earlier run left there; None: the model is there.

    `same` tells whether weights from elsewhere are the wanted ones. No other process makes a model in `models`
    meanwhile, and what is refused is removed.
    """
    if not NAME.fullmatch(name):
        raise WeightsError(f"a model's name is lower-case letters, digits, '.', '_' and '-', not {name!r}")
    if name in TAKEN:
        raise WeightsError(f"no added model can be called {name}: choose another name")
    models.mkdir(parents=True, exist_ok=True)
    work = _work(name, models)
    lock = os.open(models, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WeightsError("another model is being added right now: try again when it is there") from None
        made = _find(name, models)
        source = _read_source(work if made is None else made)
        known = source is not None and same(source)
        if made is not None:
            if not known:
                raise WeightsError(f"there is another model {name} already: choose another name, or remove {made}")
            shutil.rmtree(work, ignore_errors=True)
            write_default(models, name)
            yield None
            return
        if not known:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(exist_ok=True)
        try:
            yield work
        except WeightsError:
            shutil.rmtree(work)
            raise
        finally:
            with suppress(OSError):
                work.rmdir()  # where it is empty
    finally:
        os.close(lock)


def _find(name: str, models: Path) -> Path | None:
    """The folder that is, or blocks, the model `name`."""
    for folder in sorted(models.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            with suppress(ArtifactError):
                if folder.name == name or read_description(folder).name == name:
                    return folder
    return None


def _read_source(folder: Path) -> Source | None:
    try:
        return Source(**json.loads((folder / SOURCE_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _check_room(folder: Path, need: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        reason = f"{what} needs {need / 1e9:.1f} GB of disk, and {folder} has {free / 1e9:.1f} GB left"
        raise OSError(errno.ENOSPC, reason)


@contextmanager
def _hub(what: str) -> Iterator[None]:
    """What goes wrong with the hub: WeightsError where it does not have `what`, OSError where it may work later."""
    import httpx2
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise WeightsError(f"the hub does not give {what}: {_first_line(error)}") from None
    except (httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk
        raise ConnectionError(f"{what} could not be fetched from the hub: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _ask_hub(released: Released, endpoint: str | None) -> Source:
    """What the hub states about the newest version of a file: nothing of it is fetched yet."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    what = f"{released.repository}/{released.file}"
    with _hub(what):
        stated = get_hf_file_metadata(hf_hub_url(released.repository, released.file, endpoint=endpoint), token=False)
    if not (stated.size and stated.commit_hash and re.fullmatch("[0-9a-f]{64}", stated.etag or "")):
        raise WeightsError(f"the hub states no size and SHA-256 of {what}, so it is not fetched")
    return Source(
        file=released.file,
        sha256=str(stated.etag),
        size=stated.size,
        licence=released.licence,
        repository=released.repository,
        commit=stated.commit_hash,
    )


def _fetch(source: Source, folder: Path, endpoint: str | None) -> Path:
    """The whole, checked file in `folder`; what an earlier run fetched is not fetched again."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get

    file = folder / Path(source.file).name
    if file.exists():
        return file
    folder.mkdir(exist_ok=True)
    partial = file.with_name(file.name + PARTIAL)
    held = partial.stat().st_size if partial.exists() else 0
    # It lies beside its copy in our form, and that later beside the graph: neither is larger.
    _check_room(folder, 2 * source.size - held, file.name)
    if held < source.size:
        # Not hf_hub_download, which starts every download anew. The repositories are public: no token is sent.
        url = hf_hub_url(source.repository, source.file, revision=source.commit, endpoint=endpoint)
        with _hub(f"{source.repository}/{source.file}"), partial.open("ab") as content:
            http_get(url, content, resume_size=held, displayed_filename=file.name)
    with _step(f"Checking {file.name}"):
        if (partial.stat().st_size, sha256(partial)) != (source.size, source.sha256):
            raise WeightsError(f"{file.name} is not of the size and SHA-256 that the hub states, and was removed")
    return partial.replace(file)


def _make(
    name: str,
    source: Source,
    work: Path,
    checkpoint: Callable[[], Path],
    networks: tuple[str, ...],
    sizes: Sizes,
) -> None:
    """In `work`, the weights in our form and the artifact, from `checkpoint()`; finished steps are not done again."""
    from export.onnx_graph import export_onnx
    from model.checkpoint import CheckpointError, load

    weights, artifact = work / WEIGHTS_FILE, work / "artifact"
    try:
        if not artifact.exists():
            if not weights.exists():
                _convert(checkpoint(), weights, networks)
            shutil.rmtree(work / "download", ignore_errors=True)
            _check_room(work, weights.stat().st_size, "the graph")
            with _step("Exporting to ONNX and comparing with the checkpoint (minutes)"):
                export_onnx(load(weights), artifact, name, source.licence, **asdict(sizes))
    except (CheckpointError, ArtifactError) as error:
        raise WeightsError(_first_line(error)) from None


def _convert(checkpoint: Path, weights: Path, networks: tuple[str, ...]) -> None:
    """Write `checkpoint`, of one of `networks`, in our own form to `weights`."""
    from model.checkpoint import load, save

    _check_room(weights.parent, checkpoint.stat().st_size, checkpoint.name)
    with _step(f"Converting {checkpoint.name}"):
        network = load(checkpoint)
        if network.config.network not in networks:
            found = network.config.network
            raise WeightsError(f"{checkpoint.name} holds {found}, and only {_listed(networks)} can be served here")
        save(network, weights)
        shutil.copymode(weights.with_name(SOURCE_FILE), weights)  # safetensors writes for its owner's eyes alone


def _install(name: str, work: Path, models: Path) -> None:
    """Put the artifact among the models, where it is served at once."""
    artifact = work / "artifact"
    with suppress(FileNotFoundError):  # moved already, by a run that was stopped here
        (work / WEIGHTS_FILE).replace(artifact / WEIGHTS_FILE)
    shutil.copyfile(work / SOURCE_FILE, artifact / SOURCE_FILE)
    artifact.replace(models / name)
    shutil.rmtree(work)
    write_default(models, name)


def _listed(networks: tuple[str, ...]) -> str:
    return " or ".join(networks)


@contextmanager
def _step(what: str) -> Iterator[None]:
    """A line that shows what goes on and for how long."""
    with Progress(SpinnerColumn(finished_text=" "), TextColumn(what), TimeElapsedColumn(), console=out) as line:
        task = line.add_task(what, total=1)
        yield
        line.update(task, completed=1)


# The command line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Models = Annotated[Path, typer.Option(help="Folder of the served models.")]


@app.command("download")
def download_command(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(RELEASED)}.")],
    models: Models = Path("data/models"),
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Do not ask.")] = False,
) -> None:
    """Fetch a released checkpoint from the Hugging Face hub, and serve it as the default model."""

    def accept(released: Released) -> bool:
        out.print(f"{name}: {released.file} of https://huggingface.co/{released.repository}")
        for licence in released.licences:
            out.print(f"Licence of the weights: [bold]{licence}[/bold] ({TERMS[licence]})")
        try:
            return accept_licence or typer.confirm("Do you accept?")
        except typer.Abort:
            return False

    _run(name, models, lambda: download(name, models, accept))


@app.command("add")
def add_command(
    file: Annotated[Path, typer.Argument(help="A .safetensors, .pth or .ckpt file.")],
    models: Models = Path("data/models"),
    name: Annotated[str, typer.Option(help="What to call the model; else after the file.")] = "",
    licence: Annotated[str, typer.Option(help="The weights' licence, shown to users.")] = "that of its checkpoint",
    square: Annotated[int | None, typer.Option(help="Side in pixels of the squares it was trained with.")] = None,
    max_views: Annotated[int | None, typer.Option(help="The most photos a job may have.")] = None,
) -> None:
    """Make a checkpoint of your own a model, and serve it as the default one."""
    name = name or name_after(file)
    _run(name, models, lambda: add(file, models, name, licence, Sizes(square, max_views)))


def _run(name: str, models: Path, work: Callable[[], bool]) -> None:
    try:
        import huggingface_hub  # noqa: F401
        import onnxscript  # noqa: F401
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        _fail(f"this needs what `make torch` installs: {error}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        new = work()
    except WeightsError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.strerror or error}{_kept(name, models)}")
    except KeyboardInterrupt:
        _fail(f"stopped{_kept(name, models)}")
    out.print(f"{name} {'is' if new else 'was there already, and is'} the default model.")


def _kept(name: str, models: Path) -> str:
    work = _work(name, models)
    return f"; what is done is kept in {work}, and the same command goes on" if work.exists() else ""


def _fail(reason: str) -> NoReturn:
    typer.echo(f"error: {reason}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
