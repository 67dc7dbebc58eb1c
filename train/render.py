"""Pictures of a room with exact depth: a small ray caster (numba, CPU, one thread a call, releases the GIL).

A room is a list of solids (boxes, cylinders, ellipsoids), each the unit solid under a rotation and a scaling. Light
is diffuse and does not depend on the view, so it is baked once a room: every face carries a small grid of irradiance,
direct light from area lights plus a few bounces gathered over the hemisphere. A picture is then one intersection, one
texture look-up (trilinear mip maps) and one light look-up a ray.

Frames: the room's world has z up, in metres. Cameras are camera_to_world with OpenCV axes; pixel (row i, column j)
has its centre at (j + 0.5, i + 0.5), as everywhere in Scenelift.
"""

# ruff: noqa: ANN001, ANN202  (numba infers the types of the kernels)
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from model.types import Float32, Float64, UInt8

BOX, CYLINDER, ELLIPSOID = 0, 1, 2

_jit = numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
_EPSILON = 1e-4


@dataclass(frozen=True, slots=True)
class Solid:
    """A unit solid (box [-1, 1]^3; cylinder of radius 1 about z, |z| <= 1; unit sphere), scaled, turned and moved."""

    kind: int
    centre: Float64
    """(3,) metres."""
    half: Float64
    """(3,) half extents along its own axes, metres."""
    texture: int
    """Index into the room's textures."""
    rotation: Float64
    """(3, 3), columns are its own axes in the world."""
    uv: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Offset u, v and scale u, v, in repeats of the texture or, where it is fitted, in shares of it."""
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    emission: float = 0.0
    """How bright its white is in the picture, 1 being as bright as a white wall; 0 for what only reflects. Emitters
    cast no shadow and light nothing by themselves: they are the visible side of lamps and windows, `Light` is the
    other."""


@dataclass(frozen=True, slots=True)
class Texture:
    """A square picture that repeats, or is fitted to each face it covers."""

    image: UInt8
    """(n, n, 3) sRGB, n a power of two."""
    metres: float
    """Side of one repeat in metres; 0: fitted to the face."""
    gloss: tuple[float, float] = (0.0, 0.5)
    """Share of the light mirrored head on, and how far a mirrored ray strays, in radians. Drawn by `train.cast` alone:
    what is baked here does not depend on the view."""


@dataclass(frozen=True, slots=True)
class Light:
    """An area light: a parallelogram that shines to the side of `normal`, or a small ball where `normal` is zero."""

    centre: Float64
    u: Float64
    v: Float64
    """Half edges of the parallelogram; (3,) each."""
    normal: Float64
    colour: Float64
    """(3,) radiant intensity along the normal."""


class Scene(NamedTuple):
    """All of a room as flat arrays, for the compiled kernels."""

    kind: np.ndarray
    centre: np.ndarray
    half: np.ndarray
    axes: np.ndarray
    """(S, 3, 3) rows are the solid's axes."""
    texture: np.ndarray
    uv: np.ndarray
    tint: np.ndarray
    emission: np.ndarray
    groups: np.ndarray
    """(G, 2) first and past-the-end solid of each group."""
    bounds: np.ndarray
    """(G, 6) the group's axis-aligned box, lows then highs."""
    texels: np.ndarray
    """(T, 3) u8, all mip levels of all textures."""
    texture_start: np.ndarray
    texture_side: np.ndarray
    texture_metres: np.ndarray
    albedo: np.ndarray
    """(S, 3) mean linear colour, what a bounce sees."""
    face_start: np.ndarray
    """(S, 6) first cell of each face's light grid."""
    face_cells: np.ndarray
    """(S, 6, 2) the grid's size along u and v."""
    linear: np.ndarray
    """(256,) sRGB byte to linear."""


@dataclass(frozen=True)
class Room:
    """What can be rendered, its light baked."""

    scene: Scene
    light: Float32
    """(L, 3) what a white surface sends back, per cell of the light grids."""
    exposure: float
    size: tuple[float, float, float]
    """Width (x), depth (y) and height (z) in metres; the floor's corner is the origin."""
    gloss: Float64
    """(S, 2) of each solid's texture."""
    lamps: Float64
    """(E, 15) the lights: centre, u, v, normal, colour."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One picture and its truth."""

    rgb: UInt8
    """(h, w, 3) sRGB."""
    points: Float32
    """(h, w, 3) in the room's world, metres: what each pixel's centre sees."""
    valid: np.ndarray
    """(h, w) bool: something was hit."""
    depth: Float32
    """(h, w) z in the camera's frame, metres; 0 where nothing was hit."""


def build(
    groups: Sequence[Sequence[Solid]],
    textures: Sequence[Texture],
    lights: Sequence[Light],
    size: tuple[float, float, float],
    *,
    cell: float = 0.08,
    samples: int = 32,
    bounces: int = 2,
) -> Room:
    """Lay the solids out for the kernels and bake their light.

    Groups are tested by their bounding box first, so solids that stand together belong together. `cell` is the light
    grid's step in metres, `samples` the rays a cell sends to each light and, per bounce, over the hemisphere
    (radiosity by gathering; one fixed low-discrepancy set for all cells, so that no noise shows on plain walls).
    """
    solids = [solid for group in groups for solid in group]
    stops = np.cumsum([len(group) for group in groups])
    spans = np.stack([stops - [len(group) for group in groups], stops], axis=1)
    centre = np.array([s.centre for s in solids], dtype=np.float64)
    half = np.array([s.half for s in solids], dtype=np.float64)
    rotation = np.array([s.rotation for s in solids], dtype=np.float64)
    reach = np.einsum("sij,sj->si", np.abs(rotation), half)
    low, high = centre - reach, centre + reach
    bounds = np.array([np.r_[low[a:b].min(0), high[a:b].max(0)] for a, b in spans])

    linear = np.where(
        np.arange(256) <= 10, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
    )
    pyramids = [_mip_levels(texture.image) for texture in textures]
    starts = np.cumsum([0] + [len(p) for p in pyramids[:-1]])
    texture = np.array([s.texture for s in solids])
    tint = np.array([s.tint for s in solids], dtype=np.float64)
    means = np.array([linear[t.image].mean((0, 1)) for t in textures])

    extents = np.array([_face_extents(solid) for solid in solids])
    cells = np.maximum(2, np.ceil(2 * extents / cell)).astype(np.int64)
    counts = cells.prod(-1).ravel()
    face_start = np.r_[0, np.cumsum(counts)[:-1]].reshape(-1, 6)

    scene = Scene(
        kind=np.array([s.kind for s in solids]),
        centre=centre,
        half=half,
        axes=np.ascontiguousarray(rotation.transpose(0, 2, 1)),
        texture=texture,
        uv=np.array([s.uv for s in solids], dtype=np.float64),
        tint=tint,
        emission=np.array([s.emission for s in solids], dtype=np.float64),
        groups=spans,
        bounds=bounds,
        texels=np.concatenate(pyramids),
        texture_start=starts,
        texture_side=np.array([len(t.image) for t in textures]),
        texture_metres=np.array([t.metres for t in textures], dtype=np.float64),
        albedo=means[texture] * tint,
        face_start=face_start,
        face_cells=cells,
        linear=linear,
    )
    lamps = np.array([np.concatenate([x.centre, x.u, x.v, x.normal, x.colour]) for x in lights])
    direct = np.zeros((int(counts.sum()), 3), dtype=np.float32)
    _bake_direct(scene, lamps, samples, direct)
    light = direct
    for _ in range(bounces):
        gathered = direct.copy()
        _bake_bounce(scene, light, samples, gathered)
        light = gathered
    # Some faces see nothing, as the shell's outer ones; of the rest the median becomes as bright as in a good photo.
    brightness, area = light.mean(1), np.repeat(extents.prod(-1).ravel() / counts, counts)
    area[brightness < 0.02 * brightness.mean()] = 0
    order = np.argsort(brightness)
    middle = order[np.searchsorted(np.cumsum(area[order]), area.sum() / 2)]
    exposure = 0.5 / float(brightness[middle])
    scene = scene._replace(emission=scene.emission / exposure)
    gloss = np.array([t.gloss for t in textures])[texture]
    return Room(scene, light, exposure, size, gloss, lamps)


def intrinsics(size: tuple[int, int], focal: float = 0.8) -> Float64:
    """(3, 3) K of a centred pinhole camera for a (width, height) picture; `focal` is in units of the longer side."""
    w, h = size
    f = focal * max(w, h)
    return np.array([[f, 0, w / 2], [0, f, h / 2], [0, 0, 1]], dtype=np.float64)


def cast(
    room: Room, camera_to_world: Float64, K: Float64, size: tuple[int, int]
) -> tuple[Float32, np.ndarray, Float32]:
    """Points (h, w, 3), valid (h, w) and depth (h, w) as in `Rendered`, without a picture. Exact for pixel centres."""
    w, h = size
    points, depth = np.zeros((h, w, 3), dtype=np.float32), np.zeros((h, w), dtype=np.float32)
    _cast(room.scene, np.asarray(camera_to_world, dtype=np.float64), np.linalg.inv(K), points, depth)
    return points, depth > 0, depth


def render(
    room: Room,
    camera_to_world: Float64,
    K: Float64,
    size: tuple[int, int],
    *,
    rng: np.random.Generator | None = None,
    supersample: int = 2,
) -> Rendered:
    """The picture that a camera takes of a room, with the truth of every pixel centre.

    camera_to_world (4, 4) OpenCV axes, K (3, 3) in pixels, size (width, height). `supersample`^2 rays a pixel, each
    with a texture filter as wide as its footprint. With `rng`, the photographer's luck: exposure off by some percent,
    a warm or cold white balance, and sensor noise (shot and read); without it the picture is exact and equal at every
    call.
    """
    w, h = size
    points, valid, depth = cast(room, camera_to_world, K, size)
    radiance = np.zeros((h, w, 3), dtype=np.float32)
    pose, inverse = np.asarray(camera_to_world, dtype=np.float64), np.linalg.inv(K)
    _shade(room.scene, room.light, pose, inverse, 1.0 / K[0, 0], supersample, radiance)
    radiance *= room.exposure
    if rng is not None:
        radiance *= np.exp(rng.normal(0, 0.06)) * np.exp(rng.normal(0, 0.015, 3)).astype(np.float32)
    value = _tone(radiance)
    if rng is not None:
        sigma = np.sqrt(0.004**2 + 0.008**2 * value)
        value += sigma * rng.standard_normal(value.shape, dtype=np.float32)
    return Rendered((np.clip(value, 0, 1) * 255 + 0.5).astype(np.uint8), points, valid, depth)


def _tone(radiance: Float32) -> Float32:
    """Linear light to sRGB values 0 to 1, with a soft shoulder so that windows and lamps do not clip hard."""
    knee = 0.6
    shoulder = knee + (1 - knee) * (1 - np.exp(-(np.maximum(radiance, knee) - knee) / (1 - knee)))
    x = np.where(radiance < knee, radiance, shoulder)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-6) ** (1 / 2.4) - 0.055).astype(np.float32)


def _mip_levels(image: UInt8) -> UInt8:
    """(n, n, 3) and its halvings down to 1 x 1, flat (T, 3), the finest first."""
    levels, current = [image.reshape(-1, 3)], image.astype(np.float32)
    while len(current) > 1:
        current = (current[0::2, 0::2] + current[1::2, 0::2] + current[0::2, 1::2] + current[1::2, 1::2]) / 4
        levels.append((current.reshape(-1, 3) + 0.5).astype(np.uint8))
    return np.concatenate(levels)


def _face_extents(solid: Solid) -> list[tuple[float, float]]:
    """Half extents in metres of a solid's faces along u and v, in the faces' order; unused faces get none."""
    x, y, z = (float(value) for value in solid.half)
    if solid.kind == BOX:
        return [(y, z), (y, z), (x, z), (x, z), (x, y), (x, y)]
    if solid.kind == CYLINDER:
        return [(math.pi * x, z), (0, 0), (0, 0), (0, 0), (x, y), (x, y)]
    return [(math.pi * max(x, y), math.pi / 2 * z), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]


# ---------------------------------------------------------------- kernels


@_jit
def _enters(bounds, ox, oy, oz, ix, iy, iz, limit):
    """Whether a ray (origin, inverse direction) meets a group's box before `limit`."""
    a, b = (bounds[0] - ox) * ix, (bounds[3] - ox) * ix
    near, far = min(a, b), max(a, b)
    a, b = (bounds[1] - oy) * iy, (bounds[4] - oy) * iy
    near, far = max(near, min(a, b)), min(far, max(a, b))
    a, b = (bounds[2] - oz) * iz, (bounds[5] - oz) * iz
    near, far = max(near, min(a, b)), min(far, max(a, b))
    return far >= max(near, 0.0) and near < limit


@_jit
def _meet(kind, px, py, pz, qx, qy, qz):
    """First t > epsilon at which p + t q enters the unit solid, and the face; t = inf where it does not.

    Faces: box -x +x -y +y -z +z; cylinder 0 the side, 4 and 5 the caps; ellipsoid 0.
    """
    if kind == 0:
        near, far, face = -1e30, 1e30, 0
        for axis in range(3):
            p = px if axis == 0 else (py if axis == 1 else pz)
            q = qx if axis == 0 else (qy if axis == 1 else qz)
            if abs(q) < 1e-12:
                if abs(p) > 1:
                    return np.inf, 0
                continue
            a, b = (-1 - p) / q, (1 - p) / q
            side = 2 * axis
            if a > b:
                a, b = b, a
                side += 1
            if a > near:
                near, face = a, side
            far = min(far, b)
        if near <= far and near > _EPSILON:
            return near, face
        return np.inf, 0
    if kind == 1:
        best, face = np.inf, 0
        a, b, c = qx * qx + qy * qy, px * qx + py * qy, px * px + py * py - 1
        root = b * b - a * c
        if root >= 0 and a > 1e-12:
            t = (-b - math.sqrt(root)) / a
            if t > _EPSILON and abs(pz + t * qz) <= 1:
                best = t
        if abs(qz) > 1e-12:
            t = ((-1 if qz > 0 else 1) - pz) / qz
            x, y = px + t * qx, py + t * qy
            if t > _EPSILON and t < best and x * x + y * y <= 1:
                best, face = t, (4 if qz > 0 else 5)
        return best, face
    a, b, c = (
        qx * qx + qy * qy + qz * qz,
        px * qx + py * qy + pz * qz,
        px * px + py * py + pz * pz - 1,
    )
    root = b * b - a * c
    if root >= 0:
        t = (-b - math.sqrt(root)) / a
        if t > _EPSILON:
            return t, 0
    return np.inf, 0


@_jit
def _intersect(scene, ox, oy, oz, dx, dy, dz, limit, shadow):
    """The nearest solid along a ray: t, index (-1: none), face. With `shadow`, any solid that blocks light will do."""
    tiny = 1e-12
    ix = 1 / (dx if abs(dx) > tiny else tiny)
    iy = 1 / (dy if abs(dy) > tiny else tiny)
    iz = 1 / (dz if abs(dz) > tiny else tiny)
    best, index, face = limit, -1, 0
    for g in range(scene.groups.shape[0]):
        if not _enters(scene.bounds[g], ox, oy, oz, ix, iy, iz, best):
            continue
        for s in range(scene.groups[g, 0], scene.groups[g, 1]):
            if shadow and scene.emission[s] > 0:
                continue
            axes, half = scene.axes[s], scene.half[s]
            rx, ry, rz = ox - scene.centre[s, 0], oy - scene.centre[s, 1], oz - scene.centre[s, 2]
            px = (axes[0, 0] * rx + axes[0, 1] * ry + axes[0, 2] * rz) / half[0]
            py = (axes[1, 0] * rx + axes[1, 1] * ry + axes[1, 2] * rz) / half[1]
            pz = (axes[2, 0] * rx + axes[2, 1] * ry + axes[2, 2] * rz) / half[2]
            qx = (axes[0, 0] * dx + axes[0, 1] * dy + axes[0, 2] * dz) / half[0]
            qy = (axes[1, 0] * dx + axes[1, 1] * dy + axes[1, 2] * dz) / half[1]
            qz = (axes[2, 0] * dx + axes[2, 1] * dy + axes[2, 2] * dz) / half[2]
            t, f = _meet(scene.kind[s], px, py, pz, qx, qy, qz)
            if t < best:
                best, index, face = t, s, f
                if shadow:
                    return best, index, face
    return best, index, face


@_jit
def _chart(scene, s, face, x, y, z):
    """Where on a solid's face a point of the world lies: u, v in [-1, 1], and the face's half extents in metres."""
    axes, half = scene.axes[s], scene.half[s]
    rx, ry, rz = x - scene.centre[s, 0], y - scene.centre[s, 1], z - scene.centre[s, 2]
    px = (axes[0, 0] * rx + axes[0, 1] * ry + axes[0, 2] * rz) / half[0]
    py = (axes[1, 0] * rx + axes[1, 1] * ry + axes[1, 2] * rz) / half[1]
    pz = (axes[2, 0] * rx + axes[2, 1] * ry + axes[2, 2] * rz) / half[2]
    kind = scene.kind[s]
    if kind == 2:
        polar = math.acos(min(1.0, max(-1.0, pz))) / math.pi * 2 - 1
        return math.atan2(py, px) / math.pi, polar, math.pi * max(half[0], half[1]), math.pi / 2 * half[2]
    if kind == 1 and face == 0:
        return math.atan2(py, px) / math.pi, -pz, math.pi * half[0], half[2]
    if face < 2:
        return (py if face == 1 else -py), -pz, half[1], half[2]
    if face < 4:
        return (px if face == 2 else -px), -pz, half[0], half[2]
    return px, -py, half[0], half[1]


@_jit
def _on_face(scene, s, face, u, v):
    """The inverse of `_chart`: the point of the world at u, v in [-1, 1] on a face, and the outward normal there."""
    kind, half, axes = scene.kind[s], scene.half[s], scene.axes[s]
    nx, ny, nz = 0.0, 0.0, 0.0
    if kind == 2:
        polar, turn = (v + 1) / 2 * math.pi, u * math.pi
        px, py, pz = math.sin(polar) * math.cos(turn), math.sin(polar) * math.sin(turn), math.cos(polar)
        nx, ny, nz = px / half[0], py / half[1], pz / half[2]
    elif kind == 1 and face == 0:
        px, py, pz = math.cos(u * math.pi), math.sin(u * math.pi), -v
        nx, ny = px / half[0], py / half[1]
    elif face < 2:
        px = -1.0 if face == 0 else 1.0
        py, pz, nx = (u if face == 1 else -u), -v, px
    elif face < 4:
        py = -1.0 if face == 2 else 1.0
        px, pz, ny = (u if face == 2 else -u), -v, py
    else:
        pz = -1.0 if face == 4 else 1.0
        px, py, nz = u, -v, pz
        if kind == 1:
            # The grid's corners lie outside the disc: pull them onto its rim.
            r = math.sqrt(px * px + py * py)
            if r > 0.98:
                px, py = px * 0.98 / r, py * 0.98 / r
    length = math.sqrt(nx * nx + ny * ny + nz * nz)
    nx, ny, nz = nx / length, ny / length, nz / length
    px, py, pz = px * half[0], py * half[1], pz * half[2]
    return (
        scene.centre[s, 0] + axes[0, 0] * px + axes[1, 0] * py + axes[2, 0] * pz,
        scene.centre[s, 1] + axes[0, 1] * px + axes[1, 1] * py + axes[2, 1] * pz,
        scene.centre[s, 2] + axes[0, 2] * px + axes[1, 2] * py + axes[2, 2] * pz,
        axes[0, 0] * nx + axes[1, 0] * ny + axes[2, 0] * nz,
        axes[0, 1] * nx + axes[1, 1] * ny + axes[2, 1] * nz,
        axes[0, 2] * nx + axes[1, 2] * ny + axes[2, 2] * nz,
    )


@_jit
def _light_at(scene, light, s, face, u, v, out):
    """The baked light at u, v in [-1, 1] of a face, bilinear, into out (3,)."""
    cols, rows = scene.face_cells[s, face, 0], scene.face_cells[s, face, 1]
    x = min(max((u + 1) / 2 * cols - 0.5, 0.0), cols - 1.0)
    y = min(max((v + 1) / 2 * rows - 0.5, 0.0), rows - 1.0)
    j, i = min(int(x), cols - 2), min(int(y), rows - 2)
    fx, fy = x - j, y - i
    at = scene.face_start[s, face] + i * cols + j
    for c in range(3):
        top = light[at, c] * (1 - fx) + light[at + 1, c] * fx
        bottom = light[at + cols, c] * (1 - fx) + light[at + cols + 1, c] * fx
        out[c] = top * (1 - fy) + bottom * fy


@_jit
def _texel(scene, start, side, x, y, out, weight):
    """Add one bilinear, wrapping look-up in a mip level, in linear light, to out (3,)."""
    x, y = x * side - 0.5, y * side - 0.5
    j, i = math.floor(x), math.floor(y)
    fx, fy = x - j, y - i
    for di in range(2):
        for dj in range(2):
            w = weight * (fx if dj else 1 - fx) * (fy if di else 1 - fy)
            # The side is a power of two: & wraps, for negative numbers as well.
            at = start + ((int(i) + di) & (side - 1)) * side + ((int(j) + dj) & (side - 1))
            for c in range(3):
                out[c] += w * scene.linear[scene.texels[at, c]]


@_jit
def _colour(scene, s, u, v, eu, ev, footprint, out):
    """Linear surface colour at u, v of a face, filtered over `footprint` metres (trilinear mip maps, Williams 1983)."""
    texture = scene.texture[s]
    metres, side, start = scene.texture_metres[texture], scene.texture_side[texture], scene.texture_start[texture]
    uv = scene.uv[s]
    if metres > 0:
        # The grain of a repeating texture runs along the longer edge; of equal ones, rounding does not choose.
        x, y = (u * eu, v * ev) if eu >= 0.999 * ev else (v * ev, u * eu)
        x, y = uv[0] + x / metres * uv[2], uv[1] + y / metres * uv[3]
        density = side / metres * max(uv[2], uv[3])
    else:
        x, y = uv[0] + (u + 1) / 2 * uv[2], uv[1] + (v + 1) / 2 * uv[3]
        density = side * max(uv[2] / (2 * eu), uv[3] / (2 * ev))
    level = math.log2(max(footprint * density, 1.0))
    finest = int(level)
    blend = level - finest
    out[:] = 0
    for step in range(2):
        weight = blend if step else 1 - blend
        if weight == 0:
            continue
        at, size = start, side
        for _ in range(finest + step):
            if size == 1:
                break
            at += size * size
            size //= 2
        _texel(scene, at, size, x, y, out, weight)
    for c in range(3):
        out[c] *= scene.tint[s, c]


@_jit
def _direction(pose, inverse, x, y):
    """World direction of pixel position x, y with unit z in the camera's frame: t along it is depth."""
    a = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
    b = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
    return (
        pose[0, 0] * a + pose[0, 1] * b + pose[0, 2],
        pose[1, 0] * a + pose[1, 1] * b + pose[1, 2],
        pose[2, 0] * a + pose[2, 1] * b + pose[2, 2],
    )


@_jit
def _cast(scene, pose, inverse, points, depth):
    ox, oy, oz = pose[0, 3], pose[1, 3], pose[2, 3]
    for i in range(depth.shape[0]):
        for j in range(depth.shape[1]):
            dx, dy, dz = _direction(pose, inverse, j + 0.5, i + 0.5)
            t, s, _ = _intersect(scene, ox, oy, oz, dx, dy, dz, 1e9, False)
            if s >= 0:
                depth[i, j] = t
                points[i, j, 0], points[i, j, 1], points[i, j, 2] = ox + t * dx, oy + t * dy, oz + t * dz


@_jit
def _shade(scene, light, pose, inverse, pixel, supersample, radiance):
    ox, oy, oz = pose[0, 3], pose[1, 3], pose[2, 3]
    lit, colour = np.zeros(3), np.zeros(3)
    share, middle = 1.0 / supersample**2, (supersample - 1) / 2
    for i in range(radiance.shape[0]):
        for j in range(radiance.shape[1]):
            for k in range(supersample * supersample):
                # A sheared grid: edges along pixel rows and columns meet all samples at different places.
                a, b = k % supersample - middle, k // supersample - middle
                x = j + 0.5 + (a + b / supersample) / supersample
                y = i + 0.5 + (b - a / supersample) / supersample
                dx, dy, dz = _direction(pose, inverse, x, y)
                t, s, face = _intersect(scene, ox, oy, oz, dx, dy, dz, 1e9, False)
                if s < 0:
                    continue
                u, v, eu, ev = _chart(scene, s, face, ox + t * dx, oy + t * dy, oz + t * dz)
                _, _, _, nx, ny, nz = _on_face(scene, s, face, u, v)
                length = math.sqrt(dx * dx + dy * dy + dz * dz)
                slant = max(abs(dx * nx + dy * ny + dz * nz) / length, 0.05)
                # Between the short and the long axis of the slanted footprint: neither alias nor blur much.
                footprint = pixel * t / supersample / math.sqrt(slant)
                _colour(scene, s, u, v, eu, ev, footprint, colour)
                _light_at(scene, light, s, face, u, v, lit)
                for c in range(3):
                    radiance[i, j, c] += share * colour[c] * (lit[c] + scene.emission[s])


@_jit
def _sample(k):
    """The k-th point of the R2 low-discrepancy sequence in the unit square (Roberts 2018)."""
    a, b = 0.5 + 0.7548776662466927 * k, 0.5 + 0.5698402909980532 * k
    return a - math.floor(a), b - math.floor(b)


@_jit
def _bake_direct(scene, lamps, samples, out):
    """Light of the lamps on each cell: the mean over points of the cell and of the lamp, with shadows."""
    for s in range(scene.kind.shape[0]):
        for face in range(6):
            if (scene.kind[s] == 2 and face > 0) or (scene.kind[s] == 1 and 0 < face < 4):
                continue
            cols, rows = scene.face_cells[s, face, 0], scene.face_cells[s, face, 1]
            for cell in range(cols * rows):
                at = scene.face_start[s, face] + cell
                for k in range(samples):
                    a, b = _sample(k)
                    u, v = (cell % cols + b) / cols * 2 - 1, (cell // cols + a) / rows * 2 - 1
                    x, y, z, nx, ny, nz = _on_face(scene, s, face, u, v)
                    x, y, z = x + nx * _EPSILON * 5, y + ny * _EPSILON * 5, z + nz * _EPSILON * 5
                    for lamp in lamps:
                        dx = lamp[0] + (2 * a - 1) * lamp[3] + (2 * b - 1) * lamp[6] - x
                        dy = lamp[1] + (2 * a - 1) * lamp[4] + (2 * b - 1) * lamp[7] - y
                        dz = lamp[2] + (2 * a - 1) * lamp[5] + (2 * b - 1) * lamp[8] - z
                        square = dx * dx + dy * dy + dz * dz
                        length = math.sqrt(square)
                        facing = (dx * nx + dy * ny + dz * nz) / length
                        if facing <= 0:
                            continue
                        if lamp[9] != 0 or lamp[10] != 0 or lamp[11] != 0:
                            facing *= max(-(dx * lamp[9] + dy * lamp[10] + dz * lamp[11]) / length, 0.0)
                        if facing <= 0:
                            continue
                        _, blocker, _ = _intersect(scene, x, y, z, dx, dy, dz, 0.999, True)
                        if blocker < 0:
                            # Close to a lamp 1 / r^2 of a point would blow up; a lamp has a size.
                            for c in range(3):
                                out[at, c] += lamp[12 + c] * facing / max(square, 0.05) / samples


@_jit
def _bake_bounce(scene, light, samples, out):
    """Add what each cell receives from the surfaces it sees (cosine-distributed rays), lit as `light` says."""
    lit = np.zeros(3)
    for s in range(scene.kind.shape[0]):
        for face in range(6):
            if (scene.kind[s] == 2 and face > 0) or (scene.kind[s] == 1 and 0 < face < 4):
                continue
            cols, rows = scene.face_cells[s, face, 0], scene.face_cells[s, face, 1]
            for cell in range(cols * rows):
                at = scene.face_start[s, face] + cell
                for k in range(samples):
                    a, b = _sample(k)
                    u, v = (cell % cols + b) / cols * 2 - 1, (cell // cols + a) / rows * 2 - 1
                    x, y, z, nx, ny, nz = _on_face(scene, s, face, u, v)
                    x, y, z = x + nx * _EPSILON * 5, y + ny * _EPSILON * 5, z + nz * _EPSILON * 5
                    # A point of the unit sphere about the tip of the normal: a cosine distribution.
                    turn, up = 2 * math.pi * a, 2 * b - 1
                    ring = math.sqrt(1 - up * up)
                    dx, dy, dz = nx + ring * math.cos(turn), ny + ring * math.sin(turn), nz + up
                    t, hit, side = _intersect(scene, x, y, z, dx, dy, dz, 1e9, False)
                    if hit < 0 or scene.emission[hit] > 0:
                        continue
                    hu, hv, _, _ = _chart(scene, hit, side, x + t * dx, y + t * dy, z + t * dz)
                    _light_at(scene, light, hit, side, hu, hv, lit)
                    for c in range(3):
                        out[at, c] += scene.albedo[hit, c] * lit[c] / samples
