"""The exported files compute what torch computes, for every kind of network and at sizes that the export never saw."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import AttributeProto, GraphProto, ModelProto, numpy_helper
from torch import Tensor, nn

from builder.decoder import WeightDecoder
from builder.export import ExportedNetwork, check_export, export_decoder, export_network, run_exported
from builder.network import FunctionalNetwork
from builder.onnx_traced import traced_batched
from model_store.errors import ConfigError
from model_store.manifest import ParameterSpec
from model_store.onnx_guard import refuse_external_data
from tests.networks import NETWORKS, Words, mlp

SIZES = [(1, 1), (2, 9), (6, 3)]

# (network, posterior, whether that leaves a trunk)
PARTS = [
    ("mlp", "4", True),
    ("mlp", "0", False),
    ("cnn", "7", True),
    ("cnn", "3|7", True),
    ("residual", "block2|head", True),
    ("batch_norm", "block2|head", True),
    ("transformer", r"encoder\.layers\.1|head", True),
]


def build(name: str, posterior: str = ".*") -> tuple[FunctionalNetwork, ExportedNetwork]:
    torch.manual_seed(7)
    factory, shape = NETWORKS[name]
    network = FunctionalNetwork(factory(), posterior)
    return network, export_network(network, torch.randn(4, *shape))


def case(name: str, network: FunctionalNetwork, samples: int, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples * 100 + rows)
    noise = torch.randn(samples, network.weights, generator=generator)
    return network.current() + 0.1 * noise, torch.randn(rows, *NETWORKS[name][1], generator=generator)


def one_by_one(network: FunctionalNetwork, thetas: Tensor, x: Tensor) -> np.ndarray:
    """The reference: one weight vector at a time, without vmap."""
    with torch.no_grad():
        return torch.stack([network(theta, x) for theta in thetas]).numpy()


def relative(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for a in node.attribute:
            if a.type == AttributeProto.GRAPH:
                yield from graphs(a.g)


def constants(model: ModelProto) -> list[np.ndarray]:
    return [numpy_helper.to_array(t) for g in graphs(model.graph) for t in g.initializer]


def holds(model: ModelProto, weights: Tensor) -> bool:
    """Whether one of the model's initialisers has just these values, in any layout."""
    want = np.sort(weights.numpy().ravel())
    return any(a.size == want.size and np.array_equal(np.sort(a.ravel()), want) for a in constants(model))


def axes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def assert_equal_to_torch(name: str, network: FunctionalNetwork, exported: ExportedNetwork) -> None:
    for samples, rows in SIZES:
        thetas, x = case(name, network, samples, rows)
        assert relative(run_exported(exported, network, thetas, x), one_by_one(network, thetas, x)) < 1e-5


def assert_self_contained(exported: ExportedNetwork) -> None:
    for data in filter(None, [exported.base, exported.trunk]):
        refuse_external_data(data, "file.onnx")


@pytest.mark.parametrize("name", NETWORKS)
def test_all_weights_random(name: str) -> None:
    """ONNX equals torch, and the files keep the manifest's contract."""
    network, exported = build(name)
    assert_equal_to_torch(name, network, exported)
    assert_self_contained(exported)
    spec, base = exported.spec, onnx.load_from_string(exported.base)
    assert exported.trunk is None
    assert spec.trunk_outputs == []
    assert spec.form == ("batched" if name == "mlp" else "scan")
    assert (spec.weights, spec.fixed_weights) == (network.weights, 0)
    assert spec.parameters == network.parameters
    inputs = {i.name: axes(i) for i in base.graph.input}
    assert inputs == {"inputs": ["B", *NETWORKS[name][1]]} | {p.input: ["S", *p.shape] for p in spec.parameters}
    assert [(o.name, axes(o)) for o in base.graph.output] == [("outputs", ["S", "B", spec.outputs])]
    assert max(o.version for o in base.opset_import) <= 21
    assert base.ir_version <= 11
    assert len(exported.base) < 250_000


@pytest.mark.parametrize(("name", "posterior", "has_trunk"), PARTS)
def test_a_part_random(name: str, posterior: str, has_trunk: bool) -> None:
    """ONNX equals torch; the trunk knows no samples, and the base no weights of the trunk."""
    network, exported = build(name, posterior)
    assert_equal_to_torch(name, network, exported)
    assert_self_contained(exported)
    assert (exported.trunk is not None) == has_trunk
    base = onnx.load_from_string(exported.base)
    given = exported.spec.trunk_outputs if has_trunk else ["inputs"]
    assert [i.name for i in base.graph.input] == [*given, *(p.input for p in network.parameters)]
    if exported.trunk is None:
        return
    trunk = onnx.load_from_string(exported.trunk)
    assert [i.name for i in trunk.graph.input] == ["inputs"]
    assert [o.name for o in trunk.graph.output] == exported.spec.trunk_outputs
    for output in trunk.graph.output:
        assert axes(output)[0] == "B"
        assert "S" not in axes(output)
    fixed = [w for w in network.fixed.values() if w.is_floating_point() and w.ndim > 1]
    assert not any(holds(base, w) for w in fixed)
    assert sum(a.size for a in constants(trunk) if a.dtype == np.float32) >= sum(w.numel() for w in fixed)
    assert len(exported.base) < 150_000


def test_a_last_layer_posterior_makes_a_tiny_base_and_a_described_network() -> None:
    network, exported = build("cnn", "7")
    assert exported.trunk is not None
    assert len(exported.base) < 6_000
    assert len(exported.trunk) < 4 * network.fixed_weights + 10_000
    assert exported.spec.form == "batched"
    assert exported.spec.outputs == 3
    assert exported.spec.weights == 6 * 3 + 3
    assert exported.spec.fixed_weights == 4 * 9 + 4 + 6 * 4 * 9 + 6
    assert exported.spec.description.startswith("Sequential: 2 Conv2d, 2 ReLU")


def test_the_statistics_of_batch_normalisation_are_constants() -> None:
    network, exported = build("batch_norm", "head")
    before = run_exported(exported, network, *case("batch_norm", network, 2, 3))
    assert relative(before, one_by_one(network, *case("batch_norm", network, 2, 3))) < 1e-5
    untrained = {"running_mean": 0.0, "running_var": 1.0}
    for name, buffer in network.fixed.items():
        if (value := untrained.get(name.rpartition(".")[2])) is not None:
            network.fixed[name] = torch.full_like(buffer, value)
    without = one_by_one(network, *case("batch_norm", network, 2, 3))
    assert relative(before, without) > 0.01


@pytest.mark.parametrize("posterior", [".*", "head"])
def test_token_ids_are_taken_as_inputs(posterior: str) -> None:
    torch.manual_seed(1)
    network = FunctionalNetwork(Words(), posterior)
    exported = export_network(network, torch.randint(0, 11, (3, 7)).float())
    thetas = network.current() + 0.1 * torch.randn(4, network.weights)
    x = torch.randint(0, 11, (6, 7)).float()
    assert relative(run_exported(exported, network, thetas, x), one_by_one(network, thetas, x)) < 1e-5


def test_an_example_of_one_row_suffices() -> None:
    network = FunctionalNetwork(mlp())
    exported = export_network(network, torch.randn(1, 5))
    assert check_export(network, exported, torch.randn(8, 5)) < 1e-6


def test_the_export_is_a_function_of_the_network() -> None:
    network, exported = build("mlp", "4")
    again = export_network(network, torch.randn(9, 5))
    assert again == exported


def test_the_export_is_silent_and_leaves_the_settings_of_torch_alone(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    network = FunctionalNetwork(mlp())
    fused, random = torch.backends.mha.get_fastpath_enabled(), torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        export_network(network, torch.zeros(2, 5))
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert torch.equal(torch.get_rng_state(), random)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")


def test_an_output_next_to_nought_is_no_difference() -> None:
    """Of rounding errors of sums that cancel, which are large beside what is left of these alone."""
    torch.manual_seed(2)
    network = FunctionalNetwork(nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1)))
    x = torch.linspace(-3, 3, 500)[:, None]
    exported = export_network(network, x)
    # The weights that the first row is asked with.
    theta = network.current()
    spread = 0.1 * theta.abs() + 0.02 * theta.square().mean().sqrt()
    theta = theta + torch.randn(1, network.weights, generator=torch.Generator().manual_seed(0)) * spread

    def output(at: Tensor) -> Tensor:
        with torch.no_grad():
            return network.batched(theta, at)[0, :, 0]

    place = int((output(x).sign().diff() != 0).nonzero()[0])
    near = torch.linspace(float(x[place]), float(x[place + 1]), 10_000)[:, None]
    root = near[output(near).abs().argmin()][None]
    assert 0 < output(root).abs() < 1e-5 * output(x).abs().max()
    assert check_export(network, exported, torch.cat([root, x])) < 1e-6


def test_check_export_refuses_files_of_other_weights() -> None:
    _, exported = build("cnn", "7")
    torch.manual_seed(8)
    network = FunctionalNetwork(NETWORKS["cnn"][0](), "7")
    with pytest.raises(ConfigError, match="differs from torch by") as caught:
        check_export(network, exported, torch.randn(3, 1, 10, 10))
    assert caught.value.code == "export_differs"


class Returns(nn.Module):
    """A linear layer and something done to its outputs."""

    def __init__(self, then: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.then = then

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.linear(x)
        match self.then:
            case "flat":
                return h.flatten()
            case "pair":
                return h, h
            case "fixed batch":
                return h.reshape(5, 4)
            case "branch":
                return h if h.sum() > 0 else -h
            case "unknown operator":
                return torch.special.bessel_j0(h)
            case "infinite":
                return h / 0
        raise AssertionError(self.then)


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("flat", "one row of outputs for each input row"),
        ("pair", "one row of outputs for each input row"),
        ("fixed batch", "cannot be exported to ONNX"),
        ("branch", "cannot be exported to ONNX.*data-dependent"),
        ("unknown operator", "cannot be exported to ONNX.*bessel_j0"),
        ("infinite", "differs from torch by nan"),
    ],
)
def test_networks_that_cannot_be_exported_are_refused_by_name(then: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        export_network(FunctionalNetwork(Returns(then)), torch.ones(5, 4))
    assert caught.value.field == "network"


class Cast(nn.Module):
    """A layer that computes in half precision, which torch cannot export side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = self.linear(x)
        return out.float()


def test_an_export_that_fails_leaves_no_transform_open() -> None:
    with pytest.raises(torch.onnx.errors.OnnxExporterError):
        traced_batched(FunctionalNetwork(Cast()), torch.randn(5, 4))
    torch.zeros(2).requires_grad_()  # which no transform allows


def test_inputs_of_the_wrong_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not take inputs of shape \(3, 7\)"):
        export_network(FunctionalNetwork(mlp()), torch.zeros(3, 7))


@pytest.mark.parametrize(("anchors", "rank"), [(1, 1), (3, 4)])
def test_the_decoder_equals_torch(anchors: int, rank: int) -> None:
    torch.manual_seed(3)
    decoder = WeightDecoder(anchors, dimension=5, hidden=8, rank=rank, weights=23)
    decoder.set_head(torch.randn(anchors, 23), torch.randn(anchors, rank, 23))
    parameters = [
        ParameterSpec(name="a", input="weights.a", shape=[3, 4], offset=0),
        ParameterSpec(name="b", input="weights.b", shape=[11], offset=12),
    ]
    data = export_decoder(decoder, parameters)
    refuse_external_data(data, "decoder.onnx")
    model = onnx.load_from_string(data)
    assert {i.name: len(axes(i)) for i in model.graph.input} == {"latents": 2, "anchors": 1}
    heads = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.startswith("head.")}
    head = np.concatenate([heads[f"head.{p.input}"] for p in parameters], axis=1)
    assert np.array_equal(head, decoder.head.numpy())
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    for samples in (1, 2, 17):
        latents, own = torch.randn(samples, 5), torch.randint(anchors, (samples,))
        latents[0] = 0.0  # the anchor itself
        feeds = {"latents": latents.numpy(), "anchors": own.numpy()}
        coefficients, *parts = session.run(["coefficients", *(p.input for p in parameters)], feeds)
        weights = np.concatenate(parts, axis=1)
        with torch.no_grad():
            want_coefficients, want = decoder(latents, own)
        assert relative(weights, want.numpy()) < 1e-5
        assert relative(coefficients, want_coefficients.numpy()) < 1e-5
        assert relative(coefficients @ head, weights) < 1e-6


def test_a_decoder_too_large_for_one_file_is_refused() -> None:
    decoder = WeightDecoder(1, dimension=2, hidden=2, rank=1, weights=4)
    decoder.head = torch.zeros(1).expand(2, 2**28)
    with pytest.raises(ConfigError, match="more than one ONNX file holds"):
        export_decoder(decoder, [ParameterSpec(name="a", input="weights.a", shape=[2**28], offset=0)])
