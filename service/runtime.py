"""Everything one application holds while it runs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from service.bodies import Bodies
from service.feedback import Feedback
from service.inference import Inference
from service.log import make_logger
from service.memory import keep_giving_back
from service.metrics import ServiceMetrics
from service.models import Models
from service.scheduler import Scheduler
from service.settings import Settings
from service.weights import WeightSource

if TYPE_CHECKING:
    from service.redis_link import RedisLink

_STOP_SECONDS = 10.0


class Runtime:
    """Settings, log, metrics, models, caches and the worker threads of one application."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = make_logger(settings)
        self.metrics = ServiceMetrics()
        self.redis: RedisLink | None = None
        if settings.redis_url is not None:
            # redis is imported only where it is used: it would lengthen every start.
            from service.redis_link import RedisLink as Link

            self.redis = Link(
                settings.redis_url.get_secret_value(),
                timeout=settings.redis_timeout,
                retry=settings.redis_retry,
                metrics=self.metrics,
                log=self.log,
            )
        self.weights = WeightSource(settings, self.metrics, self.redis)
        self.models = Models(settings, self.weights, self.metrics, self.log)
        self.feedback = Feedback(settings, self.models, self.metrics, self.redis)
        self.inference = Inference(settings, self.models, self.metrics, self.feedback)
        self.bodies = Bodies(settings, self.metrics)
        self.scheduler = Scheduler(settings, self.weights, self.metrics)
        self._stopped = threading.Event()
        self._beside = [
            threading.Thread(target=target, args=(self._stopped,), name=name, daemon=True)
            for name, target in (
                ("store", self.models.watch),
                ("models", self.models.follow),
                ("memory", keep_giving_back),
            )
        ]

    def start(self) -> None:
        """Starts the workers, and asking Redis, loading and following the models in the background."""
        if self.redis is not None:
            self.redis.start()
        self.scheduler.start()
        for thread in self._beside:
            thread.start()

    def stop(self) -> None:
        """Stops the workers and following the models, and lets go of what is outside the process."""
        self._stopped.set()
        self.scheduler.stop()
        # The interpreter must not go down below a model that is being loaded.
        for thread in self._beside:
            thread.join(_STOP_SECONDS)
        self.feedback.close()
        if self.redis is not None:
            self.redis.close()
