"""The detectors of a table's inputs against plain numpy, and what all detectors together promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from model_store.bundle import Bundle
from model_store.detection import (
    ClassMahalanobis,
    Detectors,
    Mahalanobis,
    NearestRows,
    Scaler,
    Surprise,
    _furthest,
    combined,
    familiar_surprise,
    lowest_rate,
    p_values,
)
from model_store.encoding import TableEncoder
from model_store.manifest import CategoricalColumn, NumericColumn, OodDetection, TableInput, TensorInput
from tests import bundles

Array = NDArray[Any]
MIXED = TableInput(
    columns=[NumericColumn(name="a"), CategoricalColumn(name="c", categories=["u", "v", "w"]), NumericColumn(name="b")]
)


def related(rows: int, columns: int, seed: int = 0) -> Array:
    """Rows of columns that vary together."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns))


def detectors(published: Bundle) -> Detectors:
    return Detectors(published.manifest.inputs, published.manifest.ood, published.arrays())


# ---- each detector


def test_numbers_are_scaled_and_categories_are_not() -> None:
    x = np.array([[1, 0, 5], [3, 1, 5], [5, 1, 5]], dtype=np.float32)
    scaler = Scaler.fit(x, np.array([True, False, True]))
    assert scaler.scale == pytest.approx([np.std([1, 3, 5]), 1.0, 1.0])  # the last never varies
    assert scaler(x).mean(axis=0) == pytest.approx([0, 0, 0])
    assert np.isfinite(np.square(scaler(np.full((1, 3), 3e38, dtype=np.float32)))).all()


@pytest.mark.parametrize(("rows", "neighbours"), [(60, 5), (4, 3), (2, 1), (1003, 5)])
def test_nearest_rows_against_brute_force(rows: int, neighbours: int) -> None:
    kept, new = related(rows, 4).astype(np.float32), related(30, 4, seed=1)
    squares = np.sort(cdist(new, kept, "sqeuclidean"), axis=1)[:, :neighbours]
    assert NearestRows(kept).scores(new) == pytest.approx(np.log(squares.mean(axis=1)), abs=1e-3)


def test_copies_among_many_rows_each_count() -> None:
    kept = np.tile(related(200, 4), (6, 1)).astype(np.float32)
    new = related(30, 4, seed=1)
    squares = np.sort(cdist(new, kept, "sqeuclidean"), axis=1)[:, :5]
    assert NearestRows(kept).scores(new) == pytest.approx(np.log(squares.mean(axis=1)), abs=1e-3)


def test_a_row_is_no_neighbour_of_its_own() -> None:
    kept = related(40, 3).astype(np.float32)
    own = np.append(np.arange(20), -1)
    asked = np.concatenate([kept[:20], kept[20:21]]).astype(np.float64)
    squares = cdist(asked, kept, "sqeuclidean")
    squares[np.arange(20), np.arange(20)] = np.inf
    expected = np.log(np.sort(squares, axis=1)[:, :5].mean(axis=1))
    assert NearestRows(kept).scores(asked, own) == pytest.approx(expected, abs=1e-3)


def test_mahalanobis_against_numpy() -> None:
    u, new = related(300, 4), related(30, 4, seed=1)
    u -= u.mean(axis=0)
    ridged = np.cov(u.T, bias=True) + 0.01 * np.eye(4)
    found = Mahalanobis(Mahalanobis.precision_of(u), [slice(j, j + 1) for j in range(4)])
    scores, deviations = found(new)
    expected = [row @ np.linalg.solve(ridged, row) for row in new]
    assert scores == pytest.approx(np.log(expected))
    for j in range(4):
        others = [k for k in range(4) if k != j]
        slope = np.linalg.solve(ridged[np.ix_(others, others)], ridged[others, j])
        left = ridged[j, j] - ridged[others, j] @ slope
        assert deviations[:, j] == pytest.approx((new[:, j] - new[:, others] @ slope) / np.sqrt(left))


def test_mahalanobis_from_the_nearest_class_against_numpy() -> None:
    u, new = related(300, 4), related(30, 4, seed=1)
    labels = np.array([7, 2, 5] * 100)
    u[labels == 5] += 3.0
    middles = np.stack([u[labels == c].mean(axis=0) for c in (2, 5, 7)])
    within = u - middles[np.searchsorted([2, 5, 7], labels)]
    ridged = np.cov(within.T, bias=True) + 0.01 * np.eye(4)
    expected = [min((row - m) @ np.linalg.solve(ridged, row - m) for m in middles) for row in new]
    found = ClassMahalanobis.fit(u, labels)
    assert found.scores(new) == pytest.approx(np.log(expected))
    again = ClassMahalanobis(found.means, found.precision)
    assert np.array_equal(again.scores(new), found.scores(new))
    # A row in the middle of a class is not nearer than rounding knows.
    assert np.isfinite(found.scores(middles)).all()


def test_rows_without_classes_have_one_middle() -> None:
    u, new = related(300, 4), related(30, 4, seed=1)
    plain = Mahalanobis(Mahalanobis.precision_of(u), [slice(j, j + 1) for j in range(4)])
    assert ClassMahalanobis.fit(u, None).scores(new) == pytest.approx(plain(new - u.mean(axis=0))[0])


def test_a_category_deviates_as_a_whole() -> None:
    """By what the squared distance loses where its encoded columns are as the others suggest."""
    encoder = TableEncoder(MIXED)
    rng = np.random.default_rng(0)
    a = rng.normal(size=400)
    towns = np.where(a > 0.5, "u", np.where(a > -0.5, "v", "w"))
    x = encoder.encode_columns([a, towns, a + 0.1 * rng.normal(size=400)])
    u = Scaler.fit(x, encoder.numeric)(x)
    found = Mahalanobis(Mahalanobis.precision_of(u), encoder.groups)
    scores, deviations = found(u[:50])
    assert deviations.shape == (50, 3) and (deviations[:, 1] >= 0).all()
    own, others = [1, 2, 3], [0, 4]
    suggested = u[:50].copy()
    p = found.precision
    suggested[:, own] = -u[:50][:, others] @ p[np.ix_(others, own)] @ np.linalg.inv(p[np.ix_(own, own)])
    lost = np.exp(scores) - np.exp(found(suggested)[0])
    assert np.square(deviations[:, 1]) == pytest.approx(lost, rel=1e-6, abs=1e-9)


def test_columns_that_follow_from_others_do_no_harm() -> None:
    u = related(50, 2)
    twice = np.column_stack([u, u[:, 0], np.zeros(50)])
    scores, deviations = Mahalanobis(Mahalanobis.precision_of(twice), [slice(j, j + 1) for j in range(4)])(twice)
    assert np.isfinite(scores).all() and np.isfinite(deviations).all()


# ---- all together


def test_surprise_is_the_share_of_familiar_rows_above() -> None:
    surprise = Surprise(np.array([1.0, 2.0, 2.0, 3.0]))
    assert surprise(np.array([1.0, 2.0, 3.0])) == pytest.approx(np.log([5 / 5, 5 / 4, 5 / 2]))
    assert surprise(np.array([0.0])) == pytest.approx([0.0])
    assert familiar_surprise(np.array([3.0, 1.0, 2.0, 2.0])) == pytest.approx(np.log([4 / 1, 4 / 4, 4 / 3, 4 / 3]))


@given(
    familiar=st.lists(st.floats(-50, 50).map(lambda v: round(v, 2)), min_size=1, max_size=60),
    score=st.floats(-100, 100) | st.floats(-50, 50).map(lambda v: round(v, 2)),
)
def test_one_row_has_the_surprise_and_p_value_that_it_has_among_others(familiar: list[float], score: float) -> None:
    surprise = Surprise(np.sort(familiar))
    # Scores of familiar rows and just beyond the last of them are where the curve bends.
    for asked in (score, familiar[0], max(familiar), np.nextafter(max(familiar), np.inf), max(familiar) + 1e-7):
        among = np.array([asked, 0.0])
        assert surprise.of_one(float(asked)) == (surprise(among)[0], surprise.p_values(among)[0])
        assert surprise.p_values(among) == pytest.approx(p_values(among, np.sort(familiar)), abs=0)


def test_the_combination_grows_with_every_detector() -> None:
    rng = np.random.default_rng(0)
    surprises = [Surprise(np.sort(rng.normal(size=50))) for _ in range(3)]
    base = rng.normal(size=3)
    for at in range(3):
        rising = np.repeat(base[:, None], 200, axis=1)
        rising[at] = np.linspace(-6, 12, 200)
        together = combined([s(scores) for s, scores in zip(surprises, rising, strict=True)])
        assert (np.diff(together) >= 0).all()
        assert (np.diff(together)[rising[at, 1:] > 3] > 0).all()  # beyond all familiar rows too


def test_p_values_are_ranks_among_familiar_scores() -> None:
    familiar = np.array([1.0, 2.0, 2.0, 3.0])
    found = p_values(np.array([0.0, 1.0, 2.0, 2.5, 3.0, 9.0]), familiar)
    assert found.tolist() == [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]
    assert lowest_rate(4) == 0.2 and lowest_rate(99) == 0.01


def test_p_values_of_all_detectors_together_hold_what_they_promise() -> None:
    """Rows that are as the familiar ones are flagged as often as was asked, however detectors depend on each other."""
    rng = np.random.default_rng(1)
    flagged: list[Array] = []
    for _ in range(300):
        common = rng.normal(size=(1, 300))
        scores = common + rng.normal(size=(3, 300)) * np.array([[0.1], [1.0], [5.0]])
        familiar, new = scores[:, :100], scores[:, 100:]
        known = np.sort(combined([familiar_surprise(s) for s in familiar]))
        p = p_values(combined([Surprise(np.sort(f))(s) for f, s in zip(familiar, new, strict=True)]), known)
        flagged.append(np.array([(p <= rate).mean() for rate in (0.01, 0.05, 0.1, 0.5)]))
    found = np.mean(flagged, axis=0)
    # Ranks among 101: never more often than asked, but for chance; less often by no more than a rank or so, as the
    # surprise of a new row is interpolated between those of familiar ones.
    assert (found < np.array([0.01, 0.05, 0.1, 0.5]) + 0.004).all()
    assert (found > np.array([0.01, 0.05, 0.1, 0.5]) - 0.016).all() and found[0] > 0.006


def test_the_combined_score_is_the_mean_surprise(tmp_path: Any) -> None:
    published = bundles.mixed_regression().publish(tmp_path)
    arrays = published.arrays()
    x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    epistemic = np.linspace(-3, 3, 20)
    found = detectors(published).judge(x, epistemic)
    assert list(found.detectors) == ["epistemic_to_noise", "nearest_rows", "mahalanobis"]
    assert found.detectors["epistemic_to_noise"][0] is epistemic
    each = [Surprise(f)(s) for f, (s, _) in zip(arrays["ood_scores"], found.detectors.values(), strict=True)]
    assert found.score == pytest.approx(np.mean(each, axis=0))
    assert found.p_value == pytest.approx(p_values(found.score, arrays["ood_combined"]))
    for familiar, (scores, p) in zip(arrays["ood_scores"], found.detectors.values(), strict=True):
        assert p == pytest.approx(p_values(scores, familiar))
    for i in range(20):
        one = detectors(published).judge(x[i : i + 1], epistemic[i : i + 1])
        assert one.score == pytest.approx(found.score[i : i + 1]) and one.p_value == pytest.approx(
            found.p_value[i : i + 1]
        )
        assert (
            one.columns is not None and found.columns is not None and np.array_equal(one.columns[0], found.columns[i])
        )


def test_a_row_of_an_unseen_category_has_the_least_p_value(tmp_path: Any) -> None:
    published = bundles.mixed_regression().publish(tmp_path)
    inputs = published.manifest.inputs
    assert isinstance(inputs, TableInput)
    encoder = TableEncoder(inputs)
    towns = np.array(["Bonn", "Ulm", "Köln"], dtype=object)
    x = encoder.encode_columns([np.array([4.0] * 3), np.array([90.0] * 3), towns])
    epistemic = np.full(3, published.arrays()["ood_scores"][0][0])
    found = detectors(published).judge(x, epistemic)
    assert found.unseen is not None and found.unseen.tolist() == [[False] * 3, [False, False, True], [False] * 3]
    points = published.manifest.ood.points
    assert found.p_value[1] == 1 / (points + 1) == p_values(found.score, published.arrays()["ood_combined"])[1]
    # The others are as they are alone.
    known = detectors(published).judge(x[[0, 2]], epistemic[[0, 2]])
    assert known.unseen is None and (known.p_value > 0.05).all()
    np.testing.assert_array_equal(found.p_value[[0, 2]], known.p_value)
    np.testing.assert_array_equal(found.score[[0, 2]], known.score)
    alone = detectors(published).judge(x[1:2], epistemic[1:2])
    assert alone.p_value == found.p_value[1:2] and alone.score == pytest.approx(found.score[1:2])


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 13, 100])
def test_the_columns_that_deviate_most_are_named_the_most_first(columns: int) -> None:
    deviations = np.random.default_rng(columns).normal(size=(40, columns))
    at, found = _furthest(deviations)
    assert np.array_equal(at, np.argsort(-np.abs(deviations), axis=1)[:, :3])
    assert np.array_equal(found, np.take_along_axis(deviations, at, axis=1))


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_planted_outlier_names_its_column_first(tmp_path: Any, column: int) -> None:
    x = related(500, 3, seed=4).astype(np.float32)
    inputs = TableInput(columns=[NumericColumn(name=n) for n in "abc"])
    u = (scaler := Scaler.fit(x, np.ones(3, dtype=bool)))(x)
    mahalanobis = Mahalanobis(Mahalanobis.precision_of(u), TableEncoder(inputs).groups)
    familiar = np.sort(mahalanobis(u)[0])
    arrays = {
        "ood_center": scaler.center,
        "ood_scale": scaler.scale,
        "ood_precision": mahalanobis.precision,
        "ood_scores": familiar[None],
        "ood_combined": np.sort(familiar_surprise(familiar)),
    }
    described = OodDetection(detectors=["mahalanobis"], false_alarm_rate=0.01, points=500)
    planted = x[:40].copy()
    planted[:, column] -= 12 * x[:, column].std()
    found = Detectors(inputs, described, arrays).judge(planted, None)
    assert found.columns is not None and found.deviations is not None
    assert (found.columns[:, 0] == column).all() and (found.deviations[:, 0] < -5).all()
    assert (found.p_value <= 0.01).all()


def test_inputs_without_columns_name_none(tmp_path: Any) -> None:
    published = bundles.image_classification().publish(tmp_path)
    assert isinstance(published.manifest.inputs, TensorInput)
    features = np.zeros((2, bundles.FEATURES), dtype=np.float32)
    found = detectors(published).judge(np.zeros((2, 1, 4, 4), dtype=np.float32), np.array([-3.0, 0.5]), features)
    assert found.columns is None and found.deviations is None
    assert list(found.detectors) == ["mutual_information", "nearest_features", "mahalanobis_features"]


def test_many_rows_are_scored_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = related(40, 3).astype(np.float32)
    new, own = np.concatenate([related(57, 3, seed=1), kept[:3]]), np.append(np.full(57, -1), np.arange(3))
    whole = NearestRows(kept).scores(new, own)
    monkeypatch.setattr("model_store.detection._BLOCK_VALUES", 10 * len(kept))
    assert NearestRows(kept).scores(new, own) == pytest.approx(whole, abs=1e-5)
