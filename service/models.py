"""The models that are served: loaded at the start, followed as names and aliases move."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Final, Literal, TypeVar

import structlog

from model_store.errors import (
    FiberwalkError,
    IncompatibleError,
    InputError,
    IntegrityError,
    StoreError,
    UnknownModelError,
)
from model_store.shelf import Stamp
from model_store.store import ModelStore
from service.cache import Flights
from service.held import Failed, Held
from service.memory import forget_frames, give_back
from service.metrics import ServiceMetrics
from service.model import Asked, ServedModel
from service.settings import Settings
from service.weights import WeightSource

T = TypeVar("T")
Version = tuple[str, int]
State = Literal["loading", "ready", "failed"]

PLAN: Final = "predict"
"""The latent plan that all answers draw from."""
_FRESH_SECONDS = 1.0
"""How old an answer of the store's may be; so long a moved alias takes to be followed."""
_RETRY_SECONDS: Final = (1.0, 10.0)
"""How long a version that did not load is left alone: at first, as it may be being copied, and at the most."""
_WATCH_SECONDS = 2.0
_MAX_REMEMBERED = 1024


class Models:
    """Loaded versions by reference. Thread-safe; a version is loaded once, however many threads ask."""

    def __init__(
        self,
        settings: Settings,
        weights: WeightSource,
        metrics: ServiceMetrics,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.store = ModelStore(settings.store)
        self._settings, self._weights, self._metrics, self._log = settings, weights, metrics, log
        self._loaded: dict[Version, Held] = {}
        self._failed: dict[Version, Failed] = {}
        self._meaningless: dict[str, StoreError] = {}
        self._leaving: list[tuple[str, weakref.ref[ServedModel]]] = []
        self._remembered: dict[str, tuple[object, float]] = {}
        self._flights: Flights[Version, ServedModel] = Flights()
        self._lock = threading.Lock()
        self._told: set[tuple[str, str]] = set()
        self._state: State = "loading"

    # ---- loading

    def watch(self, stop: threading.Event) -> None:
        """Loads what the store means now, and from then on what it comes to mean, until told to stop.

        So a version that is published, that takes another's place, or that an alias moves to, is warm before most
        requests for it; one that did not verify is taken up once it is repaired, and one that is gone is let go.
        """
        while not stop.is_set():
            try:
                self.load_all(stop)
            except Exception:
                # Whatever lies in the store, it is looked at again.
                self._log.exception("store_not_followed")
            stop.wait(_WATCH_SECONDS)

    def load_all(self, stop: threading.Event | None = None) -> None:
        """Loads and warms every version that a name or an alias means; one that fails is reported, not raised.

        Args:
            stop: set when the rest need not be loaded any more.
        """
        wanted, meaningless, failure = set[Version](), dict[str, StoreError](), ""
        try:
            if not self.store.root.is_dir():
                raise StoreError(f"There is no model store at {self.store.root}; build a model first.")
            wanted, meaningless = self._wanted()
        except (StoreError, OSError) as e:
            failure = str(e)
        self._let_go_of_gone(wanted)
        self._meaningless = meaningless
        self._told = {told for told in self._told if told[1] in meaningless}  # what is mended may break again
        with self._lock:
            self._failed = {v: failed for v, failed in self._failed.items() if v in wanted}
        if failure:
            if self._state != "failed":
                self._log.error("store_not_readable", reason=failure)
            self._state = "failed"
            return
        for version in sorted(wanted):
            if stop is not None and stop.is_set():
                return
            try:
                self._get(version, self.store.stamp(*version))
            except StoreError as e:  # logged where it happened
                forget_frames(e)
        # A damaged bundle must not take the healthy ones out of service, unless none is healthy.
        state: State = "failed" if (self._failed or self._meaningless) and not self._loaded else "ready"
        if state != self._state:
            self._log.info("models_" + state, models=self.loaded(), failed=[p["model"] for p in self.problems()])
        self._state = state

    @property
    def state(self) -> State:
        """`loading` until `load_all` is through; `failed` where no model can be served."""
        return self._state

    def loaded(self) -> list[str]:
        """`NAME@VERSION` of every version that is loaded and warmed."""
        with self._lock:
            return sorted(_reference(v) for v in self._loaded)

    def problems(self) -> list[dict[str, str]]:
        """Versions that are not served, and references that mean none, and why, without the machine's paths."""
        with self._lock:
            failed = {_reference(v): failed.error for v, failed in sorted(self._failed.items())}
        return [{"model": r, "code": e.code, "message": e.message} for r, e in (failed | self._meaningless).items()]

    # ---- finding

    def get(self, reference: str | None) -> ServedModel:
        """The loaded model that `NAME`, `NAME@VERSION` or `NAME@ALIAS` means; None means the only one there is.

        Raises:
            UnknownModelError, InvalidNameError: there is none such.
            InputError: no reference, and the store has several models.
            IntegrityError, IncompatibleError: it does not verify or cannot be run.
        """
        if reference is None:
            reference = self._only()
        wanted = reference
        return self._get(*self._recall(f"@{wanted}", lambda: self._find(wanted)))

    def names(self) -> list[str]:
        """The names of all models in the store."""
        return self._recall("names", self.store.names)

    def current(self) -> list[ServedModel]:
        """The models that bare names mean, as far as they are loaded; loads nothing."""
        found = []
        for name in self.names():
            with suppress(StoreError):
                version, _ = self._recall(f"@{name}", lambda wanted=name: self._find(wanted))  # type: ignore[misc]
                with self._lock:
                    found += [self._loaded[version].model] if version in self._loaded else []
        return found

    def _only(self) -> str:
        names = self.names()
        if len(names) == 1:
            return names[0]
        if not names:
            raise UnknownModelError(
                "The store holds no model yet; build one first.",
                field="model",
                expected="a published model",
                got="none",
            )
        raise InputError(
            "Say which model is meant; the store has several.",
            code="model_required",
            field="model",
            expected="one of: " + ", ".join(names),
            got="no model",
        )

    def _recall(self, question: str, ask: Callable[[], T]) -> T:
        now = time.monotonic()
        held = self._remembered.get(question)
        if held is not None and now - held[1] < _FRESH_SECONDS:
            return held[0]  # type: ignore[return-value]
        answer = ask()
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[question] = (answer, now)
        return answer

    # ---- inside

    def _find(self, reference: str) -> tuple[Version, Stamp]:
        version = self.store.resolve(reference)
        return version, self.store.stamp(*version)

    def _get(self, version: Version, stamp: Stamp) -> ServedModel:
        """The model of a version, where the store was seen to have what the stamp tells."""
        return self._known(version, stamp) or self._flights.run(version, lambda: self._load(version))

    def _known(self, version: Version, stamp: Stamp) -> ServedModel | None:
        """A loaded model; None where it has to be loaded. Raises what kept it from loading a short while ago."""
        with self._lock:
            held, failed = self._loaded.get(version), self._failed.get(version)
            # Some file systems never tell the same of a file twice.
            if held is not None and (held.stamp == stamp or time.monotonic() - held.checked < _FRESH_SECONDS):
                self._loaded[version] = self._loaded.pop(version)  # last is the most recently used
                return held.model
        if failed is not None and failed.stamp == stamp and time.monotonic() - failed.time < failed.wait:
            raise failed.error
        return None

    def _load(self, version: Version) -> ServedModel:
        # Seen before the bundle is read: what takes its place meanwhile has another.
        stamp = self.store.stamp(*version)
        # Whoever asks may have seen what was there before.
        known = self._known(version, stamp)
        if known is not None:
            return known
        with self._lock:
            held = self._loaded.get(version)
        started = time.perf_counter()
        try:
            model = self._warmed(version, held)
        except StoreError as e:
            self._let_go({} if held is None else {version: held})
            if isinstance(e, UnknownModelError):
                raise  # it went meanwhile
            self._metrics.failures.inc()
            public = type(e)(_public(version, e), code=e.code, field="model")
            with self._lock:
                before = self._failed.get(version)
                again = before is not None and before.stamp == stamp
                wait = min(2 * before.wait, _RETRY_SECONDS[1]) if before is not None and again else _RETRY_SECONDS[0]
                self._failed[version] = Failed(public, stamp, time.monotonic(), wait)
            log = self._log.debug if again else self._log.error
            log("model_not_served", model=_reference(version), code=e.code, reason=e.message)
            raise public from e
        same = held is not None and held.model is model
        with self._lock:
            self._failed.pop(version, None)
            self._loaded[version] = Held(model, stamp, time.monotonic() if same else -math.inf)
        if same:
            self._metrics.models.set(len(self._loaded))
            return model
        self._leave([held.model] if held is not None else [])
        self._forget_surplus(version)
        give_back()
        seconds = round(time.perf_counter() - started, 3)
        self._log.info("model_loaded", model=model.reference, device=model.engine.device, seconds=seconds)
        return model

    def _warmed(self, version: Version, held: Held | None) -> ServedModel:
        """A version ready to be asked; the one that is held where the store has the same bundle still."""
        settings = self._settings
        try:
            bundle = self.store.open(_reference(version))
            if held is not None and held.model.bundle.digest == bundle.digest:
                return held.model
            model = ServedModel(bundle, threads=settings.threads, run_size=settings.run_size, device=settings.device)
            x = model.encoder.typical()
            weights = self._weights.get(model, PLAN, default_samples(model, settings), 0)
            model.unfamiliarity(x, model.predict(weights, x, Asked(0.9, scores=True)))
        except FiberwalkError as e:
            if isinstance(e, StoreError):
                raise
            raise IntegrityError(f"{_reference(version)} cannot predict a typical row; build it again.") from e
        except Exception as e:
            # Whatever a bundle makes a library raise, the other models go on serving.
            raise IntegrityError(f"{_reference(version)} cannot be run ({e}); build it again.") from e
        return model

    # ---- letting go

    def _let_go_of_gone(self, wanted: Collection[Version]) -> None:
        """Lets go of versions that the store has no more, or has something else in place of that nothing means."""
        with self._lock:
            loaded = dict(self._loaded)
        gone = {}
        for version, held in loaded.items():
            try:
                changed = self.store.stamp(*version) != held.stamp and version not in wanted
                if changed and self.store.open(_reference(version)).digest != held.model.bundle.digest:
                    gone[version] = held
            except (UnknownModelError, IntegrityError, IncompatibleError):
                gone[version] = held
            except StoreError:
                continue  # it may come to be readable again
        self._let_go(gone)
        self._forget_again()

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
        self._metrics.models.set(len(self._loaded))

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
        try:
            wanted = self._wanted()[0] | {latest}
        except (StoreError, OSError):
            return  # `load_all` tells of it
        with self._lock:
            surplus = [v for v in self._loaded if v not in wanted]
            gone = [self._loaded.pop(v).model for v in surplus[: max(len(surplus) - self._settings.spare_models, 0)]]
        self._leave(gone)

    def _wanted(self) -> tuple[set[Version], dict[str, StoreError]]:
        """Every version that a bare name or an alias means, and why those mean none that do not."""
        wanted: set[Version] = set()
        meaningless: dict[str, StoreError] = {}
        for name in self.store.names():
            try:
                references = [name, *(f"{name}@{alias}" for alias in self.store.aliases(name))]
            except StoreError as e:
                self._tell_once("aliases_not_readable", name, e)
                meaningless[name] = e
                continue
            for reference in references:
                try:
                    wanted.add(self.store.resolve(reference))
                except StoreError as e:
                    self._tell_once("alias_means_nothing", reference, e)
                    meaningless[reference] = e
        for error in meaningless.values():
            forget_frames(error)
        return wanted, meaningless

    def _tell_once(self, event: str, model: str, error: StoreError) -> None:
        """Logs what each look at the store would find again."""
        if (event, model) not in self._told:
            self._told.add((event, model))
            self._log.warning(event, model=model, reason=error.message)


def default_samples(model: ServedModel, settings: Settings) -> int:
    """Samples of a request that names none: the server's setting or the plan's own, within the limits."""
    own = settings.samples if settings.samples is not None else model.plan(PLAN).samples
    return min(own, sample_limit(model, settings))


def sample_limit(model: ServedModel, settings: Settings) -> int:
    """Most samples a request may ask of a model, so that its decoded weights stay within the memory set aside."""
    fitting = settings.max_set_bytes // (4 * model.manifest.network.weights)
    return max(min(settings.max_samples, fitting), 1)


def _reference(version: Version) -> str:
    return f"{version[0]}@{version[1]}"


def _public(version: Version, error: StoreError) -> str:
    if error.code == "no_device":
        return f"{_reference(version)} is not served; {error.message[0].lower()}{error.message[1:]}"
    why = {
        "incompatible_bundle": "was written by another version of fiberwalk",
        "external_data": "keeps data outside its files",
    }.get(error.code, "does not verify")
    return f"{_reference(version)} {why} and is not served; publish it again. The server's log has the details."
