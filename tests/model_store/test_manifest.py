"""The manifest says exactly what was written, and refuses what no server could serve."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model_store import SCHEMA_VERSION, Manifest
from model_store.manifest import (
    CategoricalColumn,
    ClassificationTarget,
    LatentPlan,
    Metrics,
    NumericColumn,
    RegressionCalibration,
    TableInput,
)
from tests import bundles

REGRESSION = bundles.mixed_regression().manifest
CLASSIFICATION = bundles.classification().manifest

names = st.text(min_size=1, max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-300, allow_infinity=False)
numeric = st.builds(
    NumericColumn,
    name=names,
    unit=st.none() | names,
    mean=finite,
    scale=positive,
    minimum=st.none() | finite,
    maximum=st.none() | finite,
)
categorical = st.builds(CategoricalColumn, name=names, categories=st.lists(names, min_size=1, max_size=4, unique=True))
tables = st.builds(
    TableInput,
    columns=st.lists(numeric | categorical, min_size=1, max_size=5, unique_by=lambda c: c.name),
)


def changed(manifest: Manifest, path: str, value: Any) -> dict[str, Any]:
    """The manifest as plain data, with the value at `path` (dots, list positions as numbers) replaced."""
    content: dict[str, Any] = manifest.model_dump(mode="json")
    at: Any = content
    *parents, last = [int(p) if p.isdecimal() else p for p in path.split(".")]
    for p in parents:
        at = at[p]
    at[last] = value
    return content


@pytest.mark.parametrize("manifest", [REGRESSION, CLASSIFICATION, bundles.image_classification().manifest])
def test_json_round_trip_is_exact(manifest: Manifest) -> None:
    assert Manifest.model_validate(json.loads(manifest.model_dump_json())) == manifest


@given(inputs=tables, noise=positive, classes=st.lists(st.integers() | names, min_size=2, max_size=5, unique=True))
def test_any_columns_and_classes_survive_json(inputs: TableInput, noise: float, classes: list[int | str]) -> None:
    regression = REGRESSION.model_copy(
        update={"inputs": inputs, "calibration": RegressionCalibration(noise_std=noise, points=5)}
    )
    assert Manifest.model_validate_json(regression.model_dump_json()) == regression
    target = ClassificationTarget(name="c", classes=classes)
    back = ClassificationTarget.model_validate_json(target.model_dump_json())
    assert back == target
    assert [type(c) for c in back.classes] == [type(c) for c in classes]  # 1 and "1" are different classes


def test_a_metric_may_be_infinite_or_nan() -> None:
    metrics = Metrics(predictor="map", split="test", rows=3, values={"nll": math.inf, "ece": math.nan})
    back = Metrics.model_validate(json.loads(metrics.model_dump_json()))
    assert back.values["nll"] == math.inf
    assert math.isnan(back.values["ece"])


def test_the_manifest_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        REGRESSION.version = 2  # type: ignore[misc]


def test_a_new_manifest_carries_the_current_schema_version() -> None:
    assert REGRESSION.schema_version == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("surprise", 1, "Extra inputs"),
        ("version", 0, "greater than or equal to 1"),
        ("inputs.kind", "sound", "expected tags"),
        ("inputs.columns", [], "at least 1 item"),
        ("inputs.columns.1.name", "rooms", "no value may stand twice"),
        ("inputs.columns.0.scale", 0, "greater than 0"),
        ("inputs.columns.0.scale", math.inf, "finite"),
        ("inputs.columns.0.mean", math.nan, "finite"),
        ("inputs.columns.2.categories", ["Bonn", "Bonn"], "no value may stand twice"),
        ("inputs.columns.2.categories", [], "at least 1 item"),
        ("target.scale", -1.0, "greater than 0"),
        ("target.mean", math.inf, "finite"),
        ("calibration.noise_std", 0, "greater than 0"),
        ("calibration.noise_std", math.inf, "finite"),
        ("calibration", {"task": "classification", "temperature": 1.0, "points": 3}, "disagree on the task"),
        ("network.form", "loop", "batched"),
        ("network.weights", 1, "the parameters hold"),
        ("network.parameters.1.offset", 7, "starts at 7"),
        ("network.parameters", [], "at least 1 item"),
        ("latent.plans", {}, "latent plan predict is missing"),
        ("latent.plans.predict.start", 1.5, "less than or equal to 1"),
        ("latent.plans.predict.start", 0.75, "start must not exceed stop"),
        ("ood.detectors", [], "at least 1 item"),
        ("ood.detectors", ["mahalanobis", "mahalanobis"], "no value may stand twice"),
        ("ood.detectors", ["guess"], "epistemic_to_noise"),
        ("ood.detectors", ["nearest_features"], "those of the features other inputs"),
        ("ood.detectors", ["mutual_information"], "no detector mutual_information for regression"),
        ("ood.points", 1, "greater than or equal to 2"),
        ("ood.false_alarm_rate", 0, "greater than 0"),
        ("files", {"card.md": {"size": 1, "sha256": "abc"}}, "should match pattern"),
        ("files", {"card.md": {"size": -1, "sha256": "0" * 64}}, "greater than or equal to 0"),
        ("files", {"card.md": {"size": 10**30, "sha256": "0" * 64}}, "less than or equal to 1099511627776"),
        ("version", 10**30, "less than or equal to"),
        ("inputs", {"kind": "tensor", "shape": [1, 40_000, 50_000]}, "at most 67108864 values"),
        ("inputs", {"kind": "tensor", "shape": [3, 0, 2]}, "greater than or equal to 1"),
        ("network.parameters.0.shape", [2**32, 0], "less than or equal to 2147483648"),
        ("network.parameters.0.shape", [-3, -4], "greater than or equal to 0"),
        ("network.parameters.0.shape", [1] * 17, "at most 16 items"),
        ("network.parameters.0.shape", [2**20, 2**21], "at most 1099511627776 values"),
        ("network.mixed", {"0.weight": [2**20, 2**21]}, "at most 1099511627776 values"),
        ("latent.plans.predict.samples", 10**30, "less than or equal to"),
    ],
)
def test_what_no_server_could_serve_is_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate(changed(REGRESSION, path, value))


def test_classification_needs_one_output_a_class() -> None:
    with pytest.raises(ValidationError, match="one output a class"):
        Manifest.model_validate(changed(CLASSIFICATION, "target.classes", ["a", "b"]))
    with pytest.raises(ValidationError, match="no value may stand twice"):
        Manifest.model_validate(changed(CLASSIFICATION, "target.classes", ["a", "a", "b"]))


def test_a_plan_may_be_one_position() -> None:
    assert LatentPlan(name="p", samples=1, start=0.5, stop=0.5, drift_scale=0).start == 0.5
