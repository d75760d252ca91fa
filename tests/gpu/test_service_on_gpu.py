"""The server's engine on a CUDA device (`make test-gpu`): needs onnxruntime-gpu in place of onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_store.plan import draw_latents
from service.model import Asked, ServedModel
from tests import bundles

MAKERS = {"regression": bundles.numeric_regression, "classes": bundles.classification}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("rows", [1, 70])
def test_answers_are_those_of_the_processor(tmp_path: Path, kind: str, rows: int) -> None:
    bundle = MAKERS[kind]().publish(tmp_path)
    found = []
    for model in (ServedModel(bundle), ServedModel(bundle, device="cuda")):
        latents, anchors = draw_latents(model.plan("predict"), model.nodes, 32, 0)
        weights = model.engine.bind(model.engine.decode(latents, anchors), anchors)
        typical = np.repeat(model.encoder.typical(), rows, axis=0)
        x = typical + np.random.default_rng(0).normal(size=typical.shape).astype(np.float32)
        found.append(model.predict(weights, x, Asked(0.9)))
    assert model.engine.device == "cuda"
    np.testing.assert_allclose(found[1]["mean"], found[0]["mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1]["variance"], found[0]["variance"], rtol=1e-3, atol=1e-7)
