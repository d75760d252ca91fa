"""Where weight sets come from: the process, then Redis, then the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_store.plan import draw_latents
from service.cache import ByteCache, Flights, WeightKey
from service.engine import WeightSet
from service.metrics import ServiceMetrics
from service.model import ServedModel
from service.settings import Settings

if TYPE_CHECKING:
    from service.redis_link import RedisLink
    from service.redis_tier import RedisTier


class WeightSource:
    """Weight sets by bundle, plan, samples and seed; each is decoded once, however many threads ask."""

    def __init__(self, settings: Settings, metrics: ServiceMetrics, link: RedisLink | None = None) -> None:
        self._metrics = metrics
        self._cache: ByteCache[WeightKey, WeightSet] = ByteCache(settings.cache_bytes)
        self._flights: Flights[WeightKey, WeightSet] = Flights()
        self._redis: RedisTier | None = None
        if link is not None:
            # redis is imported only where it is used: it would lengthen every start.
            from service.redis_tier import RedisTier as Tier

            self._redis = Tier(link, ttl=settings.redis_ttl, max_bytes=settings.redis_max_bytes)

    def get(self, model: ServedModel, plan: str, samples: int, seed: int) -> WeightSet:
        """The S = samples weight vectors that (plan, samples, seed) mean for a model."""
        key = WeightKey(model.bundle.digest, plan, samples, seed)
        held = self._cache.get(key)
        if held is not None:
            self._metrics.hits.labels("process").inc()
            return held
        self._metrics.misses.labels("process").inc()
        return self._flights.run(key, lambda: self._fetch(model, key))

    def _fetch(self, model: ServedModel, key: WeightKey) -> WeightSet:
        latents, anchors = draw_latents(model.plan(key.plan), model.nodes, key.samples, key.seed)
        weights = None
        if self._redis is not None:
            weights = self._redis.get(key, model.manifest.network.weights)
            (self._metrics.misses if weights is None else self._metrics.hits).labels("redis").inc()
        if weights is None:
            weights = model.engine.decode(latents, anchors)
            self._metrics.decodes.labels(model.bundle.name).inc()
            if self._redis is not None:
                self._redis.put(key, weights)
        found = model.engine.split(weights, anchors)
        self._cache.put(key, found)
        self._metrics.cache_bytes.set(self._cache.nbytes)
        return found
