"""Small builds: data with a known answer, and options that make a build take a few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import builder.pipeline as pipeline
from builder.config import BuildConfig, make_config
from builder.pipeline import BuildResult, run_build
from builder.trained import Trained
from model_store.bundle import Bundle
from model_store.plan import draw_latents
from service.model import Asked, ServedModel

TINY: dict[str, dict[str, Any]] = {
    "network": {"hidden": [12], "activation": "tanh"},
    "map": {"anchors": 2, "steps": 300, "learning_rate": 0.03, "prior_precision": [0.1]},
    "fiber": {"trajectories": 6, "steps": 5, "refinement": 10},
    "autoencoder": {"dimension": 8, "steps": 100},
}


def table(rows: int = 160) -> pd.DataFrame:
    """y = 2 sin(2a) + (1 for a red row) + noise of 0.3."""
    rng = np.random.default_rng(0)
    a = rng.uniform(-2, 2, rows)
    colour = rng.choice(["blue", "red"], rows)
    y = 2 * np.sin(2 * a) + (colour == "red") + 0.3 * rng.normal(size=rows)
    return pd.DataFrame({"a": a, "colour": colour, "y": y})


def classes(rows: int = 160) -> pd.DataFrame:
    """Two columns; the class says on which side of a line a row lies, with some rows near it on the wrong one."""
    rng = np.random.default_rng(1)
    p, q = rng.normal(size=(2, rows))
    kind = np.where(p + q + 0.3 * rng.normal(size=rows) > 0, "over", "under")
    return pd.DataFrame({"p": p, "q": q, "kind": kind})


def config(folder: Path, **changes: Any) -> BuildConfig:
    """The tiny options with a store in `folder`; `changes` are laid over them, table by table."""
    values: dict[str, Any] = {
        "name": "tiny",
        "store": folder / "models",
        "work": folder / "work",
        "data": {"file": folder / "table.csv", "target": "y", "task": "regression"},
        **TINY,
    }
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
    return make_config(values)


def build_table(folder: Path, **changes: Any) -> BuildResult:
    """Builds from `table()` as a CSV file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    table().to_csv(folder / "table.csv", index=False)
    return run_build(config(folder, **changes))


def serve(bundle: Bundle, rows: list[Any], samples: int | None = None) -> dict[str, NDArray[Any]]:
    """What the server's model answers for rows as they come in a request, seed 0."""
    model = ServedModel(bundle)
    plan = model.plan("predict")
    latents, anchors = draw_latents(plan, model.nodes, samples or plan.samples, 0)
    weights = model.engine.bind(model.engine.decode(latents, anchors), anchors)
    return model.predict(weights, model.encoder.encode(rows), Asked(0.9))


def watched(patch: pytest.MonkeyPatch) -> list[Trained]:
    """What the next builds publish, as torch has it."""
    seen: list[Trained] = []
    publish = pipeline.publish

    def keep(trained: Trained, *rest: Any) -> Any:
        seen.append(trained)
        return publish(trained, *rest)

    patch.setattr(pipeline, "publish", keep)
    return seen
