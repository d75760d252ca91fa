"""Several processes by torchrun: their parts, their errors, and the bundle of two beside the bundle of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from builder.config import make_config
from builder.distributed import first, from_first, gathered, go_on_alone, joined, share
from builder.pipeline import run_build
from builder.recipe import read_recipe
from model_store.store import ModelStore
from tests.builder.builds import serve, table

ROOT = Path(__file__).parent.parent.parent
RECIPE = """
name = "tiny"
store = "models"
work = "work"
[data]
file = "table.csv"
target = "y"
task = "regression"
[network]
hidden = [12]
activation = "tanh"
[map]
anchors = 3
steps = 150
learning_rate = 0.05
prior_precision = [0.1, 1.0]
folds = 2
[fiber]
trajectories = 5
steps = 4
refinement = 25
[autoencoder]
dimension = 8
steps = 50
"""


def torchrun(processes: int, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m COMMAND` in so many processes on this machine, in a folder."""
    # On a free port of its own: tests run side by side.
    words = ["--standalone", "--nproc-per-node", str(processes), "-m", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


# ---- one process


def test_one_process_has_everything() -> None:
    with joined():
        assert first()
        assert share(5) == slice(0, 5)
        numbers = torch.arange(5)
        assert gathered(numbers, 5) is numbers
        assert from_first(numbers) is numbers
        go_on_alone()
        assert first()


# ---- several


def test_parts_come_together_and_an_error_is_told_once(tmp_path: Path) -> None:
    run = torchrun(3, tmp_path, "tests.builder.processes", str(tmp_path))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [f["first"] for f in found] == [True, False, False]
    # Parts of one size, which cover all items, in their order.
    assert [f["share"] for f in found] == [
        [[0, 1], [0, 1], [0, 2], [0, 2]],
        [[0, 1], [1, 2], [2, 4], [2, 4]],
        [[0, 1], [1, 2], [3, 5], [4, 6]],
    ]
    for f in found:
        assert f["numbers"] == [[i, 10 * i] for i in range(5)]
        assert f["odd"] == [False, True, False, True, False]
        assert f["one"] == [7]
        assert (f["said"], f["together"], f["again"]) == (0, True, 10)
    assert [f.get("alone") for f in found] == [True, None, None]
    # Two fail alike, and the first waits for them.
    assert run.returncode != 0
    assert run.stderr.count("FiberwalkError: All but the first are out of luck.") == 1


def test_two_processes_make_the_bundle_of_one(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    two = torchrun(2, tmp_path, "fiberwalk", "build", "recipe.toml")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("tiny@1") == 1 and "Traceback" not in two.stderr
    (tmp_path / "work").rename(tmp_path / "work-of-two")

    one = run_build(make_config(read_recipe(tmp_path / "recipe.toml"))).bundle
    bundle = ModelStore(tmp_path / "models").open("tiny@1")
    bundle.verify()
    for stage, close in (("map", 1e-4), ("fiber", 1e-2), ("autoencoder", 1e-2)):
        alone, together = (load_file(tmp_path / work / f"{stage}.safetensors") for work in ("work", "work-of-two"))
        assert alone.keys() == together.keys()
        for name, tensor in alone.items():
            away = (tensor.double() - together[name].double()).abs().max()
            assert float(away) <= close * float(tensor.double().abs().max()), (stage, name)
    ours, theirs = (b.manifest.model_dump() for b in (one, bundle))
    for part in ("network", "latent", "calibration", "ood", "metrics", "target"):
        assert_near(flat(theirs[part]), flat(ours[part]))
    rows = [[0.5, "red"], [-1.2, "blue"], [7.0, "red"]]
    answers = [serve(b, rows) for b in (one, bundle)]
    for key in ("mean", "variance", "interval"):
        np.testing.assert_allclose(answers[1][key], answers[0][key], rtol=0.02)


def assert_near(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Numbers are alike, everything else is the same."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, rel=0.02) if isinstance(value, float) else value), name


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by their place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, entry in items for k, v in flat(entry, f"{name}.{key}").items()}
    return {name: value}
