"""The features of a network: what its last linear layer takes, where what it learned to tell apart lies apart.

Lengths: A anchors, P random weights, n rows, d features.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from builder.network import FunctionalNetwork
from builder.predictive import rows_at_once


@dataclass(frozen=True)
class FeatureNetworks:
    """The networks whose features tell unfamiliar rows from others: one with weights (A, P), each trained on some of
    the rows.

    A server looks at the features of the first. It is not trained anew on all rows: what it makes of the rows that it
    lacks would not tell what another network makes of new ones.
    """

    network: FunctionalNetwork
    anchors: Tensor

    def served(self, x: Tensor) -> Tensor | None:
        """Features (n, d) of rows x (n, ...) as a server has them."""
        return features_of(self.network, self.anchors[0], x)


def features_of(network: FunctionalNetwork, theta: Tensor, x: Tensor) -> Tensor | None:
    """Features (n, d) of rows x (n, ...) for weights theta (P,), or None where there are none: the outputs are not just
    those of a linear layer that takes one vector for each row."""
    parts = []
    with torch.no_grad():
        for part in torch.split(x, rows_at_once(network, 1, x)):
            with _last_linear(network.module) as last:
                outputs = network(theta, part)
            if not last or last[1] is not outputs or last[0].ndim != 2:
                return None
            parts.append(last[0])
    return torch.cat(parts)


@contextmanager
def _last_linear(module: nn.Module) -> Iterator[list[Tensor]]:
    """What the last linear layer took and gave, once the module has run."""
    last: list[Tensor] = []

    def keep(_: nn.Module, taken: tuple[Tensor, ...], given: Tensor) -> None:
        last[:] = [taken[0], given]

    hooks = [m.register_forward_hook(keep) for m in module.modules() if isinstance(m, nn.Linear)]
    try:
        yield last
    finally:
        for hook in hooks:
            hook.remove()


class FeatureModule(nn.Module):
    """A network with weights theta (P,) as a module that gives its features (B, d)."""

    def __init__(self, network: FunctionalNetwork, theta: Tensor) -> None:
        super().__init__()
        self.module = copy.deepcopy(network.module)
        named = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, value in network.unflatten(theta).items():
                named[name].copy_(value)
        self._taken: list[Tensor] = []
        # Not once it runs: the exporter may read the code of that, in which hooks cannot be set.
        for part in self.module.modules():
            if isinstance(part, nn.Linear):
                part.register_forward_hook(self._keep)

    def forward(self, x: Tensor) -> Tensor:
        self.module(x)
        return self._taken.pop()

    def _keep(self, _: nn.Module, taken: tuple[Tensor, ...], _given: Tensor) -> None:
        self._taken[:] = [taken[0]]
