"""Recurrent layers inside torch's transforms."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from builder.curvature import linear_response, scaled_jacobian
from builder.likelihood import GaussianLikelihood
from builder.network import FunctionalNetwork

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

LAYERS: dict[str, Callable[[], nn.RNNBase]] = {
    "gru": lambda: nn.GRU(3, 5, batch_first=True),
    "gru_both_ways": lambda: nn.GRU(3, 5, num_layers=2, bidirectional=True, batch_first=True),
    "gru_unbiased": lambda: nn.GRU(3, 5, bias=False),
    "lstm": lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5),
    "lstm_projected": lambda: nn.LSTM(3, 5, proj_size=2, batch_first=True),
    "tanh": lambda: nn.RNN(3, 5, batch_first=True),
    "relu": lambda: nn.RNN(3, 5, nonlinearity="relu", bidirectional=True),
}


class Recurrent(nn.Module):
    """Sequences (B, 4, 3) -> (B, 1); the last states of all layers count too."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        width = layer.proj_size or layer.hidden_size
        self.head = nn.Linear(width * (2 if layer.bidirectional else 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.layer.batch_first:
            x = x.transpose(0, 1)
        outputs, state = self.layer(x)
        ends = state if isinstance(state, Tensor) else state[0] + state[1].mean(-1, keepdim=True)
        out: Tensor = self.head(outputs.mean(1 if self.layer.batch_first else 0)) + ends.mean((0, 2))[:, None]
        return out


class Looped(nn.Module):
    """Sequences (B, 4, 3) -> (B, 1), a step of a cell at a time."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        start = x.new_zeros(len(x), 5)
        state = (start, start) if isinstance(self.cell, nn.LSTMCell) else start
        for part in x.unbind(1):
            state = self.cell(part, state)
        out: Tensor = self.head(state[0] + state[1] if isinstance(state, tuple) else state)
        return out


CELLS: dict[str, Callable[[], nn.RNNCellBase]] = {
    "gru_cell": lambda: nn.GRUCell(3, 5),
    "lstm_cell": lambda: nn.LSTMCell(3, 5),
    "tanh_cell": lambda: nn.RNNCell(3, 5, bias=False),
    "relu_cell": lambda: nn.RNNCell(3, 5, nonlinearity="relu"),
}


@pytest.fixture(params=[*LAYERS, *CELLS])
def module(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    name = request.param
    return Recurrent(LAYERS[name]()).eval() if name in LAYERS else Looped(CELLS[name]()).eval()


def test_many_weight_vectors_give_what_each_gives(module: nn.Module) -> None:
    network, x = FunctionalNetwork(module), torch.randn(6, 4, 3)
    thetas = network.current() + 0.3 * torch.randn(3, network.weights)
    thetas.requires_grad_()
    each = torch.stack([network(theta, x) for theta in thetas])
    together = network.batched(thetas, x)
    torch.testing.assert_close(together, each)
    (want,) = torch.autograd.grad(each.square().sum(), thetas, retain_graph=True)
    (got,) = torch.autograd.grad(together.square().sum(), thetas)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    copy.deepcopy(module)  # holds nothing of the transform


def test_weights_are_those_that_are_given_each_time(module: nn.Module) -> None:
    network, x = FunctionalNetwork(module), torch.randn(6, 4, 3)
    others = {name: value + 1 for name, value in network.unflatten(network.current()).items()}
    first = network.apply(others, x)
    assert torch.equal(network.apply(others, x), first) and not first.requires_grad
    torch.testing.assert_close(network(network.current(), x), module(x))


@pytest.mark.parametrize("posterior", [".*", r"head\."])
def test_curvature_is_that_of_rows_and_directions(module: nn.Module, posterior: str) -> None:
    network, x = FunctionalNetwork(module, posterior), torch.randn(5, 4, 3)
    theta, likelihood = network.current(), GaussianLikelihood(1.0)
    jacobian = scaled_jacobian(network, theta, x, likelihood)
    assert jacobian.shape == (5, network.weights)
    directions = torch.randn(2, network.weights)
    response = linear_response(network, theta, x, likelihood, directions)
    torch.testing.assert_close(response, directions @ jacobian.T, rtol=1e-3, atol=1e-4)
    small = 1e-3 * directions[0]
    with torch.no_grad():
        moved = (network(theta + small, x) - network(theta - small, x))[:, 0] / 2
    torch.testing.assert_close(moved, jacobian @ small, rtol=2e-2, atol=1e-5)
    if posterior != ".*":
        torch.testing.assert_close(jacrev(network)(theta, x)[:, 0], jacobian)
