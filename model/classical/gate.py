"""Is this reconstruction to be believed? A wrong room looks as sharp as a right one: doubt is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from model.classical.poses import PLAUSIBLE_RATIO, Solution
from model.types import ReconstructionError

FEW_POINTS = 100
LARGE_ERROR = 1.5
"""Pixels per 1000 of the photo's long side."""
NO_PARALLAX, LITTLE_PARALLAX = 4.0, 10.0
"""Parallax over reprojection error below which depth is noise, and below which it is doubtful."""
SMALLEST_ERROR = 0.3
"""Pixels: no reprojection error is taken to be smaller."""
SMALL_ANGLE = 1.0
"""Degrees."""
FLAT = 0.97
"""Share of matches that one homography explains in every pair, from which on depth rests on nothing."""
DISAGREEMENT = 8.0
"""Degrees between two solutions that explain the photos equally well."""
LITTLE_SUPPORT = 0.25
"""Share of textured pixels that another view confirms."""

OVERLAP = "Take photos that overlap by at least two thirds, moving a step sideways between them."


@dataclass(frozen=True, slots=True)
class Motion:
    """How far the cameras moved, as the sparse points saw it."""

    angle: float
    """Median over points of the widest angle in degrees between two of its rays."""
    parallax: float
    """The same in pixels of `View.image`."""


def motion(solution: Solution | None) -> Motion | None:
    """Triangulation angles of the sparse points; None where there are none."""
    if solution is None or len(solution.points) == 0:
        return None
    placed = [pose for pose in solution.poses if pose is not None]
    widest = np.zeros(len(solution.points))
    rays = np.zeros((len(placed), len(solution.points), 3))
    for view, pose in enumerate(placed):
        towards = solution.points[pose.points] - pose.centre
        rays[view, pose.points] = towards / np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-12)
    for a, b in combinations(range(len(placed)), 2):
        both = np.intersect1d(placed[a].points, placed[b].points)
        cosine = (rays[a, both] * rays[b, both]).sum(axis=1)
        widest[both] = np.maximum(widest[both], np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
    angle = float(np.median(widest))
    focal = float(np.median([pose.K[0, 0] for pose in placed]))
    return Motion(angle, float(np.radians(angle)) * focal)


def refuse(solution: Solution | None, seen: Motion | None) -> ReconstructionError | None:
    """Why there is nothing to build on, or None. `seen` is None where no view was placed."""
    if solution is None or (seen is None and solution.flat_share < FLAT):
        return ReconstructionError("The photos could not be related to one another.", OVERLAP)
    only_turned = solution.flat_share > FLAT and (seen is None or seen.angle < 2.0 * SMALL_ANGLE)
    if seen is None or only_turned or _too_still(seen, solution, NO_PARALLAX):
        return ReconstructionError(
            "All photos seem to be taken from one spot, which gives no depth.",
            "Move the camera a step sideways between photos instead of only turning it.",
        )
    return None


def _too_still(seen: Motion, solution: Solution, limit: float) -> bool:
    return seen.parallax < limit * max(solution.error, SMALLEST_ERROR)


def doubts(solution: Solution, seen: Motion, long_sides: Sequence[int], support: float) -> list[str]:
    """Sentences on what makes the whole doubtful; none: it is sound.

    `long_sides` of the placed views' images in pixels; `support` is the share of textured pixels whose depth a second
    view confirms.
    """
    placed = [pose for pose in solution.poses if pose is not None]
    said = []
    if len(solution.points) < FEW_POINTS:
        said.append(f"Only {len(solution.points)} points were found in several photos. {OVERLAP}")
    if solution.error > LARGE_ERROR * float(np.median(long_sides)) / 1000.0:
        said.append("The photos do not agree well with any one scene: something may have moved between them.")
    if solution.flat_share > FLAT:
        said.append("All that was found lies on one flat surface, or the camera only turned. Move a step sideways.")
    elif seen.angle < SMALL_ANGLE or _too_still(seen, solution, LITTLE_PARALLAX):
        said.append("The camera hardly moved between the photos, so depth is vague. Take wider steps sideways.")
    if solution.rotation_disagreement > DISAGREEMENT:
        said.append("Two different scenes explain these photos about equally well. Add photos from more positions.")
    ratios = [pose.K[0, 0] / side for pose, side in zip(placed, long_sides)]
    low, high = PLAUSIBLE_RATIO
    if solution.focal_source != "exif" and not (low <= min(ratios) and max(ratios) <= high):
        said.append("The focal length found is unusual. Photos with their EXIF data kept would settle it.")
    if support < LITTLE_SUPPORT:
        said.append("Few surfaces look the same from a second photo's position: the cameras may be placed wrongly.")
    if 2 * len(placed) <= len(solution.poses) and len(solution.poses) > 2:
        said.append("Half of the photos or more could not be placed.")
    return said
