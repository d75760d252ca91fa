"""`fiberwalk build`, as a user meets it."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from safetensors import SafetensorError
from typer.testing import CliRunner

import builder.learning as learning
import builder.pipeline as pipeline
import builder.work as work
from builder.diagnostics import Finding
from builder.recipe import template
from fiberwalk.cli import app
from model_store import ModelStore
from tests import bundles

RECIPE = """
name = "waves"
[data]
file = "table.csv"
target = "y"
task = "regression"
[network]
hidden = [8]
[map]
anchors = 2
steps = 100
prior_precision = [1.0]
[fiber]
trajectories = 4
steps = 3
refinement = 3
[autoencoder]
dimension = 4
steps = 20
"""
NETWORK = """
from torch import nn
def make():
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
number = 3
"""


pytestmark = pytest.mark.usefixtures("rough_pictures")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a table and a recipe for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FIBERWALK_STORE", raising=False)
    x = np.random.default_rng(0).uniform(-2, 2, 120)
    y = np.sin(2 * x) + 0.2 * np.random.default_rng(1).normal(size=120)
    np.savetxt(tmp_path / "table.csv", np.c_[x, y], delimiter=",", header="x,y", comments="")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "240"}).invoke(app, ["build", *arguments])


def test_options_alone(folder: Path) -> None:
    options = "--data table.csv --target y --task regression --name waves --store here --preset fast"
    # Fewer anchors and fibers than the preset's take a third of its time.
    smaller = "--set map.anchors=2 --set map.prior_precision=[1.0] --set fiber.trajectories=4"
    result = run(*options.split(), *smaller.split(), "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "waves@1" in result.stdout
    assert "coverage_90" in result.stdout
    assert "fiberwalk serve --store here" in result.stdout and "bare name" not in result.stdout
    assert result.stderr == ""
    bundle = ModelStore(folder / "here").open("waves")
    bundle.verify()
    assert bundle.manifest.build.config["preset"] == "fast"
    assert bundle.manifest.build.config["map"]["steps"] == 1500


def test_what_is_to_be_known_of_a_build_is_told_without_bars_too(folder: Path) -> None:
    lines = (folder / "table.csv").read_text().splitlines()
    (folder / "table.csv").write_text("\n".join([*lines[:60], ",1.0"]))
    result = run("recipe.toml", "--quiet", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "1 of 60 rows were left out" in result.stderr and "No row will be flagged" in result.stderr


def test_a_store_that_cannot_be_written_is_told_before_the_build(folder: Path) -> None:
    (folder / "file").touch()
    result = run("recipe.toml", "--store", "file/store")
    assert result.exit_code == 1
    assert "StoreError: The store 'file/store' cannot be written" in result.stderr
    assert "Trial" not in result.stderr and "Finished stages" not in result.stderr


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space (os error 28)")]
)
def test_a_full_disk_is_told_in_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(work, "save_file", full)
    result = run("recipe.toml", "--quiet", "--set", "map.steps=1")
    assert result.exit_code == 1
    assert result.stderr.startswith("The disk is full (") and result.stderr.count("\n") == 1
    monkeypatch.setattr(work, "save_file", lambda *_, **__: Path("none").read_bytes())
    assert isinstance(run("recipe.toml", "--quiet", "--set", "map.steps=1").exception, FileNotFoundError)


def test_a_folder_that_cannot_keep_stages_is_told_before_the_build(folder: Path) -> None:
    (folder / ".fiberwalk").touch()
    result = run("recipe.toml")
    assert result.exit_code == 1
    assert "ConfigError: Finished stages cannot be kept in '.fiberwalk/waves'" in result.stderr
    assert "name another folder with --work" in result.stderr and "Trial" not in result.stderr
    assert "ConfigError" in run("recipe.toml", "--work", ".fiberwalk/waves").stderr


def test_a_build_whose_store_fails_at_its_end_goes_on_with_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> list[Finding]:
        (folder / "disk").rmdir()
        (folder / "disk").touch()
        return []

    (folder / "disk").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "uneven", lost)
        result = run("recipe.toml", "--quiet", "--store", "disk/models")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr and "also with another --store" in result.stderr
    # The stages before the last are not run again. Who does not serve what was built is told how to.
    monkeypatch.setattr(learning, "train_autoencoder", None)
    store = ModelStore(folder / "my models")
    bundles.numeric_regression("waves", columns=["x", "z"]).publish(store)
    store.set_alias("waves", "champion", 1)
    result = run("recipe.toml", "--quiet", "--store", "my models")
    assert result.exit_code == 0, result.stderr
    told = "The bare name means waves@1. To roll out: fiberwalk models alias waves@2 champion --store 'my models'\n"
    assert result.stdout.endswith(told)
    assert "Warning: waves@2 differs from waves@1. It has no longer the columns: 'z'.\n" in result.stderr


def test_a_recipe_and_options_over_it(folder: Path) -> None:
    (folder / "own_network.py").write_text(NETWORK)
    result = run(
        "recipe.toml", "--name", "other", "--seed", "5", "--network", "own_network:make", "--set", "map.steps=90"
    )
    assert result.exit_code == 0, result.stderr
    manifest = ModelStore(folder / "models").open("other").manifest
    assert manifest.build.seed == 5 and manifest.build.config["map"]["steps"] == 90
    assert manifest.network.weights == 19
    # Progress goes to stderr, so that stdout is the result alone.
    assert "MAP training" in result.stderr
    assert "MAP training" not in result.stdout


def test_an_interrupted_build_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(learning, "train_autoencoder", interrupt)
    result = run("recipe.toml", "--quiet")
    assert result.exit_code == 130
    assert "the same command goes on from there" in result.stderr
    kept = {p.name for p in (folder / ".fiberwalk" / "waves").iterdir()}
    assert kept == {f"{stage}.safetensors" for stage in ("map", "fiber", "refit", "refit_fiber")}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("", 2, "Say --name"),
        ("--data table.csv --target y --name a", 2, "Say --task"),
        ("--task regression --name a", 1, "DataError: Name the data with --data FILE."),
        ("--task regression --name a --data nothing.csv --target y", 1, "DataError: There is no file nothing.csv."),
        ("--task regression --name a --data table.csv", 1, "DataError: Name the column to predict with --target."),
        ("--task regression --name a --data table.csv --target z", 1, "DataError: There is no column 'z'."),
        ("--task fortune --name a --data table.csv --target y", 1, "ConfigError: Option data.task"),
        ("recipe.toml --log-target", 1, "have a target 'y' that is not above zero"),
        ("recipe.toml --set data.log_target=true", 1, "have a target 'y' that is not above zero"),
        ("recipe.toml --preset lazy", 1, "ConfigError: Option preset"),
        ("recipe.toml --seed -1", 1, "ConfigError: Option seed"),
        ("recipe.toml --set map.steps", 1, "ConfigError: --set map.steps sets no option."),
        ("recipe.toml --set map.legs=4", 1, "ConfigError: Option map.legs: there is none of this name."),
        ("recipe.toml --posterior (", 1, "ConfigError: --posterior is no regular expression"),
        ("recipe.toml --network json:nothing", 1, "ConfigError: --network json:nothing cannot be imported"),
        ("recipe.toml --network json:__name__", 1, "ConfigError: --network json:__name__ must be callable"),
        ("recipe.toml --weights nothing.safetensors", 1, "ConfigError: --weights nothing.safetensors cannot be read"),
        ("missing.toml", 1, "ConfigError: The recipe missing.toml cannot be read"),
        ("table.csv", 1, "ConfigError: The recipe table.csv is no TOML"),
        ("--seed many", 2, "Invalid value for '--seed'"),
    ],
)
def test_what_cannot_be_used_is_refused(folder: Path, arguments: str, code: int, message: str) -> None:
    result = run(*arguments.split())
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (folder / "models").exists()


def test_an_unknown_option_of_a_recipe_is_named(folder: Path) -> None:
    (folder / "recipe.toml").write_text(RECIPE + "legs = 4\n")
    result = run("recipe.toml")
    assert result.exit_code == 1
    assert "autoencoder.legs" in result.stderr


def test_all_options_are_printed_as_a_recipe() -> None:
    result = CliRunner().invoke(app, ["recipe"])
    assert result.exit_code == 0 and result.stdout == template()


def test_help_names_every_option() -> None:
    result = run("--help")
    assert result.exit_code == 0
    options = "data target task name store network weights posterior drop device seed preset work set quiet"
    for option in options.split():
        assert f"--{option}" in result.stdout
