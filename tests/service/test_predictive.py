from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.detection import p_values
from model_store.manifest import ClassificationCalibration, RegressionCalibration, RegressionTarget
from service import predictive
from service.predictive import AnchorSamples

TARGET = RegressionTarget(name="y", mean=10.0, scale=4.0)
NOISE = RegressionCalibration(noise_std=0.5, points=99)
WARM = ClassificationCalibration(temperature=2.0, points=99)
SCORES = np.arange(1, 100) / 50.0
MISSES = np.arange(1, 100) / 100.0


def outputs(samples: int, rows: int, width: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(samples, rows, width)).astype(np.float32)


def test_regression_is_the_mixture_in_the_targets_units() -> None:
    f = outputs(20, 5, 1)
    found = predictive.regression(f, TARGET, NOISE, 0.9, SCORES)
    for b in range(5):
        y = [10.0 + 4.0 * float(v) for v in f[:, b, 0]]
        mean = math.fsum(y) / 20
        epistemic = math.fsum((v - mean) ** 2 for v in y) / 20
        assert found["mean"][b] == pytest.approx(mean)
        assert found["epistemic_variance"][b] == pytest.approx(epistemic)
        assert found["aleatoric_variance"][b] == 0.25
        assert found["variance"][b] == pytest.approx(epistemic + 0.25)
        half = 1.8 * math.sqrt(epistemic + 0.25)  # the 90th of 99 scores
        assert found["interval"][b] == pytest.approx([mean - half, mean + half])


def test_samples_that_agree_leave_the_noise_alone() -> None:
    f = np.repeat(outputs(1, 4, 1), 16, axis=0)
    found = predictive.regression(f, TARGET, NOISE, 0.5, SCORES)
    assert found["epistemic_variance"] == pytest.approx(np.zeros(4), abs=1e-20)
    assert found["entropy"] == pytest.approx([0.5 * math.log(2 * math.pi * math.e * 0.25)] * 4, abs=1e-7)


@pytest.mark.parametrize(
    ("level", "rank"), [(0.9, 90), (0.5, 50), (0.55, 55), (0.07, 7), (0.905, 91), (0.99, 99), (0.001, 1)]
)
def test_interval_factor_is_the_finite_sample_quantile(level: float, rank: int) -> None:
    assert predictive.interval_factor(level, SCORES) == SCORES[rank - 1]


def test_interval_factor_beyond_the_scores() -> None:
    assert predictive.interval_factor(0.995, SCORES) == pytest.approx(NormalDist().inv_cdf(0.9975))
    assert predictive.interval_factor(0.995, SCORES * 10) == SCORES[-1] * 10
    assert predictive.interval_factor(0.9, np.empty(0)) == pytest.approx(1.6448536)


@given(st.floats(0, 1, exclude_min=True, exclude_max=True), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_higher_level_never_gives_a_narrower_interval(a: float, b: float) -> None:
    low, high = sorted((a, b))
    factors = [predictive.interval_factor(level, SCORES) for level in (low, high)]
    assert 0 <= factors[0] <= factors[1] < 40


def test_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        scores = np.sort(np.abs(rng.standard_t(3, size=60)))
        covered.append(np.abs(rng.standard_t(3, size=50)) <= predictive.interval_factor(0.8, scores))
    assert np.mean(covered) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("q", "level", "side"), [(0.95, 0.9, 1), (0.05, 0.9, 0), (0.75, 0.5, 1), (0.25, 0.5, 0)])
def test_quantiles_are_the_ends_of_intervals(q: float, level: float, side: int) -> None:
    found = predictive.regression(outputs(20, 5, 1), TARGET, NOISE, level, SCORES)
    quantiles = predictive.calibrated_quantiles(found, [q, 0.5], SCORES)
    assert quantiles[:, 0] == pytest.approx(found["interval"][:, side])
    assert quantiles[:, 1].tolist() == found["mean"].tolist()


@given(st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), min_size=2, max_size=9))
def test_quantiles_never_cross(asked: list[float]) -> None:
    asked = sorted(asked)
    found = predictive.calibrated_quantiles({"mean": np.array([1.0]), "variance": np.array([4.0])}, asked, SCORES)
    assert (np.diff(found[0]) >= 0).all()


def test_a_logarithm_has_the_exponentials_of_its_intervals() -> None:
    f = outputs(20, 5, 1)
    target = RegressionTarget(name="y", log=True, mean=1.0, scale=0.5)
    noise = RegressionCalibration(noise_std=0.3, points=99)
    linear = predictive.regression(f, target.model_copy(update={"log": False}), noise, 0.9, SCORES)
    found = predictive.regression(f, target, noise, 0.9, SCORES)
    assert found["interval"] == pytest.approx(np.exp(linear["interval"]))
    assert found["log_mean"].tolist() == linear["mean"].tolist()
    assert found["log_variance"].tolist() == linear["variance"].tolist()
    assert found["log_epistemic_variance"].tolist() == linear["epistemic_variance"].tolist()
    quantiles = predictive.calibrated_quantiles(found, [0.05, 0.5, 0.95], SCORES)
    assert quantiles[:, [0, 2]] == pytest.approx(found["interval"])
    assert quantiles[:, 1] == pytest.approx(np.exp(linear["mean"]))
    assert quantiles[:, 1].tolist() == found["median"].tolist()
    draws = predictive.draws(f, target, noise.noise_std)
    assert draws.mean(axis=1) == pytest.approx(found["mean"])
    assert draws.var(axis=1) == pytest.approx(found["epistemic_variance"])
    assert found["variance"] == pytest.approx(found["epistemic_variance"] + found["aleatoric_variance"])


def test_the_predictive_of_a_logarithm_is_a_density_with_these_figures() -> None:
    f = outputs(6, 3, 1)
    target = RegressionTarget(name="y", log=True, mean=1.0, scale=0.5)
    found = predictive.regression(f, target, RegressionCalibration(noise_std=0.3, points=99), 0.9, SCORES)
    z = np.linspace(-3, 5, 4001)
    for b in range(3):
        components = [NormalDist(1.0 + 0.5 * float(v), 0.3) for v in f[:, b, 0]]
        of_log = np.array([math.fsum(c.pdf(v) for c in components) / 6 for v in z])
        y, p = np.exp(z), of_log / np.exp(z)
        assert np.trapezoid(p, y) == pytest.approx(1.0, abs=1e-6)
        mean = np.trapezoid(p * y, y)
        assert found["mean"][b] == pytest.approx(mean, rel=1e-5)
        assert found["variance"][b] == pytest.approx(np.trapezoid(p * (y - mean) ** 2, y), rel=1e-4)
        assert found["entropy"][b] == pytest.approx(-np.trapezoid(p * np.log(np.maximum(p, 1e-300)), y), abs=1e-5)


def test_outputs_in_range_are_numbers_whose_exponentials_are_too() -> None:
    f = np.array([[[0.0], [290.0], [-310.0], [np.nan]], [[1.0], [310.0], [0.0], [0.0]]], dtype=np.float32)
    target = RegressionTarget(name="y", log=True, mean=1.0, scale=1.0)
    assert predictive.in_range(f, target).all(axis=(0, 2)).tolist() == [True, False, False, False]
    linear = predictive.in_range(f, target.model_copy(update={"log": False}))
    assert linear.all(axis=(0, 2)).tolist() == [True, True, True, False]


def test_prediction_sets_hold_what_is_as_likely_as_true_classes_were() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9], [0.34, 0.33, 0.33]])
    # The 80th of 99 scores is 0.8: classes from a probability of 0.2 on.
    assert predictive.prediction_sets(p, 0.8, MISSES).tolist() == [
        [True, True, False],
        [False, False, True],
        [True, True, True],
    ]
    # The likeliest class is always in, and all are where 99 rows cannot vouch for the level.
    assert predictive.prediction_sets(p, 0.05, MISSES).sum(1).tolist() == [1, 1, 1]
    assert predictive.prediction_sets(p, 0.995, MISSES).all()
    # Unless they may be empty.
    assert predictive.prediction_sets(p, 0.05, MISSES, empty=True).sum(1).tolist() == [0, 0, 0]
    assert predictive.prediction_sets(p, 0.995, MISSES, empty=True).all()


def test_sets_that_may_be_empty_cover_no_more_than_they_promise() -> None:
    """Of a classifier that is right 97 times in 100, and knows when."""
    rng = np.random.default_rng(4)
    likeliest = 1 - 0.06 * rng.uniform(size=40_000)
    right = rng.uniform(size=len(likeliest)) < likeliest
    p = np.column_stack([likeliest, 1 - likeliest])
    true = np.where(right, 0, 1)
    scores = np.sort(1 - p[np.arange(20_000), true[:20_000]])
    covered = {}
    for empty in (False, True):
        held = predictive.prediction_sets(p[20_000:], 0.8, scores, empty)
        covered[empty] = held[np.arange(20_000), true[20_000:]].mean()
    assert covered[False] == pytest.approx(0.97, abs=0.01) and covered[True] == pytest.approx(0.8, abs=0.01)


def test_prediction_sets_cover_what_they_promise() -> None:
    """Of a classifier that is far too sure of itself."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet([0.5] * 4, size=60_000)
    y = (p.cumsum(1) < rng.uniform(size=(len(p), 1))).sum(1)
    sure = p**3 / (p**3).sum(1, keepdims=True)
    true = sure[np.arange(len(p)), y]
    covered = []
    for start in range(0, 50_000, 250):
        known, new = slice(start, start + 50), slice(start + 50, start + 250)
        held = predictive.prediction_sets(sure[new], 0.8, np.sort(1 - true[known]))
        covered.append(held[np.arange(200), y[new]].mean())
    # Never less; more by no more than one of 51, but for the likeliest class, which is always in.
    assert 0.79 < np.mean(covered) < 0.83


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.integers(0, 1000))
def test_flags_and_p_values_agree(points: int, rate: float, seed: int) -> None:
    """Above the threshold of a rate is where the p-value is at most that rate."""
    rng = np.random.default_rng(seed)
    familiar, scores = np.sort(rng.integers(0, 20, points) / 4.0), rng.integers(0, 24, 50) / 4.0
    threshold = predictive.conformal_quantile(1 - rate, familiar)
    flags = np.zeros(50, bool) if threshold is None else scores > threshold
    assert flags.tolist() == (p_values(scores, familiar) <= rate + 1e-9).tolist()


def test_classification_against_plain_sums() -> None:
    f = outputs(12, 3, 4)
    found = predictive.classification(f, WARM, 0.9, MISSES)
    for b in range(3):
        p = [[math.exp(v / 2) for v in f[s, b].tolist()] for s in range(12)]
        p = [[v / sum(row) for v in row] for row in p]
        mean = [sum(row[c] for row in p) / 12 for c in range(4)]
        expected = sum(-v * math.log(v) for row in p for v in row) / 12
        total = -sum(v * math.log(v) for v in mean)
        assert found["mean"][b] == pytest.approx(mean)
        assert found["variance"][b] == pytest.approx([np.var([row[c] for row in p]) for c in range(4)])
        assert found["label"][b] == mean.index(max(mean))
        assert found["entropy"][b] == pytest.approx(total)
        assert found["expected_entropy"][b] == pytest.approx(expected)
        assert found["mutual_information"][b] == pytest.approx(total - expected)


def test_samples_brought_towards_their_mean_are_answered_alike() -> None:
    """All that is answered is of the samples so far apart; only the OOD score is of those that were drawn."""
    f, members = outputs(12, 300, 4), AnchorSamples.of(np.arange(12) % 3)
    closer = WARM.model_copy(update={"dispersion": 0.25})
    found = predictive.classification(f, closer, 0.9, MISSES, members)
    expected = predictive.classification((0.75 * f.mean(axis=0) + 0.25 * f).astype(np.float32), WARM, 0.9, MISSES)
    assert found.pop("epistemic_score") == pytest.approx(predictive.mutual_information(f, members, WARM))
    for name, values in expected.items():
        assert found.pop(name) == pytest.approx(values, abs=1e-6), name
    assert not found
    p = predictive.probabilities(f, closer)
    assert p.mean(axis=0) == pytest.approx(expected["mean"], abs=1e-6)
    apart = predictive.classification(f, WARM, 0.9, MISSES)["mutual_information"]
    assert np.all(expected["mutual_information"] < 0.2 * apart)


@given(st.integers(1, 8), st.integers(2, 5), st.floats(0, 80), st.integers(0, 1000), st.sampled_from([1.0, 0.5, 1e-9]))
def test_the_decomposition_adds_up(samples: int, classes: int, size: float, seed: int, dispersion: float) -> None:
    calibration = WARM.model_copy(update={"dispersion": dispersion})
    found = predictive.classification(outputs(samples, 3, classes, seed) * np.float32(size), calibration, 0.9, MISSES)
    assert np.all(np.isfinite([*found["entropy"], *found["expected_entropy"]]))
    assert np.all(found["mutual_information"] >= 0)
    assert np.all(found["expected_entropy"] >= 0)
    assert found["entropy"] == pytest.approx(found["expected_entropy"] + found["mutual_information"], abs=1e-12)
    assert np.all(found["entropy"] <= math.log(classes) + 1e-12)
    assert found["mean"].sum(axis=1) == pytest.approx(np.ones(3))


def test_huge_logits_stay_finite() -> None:
    f = np.array([[[3e38, -3e38, 0.0]]], dtype=np.float32)
    found = predictive.classification(f, WARM, 0.9, MISSES)
    assert found["mean"].tolist() == [[1.0, 0.0, 0.0]]
    assert found["entropy"].tolist() == [0.0]


def test_the_regression_score_is_taken_within_anchors() -> None:
    f = outputs(7, 4, 1)
    anchors = np.array([0, 1, 0, 1, 0, 2, 1])  # anchor 2 has one sample, which says nothing about its spread
    y = 4.0 * f[..., 0].astype(np.float64)
    within = (y[[0, 2, 4]].var(axis=0, ddof=1) + y[[1, 3, 6]].var(axis=0, ddof=1)) / 2
    found = predictive.epistemic_to_noise(f, AnchorSamples.of(anchors), TARGET, NOISE)
    assert found == pytest.approx(np.log(within / 0.25))
    told = predictive.regression(f, TARGET, NOISE, 0.9, SCORES, AnchorSamples.of(anchors))["epistemic_score"]
    assert np.array_equal(told, found)


def test_disagreement_between_anchors_alone_does_not_score() -> None:
    f = outputs(2, 3, 1)[[0, 1, 0, 1]]
    within = predictive.epistemic_to_noise(f, AnchorSamples.of(np.array([0, 1, 0, 1])), TARGET, NOISE)
    assert np.all(within == within[0]) and np.isfinite(within[0])
    apart = predictive.epistemic_to_noise(f, AnchorSamples.of(np.array([0, 0, 1, 1])), TARGET, NOISE)
    assert np.all(apart > within + 5)


def test_the_classification_score_is_taken_within_anchors() -> None:
    f = outputs(5, 3, 4)
    anchors = np.array([1, 0, 1, 0, 1])
    members = AnchorSamples.of(anchors)
    # Two samples of anchor 0 and three of anchor 1, of which the mean takes one degree of freedom each.
    parts = [
        n / (n - 1) * predictive.classification(f[anchors == a], WARM, 0.9, MISSES)["mutual_information"]
        for a, n in ((0, 2), (1, 3))
    ]
    found = predictive.mutual_information(f, members, WARM)
    assert found == pytest.approx(np.log(np.mean(parts, axis=0)))
    told = predictive.classification(f, WARM, 0.9, MISSES, members)["epistemic_score"]
    assert np.array_equal(told, found)


@pytest.mark.parametrize("anchors", [[0], [0, 1], [0, 1, 2]])
def test_scores_with_few_samples_are_finite(anchors: list[int]) -> None:
    count, members = len(anchors), AnchorSamples.of(np.array(anchors))
    assert np.all(np.isfinite(predictive.epistemic_to_noise(outputs(count, 2, 1), members, TARGET, NOISE)))
    assert np.all(np.isfinite(predictive.mutual_information(outputs(count, 2, 3), members, WARM)))
