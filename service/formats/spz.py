"""SPZ, Niantic's compressed Gaussians, version 3 (https://github.com/nianticlabs/spz): one gzip stream of columns."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from model.types import Float32, Splats, UInt8
from service.formats.ply import harmonic

MAGIC = 0x5053474E
VERSION = 3
MOST_FRACTIONAL_BITS = 20
GZIP = 31
"""zlib's window bits for its largest window inside a gzip wrapper."""


def encode(splats: Splats) -> bytes:
    """gaussians.spz: about 13 bytes a Gaussian, OpenGL axes (x right, y up, z back) as the format demands.

    Positions are 24-bit fixed point; since the scene's scale is arbitrary, as many of the bits as its extent allows are
    the fraction. Scales are stored as 16 * (log + 10), opacity and colour with 8 bits, rotations as smallest three.
    """
    extent = float(np.abs(splats.centres).max(initial=0))
    bits = MOST_FRACTIONAL_BITS
    while bits and extent * 2**bits >= 2**23 - 1:
        bits -= 1
    flip = np.array([1, -1, -1], np.float32)
    fixed = np.rint(splats.centres * (flip * np.float32(2**bits)))
    fixed = np.clip(fixed, -(2**23), 2**23 - 1).astype("<i4")
    columns = (
        fixed.view(np.uint8).reshape(-1, 3, 4)[..., :3],
        _byte(splats.opacity * np.float32(255)),
        _byte((harmonic() * 0.15 + 0.5) * 255)[splats.colours],
        _byte((np.log(splats.scale) + np.float32(10)) * np.float32(16)),
        _smallest_three(splats.rotation[:, [1, 2, 3, 0]] * np.append(flip, np.float32(1))),
    )
    header = struct.pack("<IIIBBBB", MAGIC, VERSION, len(splats), 0, bits, 0, 0)
    # Fixed-point columns hardly shrink with more effort: level 1 takes 60 % of the time of level 6 for 3 % more bytes.
    gzip = zlib.compressobj(1, zlib.DEFLATED, GZIP)
    return b"".join([gzip.compress(header), *(gzip.compress(column.tobytes()) for column in columns), gzip.flush()])


def _byte(values: np.ndarray) -> UInt8:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _smallest_three(rotation: Float32) -> NDArray[np.uint32]:
    """(P,) unit quaternions (P, 4) x y z w: 2 bits which component is largest and left out, then the others
    in order, each its sign (for a positive largest) and 9 bits of its magnitude in units of sqrt(1/2) / 511."""
    largest = np.abs(rotation).argmax(axis=1)
    rotation = rotation * np.where(np.take_along_axis(rotation, largest[:, None], 1) < 0, np.float32(-1), np.float32(1))
    magnitude = np.minimum(np.rint(np.abs(rotation) * np.float32(511 * 2**0.5)), 511).astype(np.uint32)
    ten_bits = (rotation < 0).astype(np.uint32) << 9 | magnitude
    packed: NDArray[np.uint32] = largest.astype("<u4")
    for component in range(4):
        packed = np.where(largest == component, packed, packed << 10 | ten_bits[:, component])
    return packed
