"""A request's way through the server: bytes in, bytes out; runs in a worker thread."""

from __future__ import annotations

from typing import Any

from model_store.errors import InputError
from model_store.manifest import ClassificationTarget
from service.metrics import ServiceMetrics
from service.model import ServedModel
from service.models import Models, default_samples, sample_limit
from service.protocol import InferenceRequest, parse, to_json
from service.settings import Settings
from service.weights import WeightSource


class Inference:
    """Answers prediction and OOD requests; the same request gets the same answer, to the bit."""

    def __init__(self, settings: Settings, models: Models, weights: WeightSource, metrics: ServiceMetrics) -> None:
        self._settings, self._models, self._weights, self._metrics = settings, models, weights, metrics

    def predict(self, body: bytes) -> bytes:
        """The answer to `POST /predict`.

        Raises:
            InputError: the request is wrong.
            StoreError: the model is unknown or cannot be served.
        """
        request = parse(body, max_rows=self._settings.max_rows, with_level=True)
        model = self._models.get(request.model)
        samples = self._samples(request, model, "predict")
        x = model.encoder.encode(request.inputs)
        columns = model.predict(self._weights.get(model, "predict", samples, request.seed), x, request.level)
        answer: dict[str, Any] = _about(model, samples, request) | {"level": request.level}
        answer |= {name: column.tolist() for name, column in columns.items()}
        target = model.manifest.target
        if isinstance(target, ClassificationTarget):
            answer["label"] = [target.classes[i] for i in answer["label"]]
        self._metrics.rows.labels("/predict", model.bundle.name).inc(len(x))
        return to_json(answer)

    def ood(self, body: bytes) -> bytes:
        """The answer to `POST /ood`; raises as `predict`."""
        request = parse(body, max_rows=self._settings.max_rows, with_level=False)
        model = self._models.get(request.model)
        detector = model.manifest.ood
        samples = self._samples(request, model, detector.plan)
        x = model.encoder.encode(request.inputs)
        score = model.ood_score(self._weights.get(model, detector.plan, samples, request.seed), x)
        answer = _about(model, samples, request) | {
            "score": score.tolist(),
            "threshold": [detector.threshold] * len(x),
            "flag": (score > detector.threshold).tolist(),
        }
        self._metrics.rows.labels("/ood", model.bundle.name).inc(len(x))
        return to_json(answer)

    def _samples(self, request: InferenceRequest, model: ServedModel, plan: str) -> int:
        if request.samples is None:
            return default_samples(model, plan, self._settings)
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


def _about(model: ServedModel, samples: int, request: InferenceRequest) -> dict[str, Any]:
    return {"model": model.bundle.name, "version": model.bundle.version, "samples": samples, "seed": request.seed}
