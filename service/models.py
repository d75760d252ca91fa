"""The models that are served: loaded at the start, followed as names and aliases move."""

from __future__ import annotations

import threading
import time
from typing import Literal

import structlog

from model_store.bundle import Bundle
from model_store.errors import InputError, OverloadedError, StoreError, UnknownModelError
from model_store.shelf import CHAMPION, Shelf
from model_store.store import ModelStore
from service.held import Versions, reference_of
from service.look import Choice, Look, Version, folders_of, look_through
from service.memory import forget_frames
from service.metrics import ServiceMetrics
from service.model import ServedModel
from service.settings import Settings
from service.weights import WeightSource

State = Literal["loading", "ready", "failed"]

_WATCH_SECONDS = 1.0
"""Between two looks at the store; so long a moved alias takes to be followed."""
_STALE_SECONDS = 15.0
"""How old the last look at the store may be, before its file system is taken to hang."""
_WAIT_SECONDS = 5.0
"""How long after a load began requests wait for it: threads that wait are missed by requests for other models."""
_MOMENT_SECONDS = 0.5
"""The same where another version can stand in."""


class Models:
    """Loaded versions by reference. Thread-safe.

    One thread looks through the store and another loads what it means, so that what takes long to load does not hide
    that the store does not answer. Requests go by the last look: only what it does not know is asked of the disk.
    """

    def __init__(
        self,
        settings: Settings,
        weights: WeightSource,
        metrics: ServiceMetrics,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.store = ModelStore(settings.store)
        self._log = log
        self._versions = Versions(self.store, settings, weights, metrics, log, self._wanted)
        self._look, self._looked = Look(), time.monotonic()
        self._news = threading.Event()
        self._answering: dict[str, Version] = {}  # what was last loaded for each bare name and alias
        self._state: State = "loading"

    # ---- following the store

    def watch(self, stop: threading.Event) -> None:
        """Looks through the store again and again, until told to stop."""
        while not stop.is_set():
            try:
                self.look()
            except Exception:
                # Whatever lies in the store, it is looked at again.
                self._log.exception("store_not_followed")
            self._news.set()
            stop.wait(_WATCH_SECONDS)

    def follow(self, stop: threading.Event) -> None:
        """Loads what each look finds that the store means, until told to stop.

        So a version that is published, that takes another's place, or that an alias moves to, is warm before most
        requests for it; one that did not verify is taken up once it is repaired, and one that is gone is let go.
        """
        while not stop.is_set():
            if self._news.wait(_WATCH_SECONDS):
                self._news.clear()
                try:
                    self.load(stop)
                except Exception:
                    self._log.exception("store_not_followed")

    def load_all(self) -> None:
        """Looks through the store once, and loads what it means."""
        self.look()
        self.load()

    def look(self) -> None:
        """Looks through the store once; what it cannot be asked stays as it was."""
        last, look = self._look, look_through(self.store, self._look)
        if look.failure is not None and last.failure is None:
            self._log.error("store_not_readable", store=str(self.store.root), reason=look.failure.message)
        for reference, error in look.problems.items():
            if reference not in last.problems:
                event = "alias_means_nothing" if isinstance(error, UnknownModelError) else "model_not_readable"
                self._log.warning(event, model=reference, reason=error.message)
        self._look, self._looked = look, time.monotonic()

    def load(self, stop: threading.Event | None = None) -> None:
        """Loads and warms every version that a name or an alias means; one that fails is reported, not raised.

        Args:
            stop: set when the rest need not be loaded any more.
        """
        look = self._look
        if look.failure is not None:
            self._state = "failed"
            return
        self._versions.settle(look, self._wanted())
        for reference, choices in look.meanings.items():
            for choice in choices:
                if stop is not None and stop.is_set():
                    return
                if self._tried(choice) is not None:
                    self._answers(reference, choice[0])
                    break
        self._answering = {r: version for r, version in self._answering.items() if r in look.meanings}
        # A damaged bundle must not take the healthy ones out of service, unless none is healthy.
        state: State = "failed" if self.problems() and not self.loaded() else "ready"
        if state != self._state:
            self._log.info("models_" + state, models=self.loaded(), failed=[p["model"] for p in self.problems()])
        self._state = state

    @property
    def trouble(self) -> StoreError | None:
        """Why the store as a whole cannot be followed; None where it can."""
        seconds = time.monotonic() - self._looked
        if seconds > _STALE_SECONDS:
            return StoreError(f"The store has not answered for {seconds:.0f} s; see to its file system.")
        return self._look.failure

    def refuse_in_trouble(self) -> None:
        """Raises StoreError while the store cannot be followed: nothing is asked of a disk that may not answer."""
        trouble = self.trouble
        if trouble is not None:
            raise trouble

    @property
    def state(self) -> State:
        """`loading` until `load` is through; `failed` where no model can be served, or the store be followed."""
        return self._state if self.trouble is None else "failed"

    def loaded(self) -> list[str]:
        """`NAME@VERSION` of every version that is loaded and warmed."""
        return self._versions.references()

    def problems(self) -> list[dict[str, str | None]]:
        """What is not served or followed, and why, without the machine's paths; no model where it is the store."""
        trouble = self.trouble
        found: list[tuple[str | None, StoreError]] = [] if trouble is None else [(None, trouble)]
        found += (self._look.problems | self._versions.problems()).items()
        return [{"model": model, "code": e.code, "message": e.message} for model, e in found]

    # ---- finding

    def get(self, reference: str | None) -> ServedModel:
        """The loaded model that `NAME`, `NAME@VERSION` or `NAME@ALIAS` means; None means the only one there is.

        A bare name without a champion means the newest version that can be served. While what an alias has moved to is
        being loaded, what it meant before answers.

        Raises:
            UnknownModelError, InvalidNameError: there is none such.
            InputError: no reference, and the store has several models.
            IntegrityError, IncompatibleError: it does not verify or cannot be run.
            StoreError: it is not loaded, and the store cannot be read.
            OverloadedError: it takes long to load, which goes on.
        """
        try:
            wanted = self._only() if reference is None else reference
            trouble = self.trouble
            if trouble is None:
                choices = self._look.choices(wanted) or [self._find(wanted)]
                if self._answering.get(wanted) != choices[0][0]:
                    before = self._stand_in(wanted, choices)
                    if before is not None:
                        return self._versions.get_within(*choices[0], _MOMENT_SECONDS) or before
                return self._first(choices)
        except UnknownModelError:
            self._refuse_where_all_is_gone()
            raise
        model = self.peek(wanted)
        if model is None:
            raise trouble
        return model

    def bundle(self, reference: str) -> Bundle:
        """The bundle that a reference means, to be read; errors as of `get`.

        One that no name and no alias means is loaded for what is asked of its networks alone: who looks through old
        versions must not make them take turns in memory.
        """
        choices = self._look.choices(reference)
        if self.trouble is None and len(choices) == 1 and choices[0][0] not in self._wanted():
            try:
                return self._versions.bundle(*choices[0])
            except UnknownModelError:
                self._refuse_where_all_is_gone()
                raise
        return self.get(reference).bundle

    def shelves(self) -> list[Shelf]:
        """All models of the store.

        Raises:
            StoreError: it cannot be read.
        """
        self.refuse_in_trouble()
        return [self._look.shelves[name] for name in self._look.names()]

    def shelf(self, name: str) -> Shelf:
        """One model of the store. Raises InvalidNameError where the name can be none's."""
        return self._look.shelves.get(name) or self.store.shelf(name)

    def peek(self, reference: str) -> ServedModel | None:
        """The model that a reference means, if it is loaded; loads nothing and asks no disk."""
        choices = self._look.choices(reference)
        found = (self._versions.peek(version) for version, _ in choices)
        return next((model for model in found if model is not None), None) or self._stand_in(reference, choices)

    def why_not(self, name: str) -> str:
        """Why no model of a name is served."""
        problems = self._look.problems | self._versions.problems()
        named = [name, *(reference_of(version) for version, _ in self._look.choices(name))]
        return next((problems[n].message for n in named if n in problems), f"{name} is being loaded; ask again soon.")

    def current(self) -> list[ServedModel]:
        """The models that bare names mean, as far as they are loaded; loads nothing and asks no disk."""
        return [model for model in map(self.peek, self._look.names()) if model is not None]

    # ---- inside

    def _refuse_where_all_is_gone(self) -> None:
        """Raises StoreError where the whole store is gone, which no look has told yet."""
        folders_of(self.store, self._look)

    def _only(self) -> str:
        names = self._look.names()
        if not names:
            self.refuse_in_trouble()
            names = self.store.names()
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

    def _find(self, reference: str) -> Choice:
        """What a reference means that the last look does not know."""
        version = self.store.resolve(reference)
        return version, self.store.stamp(*version)

    def _first(self, choices: list[Choice]) -> ServedModel:
        """The first that is served. What failed is tried again by `load`: requests need not wait for it, nor for what
        takes long to load where the next is loaded and the server has been ready."""
        sound = [c for c in choices if not self._versions.has_failed(*c)] if len(choices) > 1 else []
        for i, choice in enumerate(sound):
            soon = self._state != "loading" and any(self._versions.peek(v) for v, _ in sound[i + 1 : i + 2])
            try:
                model = self._versions.get_within(*choice, _MOMENT_SECONDS) if soon else self._waited_for(choice)
            except StoreError as e:  # logged where it happened
                forget_frames(e)
                continue
            if model is not None:
                return model
        return self._waited_for(choices[0])

    def _stand_in(self, reference: str, choices: list[Choice]) -> ServedModel | None:
        """What a moved alias meant before, unless what it means now is known not to load.

        Where there are several choices these stand in for each other.
        """
        before = self._answering.get(reference)
        if before is None or len(choices) != 1 or before == choices[0][0] or self._versions.has_failed(*choices[0]):
            return None
        return self._versions.peek(before)

    def _answers(self, reference: str, version: Version) -> None:
        """Tells the log what answers for a bare name or an alias from now on."""
        before = self._answering.get(reference)
        if version == before:
            return
        self._answering[reference] = version
        if reference.partition("@")[2] != CHAMPION:  # which the bare name tells
            self._log.info("name_means", model=reference, version=version[1], before=before and before[1])

    def _waited_for(self, choice: Choice) -> ServedModel:
        model = self._versions.get_within(*choice, _WAIT_SECONDS)
        if model is None:
            raise OverloadedError(f"{reference_of(choice[0])} is being loaded; ask again soon.", field="model")
        return model

    def _tried(self, choice: Choice) -> ServedModel | None:
        try:
            return self._versions.get(*choice)
        except StoreError as e:  # logged where it happened
            forget_frames(e)
            return None

    def _wanted(self) -> set[Version]:
        """Every version that a bare name or an alias means, and what stands in for those that failed."""
        wanted: set[Version] = set()
        for choices in self._look.meanings.values():
            for version, stamp in choices:
                wanted.add(version)
                if not self._versions.has_failed(version, stamp):
                    break
        return wanted
