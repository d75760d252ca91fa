"""Small tables, and the options that read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from builder.config import DataConfig


def options(task: str = "regression", **values: Any) -> DataConfig:
    return DataConfig.model_validate({"target": "y", "task": task, **values})


def frame(rows: int = 40, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """Columns a and y of random numbers, and those given."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"a": rng.normal(size=rows), **columns, "y": rng.normal(size=rows)})
