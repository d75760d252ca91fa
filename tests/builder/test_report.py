"""Pictures and model card of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import NormalDist
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from builder import histograms, pictures
from builder.canvas import SIZE, png
from builder.predictive import expected_calibration_error
from builder.report import ReportData, make_pictures
from model_store.manifest import Manifest, NumericColumn, RegressionTarget, TableInput
from tests import bundles
from tests.builder.png import size_of

Array = NDArray[Any]
T, A, N, K = 9, 5, 32, 16
SCALES = 2.56 * (2.0 ** np.arange(T + 1) - 1) / (2.0**T - 1)


# ---- data as a build leaves it


def walk(rng: np.random.Generator, anchors: int = A, trajectories: int = N, dimension: int = K) -> dict[str, Any]:
    """Losses that grow with the square of the drift, and latents along bent lines."""
    steep = rng.gamma(4, 0.05, size=(anchors, trajectories))
    loss = -0.4 + 0.02 * rng.normal(size=(1, anchors, 1)) + steep * SCALES[:, None, None] ** 2
    way = rng.normal(size=(anchors, trajectories, 1, dimension)) / np.sqrt(dimension)
    bend = rng.normal(size=(anchors, trajectories, 1, dimension)) / np.sqrt(dimension)
    u = np.linspace(0, 1, T + 1)[:, None]
    return {
        "fiber_loss": loss.astype(np.float32),
        "scales": SCALES.astype(np.float32),
        "reach": 6,
        "ood_scores": np.sort(rng.normal(-3, 1, 300)),
        "stand_ins": {"columns shuffled": rng.normal(-1, 1, 200), "rows shifted": rng.normal(2, 1, 200)},
        "out_of_fold": [float(v) for v in 0.62 - 0.02 * np.arange(T + 1) + 0.4 * SCALES**2],
        "latents": (u * way + 0.6 * u**2 * bend).astype(np.float32),
    }


def regression(rows: int = 60, seed: int = 0, manifest: Manifest | None = None) -> ReportData:
    """A calibrated regression, its mean wrong by as much as its error bars say."""
    rng = np.random.default_rng(seed)
    mean, epistemic = rng.normal(250, 80, rows), rng.gamma(3, 4, rows)
    std = np.sqrt(epistemic**2 + 20**2)
    predictions = {"y": rng.normal(mean, std), "mean": mean, "std": std, "epistemic_std": epistemic}
    return ReportData(
        manifest=manifest or bundles.mixed_regression().manifest,
        predictions=predictions,
        test_rows=np.arange(rows),
        conformity_scores=np.sort(np.abs(rng.normal(size=500))),
        curve=None,
        **walk(rng),
    )


def classified(rows: int = 300, classes: int = 3, seed: int = 0) -> ReportData:
    """Labels drawn from the stated probabilities."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.3), size=rows)
    y = np.array([rng.choice(classes, p=row / row.sum()) for row in p], dtype=np.int64)
    return ReportData(
        manifest=bundles.classification(classes=list(range(classes))).manifest,
        predictions={"y": y, "probabilities": p.astype(np.float32)},
        test_rows=np.arange(rows),
        conformity_scores=np.zeros(0),
        curve=None,
        **walk(rng),
    )


def one_column(seed: int = 0) -> ReportData:
    """A Gaussian process's curve over data with a gap, which is what a good posterior looks like."""
    rng = np.random.default_rng(seed)
    x = np.sort(np.concatenate([rng.uniform(0, 2, 60), rng.uniform(4, 6, 60)]))
    y = np.sin(2 * x) + 0.25 * rng.normal(size=len(x))

    def kernel(a: Array, b: Array) -> Array:
        return np.exp(-0.5 * ((a[:, None] - b) / 0.7) ** 2)

    grid, noise = np.linspace(-2, 8, 301), 0.25
    gain = kernel(grid, x) @ np.linalg.inv(kernel(x, x) + noise**2 * np.eye(len(x)))
    mean = gain @ y
    covariance = kernel(grid, grid) - gain @ kernel(x, grid)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    samples = mean + rng.normal(size=(256, len(grid))) @ root.T
    epistemic = np.sqrt(np.maximum(np.diag(covariance), 0))
    std = np.sqrt(epistemic**2 + noise**2)
    half = NormalDist().inv_cdf(0.95) * std
    curve = {
        "grid": grid,
        "map": samples[:5],
        "samples": samples,
        "mean": mean,
        "std": std,
        "epistemic_std": epistemic,
        "lower": mean - half,
        "upper": mean + half,
        "x_train": x,
        "y_train": y,
    }
    manifest = bundles.numeric_regression(columns=["depth"]).manifest
    spec = TableInput(columns=[NumericColumn(name="depth", unit="m", minimum=0, maximum=6)])
    target = RegressionTarget(name="temperature", unit="°C", mean=0.0, scale=1.0)
    manifest = manifest.model_copy(update={"inputs": spec, "target": target})
    return replace(regression(seed=seed, manifest=manifest), curve=curve)


def sketches(data: ReportData) -> dict[str, tuple[Callable[[Figure], None], tuple[float, float]]]:
    """What draws each picture, and its size, so that a test need not wait for those that it is not about."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (histograms, pictures):
            patch.setattr(module, "png", lambda draw, size=SIZE: (draw, size))
        return make_pictures(data)  # type: ignore[return-value]


def sketch(data: ReportData, name: str) -> tuple[Callable[[Figure], None], tuple[float, float]]:
    return sketches(data)[name]


def picture(data: ReportData, name: str) -> bytes:
    return png(*sketch(data, name))


def of_rows(data: ReportData) -> list[bytes]:
    """The pictures of the test rows."""
    return [picture(data, name) for name in ("calibration.png", "sharpness.png")]


def panels(data: ReportData, name: str) -> list[Any]:
    """The axes of one picture."""
    figure = Figure()
    sketch(data, name)[0](figure)
    return figure.axes


# ---- pictures


ALWAYS = {"fibers.png", "latent.png", "unfamiliar.png"}
KINDS = {
    "one column": (one_column, ALWAYS | {"posterior.png", "calibration.png", "sharpness.png"}),
    "regression": (regression, ALWAYS | {"calibration.png", "sharpness.png"}),
    "classification": (classified, ALWAYS | {"calibration.png", "sharpness.png"}),
}


@cache
def pictures_of(kind: str) -> dict[str, bytes]:
    return make_pictures(KINDS[kind][0]())


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_sound_and_wide_enough_for_a_readme(kind: str) -> None:
    found = pictures_of(kind)
    assert set(found) == KINDS[kind][1]
    for content in found.values():
        width, height = size_of(content)
        assert width == 1200 and 600 <= height <= 900
        assert len(content) < 500_000


def test_pictures_are_a_function_of_the_data() -> None:
    assert make_pictures(one_column()) == pictures_of("one column")
    other = pictures_of("classification")
    assert [name for name in other if other[name] == pictures_of("one column")[name]] == []


def test_a_users_own_matplotlib_settings_change_nothing() -> None:
    data, first = one_column(), pictures_of("one column")["calibration.png"]
    with matplotlib.rc_context({"font.size": 20, "figure.dpi": 40, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert picture(data, "calibration.png") == first
        assert matplotlib.rcParams["font.size"] == 20


# ---- what the pictures show


def line(axes: Any, label: str) -> tuple[Array, Array]:
    (found,) = [artist for artist in axes.lines if artist.get_label() == label]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def labels(axes: Any) -> set[str]:
    return set(axes.get_legend_handles_labels()[1])


def test_the_posterior_shows_its_parts_with_names_and_units() -> None:
    data = one_column()
    assert data.curve is not None
    top, bottom = panels(data, "posterior.png")
    assert (bottom.get_xlabel(), top.get_ylabel()) == ("depth (m)", "temperature (°C)")
    assert labels(top) == {
        "90% interval", "epistemic part of it", "posterior samples", "MAP (each anchor)", "posterior mean",
        "training data",
    }  # fmt: skip
    np.testing.assert_array_equal(line(top, "posterior mean")[1], data.curve["mean"])
    np.testing.assert_array_equal(line(top, "training data")[0], data.curve["x_train"])
    np.testing.assert_allclose(line(bottom, "noise std")[1], 0.25)
    np.testing.assert_array_equal(line(bottom, "epistemic std")[1], data.curve["epistemic_std"])


def test_samples_that_leave_do_not_flatten_the_data() -> None:
    data = one_column()
    assert data.curve is not None
    wild = 1e6 * np.abs(data.curve["grid"] - 3)
    samples = np.where(np.arange(256)[:, None] == 3, np.nan, data.curve["samples"] * 1e6)
    changed = {"samples": samples, "upper": data.curve["upper"] + wild, "lower": data.curve["lower"] - wild}
    top, _ = panels(replace(data, curve={**data.curve, **changed}), "posterior.png")
    low, high = top.get_ylim()
    y = data.curve["y_train"]
    assert low < y.min() and y.max() < high
    assert high - low < 5 * np.ptp(y)


def test_the_coverage_curve_is_the_share_of_rows_within() -> None:
    data = regression(rows=200)
    left, right = panels(data, "calibration.png")
    z = np.abs(data.predictions["y"] - data.predictions["mean"]) / data.predictions["std"]
    levels, covered = line(left, "test part")
    scores = data.conformity_scores
    expected = [np.mean(z <= scores[int(np.ceil((len(scores) + 1) * v - 1e-9)) - 1]) for v in levels]
    np.testing.assert_allclose(covered, expected)
    at_90 = np.mean(z <= scores[int(np.ceil(501 * 0.9)) - 1])
    assert f"{at_90:.1%} at 90%" in labels(left)
    assert "200 test rows" in left.get_title()
    assert (right.get_xlabel(), right.get_ylabel()) == ("predicted price (k€)", "measured price (k€)")


def test_reliability_states_the_metrics_ece_and_accuracy() -> None:
    data = classified(rows=500)
    left, right = panels(data, "calibration.png")
    y, p = data.predictions["y"], data.predictions["probabilities"]
    ece = expected_calibration_error(torch.from_numpy(p), torch.from_numpy(y))
    assert left.get_title() == f"Reliability, 500 test rows: ECE {ece:.1%}"
    assert right.get_title() == f"{np.mean(p.argmax(1) == y):.1%} of the rows are right"
    assert sum(bar.get_height() for bar in right.patches) == 500


def test_the_reach_is_marked_where_it_is() -> None:
    left, right = panels(regression(), "fibers.png")
    for axes in (left, right):
        assert "reach: drift scale 0.32" in labels(axes)
        assert line(axes, "reach: drift scale 0.32")[0].tolist() == [6, 6]
        assert [t.get_text() for t in axes.get_xticklabels()][:2] == ["0", "0.005"]


def test_the_nll_says_which_units_it_is_in() -> None:
    real, classes = (panels(data, "fibers.png")[1].get_ylabel() for data in (regression(), classified()))
    assert real == "out-of-fold NLL (nats a row, target standardised)"
    assert classes == "out-of-fold NLL (nats a row)"


def test_a_posterior_of_anchors_alone_says_so() -> None:
    left, right = panels(replace(regression(), reach=0), "fibers.png")
    assert "reach 0: the anchors alone" in labels(left) & labels(right)


def test_lost_particles_and_far_values_are_named() -> None:
    data = regression()
    loss = data.fiber_loss.copy()
    loss[5:, 0, :3], loss[7:, 1, 1] = np.nan, np.inf
    left, right = panels(
        replace(data, fiber_loss=loss, out_of_fold=[0.6, 0.5, float("nan"), 1e9, float("inf")]), "fibers.png"
    )
    assert left.get_title() == "Loss along 160 fibers (4 diverged)"
    assert line(right, "beyond the axis")[0].tolist() == [2, 3, 4]
    assert right.get_ylim()[1] < 5


def test_latents_show_at_most_forty_trajectories_each_ending_where_predictions_do() -> None:
    data = regression()
    (axes,) = panels(data, "latent.png")
    assert axes.get_title() == "Latent space (40 of 160 trajectories)"
    assert {f"anchor {a}" for a in range(1, 6)} < labels(axes)
    whole, used = ([path for c in axes.collections[i::2] for path in c.get_segments()] for i in (0, 1))
    assert len(whole) == len(used) == 40
    for long, short in zip(whole, used, strict=True):
        # The plan stops half way: nodes 0 to 4 and the place between 4 and 5.
        np.testing.assert_allclose(short, [*long[:5], (long[4] + long[5]) / 2])


# ---- small, empty and odd


@pytest.mark.parametrize(
    "data",
    [
        regression(rows=0),
        classified(rows=0),
        replace(regression(), predictions={}),
        replace(
            regression(rows=1), predictions={name: np.full(1, np.nan) for name in ("y", "mean", "std", "epistemic_std")}
        ),
    ],
    ids=["regression", "classification", "nothing", "nothing finite"],
)
def test_without_test_rows_there_is_no_calibration_picture(data: ReportData) -> None:
    assert set(sketches(data)) == ALWAYS


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_few_rows(rows: int) -> None:
    for data in (regression(rows), classified(rows), classified(rows, classes=2)):
        assert all(map(size_of, of_rows(data)))


def test_one_row_is_called_one_row() -> None:
    left, _ = panels(regression(rows=1), "calibration.png")
    assert left.get_title() == "Coverage, 1 test row"


def test_a_hundred_classes() -> None:
    assert all(map(size_of, of_rows(classified(rows=400, classes=100))))


def test_certain_and_wrong() -> None:
    data = classified(rows=40, classes=2)
    sure = {"y": np.zeros(40, dtype=np.int64), "probabilities": np.tile([0.0, 1.0], (40, 1))}
    assert all(map(size_of, of_rows(replace(data, predictions=sure))))


def test_no_conformity_scores_mean_gaussian_intervals() -> None:
    data = replace(regression(rows=5000, seed=3), conformity_scores=np.zeros(0))
    left, _ = panels(data, "calibration.png")
    levels, covered = line(left, "test part")
    assert np.abs(levels - covered).max() < 0.03


@pytest.mark.parametrize(
    "change",
    [
        {"fiber_loss": np.full((T + 1, A, N), np.nan)},
        {"fiber_loss": np.zeros((T + 1, A, N))},
        {"fiber_loss": np.where(np.arange(T + 1)[:, None, None] == 0, np.inf, np.ones((1, A, N)))},
        {"fiber_loss": 1e30 * SCALES[:, None, None] * np.ones((1, A, N))},
        {"fiber_loss": -SCALES[:, None, None] * np.ones((1, A, N))},
        {"out_of_fold": [float("nan")] * (T + 1)},
        {"out_of_fold": [float("inf"), 0.5, 0.4]},
        {"out_of_fold": [0.7] * (T + 1)},
        {"out_of_fold": [-1e12, 1e12]},
        {"reach": 0},
        {"reach": T},
    ],
    ids=lambda change: next(iter(change)),
)
def test_losses_of_every_kind(change: dict[str, Any]) -> None:
    size_of(picture(replace(regression(), **change), "fibers.png"))


@pytest.mark.parametrize(
    ("anchors", "trajectories", "points", "dimension"),
    [(1, 1, 2, 1), (1, 1, 2, 2), (1, 8, 3, 1), (50, 2, 4, 8), (2, 64, 21, 3)],
)
def test_latents_of_every_shape(anchors: int, trajectories: int, points: int, dimension: int) -> None:
    nodes = np.random.default_rng(0).normal(size=(anchors, trajectories, points, dimension)).cumsum(axis=2)
    size_of(picture(replace(regression(), latents=nodes), "latent.png"))


def test_latents_that_are_not_finite_are_left_out() -> None:
    data = regression()
    some = data.latents.copy()
    some[0], some[1, 2, 3, 0] = np.inf, np.nan
    size_of(picture(replace(data, latents=some), "latent.png"))
    with pytest.raises(KeyError):
        picture(replace(data, latents=np.full_like(some, np.nan)), "latent.png")
    size_of(picture(replace(data, latents=np.zeros_like(some)), "latent.png"))


@pytest.mark.parametrize(
    "name", ["price ($)", "$a$", r"$\nofunction{$", "x\ny", "温度 🌡", "w" * 300, "a_b^c%", "", "\\"]
)
def test_names_are_shown_letter_for_letter(name: str) -> None:
    target = RegressionTarget(name=name, unit="€/$", mean=0.0, scale=1.0)
    manifest = bundles.mixed_regression().manifest.model_copy(update={"target": target})
    assert all(size_of(found)[0] == 1200 for found in of_rows(regression(manifest=manifest)))
