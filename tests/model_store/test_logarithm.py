from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_store.bundle import Bundle
from model_store.logarithm import FURTHEST, MOST_NOISE, exponential, lognormal_moments
from model_store.manifest import OLDEST_SCHEMA_VERSION, RegressionTarget
from tests import bundles


def test_moments_are_those_of_a_lognormal_where_samples_agree() -> None:
    mean, epistemic, aleatoric = lognormal_moments(np.zeros((4, 1)), np.array([0.7]), 0.5)
    assert mean == pytest.approx(math.exp(0.7 + 0.125))
    assert epistemic == pytest.approx(0.0)
    assert aleatoric == pytest.approx((math.exp(0.25) - 1) * math.exp(1.4 + 0.25))


def test_moments_are_those_of_the_mixture() -> None:
    rng = np.random.default_rng(0)
    logs = rng.normal(1.0, 0.4, size=(6, 1))
    middle = logs.mean(axis=0)
    mean, epistemic, aleatoric = lognormal_moments(logs - middle, middle, 0.3)
    drawn = np.exp(logs + 0.3 * rng.normal(size=(6, 400_000)))
    assert mean == pytest.approx(drawn.mean(), rel=5e-3)
    assert epistemic + aleatoric == pytest.approx(drawn.var(), rel=2e-2)
    assert epistemic == pytest.approx(drawn.mean(axis=1).var(), rel=2e-2)


@given(
    st.lists(st.floats(-FURTHEST, FURTHEST), min_size=1, max_size=40),
    st.floats(1e-6, MOST_NOISE),
)
@example([-FURTHEST] * 39 + [FURTHEST], MOST_NOISE)
def test_moments_within_reach_are_numbers(logs: list[float], noise: float) -> None:
    each = np.array(logs)[:, None]
    middle = each.mean(axis=0)
    mean, epistemic, aleatoric = lognormal_moments(each - middle, middle, noise)
    assert np.isfinite([mean, epistemic, aleatoric]).all()
    assert mean > 0 and epistemic >= 0 and aleatoric > 0


def test_exponentials_are_the_largest_number_at_most() -> None:
    assert exponential(np.array([-1e4, 0.0, 1.0, 1e4])).tolist() == [
        0.0,
        1.0,
        math.e,
        pytest.approx(1.797e308, rel=1e-3),
    ]


def test_bundles_of_the_schema_before_there_were_logarithms_are_read(tmp_path: Path) -> None:
    bundle = bundles.numeric_regression().publish(tmp_path)
    path = bundle.path / "manifest.json"
    content = json.loads(path.read_text())
    content["schema_version"] = OLDEST_SCHEMA_VERSION
    del content["target"]["log"]
    path.write_text(json.dumps(content))
    target = Bundle(bundle.path).manifest.target
    assert isinstance(target, RegressionTarget) and not target.log
