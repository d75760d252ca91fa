"""Recipes, settings and the recipe of all options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.config import PRESETS, make_config
from builder.recipe import read_recipe, template, with_settings
from model_store.errors import ConfigError

LEAST: dict[str, Any] = {"name": "a", "data": {"task": "regression"}}
STAGES = ("data", "network", "map", "fiber", "autoencoder", "calibration")


def test_file_names_of_a_recipe_are_relative_to_its_folder(tmp_path: Path) -> None:
    recipe = tmp_path / "sub" / "recipe.toml"
    recipe.parent.mkdir()
    recipe.write_text(
        'name = "wine"\nstore = "bundles"\nwork = "../work"\npreset = "fast"\n'
        '[data]\nfile = "wine.csv"\ntarget = "quality"\ntask = "regression"\n'
        '[data.units]\nalcohol = "%"\n'
        f'[network]\nweights = "{tmp_path / "map.safetensors"}"\nhidden = [20, 20]\n'
        "[fiber]\nrefinement = 3\n"
    )
    config = make_config(read_recipe(recipe))
    assert config.store == tmp_path / "sub" / "bundles"
    assert config.work is not None and config.work.resolve() == (tmp_path / "work").resolve()
    assert config.data.file == tmp_path / "sub" / "wine.csv"
    assert config.network.weights == tmp_path / "map.safetensors"
    assert config.data.units == {"alcohol": "%"} and config.network.hidden == [20, 20]
    assert config.fiber.refinement == 3 and config.map.steps == PRESETS["fast"]["map"]["steps"]


def test_every_option_of_a_build_can_be_written_in_a_recipe(tmp_path: Path) -> None:
    config = make_config({**LEAST, "data": {"task": "classification", "file": "x.csv"}})
    recipe = tmp_path / "all.toml"
    recipe.write_text(_toml(config.model_dump(mode="json", exclude_none=True)))
    again = make_config(read_recipe(recipe))
    assert again.store == tmp_path / "models" and again.data.file == tmp_path / "x.csv"
    same = {"store": config.store, "data": config.data}
    assert again.model_copy(update=same) == config


def _toml(values: dict[str, Any]) -> str:
    plain = "".join(f"{k} = {_value(v)}\n" for k, v in values.items() if not isinstance(v, dict))
    return plain + "".join(f"[{k}]\n{_toml(v)}" for k, v in values.items() if isinstance(v, dict) and v)


def _value(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value).lower()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"name = ", "is no TOML"), (b"\xff\xfe", "is no TOML")]
)
def test_recipes_that_cannot_be_read_say_so(tmp_path: Path, content: bytes | None, message: str) -> None:
    recipe = tmp_path / "recipe.toml"
    if content is not None:
        recipe.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(recipe)
    assert caught.value.field == "recipe"


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path)


# ---- settings


def test_settings_change_single_options() -> None:
    given = {"name": "a", "map": {"steps": 5, "folds": 2}, "data": {"task": "regression"}}
    settings = ["map.steps=7", "fiber.drift_scale = 1.5", "map.prior_precision=[1, 3]", "data.categorical=['zip']"]
    settings += ["device=cpu", "network.activation=tanh", "data.units.price=k€ a year", "map.refit=false"]
    config = make_config(with_settings(given, settings))
    assert (config.map.steps, config.map.folds, config.map.refit) == (7, 2, False)
    assert config.map.prior_precision == [1.0, 3.0] and config.fiber.drift_scale == 1.5
    assert config.data.categorical == ["zip"] and config.data.units == {"price": "k€ a year"}
    assert (config.device, config.network.activation) == ("cpu", "tanh")
    assert given["map"] == {"steps": 5, "folds": 2}


@pytest.mark.parametrize("setting", ["", "map.steps", "=3", "map..steps=3", "map steps=3", ".=1"])
def test_what_sets_no_option_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_settings(LEAST, [setting])
    assert caught.value.field == "--set" and "map.served=5" in str(caught.value.expected)


@given(st.text(max_size=20))
def test_any_value_is_its_toml_or_a_text(text: str) -> None:
    (value,) = with_settings({}, [f"name={text}"]).values()
    assert isinstance(value, str | int | float | bool | list | dict) or type(value).__module__ == "datetime"


# ---- all options


def test_the_recipe_of_all_options_is_that_of_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    said = template().replace('name = ""', 'name = "a"').replace('task = ""', 'task = "regression"')
    recipe.write_text(said)
    assert make_config(read_recipe(recipe)) == make_config(LEAST)
    # With the comments taken off, those that have a default hold it.
    recipe.write_text(re.sub(r"^# (\w+ = .+)$", r"\1", said, flags=re.MULTILINE))
    values = read_recipe(recipe)
    assert set(values) == {"name", "store", "device", "seed", "preset", *STAGES} and values["map"]["batch_rows"] == 512
    assert make_config(values).model_copy(update={"store": Path("models")}) == make_config(LEAST)
    every = {n for stage in STAGES for n in type(getattr(make_config(LEAST), stage)).model_fields}
    assert {n for n in every if not re.search(rf"^(# )?{n} =", said, flags=re.MULTILINE)} == set()
