"""Detectors of the inputs against plain formulas, and how several combine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_store.detection import (
    Mahalanobis,
    NearestRows,
    Scaler,
    Surprise,
    alarm_threshold,
    combined,
    familiar_surprise,
    p_values,
)

Float64 = NDArray[np.float64]


def normal(*shape: int, seed: int = 0) -> Float64:
    return np.random.default_rng(seed).normal(size=shape)


def test_rows_are_brought_to_a_common_scale() -> None:
    x = (normal(50, 3) * [1, 100, 1] + [0, 5, 0]).astype(np.float32)
    x[:, 2] = x[:, 2] > 0
    scaler = Scaler.fit(x, np.array([True, True, False]))
    u = scaler(x)
    assert u[:, :2].std(axis=0) == pytest.approx([1, 1], rel=1e-4) and u.mean(axis=0) == pytest.approx(
        [0] * 3, abs=1e-5
    )
    assert set(np.round(np.diff(np.unique(u[:, 2])), 6)) == {1.0}
    assert np.isfinite(np.square(scaler(np.full((1, 3), 3e38, dtype=np.float32)))).all()


def test_a_column_that_never_varies_is_left_as_it_is() -> None:
    scaler = Scaler.fit(np.full((5, 1), 7, dtype=np.float32), np.array([True]))
    assert scaler(np.array([[7.0], [9.0]], dtype=np.float32)).ravel().tolist() == [0.0, 2.0]


@pytest.mark.parametrize(("rows", "neighbours"), [(40, 5), (3, 2)])
def test_nearest_rows_against_all_distances(rows: int, neighbours: int) -> None:
    reference = normal(rows, 4).astype(np.float32)
    nearest, u = NearestRows(reference), normal(6, 4, seed=1)
    squares = np.square(u[:, None] - reference).sum(axis=2)
    expected = np.log(np.sort(squares, axis=1)[:, :neighbours].mean(axis=1))
    assert nearest.scores(u) == pytest.approx(expected, rel=1e-4)
    # A reference row's distance from itself does not count.
    squares = np.square(reference[:, None] - reference).sum(axis=2)
    expected = np.log(np.sort(squares, axis=1)[:, 1 : neighbours + 1].mean(axis=1))
    assert nearest.scores(reference.astype(np.float64), np.arange(rows)) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_copy_of_a_row_has_a_finite_score() -> None:
    assert np.isfinite(NearestRows(np.zeros((9, 2), dtype=np.float32)).scores(np.zeros((1, 2)))).all()


def test_mahalanobis_against_the_inverse_covariance() -> None:
    u = normal(400, 3) @ np.array([[1, 0.9, 0], [0, 0.3, 0], [0, 0, 1.0]])
    precision = Mahalanobis.precision_of(u)
    assert precision == pytest.approx(np.linalg.inv(np.cov(u.T, bias=True) + 0.01 * np.eye(3)))
    new = normal(5, 3, seed=1)
    scores, deviations = Mahalanobis(precision, [slice(i, i + 1) for i in range(3)])(new)
    assert np.exp(scores) == pytest.approx([v @ precision @ v for v in new])
    # By how much the squared distance falls if a column is as the others suggest.
    for j in range(3):
        others = [i for i in range(3) if i != j]
        suggested = new.copy()
        suggested[:, j] = -new[:, others] @ precision[others, j] / precision[j, j]
        less = np.einsum("bi,ij,bj->b", suggested, precision, suggested)
        assert np.square(deviations[:, j]) == pytest.approx(np.exp(scores) - less)
        assert np.array_equal(np.sign(deviations[:, j]), np.sign(new[:, j] - suggested[:, j]))


def test_a_category_counts_as_one_column() -> None:
    kind = np.eye(3)[np.random.default_rng(0).integers(3, size=300)]
    u = np.concatenate([normal(300, 1), kind - kind.mean(axis=0)], axis=1)
    groups = [slice(0, 1), slice(1, 4)]
    precision = Mahalanobis.precision_of(u)
    scores, deviations = Mahalanobis(precision, groups)(u[:7])
    assert deviations.shape == (7, 2)
    g = groups[1]
    suggested = u[:7].copy()
    suggested[:, g] = -(u[:7, :1] @ precision[:1, g]) @ np.linalg.inv(precision[g, g])
    less = np.einsum("bi,ij,bj->b", suggested, precision, suggested)
    assert np.square(deviations[:, 1]) == pytest.approx(np.exp(scores) - less)
    assert (deviations[:, 1] >= 0).all()


@given(st.integers(2, 60), st.integers(0, 1000))
def test_farther_out_is_never_less_surprising(points: int, seed: int) -> None:
    familiar = np.sort(np.random.default_rng(seed).integers(-9, 9, points) / 3.0)
    surprise = Surprise(familiar)
    scores = np.linspace(-5, 12, 200)
    found = surprise(scores)
    assert np.isfinite(found).all() and (found >= 0).all() and (np.diff(found) >= -1e-12).all()
    assert (np.diff(found[scores > familiar[-1]]) > 0).all()
    at = surprise(familiar)
    assert at == pytest.approx(np.log((points + 1) / (1 + (familiar[:, None] <= familiar).sum(axis=1))))


def test_familiar_rows_are_ranked_among_themselves() -> None:
    assert familiar_surprise(np.array([3.0, 1.0, 2.0, 2.0])) == pytest.approx(np.log([4, 1, 4 / 3, 4 / 3]))


def test_p_values_are_ranks_among_familiar_scores() -> None:
    familiar = np.array([1.0, 2.0, 2.0, 3.0])
    found = p_values(np.array([0.0, 1.0, 2.0, 2.5, 3.0, 9.0]), familiar)
    assert found.tolist() == [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.integers(0, 1000))
def test_thresholds_and_p_values_agree(points: int, rate: float, seed: int) -> None:
    """Above the threshold of a rate is where the p-value is at most that rate."""
    rng = np.random.default_rng(seed)
    familiar, scores = np.sort(rng.integers(0, 20, points) / 4.0), rng.integers(0, 24, 50) / 4.0
    threshold = alarm_threshold(familiar, rate)
    flags = np.zeros(50, bool) if threshold is None else scores > threshold
    assert flags.tolist() == (p_values(scores, familiar) <= rate + 1e-9).tolist()


def test_combined_false_alarms_are_as_rare_as_promised() -> None:
    """Correlated detectors, of which the builder ranks the familiar rows and the server ranks a new one among them."""
    rng, flagged, points = np.random.default_rng(0), 0.0, 99
    for _ in range(300):
        shared = rng.normal(size=points + 200)
        scores = [shared + rng.normal(size=points + 200) for _ in range(3)]
        familiar = combined([familiar_surprise(s[:points]) for s in scores])
        new = combined([Surprise(np.sort(s[:points]))(s[points:]) for s in scores])
        flagged += float((p_values(new, np.sort(familiar)) <= 0.1).mean())
    assert flagged / 300 == pytest.approx(0.1, abs=0.01)
