"""Which photo sees most of the others: where to put the world, known before anything is reconstructed.

OpenCV alone: a worker that serves a network does not load COLMAP for it.
"""

from __future__ import annotations

from itertools import combinations

import cv2
import numpy as np

from model.parallel import each
from model.types import Float32, Float64, Tick, View, Views

SIDE = 480
"""Long side in pixels at which photos are compared: what they share shows in their larger structures."""
MOST = 800
"""Keypoints a photo."""
RATIO = 0.8
"""A match is nearer than this share of the distance to the second nearest (Lowe 2004)."""
ENOUGH = 10
"""Matches that half prove that two photos share something: chance alone gives a few."""


def choose_reference(views: Views, tick: Tick) -> int:
    """Index of the view that sees most of the others, the first of equals.

    `tick` is told the share that is done, and may raise to cancel.
    """
    return int(np.argmax(shared_content(views, tick).sum(axis=1)))


def shared_content(views: Views, tick: Tick) -> Float64:
    """(N, N) how surely each two views show common things, 0 to below 1, by their SIFT matches; 0 on the diagonal.

    It saturates: two views that are almost one photo match far better than two that share half of what they see,
    and yet say no more about the rest of the set.
    """
    descriptors = each(_describe, views.views, lambda done: tick(0.7 * done))
    pairs = list(combinations(range(len(views)), 2))
    counts = each(
        lambda pair: _matches(*(descriptors[view] for view in pair)), pairs, lambda done: tick(0.7 + 0.3 * done)
    )
    shared = np.zeros((len(views), len(views)))
    for (i, j), count in zip(pairs, counts, strict=True):
        shared[i, j] = shared[j, i] = count / (count + ENOUGH)
    return shared


def _describe(view: View) -> Float32:
    """(n, 128) RootSIFT (Arandjelovic and Zisserman 2012) of the view's strongest keypoints, unit length."""
    height, width = view.image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(16, round(width * scale)), max(16, round(height * scale)))
    grey = cv2.cvtColor(cv2.resize(view.image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    _, found = cv2.SIFT_create(MOST, contrastThreshold=0.02).detectAndCompute(grey, None)
    if found is None:
        return np.zeros((0, 128), np.float32)
    return np.sqrt(found / np.maximum(found.sum(axis=1, keepdims=True), 1e-9))


def _matches(a: Float32, b: Float32) -> int:
    """How many descriptors of (n, 128) and (m, 128) are each other's nearest, and by far."""
    if min(len(a), len(b)) < 2:
        return 0
    similarity = a @ b.T
    best = similarity.argmax(axis=1)
    mutual = np.flatnonzero(similarity.argmax(axis=0)[best] == np.arange(len(a)))
    second, first = np.partition(similarity[mutual], -2, axis=1)[:, -2:].T
    return int((np.arccos(np.minimum(first, 1.0)) < RATIO * np.arccos(np.minimum(second, 1.0))).sum())
