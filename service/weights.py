"""Where weight sets come from: the process, then Redis, then the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from model_store.plan import draw_latents
from service.cache import ByteCache, Flights, WeightKey
from service.engine import Parts, WeightSet
from service.metrics import ServiceMetrics
from service.model import ServedModel
from service.settings import Settings
from service.timing import least_seconds

if TYPE_CHECKING:
    from service.redis_link import RedisLink
    from service.redis_tier import RedisTier

PLAN: Final = "predict"
"""The latent plan that all answers draw from."""
_FEW, _MORE, _TRIES = 1, 16, 2
"""Samples that decoding is timed with, and how often at the least."""


class WeightSource:
    """Weight sets by bundle, plan, samples and seed; each is decoded once, however many threads ask.

    Redis comes in where it is worth it: decoding takes as long as reading the decoder's last layer, whose size goes
    with its columns, and a product with it; fetching takes as long as moving the weights.
    """

    def __init__(self, settings: Settings, metrics: ServiceMetrics, link: RedisLink | None = None) -> None:
        self._settings, self._metrics = settings, metrics
        self._cache: ByteCache[WeightKey, WeightSet] = ByteCache(settings.cache_bytes)
        self._flights: Flights[WeightKey, WeightSet] = Flights()
        self._redis: RedisTier | None = None
        self._always = settings.redis_weights == "always"
        self._decoding: dict[str, tuple[float, float]] = {}
        if link is not None and settings.redis_weights != "never":
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

    def forget(self, digest: str) -> None:
        """Lets go of the sets of a bundle that is served no more, which keep its networks."""
        self._cache.drop(lambda key: key.digest == digest)
        self._metrics.cache_bytes.set(self._cache.nbytes)

    def _fetch(self, model: ServedModel, key: WeightKey) -> WeightSet:
        latents, anchors = draw_latents(model.plan(key.plan), model.nodes, key.samples, key.seed)
        parts: Parts | None = None
        tier = self._redis if self._redis is not None and self._worth_fetching(model, key) else None
        size = model.manifest.network.weights
        if tier is not None:
            weights = tier.get(key, size)
            (self._metrics.misses if weights is None else self._metrics.hits).labels("redis").inc()
            parts = None if weights is None else model.engine.cut(weights)
        if parts is None:
            parts = decoded = model.engine.decode(latents, anchors)
            self._metrics.decodes.labels(model.bundle.name).inc()
            if tier is not None:
                # What every server draws as it starts, others want too.
                usual = key.seed == 0 and key.samples == default_samples(model, self._settings)
                at_once = self._always or usual
                tier.put(key, size, lambda: model.engine.joined(decoded), at_once=at_once)
        found = model.engine.bind(parts, anchors)
        self._cache.put(key, found)
        self._metrics.cache_bytes.set(self._cache.nbytes)
        return found

    def _worth_fetching(self, model: ServedModel, key: WeightKey) -> bool:
        assert self._redis is not None
        if self._always:
            return True
        fetching = self._redis.seconds(4 * key.samples * model.manifest.network.weights)
        if fetching is None:
            return False
        if key.digest not in self._decoding:
            few, more = (_seconds_of_decoding(model, key.plan, n) for n in (_FEW, _MORE))
            each = max(more - few, 0.0) / (_MORE - _FEW)
            self._decoding[key.digest] = few, each
        any_set, each = self._decoding[key.digest]
        worth = fetching < any_set + key.samples * each
        if not worth:
            self._metrics.redis_left_out.inc()
        return worth


def default_samples(model: ServedModel, settings: Settings) -> int:
    """Samples of a request that names none: the server's setting or the plan's own, within the limits."""
    own = settings.samples if settings.samples is not None else model.plan(PLAN).samples
    return min(own, sample_limit(model, settings))


def sample_limit(model: ServedModel, settings: Settings) -> int:
    """Most samples a request may ask of a model, so that its decoded weights stay within the memory set aside."""
    fitting = settings.max_set_bytes // (4 * model.manifest.network.weights)
    return max(min(settings.max_samples, fitting), 1)


def _seconds_of_decoding(model: ServedModel, plan: str, samples: int) -> float:
    drawn = draw_latents(model.plan(plan), model.nodes, samples, 0)
    return least_seconds(lambda: model.engine.decode(*drawn), _TRIES)
