from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.bundle import Bundle
from model_store.errors import IntegrityError
from model_store.noise import NoiseShape
from tests import bundles


def growing(width: int = 1) -> NoiseShape:
    """Noise that grows with the first input."""
    hidden = np.zeros((width + 1, 2))
    hidden[0, 0], hidden[-1, 0] = 0.25, -0.25
    output, ends = np.array([2.0, 0.0, 0.3]), np.array([-1.5, 1.8])
    return NoiseShape(np.full(width, -5.0), np.full(width, 7.0), hidden, output, ends)


def test_the_relative_variance_in_closed_form() -> None:
    x = np.array([[1.0], [2.0], [0.0]])
    expected = np.exp(2 * np.tanh(0.5 * (x[:, 0] - 1) / 2) + 0.3)
    assert growing().relative_variance(x) == pytest.approx(expected)


def test_far_rows_are_taken_as_the_last_that_tell() -> None:
    wide = replace(growing(), ends=np.array([-9.0, 9.0]))
    assert wide.relative_variance(np.array([[1e9]])) == pytest.approx(np.exp(2 * np.tanh(1.5) + 0.3))
    far = growing().relative_variance(np.array([[-1e9], [1e9]]))
    assert far == pytest.approx(np.exp([-1.5, 1.8]))


def test_arrays_come_back() -> None:
    shape = growing(3)
    again = NoiseShape.of(shape.arrays(), 3)
    assert again is not None
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert again.relative_variance(x).tolist() == shape.relative_variance(x).tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("low", np.zeros(2)),
        ("high", np.array([-9.0])),
        ("hidden", np.zeros((3, 2))),
        ("hidden", np.full((2, 2), np.nan)),
        ("output", np.zeros(2)),
        ("output", np.zeros(3, dtype=np.float32)),
        ("ends", np.array([1.0, 0.0])),
        ("ends", None),
    ],
)
def test_arrays_that_do_not_fit_are_none(name: str, value: Any) -> None:
    arrays: dict[str, Any] = dict(growing().arrays())
    arrays[f"noise_{name}"] = value
    if value is None:
        del arrays[f"noise_{name}"]
    assert NoiseShape.of(arrays, 1) is None


def test_a_bundle_that_names_a_range_must_have_the_shape(tmp_path: Path) -> None:
    bundle = bundles.numeric_regression().publish(tmp_path)
    path = bundle.path / "manifest.json"
    content = json.loads(path.read_text())
    content["calibration"]["noise_range"] = [0.1, 0.2]
    path.write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match="the shape of the noise does not fit"):
        Bundle(bundle.path).arrays()
