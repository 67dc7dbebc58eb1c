"""A corpus of hostile uploads and requests, made anew and the same each time; `python hostile.py FOLDER` writes the
files among them, to try on something else.

Every case is a name and what `httpx.AsyncClient.request` takes, or bytes to be sent as they are.
"""

from __future__ import annotations

import io
import random
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOOD_SIZE = (128, 96)
TAKEN = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "HEIF": "heic", "AVIF": "avif", "TIFF": "tif", "BMP": "bmp"}
OTHERS = {
    "GIF": "gif",
    "ICO": "ico",
    "PPM": "ppm",
    "TGA": "tga",
    "PCX": "pcx",
    "SGI": "sgi",
    "PDF": "pdf",
    "EPS": "eps",
}


def picture(seed: int = 0, size: tuple[int, int] = GOOD_SIZE) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    return Image.fromarray(blocks).resize(size)


def encoded(format: str = "JPEG", seed: int = 0, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    *extra: bytes, width: int = 128, height: int = 96, pixels: bytes | None = None, depth: int = 8, colour: int = 2
):
    """A PNG of these dimensions, whatever is in it, with more chunks before its pixels."""
    pixels = b"".join(b"\0" + bytes(3 * 128) for _ in range(96)) if pixels is None else pixels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def tiff(*entries: tuple[int, int, int, int], following: int = 0, tail: bytes = b"") -> bytes:
    """A TIFF of one directory of (tag, type, count, value) entries."""
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + body + struct.pack("<I", following) + tail


def exif_jpeg(payload: bytes) -> bytes:
    data = encoded()
    segment = b"Exif\0\0" + payload
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def images() -> Iterator[tuple[str, bytes]]:
    """Files that are no photos, or pretend to be larger, smaller or other ones than they are."""
    chance = random.Random(1)
    for format, suffix in TAKEN.items():
        data = encoded(format)
        for share in (0.02, 0.1, 0.35, 0.7, 0.95):
            yield f"cut-{share}.{suffix}", data[: int(len(data) * share)]
        for turn in range(5):
            bad = bytearray(data)
            for _ in range(1 + 2 * turn):
                bad[chance.randrange(min(len(bad), 300))] = chance.randrange(256)
            yield f"header-{turn}.{suffix}", bytes(bad)
        yield f"tail.{suffix}", data + bytes(50_000)
        yield f"doubled.{suffix}", data + data
        yield f"swapped.{suffix}", data[:12] + encoded("PNG" if format == "JPEG" else "JPEG")[12:]
    for format, suffix in OTHERS.items():
        yield f"other.{suffix}", encoded(format)
    yield "empty.jpg", b""
    yield "zeros.jpg", bytes(100_000)
    yield "text.jpg", b"dear diary " * 999
    yield "script.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    yield "entities.svg", b"<!DOCTYPE s [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><svg>&b;</svg>"
    yield "postscript.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    yield "push.mvg", b"push graphic-context\nviewbox 0 0 640 480\nimage over 0,0 0,0 'https://127.0.0.1/x'\n"
    yield "layered.psd", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30000, 30000, 8, 3) + bytes(99)
    yield "wavelet.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200)

    # Dimensions
    for width, height in ((30_000, 30_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 0), (1, 1), (65_535, 4)):
        yield f"claims-{width}x{height}.png", png(width=width, height=height)
    for depth, colour in ((16, 6), (1, 0), (7, 2), (8, 9)):
        yield f"depth-{depth}-{colour}.png", png(depth=depth, colour=colour)
    for width, height in ((2**31 - 1, 2**31 - 1), (-5, 96), (128, -(2**31)), (100_000, 100_000)):
        bad = bytearray(encoded("BMP"))
        struct.pack_into("<ii", bad, 18, width, height)
        yield f"claims-{width}x{height}.bmp", bytes(bad)
    for width, height in ((65_500, 65_500), (0, 96), (65_535, 1)):
        data = encoded()
        at = data.index(b"\xff\xc0") + 5
        yield f"claims-{width}x{height}.jpg", data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
    data = encoded("WEBP", lossless=True)
    yield "claims.webp", data[:21] + b"\xff\xff\xff\x0f" + data[25:]
    for format in ("HEIF", "AVIF"):
        data = bytearray(encoded(format))
        at = data.index(b"ispe") + 8
        struct.pack_into(">II", data, at, 60_000, 60_000)
        yield f"claims.{TAKEN[format]}", bytes(data)
    size = ((256, 4, 1, 60_000), (257, 4, 1, 60_000))
    plain = ((258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1))
    yield "claims.tif", tiff(*size, *plain, (273, 4, 1, 8), (278, 4, 1, 60_000), (279, 4, 1, 10))
    small = ((256, 4, 1, 128), (257, 4, 1, 96))
    yield "far-strip.tif", tiff(*small, *plain, (273, 4, 1, 2**32 - 1), (278, 4, 1, 96), (279, 4, 1, 2**32 - 1))
    yield "itself-next.tif", tiff(*small, *plain, (273, 4, 1, 8), (278, 4, 1, 96), (279, 4, 1, 10), following=8)
    yield "many-strips.tif", tiff(*small, *plain, (273, 4, 2**31, 8), (278, 4, 1, 1), (279, 4, 2**31, 8))
    yield "no-pixels.tif", tiff(*small)
    yield "strange-types.tif", tiff(*small, *plain, (273, 99, 1, 8), (700, 12, 2**30, 8))
    flood = zlib.compress(bytes(60 << 20), 9)
    inflated = (*small, (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1), (278, 4, 1, 96))
    start = 8 + 2 + 12 * 9 + 4
    yield "flood.tif", tiff(*inflated, (273, 4, 1, start), (279, 4, 1, len(flood)), tail=flood)

    # What comes beside the pixels
    bomb = zlib.compress(bytes(200 << 20), 9)
    yield "profile-bomb.png", png(chunk(b"iCCP", b"p\0\0" + bomb))
    yield "text-bomb.png", png(chunk(b"zTXt", b"t\0\0" + bomb))
    yield "international-bomb.png", png(chunk(b"iTXt", b"t\0\1\0\0\0" + bomb))
    yield "many-texts.png", png(*(chunk(b"tEXt", b"k%d\0v" % i) for i in range(9000)))
    yield "flood.png", png(pixels=bytes(60 << 20))
    yield "endless-animation.png", png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))
    yield "wrong-checksum.png", png()[:-8] + b"\0\0\0\0\0\0\0\0"
    yield "long-chunk.png", png()[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt"
    profile = b"\xff\xe2" + struct.pack(">H", 65_535) + b"ICC_PROFILE\0\1\1" + bytes(65_519)
    data = encoded()
    yield "many-profiles.jpg", data[:2] + profile * 12 + data[2:]
    yield "scans.jpg", encoded(progressive=True)[:-2] + b"\xff\xda\0\0" * 9000 + b"\xff\xd9"
    yield (
        "comment.jpg",
        data[:2] + b"\xff\xfe" + struct.pack(">H", 60_000) + b"<?php system($_GET[0]); ?>" * 2307 + data[2:],
    )
    yield "many-comments.jpg", data[:2] + b"\xff\xfe\0\2" * 200_000 + data[2:]
    yield "restart.jpg", data[:2] + b"\xff\xdd\0\4\0\0" + data[2:]
    yield "arithmetic.jpg", data.replace(b"\xff\xc0", b"\xff\xc9")
    yield "lossless.jpg", data.replace(b"\xff\xc0", b"\xff\xc3")
    yield "twelve-bits.jpg", data.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
    loop = tiff((0x8769, 4, 1, 8), following=8)
    yield "exif-loop.jpg", exif_jpeg(loop)
    yield "exif-count.jpg", exif_jpeg(tiff((0x9286, 7, 2**32 - 1, 8), (0x010F, 2, 2**31, 8)))
    yield "exif-cut.jpg", exif_jpeg(b"II*\0\xff\xff\xff\xff")
    yield "exif-turn.jpg", exif_jpeg(tiff((0x0112, 3, 1, 99)))
    yield "exif-zero.jpg", exif_jpeg(tiff((0x920A, 5, 1, 38), tail=bytes(40)))
    yield "exif-many.jpg", exif_jpeg(tiff(*((i, 3, 1, 1) for i in range(5000))))
    yield "pictures.jpg", data[:2] + b"\xff\xe2\0\x1aMPF\0" + tiff((0xB001, 4, 1, 2**31))[:18] + data[2:]

    # Two things at once
    archive = zipped({"a.jpg": data})
    yield "photo-and-zip.jpg", data + archive
    yield "zip-first.jpg", archive + data
    yield "page-and-photo.jpg", data + b"<script>alert(document.domain)</script>"
    yield "pdf-first.jpg", b"%PDF-1.7\n" + data
    yield "gif-code.gif", b"GIF89a=1;alert(1)//" + bytes(99)
    yield "program.jpg", b"MZ" + bytes(200) + data
    yield "elf.jpg", b"\x7fELF" + bytes(200)


def zipped(contents: dict[Any, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def archives() -> Iterator[tuple[str, bytes]]:
    """Zip files with tricks."""
    photos = {"1.jpg": encoded(), "2.jpg": encoded(seed=1)}
    good = zipped(photos)
    directory, end = good.index(b"PK\1\2"), good.rindex(b"PK\5\6")

    def edited(*changes: tuple[int, str, int]) -> bytes:
        bad = bytearray(good)
        for at, form, value in changes:
            struct.pack_into(form, bad, at, value)
        return bytes(bad)

    names = ("../1.jpg", "/etc/cron.d/1.jpg", "C:/1.jpg", "a/../../1.jpg", "..\\1.jpg", "\\\\host\\1.jpg", "~/1.jpg")
    for i, name in enumerate(
        (*names, ".", "..", "a\x00.jpg", "a" * 60_000 + ".jpg", "\u202e.jpg", "a\n1.jpg", "-rf.jpg")
    ):
        yield f"name-{i}.zip", zipped(photos | {name: b"x"})
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO):
        info = zipfile.ZipInfo("3.jpg")
        info.create_system, info.external_attr = 3, (kind | 0o777) << 16
        yield f"kind-{kind:o}.zip", zipped(photos | {info: b"/etc/passwd"})
    yield "bomb.zip", zipped({f"{i}.jpg": bytes(1 << 20) for i in range(20)})
    yield "one-bomb.zip", zipped({"1.jpg": bytes(100 << 20), "2.jpg": encoded()})
    yield "zeros.zip", zipped({"1.jpg": bytes(900_000), "2.jpg": bytes(900_000)})
    yield "many.zip", zipped({f"{i}.jpg": b"" for i in range(5000)})
    yield "crowd.zip", zipped({f"{i:050}.jpg": b"" for i in range(12_000)})
    yield "nested.zip", zipped({"1.zip": good, "2.jpg": encoded()})
    yield "same-names.zip", good[:end].replace(b"2.jpg", b"1.jpg") + good[end:]
    yield "empty.zip", zipped({})
    yield "folders.zip", zipped({"a/": b"", "b/": b""})
    yield "no-photos.zip", zipped({"a.txt": b"a", "b.exe": b"MZ"})
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"method-{method}.zip", zipped(photos, method)
    yield "unknown-method.zip", edited((directory + 10, "<H", 99))
    yield "encrypted.zip", edited((directory + 8, "<H", 1))
    yield "strong.zip", edited((directory + 8, "<H", 0x41))
    yield "smaller.zip", edited((directory + 24, "<I", 10), (22, "<I", 10))
    yield "larger.zip", edited((directory + 24, "<I", 900_000), (22, "<I", 900_000))
    yield "longest.zip", edited((directory + 24, "<I", 2**32 - 2))
    yield "wrong-checksum.zip", edited((directory + 16, "<I", 5), (14, "<I", 5))
    yield "far-header.zip", edited((directory + 42, "<I", 2**32 - 2))
    yield "shared-header.zip", edited((good.rindex(b"PK\1\2") + 42, "<I", 0))
    yield "other-name.zip", good[:30] + b"9" + good[31:]
    yield "far-directory.zip", edited((end + 16, "<I", 2**32 - 2))
    yield "long-directory.zip", edited((end + 12, "<I", 2**31))
    yield "more-entries.zip", edited((end + 10, "<H", 65_535), (end + 8, "<H", 65_535))
    yield "many-disks.zip", edited((end + 4, "<H", 7), (end + 6, "<H", 7))
    yield "long-comment.zip", good[:-2] + b"\xff\xff" + bytes(65_535)
    yield "lying-comment.zip", good[:-2] + b"\xff\x00"
    yield "two-ends.zip", good + zipped({"3.jpg": b"x"})[-22:]
    locator = b"PK\6\7" + struct.pack("<IQI", 0, 2**60, 1)
    yield "far-zip64.zip", good[:end] + locator + good[end:]
    yield "cut.zip", good[: len(good) // 2]
    yield "end-alone.zip", good[end:]
    yield "start-alone.zip", good[:40]
    yield "prefixed.zip", b"#!/bin/sh\nrm -rf /\n" + good
    yield "tar.zip", b"1.jpg".ljust(257, b"\0") + b"ustar\0" + bytes(4096)
    yield "seven.zip", b"7z\xbc\xaf\x27\x1c" + bytes(99)
    yield "rar.zip", b"Rar!\x1a\x07\x01\0" + bytes(99)
    chance = random.Random(2)
    for i in range(12):
        bad = bytearray(good)
        for _ in range(6):
            bad[chance.choice((chance.randrange(60), chance.randrange(directory, len(bad))))] = chance.randrange(256)
        yield f"noise-{i}.zip", bytes(bad)


def films() -> Iterator[tuple[str, bytes]]:
    """Few: each is a process. More of them are in test_video.py."""
    box = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"
    yield "playlist.mp4", b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:9,\nhttp://127.0.0.1:1/secret\n#EXT-X-ENDLIST\n"
    yield "concat.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "boxes.mp4", box + b"\0\0\0\x08moov" * 2000
    yield "deep.mp4", box + b"".join(struct.pack(">I", 8 * (999 - i)) + b"moov" for i in range(999))
    yield "noise.mkv", b"\x1a\x45\xdf\xa3" + random.Random(3).randbytes(20_000)


NAMES = (
    "../../../etc/passwd", "..\\..\\windows\\system32", "/etc/passwd", "C:\\a.jpg", "a\x00.jpg", "a\r\nX-Evil: 1.jpg",
    "..", ".", "~root", "CON", "aux.jpg", "a" * 3000, "\u202egpj.exe", "\ufeff.jpg", "\U0001f4a9.jpg", "e\u0301.jpg",
    "\u200b", " ", "%2e%2e%2f", "$(reboot).jpg", "`id`.jpg", "';drop table jobs;--", "<img src=x onerror=alert(1)>.jpg",
    "{{7*7}}", "a;b\"c'd", "\u0130\u0131.jpg", "\ud7ff\ue000.jpg", "\x7f\x1b[2J.jpg",
)  # fmt: skip

FIELDS = {
    "model": ("", "x" * 4000, "../geometry", "geometry\x00", "\u202e", "None", "*", "{scenelift}:job:x"),
    "confidence_percentile": ("nan", "inf", "-inf", "1e309", "-0", "99.0001", "", "\u0663", "0x10", "[]", "9" * 4000),
    "max_points": ("nan", "1e6", "-1", "9" * 4000, "10000001", "1.5", "\u0663\u0663\u0663\u0663", "true", "null"),
    "reference": ("-1", "2", "9" * 4000, "AUTO", "auto\x00", "1e0", "\u0661", "[0]", "true"),
    "focal": ("nan", "inf", "0", "-1", "1e7", "1e309", "shared ", "{}", "9" * 4000),
    "outputs": ("../x", "scene.ply/../../x", "all.zip", "scene.ply\x00", "," * 3000, "scene.ply," * 400, "SCENE.PLY"),
    "frames": ("1", "-5", "9" * 400, "\u0663", "2.0", "nan"),
    "uploads": ("*", "A" * 22, "../..", "A" * 22 + ":lock", "\x00", ",", "x," * 1500),
    "image_urls": ("http://127.0.0.1/", "file:///etc/passwd", "gopher://x", "\x00", "https://[", "http://a " * 400),
    "webhook": ("http://127.0.0.1/",),
    "__proto__": ("x",),
    "images[]": ("x",),
    "": ("x",),
}  # fmt: skip


def multiparts() -> Iterator[tuple[str, str, bytes]]:
    """Bodies that no library would write, with their content types."""
    form, photo = "multipart/form-data; boundary=b", encoded()
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n'
    part = head + b"\r\n" + photo + b"\r\n"
    yield "no-end", form, part * 2
    yield "no-parts", form, b"--b--\r\n"
    yield "nothing", form, b""
    yield "after-the-end", form, part * 2 + b"--b--\r\n" + part * 50
    yield "line-feeds", form, part.replace(b"\r\n", b"\n") + b"--b--\n"
    yield "before-the-start", form, b"x" * 50_000 + b"\r\n" + part * 2 + b"--b--\r\n"
    yield "no-boundary", "multipart/form-data", part
    yield "empty-boundary", "multipart/form-data; boundary=", part
    yield "long-boundary", "multipart/form-data; boundary=" + "b" * 5000, part
    yield "spaced-boundary", 'multipart/form-data; boundary=" b "', part
    yield "two-boundaries", form + "; boundary=c", part
    yield "mixed", "multipart/mixed; boundary=b", part * 2 + b"--b--\r\n"
    yield "json", "application/json", b'{"images": ["a"]}'
    yield "deep-json", "application/json", b"[" * 100_000
    yield "urlencoded", "application/x-www-form-urlencoded", b"images=a&images=b"
    yield "xml", "text/xml", b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>"
    for charset in ("utf-7", "utf-16", "zlib", "rot13", "undefined", "unicode_escape", "idna", "punycode", "x" * 200):
        field = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nge\xff\xe4+AGc-\\u0041\r\n'
        yield f"charset-{charset[:9]}", f"{form}; charset={charset}", field + part * 2 + b"--b--\r\n"
    for name, header in {
        "nameless": b"Content-Disposition: form-data",
        "no-disposition": b"X-Nothing: 1",
        "attachment": b'Content-Disposition: attachment; name="images"; filename="a"',
        "two-names": b'Content-Disposition: form-data; name="images"; name="model"; filename="a"',
        "star": b"Content-Disposition: form-data; name=images; filename*=UTF-8''%2e%2e%2f%00%ff",
        "continued": b'Content-Disposition: form-data; name="images"; filename*0="a"; filename*1="b"',
        "open-quote": b'Content-Disposition: form-data; name="images; filename=a',
        "folded": b'Content-Disposition: form-data;\r\n name="images"; filename="a"',
        "raw-bytes": b'Content-Disposition: form-data; name="images"; filename="\xff\xfe\x00\x80"',
        "long-header": b"X-Long: " + b"x" * 50_000,
        "many-headers": b"\r\n".join(b"X-%d: 1" % i for i in range(500)),
        "nested": b'Content-Disposition: form-data; name="images"\r\nContent-Type: multipart/mixed; boundary=c',
        "encoded": b'Content-Disposition: form-data; name="images"; filename="a"\r\nContent-Transfer-Encoding: base64',
        "colonless": b"Content-Disposition form-data",
        "null": b'Content-Disposition: form-data; name="images\x00"; filename="a"',
    }.items():
        yield name, form, b"--b\r\n" + header + b"\r\n\r\n" + photo + b"\r\n" + part + b"--b--\r\n"
    yield (
        "many-fields",
        form,
        b"".join(b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n1\r\n' % i for i in range(3000))
        + b"--b--\r\n",
    )
    yield (
        "long-field",
        form,
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + b"x" * 900_000 + b"\r\n--b--\r\n",
    )
    yield "many-empty-files", form, (head + b"\r\n\r\n") * 3000 + b"--b--\r\n"


def requests() -> Iterator[tuple[str, dict[str, Any] | bytes]]:
    """Requests on every route: ids, headers, the protocol itself."""
    ids = ("..", "%2e%2e", "A" * 22, "A" * 9000, "%00", "{scenelift}:jobs", "\u202e", "a/b", "*", "x;y", "null", "-1")
    for i, id in enumerate(ids):
        for method, tail in (("GET", ""), ("GET", "/files/..%2f..%2fqueue"), ("DELETE", ""), ("POST", "/cancel")):
            yield f"job-{i}-{method}{tail[:7]}", {"method": method, "url": f"/jobs/{id}{tail}"}
        yield f"upload-{i}", {"method": "HEAD", "url": f"/uploads/{id}", "headers": {"Tus-Resumable": "1.0.0"}}
    tus = {"Tus-Resumable": "1.0.0"}
    for i, headers in enumerate(
        (
            {"Upload-Length": "-1"}, {"Upload-Length": "9" * 4000}, {"Upload-Length": "1e3"}, {"Upload-Length": "\xb2"},
            {"Upload-Length": str(2**63)}, {"Upload-Length": "5", "Upload-Metadata": "a b,c d," + "e" * 5000},
            {"Upload-Length": "5", "Upload-Metadata": "filename Li4vLi4vZXRjL3Bhc3N3ZA=="},
            {"Upload-Length": "5", "Upload-Metadata": "filename //////8="}, {"Upload-Concat": "final;/uploads/a"},
            {"Upload-Length": "5", "Upload-Checksum": "sha1 x", "Content-Type": "application/offset+octet-stream"},
            {"Upload-Length": "0", "X-HTTP-Method-Override": "DELETE"},
        )
    ):  # fmt: skip
        raw = {name: value.encode("latin-1") for name, value in (tus | headers).items()}
        yield f"tus-{i}", {"method": "POST", "url": "/uploads", "headers": raw, "content": b"0123456789"}
    keys = ("", "x" * 256, "\xff", "{scenelift}:job:x", "a b", "'")
    for i, key in enumerate(keys):
        yield (
            f"key-{i}",
            {"method": "POST", "url": "/reconstruct", "headers": {"Idempotency-Key": key.encode("latin-1")}},
        )
    for i, prefer in enumerate(("wait=-1", "wait=999999999999", "wait=1;" * 900, 'wait="', "wait=1e9", "\xe4")):
        headers = {"Prefer": prefer.encode("latin-1")}
        yield f"prefer-{i}", {"method": "POST", "url": "/reconstruct", "headers": headers}
    for method, url in (("PUT", "/"), ("TRACE", "/livez"), ("X" * 50, "/"), ("GET", "/docs/../../etc/passwd")):
        yield f"method-{method[:9]}", {"method": method, "url": url}
    post = b"POST /reconstruct HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    for name, rest in {
        "negative-length": b"Content-Length: -5\r\n\r\n",
        "two-lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        "length-and-chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "huge-chunk": b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "no-number": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "long-length": b"Content-Length: " + b"9" * 400 + b"\r\n\r\n",
        "long-header": b"X: " + b"x" * 200_000 + b"\r\n\r\n",
        "null-header": b"X: a\0b\r\n\r\n",
        "smuggled": b"Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    }.items():
        yield f"raw-{name}", post + rest
    yield "raw-noise", random.Random(4).randbytes(2000) + b"\r\n\r\n"
    yield "raw-tls", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500)
    yield "raw-path", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    yield "raw-version", b"GET / HTTP/9.9\r\n\r\n"


def corpus() -> Iterator[tuple[str, dict[str, Any] | bytes]]:
    """Every case."""
    good = ("images", ("good.jpg", encoded(), "image/jpeg"))

    def posted(*parts: tuple[str, Any], **fields: Any) -> dict[str, Any]:
        return {"method": "POST", "url": "/reconstruct", "files": parts, "data": fields}

    for name, data in images():
        yield f"image {name}", posted(good, ("images", (name, data, "image/jpeg")))
    for name, data in archives():
        yield f"archive {name}", posted(("archive", (name, data, "application/zip")))
    for name, data in films():
        yield f"film {name}", posted(("video", (name, data, "video/mp4")))
    for i, name in enumerate(NAMES):
        yield f"name {i}", posted(good, ("images", (name, encoded(seed=i), "image/jpeg")))
    for field, values in FIELDS.items():
        for i, value in enumerate(values):
            yield f"field {field} {i}", posted(good, good, **{field: value})
            yield (
                f"file {field} {i}",
                posted(good, (field, (value[:50], b"x", "text/plain")))
                if i == 0
                else posted(good, **{field: [value, value]}),
            )
    for name, kind, body in multiparts():
        headers = {"Content-Type": kind}
        yield f"multipart {name}", {"method": "POST", "url": "/reconstruct", "headers": headers, "content": body}
    for name, request in requests():
        yield f"request {name}", request


if __name__ == "__main__":
    import pillow_heif

    pillow_heif.register_heif_opener()
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, (_, content) in enumerate([*images(), *archives(), *films()]):
        (folder / f"{number:03}").write_bytes(content)
