"""Building from Python with one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from builder.config import Preset, Task, make_config
from builder.data import RawData, from_arrays, from_frame
from builder.own_network import checked_factory
from builder.pipeline import BuildResult, refuse_unwritable, run_build
from builder.progress import StageBars


def build(
    data: str | Path | pd.DataFrame | tuple[Any, Any],
    *,
    task: Task,
    name: str,
    target: str | None = None,
    log_target: bool = False,
    store: str | Path = "models",
    network: str | Callable[[], nn.Module] | None = None,
    weights: str | Path | None = None,
    posterior: str = ".*",
    preset: Preset = "default",
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
    options: dict[str, dict[str, Any]] | None = None,
) -> BuildResult:
    """Trains the posterior of a network and publishes it.

    Args:
        data: a CSV, Parquet or `.npz` file, a data frame, or arrays (x, y) with x (n, columns) or (n, *shape), y (n,).
        task: `regression` or `classification`.
        name: name of the model in the store.
        target: column to predict; not needed for arrays.
        log_target: learns its logarithm; answers are of the target itself.
        network: a callable or `module:factory` that returns an untrained `nn.Module`; default: an MLP.
        weights: safetensors with trained weights of that network, which then is the MAP.
        posterior: regular expression over parameter names; what it does not match stays at the MAP.
        preset: `fast`, `default` or `thorough`.
        progress: shows a bar a stage.
        options: anything else, by stage, as in a recipe: `{"fiber": {"trajectories": 16}}`.

    Returns:
        The published bundle with its metrics, and failure signatures seen.

    Raises:
        ConfigError, DataError: an option or the data cannot be used.
        StoreError: the bundle cannot be published.
    """
    values: dict[str, Any] = {k: dict(v) for k, v in (options or {}).items()}
    values |= {"name": name, "store": store, "preset": preset, "seed": seed, "device": device}
    values["data"] = {"task": task, "target": target, "log_target": log_target, **values.get("data", {})}
    values["network"] = {"posterior": posterior, "weights": weights, **values.get("network", {})}
    factory = None
    if isinstance(network, str):
        values["network"]["factory"] = network
    elif network is not None:
        factory = checked_factory(network, "network")
    raw: RawData | None = None
    if isinstance(data, str | Path):
        values["data"]["file"] = Path(data)
    config = make_config(values)
    refuse_unwritable(config)
    if isinstance(data, pd.DataFrame):
        raw = from_frame(data, config.data)
    elif isinstance(data, tuple):
        raw = from_arrays(np.asarray(data[0]), np.asarray(data[1]), config.data)
    return run_build(config, raw, factory, StageBars(quiet=not progress))
