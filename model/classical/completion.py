"""Depth where stereo found none: textureless walls, shadows, reflections. A guess, and marked as one.

Weighted least squares on inverse depth (Farbman et al., SIGGRAPH 2008): neighbours of one colour share one depth, known
pixels stay. Only depths that stereo is sure of and sparse points count: rejected ones, even at little weight, spoil it.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from model.types import Float32, Float64, UInt8

COLOUR_SCALE = 8.0
"""Grey levels between neighbours that cut their bond to 1 / e."""
MOST_PLANES = 10
GUESSED_PLANES = 200
JURY = 1500
"""Pixels that judge a guess."""
PLANE_SHARE = 0.02
"""Of the known pixels, that a plane needs."""
PLANE_TOLERANCE = 0.01
"""Of inverse depth, that a pixel may miss its plane by."""
PLANE_WIDTH = 0.02
"""Of the long side: standard deviation of a plane's pixels across their narrow direction, at least."""
MAJORITY = 0.5
"""How likely a pixel must belong to a plane to be put on it."""
EDGE_STEP = 0.02
"""A filled pixel whose depth differs by more than this share from a neighbour's hangs between two surfaces."""
ANCHOR = 0.001
"""Share of all pixels that must be sure in a region which depth edges cut off; else its filled ones are hidden."""
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
    weight = np.minimum(weight, 1.0).astype(np.float64)
    guide = cv2.resize(rgb, half, interpolation=cv2.INTER_AREA).astype(np.float32)
    system = splu((_bonds(guide) + sparse.diags_array(weight.ravel())).tocsc())

    def spread(values: Float64) -> Float64:
        return system.solve((weight * values).ravel()).reshape(weight.shape)

    solved = spread(known)
    low, high = known[weight > 0].min(), known[weight > 0].max()
    likeliest = np.full(weight.shape, MAJORITY)
    for members, surface in _planes(known, weight >= 0.5):
        likely = spread(members.astype(np.float64))
        here = (likely > likeliest) & (surface > 0.5 * low) & (surface < 1.5 * high)
        solved[here], likeliest[here] = surface[here], likely[here]
    whole = cv2.resize(solved.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    return np.where(sure, inverse, np.clip(whole, 0.3 * low, 3.0 * high)).astype(np.float32)


def _bonds(guide: Float32) -> sparse.csr_array:
    """The graph Laplacian of the pixel grid (h, w, 3), neighbours bound by likeness of colour."""
    h, w = guide.shape[:2]
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
    adjacency = (adjacency + adjacency.T).tocsr()
    return sparse.diags_array(np.asarray(adjacency.sum(axis=1)).ravel()) - adjacency


def _planes(known: Float64, usable: np.ndarray) -> Iterator[tuple[np.ndarray, Float64]]:
    """The large flat surfaces among known pixels, the largest first: (h, w) bool who lies on it, its inverse depth.

    Inverse depth is linear in the pixel on any plane, so three pixels make a guess (RANSAC, Fischler and Bolles 1981).
    Pixels along a line are no plane: it would turn about that line.
    """
    rng = np.random.default_rng(0)
    y, x = np.nonzero(usable)
    everywhere = np.indices(known.shape)[::-1]
    enough = max(50, PLANE_SHARE * len(x))
    for _ in range(MOST_PLANES):
        if len(x) < enough:
            return
        A, d = np.stack([x, y, np.ones(len(x))], axis=1), known[y, x]
        first = rng.integers(0, len(x), GUESSED_PLANES)
        # Partners from nearby, so that the three often share a surface: the pixels are in row order.
        near = [
            np.clip(first + rng.integers(-len(x) // 8, len(x) // 8 + 1, GUESSED_PLANES), 0, len(x) - 1) for _ in "ab"
        ]
        corners = A[np.stack([first, *near], axis=1)]
        fine = np.abs(np.linalg.det(corners)) > 20.0
        if not fine.any():
            return
        guesses = np.linalg.solve(corners[fine], d[np.stack([first, *near], axis=1)][fine][..., None])[..., 0]
        jury = slice(None, None, len(x) // JURY + 1)
        votes = (np.abs(guesses @ A[jury].T - d[jury]) < PLANE_TOLERANCE * d[jury]).sum(axis=1)
        plane = guesses[votes.argmax()]
        for _ in range(3):
            on = np.abs(A @ plane - d) < PLANE_TOLERANCE * d
            if on.sum() < enough:
                return
            plane = np.linalg.lstsq(A[on], d[on], rcond=None)[0]
        narrow = np.linalg.eigvalsh(np.cov(A[on, :2].T))[0] ** 0.5
        if narrow > PLANE_WIDTH * max(known.shape):
            members = np.zeros(known.shape, bool)
            members[y[on], x[on]] = True
            yield members, plane[0] * everywhere[0] + plane[1] * everywhere[1] + plane[2]
        x, y = x[~on], y[~on]


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
    confidence[~sure & ~_anchored(confidence > 0, sure)] = 0.0
    return confidence.astype(np.float32)


def _hanging(inverse: Float32) -> np.ndarray:
    """Pixels at a depth edge: their inverse depth differs from a neighbour's by more than EDGE_STEP of it."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    high, low = cv2.dilate(inverse, cross), cv2.erode(inverse, cross)
    return (high - low) > 2.0 * EDGE_STEP * inverse


def _anchored(shown: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """(h, w) bool: in a connected region of `shown` pixels with enough `sure` ones. Others float before surfaces."""
    count, labels = cv2.connectedComponents(shown.astype(np.uint8), connectivity=4)
    anchors = np.bincount(labels[shown & sure], minlength=count)
    return (anchors >= ANCHOR * sure.size)[labels]


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
