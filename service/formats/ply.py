"""PLY: the point cloud, and the Gaussians as INRIA's 3D Gaussian Splatting stores them."""

from __future__ import annotations

import numpy as np

from model.types import SH_C0, Float32, PointCloud, Splats

DEGREE = 3
"""Of spherical harmonics, at most: what INRIA's format and its readers have."""
MOST_OPACITY = 254 / 255
"""Opacity is kept this far from 1, and as far from 0, where its logit is infinite: the step of every 8-bit format."""

TYPES = {"<f4": "float", "u1": "uchar"}
"""numpy's types as PLY calls them."""


def encode_cloud(cloud: PointCloud) -> bytearray:
    """scene.ply: binary little-endian points with colour, confidence and the index of the view they come from."""
    properties = (("x y z", "<f4"), ("red green blue", "u1"), ("confidence", "<f4"), ("view", "u1"))
    comments = (
        "Scenelift point cloud",
        "axes: OpenCV, x right, y down, z forward; the reference camera at the origin; arbitrary scale",
        "colour: sRGB; confidence: larger is surer; view: index of the photo, from 0",
    )
    content, vertices = _allocate(properties, comments, len(cloud))
    vertices["x y z"] = cloud.points
    vertices["red green blue"] = cloud.colours
    vertices["confidence"] = cloud.confidence
    vertices["view"] = cloud.view
    return content


def encode_gaussians(splats: Splats) -> bytearray:
    """gaussians.ply: INRIA's 17 floats of degree 0: log scale, logit opacity, quaternion w x y z; OpenCV axes.

    And where the network predicts harmonics, their further coefficients, all of red first, up to DEGREE.
    """
    further = 0 if splats.harmonics is None else min(splats.harmonics.shape[2], (DEGREE + 1) ** 2) - 1
    rest = " ".join(f"f_rest_{index}" for index in range(3 * further))
    properties = (
        ("x y z", "<f4"),
        ("nx ny nz", "<f4"),
        ("f_dc_0 f_dc_1 f_dc_2", "<f4"),
        *(((rest, "<f4"),) if further else ()),
        ("opacity", "<f4"),
        ("scale_0 scale_1 scale_2", "<f4"),
        ("rot_0 rot_1 rot_2 rot_3", "<f4"),
    )
    content, vertices = _allocate(properties, ("axes: OpenCV, x right, y down, z forward",), len(splats))
    opacity = np.clip(splats.opacity, 1 - MOST_OPACITY, MOST_OPACITY)
    vertices["x y z"] = splats.centres
    vertices["f_dc_0 f_dc_1 f_dc_2"] = harmonic()[splats.colours]
    if splats.harmonics is not None:
        vertices["f_dc_0 f_dc_1 f_dc_2"] = splats.harmonics[:, :, 0]
    if splats.harmonics is not None and further:
        vertices[rest] = splats.harmonics[:, :, 1 : 1 + further].reshape(len(splats), -1)
    vertices["opacity"] = np.log(opacity / (1 - opacity))
    vertices["scale_0 scale_1 scale_2"] = np.log(splats.scale)
    vertices["rot_0 rot_1 rot_2 rot_3"] = splats.rotation
    return content


def harmonic() -> Float32:
    """(256,) coefficient of the constant spherical harmonic for each value of an 8-bit colour."""
    return ((np.arange(256) / 255 - 0.5) / SH_C0).astype(np.float32)


def _allocate(
    properties: tuple[tuple[str, str], ...], comments: tuple[str, ...], count: int
) -> tuple[bytearray, np.ndarray]:
    """A whole file with its header written, and its `count` vertices, zeros, as a structured array in its memory.

    `properties` are groups of equal type; a group's names, apart by spaces, name the array's field for all of them.
    """
    groups = [(names.split(), kind) for names, kind in properties]
    vertex = np.dtype([(" ".join(names), kind, (len(names),) if len(names) > 1 else ()) for names, kind in groups])
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {comment}" for comment in comments]
    lines += [f"element vertex {count}"]
    lines += [f"property {TYPES[kind]} {name}" for names, kind in groups for name in names]
    header = "\n".join([*lines, "end_header", ""]).encode("ascii")
    content = bytearray(len(header) + count * vertex.itemsize)
    content[: len(header)] = header
    return content, np.frombuffer(content, vertex, count, len(header))
