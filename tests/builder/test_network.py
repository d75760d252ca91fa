"""A module as a function of a flat weight vector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from builder.network import MLP, FunctionalNetwork, NetworkFactory
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


@pytest.mark.parametrize(("channels", "stride", "plain"), [(3, 2, True), (3, 1, False), (16, 2, False)])
def test_images_stay_as_they_are_where_torch_would_overwrite_memory(channels: int, stride: int, plain: bool) -> None:
    """As for the shortcut of a narrow ResNet: the gradient of its weights ends or hangs the process."""
    module = nn.Sequential(nn.Conv2d(channels, 8, 1, stride), nn.Flatten(), nn.Linear(8 * (8 // stride) ** 2, 2))
    seen = []
    module[0].register_forward_pre_hook(lambda _module, taken: seen.append(taken[0].is_contiguous()))
    network = FunctionalNetwork(module)
    network.batched(several(network, 2), torch.randn(5, channels, 8, 8))
    assert seen == [plain, plain]


def test_a_weight_may_be_a_single_number() -> None:
    class Scaled(MLP):
        def __init__(self) -> None:
            super().__init__(3, [4], 2)
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.scale.exp() * super().forward(x)
            return out

    network = FunctionalNetwork(Scaled())
    x, theta = torch.randn(4, 3), several(network, 3)
    assert next(p.shape for p in network.parameters if p.name == "scale") == []
    expected = torch.stack([network(t, x) for t in theta])
    torch.testing.assert_close(network.batched(theta, x), expected)
    torch.testing.assert_close(network(network.current(), x), network.module(x))


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


def test_frozen_parameters_are_random_only_where_no_others_are_named() -> None:
    module = mlp()
    module[0].requires_grad_(False)
    names = {posterior: [p.name for p in FunctionalNetwork(module, posterior).parameters] for posterior in (".*", "0")}
    assert names == {".*": ["2.weight", "2.bias", "4.weight", "4.bias"], "0": ["0.weight", "0.bias"]}
    x, network = torch.randn(3, 5), FunctionalNetwork(module)
    torch.testing.assert_close(network.batched(network.current()[None], x)[0], module(x))


def test_parameters_that_hold_nothing_are_not_random() -> None:
    module = mlp()
    module.register_parameter("nothing", nn.Parameter(torch.empty(0, 3)))
    network, x = FunctionalNetwork(module), torch.randn(3, 5)
    assert [p.name for p in network.parameters] == [n for n, _ in module.named_parameters() if n != "nothing"]
    torch.testing.assert_close(network.batched(network.current()[None], x)[0], module(x))


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
        return {"pair": (out, out), "named": {"logits": out}, "flat": out[:, 0], "fewer": out[:1]}[self.kind]


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [("pair", " .*the first of"), ("named", r" .*out\['logits'\]"), ("flat", r" .*\.unsqueeze\(1\)"), ("fewer", "$")],
)
def test_outputs_of_another_shape_are_refused(kind: str, way_out: str) -> None:
    network = FunctionalNetwork(Odd(kind))
    with pytest.raises(ConfigError, match=f"one row of outputs for each input row.{way_out}") as caught:
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
