"""The versions that the server holds: loaded ones, and why others are not."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from model_store.bundle import Bundle
from model_store.errors import FiberwalkError, IncompatibleError, IntegrityError, StoreError, UnknownModelError
from model_store.shelf import Stamp
from model_store.store import ModelStore
from service.cache import Flights
from service.look import Look, Version
from service.memory import give_back
from service.metrics import ServiceMetrics
from service.model import Asked, ServedModel
from service.settings import Settings
from service.weights import PLAN, WeightSource, default_samples

_FRESH_SECONDS = 1.0
"""How long a version whose stamp is never the same twice is taken for the same bundle."""
_RETRY_SECONDS: Final = (1.0, 10.0)
"""How long a version that did not load is left alone: at first, as it may be being copied, and at the most."""
_PATIENCE_SECONDS: Final = 120.0
"""How long a load is waited for: one that never ends must not hold up other models, or every thread that asks."""


@dataclass(frozen=True)
class Held:
    """A loaded version, what the store had in its place, and when another stamp was last seen to be of the same."""

    model: ServedModel
    stamp: Stamp
    checked: float = -math.inf

    def is_of(self, stamp: Stamp | None) -> bool:
        """Whether the store has it still, by a stamp; of None it cannot be said, and what is held goes on."""
        # Some file systems never tell the same of a file twice.
        return stamp is None or stamp == self.stamp or time.monotonic() - self.checked < _FRESH_SECONDS


@dataclass(frozen=True)
class Failed:
    """Why a version did not load, what the store had in its place, when that was, and how long it is left alone."""

    error: StoreError
    stamp: Stamp | None
    time: float
    wait: float


class Versions:
    """Loaded versions. Thread-safe; a version is loaded once, however many threads ask.

    Args:
        store: where they are loaded from.
        settings: how they are run, and how many may stay that nothing means.
        weights: where they get their first weights, which are forgotten with them.
        metrics: count them.
        log: is told of each that comes, fails or goes.
        wanted: says which versions names and aliases mean.
    """

    def __init__(
        self,
        store: ModelStore,
        settings: Settings,
        weights: WeightSource,
        metrics: ServiceMetrics,
        log: structlog.typing.FilteringBoundLogger,
        wanted: Callable[[], set[Version]],
    ) -> None:
        self._store, self._settings, self._weights = store, settings, weights
        self._metrics, self._log, self._wanted = metrics, log, wanted
        self._loaded: dict[Version, Held] = {}
        self._failed: dict[Version, Failed] = {}
        self._leaving: list[tuple[str, weakref.ref[ServedModel]]] = []
        self._loading: Flights[Version, ServedModel] = Flights()
        self._lock = threading.Lock()

    def references(self) -> list[str]:
        """`NAME@VERSION` of every version that is loaded and warmed."""
        with self._lock:
            return sorted(reference_of(v) for v in self._loaded)

    def problems(self) -> dict[str, StoreError]:
        """Why versions are not served, without the machine's paths, by `NAME@VERSION`."""
        with self._lock:
            return {reference_of(v): failed.error for v, failed in sorted(self._failed.items())}

    def peek(self, version: Version) -> ServedModel | None:
        """A version, if it is loaded; loads nothing, and is no use of it."""
        with self._lock:
            held = self._loaded.get(version)
        return None if held is None else held.model

    def has_failed(self, version: Version, stamp: Stamp | None) -> bool:
        """Whether what the store has in a version's place, by the stamp, is known not to load."""
        with self._lock:
            failed = self._failed.get(version)
            return failed is not None and failed.stamp == stamp and version not in self._loaded

    def get(self, version: Version, stamp: Stamp | None) -> ServedModel:
        """The model of a version.

        Args:
            version: is loaded where it has to be.
            stamp: what the store was seen to have in its place; None where that cannot be read, and what is loaded
                goes on.

        Raises:
            UnknownModelError: there is no such version any more.
            IntegrityError, IncompatibleError: it does not verify or cannot be run.
            StoreError: it cannot be read, or takes long to load.
        """
        model = self.get_within(version, stamp, _PATIENCE_SECONDS)
        if model is None:
            # It counts as failed until it is loaded after all.
            told = f"{reference_of(version)} takes more than {_PATIENCE_SECONDS:.0f} s to load; ask again later. "
            told += "If it never loads, remove it and restart the server."
            raise self._refused(version, stamp, StoreError(told))
        return model

    def get_within(self, version: Version, stamp: Stamp | None, seconds: float) -> ServedModel | None:
        """As `get`, but None where it is not loaded so long after its load began, which goes on."""
        known = self._known(version, stamp)
        if known is not None:
            return known
        loading = self._loading.begin(version, lambda: self._load(version))
        return loading.value.result() if loading.ends_within(seconds) else None

    def bundle(self, version: Version, stamp: Stamp | None) -> Bundle:
        """The bundle of a version, to be read; its networks are not loaded. Arguments and errors as of `get`."""
        model = self._known(version, stamp)
        if model is not None:
            return model.bundle
        try:
            return self._store.open(reference_of(version))
        except UnknownModelError:
            raise  # it went meanwhile
        except StoreError as e:
            raise self._refused(version, stamp, e) from e

    def settle(self, look: Look, wanted: set[Version]) -> None:
        """Lets go of versions that the store has no more, or has something else in place of that nothing means.

        Args:
            look: what the store has.
            wanted: the versions that names and aliases mean; why others did not load is forgotten.
        """
        with self._lock:
            loaded = dict(self._loaded)
        self._let_go({v: held for v, held in loaded.items() if self._is_gone(v, held, look, wanted)})
        self._forget_again()
        with self._lock:
            # What was given up just as it came to be loaded is served.
            served = {v for v, f in self._failed.items() if v in self._loaded and self._loaded[v].stamp == f.stamp}
            self._failed = {v: failed for v, failed in self._failed.items() if v in wanted - served}
        self._count()

    # ---- loading

    def _known(self, version: Version, stamp: Stamp | None) -> ServedModel | None:
        """A loaded model; None where it has to be loaded. Raises what kept it from loading a short while ago."""
        with self._lock:
            held, failed = self._loaded.get(version), self._failed.get(version)
            if held is not None and held.is_of(stamp):
                self._loaded[version] = self._loaded.pop(version)  # last is the most recently used
                return held.model
        if failed is not None and failed.stamp == stamp and time.monotonic() - failed.time < failed.wait:
            raise failed.error
        return None

    def _load(self, version: Version) -> ServedModel:
        try:
            # Seen before the bundle is read: what takes its place meanwhile has another.
            stamp = self._store.stamp(*version)
        except UnknownModelError:
            raise
        except StoreError as e:
            raise self._refused(version, None, e) from e
        # Whoever asks may have seen what was there before.
        known = self._known(version, stamp)
        if known is not None:
            return known
        with self._lock:
            held = self._loaded.get(version)
        started = time.perf_counter()
        try:
            model = self._warmed(version, held)
        except UnknownModelError:
            raise  # it went meanwhile
        except StoreError as e:
            refused = self._refused(version, stamp, e)
            self._let_go({} if held is None else {version: held})
            raise refused from e
        same = held is not None and held.model is model
        with self._lock:
            self._failed.pop(version, None)
            self._loaded[version] = Held(model, stamp, time.monotonic() if same else -math.inf)
        self._count()
        if same:
            return model
        self._leave([held.model] if held is not None else [])
        self._forget_surplus(version)
        give_back()
        seconds = round(time.perf_counter() - started, 3)
        self._log.info("model_loaded", model=model.reference, device=model.engine.device, seconds=seconds)
        return model

    def _refused(self, version: Version, stamp: Stamp | None, error: StoreError) -> StoreError:
        """The error of a version that did not load, as a client is told it; it is remembered, counted and logged."""
        self._metrics.failures.inc()
        public = type(error)(public_message(version, error), code=error.code, field="model")
        with self._lock:
            before = self._failed.get(version)
            again = before is not None and before.stamp == stamp
            wait = min(2 * before.wait, _RETRY_SECONDS[1]) if before is not None and again else _RETRY_SECONDS[0]
            self._failed[version] = Failed(public, stamp, time.monotonic(), wait)
        self._count()
        log = self._log.debug if again else self._log.error
        log("model_not_served", model=reference_of(version), code=error.code, reason=error.message)
        return public

    def _warmed(self, version: Version, held: Held | None) -> ServedModel:
        """A version ready to be asked; the one that is held where the store has the same bundle still."""
        settings = self._settings
        try:
            bundle = self._store.open(reference_of(version))
            if held is not None and held.model.bundle.digest == bundle.digest:
                return held.model
            model = ServedModel(bundle, threads=settings.threads, run_size=settings.run_size, device=settings.device)
            x = model.encoder.typical()
            weights = self._weights.get(model, PLAN, default_samples(model, settings), 0)
            model.unfamiliarity(x, model.predict(weights, x, Asked(0.9, scores=True)))
        except FiberwalkError as e:
            if isinstance(e, StoreError):
                raise
            raise IntegrityError(f"{reference_of(version)} cannot predict a typical row; build it again.") from e
        except Exception as e:
            # Whatever a bundle makes a library raise, the other models go on serving.
            raise IntegrityError(f"{reference_of(version)} cannot be run ({e}); build it again.") from e
        return model

    # ---- letting go

    def _is_gone(self, version: Version, held: Held, look: Look, wanted: Collection[Version]) -> bool:
        if look.has(version) and (version in wanted or look.stamp(version) in {None, held.stamp}):
            return False
        try:
            # A request may have loaded it after the look.
            changed = self._store.stamp(*version) != held.stamp and version not in wanted
            return changed and self._store.open(reference_of(version)).digest != held.model.bundle.digest
        except (UnknownModelError, IntegrityError, IncompatibleError):
            return True
        except StoreError:
            return False  # it may come to be readable again

    def _let_go(self, versions: Mapping[Version, Held]) -> None:
        """Lets go of versions, unless something else has been loaded in their place meanwhile."""
        with self._lock:
            gone = [self._loaded.pop(v).model for v, held in versions.items() if self._loaded.get(v) is held]
        self._leave(gone)
        if gone:
            give_back()

    def _leave(self, models: Collection[ServedModel]) -> None:
        """Forgets models that are served no more; requests in flight go on with theirs."""
        for model in models:
            with self._lock:
                self._leaving.append((model.bundle.digest, weakref.ref(model)))
            self._weights.forget(model.bundle.digest)
            self._log.info("model_unloaded", model=model.reference)
        self._count()

    def _forget_again(self) -> None:
        """Forgets what requests that were in flight had decoded of models that had left already."""
        with self._lock:
            leaving = self._leaving
            self._leaving = [each for each in leaving if each[1]() is not None]
            # A backup may have brought it back.
            back = {held.model.bundle.digest for held in self._loaded.values()}
        for digest, _ in leaving:
            if digest not in back:
                self._weights.forget(digest)

    def _forget_surplus(self, latest: Version) -> None:
        """Lets go of the least recently used versions that no name and no alias means any more."""
        wanted = self._wanted() | {latest}
        with self._lock:
            surplus = [v for v in self._loaded if v not in wanted]
            gone = [self._loaded.pop(v).model for v in surplus[: max(len(surplus) - self._settings.spare_models, 0)]]
        self._leave(gone)

    def _count(self) -> None:
        self._metrics.models.set(len(self._loaded))
        self._metrics.failed.set(len(self._failed))


def reference_of(version: Version) -> str:
    """`NAME@VERSION` of a version."""
    return f"{version[0]}@{version[1]}"


def public_message(version: Version, error: StoreError) -> str:
    """What a client is told of a version's error, without the machine's paths."""
    if error.code == "no_device":
        return f"{reference_of(version)} is not served; {error.message[0].lower()}{error.message[1:]}"
    if error.code == "store_error":
        return error.message
    why = {
        "incompatible_bundle": "was written by another version of fiberwalk",
        "external_data": "keeps data outside its files",
    }.get(error.code, "does not verify")
    return f"{reference_of(version)} {why} and is not served; publish it again. The server's log has the details."
