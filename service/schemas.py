"""The documents of the API: options in, the job's record out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

OUTPUTS: dict[str, str] = {
    "scene.ply": "application/vnd.ply",
    "scene.glb": "model/gltf-binary",
    "mesh.glb": "model/gltf-binary",
    "scene.splat": "application/octet-stream",
    "gaussians.ply": "application/vnd.ply",
    "gaussians.spz": "application/octet-stream",
    "cameras.json": "application/json",
    "colmap.zip": "application/zip",
    "transforms.json": "application/json",
    "pointmaps.npz": "application/octet-stream",
    "photos.webp": "image/webp",
    "preview.webp": "image/webp",
    "matches.npz": "application/octet-stream",
    "matches.webp": "image/webp",
    "depth.zip": "application/zip",
}
"""Every result file and its content type."""
DEFAULT_OUTPUTS = tuple(OUTPUTS)[: tuple(OUTPUTS).index("preview.webp") + 1]
"""What is written when nothing is asked for by name."""

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]
FINAL: frozenset[Status] = frozenset(("succeeded", "failed", "canceled"))


class Options(BaseModel):
    """How to reconstruct: the fields of `POST /reconstruct` beside the photos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    confidence_percentile: float = Field(3.0, ge=0, le=99)
    """Share, in percent, of the least sure pixels to leave out."""
    outputs: tuple[str, ...] = ()
    """Names of the result files wanted; empty: DEFAULT_OUTPUTS."""
    max_points: int = Field(1_500_000, ge=1_000, le=10_000_000)
    reference: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """Index of the photo whose camera is the origin; `auto`: of the one that sees most of the others."""
    focal: Literal["shared", "per-view"] | Annotated[float, Field(gt=0, le=1e6)] = "shared"
    """One focal length for the photos of one camera, or one a photo; a number: that of all photos, where it is known,
    in pixels of the originals."""


class ViewDocument(BaseModel):
    """One photo of a job. Once the job is done, what was found out about it comes along (`focal`, ...)."""

    model_config = ConfigDict(extra="allow")

    name: str
    width: int
    """Of the upright original, in pixels."""
    height: int
    focal: float | None = None
    """Focal length in pixels of the ORIGINAL image; null until solved, or where the photo could not be placed."""


class FileDocument(BaseModel):
    name: str
    bytes: int
    content_type: str
    url: str
    sha256: str


class ErrorDocument(BaseModel):
    """Why a job failed."""

    type: str
    detail: str
    suggestion: str = ""


class Links(BaseModel):
    self: str
    events: str
    cancel: str
    files: str


class LinkDocument(BaseModel):
    """Addresses that need no key, to read one job."""

    expires_at: datetime
    """The job itself may expire before."""
    token: str
    """The `token` parameter of the addresses."""
    page: str
    """Address of a web page that shows the scene."""
    links: Links
    """`cancel` needs the key all the same."""
    files: list[FileDocument]
    """Those that there are now. The job's document, asked for with the token, lists later ones."""


class WebhookDocument(BaseModel):
    """How far telling the job's end has come."""

    url: str
    """Without its query."""
    state: Literal["waiting", "pending", "delivered", "failed"]
    """`waiting`: the job has not ended; `failed`: not tried any more, unless that is asked for."""
    tries: int
    last_status: int | None
    """Of the last answer; null: there was none."""


class JobDocument(BaseModel):
    id: str
    status: Status
    stage: str
    progress: float = Field(ge=0, le=1)
    queue_position: int | None
    """Jobs ahead of this one; null once it has started."""
    model: str
    options: Options
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    views: list[ViewDocument]
    files: list[FileDocument]
    error: ErrorDocument | None
    warnings: list[str]
    low_confidence: bool
    """The model doubts the whole reconstruction."""
    metrics: dict[str, float]
    """Seconds a stage, batch size, and what the model measured."""
    webhook: WebhookDocument | None = None
    links: Links


class ModelEntry(BaseModel):
    """A model and what it takes."""

    name: str
    network: str
    licence: str
    engine: str
    square: int | None
    """Side in pixels of the square that it sees of each photo."""
    long_side: int | None
    """Long side of what it sees, of the photo's own shape; both null: it sees whole photos."""
    max_batch: int
    min_views: int
    max_views: int
    parameters: int
    bytes: int
    device: str
    passed_over: list[str]
    """Engines that would be faster, each with why it is not taken; of a model that a worker has opened."""


class ModelDocument(ModelEntry):
    default: bool
    """Taken where a request names no model."""


class ModelsDocument(BaseModel):
    models: list[ModelDocument]


class DeviceDocument(BaseModel):
    name: str
    memory_total: int
    """Bytes."""
    memory_used: int
    use: float | None = Field(None, ge=0, le=1)
    """Share of the last moments in which it computed; null: it does not say (a processor, a part of a GPU)."""


class CheckDocument(BaseModel):
    """A real tiny forward pass with a deadline and a NaN test."""

    at: datetime
    ok: bool
    seconds: float
    detail: str = ""


class BuildingDocument(BaseModel):
    """An engine that a worker builds, taking no jobs meanwhile."""

    engine: str
    phase: str
    """In the builder's words."""
    progress: float = Field(ge=0, le=1)


class WorkerDocument(BaseModel):
    id: str
    host: str
    pid: int
    device: DeviceDocument
    engine: str
    models: list[ModelEntry]
    state: Literal["starting", "ready", "busy", "draining", "unhealthy"]
    batch: int
    """Jobs in the pass that runs now."""
    jobs_running: int
    jobs_done: int
    jobs_failed: int
    started_at: datetime
    last_heartbeat: datetime
    last_check: CheckDocument | None
    building: BuildingDocument | None = None


class WorkersDocument(BaseModel):
    workers: list[WorkerDocument]


class ReadinessDocument(BaseModel):
    ready: bool
    reasons: list[str]
    """Why not, in words."""


class QueueDocument(BaseModel):
    depth: int
    """Jobs waiting or running."""
    waiting: int
    limit: int


class HealthDocument(ReadinessDocument):
    queue: QueueDocument | None
    workers: list[WorkerDocument] | None
    """null without a key, where keys are configured."""


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    suggestion: str = ""
