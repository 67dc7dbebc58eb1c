"""A zip of photos to the photos in it. Nothing is ever written under a name that an archive gives."""

from __future__ import annotations

import functools
import re
import stat
import zipfile
from pathlib import PurePosixPath
from typing import IO, cast

from service.errors import Problem, mebibytes
from service.images import Source, display_name
from service.settings import Settings

DIRECTORY_BYTES = 1 << 20
"""An archive's directory, at most, some ten thousand entries: it is read at once, before anything can be counted."""
NESTED = (".zip", ".7z", ".rar", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst")
BESIDE_PHOTOS = re.compile(r"(thumbs\.db|desktop\.ini|.*\.(aae|xmp))", re.IGNORECASE)
"""What cameras and systems put beside photos."""
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_LOCAL_HEADER = 30


class _Bounded:
    """A file of which only so many bytes may be read, until the limit is lifted."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self.left: int | None = most
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        if self.left is None:
            return self._file.read(count)
        data = self._file.read(self.left + 1 if count < 0 else min(count, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise Problem(
                422,
                "unsafe-archive",
                "The archive lists too many files.",
                "Send an archive with the photos alone.",
            )
        return data

    def seekable(self) -> bool:
        return True


def photos(file: IO[bytes], settings: Settings) -> list[Source]:
    """The photos of the archive in `file`, which stays open for as long as they are read, in the natural order of their
    names (`2.jpg` before `10.jpg`).

    Only the directory is read here; each photo is inflated when it is read, to the size that the directory gives and no
    further. Folders, hidden files and what systems put beside photos (`__MACOSX`, `Thumbs.db`) are passed over.
    Raises `Problem`: 415 not a zip file, 413 more or larger files than the settings allow, 422 damaged, encrypted, or
    made to deceive (absolute names, `..`, links, overlapping entries).
    """
    head = file.read(4)
    bounded = _Bounded(file, DIRECTORY_BYTES + (1 << 17))  # zipfile looks for the directory in the last 64 KiB, twice
    try:
        archive = zipfile.ZipFile(cast(IO[bytes], bounded))
    except Problem:
        raise
    except Exception as error:
        if head[:2] == b"PK":
            raise _damaged() from error
        raise Problem(
            415, "not-an-archive", "The archive is not a zip file.", "Send a zip file, or the photos themselves."
        ) from error
    bounded.left = None
    entries = archive.infolist()
    _check_layout(entries, archive.start_dir)
    for entry in entries:
        _check_entry(entry)
    wanted = sorted((entry for entry in entries if _is_photo(entry)), key=lambda entry: natural(entry.filename))
    _check_sizes(wanted, settings)
    return [Source(entry.filename, functools.partial(_inflate, archive, entry)) for entry in wanted]


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts names as people do: runs of digits by their value, letters without case."""
    parts = re.split(r"([0-9]+)", name.replace("\\", "/").casefold())
    # Digits as text of a known length, not as numbers: a name may be a number of a thousand digits.
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else (0, part) for i, part in enumerate(parts)]


def _check_layout(entries: list[zipfile.ZipInfo], end: int) -> None:
    """Entries may share no bytes: else a small file holds a large one many times over."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    starts = [entry.header_offset for entry in ordered] + [end]
    for entry, start in zip(ordered, starts[1:]):
        if entry.header_offset < 0 or entry.header_offset + _LOCAL_HEADER + entry.compress_size > start:
            raise _damaged()


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename.replace("\\", "/")
    shown = display_name(name)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in PurePosixPath(name).parts:
        raise _unsafe(f"The archive names a file outside itself: {shown}.")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe(f"The archive holds a link or a device, no file: {shown}.")
    if entry.flag_bits & _ENCRYPTED:
        raise Problem(422, "encrypted-archive", "The archive is encrypted.", "Send it without a password.")
    if _is_photo(entry):
        if name.lower().endswith(NESTED):
            raise _unsafe(f"The archive holds another archive: {shown}.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Problem(
                422,
                "unknown-compression",
                f"{shown} is compressed in a way that is not taken.",
                "Make the zip file with the usual method, deflate, or without compression.",
            )


def _is_photo(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is meant to be one, as its name tells."""
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not (entry.filename.endswith(("/", "\\")) or hidden or BESIDE_PHOTOS.fullmatch(path.name))


def _check_sizes(entries: list[zipfile.ZipInfo], settings: Settings) -> None:
    if len(entries) > settings.max_photos:
        raise Problem(
            422,
            "too-many-photos",
            f"The archive holds {len(entries)} files: at most {settings.max_photos} are taken.",
            "Choose photos that overlap and together show the whole place.",
        )
    for entry in entries:
        if entry.file_size > settings.max_file_bytes:
            raise Problem(
                413,
                "file-too-large",
                f"{display_name(entry.filename)} has more than {mebibytes(settings.max_file_bytes)}.",
                "Send the photo at a lower resolution, or as JPEG.",
            )
    if sum(entry.file_size for entry in entries) > settings.max_body_bytes:
        raise Problem(
            413,
            "archive-too-large",
            f"The archive unpacks to more than {mebibytes(settings.max_body_bytes)}.",
            "Send fewer photos, or smaller ones.",
        )


def _inflate(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """One file, never more of it than the directory says: `read` without a count would inflate whatever there is."""
    try:
        with archive.open(entry) as member:
            data = member.read(entry.file_size + 1)
    except Exception as error:
        raise _damaged(display_name(entry.filename)) from error
    if len(data) != entry.file_size:
        raise _damaged(display_name(entry.filename))
    return data


def _damaged(shown: str = "") -> Problem:
    what = f"{shown} in the archive" if shown else "The archive"
    return Problem(422, "damaged-archive", f"{what} is damaged or cut off.", "Make the zip file again and send that.")


def _unsafe(sentence: str) -> Problem:
    return Problem(422, "unsafe-archive", sentence, "Send an archive with the photos alone.")
