"""A reconstruction without a server: the same checks, model and files, one after the other in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from export.contract import ArtifactError
from model.types import Progress, ReconstructionError
from service import images, pipeline
from service.errors import Problem
from service.models import Registry
from service.schemas import OUTPUTS, Options
from service.settings import Settings


def reconstruct(
    photos: Sequence[Path], settings: Settings, model: str | None, options: dict[str, Any], progress: Progress
) -> pipeline.Outcome:
    """The files of a scene. Raises Problem with one sentence on whatever is wrong with the photos or the options."""
    checked = _options(options)
    registry = Registry(settings.models_dir, settings.engine, settings.engines_dir)
    infos = {info.name: info for info in registry.infos()}
    name = model or registry.default()
    if name not in infos:
        raise Problem(422, "unknown-model", f"There is no model {name!r}.", f"The models are {', '.join(infos)}.")
    info = infos[name]
    roomy = [other.name for other in infos.values() if other.min_views <= len(photos) <= other.max_views]
    if not info.min_views <= len(photos) <= info.max_views:
        raise Problem(
            422,
            "photo-count",
            f"{len(photos)} photo{'s' * (len(photos) != 1)}: {name} takes {info.min_views} to {info.max_views}.",
            f"So many take {', '.join(roomy)}." if roomy else "",
        )
    if checked.reference != "auto" and checked.reference >= len(photos):
        raise Problem(422, "invalid-field", f"reference: the {len(photos)} photos are numbered from 0.")
    views = []
    for index, path in enumerate(photos):
        progress("loading", 0.1 * index / len(photos))
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Problem(422, "unreadable", f"{path} cannot be read: {error.strerror}.") from error
        images.inspect(path.name, data, max_pixels=settings.max_pixels)
        views.append(images.load_view(path.name, data, info.square, info.long_side))
    try:
        job = pipeline.gather(views, checked, lambda done: progress("choosing", 0.1 * done))
        progress("opening", 0.1)  # a network's first time on this machine: it is compared with its checkpoint
        (answer,) = registry.open(name).run([job], lambda stage, done: progress(stage, 0.1 + 0.7 * done))
        if isinstance(answer, ReconstructionError):
            raise answer
        return pipeline.finish(answer, job, checked, lambda stage, done: progress(stage, 0.8 + 0.2 * done))
    except ReconstructionError as error:
        raise Problem(422, "cannot-reconstruct", error.detail, error.suggestion) from error
    except ArtifactError as error:
        raise Problem(503, "model-broken", f"The model cannot be used here: {error}.", "Add it again.") from error


def _options(options: dict[str, Any]) -> Options:
    unknown = [name for name in options["outputs"] if name not in OUTPUTS]
    if unknown:
        raise Problem(422, "unknown-output", f"There is no output {unknown[0]!r}.", f"There are {', '.join(OUTPUTS)}.")
    try:
        return Options.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise Problem(422, "invalid-field", f"{first['loc'][0]}: {first['msg']}.") from error
