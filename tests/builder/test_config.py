"""Options of a build: presets, recipes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from builder.config import PRESETS, BuildConfig, make_config
from builder.fiber_plan import work_of
from builder.map import training_steps
from builder.network import MLP, FunctionalNetwork
from model_store.errors import ConfigError, InvalidNameError

LEAST: dict[str, Any] = {"name": "m", "data": {"task": "regression"}}


def test_the_default_preset_is_the_defaults_of_the_stages() -> None:
    assert make_config(LEAST) == BuildConfig.model_validate(LEAST)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_sets_what_it_names_and_nothing_else(preset: str) -> None:
    config = make_config({**LEAST, "preset": preset}).model_dump()
    expected = make_config(LEAST).model_dump() | {"preset": preset}
    for stage, options in PRESETS[preset].items():  # type: ignore[index]
        expected[stage] = expected[stage] | options
    assert config == expected


def test_presets_do_ever_more_work() -> None:
    fast, default, thorough = (make_config({**LEAST, "preset": p}) for p in ("fast", "default", "thorough"))
    network = FunctionalNetwork(MLP(4, [50], 1))
    for rows in (100, 5_000, 50_000):
        work = [
            training_steps(c.map, network, rows)
            * len(c.map.prior_precision)
            * work_of(c.fiber, 20)
            * c.autoencoder.steps
            for c in (fast, default, thorough)
        ]
        assert work[0] < work[1] < work[2]


def test_what_is_given_wins_over_the_preset() -> None:
    values = {**LEAST, "preset": "fast", "map": {"steps": 77}}
    config = make_config(values)
    assert config.map.steps == 77 and config.map.prior_precision == [3.0] and config.fiber.work == 2e11
    assert values["map"] == {"steps": 77}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sead": 1}, "sead"),
        ({"seed": -1}, "seed"),
        ({"seed": "many"}, "seed"),
        ({"device": "tpu"}, "device"),
        ({"preset": "slow"}, "preset"),
        ({"preset": ["fast"]}, "preset"),
        ({"name": None}, "name"),
        ({"data": {}}, "data.task"),
        ({"data": {"task": "ranking"}}, "data.task"),
        ({"data": {"task": "regression", "test_fraction": 0.95}}, "data.test_fraction"),
        ({"data": {"task": "regression", "max_categories": 1}}, "data.max_categories"),
        ({"map": {"stepz": 1}}, "map.stepz"),
        ({"map": {"steps": 0}}, "map.steps"),
        ({"map": {"anchors": 0}}, "map.anchors"),
        ({"map": {"prior_precision": []}}, "map.prior_precision"),
        ({"map": {"prior_precision": [1.0, 0.0]}}, "map.prior_precision.1"),
        ({"map": {"learning_rate": float("inf")}}, "map.learning_rate"),
        ({"map": 3}, "map"),
        ({"fiber": {"steps": 1}}, "fiber.steps"),
        ({"fiber": {"drift_scale": 0}}, "fiber.drift_scale"),
        ({"fiber": {"growth": 0.5}}, "fiber.growth"),
        ({"fiber": {"momentum": 1.0}}, "fiber.momentum"),
        ({"fiber": {"work": float("nan")}}, "fiber.work"),
        ({"autoencoder": {"dimension": 0}}, "autoencoder.dimension"),
        ({"calibration": {"samples": 1}}, "calibration.samples"),
        ({"calibration": {"false_alarm_rate": 1.0}}, "calibration.false_alarm_rate"),
    ],
)
def test_unknown_missing_and_impossible_options_are_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"Option {field}: .+") as caught:
        make_config({**LEAST, **change})
    assert caught.value.field == field and caught.value.got and caught.value.expected


def test_an_option_that_there_is_not_is_told_those_that_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({**LEAST, "autoencoder": {"dimensions": 3}})
    assert caught.value.expected is not None and "dimension, hidden, rank" in caught.value.expected


@pytest.mark.parametrize("name", ["My Model", "../outside", "", "a" * 65])
def test_a_name_that_no_model_can_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        make_config({**LEAST, "name": name})


def test_a_configuration_cannot_be_changed() -> None:
    config = make_config(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
