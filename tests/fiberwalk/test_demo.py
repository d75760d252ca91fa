"""`fiberwalk demo` as it is run: two models from real data, served, with the error bars that they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from fiberwalk.demo import HERE
from model_store import ModelStore
from tests.servers import serving

INSIDE = [*np.linspace(0.3, 1.3, 11), *np.linspace(3.2, 5.7, 26)]
GAP = list(np.linspace(1.8, 2.7, 10))
BEYOND = {"left": list(np.linspace(-4.0, -2.0, 9)), "right": list(np.linspace(8.0, 10.0, 9))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fiberwalk", "demo", "--store", "models", "--port", "0"],
        cwd=folder,
        env={**os.environ, "DEMO_EXIT": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def client(folder: Path, output: str) -> Iterator[httpx.Client]:
    with serving(folder / "models") as server, server.client() as client:
        yield client


def epistemic_std(client: httpx.Client, xs: list[float], samples: int, seeds: int) -> float:
    found = []
    for seed in range(seeds):
        body = {"model": "snelson", "inputs": [[x] for x in xs], "samples": samples, "seed": seed}
        answer = client.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        found.append(np.sqrt(answer.json()["epistemic_variance"]).mean())
    return float(np.mean(found))


def test_the_demo_shows_predictions_with_error_bars_and_names_the_picture(output: str) -> None:
    rows = [line for line in output.splitlines() if line.startswith("│")]
    assert sum("data" in r for r in rows) == 3 and sum("gap" in r for r in rows) == 1
    assert not any("flagged" in r for r in rows if "data" in r)
    assert all("flagged" in r for r in rows if "outside" in r)
    assert any("random pixels" in r and "flagged" in r for r in rows)
    assert "posterior.png" in output and "the server is stopped" in output


@pytest.mark.parametrize(("samples", "seeds"), [(32, 8), (1024, 1)])
def test_the_band_widens_in_the_gap_and_beyond_the_data(client: httpx.Client, samples: int, seeds: int) -> None:
    inside = epistemic_std(client, INSIDE, samples, seeds)
    assert epistemic_std(client, GAP, samples, seeds) >= 3 * inside
    for xs in BEYOND.values():
        assert epistemic_std(client, xs, samples, seeds) >= 3 * inside


@pytest.mark.parametrize("model", ["snelson", "digits"])
def test_the_decoded_posterior_predicts_as_the_fiber_samples(folder: Path, output: str, model: str) -> None:
    metrics = ModelStore(folder / "models").open(model).manifest.metrics
    nll = {m.predictor: m.values["nll"] for m in metrics if m.split == "test"}
    assert abs(nll["posterior"] - nll["fiber"]) <= 0.02


def test_both_models_predict_well(folder: Path, output: str) -> None:
    store = ModelStore(folder / "models")
    figures = {n: next(m for m in store.open(n).manifest.metrics if m.split == "test") for n in ("snelson", "digits")}
    assert figures["snelson"].predictor == figures["digits"].predictor == "posterior"
    # The noise of Snelson's set is about 0.28, so that 0.15 nats is what the true function would get.
    assert figures["snelson"].values["nll"] < 0.35
    assert figures["digits"].values["accuracy"] > 0.95


def test_real_digits_are_not_flagged_and_noise_is(client: httpx.Client) -> None:
    with np.load(HERE / "digits.npz", allow_pickle=False) as z:
        real = z["x"][:200].tolist()
    noise = np.random.default_rng(1).integers(0, 17, (200, 64)).tolist()
    flags = [client.post("/ood", json={"model": "digits", "inputs": rows}).json()["flag"] for rows in (real, noise)]
    assert np.mean(flags[0]) < 0.05 and np.mean(flags[1]) > 0.5
