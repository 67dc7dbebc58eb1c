"""Depth where stereo found none: textureless walls, shadows, reflections. A guess, and marked as one.

Weighted least squares on inverse depth (Farbman et al., SIGGRAPH 2008): neighbours of one colour share one depth, known
pixels stay. Only depths that stereo is sure of and sparse points count: rejected ones, even at little weight, spoil it.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve

from model.types import Float32, Float64, UInt8

COLOUR_SCALE = 8.0
"""Grey levels between neighbours that cut their bond to 1 / e."""
EDGE_STEP = 0.04
"""A filled pixel whose depth differs by more than this share from a neighbour's hangs between two surfaces."""
FILLED_CONFIDENCE = 0.3
REACH = 0.25
"""Share of the long side beyond which nothing is filled."""


def fill(rgb: UInt8, inverse: Float32, sure: np.ndarray, pixels: Float64, sparse_inverse: Float64) -> Float32:
    """Inverse depth everywhere, (h, w) float32.

    `rgb` (h, w, 3), `inverse` (h, w) believed where `sure` (h, w) bool; sparse points at `pixels` (p, 2), grid pixels,
    corner origin, with `sparse_inverse` (p,). Needs one known pixel at least.
    """
    h, w = sure.shape
    half = (max(1, (w + 1) // 2), max(1, (h + 1) // 2))
    weight = cv2.resize(sure.astype(np.float32), half, interpolation=cv2.INTER_AREA)
    total = cv2.resize(np.where(sure, inverse, 0).astype(np.float32), half, interpolation=cv2.INTER_AREA)
    x = np.clip((pixels[:, 0] * half[0] / w).astype(int), 0, half[0] - 1)
    y = np.clip((pixels[:, 1] * half[1] / h).astype(int), 0, half[1] - 1)
    np.add.at(weight, (y, x), 1.0)
    np.add.at(total, (y, x), sparse_inverse)
    known = np.where(weight > 0, total / np.maximum(weight, 1e-9), 0.0)
    guide = cv2.resize(rgb, half, interpolation=cv2.INTER_AREA).astype(np.float32)
    solved = _smooth(guide, known, np.minimum(weight, 1.0))
    whole = cv2.resize(solved.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    return np.where(sure, inverse, np.maximum(whole, 1e-6 * float(known.max()))).astype(np.float32)


def _smooth(guide: Float32, known: Float32, weight: Float32) -> Float64:
    h, w = known.shape
    index = np.arange(h * w).reshape(h, w)
    rows, columns, bonds = [], [], []
    for a, b, step in (
        (index[:, :-1], index[:, 1:], guide[:, :-1] - guide[:, 1:]),
        (index[:-1], index[1:], guide[:-1] - guide[1:]),
    ):
        bond = np.exp(-np.abs(step).max(axis=2) / COLOUR_SCALE) + 1e-4
        rows.append(a.ravel())
        columns.append(b.ravel())
        bonds.append(bond.ravel())
    i, j, bond = np.concatenate(rows), np.concatenate(columns), np.concatenate(bonds).astype(np.float64)
    adjacency = sparse.coo_array((bond, (i, j)), shape=(h * w, h * w))
    adjacency = adjacency + adjacency.T
    laplacian = sparse.diags_array(np.asarray(adjacency.sum(axis=1)).ravel()) - adjacency
    data = weight.ravel().astype(np.float64)
    return spsolve((laplacian + sparse.diags_array(data)).tocsc(), data * known.ravel()).reshape(h, w)


def trust(
    rgb: UInt8, inverse: Float32, sure: np.ndarray, score: Float32, agreeing: np.ndarray, obstructed: np.ndarray
) -> Float32:
    """Confidence (h, w) float32: 0.5 to 1 where stereo is sure, up to 0.3 where filled, 0 to hide.

    `score` is the ZNCC, `agreeing` and `obstructed` count other views that see this surface, or see through it.
    """
    reach = REACH * max(sure.shape)
    measured = 0.5 + 0.25 * np.clip((score - 0.6) / 0.4, 0, 1) + 0.25 * np.clip(agreeing / 4.0, 0, 1)
    measured[obstructed > agreeing] = 0.0
    distance = cv2.distanceTransform((~sure).astype(np.uint8), cv2.DIST_L2, 5)
    guessed = FILLED_CONFIDENCE * np.exp(-2.5 * distance / reach)
    guessed[_hanging(inverse) | (obstructed > 0) | (distance > reach)] = 0.0
    confidence = np.where(sure, measured, guessed)
    confidence[sky(rgb, sure)] = 0.0
    return confidence.astype(np.float32)


def _hanging(inverse: Float32) -> np.ndarray:
    """Pixels at a depth edge: their inverse depth differs from a neighbour's by more than EDGE_STEP of it."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    high, low = cv2.dilate(inverse, cross), cv2.erode(inverse, cross)
    return (high - low) > 2.0 * EDGE_STEP * inverse


def sky(rgb: UInt8, sure: np.ndarray) -> np.ndarray:
    """(h, w) bool: bright, smooth, blue or blown-out regions that reach the upper edges and have hardly any depth."""
    blurred = cv2.GaussianBlur(rgb, (5, 5), 0)
    red, green, blue = (blurred[..., k].astype(np.int16) for k in range(3))
    grey = cv2.cvtColor(blurred, cv2.COLOR_RGB2GRAY).astype(np.float32)
    rough = cv2.blur(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), (5, 5))
    coloured = ((blue > red + 8) & (blue >= green) & (blue > 90)) | (np.minimum(np.minimum(red, green), blue) > 215)
    coloured &= grey > 0.7 * np.median(grey)
    count, labels = cv2.connectedComponents((coloured & (rough < 6.0)).astype(np.uint8), connectivity=4)
    half = len(labels) // 2
    edge = np.concatenate([labels[0], labels[:half, 0], labels[:half, -1]])
    at_edge = np.bincount(edge, minlength=count)
    area = np.bincount(labels.ravel(), minlength=count)
    measured = np.bincount(labels.ravel(), weights=sure.ravel().astype(float), minlength=count)
    is_sky = (at_edge > 0.05 * sure.shape[1]) & (area > 0.02 * sure.size) & (measured < 0.2 * area)
    is_sky[0] = False
    found = is_sky[labels].astype(np.uint8)
    # Windows that straddle a roof give the sky beside it the roof's depth: take that rim too where it has the colour of
    # sky, and one pixel more, where the colours blend.
    rim = cv2.dilate(found, np.ones((11, 11), np.uint8)) & coloured.astype(np.uint8)
    return cv2.dilate(found | rim, np.ones((3, 3), np.uint8)) > 0
