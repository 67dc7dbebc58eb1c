from __future__ import annotations

import contextlib
import io
import random
import stat
import struct
import tracemalloc
import zipfile

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from service import archive
from service.errors import Problem
from service.settings import Settings
from tests.service.support import SMALL, ended, form, jpeg, settled, stored, zipped

LIMITS = Settings(_env_file=None, max_photos=8, max_file_bytes=1 << 20, max_body_bytes=4 << 20)


def read(data: bytes) -> dict[str, bytes]:
    return {source.name: source.read() for source in archive.photos(io.BytesIO(data), LIMITS)}


def refused(data: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        read(data)
    assert caught.value.detail.endswith(".")
    assert caught.value.suggestion
    return caught.value


def entry(name: str, **fields: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_photos_come_in_the_natural_order_of_their_names():
    names = ["10.jpg", "2.jpg", "b/1.jpg", "B/02.jpg", "a/9.jpg", "1" * 5000 + ".jpg"]
    data = zipped({name: name.encode() for name in names})
    assert list(read(data)) == ["2.jpg", "10.jpg", "1" * 5000 + ".jpg", "a/9.jpg", "b/1.jpg", "B/02.jpg"]
    assert all(content == name.encode() for name, content in read(data).items())


def test_what_systems_put_beside_photos_is_passed_over():
    beside = ["__MACOSX/._1.jpg", ".DS_Store", "a/.hidden/2.jpg", "a/Thumbs.db", "desktop.ini", "IMG_1.AAE", "a/"]
    assert list(read(zipped(dict.fromkeys(["a/1.jpg", *beside], b"x")))) == ["a/1.jpg"]


def test_stored_and_streamed_entries_are_read():
    assert read(zipped({"1.jpg": b"x" * 999}, zipfile.ZIP_STORED)) == {"1.jpg": b"x" * 999}
    sink = io.BytesIO()
    sink.seekable = lambda: False  # sizes come after the data, as a program writes them that streams
    with (
        zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as target,
        target.open("1.jpg", "w", force_zip64=True) as file,
    ):
        file.write(b"y" * 999)
    assert read(sink.getvalue()) == {"1.jpg": b"y" * 999}


@pytest.mark.parametrize(
    "name", ["/etc/1.jpg", "../1.jpg", "a/../../1.jpg", "a\\..\\1.jpg", "C:\\1.jpg", "\\\\host\\1.jpg"]
)
def test_names_outside_the_archive_are_refused(name):
    assert refused(zipped({name: jpeg()})).kind == "unsafe-archive"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(kind):
    link = entry("1.jpg", create_system=3, external_attr=(kind | 0o777) << 16)
    problem = refused(zipped({link: b"/etc/passwd"}))
    assert problem.kind == "unsafe-archive"
    assert "1.jpg" in problem.detail


def test_encrypted_nested_and_strangely_packed_archives_are_refused():
    data = bytearray(zipped({"1.jpg": jpeg()}))
    data[data.index(b"PK\1\2") + 8] |= 1
    assert refused(bytes(data)).kind == "encrypted-archive"
    assert "another archive" in refused(zipped({"1.jpg": jpeg(), "more.ZIP": zipped({})})).detail
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert refused(zipped({"1.jpg": jpeg()}, method)).kind == "unknown-compression"


def test_too_many_or_too_large_photos_are_refused_from_the_directory_alone():
    assert refused(zipped({f"{i}.jpg": b"x" for i in range(9)})).kind == "too-many-photos"
    assert refused(zipped({"1.jpg": bytes(LIMITS.max_file_bytes + 1)})).kind == "file-too-large"
    whole = zipped({f"{i}.jpg": bytes(1 << 20) for i in range(5)})
    assert len(whole) < 10_000
    problem = refused(whole)
    assert (problem.status, problem.kind) == (413, "archive-too-large")
    many = refused(zipped({f"{i:040}.jpg": b"" for i in range(15_000)}))
    assert (many.kind, many.detail) == ("unsafe-archive", "The archive lists too many files.")


def test_a_directory_that_lies_about_sizes_inflates_nothing_more():
    """Forty megabytes of zeros that say to be a thousand bytes: no more than those are ever made."""
    data = bytearray(zipped({"1.jpg": bytes(40 << 20)}))
    for header, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        struct.pack_into("<I", data, data.index(header) + at, 1000)
    tracemalloc.start()
    problem = refused(bytes(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert problem.kind == "damaged-archive"
    assert peak < 4 << 20


def test_overlapping_entries_are_refused():
    """The better zip bomb (Fifield 2019): many names, one and the same compressed data."""
    data = zipped({"1.jpg": bytes(1 << 19), "2.jpg": b""})
    second = data.rindex(b"PK\1\2")
    overlapping = bytearray(data)
    first = data.index(b"PK\1\2")
    overlapping[second + 10 : second + 28] = data[first + 10 : first + 28]  # method, checksum and sizes of the first
    struct.pack_into("<I", overlapping, second + 42, 0)
    assert refused(bytes(overlapping)).kind == "damaged-archive"


def test_what_is_no_zip_file_is_refused():
    assert refused(b"").kind == refused(jpeg()).kind == refused(b"PA" * 99).kind == "not-an-archive"
    whole = zipped({"1.jpg": jpeg(), "2.jpg": jpeg(1)})
    assert refused(whole[: len(whole) // 2]).kind == "damaged-archive"


@examples(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.booleans())
def test_hostile_archives_end_in_a_problem_or_in_bounded_photos(seed, changes, in_the_directory):
    data = bytearray(zipped({f"{i}.jpg": jpeg(i) for i in range(3)}))
    chance = random.Random(seed)
    start = data.index(b"PK\1\2") if in_the_directory else 0
    for _ in range(changes):
        data[chance.randrange(start, len(data))] = chance.choice((0, 0xFF, chance.randrange(256)))
    found: dict[str, bytes] = {}
    with contextlib.suppress(Problem):
        found = read(bytes(data))
    assert all(len(content) <= LIMITS.max_file_bytes for content in found.values())


@given(st.text("0129aB./", max_size=6), st.integers(0, 10**9), st.integers(0, 10**9))
def test_numbers_in_names_count_by_their_value(folder, a, b):
    first, second = (archive.natural(f"{folder}-{number}.jpg") for number in (a, b))
    assert (first < second) == (a < b)


async def test_a_job_from_an_archive(api, settings):
    data = zipped({"room/10.jpg": jpeg(0), "room/9.jpg": jpeg(1, (120, 90)), "__MACOSX/9.jpg": b"x"})
    answer = await api.post("/reconstruct", files={"archive": ("room.zip", data)}, data=SMALL)
    assert answer.status_code == 202, answer.text
    assert [(view["name"], view["width"]) for view in answer.json()["views"]] == [("9.jpg", 120), ("10.jpg", 96)]
    assert (await ended(api, answer.json()["id"]))["status"] == "succeeded"
    assert all(path.startswith("jobs/") for path in await settled(settings))


@pytest.mark.parametrize(
    ("files", "status", "kind", "words"),
    [
        ([("archive", zipped({"1.jpg": jpeg()}))], 422, "too-few-photos", "1 photo "),
        ([("archive", zipped({"1.jpg": jpeg(), "notes.txt": b"dear diary"}))], 415, "not-an-image", "notes.txt"),
        ([("archive", zipped({f"{i}.jpg": jpeg(i) for i in range(9)}))], 422, "too-many-photos", "at most 8"),
        ([("archive", jpeg())], 415, "not-an-archive", "zip"),
        ([("archive", b"")], 415, "not-an-archive", "zip"),
        ([("archive", zipped({})), ("archive", zipped({}))], 422, "invalid-field", "more than once"),
        ([("archive", zipped({})), ("images", jpeg())], 422, "mixed-photos", "archive, images"),
    ],
)
async def test_archives_are_refused_clearly(api, settings, files, status, kind, words):
    answer = await api.post("/reconstruct", files=[(name, ("a", data)) for name, data in files], data=SMALL)
    assert (answer.status_code, answer.json()["type"]) == (status, kind), answer.text
    assert words in answer.json()["detail"]
    assert stored(settings) == []


async def test_an_archive_may_be_larger_than_one_photo_but_not_than_the_body(api, settings):
    noise = random.Random(0)
    photos = {f"{i}.bin": noise.randbytes(700_000) for i in range(2)}
    answer = await api.post("/reconstruct", files={"archive": ("a.zip", zipped(photos))})
    assert (answer.status_code, answer.json()["type"]) == (415, "not-an-image"), "its photos were looked at"
    answer = await api.post("/reconstruct", files={"archive": ("a.zip", zipped(photos | {"2.bin": bytes(9)}) * 4)})
    assert (answer.status_code, answer.json()["type"]) == (413, "body-too-large")
    assert (await api.post("/reconstruct", files=form(), data=SMALL)).status_code == 202
