"""What the server counts, for Prometheus: one registry an application, or one of all workers of a server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

WORKERS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder in which workers keep what they count, set before the library is imported."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)


class ServiceMetrics:
    """Counters, gauges and histograms of one application; where it is one of several workers, each tells of all."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._told = self.registry
        folder = os.environ.get(WORKERS_FOLDER)
        if folder:
            _forget_ended(Path(folder))
            self._told = CollectorRegistry()
            multiprocess.MultiProcessCollector(self._told, folder)  # type: ignore[no-untyped-call]
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
        self.redis_left_out = Counter(
            "fiberwalk_redis_left_out",
            "Weight sets decoded without asking Redis, which was expected to take longer.",
            registry=self.registry,
        )
        self.cache_bytes = Gauge(
            "fiberwalk_cache_bytes",
            "Bytes of weight sets held in the process, of all workers together.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.redis_errors = Counter(
            "fiberwalk_redis_errors",
            "Redis operations that failed, and values that were not usable.",
            ["kind"],
            registry=self.registry,
        )
        self.redis_up = Gauge(
            "fiberwalk_redis_up",
            "1 while Redis is used, 0 while it is left alone or none is set; of workers the least.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self.batch_rows = Histogram(
            "fiberwalk_batch_rows",
            "Rows that went through the network together.",
            ["model"],
            buckets=_COUNTS,
            registry=self.registry,
        )
        self.batch_requests = Histogram(
            "fiberwalk_batch_requests",
            "Requests whose rows went through the network together.",
            ["model"],
            buckets=_COUNTS,
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "fiberwalk_queue_seconds",
            "Seconds from a request's arrival until its rows went into the network.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "fiberwalk_waiting_requests",
            "Requests that wait their turn, of all workers together.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.overloads = Counter(
            "fiberwalk_overloads", "Requests refused as too many waited already.", registry=self.registry
        )
        self.models = Gauge(
            "fiberwalk_models_loaded",
            "Versions loaded and warmed; of workers the least.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self.failed = Gauge(
            "fiberwalk_models_failed",
            "Versions that a name or an alias means and that did not load; of workers the most.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.failures = Counter(
            "fiberwalk_model_failures", "Attempts to load a version that failed.", registry=self.registry
        )
        self.feedback = Counter(
            "fiberwalk_feedback_rows", "Rows whose targets came in.", ["model"], registry=self.registry
        )
        self.redis_dropped = Counter(
            "fiberwalk_redis_dropped",
            "Predictions and requests for scores that other servers were not let know of.",
            registry=self.registry,
        )
        # A series shows up from the start, not only once something happened.
        for tier in ("process", "redis"):
            self.hits.labels(tier)
            self.misses.labels(tier)
        for kind in ("connection", "timeout", "refused", "rubbish"):
            self.redis_errors.labels(kind)

    def watch(self, healths: Callable[[], list[tuple[str, dict[str, Any]]]]) -> None:
        """Adds gauges of models' health, by name, as it is when the series are asked for."""
        self._told.register(_Health(healths))

    def text(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self._told)


def _forget_ended(folder: Path) -> None:
    """Drops the gauges of workers that are no more, of which this one may take the place; what they counted stays."""
    for pid in {file.stem.rpartition("_")[2] for file in folder.glob("gauge_live*.db")}:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]


class _Health(Collector):
    """Read at each scrape and not when something is told: so all servers on one Redis say the same."""

    def __init__(self, healths: Callable[[], list[tuple[str, dict[str, Any]]]]) -> None:
        self._healths = healths

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        version = GaugeMetricFamily(
            "fiberwalk_model_version", "Version that answers for the bare name.", labels=["model"]
        )
        coverage = GaugeMetricFamily(
            "fiberwalk_coverage",
            "Share of targets within the intervals or sets of a level, over the latest rows.",
            labels=["model", "level"],
        )
        nll = GaugeMetricFamily(
            "fiberwalk_nll", "Mean negative log likelihood in nats, over the latest rows.", labels=["model"]
        )
        ece = GaugeMetricFamily(
            "fiberwalk_ece",
            "Expected calibration error of the likeliest class, over the latest rows.",
            labels=["model"],
        )
        unfamiliar = GaugeMetricFamily(
            "fiberwalk_ood_share", "Share of the latest scored rows that the detector flags.", labels=["model"]
        )
        broken = GaugeMetricFamily(
            "fiberwalk_calibration_broken",
            "1 once targets have missed their intervals or sets more often than promised.",
            labels=["model"],
        )
        shared = GaugeMetricFamily(
            "fiberwalk_monitor_shared",
            "1 where these gauges are those of all servers on one Redis, 0 where of this process alone.",
            labels=["model"],
        )
        for name, health in self._healths():
            version.add_metric([name], health["version"])
            broken.add_metric([name], float(health["state"] == "broken"))
            shared.add_metric([name], float(health["scope"] == "shared"))
            if health["ood"]["flagged"] is not None:
                unfamiliar.add_metric([name], health["ood"]["flagged"])
            for window in health["windows"][-1:]:
                nll.add_metric([name], window["nll"])
                if window["ece"] is not None:
                    ece.add_metric([name], window["ece"])
                for level, share in window["coverage"].items():
                    coverage.add_metric([name, level], share)
        return [version, coverage, nll, ece, unfamiliar, broken, shared]
