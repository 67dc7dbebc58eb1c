"""Films to test with: a camera before a wall with boxes, in the codecs and containers of phones and browsers."""

from __future__ import annotations

import io

import av
import cv2
import numpy as np


def texture(seed: int, size: tuple[int, int] = (600, 1600)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.uniform(size=(size[0] // n, size[1] // n, 3)), size[::-1]) for n in (8, 20, 50)]
    return np.uint8(255 * np.mean(layers, axis=0))


NEAR, FAR = texture(1), texture(2)
BOXES = np.kron(np.random.default_rng(3).uniform(size=(4, 8)) < 0.4, np.ones((150, 200), bool))


def shot(x: float, size: tuple[int, int] = (320, 240)) -> np.ndarray:
    """(h, w, 3) what a camera that has gone x pixels of the wall to the right sees; boxes move twice as fast."""
    width, height = size
    far, near = (slice(100 + round(x * speed), 100 + round(x * speed) + width) for speed in (1, 2))
    box = BOXES[100 : 100 + height, near, None]
    return np.where(box, NEAR[100 : 100 + height, near], FAR[100 : 100 + height, far])


def film(
    pictures: list[np.ndarray],
    container: str = "mp4",
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    rate: int = 10,
    transfer: int | None = None,
) -> bytes:
    """A film of (h, w, 3) uint8 pictures."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as target:
        stream = target.add_stream(codec, rate=rate)
        stream.pix_fmt = pixels
        stream.bit_rate = 4_000_000
        stream.height, stream.width = pictures[0].shape[:2]
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            if transfer is not None:
                frame.color_trc = stream.codec_context.color_trc = transfer
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return buffer.getvalue()


def walk(frames: int = 24, step: float = 4, size: tuple[int, int] = (320, 240)) -> list[np.ndarray]:
    return [shot(step * i, size) for i in range(frames)]


def turned(data: bytes) -> bytes:
    """The film, said to be shown turned clockwise by a quarter (ISO/IEC 14496-12, `tkhd`)."""
    start = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # the version is 0
    one, minus = (1 << 16).to_bytes(4), (-1 << 16).to_bytes(4, signed=True)
    zero, last = bytes(4), (1 << 30).to_bytes(4)
    matrix = zero + one + zero + minus + zero + zero + zero + zero + last
    return data[:start] + matrix + data[start + len(matrix) :]
