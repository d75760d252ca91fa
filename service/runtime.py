"""Everything one application holds while it runs."""

from __future__ import annotations

import threading

from anyio import CapacityLimiter

from service.inference import Inference
from service.log import make_logger
from service.metrics import ServiceMetrics
from service.models import Models
from service.settings import Settings
from service.weights import WeightSource


class Runtime:
    """Settings, log, metrics, models, caches and the worker threads' limit of one application."""

    limiter: CapacityLimiter

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = make_logger(settings)
        self.metrics = ServiceMetrics()
        self.weights = WeightSource(settings, self.metrics, self.log)
        self.models = Models(settings, self.weights, self.metrics, self.log)
        self.inference = Inference(settings, self.models, self.weights, self.metrics)
        self._stopped = threading.Event()

    def start(self) -> None:
        """Starts loading and following the models in the background; called on the event loop."""
        self.limiter = CapacityLimiter(self.settings.workers)
        threading.Thread(target=self.models.watch, args=(self._stopped,), name="models", daemon=True).start()

    def stop(self) -> None:
        """Lets go of what is outside the process."""
        self._stopped.set()
        self.weights.close()
