"""What the server counts, for Prometheus: one registry an application."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ServiceMetrics:
    """Counters, gauges and histograms of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fiberwalk_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fiberwalk_request_seconds",
            "Seconds from a request's arrival to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rows = Counter("fiberwalk_rows", "Rows answered.", ["route", "model"], registry=self.registry)
        self.decodes = Counter("fiberwalk_decodes", "Weight sets decoded.", ["model"], registry=self.registry)
        self.hits = Counter("fiberwalk_cache_hits", "Weight sets found in a cache.", ["tier"], registry=self.registry)
        self.misses = Counter(
            "fiberwalk_cache_misses", "Weight sets not found in a cache.", ["tier"], registry=self.registry
        )
        self.cache_bytes = Gauge(
            "fiberwalk_cache_bytes", "Bytes of weight sets held in the process.", registry=self.registry
        )
        self.redis_errors = Counter(
            "fiberwalk_redis_errors",
            "Redis operations that failed, and values that were not usable.",
            ["kind"],
            registry=self.registry,
        )
        self.redis_up = Gauge(
            "fiberwalk_redis_up",
            "1 while Redis is used, 0 while it is left alone or none is set.",
            registry=self.registry,
        )
        self.models = Gauge("fiberwalk_models_loaded", "Versions loaded and warmed.", registry=self.registry)
        self.failures = Counter(
            "fiberwalk_model_failures", "Attempts to load a version that failed.", registry=self.registry
        )
        self.feedback = Counter(
            "fiberwalk_feedback_rows", "Rows whose targets came in.", ["model"], registry=self.registry
        )
        self.coverage = Gauge(
            "fiberwalk_coverage",
            "Share of targets within the intervals or sets of a level, over the latest rows.",
            ["model", "level"],
            registry=self.registry,
        )
        self.broken = Gauge(
            "fiberwalk_calibration_broken",
            "1 once targets have missed their intervals or sets more often than promised.",
            ["model"],
            registry=self.registry,
        )
        # A series shows up from the start, not only once something happened.
        for tier in ("process", "redis"):
            self.hits.labels(tier)
            self.misses.labels(tier)
        for kind in ("connection", "timeout", "refused", "rubbish"):
            self.redis_errors.labels(kind)

    def text(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)
