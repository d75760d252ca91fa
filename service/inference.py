"""A request's way through the server: its body in, the answer's content out; runs in worker threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.detection import Unfamiliarity, lowest_rate
from model_store.errors import InputError
from model_store.manifest import ClassificationTarget, TableInput
from service.cache import WeightKey
from service.feedback import Feedback, prediction_of
from service.formats import Body, turn
from service.inputs import refuse
from service.metrics import ServiceMetrics
from service.model import Asked, Columns, ServedModel
from service.models import Models
from service.predictive import highest_level
from service.protocol import InferenceRequest, parse, parse_feedback
from service.settings import Settings
from service.together import Run, Steps
from service.weights import PLAN, default_samples, sample_limit


class Inference:
    """Answers requests; one that runs alone gets the same answer each time, to the bit.

    Each method is a generator that yields what it wants of the network, if anything, is sent the columns of that, and
    returns the answer's content: so the network can run for several requests at once.
    """

    def __init__(self, settings: Settings, models: Models, metrics: ServiceMetrics, feedback: Feedback) -> None:
        self._settings, self._models, self._metrics, self._feedback = settings, models, metrics, feedback

    def predict(self, body: Body, state: dict[str, Any]) -> Steps:
        """The answer to `POST /predict`, with arrays for numbers.

        Args:
            body: what came.
            state: of the request, with its `request_id`; takes the `model` once it is known, for the log.

        Raises:
            InputError: the request is wrong.
            StoreError: the model is unknown or cannot be served.
        """
        with turn(body):
            request = parse(body, max_rows=self._settings.max_rows, predicts=True)
            model = self._model(request, state)
            samples = self._samples(request, model)
            classes = _classes(model)
            if classes and request.quantiles:
                message = f"{model.reference} predicts a class, which has no quantiles; leave them out."
                refuse("bad_quantiles", message, "quantiles", "no quantiles", list(request.quantiles))
            if request.empty_sets and not classes:
                message = (
                    f"{model.reference} predicts a number, with an interval and no set of classes; leave this out."
                )
                refuse("bad_empty_sets", message, "empty_sets", "no empty_sets, or false", True)
            self._check_size(request, model, samples)
            x = _encoded(request, model, unseen=request.ood)
        columns = yield _run(request, model, samples, x)
        scores: Columns = {name: columns.pop(name) for name in ("epistemic_score", "features") if name in columns}
        self._feedback.remember(state["request_id"], model, columns)
        answer: dict[str, Any] = _about(model, samples, request)
        answer |= {"task": "classification" if classes else "regression", "level": request.level}
        answer["calibration"] = _promise(model, request)
        if classes:
            answer["label"] = [classes[i] for i in columns.pop("label").tolist()]
            # The likeliest first.
            order = np.argsort(-columns["mean"], axis=1, kind="stable").tolist()
            held = columns.pop("prediction_set").tolist()
            answer["prediction_set"] = [
                [classes[c] for c in row if inside[c]] for row, inside in zip(order, held, strict=True)
            ]
        answer |= columns
        if request.ood:
            answer["ood"] = self._flagged(model, request, x, scores)
        self._metrics.rows.labels("/predict", model.bundle.name).inc(len(x))
        return answer

    def feedback(self, body: Body, state: dict[str, Any]) -> Steps:
        """The answer to `POST /feedback`; arguments and errors as of `predict`."""
        with turn(body):
            request = parse_feedback(body, max_rows=self._settings.max_rows)
            if request.rows is not None:
                model = self._model(request.rows, state)
                samples = self._samples(request.rows, model)
                self._check_size(request.rows, model, samples)
                x = _encoded(request.rows, model, unseen=True)
        if request.rows is None:
            assert request.request_id is not None
            model, prediction = self._feedback.recall(request.request_id)
            state["model"] = model.reference
            return self._feedback.take(request, model, prediction)
        columns = yield _run(request.rows, model, samples, x)
        return self._feedback.take(request, model, prediction_of(model, columns))

    def ood(self, body: Body, state: dict[str, Any]) -> Steps:
        """The answer to `POST /ood`; arguments and errors as of `predict`."""
        with turn(body):
            request = parse(body, max_rows=self._settings.max_rows, predicts=False)
            model = self._model(request, state)
            samples = self._samples(request, model)
            x = _encoded(request, model, unseen=True)
        scores: Columns = {}
        if model.detectors.ask_the_network:
            scores = yield Run(model, _key(request, model, samples), x, Asked(level=None, scores=True))
        answer = _about(model, samples, request) | self._flagged(model, request, x, scores)
        self._metrics.rows.labels("/ood", model.bundle.name).inc(len(x))
        return answer

    def _check_size(self, request: InferenceRequest, model: ServedModel, samples: int) -> None:
        """Raises InputError where a prediction would hold too much: few bytes of rows may ask for many of classes."""
        each = max(1, len(_classes(model))) * (samples if request.draws else 1) + len(request.quantiles)
        values, most = len(request.inputs) * each, self._settings.max_values
        if values <= most:
            return
        what, fewer = (
            ("All samples of these rows are", "fewer samples or rows in a request")
            if request.draws
            else ("Predictions of these rows are", f"at most {max(1, most // each)} rows in a request")
        )
        raise InputError(
            f"{what} {values} numbers; ask for {fewer}.",
            code="too_many_values",
            field="return" if request.draws else "inputs",
            expected=f"at most {most} numbers",
            got=f"{values} numbers",
        )

    def _flagged(
        self, model: ServedModel, request: InferenceRequest, x: NDArray[np.float32], scores: Columns
    ) -> dict[str, Any]:
        """How unfamiliar encoded rows are, by what the network says of them, and which are flagged at the rate that was
        asked for."""
        rate = request.false_alarm_rate or model.manifest.ood.false_alarm_rate
        found = model.unfamiliarity(x, scores)
        self._feedback.scored(model, found.p_value)
        return {
            "false_alarm_rate": rate,
            "calibration": _alarms(model, rate),
            "score": found.score,
            "p_value": found.p_value,
            "flag": _flags(found, rate),
            "detectors": {name: {"score": score, "p_value": p} for name, (score, p) in found.detectors.items()},
            "columns": _named(model, found),
            "unseen": _unseen(model, found),
        }

    def _model(self, request: InferenceRequest, state: dict[str, Any]) -> ServedModel:
        model = self._models.get(request.model)
        state["model"] = model.reference
        return model

    def _samples(self, request: InferenceRequest, model: ServedModel) -> int:
        if request.samples is None:
            return default_samples(model, self._settings)
        limit = sample_limit(model, self._settings)
        if request.samples > limit:
            raise InputError(
                f"The server decodes at most {limit} samples of this model; ask for fewer.",
                code="too_many_samples",
                field="samples",
                expected=f"a whole number from 1 to {limit}",
                got=str(request.samples) if request.samples < 10**24 else "a larger number",
            )
        return request.samples


def _run(request: InferenceRequest, model: ServedModel, samples: int, x: NDArray[np.float32]) -> Run:
    scores = request.ood and model.detectors.ask_the_network
    asked = Asked(request.level, request.quantiles, request.draws, scores, request.empty_sets)
    return Run(model, _key(request, model, samples), x, asked)


def _classes(model: ServedModel) -> Sequence[int | str]:
    """Those that a model tells apart; none of one that predicts a number."""
    target = model.manifest.target
    return target.classes if isinstance(target, ClassificationTarget) else []


def _encoded(request: InferenceRequest, model: ServedModel, *, unseen: bool) -> NDArray[np.float32]:
    """The rows as the network takes them. Where they are Python's objects they are dropped, as they take many times the
    memory, and the request may wait."""
    x = model.encoder.encode(request.inputs, unseen=unseen)
    if isinstance(request.inputs, list):
        request.inputs.clear()
    return x


def _key(request: InferenceRequest, model: ServedModel, samples: int) -> WeightKey:
    return WeightKey(model.bundle.digest, PLAN, samples, request.seed)


def _promise(model: ServedModel, request: InferenceRequest) -> dict[str, Any]:
    """What stands behind the level that was asked for, and a warning where that is too little."""
    points = model.points
    highest = highest_level(points)
    asked = max([request.level, *(abs(2 * q - 1) for q in request.quantiles)])
    warning = None
    # The same rounding as that of the quantile itself.
    if asked > highest + 1e-9:
        what = "intervals reach as far as the worst of them or the Gaussian does"
        if isinstance(model.manifest.target, ClassificationTarget):
            what = "prediction sets hold every class"
        warning = (
            f"{points} calibration rows cannot vouch for the level {asked:.6g}, only for levels up to {highest:.6g}: "
            f"{what}."
        )
    return {"points": points, "highest_level": highest, "warning": warning}


def _flags(found: Unfamiliarity, rate: float) -> NDArray[np.bool_]:
    """Which rows are flagged: one with an unseen category at every rate, as that is no matter of chance."""
    flags: NDArray[np.bool_] = found.p_value <= rate
    return flags if found.unseen is None else flags | found.unseen.any(axis=1)


def _alarms(model: ServedModel, rate: float) -> dict[str, Any]:
    """What stands behind the false alarm rate, and a warning where that is too little."""
    points = model.detectors.points
    lowest = lowest_rate(points)
    warning = None
    if rate < lowest:
        warning = (
            f"{points} familiar rows cannot vouch for the false alarm rate {rate:.6g}, only for {lowest:.6g} and more: "
            "no row is flagged, unless for an unseen category."
        )
    return {"points": points, "lowest_false_alarm_rate": lowest, "warning": warning}


def _named(model: ServedModel, found: Unfamiliarity) -> list[list[dict[str, Any]]] | None:
    """The columns of each row that are furthest from what its others suggest, where inputs have columns."""
    inputs = model.manifest.inputs
    if found.columns is None or found.deviations is None or not isinstance(inputs, TableInput):
        return None
    names = [c.name for c in inputs.columns]
    columns, deviations = found.columns.ravel().tolist(), found.deviations.ravel().tolist()
    # All rows in one go: a loop in a loop takes twice as long.
    every = [{"column": names[j], "deviation": d} for j, d in zip(columns, deviations, strict=True)]
    shown = found.columns.shape[1]
    return [every[i : i + shown] for i in range(0, len(every), shown)]


def _unseen(model: ServedModel, found: Unfamiliarity) -> list[list[str]] | None:
    """The columns of each row whose category the model was not built with; None where there are none at all."""
    inputs = model.manifest.inputs
    if found.unseen is None or not isinstance(inputs, TableInput):
        return None
    names: list[list[str]] = [[] for _ in found.unseen]
    for i, j in np.argwhere(found.unseen).tolist():
        names[i].append(inputs.columns[j].name)
    return names


def _about(model: ServedModel, samples: int, request: InferenceRequest) -> dict[str, Any]:
    return {"model": model.bundle.name, "version": model.bundle.version, "samples": samples, "seed": request.seed}
