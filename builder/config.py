"""Every option of a build, as typed configuration: one class a stage, and presets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from builder.augmentation import Augmentation
from model_store.errors import ConfigError
from model_store.shelf import checked_name

Preset = Literal["fast", "default", "thorough"]
Task = Literal["regression", "classification"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class DataConfig(_Config):
    """What is learned from, and which part of it is kept for the test."""

    file: Annotated[Path | None, Field(description="CSV, Parquet or .npz (arrays x, y)")] = None
    target: Annotated[str | None, Field(description="column to predict; not needed for .npz")] = None
    task: Annotated[Task, Field(description="regression or classification")]
    drop: Annotated[list[str], Field(description="columns to leave out")] = []
    categorical: Annotated[list[str], Field(description="numeric columns to treat as categories")] = []
    units: Annotated[dict[str, str], Field(description="unit of a column or of the target, by name")] = {}
    test_fraction: Annotated[float, Field(ge=0, lt=0.9, description="share of rows kept for the test metrics")] = 0.1
    standardize: Annotated[
        bool | None, Field(description="encode numbers as z-scores; default: unless --weights are given")
    ] = None
    log_target: Annotated[
        bool,
        Field(description="learn the logarithm of a target above zero, such as a price; given weights predict it"),
    ] = False
    max_categories: Annotated[int, Field(ge=2, description="most categories a text column may have")] = 100


class NetworkConfig(_Config):
    """The base network, and which of its weights are random."""

    factory: Annotated[str | None, Field(description="module:factory of your own nn.Module; default: an MLP")] = None
    weights: Annotated[Path | None, Field(description="safetensors with trained weights of the network")] = None
    posterior: Annotated[str, Field(description="regular expression: names of the parameters that are random")] = ".*"
    hidden: Annotated[list[int], Field(description="widths of the default MLP's hidden layers")] = [50]
    activation: Annotated[str, Field(description="relu, tanh, silu or gelu (default MLP)")] = "relu"


class MapConfig(_Config):
    """MAP training of the anchors."""

    anchors: Annotated[
        int | None,
        Field(
            ge=1,
            le=50,
            description="anchors, cross-fitted; default 20 (10 beyond 10,000 weights), 1 with given or fixed weights",
        ),
    ] = None
    folds: Annotated[
        int | None,
        Field(
            ge=1,
            description="folds, of which each anchor leaves one out, in rounds; 1: all leave out the same rows, "
            "as many as map.holdout says; default: 10 (5 beyond 10,000 weights), 1 for classifying 40,000 rows or more",
        ),
    ] = None
    holdout: Annotated[
        float | None,
        Field(
            gt=0,
            lt=0.9,
            description="share held out to calibrate where anchors = 1 or folds = 1; default: 0.2, 0.1 of 40,000 rows "
            "or more",
        ),
    ] = None
    optimiser: Annotated[
        Literal["adam", "sgd"],
        Field(description="adam, or sgd with Nesterov momentum, which wants a learning rate of its own"),
    ] = "adam"
    augment: Annotated[
        list[Augmentation], Field(description="changes of training images that keep their class: flip, crop")
    ] = []
    steps: Annotated[
        int | None,
        Field(
            ge=1,
            description="optimiser steps; default: 400 passes over the rows, from 4,000 to 16,000 steps (fewer where a "
            "step is much work; 4,000 beyond 10,000 weights)",
        ),
    ] = None
    batch_rows: Annotated[int, Field(ge=1, description="rows of a minibatch")] = 512
    learning_rate: Annotated[
        float | None,
        Field(gt=0, description="highest rate of the one-cycle schedule; default: 0.02, 0.01 beyond 10,000 weights"),
    ] = None
    prior_precision: Annotated[
        list[Annotated[float, Field(gt=0)]],
        Field(min_length=1, description="precision of the Gaussian prior; of several, the best out of fold is taken"),
    ] = [0.3, 3.0, 30.0]
    refit: Annotated[
        bool,
        Field(description="train what is served anew with all rows, once everything is chosen"),
    ] = True
    served: Annotated[
        int | None,
        Field(
            ge=1,
            description="of the anchors that everything is chosen on, how many are trained anew and served: fewer make "
            "a smaller bundle and a shorter build; default: all",
        ),
    ] = None


class FiberConfig(_Config):
    """The walk from each anchor along its fibers."""

    trajectories: Annotated[
        int | None,
        Field(ge=1, description="fibers an anchor; default: 160 in all, at most 32, fewer where work runs out"),
    ] = None
    steps: Annotated[int, Field(ge=2, description="drift steps T")] = 10
    refinement: Annotated[
        int | None,
        Field(ge=0, description="gradient steps M after each drift step; default: 15 to 30, as work allows"),
    ] = None
    drift_scale: Annotated[
        float, Field(gt=0, description="length of the whole drift in posterior radii; calibration picks the part used")
    ] = 2.0
    growth: Annotated[float, Field(ge=1, description="how much longer each drift step is than the one before")] = 1.5
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of the refinement")] = 0.8
    flattening: Annotated[
        float, Field(ge=0, le=1, description="power of the anchor's curvature that refinement takes off its gradients")
    ] = 0.5
    direction: Annotated[
        Literal["posterior", "prior"],
        Field(description="what drift directions are draws from: the posterior at the anchor, or the isotropic prior"),
    ] = "posterior"
    objective: Annotated[
        Literal["perturbed", "plain"],
        Field(description="what refinement minimises: its minimum is the drifted point, or the anchor itself"),
    ] = "perturbed"
    moves: Annotated[
        int, Field(ge=0, description="Hamiltonian moves at each node; they cost much, and make narrow posteriors right")
    ] = 0
    leapfrog: Annotated[int, Field(ge=1, description="leapfrog steps of a move")] = 80
    curvature_rows: Annotated[int, Field(ge=1, description="most rows, times outputs, the curvature is taken from")] = (
        4096
    )
    work: Annotated[
        float | None,
        Field(
            gt=0, description="floating point operations all refinement may take; default: 1e11 an anchor, at most 6e11"
        ),
    ] = None


class AutoencoderConfig(_Config):
    """The contrastive autoencoder over weight space."""

    dimension: Annotated[int, Field(ge=1, description="latent dimensions k")] = 32
    hidden: Annotated[int, Field(ge=1, description="width of the hidden layers")] = 64
    rank: Annotated[
        int | None,
        Field(
            ge=1, description="columns an anchor of the decoder's linear head; default: as many as the predictions need"
        ),
    ] = None
    first_rank: Annotated[
        int | None,
        Field(
            ge=0,
            description="columns an anchor of a first layer of 65,536 weights or more, the fewer the faster a server; "
            "default: as many as the predictions need, if these are few enough to be faster; 0: as of all layers",
        ),
    ] = None
    steps: Annotated[int, Field(ge=1, description="Adam steps")] = 200
    learning_rate: Annotated[float, Field(gt=0, description="highest rate of the schedule")] = 1e-2
    attraction: Annotated[float, Field(ge=0, description="weight of L+, steps of equal latent length")] = 1.0
    repulsion: Annotated[float, Field(ge=0, description="weight of L-, other points kept apart")] = 0.1


class CalibrationConfig(_Config):
    """Choices made on out-of-fold predictions."""

    samples: Annotated[
        int | None,
        Field(
            ge=2,
            description="posterior samples of a request that names none; default: 32, or up to 256 where few cost NLL",
        ),
    ] = None
    noise: Annotated[
        Literal["even", "learned"],
        Field(description="a regression's noise: even for all rows, or learned of a table's inputs where rows tell it"),
    ] = "even"
    reference_rows: Annotated[
        int,
        Field(
            ge=0,
            description="most training rows kept in the bundle for OOD detectors, encoded or as features; 0: none",
        ),
    ] = 1024
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1, description="share of familiar rows that /ood may flag")] = (
        0.01
    )


class BuildConfig(_Config):
    """A whole build. `fiberwalk build recipe.toml` reads it from TOML, one table a stage."""

    name: Annotated[str, Field(description="name of the model")]
    store: Annotated[Path, Field(description="folder of the model store")] = Path("models")
    work: Annotated[Path | None, Field(description="folder for finished stages; default: .fiberwalk/NAME")] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="where to compute")] = "auto"
    memory: Annotated[
        float | None,
        Field(
            gt=0,
            description="gigabytes that one batch of particles, samples and rows may take, on top of results; default: "
            "0.5, on a GPU a quarter of its memory",
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, description="a build is a function of its inputs and this")] = 0
    preset: Annotated[Preset, Field(description="how much work the stages do")] = "default"
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    map: MapConfig = MapConfig()
    fiber: FiberConfig = FiberConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    calibration: CalibrationConfig = CalibrationConfig()


PRESETS: Final[dict[Preset, dict[str, dict[str, Any]]]] = {
    "fast": {
        "map": {"steps": 1500, "prior_precision": [3.0], "folds": 5},
        "fiber": {"work": 2e11},
    },
    "default": {},
    "thorough": {
        "map": {"steps": 16000, "prior_precision": [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]},
        "fiber": {"trajectories": 64, "work": 3e13},
        "autoencoder": {"steps": 1000, "hidden": 128},
    },
}
"""What each preset changes of the stages' defaults; what a recipe names itself wins over both."""


def make_config(values: dict[str, Any]) -> BuildConfig:
    """A build's configuration from nested values, over the defaults of their preset.

    Raises:
        ConfigError: an option is unknown, missing or out of range; `field` names it.
        InvalidNameError: the model cannot have this name.
    """
    preset = values.get("preset", "default")
    merged: dict[str, Any] = dict(values)
    for stage, options in next((options for name, options in PRESETS.items() if name == preset), {}).items():
        given = merged.get(stage, {})
        merged[stage] = {**options, **given} if isinstance(given, dict) else given
    try:
        config = BuildConfig.model_validate(merged)
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"Option {field}: there is none of this name.",
                field=field,
                expected="one of: " + ", ".join(_options(first["loc"][:-1])),
                got=str(first["loc"][-1])[:80],
            ) from e
        raise ConfigError(
            f"Option {field}: {first['msg']}.", field=field, expected=first["msg"], got=repr(first["input"])[:80]
        ) from e
    checked_name(config.name)
    return config


def _options(table: Sequence[int | str]) -> list[str]:
    """The names that a recipe may have in a table, and the names of tables in none."""
    place: Any = BuildConfig
    for name in table:
        place = place.model_fields[name].annotation
    return list(place.model_fields)
