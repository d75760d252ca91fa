"""Tiny problems for the methods, made in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from benchmarks.data import DataSet, Task
from benchmarks.quality.predictive import Cost
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.quality.tuning import Tuned
from builder.network import FunctionalNetwork

TUNED = Tuned(
    precision=1.0,
    noise_variance=0.2,
    pair_noise_variance=0.18,
    temperatures={1: 1.2, 5: 1.04, 10: 1.02, 20: 1.01},
    dispersions={1: 1.0, 5: 1.0, 10: 0.5, 20: 0.5},
    cost=Cost(1000, 0.5),
)


def tiny_problem(task: Task, rows: int = 60, steps: int = 200) -> Problem:
    """A noisy line or three classes of two columns, 20 test rows, and the usual network."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows + 20, 2))
    score = x[:, 0] - 0.5 * x[:, 1] + 0.4 * rng.normal(size=len(x))
    y = 50 + 10 * score if task == "regression" else np.digitize(score, [-0.5, 0.5])
    train = np.arange(len(x))[None] < rows
    return make_problem(DataSet("tiny", task, x, y, train, ~train), 0, map={"steps": steps})


def linear(problem: Problem) -> Problem:
    """The same with a network of one linear layer."""
    outputs = 1 if problem.regression else problem.dataset.outputs

    def factory() -> nn.Module:
        return nn.Sequential(nn.Linear(problem.x.shape[1], outputs))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return replace(problem, factory=factory, network=FunctionalNetwork(factory()))
