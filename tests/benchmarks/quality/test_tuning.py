"""What every method's tuning takes from networks that have not seen a row."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.quality.building import build
from benchmarks.quality.tuning import SIZES, Tuned, tune
from tests.benchmarks.quality.problems import tiny_problem


@pytest.mark.parametrize("options", [{"anchors": 4, "folds": 2}, {"folds": 1}], ids=["folds", "one part"])
def test_a_build_that_serves_fewer_anchors_tunes_all(options: dict[str, int]) -> None:
    problem = tiny_problem("classification", rows=90, steps=100)
    config = problem.config
    stages = {
        "map": config.map.model_copy(update={**options, "served": 3, "prior_precision": [3.0]}),
        "fiber": config.fiber.model_copy(update={"trajectories": 2, "steps": 3, "refinement": 3}),
    }
    built = build(replace(problem, config=config.model_copy(update=stages)))
    tuned = tune(problem, built)
    assert tuned.precision == 3.0 and tuned.cost.gradient_evaluations == built.trained.judged.gradient_evaluations
    assert tuned.temperatures.keys() == tuned.dispersions.keys() == {1, *SIZES, 3}
    assert all(0.1 < t < 5 for t in tuned.temperatures.values())
    # Peers of a run that goes on find it in the file.
    assert Tuned.of_json(json.loads(json.dumps(asdict(tuned)))) == tuned


def test_noise_beside_several_is_less_than_beside_one() -> None:
    tuned = tune(tiny_problem("regression", steps=100))
    assert 0 < tuned.noise_beside(10) <= tuned.noise_beside(5) <= tuned.noise_variance
    assert tuned.temperature_beside(5) == 1.0
