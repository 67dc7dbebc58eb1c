"""Every way in: whatever a request names its photos by ends as a list of photos to be read."""

from __future__ import annotations

import asyncio
import functools

from starlette.datastructures import UploadFile

from service import archive
from service.images import Source
from service.settings import Settings
from service.uploads import Wish


async def photos(wish: Wish, settings: Settings) -> list[Source]:
    """The photos that a request sent, in order, to be read while its form is open. Raises `Problem`."""
    if wish.archive is not None:
        return await asyncio.to_thread(archive.photos, wish.archive.file, settings)
    return [Source(file.filename or "", functools.partial(_read, file)) for file in wish.images]


def _read(file: UploadFile) -> bytes:
    file.file.seek(0)
    return file.file.read()
