"""What Prometheus is told, by the API and by a worker. A registry of its own each: nothing is global."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class ApiMetrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "scenelift_http_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "scenelift_http_seconds", "Time to the last byte.", ("route", "status"), buckets=SECONDS, registry=registry
        )
        self.refusals = Counter(
            "scenelift_refusals", "Requests answered with a problem.", ("route", "reason"), registry=registry
        )
        self.accepted = Counter("scenelift_jobs_accepted", "Jobs put into the queue.", ("model",), registry=registry)
        self.withdrawn = Counter("scenelift_jobs_withdrawn", "Jobs cancelled before they began.", registry=registry)
        self.queue = Gauge("scenelift_queue_up", "Whether the queue answers.", registry=registry)
        self.depth = Gauge("scenelift_queue_depth", "Jobs waiting or running.", registry=registry)
        self.waiting = Gauge("scenelift_queue_waiting", "Jobs that no worker has read yet.", registry=registry)
        self.oldest = Gauge(
            "scenelift_queue_oldest_seconds", "Age of the job that has waited longest for a worker.", registry=registry
        )
        self.workers = Gauge("scenelift_workers", "Workers with a heartbeat.", ("state",), registry=registry)


class WorkerMetrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.jobs = Counter("scenelift_jobs", "Jobs ended by this worker.", ("model", "status"), registry=registry)
        self.retries = Counter("scenelift_retries", "Jobs put back for another try.", registry=registry)
        self.running = Gauge("scenelift_jobs_running", "Jobs this worker holds.", registry=registry)
        self.memory = Gauge(
            "scenelift_device_memory_bytes", "Memory of the device that computes.", ("kind",), registry=registry
        )
        self.use = Gauge(
            "scenelift_device_use_ratio", "Share of the time the GPU computes; NaN: unknown.", registry=registry
        )
        self.batch = Histogram(
            "scenelift_batch_size", "Jobs a forward pass.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32), registry=registry
        )
        self.stages = Histogram(
            "scenelift_stage_seconds", "Seconds a try at a job spent.", ("stage",), buckets=SECONDS, registry=registry
        )
