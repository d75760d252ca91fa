"""A module as a function of a flat weight vector."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.func import vmap

from builder.network import (
    MLP,
    FunctionalNetwork,
    NetworkFactory,
    import_factory,
    load_weights,
    refuse_untrained_batch_norm,
)
from model_store.errors import ConfigError
from tests.networks import NETWORKS, mlp


def several(network: FunctionalNetwork, count: int) -> Tensor:
    noise = torch.randn(count, network.weights, generator=torch.Generator().manual_seed(1))
    return network.current() + 0.1 * noise


@pytest.mark.parametrize("name", list(NETWORKS))
def test_weights_survive_flattening_and_back(name: str) -> None:
    network = FunctionalNetwork(NETWORKS[name][0]())
    theta = several(network, 3)
    named = network.unflatten(theta)
    assert {n: p[0].shape for n, p in named.items()} == {n: p.shape for n, p in network.module.named_parameters()}
    again = torch.stack([network.flatten({n: p[i] for n, p in named.items()}) for i in range(3)])
    assert torch.equal(again, theta)
    assert network.weights == sum(p.numel() for p in network.module.parameters()) and network.fixed_weights == 0


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_function_at_the_modules_own_weights_is_the_module(name: str) -> None:
    torch.manual_seed(0)
    factory, shape = NETWORKS[name]
    network = FunctionalNetwork(factory())
    x = torch.randn(4, *shape)
    with torch.no_grad():
        assert torch.allclose(network(network.current(), x), network.module(x), atol=1e-6)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_batch_of_weight_vectors_is_each_of_them(name: str) -> None:
    torch.manual_seed(0)
    factory, shape = NETWORKS[name]
    network = FunctionalNetwork(factory())
    x, theta = torch.randn(4, *shape), several(network, 3)
    with torch.no_grad():
        together = network.batched(theta, x)
        assert torch.allclose(together, torch.stack([network(t, x) for t in theta]), atol=1e-5)


def same_activation() -> nn.Module:
    activation = nn.Tanh()
    return nn.Sequential(nn.Linear(3, 5), activation, nn.Linear(5, 5), activation, nn.Linear(5, 2))


def same_layer() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


def same_weight() -> nn.Module:
    layers = nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)
    layers[2].weight = layers[0].weight
    return nn.Sequential(*layers)


def hooked() -> nn.Module:
    network = MLP(3, [5], 2)
    network[0].register_forward_hook(lambda _module, _arguments, out: 2 * out)
    return network


@pytest.mark.parametrize(
    "factory",
    [
        *(lambda a=a: MLP(3, [6, 5], 2, a) for a in ("relu", "tanh", "silu", "gelu")),
        lambda: nn.Sequential(nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(3, 4), nn.Tanh(), nn.ReLU(), nn.ReLU(), nn.Linear(4, 2)),
        same_activation,
        same_layer,
        same_weight,
        hooked,
    ],
)
def test_layers_one_after_the_other_are_the_module(factory: NetworkFactory) -> None:
    """With their gradients, whatever of the module is more than linear layers and activations."""
    torch.manual_seed(0)
    network = FunctionalNetwork(factory())
    x, theta = torch.randn(9, 3), several(network, 4).requires_grad_()
    given = x.clone()
    found, expected = network.batched(theta, x), vmap(network, in_dims=(0, None))(theta, x)
    assert torch.equal(x, given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(out.square().sum(), theta)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_outputs_of_layers_lie_class_by_class() -> None:
    """As a softmax over few classes takes them without a copy."""
    network = FunctionalNetwork(MLP(3, [6], 4))
    assert network.batched(several(network, 2), torch.randn(9, 3)).mT.is_contiguous()


class Viewed(nn.Module):
    """A convolution whose output is viewed as rows, which channels that lie last do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3 * 4 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.convolution(x)).view(len(x), -1))


@pytest.mark.parametrize(
    ("factory", "shape", "posterior", "in_turn"),
    [
        (NETWORKS["cnn"][0], (1, 10, 10), ".*", True),
        (NETWORKS["residual"][0], (2, 8, 8), ".*", True),
        (Viewed, (2, 6, 6), ".*", True),
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)), (2, 8), ".*", True),
        (NETWORKS["cnn"][0], (1, 10, 10), "7", False),
        (NETWORKS["mlp"][0], (5,), ".*", False),
        (NETWORKS["transformer"][0], (6, 3), ".*", False),
    ],
)
def test_networks_that_run_in_turn_have_the_outputs_and_gradients_of_a_batch(
    factory: NetworkFactory, shape: tuple[int, ...], posterior: str, in_turn: bool
) -> None:
    torch.manual_seed(0)
    network = FunctionalNetwork(factory(), posterior)
    assert network.in_turn(torch.device("cpu")) == network.in_turn(torch.device("cuda")) == in_turn
    x, theta = torch.randn(7, *shape), several(network, 3).requires_grad_()
    found, expected = network.batched(theta, x), vmap(network, in_dims=(0, None))(theta, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), theta)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    again = network.batched(theta, x)
    assert torch.equal(found, again)


@pytest.mark.parametrize(
    ("posterior", "random"),
    [
        (".*", ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
        ("4", ["4.weight", "4.bias"]),
        (r".*\.bias", ["0.bias", "2.bias", "4.bias"]),
        (r"0\.weight$|4\.bias$", ["0.weight", "4.bias"]),
    ],
)
def test_the_expression_picks_the_random_parameters(posterior: str, random: list[str]) -> None:
    torch.manual_seed(0)
    network = FunctionalNetwork(mlp(), posterior)
    named = dict(network.module.named_parameters())
    assert [p.name for p in network.parameters] == random
    assert [p.input for p in network.parameters] == ["weights." + n for n in random]
    assert network.weights == sum(named[n].numel() for n in random)
    assert network.weights + network.fixed_weights == sum(p.numel() for p in named.values())
    x = torch.randn(3, 5)
    with torch.no_grad():
        before = network.module(x)
        assert torch.allclose(network(network.current(), x), before, atol=1e-6)
        assert not torch.allclose(network(network.current() + 0.5, x), before, atol=1e-2)
    assert set(network.fixed) == set(named) - set(random)
    assert all(torch.equal(network.fixed[n], named[n]) for n in network.fixed)


@pytest.mark.parametrize(("posterior", "message"), [("(", "no regular expression"), ("layer9", "matches no parameter")])
def test_expressions_that_pick_nothing_are_refused(posterior: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        FunctionalNetwork(mlp(), posterior)
    assert caught.value.field == "posterior" and caught.value.got == posterior


def test_dropout_is_off() -> None:
    network = FunctionalNetwork(nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 1)).train())
    x = torch.ones(2, 3)
    assert torch.equal(network(network.current(), x), network(network.current(), x))


class Odd(nn.Module):
    """Returns what a network must not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(3, 2), kind

    def forward(self, x: Tensor) -> object:
        out = self.linear(x)
        return {"pair": (out, out), "flat": out[:, 0], "fewer": out[:1]}[self.kind]


@pytest.mark.parametrize("kind", ["pair", "flat", "fewer"])
def test_outputs_of_another_shape_are_refused(kind: str) -> None:
    network = FunctionalNetwork(Odd(kind))
    with pytest.raises(ConfigError, match="one row of outputs for each input row") as caught:
        network(network.current(), torch.ones(4, 3))
    assert caught.value.field == "network" and "(4, outputs)" in str(caught.value.expected)


def test_operations_count_multiplications_and_additions() -> None:
    network = FunctionalNetwork(MLP(5, [16, 12], 2))
    one = network.operations(torch.randn(1, 5))
    assert one == 2 * (5 * 16 + 16 * 12 + 12 * 2)
    assert network.operations(torch.randn(10, 5)) == 10 * one


def test_activations_count_what_the_modules_put_out() -> None:
    network = FunctionalNetwork(MLP(5, [16, 12], 2))
    one = network.activations(torch.randn(1, 5))
    # Every layer once, and the whole once more.
    assert one == 16 + 16 + 12 + 12 + 2 + 2
    assert network.activations(torch.randn(10, 5)) == 10 * one
    assert not network.module._forward_hooks


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "gelu"])
def test_the_default_network(activation: str) -> None:
    net = MLP(3, [8, 4], 2, activation)
    assert net(torch.randn(6, 3)).shape == (6, 2)
    assert [tuple(p.shape) for p in net.parameters()] == [(8, 3), (8,), (4, 8), (4,), (2, 4), (2,)]
    assert MLP(3, [], 2, activation)(torch.randn(6, 3)).shape == (6, 2)


def test_an_unknown_activation_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'sine'") as caught:
        MLP(3, [8], 1, "sine")
    assert caught.value.field == "network.activation" and "tanh" in str(caught.value.expected)


def test_untrained_batch_normalisation_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"1\.0 is batch normalisation.*GroupNorm.*--weights"):
        refuse_untrained_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2))))
    refuse_untrained_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2)))


# ---- the user's own


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `own_net` in the current folder."""
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Linear(3, 1)\n\ndef text():\n    return 'net'\n"
        "\ndef late():\n    from own_part import Part\n    return Part(3, 1)\n"
    )
    (tmp_path / "own_part.py").write_text("from torch.nn import Linear as Part\n")
    (tmp_path / "own_broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "own_typo.py").write_text("def make(:\n")
    (tmp_path / "own_script.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    return tmp_path


def test_a_factory_is_found_in_the_current_folder(package: Path) -> None:
    before = list(sys.path)
    module = import_factory("own_net:make")()
    assert isinstance(module, nn.Linear) and sys.path == before
    assert Path(str(sys.modules["own_net"].__file__)).parent.resolve() == package.resolve()


@pytest.mark.usefixtures("package")
def test_a_factory_may_import_its_neighbours_when_it_is_called() -> None:
    before = list(sys.path)
    assert isinstance(import_factory("own_net:late")(), nn.Linear) and sys.path == before


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("own_net", "module:factory"),
        (":make", "module:factory"),
        ("own_net:", "module:factory"),
        ("no_such_net:make", "cannot be imported"),
        ("own_net:other", "cannot be imported"),
        ("own_broken:make", "a_package_that_is_not_there"),
        ("own_typo:make", "cannot be imported: SyntaxError"),
        ("own_script:make", "cannot be imported: SystemExit"),
        ("own_net:text", "must return a torch.nn.Module"),
        ("torch.nn:Linear", "makes no network: TypeError.*in_features"),
        ("own_net:__name__", "must be callable"),
    ],
)
def test_wrong_factories_are_refused(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        import_factory(reference)()
    assert caught.value.field == "network"


def test_weights_are_loaded_in_place(tmp_path: Path) -> None:
    source, target = mlp(), mlp()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


class Tied(nn.Module):
    """Two layers of the same weights, (B, 3) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out


@pytest.mark.parametrize("every_name", [False, True])
def test_tied_weights_are_loaded_as_they_are_saved(tmp_path: Path, every_name: bool) -> None:
    source, target = Tied(), Tied()
    if every_name:
        save_file({n: t.clone() for n, t in source.state_dict().items()}, tmp_path / "w.safetensors")
    else:
        save_model(source, str(tmp_path / "w.safetensors"))
    load_weights(target, tmp_path / "w.safetensors")
    assert target.b.weight is target.a.weight
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"not safetensors at all", "is no safetensors file"),
        ({"0.weight": torch.zeros(16, 5)}, "Missing key"),
        ({**mlp().state_dict(), "9.bias": torch.zeros(1)}, "Unexpected key"),
        ({**mlp().state_dict(), "0.weight": torch.zeros(2, 2)}, "size mismatch"),
        ({**mlp().state_dict(), "0.bias": torch.full((16,), torch.nan)}, r"NaN or infinity in 0\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, content: bytes | dict[str, Tensor] | None, message: str
) -> None:
    path = tmp_path / "w.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(content, path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_weights(mlp(), path)
    assert caught.value.field == "weights"
