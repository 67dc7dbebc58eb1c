"""What moves between the rooms: photos in, a prediction out. numpy only, so that serving needs no torch.

Conventions, everywhere in Scenelift:
    axes        OpenCV: x right, y down, z forward; poses are camera_to_world, world = the reference camera's frame
    pixels      a W x H image spans [0, W] x [0, H] with its corner at (0, 0): pixel (row i, column j) has its centre at
                (j + 0.5, i + 0.5), a centred principal point is (W / 2, H / 2), and K scales with the image (COLMAP)
    scale       unknown: a reconstruction is right up to one positive factor
    shapes      N views, H x W the pointmaps' grid
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]

WORKING_SIDE = 1600
"""Long side in pixels, at most, of the upright copy of a photo that the geometry, the formats and exports work on."""

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic: a colour is 0.5 + SH_C0 times its coefficient, and what differs by direction."""

Progress = Callable[[str, float], None]
"""`progress(stage, fraction)`: a stage's name and its share done, 0 to 1. It may raise: so a job is cancelled."""
Tick = Callable[[float], None]
"""`tick(fraction)`: the same within one stage."""
Heartbeat = Callable[[], None]
"""Called every now and then in work whose share done cannot be told. It may raise, likewise."""


class DeviceLost(RuntimeError):  # noqa: N818 - what happened, not what is wrong
    """The GPU answers this process no more: only a new process can go on."""


class ReconstructionError(Exception):
    """These photos cannot be reconstructed, and trying again will not help.

    `detail` is one sentence on what is wrong, `suggestion` one on what to do about it; both are shown to the user.
    """

    def __init__(self, detail: str, suggestion: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.suggestion = suggestion


@dataclass(frozen=True, slots=True)
class View:
    """One decoded photo, upright (EXIF orientation applied)."""

    name: str
    """The file's name as it was uploaded: text to show, never a path."""
    image: UInt8
    """(h, w, 3) RGB, the whole photo, its long side at most WORKING_SIDE."""
    original_size: tuple[int, int]
    """(width, height) of the upright original in pixels."""
    exif_focal: float | None = None
    """Focal length in pixels of the ORIGINAL image, from EXIF, where it is there and plausible, or as it was given."""
    camera: str = ""
    """Make, model and lens from EXIF: photos of one size with equal values were taken by one camera."""
    crop: UInt8 | None = None
    """(H, W, 3) RGB, what a network sees, by its rule (`model.geometry.crop`); None for the geometric model."""


@dataclass(frozen=True, slots=True)
class Views:
    """One job's photos and how to look at them."""

    views: tuple[View, ...]
    reference: int = 0
    """Index of the view whose camera frame is the world."""
    shared_focal: bool = True
    """One focal length for all views that one camera took; else one a view."""

    def __len__(self) -> int:
        return len(self.views)


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera without distortion, for the ORIGINAL upright image."""

    K: Float64
    """(3, 3) intrinsics in pixels of the original image."""
    camera_to_world: Float64
    """(4, 4) rigid transform, OpenCV axes."""
    inlier_share: float
    """Share of the correspondences used for this pose that agree with it, 0 to 1."""

    @property
    def focal(self) -> float:
        return float(self.K[0, 0])


@dataclass(frozen=True, slots=True)
class Gaussians:
    """One Gaussian a pixel, as a network predicts them; the centre is the pixel's point."""

    scale: Float32
    """(N, H, W, 3) standard deviations along the Gaussian's own axes, linear, in scene units, > 0."""
    rotation: Float32
    """(N, H, W, 4) unit quaternions, w x y z."""
    opacity: Float32
    """(N, H, W) linear, 0 to 1."""
    harmonics: Float32 | None = None
    """(N, H, W, 3, K) spherical harmonics of R, G, B in the reference camera's frame, where the network predicts
    colours; None: a Gaussian has its pixel's, all round. Their basis: `model.geometry.splatting.harmonic_basis`."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What every model answers for one job. Pixels without a point have confidence 0 (and a finite point)."""

    points: Float32
    """(N, H, W, 3) in the reference camera's frame."""
    confidence: Float32
    """(N, H, W), >= 0; larger is surer; only its order within one prediction has a meaning across models."""
    rgb: UInt8
    """(N, H, W, 3) colour of each pixel of the grid."""
    crops: Float64
    """(N, 4) left, top, right, bottom of each view's grid in pixels of the ORIGINAL image (edges, not centres).
    Parts of a grid outside its photo (left < 0, right > width, ...) are padding and have confidence 0."""
    gaussians: Gaussians | None = None
    """Where the network has them; else `model.fusion` sizes them from pixel footprints."""
    cameras: tuple[Camera | None, ...] | None = None
    """One a view where the model knows them (None inside: photo not placed); None: they are solved from the points."""
    reference: int | None = None
    """Index of the view whose camera frame is the world: another than asked for, if that was not placed. None: that."""
    low_confidence: bool = False
    """The model doubts the whole: to be said to the user, never to be handed out as sure."""
    warnings: tuple[str, ...] = ()
    """Sentences for the user: photos not placed, doubts, what to photograph differently."""
    details: dict[str, Any] = field(default_factory=dict)
    """JSON-able figures worth keeping: seconds a stage, sparse points, reprojection error, ..."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a served model is and what it takes."""

    name: str
    network: str
    licence: str
    engine: str
    """What computes it: `cpu` (the geometric model), `onnxruntime`, `tensorrt`, `torch`."""
    square: int | None = None
    """Side in pixels of the square crop it sees."""
    long_side: int | None = None
    """Long side in pixels of the crop it sees, of the photo's own shape; both None: it works on `View.image`."""
    stages: int = 1
    """How many stages `run` tells `progress` of, about."""
    max_batch: int = 1
    """Jobs of one shape that may share a forward pass."""
    min_views: int = 2
    max_views: int = 64
    parameters: int = 0
    bytes: int = 0
    device: str = "cpu"
    passed_over: tuple[str, ...] = ()
    """Engines that would be faster, each with why it is not taken."""


class Model(Protocol):
    """A ready model. `run` takes jobs of one shape (equal view count, reference and `shared_focal`) in one pass."""

    info: ModelInfo

    def run(self, batch: Sequence[Views], progress: Progress) -> list[Prediction | ReconstructionError]:
        """Answer each job in its order: a prediction, or why there is none. One job's failure never fails another.

        Anything raised (MemoryError, DeviceLost, a cancellation from `progress`) concerns the whole batch.
        """
        ...


@dataclass(frozen=True, slots=True)
class PointCloud:
    """The merged, pruned points of all views."""

    points: Float32
    """(P, 3) in the reference camera's frame."""
    colours: UInt8
    """(P, 3) RGB."""
    confidence: Float32
    """(P,)."""
    view: UInt8
    """(P,) index of the view each point comes from."""

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True, slots=True)
class Splats:
    """The merged, pruned Gaussians, sorted by falling volume x opacity (what a viewer shows first)."""

    centres: Float32
    """(P, 3) in the reference camera's frame."""
    scale: Float32
    """(P, 3) linear standard deviations, > 0."""
    rotation: Float32
    """(P, 4) unit quaternions, w x y z."""
    opacity: Float32
    """(P,) linear, 0 to 1."""
    colours: UInt8
    """(P, 3) RGB, the mean over all directions."""
    harmonics: Float32 | None = None
    """(P, 3, K), as the network predicts them; None: `colours` all round."""

    def __len__(self) -> int:
        return len(self.centres)


@dataclass(frozen=True, slots=True)
class Scene:
    """A finished reconstruction: what the formats write."""

    views: Views
    prediction: Prediction
    cameras: tuple[Camera | None, ...]
    """One a view; None: that photo could not be placed, and no point of it is in the cloud."""
    cloud: PointCloud
    splats: Splats
