"""The rooms of `train.render` on a torch device: many views of one room at once, CPU or CUDA, in bounded memory.

The picture is cut into tiles of 8 x 8 pixels. A solid can only be seen in the tiles whose four side planes its box does
not lie behind; for a pinhole camera those planes are shared by whole rows and columns of tiles, so the test costs
solids x (rows + columns). Each (tile, solid) that is left is intersected for all rays of the tile, one kind of solid
after the other, and the nearest hit of each ray is kept. What follows is a look-up: the same textures (trilinear mip
maps) and the same baked light as `train.render`, which is this caster's reference, plus what that one leaves out: lamps
and windows mirrored in glossy surfaces.

Frames as in `train.render`: z up, metres, camera_to_world with OpenCV axes, pixel centres at + 0.5.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from train.render import BOX, CYLINDER, ELLIPSOID, Room

TILE = 8
_EPSILON = 1e-4
_NOTHING = (1 << 63) - 1
"""A hit is one integer, the bits of its (positive) distance above its solid's index: the smallest is the nearest."""
BUDGET = {"cpu": 1 << 17, "cuda": 1 << 25}
"""Numbers in one temporary of the intersection: what lies in a core's cache, or fills a GPU."""
BRIGHTEST = 1.5
"""Of what is mirrored, 1 being white."""


@dataclass(frozen=True)
class Scenery:
    """A room as tensors on one device. S solids, L cells of light, T texels, E lamps."""

    kind: Tensor  # (S,) int64
    centre: Tensor  # (S, 3) float64
    axes: Tensor  # (S, 3, 3) float64, rows are the solid's axes
    half: Tensor  # (S, 3) float64
    texture: Tensor  # (S,) int64
    uv: Tensor  # (S, 4)
    tint: Tensor  # (S, 3)
    emission: Tensor  # (S,)
    gloss: Tensor  # (S, 2) share mirrored head on, roughness in radians
    texels: Tensor  # (T, 3) linear
    texture_start: Tensor  # (textures,) int64
    texture_side: Tensor  # (textures,) int64
    texture_metres: Tensor  # (textures,)
    face_start: Tensor  # (S, 6) int64
    face_cells: Tensor  # (S, 6, 2) int64
    light: Tensor  # (L, 3)
    lamps: Tensor  # (E, 15) centre, u, v, normal, colour: see `train.render.Light`
    exposure: float

    @property
    def device(self) -> torch.device:
        return self.kind.device


def upload(room: Room, device: torch.device | str) -> Scenery:
    """The room's arrays as tensors on a device."""
    scene = room.scene

    def whole(array: object) -> Tensor:
        return torch.as_tensor(array, dtype=torch.int64, device=device)

    def real(array: object, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.as_tensor(array, dtype=dtype, device=device)

    texels = torch.as_tensor(scene.texels, device=device)
    return Scenery(
        kind=whole(scene.kind),
        centre=real(scene.centre, torch.float64),
        axes=real(scene.axes, torch.float64),
        half=real(scene.half, torch.float64),
        texture=whole(scene.texture),
        uv=real(scene.uv),
        tint=real(scene.tint),
        emission=real(scene.emission),
        gloss=real(room.gloss),
        texels=real(scene.linear)[texels.int()],
        texture_start=whole(scene.texture_start),
        texture_side=whole(scene.texture_side),
        texture_metres=real(scene.texture_metres),
        face_start=whole(scene.face_start),
        face_cells=whole(scene.face_cells),
        light=real(room.light),
        lamps=real(room.lamps),
        exposure=room.exposure,
    )


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def render(
    scenery: Scenery,
    camera_to_world: Tensor,  # (V, 4, 4)
    K: Tensor,  # (V, 3, 3) pixels, no skew
    size: tuple[int, int],  # width, height
    *,
    supersample: int = 2,
    gloss: bool = True,
) -> tuple[Tensor, Tensor]:
    """Light (V, H, W, 3) float32, linear and exposed, and depth (V, H, W) float32 along z, metres, 0: nothing is hit.

    Depth is that of pixel centres. `supersample`^2 rays a pixel make its colour, placed as `train.render.render` does.
    Without `gloss` the light is `train.render`'s. Runs in full precision whatever autocast or TF32 say.
    """
    width, height = size
    device = scenery.device
    pose = camera_to_world.to(device, torch.float64)
    inverse = torch.linalg.inv(K.to(device, torch.float64))
    offsets = _ray_offsets(supersample, device)
    across, down = math.ceil(width / TILE), math.ceil(height / TILE)
    light = torch.zeros(len(pose), down * TILE, across * TILE, 3, device=device)
    depth = torch.zeros(len(pose), down * TILE, across * TILE, device=device)
    rays = offsets.shape[1]
    budget = BUDGET[device.type]
    at_once = max(1, budget * 8 // (down * across * rays))
    for first in range(0, len(pose), at_once):
        part = slice(first, first + at_once)
        views = len(pose[part])
        hits = _nearest(scenery, pose[part], inverse[part], (down, across), offsets)
        tiled = hits.view(views, down, across, TILE, TILE, -1)
        z = (tiled[..., 0] >> 32).to(torch.int32).view(torch.float32)
        z = torch.where(tiled[..., 0] == _NOTHING, 0.0, z)
        depth[part] = z.permute(0, 1, 3, 2, 4).reshape(views, down * TILE, across * TILE)
        samples = 1 if supersample == 1 else rays // TILE**2 - 1
        colour = hits.new_empty((views, down * across, TILE**2, 3), dtype=torch.float32)
        for start, stop in _spans(down * across, max(1, budget // (4 * views * TILE**2 * samples))):
            shown = hits[:, start:stop].view(views, stop - start, TILE**2, -1)[..., -samples:]
            place = offsets.view(2, TILE**2, -1)[:, :, -samples:]
            corner = torch.arange(start, stop, device=device)
            corner = torch.stack([corner % across, corner // across]) * TILE
            pixel = corner[:, :, None, None] + place[:, None]
            bright = _shade(scenery, pose[part], inverse[part], pixel, shown, supersample, gloss)
            colour[:, start:stop] = bright.mean(-2)
        colour = colour.view(views, down, across, TILE, TILE, 3).permute(0, 1, 3, 2, 4, 5)
        light[part] = colour.reshape(views, down * TILE, across * TILE, 3)
    return light[:, :height, :width], depth[:, :height, :width]


def tone(light: Tensor) -> Tensor:
    """Linear light (...) to sRGB 0 to 1, with the soft shoulder of `train.render`."""
    knee = 0.6
    shoulder = knee + (1 - knee) * -torch.expm1(-(light.clamp(min=knee) - knee) / (1 - knee))
    x = torch.where(light < knee, light, shoulder)
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp(min=1e-6) ** (1 / 2.4) - 0.055)


def _ray_offsets(supersample: int, device: torch.device) -> Tensor:
    """(2, rays) where in a tile its rays pass, pixels: of each pixel the centre, then the samples of its colour."""
    k = torch.arange(supersample**2, dtype=torch.float32)
    a, b = k % supersample - (supersample - 1) / 2, k // supersample - (supersample - 1) / 2
    sheared = torch.stack([a + b / supersample, b - a / supersample]) / supersample
    within = 0.5 + (sheared if supersample == 1 else torch.cat([torch.zeros(2, 1), sheared], 1))
    pixel = torch.stack(torch.meshgrid(torch.arange(TILE), torch.arange(TILE), indexing="xy"))
    return (pixel[..., None] + within[:, None, None]).reshape(2, -1).to(device)


# ---------------------------------------------------------------- what is hit


def _nearest(scenery: Scenery, pose: Tensor, inverse: Tensor, tiles: tuple[int, int], offsets: Tensor) -> Tensor:
    """(V, tiles, rays) int64: the nearest hit of each ray, see _NOTHING."""
    _hush_beta(pose.device.type)
    down, across = tiles
    rays = offsets.shape[1]
    hits = torch.full((len(pose) * down * across, rays), _NOTHING, device=pose.device)
    # Origin and direction in each solid's own frame, where it is the unit solid: p and Q (x, y, 1).
    into = scenery.axes / scenery.half[:, :, None]
    p = torch.einsum("sij,vsj->vsi", into, pose[:, None, :3, 3] - scenery.centre)
    Q = torch.einsum("sij,vjk,vkl->vsil", into, pose[:, :3, :3], inverse)
    seen = _seen_in(scenery, pose, inverse, tiles)
    x, y = offsets
    for kind, meet in ((BOX, _meet_box), (CYLINDER, _meet_cylinder), (ELLIPSOID, _meet_ellipsoid)):
        solids = torch.nonzero(scenery.kind == kind)[:, 0]
        view, row, column, solid = torch.nonzero(seen[:, :, :, solids], as_tuple=True)
        solid = solids[solid]
        for start, stop in _spans(len(view), max(1, BUDGET[pose.device.type] // (3 * rays))):
            v, s, i, j = (index[start:stop] for index in (view, solid, row, column))
            basis = Q[v, s]
            corner = basis[:, :, 2] + TILE * (basis[:, :, 0] * j[:, None] + basis[:, :, 1] * i[:, None])
            step = basis.float()
            q = torch.addcmul(corner.float()[:, :, None], step[:, :, :1], x)
            q.addcmul_(step[:, :, 1:2], y)
            t = meet(p[v, s].float()[:, :, None], q)
            key = (t.view(torch.int32).to(torch.int64) << 32) | s[:, None]
            key.masked_fill_(t.isinf(), _NOTHING)
            hits.index_reduce_(0, (v * down + i) * across + j, key, "amin")
    return hits.view(len(pose), down * across, rays)


def _seen_in(scenery: Scenery, pose: Tensor, inverse: Tensor, tiles: tuple[int, int]) -> Tensor:
    """(V, rows, columns, S) bool: the solids whose box reaches into a tile's pyramid."""
    turn = pose[:, :3, :3].transpose(1, 2)
    centre = torch.einsum("vij,vsj->vsi", turn, scenery.centre - pose[:, None, :3, 3])
    edges = torch.einsum("vij,skj->vski", turn, scenery.axes * scenery.half[:, :, None])
    inside = []
    for axis, count in ((1, tiles[0]), (0, tiles[1])):
        border = torch.arange(count + 1, device=pose.device, dtype=torch.float64) * TILE
        slope = inverse[:, axis, axis, None] * border + inverse[:, axis, 2, None]  # (V, count + 1)
        slope = slope[:, None]
        middle = centre[..., axis, None] - slope * centre[..., 2, None]  # (V, S, count + 1)
        reach = (edges[..., axis, None] - slope[:, :, None] * edges[..., 2, None]).abs().sum(2)
        inside.append((middle + reach >= 0)[..., :-1] & (reach - middle >= 0)[..., 1:])
    rows, columns = (mask.transpose(1, 2) for mask in inside)
    return rows[:, :, None] & columns[:, None]


def _meet_box(p: Tensor, q: Tensor) -> Tensor:
    """(P, R) first t > epsilon at which p (P, 3, 1) + t q (P, 3, R) enters [-1, 1]^3; inf where it does not."""
    q = (q + 1e-20).reciprocal_()
    middle, reach = -p * q, q.abs()
    enter, leave = middle - reach, middle.add_(reach)
    near = torch.maximum(torch.maximum(enter[:, 0], enter[:, 1]), enter[:, 2])
    far = torch.minimum(torch.minimum(leave[:, 0], leave[:, 1]), leave[:, 2])
    return near.masked_fill_((near > far).logical_or_(near < _EPSILON), torch.inf)


def _meet_cylinder(p: Tensor, q: Tensor) -> Tensor:
    """The same for the cylinder of radius 1 about z, |z| <= 1."""
    (px, py, pz), (qx, qy, qz) = p.unbind(1), q.unbind(1)
    a = qx * qx + qy * qy + 1e-20
    closest = -(px * qx + py * qy) / a
    # From the point closest to the axis: b^2 - a c would lose all digits of a thin leg far away.
    wx, wy = px + closest * qx, py + closest * qy
    side = closest - ((1 - wx * wx - wy * wy) / a).sqrt()
    side = torch.where((side > _EPSILON) & ((pz + side * qz).abs() <= 1), side, torch.inf)
    cap = (-torch.sign(qz) - pz) / (qz + 1e-20)
    x, y = px + cap * qx, py + cap * qy
    return torch.minimum(side, torch.where((cap > _EPSILON) & (x * x + y * y <= 1), cap, torch.inf))


def _meet_ellipsoid(p: Tensor, q: Tensor) -> Tensor:
    """The same for the unit sphere."""
    a = (q * q).sum(1)
    closest = -(p * q).sum(1) / a
    w = torch.addcmul(p, closest[:, None], q)
    t = closest - ((1 - (w * w).sum(1)) / a).sqrt()
    return torch.where(t > _EPSILON, t, torch.inf)


@functools.cache
def _hush_beta(device: str) -> None:
    """torch warns once a process and kind of device that index_reduce may change: have it do so here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zero = torch.zeros(1, device=device)
        zero.index_reduce_(0, zero.long(), zero.clone(), "amin")


def _spans(count: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, count)) for start in range(0, count, step))


# ---------------------------------------------------------------- what it looks like


def _shade(
    scenery: Scenery,
    pose: Tensor,  # (V, 4, 4)
    inverse: Tensor,  # (V, 3, 3)
    pixel: Tensor,  # (2, tiles, pixels, samples)
    hits: Tensor,  # (V, tiles, pixels, samples)
    supersample: int,
    gloss: bool,
) -> Tensor:
    """(V, tiles, pixels, samples, 3) exposed light that comes along each ray."""
    ray = (pose[:, :3, :3] @ inverse).float()[:, None]
    x, y = pixel.flatten(1)[..., None]
    direction = torch.addcmul(torch.addcmul(ray[..., 2], ray[..., 0], x), ray[..., 1], y)
    hit = hits.flatten(1)
    nothing = hit == _NOTHING
    t = (hit >> 32).to(torch.int32).view(torch.float32).masked_fill(nothing, 1.0)
    s = (hit & 0xFFFFFFFF).masked_fill_(nothing, 0)
    point = torch.addcmul(pose[:, None, :3, 3].float(), t[..., None], direction)
    point, direction, s = point.reshape(-1, 3), direction.reshape(-1, 3), s.reshape(-1)
    half, axes = scenery.half.float()[s], scenery.axes.float()[s]
    local = ((point - scenery.centre.float()[s])[:, None] * axes).sum(-1) / half
    face, u, v, eu, ev, normal = _chart(scenery.kind[s], local, half)
    normal = torch.nn.functional.normalize((normal[..., None] * axes).sum(1), dim=-1)
    length = direction.norm(dim=-1)
    slant = ((direction * normal).sum(-1).abs() / length).clamp(min=0.05)
    pixel_angle = inverse[:, 0, 0].float().repeat_interleave(hit.shape[1])
    footprint = pixel_angle * t.reshape(-1) / supersample / slant.sqrt()
    lit = _light_at(scenery, s, face, u, v)
    out = _colour(scenery, s, u, v, eu, ev, footprint) * (lit + scenery.emission[s, None])
    if gloss:
        out += _mirrored(scenery, s, point, direction / length[:, None], normal, slant, lit)
    out = (out * scenery.exposure).view(*nothing.shape, 3).masked_fill_(nothing[..., None], 0)
    return out.view(*hits.shape, 3)


def _chart(kind: Tensor, local: Tensor, half: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of points local (R, 3) on unit solids: face, u and v in [-1, 1], the face's half extents in metres, and the
    outward normal (R, 3) in the solid's frame, not of unit length. As `train.render` lays faces out."""
    x, y, z = local.unbind(-1)
    hx, hy, hz = half.unbind(-1)
    is_box, is_ball = kind == BOX, kind == ELLIPSOID
    size = local.abs()
    axis = size.argmax(-1)
    axis = torch.where(is_box, axis, torch.where(size[:, 2] > torch.hypot(x, y), 2, 3))
    axis = axis.masked_fill(is_ball, 3)  # 3: curved
    sign = torch.where(local.gather(1, axis.clamp(max=2)[:, None])[:, 0] > 0, 1.0, -1.0)
    face = (2 * axis + (sign > 0)).masked_fill(axis == 3, 0)
    turn = torch.atan2(y, x) / math.pi
    polar = torch.acos(z.clamp(-1, 1)) / math.pi * 2 - 1
    round_v, round_ev = torch.where(is_ball, polar, -z), torch.where(is_ball, math.pi / 2 * hz, hz)
    round_eu = math.pi * torch.where(is_ball, torch.maximum(hx, hy), hx)
    choices = (
        torch.stack([sign * y, -sign * x, x, turn], -1),
        torch.stack([-z, -z, -y, round_v], -1),
        torch.stack([hy, hx, hx, round_eu], -1),
        torch.stack([hz, hz, hy, round_ev], -1),
    )
    u, v, eu, ev = (choice.gather(1, axis[:, None])[:, 0] for choice in choices)
    flat = torch.nn.functional.one_hot(axis, 4)[:, :3] * sign[:, None] / half
    curved = local / half * torch.stack([torch.ones_like(x), torch.ones_like(x), is_ball.float()], -1)
    return face, u, v, eu, ev, torch.where((axis == 3)[:, None], curved, flat)


def _light_at(scenery: Scenery, s: Tensor, face: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(R, 3) the baked light, bilinear."""
    columns, rows = scenery.face_cells[s, face].unbind(-1)
    x = torch.minimum(((u + 1) / 2 * columns - 0.5).clamp(min=0), columns - 1.0)
    y = torch.minimum(((v + 1) / 2 * rows - 0.5).clamp(min=0), rows - 1.0)
    j, i = torch.minimum(x.long(), columns - 2), torch.minimum(y.long(), rows - 2)
    fx, fy = (x - j)[:, None], (y - i)[:, None]
    at = scenery.face_start[s, face] + i * columns + j
    light = scenery.light
    top = torch.lerp(light[at], light[at + 1], fx)
    return torch.lerp(top, torch.lerp(light[at + columns], light[at + columns + 1], fx), fy)


def _colour(scenery: Scenery, s: Tensor, u: Tensor, v: Tensor, eu: Tensor, ev: Tensor, footprint: Tensor) -> Tensor:
    """(R, 3) linear surface colour, filtered over `footprint` metres (trilinear mip maps, Williams 1983)."""
    texture = scenery.texture[s]
    metres, side = scenery.texture_metres[texture], scenery.texture_side[texture]
    u0, v0, su, sv = scenery.uv[s].unbind(-1)
    repeats = metres > 0
    # The grain of a repeating texture runs along the longer edge.
    along = eu >= 0.999 * ev
    x = torch.where(repeats, torch.where(along, u * eu, v * ev) / metres, (u + 1) / 2)
    y = torch.where(repeats, torch.where(along, v * ev, u * eu) / metres, (v + 1) / 2)
    x, y = u0 + x * su, v0 + y * sv
    fitted = torch.maximum(su / (2 * eu), sv / (2 * ev))
    density = side * torch.where(repeats, torch.maximum(su, sv) / metres, fitted)
    level = torch.log2((footprint * density).clamp(min=1))
    coarsest = torch.log2(side.float())
    finest = torch.minimum(level.floor(), coarsest)
    blend = (level - finest).clamp(max=1)[:, None]
    start = scenery.texture_start[texture]
    mip = [_texel(scenery, start, side, torch.minimum(finest + k, coarsest).long(), x, y) for k in (0, 1)]
    return torch.lerp(mip[0], mip[1], blend) * scenery.tint[s]


def _texel(scenery: Scenery, start: Tensor, side: Tensor, level: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(R, 3) bilinear, wrapping look-up in one mip level of a texture that starts at texel `start`."""
    size = side >> level
    # The levels before it hold side^2 + (side / 2)^2 + ... texels.
    at = start + (side * side - size * size) * 4 // 3
    x, y = x * size - 0.5, y * size - 0.5
    j, i = x.floor(), y.floor()
    fx, fy = (x - j)[:, None], (y - i)[:, None]
    last = size - 1
    j, i = j.long(), i.long()
    left, right = j & last, (j + 1) & last
    top, bottom = at + (i & last) * size, at + ((i + 1) & last) * size
    texels = scenery.texels
    above = torch.lerp(texels[top + left], texels[top + right], fx)
    return torch.lerp(above, torch.lerp(texels[bottom + left], texels[bottom + right], fx), fy)


def _mirrored(
    scenery: Scenery, s: Tensor, point: Tensor, direction: Tensor, normal: Tensor, slant: Tensor, lit: Tensor
) -> Tensor:
    """(R, 3) light of lamps and windows mirrored towards the camera.

    Of each lamp the point nearest to the mirrored ray stands for the whole (Karis, Real Shading in Unreal Engine 4,
    2013); a lobe as wide as the surface is rough, and Schlick's Fresnel term. Nothing is traced: where little light
    arrives at all, the way to the lamps is taken to be blocked.
    """
    share, rough = scenery.gloss[s].unbind(-1)
    out = torch.zeros_like(point)
    shiny = torch.nonzero(share > 0)[:, 0]
    if not len(shiny) or not len(scenery.lamps):
        return out
    share, rough, point = share[shiny], rough[shiny], point[shiny]
    ray, normal, slant = direction[shiny], normal[shiny], slant[shiny]
    mirror = ray - 2 * (ray * normal).sum(-1, keepdim=True) * normal
    total = torch.zeros_like(point)
    for lamp in scenery.lamps:
        centre, hu, hv, facing, colour = lamp.split(3)
        to = centre - point
        flat = bool(facing.any())
        along = (to @ facing) / (mirror @ facing).clamp(max=-1e-3) if flat else (to * mirror).sum(-1)
        miss = mirror * along.clamp(min=0)[:, None] - to  # from the lamp's centre to the mirrored ray
        if flat:
            miss = miss - (miss @ facing)[:, None] * facing
            inside = sum(((miss @ edge) / edge.square().sum()).clamp(-1, 1)[:, None] * edge for edge in (hu, hv))
        else:
            inside = miss * (hu.norm() / miss.norm(dim=-1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
        nearest = to + inside
        distance = nearest.norm(dim=-1).clamp(min=0.1)
        towards = nearest / distance[:, None]
        angle = 1 - (towards * mirror).sum(-1)
        area = 4 * hu.norm() * hv.norm()
        # A lobe wider than the lamp takes only the lamp's part of what it gathers.
        part = (area / (distance.square() * math.pi * rough.square())).clamp(max=1)
        strength = part * torch.exp(-2 * angle / rough.square())
        strength *= (towards * normal).sum(-1) > 0
        if flat:
            strength *= (towards @ facing) < 0
        # As bright as it is seen itself: pictures do not show how much brighter a window is than white.
        radiance = colour * (math.pi / area)
        radiance = radiance * (BRIGHTEST / scenery.exposure / radiance.max().clamp(min=1e-9)).clamp(max=1)
        total += strength[:, None] * radiance
    fresnel = share + (1 - share) * (1 - slant) ** 5 * (1 - rough / 0.6).clamp(min=0)
    bright = (lit[shiny].mean(-1) * scenery.exposure / 0.3).clamp(max=1) ** 2
    out[shiny] = total * (fresnel * bright)[:, None]
    return out
