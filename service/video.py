"""A film to the frames that a scene is reconstructed from.

What decodes it is large, and the bytes are a stranger's: that happens in a process of its own (`python -m
service.video`), which limits itself before it reads the first of them. It inherits the film and the file for its answer
as open files, and can open nothing else. Its answer is an archive of JPEG files, read as hostilely as any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from service.errors import Problem

if TYPE_CHECKING:
    import av
    import numpy as np
    from numpy.typing import NDArray

    from model.classical.keyframes import Step

USUAL = 24
"""Frames taken where nobody says how many, at most."""
DEMUXERS = {"mov": "mov", "matroska": "matroska"}
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "prores")
"""What phones, cameras and browsers record; decoders of anything else are not let near a stranger's bytes."""
SIDE = 480
LOOKED_AT = 900
"""Frames of a film that are looked at, at most, evenly; no more than `LOOKS_PER_SECOND`."""
LOOKS_PER_SECOND = 10
DECODED_PIXELS = 8e9
"""A film with more (two minutes at 1080p30) is decoded only where a frame needs no others: HEVC in ten bits takes
some 8 ns of CPU a pixel."""
MEMORY = 3 << 30
"""Bytes of address space."""
ANSWER_BYTES = 2 << 30
QUALITY = 95
PQ, HLG = 16, 18
"""The transfer functions of high dynamic range, by their numbers in ITU-T H.273."""
TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))
"""Linear light in BT.2020's primaries to BT.709's (ITU-R BT.2087)."""
REFUSED = 2
"""Exit code: the answer is a problem."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What the process may do."""

    frames: int
    """Frames to answer with, at most."""
    seconds: float
    """Length of the film."""
    pixels: int
    """Of one frame."""
    cpu_seconds: int


def demuxer(head: bytes) -> str:
    """The reader for a film with these first bytes; empty: it is none that is taken. ISO media that are photos (HEIC,
    AVIF) are none."""
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    photo = head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")
    films = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
    return "mov" if head[4:8] in films and not (head[4:8] == b"ftyp" and photo) else ""


def frames(file: IO[bytes], limits: Limits) -> IO[bytes]:
    """An open archive of the film's frames, named by their time; the caller closes it. It takes as long as it takes:
    minutes of CPU. `file` is a real one, or can become one (`fileno`).

    Raises `Problem`: 415 not a film or no decoder for it here, 413 too long or too large, 422 damaged, or nothing in it
    to reconstruct from.
    """
    file.seek(0)
    if not demuxer(file.read(64)):
        raise Problem(415, "not-a-video", "The video is none this service can read.", "Send MP4, MOV, WebM or MKV.")
    if not all(importlib.util.find_spec(name) for name in ("av", "cv2")):
        raise Problem(
            415, "no-video-here", "This installation reads no videos.", "Install scenelift[video], or send photos."
        )
    descriptor = file.fileno()
    position = os.lseek(descriptor, 0, os.SEEK_CUR)  # which the process shares, and a buffer in between believes in
    os.lseek(descriptor, 0, os.SEEK_SET)
    answer = tempfile.TemporaryFile()  # noqa: SIM115 - handed to the caller
    try:
        code = subprocess.run(
            (sys.executable, "-m", "service.video", json.dumps(dataclasses.asdict(limits))),
            stdin=descriptor,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            # No secrets to a process that may be taken over, and no threads that only take memory.
            env={
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "TMPDIR": tempfile.gettempdir(),
            },
            timeout=10 + 3 * limits.cpu_seconds,
            check=False,
        ).returncode
        answer.seek(0)
        if code == REFUSED:
            raise _refusal(answer.read(4096))
        if code != 0:
            raise _undecodable()
    except subprocess.TimeoutExpired as error:
        answer.close()
        raise _undecodable() from error
    except BaseException:
        answer.close()
        raise
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)
    return answer


def _refusal(answer: bytes) -> Problem:
    """The problem that the process answered."""
    try:
        status, *texts = json.loads(answer)
        kind, detail, suggestion = (str(text) for text in texts)
    except ValueError:
        return _undecodable()
    return Problem(status if status in (413, 415) else 422, kind, detail, suggestion)


def _undecodable() -> Problem:
    return Problem(
        422,
        "damaged-video",
        "The video is damaged, or takes too long or too much memory to decode.",
        "Send a shorter one, at 1080p or less, or photos.",
    )


def main() -> None:
    """The process: film on standard input, archive or problem on standard output."""
    limits = Limits(**json.loads(sys.argv[1]))
    film, answer, room = open(os.dup(0), "rb", buffering=0), open(os.dup(1), "wb"), tempfile.TemporaryFile()  # noqa: SIM115
    _rehearse()
    _confine(limits)
    code = 0
    try:
        _choose(film, limits, room, answer)
    except Problem as problem:
        code = REFUSED
        answer.write(json.dumps([problem.status, problem.kind, problem.detail, problem.suggestion]).encode())
    answer.flush()
    os._exit(code)  # without waiting for a decoder's threads


def _rehearse() -> None:
    """Do it all once, on a film of our own, while files can be opened: libraries load their parts as they need them."""
    import av
    import numpy as np

    film, limits = io.BytesIO(), Limits(2, 60, 1 << 20, 1)
    with av.open(film, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=10, width=128, height=128, pix_fmt="yuv420p")
        blocks = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        for shift in range(0, 64, 4):
            picture = np.ascontiguousarray(np.roll(blocks, shift, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    film.seek(0)
    with contextlib.suppress(Problem):
        _choose(film, limits, io.BytesIO(), io.BytesIO())


def _confine(limits: Limits) -> None:
    """No more memory, time and room than allowed, not one more file or socket, and the others go first."""
    import resource

    os.nice(10)
    free = max(int(name) for name in os.listdir("/dev/fd"))  # with that of the listing itself, the first free one
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, ANSWER_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, free),
    ):
        resource.setrlimit(kind, (most, most))


def _choose(film: IO[bytes], limits: Limits, room: IO[bytes], answer: IO[bytes]) -> None:
    """Write the archive. Every keyframe is kept in `room` until it is known how many there are."""
    from model.classical.keyframes import keyframes, thin

    kept: list[tuple[float, int, int]] = []
    steps: list[Step] = []
    for (frame, width), step in keyframes(_looked_at(film, limits)):
        data = _jpeg(frame, width)
        kept.append((float(frame.time or 0.0), room.tell(), len(data)))
        steps.append(step)
        room.write(data)
    if not kept:
        raise Problem(422, "damaged-video", "The video has no frame that can be decoded.", "Send another, or photos.")
    if not any(step.moved for step in steps[1:]):
        what = "stands still" if len(kept) == 1 else "only turns on the spot"
        raise Problem(
            422,
            "camera-does-not-move",
            f"The camera {what} in this video: nothing tells how far away things are.",
            "Walk past the place while filming, a step every second or two.",
        )
    with zipfile.ZipFile(answer, "w", zipfile.ZIP_STORED) as archive:
        for index in thin(steps, limits.frames):
            time, start, size = kept[index]
            room.seek(start)
            archive.writestr(zipfile.ZipInfo(f"{int(time // 60):02}m{time % 60:06.3f}s.jpg"), room.read(size))


def _looked_at(film: IO[bytes], limits: Limits) -> Iterator[tuple[tuple[av.VideoFrame, int], NDArray[np.uint8]]]:
    """Frames at even times, each with the width that makes its pixels square, and a small grey copy. What is damaged in
    between is passed over."""
    import av

    head = film.read(64)
    film.seek(0)
    try:
        # The reader is named, so that no other one, such as those of playlists, which open addresses, is tried.
        container: Any = av.open(film, format=DEMUXERS[demuxer(head)], metadata_errors="replace")
        stream = container.streams.video[0]
        codec = stream.codec_context
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise Problem(422, "damaged-video", "The video is damaged, or has no picture.", "Send another.") from error
    if codec.name not in CODECS:
        raise Problem(415, "unknown-codec", "The video's codec is none that is taken.", "Send H.264, HEVC, VP9 or AV1.")
    _check_size(codec.width, codec.height, limits)
    length = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
    _check_length(length, limits)
    codec.thread_count = 2
    codec.thread_type = "AUTO"
    if (length or limits.seconds) * float(stream.average_rate or 30) * codec.width * codec.height > DECODED_PIXELS:
        codec.skip_frame = "NONKEY"
    pause = max(1 / LOOKS_PER_SECOND, (length or limits.seconds) / LOOKED_AT)
    start, next_look, size = None, 0.0, None
    for frame in _decoded(container, stream):
        if frame.time is None:
            continue
        start = frame.time if start is None else start
        at = frame.time - start
        _check_length(at, limits)
        _check_size(frame.width, frame.height, limits)
        size = size or (frame.width, frame.height)
        if at < next_look or (frame.width, frame.height) != size:
            continue
        next_look = at + pause - 1e-3
        squared = round(frame.width * min(max(float(codec.sample_aspect_ratio or 1), 0.25), 4.0))
        _check_size(squared, frame.height, limits)
        scale = SIDE / max(squared, frame.height)
        width, height = (max(16, round(side * scale)) for side in (squared, frame.height))
        grey = frame.reformat(width, height, "gray", threads=1)
        yield (frame, squared), cast("NDArray[np.uint8]", grey.to_ndarray())


def _decoded(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
            yield from packet.decode()
        except StopIteration:
            return
        except av.InvalidDataError:
            continue
        except av.FFmpegError:
            return


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise Problem(
            413,
            "too-many-pixels",
            f"The video has {width} × {height} pixels; at most {limits.pixels / 1e6:.4g} megapixels are taken.",
            "Send it at a lower resolution.",
        )


def _check_length(seconds: float, limits: Limits) -> None:
    if seconds > limits.seconds:
        raise Problem(
            413,
            "video-too-long",
            f"The video is longer than {limits.seconds:g} s.",
            "Send the part that shows the place best.",
        )


def _jpeg(frame: av.VideoFrame, width: int) -> bytes:
    """A frame upright, at its full height and the width that makes its pixels square, in usual screens' colours."""
    import numpy as np
    from PIL import Image

    hdr = frame.color_trc in (PQ, HLG)
    # What does not say its colours is taken as players do, by its size.
    matrix = int(frame.colorspace) if frame.colorspace in (1, 4, 5, 7, 9) else 1 if frame.height >= 720 else 5
    format = "rgb48le" if hdr else "rgb24"
    picture: Any = frame.reformat(width, format=format, src_colorspace=matrix, threads=1).to_ndarray()
    if hdr:
        picture = tone_mapped(picture, frame.color_trc)
    buffer = io.BytesIO()
    upright = np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
    Image.fromarray(upright).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def tone_mapped(picture: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """(h, w, 3) high dynamic range (ITU-R BT.2100, BT.2020 primaries) roughly as a usual screen shows it: sRGB, white
    paper (203 cd/m2, BT.2408) two thirds up, a thousand cd/m2 white (Reinhard et al. 2002, their equation 4)."""
    import numpy as np

    signal = np.linspace(0, 1, 1 << 16)
    if transfer == PQ:
        root = signal ** (32 / 2523)
        light = 10_000 / 203 * (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)
    else:
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        light = 1000 / 203 * scene**1.2
    linear = light.astype(np.float32)[picture] @ np.array(TO_BT709, np.float32).T
    mapped = linear * (1 + linear / (1000 / 203) ** 2) / (1 + linear)
    steps = np.linspace(0, 1, 1 << 12)
    curve = np.where(steps <= 0.0031308, 12.92 * steps, 1.055 * np.maximum(steps, 1e-9) ** (1 / 2.4) - 0.055)
    coded: NDArray[np.uint8] = np.rint(255 * curve).astype(np.uint8)
    shown: NDArray[np.uint8] = coded[(np.clip(mapped, 0, 1) * 4095 + 0.5).astype(np.uint16)]
    return shown


if __name__ == "__main__":
    main()
