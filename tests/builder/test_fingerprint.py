"""What tells networks apart, so that nothing is resumed for another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from builder.fingerprint import network_digest
from builder.own_network import import_factory

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def helper(h: Tensor) -> Tensor:
    return torch.relu(h)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(helper(self.body(x)))
        return out


class SinglePrecision(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


@pytest.mark.parametrize("kind", [Net, SinglePrecision])
def test_the_same_network_has_the_same_digest(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    module = kind()
    first = network_digest(module, X)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert network_digest(kind(), X) == first
    finally:
        torch.set_num_threads(before)
    # Noise as that of other sums.
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: (x @ self.weight.T + self.bias) * (1 + 1e-8))
    assert network_digest(module, X) == first


def test_what_a_network_calls_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = network_digest(Net(), X)
    monkeypatch.setitem(globals(), "helper", torch.cos)
    assert network_digest(Net(), X) != before


def test_what_stands_before_a_layer_of_noughts_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Net()
    nn.init.zeros_(module.head.weight)
    before = network_digest(module, X)
    monkeypatch.setitem(globals(), "helper", torch.cos)
    assert network_digest(module, X) != before


def test_code_that_no_row_needs_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for most in (50, 60):
        (tmp_path / f"own_net_{most}.py").write_text(
            "from torch import nn\n\nclass Net(nn.Linear):\n"
            f"    def forward(self, x):\n        return super().forward(x.clamp(max={most}))\n\n"
            "def make():\n    return Net(3, 1)\n"
        )
        torch.manual_seed(0)
        found.append(network_digest(import_factory(f"own_net_{most}:make")(), X))
    assert found[0] != found[1]


def test_other_statistics_of_the_same_weights_are_another_network() -> None:
    found = []
    for variance in (1.0, 25.0):
        torch.manual_seed(3)
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        module[1].running_var.fill_(variance)
        found.append(network_digest(module.requires_grad_(False), X))
    assert found[0] != found[1]


def test_comments_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for name, comment in (("plain_net", ""), ("noted_net", "    # as it was\n\n")):
        (tmp_path / f"{name}.py").write_text(
            f"from torch import nn\n\nclass Net(nn.Linear):\n{comment}    def forward(self, x):\n"
            "        return super().forward(x)\n\ndef make():\n    return Net(3, 1)\n"
        )
        torch.manual_seed(0)
        found.append(network_digest(import_factory(f"{name}:make")(), X))
    assert found[0] == found[1]


class Counted(Net):
    """With whole numbers among its parameters, and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.tensor([0, 2]), requires_grad=False)
        self.version = 1

    def get_extra_state(self) -> dict[str, int]:
        return {"version": self.version}


def test_parameters_that_are_whole_and_states_that_are_no_tensors() -> None:
    module = Counted()
    before = network_digest(module, X)
    assert network_digest(Counted(), X) == before
    module.version = 2
    assert network_digest(module, X) != before


def test_frozen_parameters_are_another_network() -> None:
    module = Net()
    before = network_digest(module, X)
    next(module.parameters()).requires_grad_(False)
    assert network_digest(module, X) != before
