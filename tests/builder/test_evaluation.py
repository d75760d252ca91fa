"""Test figures against closed forms and other libraries' computations, and against what a server answers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import norm
from sklearn.metrics import accuracy_score, log_loss, root_mean_squared_error
from torch import nn

from builder.calibration import Calibrated, DecodedPosterior, Reach, SampledPosterior
from builder.config import make_config
from builder.data import Dataset, from_frame, prepare
from builder.evaluation import evaluate, predict_test, test_part
from builder.fiber import Fibers
from builder.network import FunctionalNetwork
from builder.pipeline import run_build
from builder.trained import Trained
from model_store.bundle import Bundle
from model_store.manifest import LatentPlan, Metrics, RegressionTarget
from model_store.plan import draw_latents
from tests.builder.builds import classes, config, serve, table, watched
from tests.builder.decoders import Identity

pytestmark = pytest.mark.usefixtures("rough_pictures")

# What pytest would take for a test.
part_for_tests = test_part
del test_part

Array = NDArray[Any]

ANCHORS, TRAJECTORIES, STEPS, REACH, ROWS, TESTED = 2, 3, 4, 2, 80, 24
SPREAD, MAP_SPREAD = 0.6, 1.1
SCORES = np.linspace(0.05, 2.0, 39)
NINETY = float(SCORES[35])  # the ceil(40 * 0.9)-th smallest of 39 scores


def made(task: str = "regression", nodes: Array | None = None, tested: int = TESTED) -> Trained:
    """A linear network whose posterior samples are points on given trajectories through weight space.

    Args:
        nodes: (A, N, T+1, P) weights.
        tested: how many of the rows are the test part.
    """
    rng = np.random.default_rng(0)
    raw = pd.DataFrame({"a": rng.normal(size=ROWS), "b": rng.normal(size=ROWS)})
    raw["y"] = 40 + 7 * rng.normal(size=ROWS) if task == "regression" else np.arange(ROWS) % 3
    options = make_config({"name": "made", "data": {"target": "y", "task": task, "test_fraction": tested / ROWS}})
    dataset = prepare(from_frame(raw, options.data), options.data, True, 0)
    network = FunctionalNetwork(nn.Linear(2, dataset.outputs))
    if nodes is None:
        nodes = rng.normal(size=(ANCHORS, TRAJECTORIES, STEPS + 1, network.weights))
        nodes[:, :, 0] = nodes[:, :1, 0]  # an anchor's trajectories start together
    nodes = nodes.astype(np.float32)
    unused: Any = None
    train = ~dataset.test
    fibers = Fibers(
        nodes=torch.from_numpy(nodes.transpose(2, 0, 1, 3).copy()),
        scales=torch.linspace(0, 1, nodes.shape[2]),
        loss=unused,
        unseen=torch.full((ANCHORS,), torch.inf),
        drift_length=unused,
        stranded=unused,
        gradient_evaluations=0,
    )
    return Trained(
        config=options,
        dataset=dataset,
        network=network,
        x=torch.from_numpy(dataset.x[train]),
        y=torch.from_numpy(dataset.y[train]),
        member=torch.ones(ANCHORS, int(train.sum()), dtype=torch.bool),
        anchors=torch.from_numpy(nodes[:, 0, 0]),
        judged=unused,
        cross_fitted=fibers,
        fibers=fibers,
        reach=Reach(node=REACH, used=REACH, shown=3, out_of_fold=[]),
        latent=unused,
        plans={"predict": LatentPlan(name="predict", samples=10, stop=1.0, drift_scale=0.5)},
        posterior=DecodedPosterior(network, Identity(), nodes[:, :, : REACH + 1]),
        calibrated=Calibrated(
            spread=SPREAD,
            dispersion=1.0,
            map_spread=MAP_SPREAD,
            conformity_scores=torch.from_numpy(SCORES),
            points=57,
            nll=1.25,
            map_nll=1.5,
        ),
        detection=unused,
        features=unused,
        training_gradients=0,
    )


def by_name(metrics: list[Metrics]) -> dict[tuple[str, str], Metrics]:
    found = {(m.predictor, m.split): m for m in metrics}
    assert len(found) == len(metrics)
    return found


def scores(trained: Trained, predictor: str) -> dict[str, float]:
    return by_name(evaluate(trained))[predictor, "test"].values


def linear(weights: Array, dataset: Dataset) -> Array:
    """(S, B, O) float64 outputs of the linear network for weights (S, P) on the test rows."""
    x = dataset.x[dataset.test].astype(np.float64)
    matrix = weights[:, : 2 * dataset.outputs].reshape(-1, dataset.outputs, 2).astype(np.float64)
    return np.einsum("soc,bc->sbo", matrix, x) + weights[:, None, 2 * dataset.outputs :]


def served_weights(trained: Trained) -> Array:
    """The samples of a request that names neither samples nor seed."""
    plan = trained.plans["predict"]
    return draw_latents(plan, trained.posterior.nodes, plan.samples, 0)[0]


def fiber_weights(trained: Trained) -> Array:
    """As many samples of the trajectories up to the reach."""
    fibers, plan, used = trained.fibers, trained.plans["predict"], slice(REACH + 1)
    sampled = SampledPosterior(trained.network, fibers.nodes[used].permute(1, 2, 0, 3), fibers.scales[used])
    return sampled.draw(plan, plan.samples)[0].numpy()


def own_units(trained: Trained) -> tuple[RegressionTarget, Array]:
    target = trained.dataset.target
    assert isinstance(target, RegressionTarget)
    return target, target.mean + target.scale * trained.dataset.y[trained.dataset.test].astype(np.float64)


def regression_figures(trained: Trained, weights: Array, spread: float) -> dict[str, float]:
    """The figures computed in the target's own units throughout."""
    target, y = own_units(trained)
    f = target.mean + target.scale * linear(weights, trained.dataset)[..., 0]
    noise = spread * target.scale
    mean, half = f.mean(0), NINETY * np.sqrt(f.var(0) + noise**2)
    return {
        "nll": float(-norm.logpdf(y, mean, np.sqrt(f.var(0) + noise**2)).mean()),
        "rmse": float(root_mean_squared_error(y, mean)),
        "coverage_90": float(((mean - half <= y) & (y <= mean + half)).mean()),
        "width_90": float(2 * half.mean()),
    }


def calibration_error(p: Array, y: Array) -> float:
    """Guo et al. (2017) with 15 bins, written out."""
    confidence, right, error = p.max(1), p.argmax(1) == y, 0.0
    edges = np.linspace(0, 1, 16)
    for low, high in itertools.pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(error)


def classification_figures(trained: Trained, weights: Array, temperature: float) -> dict[str, float]:
    y = trained.dataset.y[trained.dataset.test]
    p = softmax(linear(weights, trained.dataset) / temperature, axis=-1).mean(0)
    return {
        "nll": float(log_loss(y, p, labels=[0, 1, 2])),
        "accuracy": float(accuracy_score(y, p.argmax(1))),
        "ece": calibration_error(p, y),
    }


FIGURES = {"regression": regression_figures, "classification": classification_figures}


# ---- which rows, which samples


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_test_part_is_the_rows_kept_for_it(task: str) -> None:
    trained = made(task)
    x, y = part_for_tests(trained)
    assert int(trained.dataset.test.sum()) == len(x) == TESTED
    assert np.array_equal(x.numpy(), trained.dataset.x[trained.dataset.test])
    assert np.array_equal(y.numpy(), trained.dataset.y[trained.dataset.test])
    assert y.is_floating_point() == (task == "regression")


def test_training_rows_change_no_test_figure() -> None:
    trained = made()
    changed = replace(trained, x=trained.x + 3, y=-trained.y)
    changed.dataset.y[~changed.dataset.test] = 9.0
    assert evaluate(changed) == evaluate(made())


def test_regression_predictions_are_the_default_requests() -> None:
    trained = made()
    f = linear(served_weights(trained), trained.dataset)[..., 0]
    found = predict_test(trained)
    assert found.probabilities is None
    assert found.mean is not None and found.std is not None and found.epistemic_std is not None
    np.testing.assert_array_equal(found.y.numpy(), trained.dataset.y[trained.dataset.test])
    np.testing.assert_allclose(found.mean.numpy(), f.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.epistemic_std.numpy(), f.std(0), rtol=1e-4)
    np.testing.assert_allclose(found.std.numpy(), np.sqrt(f.var(0) + SPREAD**2), rtol=1e-5)


def test_class_predictions_are_the_default_requests() -> None:
    trained = made("classification")
    found = predict_test(trained)
    assert found.mean is None and found.std is None and found.epistemic_std is None
    assert found.probabilities is not None
    p = softmax(linear(served_weights(trained), trained.dataset) / SPREAD, axis=-1).mean(0)
    np.testing.assert_allclose(found.probabilities.numpy(), p, atol=1e-5)


# ---- figures


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_posterior_is_scored_as_one_answer(task: str) -> None:
    trained = made(task)
    assert scores(trained, "posterior") == pytest.approx(FIGURES[task](trained, served_weights(trained), SPREAD), 1e-4)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_fiber_samples_are_those_up_to_the_reach(task: str) -> None:
    trained = made(task)
    expected = FIGURES[task](trained, fiber_weights(trained), SPREAD)
    assert scores(trained, "fiber") == pytest.approx(expected, 1e-4)
    further = replace(trained, reach=replace(trained.reach, used=STEPS))
    assert scores(further, "fiber")["nll"] != pytest.approx(expected["nll"], 1e-3)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_map_is_the_mean_over_single_anchors(task: str) -> None:
    trained = made(task)
    each = [FIGURES[task](trained, anchor[None], MAP_SPREAD) for anchor in trained.posterior.nodes[:, 0, 0]]
    expected = {name: float(np.mean([e[name] for e in each])) for name in each[0]}
    # Intervals are calibrated for the posterior's spread, so the MAP has none.
    expected.pop("coverage_90", None), expected.pop("width_90", None)
    found = scores(trained, "map")
    assert found == pytest.approx(expected, 1e-4)
    together = FIGURES[task](trained, trained.posterior.nodes[:, 0, 0], MAP_SPREAD)
    assert found["nll"] > together["nll"]


def test_figures_of_a_constant_prediction_in_closed_form() -> None:
    """All weights 0: every sample predicts the training mean."""
    trained = made(nodes=np.zeros((ANCHORS, TRAJECTORIES, STEPS + 1, 3)))
    target, y = own_units(trained)
    error, noise = y - target.mean, SPREAD * target.scale
    expected = {
        "nll": 0.5 * math.log(2 * math.pi * noise**2) + float((error**2).mean()) / (2 * noise**2),
        "rmse": math.sqrt(float((error**2).mean())),
        "coverage_90": float((np.abs(error) <= NINETY * noise).mean()),
        "width_90": 2 * NINETY * noise,
    }
    assert 0 < expected["coverage_90"] < 1
    assert scores(trained, "posterior") == pytest.approx(expected, 1e-5)
    assert scores(trained, "fiber") == pytest.approx(expected, 1e-5)


def test_figures_of_a_certain_classifier_in_closed_form() -> None:
    """All weights but one bias 0: class 1 with certainty, which a third of the rows is."""
    nodes = np.zeros((ANCHORS, TRAJECTORIES, STEPS + 1, 9))
    nodes[..., 7] = 100.0
    trained = made("classification", nodes)
    share = float((trained.dataset.y[trained.dataset.test] == 1).mean())
    assert 0 < share < 1
    expected = {"nll": (1 - share) * -math.log(1e-12), "accuracy": share, "ece": 1 - share}
    assert scores(trained, "posterior") == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize("factor", [10.0, 1e-3])
def test_another_unit_of_the_target_shifts_the_nll_by_its_logarithm(factor: float) -> None:
    trained = made()
    target, _ = own_units(trained)
    rescaled = target.model_copy(update={"scale": target.scale * factor, "mean": target.mean * factor})
    before = by_name(evaluate(trained))
    after = by_name(evaluate(replace(trained, dataset=replace(trained.dataset, target=rescaled))))
    assert set(before) == set(after)
    for who, metrics in after.items():
        old = before[who].values
        assert metrics.values["nll"] == pytest.approx(old["nll"] + math.log(factor), abs=1e-5)
        for length in {"rmse", "width_90"} & set(old):
            assert metrics.values[length] == pytest.approx(old[length] * factor, rel=1e-6)
        assert metrics.values.get("coverage_90") == old.get("coverage_90")


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_out_of_fold_figures_are_the_calibrations(task: str) -> None:
    trained = made(task)
    shift = math.log(own_units(trained)[0].scale) if task == "regression" else 0.0
    found = by_name(evaluate(trained))
    for predictor, nll in (("posterior", 1.25), ("map", 1.5)):
        metrics = found[predictor, "out_of_fold"]
        assert (metrics.rows, metrics.values) == (57, {"nll": pytest.approx(nll + shift)})
    assert {m.rows for m in found.values() if m.split == "test"} == {TESTED}
    assert set(found) - {("posterior", "out_of_fold"), ("map", "out_of_fold")} == {
        (predictor, "test") for predictor in ("posterior", "fiber", "map")
    }


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_without_a_test_part_only_out_of_fold_figures_are_left(task: str) -> None:
    found = evaluate(made(task, tested=0))
    assert [(m.predictor, m.split) for m in found] == [("posterior", "out_of_fold"), ("map", "out_of_fold")]


# ---- against the bundle that was published with the figures


def built(folder: Path, patch: pytest.MonkeyPatch, frame: pd.DataFrame, **data: Any) -> tuple[Trained, Bundle]:
    """A small build, as torch has it and as it was published."""
    seen = watched(patch)
    frame.to_csv(folder / "table.csv", index=False)
    result = run_build(config(folder, data={"test_fraction": 0.3, **data}, map={"steps": 150}))
    return seen[0], result.bundle


def test_regression_figures_are_those_of_the_served_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table()
    trained, bundle = built(tmp_path, monkeypatch, frame)
    test = frame[trained.dataset.test]
    answer = serve(bundle, test[["a", "colour"]].values.tolist())
    y, target = test["y"].to_numpy(), trained.dataset.target
    assert isinstance(target, RegressionTarget)

    found = by_name(bundle.manifest.metrics)["posterior", "test"]
    low, high = answer["interval"].T
    assert found.rows == len(test) == 48
    assert found.values["rmse"] == pytest.approx(root_mean_squared_error(y, answer["mean"]), rel=1e-4)
    assert found.values["coverage_90"] == pytest.approx(((low <= y) & (y <= high)).mean(), abs=1e-6)
    assert found.values["width_90"] == pytest.approx((high - low).mean(), rel=1e-4)

    own = predict_test(trained)
    assert own.mean is not None and own.std is not None and own.epistemic_std is not None
    scale = target.scale
    np.testing.assert_allclose(own.y.numpy() * scale + target.mean, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(own.mean.numpy() * scale + target.mean, answer["mean"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose((own.std.numpy() * scale) ** 2, answer["variance"], rtol=1e-3)
    np.testing.assert_allclose((own.epistemic_std.numpy() * scale) ** 2, answer["epistemic_variance"], rtol=1e-2)


def test_classification_figures_are_those_of_the_served_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = classes()
    trained, bundle = built(tmp_path, monkeypatch, frame, target="kind", task="classification")
    test = frame[trained.dataset.test]
    answer = serve(bundle, test[["p", "q"]].values.tolist())
    found = by_name(bundle.manifest.metrics)["posterior", "test"]
    y = (test["kind"] == "under").to_numpy().astype(int)
    assert found.rows == len(test) == 48
    assert found.values == pytest.approx(
        {
            "nll": log_loss(y, answer["mean"]),
            "accuracy": accuracy_score(y, answer["label"]),
            "ece": calibration_error(answer["mean"], y),
        },
        abs=1e-3,
    )
    own = predict_test(trained)
    assert own.probabilities is not None
    np.testing.assert_allclose(own.probabilities.numpy(), answer["mean"], atol=1e-4)
