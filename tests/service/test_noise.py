"""A model whose noise differs from row to row, served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from model_store.bundle import Bundle
from model_store.encoding import TableEncoder
from model_store.manifest import ARRAYS_FILE, RegressionCalibration, TableInput
from model_store.store import ModelStore
from service.model import Asked, ServedModel
from service.together import Run, run_together
from tests import bundles
from tests.model_store.test_noise import growing
from tests.servers import serving

ROWS = [[0.5], [3.0], [5.5]]


def uneven() -> bundles.Parts:
    """`sine` with noise that grows with its input."""
    sine = bundles.numeric_regression("uneven")
    calibration = sine.manifest.calibration
    assert isinstance(calibration, RegressionCalibration)
    changed = calibration.model_copy(update={"noise_range": (0.1, 0.9)})
    arrays = load(sine.files[ARRAYS_FILE]) | growing().arrays()
    manifest = sine.manifest.model_copy(update={"calibration": changed})
    return replace(sine, manifest=manifest, files={**sine.files, ARRAYS_FILE: save(arrays)})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    uneven().publish(store)
    bundles.numeric_regression("sine").publish(store)
    return store


@pytest.fixture(scope="module")
def client(stored: ModelStore) -> Iterator[httpx.Client]:
    with serving(stored.root) as server, server.client() as found:
        yield found


def expected(bundle: Bundle, rows: list[list[float]]) -> NDArray[np.float64]:
    calibration, inputs = bundle.manifest.calibration, bundle.manifest.inputs
    assert isinstance(calibration, RegressionCalibration) and isinstance(inputs, TableInput)
    x = TableEncoder(inputs).encode_matrix(np.array(rows))
    found: NDArray[np.float64] = calibration.noise_std**2 * growing().relative_variance(x)
    return found


def both(client: httpx.Client, route: str, **asked: Any) -> list[dict[str, Any]]:
    """Answers of the even and of the uneven model."""
    return [client.post(route, json={"model": name, "inputs": ROWS, **asked}).json() for name in ("sine", "uneven")]


def test_the_noise_of_each_row_is_in_its_answer(client: httpx.Client, stored: ModelStore) -> None:
    even, found = both(client, "/predict", level=0.8)
    assert found["mean"] == even["mean"] and found["epistemic_variance"] == even["epistemic_variance"]
    noise = expected(stored.open("uneven"), ROWS)
    assert found["aleatoric_variance"] == pytest.approx(noise)
    assert noise[2] > 2 * noise[0]
    assert found["variance"] == pytest.approx(noise + np.array(found["epistemic_variance"]))
    widths, std = (np.diff(found["interval"])[:, 0], np.sqrt(found["variance"]))
    assert widths / std == pytest.approx(np.full(3, widths[0] / std[0]))
    assert even["entropy"] != found["entropy"]


def test_unfamiliarity_does_not_go_by_the_noise_of_a_row(client: httpx.Client) -> None:
    even, found = both(client, "/ood")
    assert found | {"model": "sine"} == even


def test_requests_that_run_together_keep_their_own_noise(stored: ModelStore) -> None:
    model = ServedModel(stored.open("uneven"))
    anchors = np.zeros(1, dtype=np.int64)
    weights = model.engine.bind(model.engine.decode(model.nodes[0, :1, -1], anchors), anchors)
    parts, key = [ROWS[:1], ROWS[1:], ROWS[:2]], None
    asked = [Asked(0.9), Asked(0.9), Asked(0.8, draws=True)]
    runs = [Run(model, key, model.encoder.encode(p), a) for p, a in zip(parts, asked, strict=True)]  # type: ignore[arg-type]
    for columns, rows in zip(run_together(weights, runs), parts, strict=True):
        assert isinstance(columns, dict)
        assert columns["aleatoric_variance"] == pytest.approx(expected(model.bundle, rows))
