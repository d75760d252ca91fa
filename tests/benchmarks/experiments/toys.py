"""Tiny problems with few anchors, fibers and steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.data import DataSet
from benchmarks.quality.problem import Problem, make_problem
from tests.benchmarks.quality.problems import tiny_problem

PNG = b"\x89PNG\r\n"


def few(problem: Problem, steps: int = 150) -> Problem:
    """The problem with four anchors in two rounds of two folds, four fibers of four steps each."""
    config = problem.config
    stages = {
        "map": config.map.model_copy(update={"anchors": 4, "folds": 2, "steps": steps, "prior_precision": [1.0]}),
        "fiber": config.fiber.model_copy(update={"trajectories": 4, "steps": 4, "refinement": 10, "drift_scale": 1.0}),
        "autoencoder": config.autoencoder.model_copy(update={"steps": 60, "hidden": 16}),
    }
    return replace(problem, config=config.model_copy(update=stages))


def toy_problem() -> Problem:
    """A noisy line of two columns, and a ReLU network of 50 hidden units."""
    return few(tiny_problem("regression"))


def wave_problem(steps: int = 150) -> Problem:
    """A noisy wave of one column with x in [-2, -0.6] or [0.6, 2]; the rows between are the test rows."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-2, -0.6, 60), rng.uniform(0.6, 2, 60), rng.uniform(-0.6, 0.6, 20)])
    y = 5 + 2 * np.sin(2 * x) + 0.2 * rng.normal(size=len(x))
    train = np.arange(len(x))[None] < 120
    return few(make_problem(DataSet("wave", "regression", x[:, None], y, train, ~train), 0), steps)


def rays(anchors: int, trajectories: int, steps: int) -> torch.Tensor:
    """Latents (A, N, T+1, N) of straight trajectories along the axes, with even steps."""
    length = torch.linspace(0, 1, steps + 1)
    return (torch.eye(trajectories)[:, None] * length[:, None]).expand(anchors, -1, -1, -1).clone()
