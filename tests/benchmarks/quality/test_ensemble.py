"""The networks of an ensemble, which a run that goes on finds again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.quality.methods import ensemble
from benchmarks.quality.predictive import Classes
from builder.predictive import contracted, mixture_probabilities
from builder.work import WorkFolder
from tests.benchmarks.quality.problems import TUNED, tiny_problem


def test_an_ensemble_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = tiny_problem("classification", steps=20)
    first = ensemble.run(problem, TUNED, sizes=[5], work=WorkFolder(tmp_path))
    kept = ensemble.train_full(problem, TUNED, 5, WorkFolder(tmp_path))
    assert torch.equal(kept.weights, ensemble.train_full(problem, TUNED, 5).weights)

    trained: list[int] = []
    train = ensemble.train_members
    monkeypatch.setattr(ensemble, "train_members", lambda *a: trained.append(len(a[1])) or train(*a))
    again = ensemble.run(problem, TUNED, sizes=[5], work=WorkFolder(tmp_path))
    assert not trained
    for method, outcome in first.items():
        assert again[method].cost.gradient_evaluations == outcome.cost.gradient_evaluations
        # The seconds of the training that was spared count.
        assert again[method].cost.seconds > 0.2 * outcome.cost.seconds
    # Another prior, or another size, is another ensemble.
    ensemble.train_full(problem, replace(TUNED, precision=2.0), 5, WorkFolder(tmp_path))
    ensemble.train_full(problem, TUNED, 2, WorkFolder(tmp_path))
    assert trained == [5, 2]


def test_dispersion_is_that_of_averages_alone() -> None:
    """What samples say of unfamiliar rows, they say as they are drawn."""
    problem = tiny_problem("classification", steps=20)
    outputs = 2 * torch.randn(5, 20, 3, generator=torch.Generator().manual_seed(0))
    drawn, closer = (ensemble.predict(problem, outputs, 1.0, 1.2, dispersion) for dispersion in (1.0, 0.25))
    assert isinstance(drawn, Classes) and isinstance(closer, Classes)
    assert drawn.information is not None and closer.information is not None
    assert torch.equal(drawn.information, closer.information)
    assert torch.allclose(closer.probabilities, mixture_probabilities(contracted(outputs, 0.25), 1.2))
    assert not torch.allclose(closer.probabilities, drawn.probabilities, atol=0.01)
