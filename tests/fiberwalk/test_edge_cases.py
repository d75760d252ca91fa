"""Data at the edge of what can be learned from: each is built and served, or refused with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from fiberwalk.cli import app
from tests.servers import serving

RECIPE = """
[network]
hidden = [8]
[map]
anchors = 4
folds = 2
steps = 60
prior_precision = [1.0]
[fiber]
trajectories = 2
steps = 3
refinement = 3
[autoencoder]
dimension = 4
steps = 20
"""
ROWS = 60
RNG = np.random.default_rng(0)
X, NOISE = RNG.uniform(-2, 2, ROWS), RNG.normal(size=ROWS)
Y = np.sin(2 * X) + 0.2 * NOISE
KIND = np.where(X + 0.3 * NOISE > 0, "over", "under")
COLOUR = RNG.choice(["blue", "red"], ROWS)
WITH_GAPS = np.where(np.arange(ROWS) < 5, [np.nan, np.inf, -np.inf, np.nan, np.nan] * 12, X)

SERVED: dict[str, dict[str, Any]] = {
    "few_rows": {"x": X[:20], "y": Y[:20]},
    "rare_class": {"x": X, "constant": np.full(ROWS, 3.0), "y": np.where(np.arange(ROWS) < 2, "rare", KIND)},
    "copies": {"x": np.tile(X[:15], 5), "y": np.tile(Y[:15], 5)},
    "equal_inputs": {"x": np.ones(ROWS), "y": Y},
    "one_category_column": {"c": COLOUR, "y": np.where(NOISE + (COLOUR == "red") > 0.5, "p", "q")},
    "almost_constant_target": {"x": X, "y": np.r_[np.ones(ROWS - 1), 2]},
    "gaps": {"x": WITH_GAPS, "y": Y},
}
COPIES = "are copies of others"
NOTES = {
    "copies": COPIES,
    "rare_class": "fewer than 10 training rows: 'rare' (",
    "gaps": "5 of 60 rows were left out",
}


def build(folder: Path, name: str, table: dict[str, Any], *, options: str = "") -> Result:
    pd.DataFrame(table).to_csv(folder / f"{name}.csv", index=False)
    task = "classification" if np.asarray(table["y"]).dtype.kind in "US" else "regression"
    data = f'name = "{name}"\nstore = "models"\nwork = "work/{name}"\n[data]\n{options}\n'
    (folder / f"{name}.toml").write_text(data + RECIPE)
    arguments = ["build", str(folder / f"{name}.toml"), "--data", str(folder / f"{name}.csv"), "--target", "y"]
    return CliRunner(env={"COLUMNS": "240"}).invoke(app, [*arguments, "--task", task, "--device", "cpu", "--quiet"])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server of everything that can be built."""
    folder = tmp_path_factory.mktemp("edge")
    for name, table in SERVED.items():
        done = build(folder, name, table)
        assert done.exit_code == 0, (name, done.stderr)
    with serving(folder / "models") as server, server.client() as found:
        yield found


@pytest.mark.parametrize("name", SERVED)
def test_it_is_served_with_sensible_numbers(client: httpx.Client, name: str) -> None:
    columns = {k: v for k, v in SERVED[name].items() if k != "y"}
    far = {k: "red" if np.asarray(v).dtype.kind == "U" else 1e6 for k, v in columns.items()}
    near = {k: np.asarray(v).tolist()[7] for k, v in columns.items()}
    asked = {"model": name, "inputs": [near, far]}
    answer = client.post("/predict", json=asked).raise_for_status().json()
    if "interval" in answer:
        low, high = np.array(answer["interval"]).T
        assert np.isfinite([low, high]).all() and (low < answer["mean"]).all() and (answer["mean"] < high).all()
        assert (np.array(answer["aleatoric_variance"]) > 0).all() and np.isfinite(answer["entropy"]).all()
        assert (np.array(answer["variance"]) >= answer["aleatoric_variance"]).all()
    else:
        assert np.sum(answer["mean"], axis=1) == pytest.approx(1)
        assert (np.array(answer["variance"]) >= 0).all()
        assert all(label in held for label, held in zip(answer["label"], answer["prediction_set"], strict=True))
    scored = client.post("/ood", json=asked).raise_for_status().json()
    assert np.isfinite(scored["score"]).all()
    assert all(0 < p <= 1 for p in scored["p_value"])
    card = client.get(f"/models/{name}").raise_for_status().text
    report = client.get(f"/models/{name}/report").raise_for_status().text
    assert "<html" in report
    assert (NOTES.get(name, COPIES) in card) == (name in NOTES)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"x": [], "y": []}, "", "too few rows"),
        ({"x": X[:1], "y": Y[:1]}, "", "too few rows"),
        ({"x": X[:2], "y": Y[:2]}, "", "too few rows"),
        ({"x": X[:12], "y": Y[:12]}, "", "too few rows"),
        ({"x": X[:20], "y": Y[:20]}, "test_fraction = 0.8", "lower test_fraction"),
        ({"x": X, "y": np.ones(ROWS)}, "", "same in every training row"),
        ({"x": X, "y": np.full(ROWS, "a")}, "", "only one class"),
        ({"x": X, "y": np.where(np.arange(ROWS) < 1, "rare", KIND)}, "", "join rare classes"),
        ({"x": X, "y": np.where(np.isfinite(WITH_GAPS), Y, np.inf)}, "", "missing or infinite"),
        ({"x": np.full(ROWS, np.nan), "y": Y}, "", "--drop x"),
        ({"y": Y}, "", "no column to predict from"),
    ],
)
def test_it_is_refused_with_what_to_do(tmp_path: Path, table: dict[str, Any], options: str, message: str) -> None:
    done = build(tmp_path, "wrong", table, options=options)
    assert done.exit_code == 1
    assert done.stderr.startswith("DataError: ") and message in done.stderr
    assert not (tmp_path / "models").exists()
