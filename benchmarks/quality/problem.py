"""What every method gets: one split of one set, encoded, with the network, the training budget and the seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import DataSet
from builder.config import BuildConfig, make_config
from builder.data import Dataset, from_arrays, prepare
from builder.network import FunctionalNetwork, NetworkFactory
from builder.preparation import make_factory
from model_store.encoding import TableEncoder
from model_store.manifest import RegressionTarget, TableInput

_WIDER = {"uci_protein": [100]}
"""Hidden units, where the literature's network has others than 50."""


@dataclass(frozen=True)
class Problem:
    """One split of one set.

    Attributes:
        config: the build's options; `config.map` is the training budget of every method.
        dataset: the training rows and what is known of them, encoded.
        x, y: (n, d) encoded training rows and (n,) standardised targets or class indices.
        x_test, y_test: the same of the test rows. No method looks at `y_test`.
        scale: the target's units in one standardised unit; 1 for classification.
        factory: makes a freshly initialised network.
        network: it as a function of its P weights.
    """

    config: BuildConfig
    dataset: Dataset
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    scale: float
    factory: NetworkFactory
    network: FunctionalNetwork

    @property
    def regression(self) -> bool:
        """Whether targets are numbers."""
        return self.y.is_floating_point()

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return self.config.seed


def make_problem(data: DataSet, split: int, preset: str = "default", **stages: dict[str, Any]) -> Problem:
    """The split of a set; scaling is fitted on its training rows. `stages`: options of the build, by stage."""
    config = make_config(
        {
            "name": f"{data.name}-{split}",
            "preset": preset,
            "seed": split,
            "device": "cpu",
            **stages,
            "data": {"task": data.task, "test_fraction": 0.0},
            "network": {"hidden": _WIDER.get(data.name, [50]), **stages.get("network", {})},
        }
    )
    train, test = data.train[split], data.test[split]
    dataset = prepare(from_arrays(data.x[train], data.y[train], config.data), config.data, True, config.seed)
    assert isinstance(dataset.inputs, TableInput)
    target, scale = dataset.target, 1.0
    x_test = torch.from_numpy(TableEncoder(dataset.inputs).encode_matrix(data.x[test].astype(float)))
    if isinstance(target, RegressionTarget):
        scale = target.scale
        y_test = torch.from_numpy(((data.y[test] - target.mean) / scale).astype("float32"))
    else:
        y_test = torch.tensor([target.classes.index(int(c)) for c in data.y[test]])
    factory = make_factory(config, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = FunctionalNetwork(factory())
    x, y = torch.from_numpy(dataset.x), torch.from_numpy(dataset.y)
    return Problem(config, dataset, x, y, x_test, y_test, scale, factory, network)
