"""Every setting, read once from the environment (`SCENELIFT_*`) or a `.env` file, then handed around frozen."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """One field a setting; its description is what `scenelift serve --help` prints."""

    model_config = SettingsConfigDict(env_prefix="SCENELIFT_", env_file=".env", extra="ignore", frozen=True)

    data_dir: Path = Field(
        Path("data"), description="Folder of photos, results, models, engines and the embedded queue."
    )
    storage_url: str = Field(
        "", description="Bucket of photos, results and keys (s3://bucket/prefix; AWS_* variables); empty: data_dir."
    )
    storage_redirect: bool = Field(False, description="Send downloads of single files to the bucket, by signed links.")
    min_free_bytes: int = Field(
        512 << 20, ge=0, description="Below so many free bytes of data_dir's disk no jobs are taken."
    )
    redis_url: str = Field("", description="Redis or Valkey to use (redis:// or unix://); empty: the embedded one.")
    host: str = Field("127.0.0.1", description="Address that the API and the worker's metrics listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the API.")
    worker_metrics_port: int = Field(
        9101, ge=0, le=65535, description="Port of a worker's Prometheus metrics; 0: none."
    )
    open: bool = Field(False, description="Without API keys: serve whoever reaches the address, also a public one.")
    metrics_open: bool = Field(False, description="Answer GET /metrics without a key, where keys are configured.")
    cors_origins: str = Field(
        "", description="Origins of other web pages that may call the API, comma-separated; *: any."
    )
    requests_per_second: float = Field(20.0, gt=0, description="Requests of one API key or link, on average.")
    requests_burst: int = Field(200, ge=1, description="Requests of one API key or link at once.")
    jobs_per_key: int = Field(32, ge=1, description="Jobs of one API key waiting or running, at most.")
    log_json: bool = Field(False, description="Write logs as JSON lines instead of text.")

    queue_limit: int = Field(256, ge=1, description="Jobs waiting or running, at most; more are answered 429.")
    max_uploads: int = Field(64, ge=1, description="Uploads received at the same time by one API process, at most.")
    upload_seconds: float = Field(1_800.0, gt=0, description="Time for a request's body to arrive.")
    max_photos: int = Field(64, ge=2, description="Photos a job, at most.")
    max_body_bytes: int = Field(1 << 30, ge=1, description="Bytes of one request, at most.")
    max_file_bytes: int = Field(64 << 20, ge=1, description="Bytes of one photo, at most.")
    max_pixels: int = Field(150_000_000, ge=1, description="Pixels of one photo, at most.")
    max_video_seconds: float = Field(600.0, gt=0, description="Length of a video, at most.")
    video_cpu_seconds: int = Field(120, ge=1, description="CPU time for choosing a video's frames, at most.")
    image_url_hosts: str = Field(
        "", description="Hosts that image_urls may name, comma-separated, host:port or *.host; empty: none."
    )
    image_url_http: bool = Field(False, description="Fetch photos over http too.")
    image_url_seconds: float = Field(60.0, gt=0, description="Time for fetching all photos of one request.")
    resumable_limit: int = Field(256, ge=1, description="Resumable uploads under way or waiting for a job, at most.")
    uploads_per_key: int = Field(64, ge=1, description="Resumable uploads of one API key, at most.")
    resumable_bytes: int = Field(8 << 30, ge=1, description="Bytes of the files of all resumable uploads, at most.")
    resumable_seconds: int = Field(86_400, ge=1, description="A resumable upload is kept so long after its last part.")
    webhook_secret: str = Field(
        "",
        pattern=r"^(whsec_([A-Za-z0-9+/]{4}){8,}([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)?$",
        repr=False,
        description="Secret that webhooks are signed with (whsec_ and base64); empty: one is made and kept.",
    )
    webhook_private: bool = Field(False, description="Let webhooks go to private addresses, and by http.")
    require_worker: bool = Field(True, description="Answer 503 while no worker lives; off where workers scale to zero.")

    result_seconds: int = Field(86_400, ge=1, description="How long a finished job and its files are kept.")
    idempotency_seconds: int = Field(86_400, ge=1, description="How long an Idempotency-Key is remembered.")
    lease_seconds: float = Field(15.0, gt=0, description="A worker silent for so long loses its jobs to another.")
    max_attempts: int = Field(3, ge=1, description="Tries at a job whose worker died or ran out of memory.")
    job_seconds: float = Field(3_600.0, gt=0, description="A job running for longer is failed.")
    drain_seconds: float = Field(30.0, ge=0, description="Time for running work to end after a stop was asked for.")

    engine: Literal["auto", "tensorrt", "torch", "onnxruntime"] = Field(
        "auto", description="What computes networks; auto: the fastest that works here."
    )
    batch_window_seconds: float = Field(0.02, ge=0, description="How long a job waits for others of its shape.")
    decode_threads: int = Field(2, ge=1, description="Threads of a process that decode photos.")
    finish_threads: int = Field(2, ge=1, description="Threads of a worker that solve cameras and write files.")
    check_interval_seconds: float = Field(300.0, gt=0, description="Time between an idle worker's deep checks.")
    check_deadline_seconds: float = Field(180.0, gt=0, description="A deep check that takes longer has failed.")
    sweep_seconds: float = Field(60.0, gt=0, description="Time between removals of expired files.")

    @property
    def origins(self) -> list[str]:
        return [origin for origin in (part.strip().rstrip("/") for part in self.cors_origins.split(",")) if origin]

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def engines_dir(self) -> Path:
        """Engines that were built on this machine."""
        return self.data_dir / "engines"

    @property
    def socket_path(self) -> Path:
        """Where the embedded queue server of this data folder listens.

        Not inside the data folder: a unix socket's path may have 107 bytes only, and many file systems carry none.
        """
        folder = hashlib.sha256(str(self.data_dir.resolve()).encode()).hexdigest()[:16]
        bases = (os.environ.get(name, "") for name in ("XDG_RUNTIME_DIR", "TMPDIR"))
        base = next((base for base in bases if base and os.access(base, os.W_OK)), "/tmp")  # noqa: S108 - see private_dir
        return Path(base) / f"scenelift-{os.getuid()}" / f"{folder}.sock"

    @property
    def queue_url(self) -> str:
        return self.redis_url or f"unix://{self.socket_path}"


def private_dir(path: Path) -> Path:
    """Make `path` a folder that only this user can enter; PermissionError where someone else made it first."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path} must be a folder of this user with mode 0700")
    return path
