"""What networks must bear, and what is said before any training of those that do not."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from builder.config import make_config
from builder.data import Dataset, from_arrays, prepare
from builder.network import FunctionalNetwork
from builder.preparation import make_module
from builder.trial import _refuse_unreached, notes_on, try_network
from model_store.errors import ConfigError

CONFIG = make_config({"name": "a", "data": {"task": "classification"}})


def dataset_of(x: NDArray[np.float64], standardized: bool = True) -> Dataset:
    return prepare(from_arrays(x, np.arange(60) % 3, CONFIG.data), CONFIG.data, standardized, 0)


def sequences() -> Dataset:
    """Rows (5, 3) of three classes."""
    return dataset_of(np.random.default_rng(0).normal(size=(60, 5, 3)))


def codes(standardized: bool) -> Dataset:
    """Rows (2, 1) of codes from 0 to 6, the largest not at first."""
    return dataset_of((np.arange(120.0) % 7).reshape(60, 2, 1), standardized)


class Own(nn.Module):
    """A network that does something to its rows or its hidden values."""

    def __init__(self, first: Callable[[Tensor], Tensor] = torch.clone, then: Callable[[Tensor], Tensor] = torch.tanh):
        super().__init__()
        self.first, self.then = first, then
        self.body, self.head = nn.Linear(15, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.then(self.body(self.first(x).flatten(1))))
        return out


class Then(nn.Module):
    """A function at the end of a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = layer(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x)[0][:, -1])
        return out


class Codes(nn.Module):
    def __init__(self, codes: int = 7) -> None:
        super().__init__()
        self.codes, self.head = nn.Embedding(codes, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.codes(x[:, :, 0].long()).mean(1))
        return out


def changes(x: Tensor) -> Tensor:
    x[:, 0] = 2 * x[:, 0]
    return x


def counted(x: Tensor) -> Tensor:
    return x.view(len(x), -1)


def branching(h: Tensor) -> Tensor:
    return 2 * h if h.mean() > 0 else h


def overwriting(h: Tensor) -> Tensor:
    out = torch.zeros(h.shape)
    out[:, 0] = h[:, 0]
    return out


def of_numpy(h: Tensor) -> Tensor:
    return torch.from_numpy(h.detach().numpy())


def counting(h: Tensor) -> Tensor:
    return h * functional.one_hot((h[:, 0] > 0).long(), 4)


def of_bessel(h: Tensor) -> Tensor:
    return h + torch.special.bessel_j0(h)


def cut_off(h: Tensor) -> Tensor:
    return h.detach()


def with_head_of_nought(module: Own) -> nn.Module:
    """As a last layer often starts, so that nothing before it has a gradient at first."""
    nn.init.zeros_(module.head.weight)
    return module


def tried(module: nn.Module, posterior: str = ".*", dataset: Dataset | None = None) -> None:
    dataset = dataset or sequences()
    try_network(make_module(CONFIG, dataset, lambda: module), posterior, False, dataset)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: Own(changes), r"Own changes the rows it is given in place\. .* x = x\.clone\(\)"),
        (lambda: Own(then=functional.dropout), r"Own gives other outputs .* training=self\.training"),
        (lambda: Own(then=branching), r"Own cannot run with several weight vectors .* by torch\.where"),
        (lambda: Own(then=overwriting), r"Own cannot run with several weight vectors .* without changing tensors"),
        (lambda: Own(then=of_bessel), "The network cannot be exported to ONNX: .*bessel_j0"),
        (lambda: Own(then=of_numpy), r"\(test_trial\.py, line \d+: return torch\.from_numpy.* torch's functions"),
        (lambda: Own(then=cut_off), r"No gradient reaches body\.weight, body\.bias, .* requires_grad_\(False\)"),
        (lambda: nn.Sequential(Own(), Then(cut_off)), r"torch\.no_grad\(\) and detach\(\) out of what makes"),
        (lambda: Own(then=counting), r"Own cannot run .*F\.one_hot\(i, n\) by"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), r"1\.weight has no shape .* numbers of inputs"),
    ],
)  # fmt: skip
def test_what_a_network_cannot_do_is_said_in_one_message(module: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tried(module())
    assert caught.value.field == "network"


class Shifted(Own):
    """A network with a weight that has no gradient and is as good as none, but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-6 * self.shift.detach()


def test_weights_that_say_nothing_need_no_gradient() -> None:
    x = torch.from_numpy(sequences().x)
    _refuse_unreached(FunctionalNetwork(Shifted()), x)
    with pytest.raises(ConfigError, match="No gradient reaches body"):
        _refuse_unreached(FunctionalNetwork(Own(then=cut_off)), x)


def test_a_layer_whose_units_are_all_off_is_no_cut() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    nn.init.zeros_(module[0].weight)
    nn.init.constant_(module[0].bias, -2.0)
    _refuse_unreached(FunctionalNetwork(module), torch.randn(32, 2, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("posterior", [".*", r"head\."])
@pytest.mark.parametrize("module", [lambda: Recurrent(nn.GRU), lambda: with_head_of_nought(Own(counted))])
def test_what_a_network_may_do(module: Callable[[], nn.Module], posterior: str) -> None:
    tried(module(), posterior)


def test_codes_must_be_whole_numbers_that_are_there() -> None:
    with pytest.raises(ConfigError, match=r"does not take the data: .* say --set data\.standardize=false"):
        tried(Codes(), dataset=codes(True))
    config = make_config({"name": "a", "data": {"task": "classification", "standardize": False}})
    make_module(config, codes(False), Codes)
    # Of which the first rows know nothing.
    with pytest.raises(ConfigError, match="does not take the data: IndexError") as caught:
        make_module(config, codes(False), lambda: Codes(6))
    assert "standardize" not in caught.value.message


def test_the_users_rows_are_left_as_they_are() -> None:
    dataset = sequences()
    before = dataset.x.copy()
    with pytest.raises(ConfigError):
        tried(Own(changes), dataset=dataset)
    np.testing.assert_array_equal(dataset.x, before)


class Listed(Own):
    """A network that keeps layers where torch does not look for them, one of which it knows by another name too."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [nn.Linear(4, 4), nn.Tanh()]
        self.order = [self.body, self.head, nn.Tanh()]


def test_frozen_parameters_are_noted() -> None:
    module = Own()
    module.body.requires_grad_(False)
    (note,) = notes_on(module, False, sequences())
    assert note.startswith("Frozen parameters stay as the network is made: body.weight, body.bias. ")
    assert notes_on(Own().requires_grad_(False), False, sequences()) == []


def test_layers_in_plain_lists_are_noted() -> None:
    (note,) = notes_on(nn.Sequential(Listed()), False, sequences())
    assert note.startswith("Layers in plain lists are not trained and stay as they are made: 0.blocks. ")


def test_notes() -> None:
    dataset, module = sequences(), Own()
    assert notes_on(module, False, dataset) == []
    (given,) = notes_on(module, True, dataset)
    assert given.startswith("Weights were given")
    (probable,) = notes_on(nn.Sequential(module, nn.Softmax(1)), False, dataset)
    assert probable.startswith("The network's outputs are probabilities")
    assert notes_on(nn.Sequential(module, nn.Sigmoid()), False, dataset) == []
    assert notes_on(nn.Sequential(module, nn.LogSoftmax(1)), False, dataset) == []


class Keeps(Own):
    """A network that keeps hidden values to look at."""

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.body(x.flatten(1))
        out: Tensor = self.head(self.hidden.tanh())
        return out


def test_what_a_forward_keeps_to_look_at_is_no_obstacle() -> None:
    dataset = sequences()
    module = make_module(CONFIG, dataset, Keeps)
    try_network(module, ".*", False, dataset)
    copy.deepcopy(module)
    assert not hasattr(module, "hidden")


class Hoards(Own):
    """A network that keeps the hidden values of all its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(self.body(x.flatten(1)))
        out: Tensor = self.head(self.kept[-1].tanh())
        return out


class Locked(Own):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("factory", "why"), [(Hoards, "Keep no tensor of forward in a list"), (Locked, "keep generators, locks")]
)
def test_a_network_that_cannot_be_copied_is_told_why(factory: type[nn.Module], why: str) -> None:
    dataset = sequences()
    with pytest.raises(ConfigError, match=why):
        try_network(make_module(CONFIG, dataset, factory), ".*", False, dataset)
