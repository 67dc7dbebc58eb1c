"""Gaussians as a pinhole camera sees them, and how the picture changes as the camera moves. On the CPU, without torch.

Elliptical weighted averaging (Zwicker et al., EWA Volume Splatting, IEEE Visualization 2001, eq. 24 to 31), drawn front
to back as in 3D Gaussian Splatting (Kerbl et al., arXiv 2308.04079, eq. 3 and 5). The derivative by the camera's pose
is that of Gaussian Splatting SLAM (Matsuki et al., arXiv 2312.06741, eq. 2 to 6), carried forward pixel by pixel.
"""

# ruff: noqa: ANN001, ANN202  (numba infers the types of the kernels)
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from model.parallel import compiled
from model.types import Float32, Float64

LOW_PASS = 0.3
"""Variance in square pixels that every Gaussian in the picture gets: one narrower than a pixel is seen, too. Networks
of Gaussians are trained with renderers that do this."""
NEAREST = 0.01
"""A Gaussian nearer than this share of the middle one's depth is not drawn: its picture would fill the whole."""
FIELD = 1.3
"""Nor one whose centre is seen so many times further from the middle than the border is."""
FAINTEST, DENSEST = 1 / 255, 0.99
"""Bounds of what a Gaussian may cover of a pixel; below the first it is not drawn."""
OPAQUE = 1e-4
"""A pixel through which less than this is seen is done."""


@dataclass(frozen=True, slots=True)
class Ellipsoids:
    """P Gaussians in the world."""

    centres: Float64
    """(P, 3)."""
    covariances: Float64
    """(P, 3, 3)."""
    opacity: Float64
    """(P,), 0 to 1."""
    harmonics: Float32
    """(P, 3, K) spherical harmonics of R, G, B: K a square number, the first coefficient constant all round."""

    @classmethod
    def of(
        cls, centres: Float32, scale: Float32, rotation: Float32, opacity: Float32, harmonics: Float32
    ) -> Ellipsoids:
        """From fields of any leading shape: centres (..., 3), scale (..., 3), rotation w x y z (..., 4) and so on."""
        turned = Rotation.from_quat(rotation.reshape(-1, 4), scalar_first=True).as_matrix() * scale.reshape(-1, 1, 3)
        return cls(
            centres.reshape(-1, 3).astype(np.float64),
            turned @ turned.swapaxes(1, 2),
            opacity.ravel().astype(np.float64),
            harmonics.reshape(-1, 3, harmonics.shape[-1]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Ellipsoids]) -> Ellipsoids:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))


@dataclass(frozen=True, slots=True)
class Picture:
    """What a camera sees of Gaussians before nothing, and how that changes with the camera's pose."""

    colour: Float64
    """(H, W, 3), about 0 to 1: what the Gaussians send."""
    clear: Float64
    """(H, W), 0 to 1: what is seen through all of them."""
    by_pose: Float64
    """(H, W, 6, 4), or (H, W, 0, 4): derivatives of colour and clear by a small step of the camera (`moved`), each
    Gaussian's own colour and the order in which they lie kept."""


def harmonic_basis(directions: Float64, degree: int) -> Float64:
    """(P, (degree + 1)^2) real spherical harmonics of unit vectors (P, 3), as Gaussian splatting has them.

    Degree by degree, order m from -l to l; of odd order with the sign of Condon and Shortley: so -y, z, -x come first.
    """
    x, y, z = directions.T
    # cos and sin of m times the azimuth, times sin(polar angle)^m, which the Legendre functions below leave out.
    turning = [(x + 1j * y) ** m for m in range(degree + 1)]
    legendre: dict[tuple[int, int], Float64 | float] = {(0, 0): 1.0}
    for m in range(degree + 1):
        if m:
            legendre[m, m] = -(2 * m - 1) * legendre[m - 1, m - 1]
        for l in range(m + 1, degree + 1):  # noqa: E741 - the field's name
            before = legendre.get((l - 2, m), 0.0)
            legendre[l, m] = ((2 * l - 1) * z * legendre[l - 1, m] - (l + m - 1) * before) / (l - m)
    columns = []
    for l in range(degree + 1):  # noqa: E741
        for m in range(-l, l + 1):
            k = abs(m)
            norm = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - k) / math.factorial(l + k))
            part = turning[k].imag if m < 0 else turning[k].real
            columns.append((math.sqrt(2) if m else 1.0) * norm * legendre[l, k] * part)
    return np.stack(columns, axis=1)


def seen_colours(ellipsoids: Ellipsoids, camera_to_world: Float64) -> Float64:
    """(P, 3) RGB, >= 0, of every Gaussian in the direction in which the camera at a (4, 4) pose sees it."""
    directions = ellipsoids.centres - camera_to_world[:3, 3]
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    basis = harmonic_basis(directions, math.isqrt(ellipsoids.harmonics.shape[2]) - 1)
    return np.maximum(0.5 + np.einsum("pck,pk->pc", ellipsoids.harmonics, basis), 0)


def draw(
    ellipsoids: Ellipsoids,
    colours: Float64,
    camera_to_world: Float64,
    K: Float64,
    size: tuple[int, int],
    *,
    by_pose: bool = False,
) -> Picture:
    """The picture of Gaussians for a camera of pose (4, 4) and intrinsics (3, 3), without skew.

    colours: (P, 3), see `seen_colours`; size: (height, width) in pixels, which K is in.
    """
    height, width = size
    rotation = camera_to_world[:3, :3].T
    local = (ellipsoids.centres - camera_to_world[:3, 3]) @ rotation.T
    ahead = local[:, 2] > 0
    nearest = NEAREST * float(np.median(local[ahead, 2])) if ahead.any() else 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        across = local[:, :2] / local[:, 2:] * (K[0, 0], K[1, 1]) / (width / 2, height / 2)
        across += (K[:2, 2] - (width / 2, height / 2)) / (width / 2, height / 2)
        near = np.flatnonzero((local[:, 2] > nearest) & (np.abs(across) < FIELD).all(axis=1))
    near = near[np.argsort(local[near, 2], kind="stable")]
    lens = np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
    steps = 6 if by_pose else 0
    flat = np.empty((len(near), 5 + 5 * steps))
    _flatten(local[near], rotation @ ellipsoids.covariances[near] @ rotation.T, lens, flat)
    drawn = np.zeros((height, width, 1 + steps, 4))
    drawn[:, :, 0, 3] = 1
    _compose(flat, ellipsoids.opacity[near], colours[near], drawn)
    return Picture(drawn[:, :, 0, :3], drawn[:, :, 0, 3], drawn[:, :, 1:])


def moved(camera_to_world: Float64, step: Float64) -> Float64:
    """(4, 4) pose after a step (6,), in the camera's own frame: how the world moves there (3,), how it turns (3,)."""
    turn = Rotation.from_rotvec(step[3:]).as_matrix()
    result = np.eye(4)
    # world_to_camera becomes turn, shift after it: R' = turn R, t' = turn t + shift.
    result[:3, :3] = camera_to_world[:3, :3] @ turn.T
    result[:3, 3] = camera_to_world[:3, 3] - result[:3, :3] @ step[:3]
    return result


@compiled
def _flatten(local, covariances, lens, flat):
    """Into flat (P, 5 + 5 s): x, y of each Gaussian in the picture and its inverse covariance there (xx, xy, yy), then
    the same five's derivatives by s steps of the camera.

    local: (P, 3) centres and (P, 3, 3) covariances in the camera's frame; lens: focal lengths and principal point.
    """
    fx, fy, cx, cy = lens
    steps = flat.shape[1] // 5 - 1
    for p in range(local.shape[0]):
        x, y, z = local[p]
        V = covariances[p]
        a, b, c, d = fx / z, -fx * x / z**2, fy / z, -fy * y / z**2
        # The picture's x moves by (a, 0, b), its y by (0, c, d) times a small move of the centre.
        xx = a * a * V[0, 0] + 2 * a * b * V[0, 2] + b * b * V[2, 2] + LOW_PASS
        xy = a * c * V[0, 1] + a * d * V[0, 2] + b * c * V[1, 2] + b * d * V[2, 2]
        yy = c * c * V[1, 1] + 2 * c * d * V[1, 2] + d * d * V[2, 2] + LOW_PASS
        determinant = xx * yy - xy * xy
        A, B, C = yy / determinant, -xy / determinant, xx / determinant
        flat[p, 0], flat[p, 1] = fx * x / z + cx, fy * y / z + cy
        flat[p, 2], flat[p, 3], flat[p, 4] = A, B, C
        for k in range(steps):
            # How the centre moves, and with it the covariance: by W V + V W^T where W is the cross product.
            dx, dy, dz = 0.0, 0.0, 0.0
            wx, wy, wz = 0.0, 0.0, 0.0
            if k == 0:
                dx = 1.0
            elif k == 1:
                dy = 1.0
            elif k == 2:
                dz = 1.0
            elif k == 3:
                dy, dz, wx = -z, y, 1.0
            elif k == 4:
                dx, dz, wy = z, -x, 1.0
            else:
                dx, dy, wz = -y, x, 1.0
            V00 = 2 * (wy * V[0, 2] - wz * V[0, 1])
            V11 = 2 * (wz * V[0, 1] - wx * V[1, 2])
            V22 = 2 * (wx * V[1, 2] - wy * V[0, 2])
            V01 = wz * (V[0, 0] - V[1, 1]) + wy * V[1, 2] - wx * V[0, 2]
            V02 = wy * (V[2, 2] - V[0, 0]) + wx * V[0, 1] - wz * V[1, 2]
            V12 = wx * (V[1, 1] - V[2, 2]) + wz * V[0, 2] - wy * V[0, 1]
            da, db = -a * dz / z, (-fx * dx / z - 2 * b * dz) / z
            dc, dd = -c * dz / z, (-fy * dy / z - 2 * d * dz) / z
            dxx = a * a * V00 + 2 * a * b * V02 + b * b * V22
            dxx += 2 * (a * da * V[0, 0] + (a * db + b * da) * V[0, 2] + b * db * V[2, 2])
            dxy = a * c * V01 + a * d * V02 + b * c * V12 + b * d * V22
            dxy += (da * c + a * dc) * V[0, 1] + (da * d + a * dd) * V[0, 2]
            dxy += (db * c + b * dc) * V[1, 2] + (db * d + b * dd) * V[2, 2]
            dyy = c * c * V11 + 2 * c * d * V12 + d * d * V22
            dyy += 2 * (c * dc * V[1, 1] + (c * dd + d * dc) * V[1, 2] + d * dd * V[2, 2])
            at = 5 + 5 * k
            flat[p, at], flat[p, at + 1] = a * dx + b * dz, c * dy + d * dz
            # The inverse's derivative is -M dS M.
            flat[p, at + 2] = -(A * A * dxx + 2 * A * B * dxy + B * B * dyy)
            flat[p, at + 3] = -(A * B * dxx + (A * C + B * B) * dxy + B * C * dyy)
            flat[p, at + 4] = -(B * B * dxx + 2 * B * C * dxy + C * C * dyy)


@compiled
def _compose(flat, opacity, colours, drawn):
    """Draw Gaussians, nearest first, as `_flatten` has them, onto drawn (H, W, 1 + s, 4): R, G, B and what is seen
    through them, then those four's derivatives."""
    height, width = drawn.shape[0], drawn.shape[1]
    steps = drawn.shape[2] - 1
    slope = np.empty(steps)
    for p in range(flat.shape[0]):
        if opacity[p] < FAINTEST:
            continue
        x, y, A, B, C = flat[p, 0], flat[p, 1], flat[p, 2], flat[p, 3], flat[p, 4]
        # The ellipse in which it is not too faint, from the inverse covariance's inverse.
        reach = 2 * math.log(opacity[p] / FAINTEST) / (A * C - B * B)
        half_width, half_height = math.sqrt(reach * C), math.sqrt(reach * A)
        left, right = max(0, math.ceil(x - half_width - 0.5)), min(width - 1, math.floor(x + half_width - 0.5))
        top, bottom = max(0, math.ceil(y - half_height - 0.5)), min(height - 1, math.floor(y + half_height - 0.5))
        for row in range(top, bottom + 1):
            v = row + 0.5 - y
            for column in range(left, right + 1):
                u = column + 0.5 - x
                clear = drawn[row, column, 0, 3]
                if clear < OPAQUE:
                    continue
                cover = opacity[p] * math.exp(-0.5 * (A * u * u + 2 * B * u * v + C * v * v))
                if cover < FAINTEST:
                    continue
                capped = cover > DENSEST
                cover = min(cover, DENSEST)
                here = drawn[row, column]
                for k in range(steps):
                    at = 5 + 5 * k
                    slope[k] = 0.0
                    if not capped:
                        slope[k] = cover * (
                            (A * u + B * v) * flat[p, at]
                            + (B * u + C * v) * flat[p, at + 1]
                            - 0.5 * (flat[p, at + 2] * u * u + 2 * flat[p, at + 3] * u * v + flat[p, at + 4] * v * v)
                        )
                    weight = slope[k] * clear + cover * here[1 + k, 3]
                    for channel in range(3):
                        here[1 + k, channel] += weight * colours[p, channel]
                    here[1 + k, 3] -= weight
                for channel in range(3):
                    here[0, channel] += cover * clear * colours[p, channel]
                here[0, 3] = clear * (1 - cover)
