"""Heads of each rank: what decoding costs, and what a server takes."""

from __future__ import annotations

import pytest

from benchmarks.experiments.decoding import Sampled, sample
from benchmarks.experiments.ranks import ALL, report, vary, vary_first, wide_problem
from benchmarks.experiments.stages import train
from model_store.errors import DataError
from tests.benchmarks.experiments.toys import PNG, few, toy_problem
from tests.benchmarks.quality.problems import tiny_problem


@pytest.fixture(scope="module")
def sampled() -> Sampled:
    return sample(train(toy_problem()))


def test_a_head_of_more_columns_is_nearer_to_the_fibers(sampled: Sampled) -> None:
    found = vary(sampled, (1, 4, 8), 20)
    errors = [d["reconstruction"] for d in found["decoded"]]
    assert errors[0] > errors[1] > errors[2] >= 0
    assert abs(found["decoded"][-1]["nll"] - found["fiber"]["nll"]) < 0.01
    shown = report([{"set": "toy", "split": 0, **found}])
    assert [row[0] for row in shown.tables[0].rows] == ["1", "4", "8", "the fibers themselves", "anchors alone"]
    assert shown.pictures["ranks.png"].startswith(PNG)


def test_a_first_layer_is_timed_beside_all_weights() -> None:
    found = vary_first(sample(train(few(tiny_problem("classification")))), (1, 2), 10, 0.01)
    assert [d["rank"] for d in found["decoded"]] == [1, 2, ALL]
    assert all(d["row"] > 0 and d["rows"] > 0 for d in found["decoded"])
    shown = report([{"set": "toy", "split": 0, **found}])
    assert shown.tables[0].rows[2][0] == f"that of the others, {found['rank']}"
    assert len(shown.tables[0].header) == len(shown.tables[0].rows[0]) == 6


def test_without_the_images_it_says_so(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    with pytest.raises(DataError, match="fashion_mnist"):
        wide_problem(0, "default")
