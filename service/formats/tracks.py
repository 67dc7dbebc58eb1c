"""Which pixels of which views show the same point, as the pointmaps have it. Pixels are those of `View.image`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.fusion import confident, depth_in
from model.geometry.poses import invert_rigid
from model.types import Camera, Float64, Scene, UInt8
from service.formats.cameras import intrinsics_of

MOST_POINTS = 20_000
CANDIDATES = 30_000
"""Pixels tried as points: those that another view confirms are kept."""
ENOUGH_TRACKS = 100
"""With as many points that two views or more observe, the others are left out: bundle adjustment cannot take them."""
LEAST_SURE_PERCENT = 25.0
"""Share of the pixels that is not tried."""
DEPTH_TOLERANCE = 0.02
"""A view sees a point when its own pointmap's depth there differs by less than this share."""


class PlacedView:
    """One placed view: its picture, and its pointmap with what takes world points to the grid and to the picture."""

    def __init__(self, scene: Scene, index: int, camera: Camera) -> None:
        view, crop = scene.views.views[index], scene.prediction.crops[index]
        self.index = index
        self.image = view.image
        self.points = scene.prediction.points[index]
        self.depth = depth_in(camera, self.points)
        self.depth[scene.prediction.confidence[index] <= 0] = 0
        self.rows, self.columns = self.depth.shape
        self.size = (view.image.shape[1], view.image.shape[0])
        self.K = intrinsics_of(camera, (0, 0, *view.original_size), self.size)
        self.world_to_camera = invert_rigid(camera.camera_to_world)
        # The grid shows the part `crop` of the original, the picture all of it: pixels differ by a scale and a shift.
        self.pixel = (crop[2:] - crop[:2]) / (self.columns, self.rows) * self.size / view.original_size
        self.corner = crop[:2] * self.size / view.original_size

    def project(self, points: Float64) -> tuple[Float64, Float64]:
        """Pixels (P, 2) of the picture and depths (P,) of world points (P, 3)."""
        local = points @ self.world_to_camera[:3, :3].T + self.world_to_camera[:3, 3]
        depth = local[:, 2]
        ahead = np.where(depth > 0, depth, np.nan)
        return local[:, :2] / ahead[:, None] @ self.K[:2, :2].T + self.K[:2, 2], depth

    def observe(self, points: Float64) -> Float64:
        """Pixels (P, 2) of the picture where this view's pointmap has world points (P, 3); nan where it does not.

        Around the pixel a point projects to, the nearest point of the pointmap is looked up, then refined below a pixel
        with the pointmap's slope there.
        """
        observed = np.full((len(points), 2), np.nan)
        xy, depth = self.project(points)
        column, row = np.floor((xy - self.corner) / self.pixel).T
        # Two pixels from the edge: one for the search, one for the slopes. Comparisons with nan are false.
        inside = np.flatnonzero((column >= 2) & (column < self.columns - 2) & (row >= 2) & (row < self.rows - 2))
        row, column = row[inside].astype(np.int64), column[inside].astype(np.int64)
        agrees = np.abs(self.depth[row, column] - depth[inside]) < DEPTH_TOLERANCE * depth[inside]
        seen, row, column = inside[agrees], row[agrees], column[agrees]

        around = np.array([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
        rows, columns = row + around[:, :1], column + around[:, 1:]
        distance = ((self.points[rows, columns] - points[seen].astype(np.float32)) ** 2).sum(axis=2)
        distance[self.depth[rows, columns] <= 0] = np.inf
        nearest = around[distance.argmin(axis=0)]
        row, column = row + nearest[:, 0], column + nearest[:, 1]

        # Least squares for the step (s, t) that makes point + s across + t down the point searched, by Cramer's rule.
        across = (self.points[row, column + 1] - self.points[row, column - 1]) / 2
        down = (self.points[row + 1, column] - self.points[row - 1, column]) / 2
        rest = points[seen] - self.points[row, column]
        pairs = ((across, across), (across, down), (down, down), (across, rest), (down, rest))
        aa, ad, dd, ar, dr = ((a * b).sum(axis=1) for a, b in pairs)
        determinant = aa * dd - ad * ad
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.stack([dd * ar - ad * dr, aa * dr - ad * ar], axis=1) / determinant[:, None]
        step = np.clip(np.nan_to_num(step, posinf=0, neginf=0), -1, 1)
        observed[seen] = self.corner + self.pixel * (np.stack([column, row], axis=1) + 0.5 + step)
        return observed


@dataclass(frozen=True, slots=True)
class Tracks:
    views: list[PlacedView]
    """The placed views, V of them."""
    points: Float64
    """(P, 3) in the reference camera's frame."""
    colours: UInt8
    """(P, 3)."""
    observed: Float64
    """(V, P, 2) pixels where each view observes them, nan where not."""


def find_tracks(scene: Scene) -> Tracks:
    """Points of sure pixels, and where the views observe them: those that two views or more do, where there are enough.

    A view observes a point where its own pointmap has it, not where the point projects to.
    """
    placed = [PlacedView(scene, index, camera) for index, camera in enumerate(scene.cameras) if camera is not None]
    sure = np.stack([scene.prediction.confidence[view.index] * (view.depth > 0) for view in placed])
    chosen = np.flatnonzero(confident(sure, LEAST_SURE_PERCENT))
    if len(chosen) > CANDIDATES:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, CANDIDATES, replace=False))
    own, row, column = np.unravel_index(chosen, sure.shape)
    points = np.stack([view.points for view in placed])[own, row, column].astype(np.float64)
    colours = scene.prediction.rgb[[view.index for view in placed]][own, row, column]
    observed = np.stack([view.observe(points) for view in placed])
    for number, view in enumerate(placed):
        mine = own == number
        observed[number, mine] = view.corner + view.pixel * (np.stack([column, row], axis=1)[mine] + 0.5)
    kept = np.flatnonzero(np.isfinite(observed[..., 0]).sum(axis=0) > 1)
    if len(kept) < ENOUGH_TRACKS:
        kept = np.arange(len(points))
    # In the pixels' order, so that evenly thinned they cover what the photos cover.
    kept = kept[np.linspace(0, len(kept) - 1, min(len(kept), MOST_POINTS)).astype(np.int64)]
    return Tracks(placed, points[kept], colours[kept], observed[:, kept])
