"""True targets for predictions: what `POST /feedback` and `GET /models/{name}/health` do."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.errors import InputError
from model_store.manifest import ClassificationTarget
from service.inputs import brief, number, refuse
from service.metrics import ServiceMetrics
from service.model import Columns, ServedModel
from service.models import Models
from service.monitor import LEVELS, Labelled, Monitor
from service.protocol import FeedbackRequest, check_length
from service.remembered import USABLE_ID, Prediction, Remembered
from service.settings import Settings

if TYPE_CHECKING:
    from service.redis_link import RedisLink
    from service.redis_monitor import RedisMonitor

_MOST_MONITORS: Final = 256
_LEAST_PROBABILITY: Final = 1e-12
_MOST_NLL: Final = 1e30
"""So that an absurd target leaves the mean over a window a number, as float32 too."""


class Feedback:
    """Remembers predictions, and holds them against the targets that come in.

    Where there is a Redis, all servers on it do so together. What a process is told it counts for itself too: so there
    is something to go by when Redis does not answer.
    """

    def __init__(
        self, settings: Settings, models: Models, metrics: ServiceMetrics, link: RedisLink | None = None
    ) -> None:
        self._models, self._metrics = models, metrics
        self._remembered = Remembered(settings.remember_bytes)
        self._monitors: OrderedDict[str, Monitor] = OrderedDict()
        self._lock = threading.Lock()
        self._shared: RedisMonitor | None = None
        if link is not None:
            # redis is imported only where it is used: it would lengthen every start.
            from service.redis_monitor import RedisMonitor as Shared

            self._shared = Shared(
                link, self._remembered, ttl=settings.redis_ttl, limit=settings.remember_bytes, metrics=metrics
            )
        metrics.watch(self._gauges)

    def remember(self, request_id: str, model: ServedModel, columns: Columns) -> None:
        """Keeps what was predicted, for feedback by the request's id."""
        self._remembered.put(request_id, prediction_of(model, columns))
        if self._shared is not None:
            self._shared.remember(request_id)

    def scored(self, model: ServedModel, p_values: NDArray[np.float64]) -> None:
        """Counts rows that were asked to be scored."""
        self._monitor(model.bundle).add_scores(p_values)
        if self._shared is not None:
            self._shared.add_scores(model.bundle.digest, p_values <= model.manifest.ood.false_alarm_rate)

    def recall(self, request_id: str) -> tuple[ServedModel, Prediction]:
        """What was predicted for a request.

        Raises:
            InputError: it is not known.
        """
        source = self._remembered.get if self._shared is None else self._shared.recall
        # What can be no request's id is a name of something else in Redis, or megabytes on their way there.
        found = source(request_id) if USABLE_ID.fullmatch(request_id) else None
        if found is None:
            raise _unknown(request_id)
        model = self._models.get(found.reference)
        if model.bundle.digest != found.digest:
            # Of another store on the same Redis, or of one that was made anew.
            raise _unknown(request_id)
        if not _is_of(model, found):
            # Nobody predicted that: Redis has it from elsewhere.
            if self._shared is not None:
                self._shared.drop(request_id, "task or classes")
            raise _unknown(request_id)
        return model, found

    def take(self, request: FeedbackRequest, model: ServedModel, prediction: Prediction) -> dict[str, Any]:
        """Counts the targets, and answers with the state of the model.

        Raises:
            InputError: a target is wrong, or the request has been answered meanwhile.
        """
        labelled = _labelled(model, prediction, request.targets)
        request_id = request.request_id
        told = None
        if self._shared is not None:
            told = self._shared.tell(model.bundle.digest, labelled, request_id, prediction.token)
        if request_id is not None:
            mine = self._remembered.forget(request_id, prediction.token)
            if not (mine if told is None else told):
                raise _unknown(request_id)
        self._monitor(model.bundle).add(labelled)
        self._metrics.feedback.labels(model.bundle.name).inc(prediction.rows)
        return self._answer(model.bundle, taken=prediction.rows)

    def health(self, name: str) -> dict[str, Any]:
        """The answer to `GET /models/{name}/health`.

        Raises:
            StoreError: the model is unknown or cannot be served.
        """
        return self._answer(self._models.bundle(name))

    def close(self) -> None:
        """Lets other processes know what they do not know yet."""
        if self._shared is not None:
            self._shared.close()

    def _answer(self, bundle: Bundle, **more: Any) -> dict[str, Any]:
        return {"model": bundle.name, "version": bundle.version, **more, **self._health(bundle)}

    def _health(self, bundle: Bundle) -> dict[str, Any]:
        found, warning = None, None
        if self._shared is not None:
            classes = isinstance(bundle.manifest.target, ClassificationTarget)
            rate = bundle.manifest.ood.false_alarm_rate
            found = self._shared.health(bundle.digest, rate, classes=classes)
            if found is None:
                warning = "Redis does not answer: this is what this server process alone was told."
        scope = "process" if found is None else "shared"
        return {"scope": scope, "warning": warning, **(found or self._monitor(bundle).health())}

    def _gauges(self) -> list[tuple[str, dict[str, Any]]]:
        """The health of what the models' bare names mean."""
        current = [model.bundle for model in self._models.current()]
        return [(bundle.name, {"version": bundle.version, **self._health(bundle)}) for bundle in current]

    def _monitor(self, bundle: Bundle) -> Monitor:
        with self._lock:
            digest = bundle.digest
            monitor = self._monitors.get(digest)
            if monitor is None:
                monitor = self._monitors[digest] = Monitor(bundle.manifest.ood.false_alarm_rate)
            self._monitors.move_to_end(digest)
            if len(self._monitors) > _MOST_MONITORS:
                self._monitors.popitem(last=False)
            return monitor


def prediction_of(model: ServedModel, columns: Columns) -> Prediction:
    """What feedback needs of an answer's columns."""
    target = model.manifest.target
    if isinstance(target, ClassificationTarget):
        return Prediction(model.reference, model.bundle.digest, columns["mean"], None)
    of = "log_" if target.log else ""
    return Prediction(model.reference, model.bundle.digest, columns[of + "mean"], columns[of + "variance"])


def _is_of(model: ServedModel, prediction: Prediction) -> bool:
    """Whether a prediction is of a model's task and has its classes."""
    target = model.manifest.target
    if isinstance(target, ClassificationTarget):
        return prediction.variance is None and prediction.mean.shape[1] == len(target.classes)
    return prediction.variance is not None


def _unknown(request_id: str) -> InputError:
    return InputError(
        "No prediction is kept for this request: its targets were told already, or it was not made here or is "
        "forgotten; unless they were told, send them with the inputs again instead.",
        code="unknown_request",
        field="request_id",
        expected="the X-Request-ID of a prediction",
        got=brief(request_id),
    )


def _labelled(model: ServedModel, prediction: Prediction, targets: list[Any]) -> Labelled:
    check_length(targets, prediction.rows)
    target = model.manifest.target
    if isinstance(target, ClassificationTarget):
        true = np.array([_class(value, i, target.classes) for i, value in enumerate(targets)])
        p, rows = prediction.mean, np.arange(len(targets))
        held = np.column_stack([model.prediction_sets(p, level)[rows, true] for level in LEVELS])
        nll = -np.log(np.maximum(p[rows, true], _LEAST_PROBABILITY))
        return Labelled(~held, nll, p.max(1), (p.argmax(1) == true).astype(np.float64))
    assert prediction.variance is not None
    y = np.array([number(value, f"targets[{i}]", "A target") for i, value in enumerate(targets)])
    jacobian = np.zeros_like(y)
    if target.log:
        if not (y > 0).all():
            i = int(np.argmin(y > 0))
            message = "The model is of the target's logarithm, and so of targets above zero; leave this row out."
            refuse("not_positive", message, f"targets[{i}]", "a number above zero", targets[i])
        y = jacobian = np.log(y)  # of y's density over its logarithm's, d log y / dy = 1 / y
    apart = y - prediction.mean
    with np.errstate(over="ignore"):
        score = np.abs(apart) / np.sqrt(prediction.variance)
        nll = 0.5 * (np.log(2 * math.pi * prediction.variance) + score**2) + jacobian
    missed = np.column_stack([score > model.interval_factor(level) for level in LEVELS])
    nll = np.minimum(nll, _MOST_NLL)
    nothing = np.full(len(y), np.nan)
    return Labelled(missed, nll, nothing, nothing)


def _class(value: Any, row: int, classes: list[int | str]) -> int:
    if (type(value) is float and value.is_integer()) or (type(value) is bool and classes == [0, 1]):
        value = int(value)  # a builder takes truth values for 0 and 1
    # Elsewhere a truth value would equal the class 0 or 1.
    found = next((i for i, known in enumerate(classes) if type(known) is type(value) and known == value), None)
    if found is None:
        shown = ", ".join(map(brief, classes[:20])) + (", ..." if len(classes) > 20 else "")
        refuse("unknown_class", "The model knows no such class.", f"targets[{row}]", shown, value)
    return found
