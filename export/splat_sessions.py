"""NoPoSplat on two or three photos: Gaussians in the reference camera's frame, and where the other cameras stood.

The network must be told the lenses. What EXIF does not say is guessed, measured on the answer and told again. Poses
follow as in the paper (arXiv 2410.24207, section 3.4): from each view's own points, then by how the others' Gaussians
look.

Without torch, as `export.sessions`, which opens these models.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.contract import GRAPH_FILE, Description
from export.runtime import Graph, check_finite, normalised, not_finite, ramps, refused_for_memory, run_told
from export.sessions import square_seen, unit_rotation
from model.geometry.crop import square_crop_in_original
from model.geometry.focal import weiszfeld_focal
from model.geometry.pose_refinement import refine_pose
from model.geometry.poses import (
    MIN_POINTS,
    camera_key,
    inlier_share,
    intrinsics,
    pixel_centres,
    solve_focal,
    solve_pose,
)
from model.geometry.splatting import Ellipsoids
from model.types import (
    Camera,
    Float32,
    Float64,
    Gaussians,
    ModelInfo,
    Prediction,
    Progress,
    ReconstructionError,
    UInt8,
    View,
    Views,
)

log = logging.getLogger(__name__)

GUESS = 0.5 / np.tan(np.radians(30))
"""A lens that nothing is known of, in sides of the square: 60 degrees across, as most cameras and phones about have."""
LENSES = (0.3, 4.0)
"""Bounds of a measured focal length, in sides of the square."""
ROUNDS = 3
"""Passes, at most, until what is measured of the lenses is what the network was told."""
SETTLED = 0.02
"""Relative: lenses that differ by less are the same."""
SOLID = 0.3
"""Opacity above which a Gaussian tells where its camera stands (upstream's evaluation)."""
DOUBTFUL = 0.3
"""A view whose camera a smaller share of its points agrees with is doubtful."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The photos of a job, the reference first."""

    order: tuple[int, ...]
    """Of each, its index in the job."""
    photos: tuple[View, ...]
    squares: UInt8
    """(N, S, S, 3)."""
    boxes: Float64
    """(N, 4) left, top, right, bottom of the squares in pixels of the originals."""
    pixels: Float64
    """(N, S * S, 2) centres of the squares' pixels in pixels of the originals, relative to the principal points."""

    def in_square(self, view: int, focal: float) -> Float64:
        """(3, 3) K of a view's square, of side 1, for a focal length in pixels of the original."""
        left, top, right, bottom = self.boxes[view]
        K = intrinsics(focal, self.photos[view].original_size)
        K[:2, 2] -= left, top
        K[0] /= right - left
        K[1] /= bottom - top
        return K


@dataclass(frozen=True, slots=True)
class Lenses:
    """Focal lengths, in pixels of the originals."""

    focals: Float64
    """(N,)."""
    groups: tuple[tuple[int, ...], ...]
    """Views of equal focal lengths."""
    measured: frozenset[int]
    """The groups that nothing was known of."""
    settled: bool = True
    """Whether those measured are what the network was told."""


class SplatSession:
    """NoPoSplat: a `model.types.Model`. `run` may be called from several threads."""

    def __init__(self, description: Description, graphs: Mapping[str, Graph], info: ModelInfo) -> None:
        self.info = info
        self._description = description
        self._graph = graphs[GRAPH_FILE]
        self._seconds: dict[tuple[int, ...], float] = {}

    def run(self, batch: Sequence[Views], progress: Progress) -> list[Prediction | ReconstructionError]:
        """One job after the other; see `model.types.Model.run`. Stages told: forward, poses.

        A job that the memory which is free does not do for is refused.
        """
        for views in batch:
            if not self.info.min_views <= len(views) <= self.info.max_views or not 0 <= views.reference < len(views):
                raise ValueError(f"{len(views)} views with reference {views.reference} are beyond {self.info.name}")
        return [self._answer(views, progress) for views in batch]

    def warm_up(self) -> None:
        """A real forward pass of the fewest views. Raises RuntimeError if anything of its answer is not finite."""
        side, count = self.info.square or 0, self.info.min_views
        K = np.array([[GUESS, 0, 0.5], [0, GUESS, 0.5], [0, 0, 1]])
        outputs = self._forward(ramps(side, side, count), np.stack([K] * count), lambda _stage, _fraction: None)
        check_finite(outputs, self.info)

    def _answer(self, views: Views, progress: Progress) -> Prediction | ReconstructionError:
        if refusal := refused_for_memory(self._description, len(views), self.info.device):
            return refusal
        started = time.monotonic()
        seen = self._look(views)
        try:
            lenses, outputs = self._see(seen, views.shared_focal, progress)
        except ReconstructionError as error:
            return error
        passed = time.monotonic()
        points, scale, rotation, opacity, harmonics = outputs
        rotation = unit_rotation(rotation)
        clouds = [Ellipsoids.of(*fields) for fields in zip(points, scale, rotation, opacity, harmonics, strict=True)]
        cameras, refined = place(seen, lenses.focals, clouds, progress)
        place_of = np.argsort(seen.order)
        names = [view.name for view in views.views]
        placed = [cameras[k] for k in place_of]
        warnings = [*_about_lenses(seen, lenses), *_about_cameras(names, placed)]
        return Prediction(
            points=points[place_of],
            confidence=opacity[place_of],
            rgb=seen.squares[place_of],
            crops=seen.boxes[place_of],
            gaussians=Gaussians(*(field[place_of] for field in (scale, rotation, opacity, harmonics))),
            cameras=tuple(placed),
            low_confidence=not lenses.settled
            or any(camera is None or camera.inlier_share < DOUBTFUL for camera in placed),
            warnings=tuple(warnings),
            details={
                "refinement": [refined.get(int(view)) for view in place_of],
                "seconds": {"forward": passed - started, "poses": time.monotonic() - passed},
            },
        )

    def _look(self, views: Views) -> Seen:
        side = self.info.square or 0
        order = (views.reference, *(view for view in range(len(views)) if view != views.reference))
        photos = tuple(views.views[view] for view in order)
        boxes = np.array([square_crop_in_original(*photo.original_size, side) for photo in photos])
        pixels = [
            pixel_centres(box, side, side).reshape(-1, 2) - np.array(photo.original_size) / 2
            for box, photo in zip(boxes, photos, strict=True)
        ]
        return Seen(order, photos, np.stack([square_seen(photo, side) for photo in photos]), boxes, np.array(pixels))

    def _see(self, seen: Seen, shared: bool, progress: Progress) -> tuple[Lenses, list[Float32]]:
        """The network's answer, each output (N, S, S, ...), and the lenses that it fits.

        Raises ReconstructionError where the answer is not finite.
        """
        lenses = known_lenses(seen, shared)
        rounds = ROUNDS if lenses.measured else 1
        for passes in range(rounds):

            def told(stage: str, fraction: float, passes: int = passes) -> None:
                progress(stage, (passes + fraction) / rounds)

            K = np.stack([seen.in_square(view, focal) for view, focal in enumerate(lenses.focals.tolist())])
            outputs = self._forward(seen.squares, K, told)
            if not all(np.isfinite(output).all() for output in outputs):
                raise not_finite()
            lenses = measured_lenses(seen, lenses, outputs[0], outputs[3])
            if lenses.settled:
                break
        progress("forward", 1.0)
        return lenses, outputs

    def _forward(self, squares: UInt8, K: Float64, progress: Progress) -> list[Float32]:
        """Squares (N, S, S, 3) and their K (N, 3, 3), of sides of 1, to the graph's outputs (N, S, S, ...)."""
        feed = (normalised(squares[None]), K[None].astype(np.float32))
        return [output[0] for output in run_told(self._graph, feed, progress, self._seconds)]


def known_lenses(seen: Seen, shared: bool) -> Lenses:
    """What EXIF says, or a guess. `shared`: photos that one camera took have one focal length."""
    members: dict[object, list[int]] = {}
    for view, photo in enumerate(seen.photos):
        members.setdefault(camera_key(photo) if shared else view, []).append(view)
    groups = tuple(map(tuple, members.values()))
    focals, unknown = np.zeros(len(seen.photos)), set()
    for index, group in enumerate(groups):
        said = [focal for focal in (seen.photos[view].exif_focal for view in group) if focal is not None]
        for view in group:
            left, _, right, _ = seen.boxes[view]
            focals[view] = np.median(said) if said else GUESS * (right - left)
        if not said:
            unknown.add(index)
    return Lenses(focals, groups, frozenset(unknown))


def measured_lenses(seen: Seen, told: Lenses, points: Float32, opacity: Float32) -> Lenses:
    """Of lenses that nothing was known of, what the network's answer (N, S, S, 3), to those it was told, looks like.

    The reference's own points are in its camera's frame: its focal length is DUSt3R's (Weiszfeld's). For others a pose
    must be found, too.
    """
    focals = told.focals.copy()
    for index in told.measured:
        group = told.groups[index]
        found = []
        for view in (0,) if 0 in group else group:
            cloud = points[view].reshape(-1, 3)
            focal = (
                weiszfeld_focal(cloud, seen.pixels[view])
                if view == 0
                else solve_focal(cloud.astype(np.float64), seen.pixels[view], opacity[view].ravel().astype(np.float64))
            )
            if focal is not None:
                left, _, right, _ = seen.boxes[view]
                found.append(float(np.clip(focal / (right - left), *LENSES)) * (right - left))
        if found:
            focals[list(group)] = np.median(found)
    settled = bool((np.abs(focals / told.focals - 1) < SETTLED).all())
    log.info("focal lengths told %s, measured %s", told.focals.round(1).tolist(), focals.round(1).tolist())
    return Lenses(focals, told.groups, told.measured, settled)


def place(
    seen: Seen, focals: Float64, clouds: Sequence[Ellipsoids], progress: Progress
) -> tuple[list[Camera | None], dict[int, tuple[float, float]]]:
    """A camera for each view, None where no pose explains its points; and the refined views' errors before and after.

    A camera is first where it sees its own points at their pixels (PnP). It then moves to where the Gaussians of the
    OTHER views look like its photo: its own would hold it where it is, right or wrong.
    """
    side = seen.squares.shape[1]
    cameras: list[Camera | None] = []
    refined = {}
    for view, (cloud, focal) in enumerate(zip(clouds, focals.tolist(), strict=True)):
        progress("poses", max(0, view - 1) / (len(clouds) - 1))
        pixels, size = seen.pixels[view], seen.photos[view].original_size
        solid = cloud.opacity > SOLID
        if solid.sum() < MIN_POINTS:
            solid = np.ones_like(solid)
        points, pixels = cloud.centres[solid], pixels[solid]
        pose = np.eye(4)
        if view:
            solved = solve_pose(points, pixels, focal, cloud.opacity[solid])
            if solved is None:
                cameras.append(None)
                continue

            def told(share: float, view: int = view) -> None:
                progress("poses", (view - 1 + share) / (len(clouds) - 1))

            K = np.diag([side, side, 1.0]) @ seen.in_square(view, focal)
            others = Ellipsoids.joined([clouds[other] for other in range(len(clouds)) if other != view])
            found = refine_pose(others, seen.squares[view], K, solved[0], told)
            pose = found.camera_to_world
            if np.isfinite(found.before):
                refined[view] = (found.before, found.after)
        cameras.append(Camera(intrinsics(focal, size), pose, inlier_share(pose, focal, points, pixels)))
    progress("poses", 1.0)
    return cameras, refined


def _about_lenses(seen: Seen, lenses: Lenses) -> list[str]:
    """What was done where no focal length was known."""
    sentences = []
    for index in sorted(lenses.measured):
        names = ", ".join(seen.photos[view].name for view in lenses.groups[index])
        focal = lenses.focals[lenses.groups[index][0]]
        doubt = "" if lenses.settled else ", which did not settle"
        sentences.append(f"No focal length is known of {names}: estimated, about {focal:.0f} pixels{doubt}.")
    return sentences


def _about_cameras(names: Sequence[str], cameras: Sequence[Camera | None]) -> list[str]:
    lost = [name for name, camera in zip(names, cameras, strict=True) if camera is None]
    unsure = [n for n, camera in zip(names, cameras, strict=True) if camera and camera.inlier_share < DOUBTFUL]
    sentences = []
    if lost:
        sentences.append(f"These photos could not be placed and were left out: {', '.join(lost)}.")
    if unsure:
        sentences.append(f"The cameras of these photos are doubtful: {', '.join(unsure)}.")
    return sentences
