"""Features of a network, and the detectors that look at them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from builder.calibration import DecodedPosterior
from builder.config import CalibrationConfig
from builder.detection import Detection, fit_detectors
from builder.export import export_features, export_network
from builder.exported import Session
from builder.features import FeatureNetworks, features_of
from builder.network import FunctionalNetwork
from model_store.detection import ClassMahalanobis, Detectors, NearestRows, Scaler
from model_store.manifest import LatentPlan, TensorInput
from tests.builder.decoders import Identity
from tests.builder.walked import two_rounds

Array = NDArray[Any]
SHAPE = (1, 6, 6)
ROWS, CLASSES, ANCHORS = 240, 3, 4
INPUTS = TensorInput(shape=list(SHAPE))


def convolutional(outputs: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, outputs)
    )


class Scaled(nn.Module):
    """Outputs that are not those of the last linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = convolutional()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = 2 * self.inner(x)
        return out


def images(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of three classes, each with its own pattern, and the classes."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(9).normal(size=(CLASSES, *SHAPE))
    y = rng.integers(CLASSES, size=rows)
    x = patterns[y] + 0.5 * rng.normal(size=(rows, *SHAPE))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def test_features_are_what_the_last_linear_layer_takes() -> None:
    network = FunctionalNetwork(convolutional())
    x, _ = images(7)
    theta = network.current() + 0.1
    other = convolutional()
    with torch.no_grad():
        for p in other.parameters():
            p += 0.1
        expected = other[:-1](x)
    found = features_of(network, theta, x)
    assert found is not None
    assert torch.allclose(found, expected, atol=1e-6)
    assert not any(m._forward_hooks for m in network.module.modules())


@pytest.mark.parametrize("module", [Scaled(), nn.Sequential(nn.Conv2d(1, 3, 6), nn.Flatten())])
def test_some_networks_have_none(module: nn.Module) -> None:
    network = FunctionalNetwork(module)
    assert features_of(network, network.current(), images(3)[0]) is None


def test_the_exported_network_gives_the_same() -> None:
    network = FunctionalNetwork(convolutional())
    networks, (x, _) = FeatureNetworks(network, network.current() - torch.tensor([[0.05], [0.1]])), images(9)
    session = ort.InferenceSession(export_features(networks, x[:4]), providers=["CPUExecutionProvider"])
    (found,) = session.run(["features"], {"inputs": x.numpy()})
    expected = networks.served(x)
    assert expected is not None
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("posterior", "operators"),
    [(r"5\..*", {"Identity"}), (r"[35]\..*", {"Gemm", "Relu", "Identity"})],
)
def test_they_are_made_of_what_the_trunk_gives(posterior: str, operators: set[str]) -> None:
    network = FunctionalNetwork(convolutional(), posterior)
    networks, (x, _) = FeatureNetworks(network, network.current()[None] + 0.1), images(9)
    exported = export_network(network, x[:4])
    assert exported.trunk is not None
    data = export_features(networks, x[:4], exported)
    assert {n.op_type for n in onnx.load_from_string(data).graph.node} == operators
    given = Session(exported.trunk).run({"inputs": x.numpy()})
    expected = networks.served(x)
    assert expected is not None
    assert Session(data).run(given)["features"] == pytest.approx(expected.numpy(), abs=1e-5)


def test_they_are_made_of_the_rows_where_the_trunk_gives_too_little() -> None:
    """As that of another network does, whose values have other names."""
    network = FunctionalNetwork(convolutional(), r"5\..*")
    networks, (x, _) = FeatureNetworks(network, network.current()[None]), images(9)
    exported = export_network(network, x[:4])
    other = replace(exported, spec=exported.spec.model_copy(update={"trunk_outputs": ["unknown"]}))
    data = export_features(networks, x[:4], other)
    assert list(Session(data).inputs) == ["inputs"]


def test_they_are_made_of_the_rows_where_the_trunk_has_other_weights() -> None:
    network = FunctionalNetwork(convolutional(), r"5\..*")
    networks, (x, _) = FeatureNetworks(network, network.current()[None]), images(9)
    module = convolutional()
    with torch.no_grad():
        module[0].weight += 0.1
    data = export_features(networks, x[:4], export_network(FunctionalNetwork(module, r"5\..*"), x[:4]))
    assert list(Session(data).inputs) == ["inputs"]


# ---- the detectors


def fitted(module: nn.Module, y: Tensor, **options: Any) -> tuple[Detection, FeatureNetworks, Tensor, Tensor]:
    """For networks of random weights, judged on the rows that each lacks."""
    network = FunctionalNetwork(module)
    rng = np.random.default_rng(0)
    nodes = rng.normal(size=(ANCHORS, 4, 1, network.weights)).astype(np.float32).repeat(2, axis=2)
    posterior = DecodedPosterior(network, Identity(), 0.3 * nodes)
    networks = FeatureNetworks(network, torch.from_numpy(0.3 * nodes[:, 0, 0]))
    member = two_rounds(len(y), ANCHORS)
    plan = LatentPlan(name="predict", samples=32, drift_scale=1.0)
    x, _ = images(len(y))
    found = fit_detectors(posterior, plan, 1.0, x, y, member, INPUTS, CalibrationConfig(**options), networks)
    return found, networks, x, member


def test_rows_are_scored_by_a_network_that_lacks_them() -> None:
    _, y = images(ROWS)
    found, networks, x, member = fitted(convolutional(), y)
    assert found.described.detectors == ["mutual_information", "nearest_features", "mahalanobis_features"]
    nearest, classes = np.zeros(ROWS), np.zeros(ROWS)
    for i in range(ROWS):
        a = int((~member[:, i]).nonzero()[0])
        f = features_of(networks.network, networks.anchors[a], x)
        assert f is not None
        seen = f[member[a]].numpy()
        scaler = Scaler.fit(seen, np.ones(8, dtype=bool))
        row = scaler(f[i : i + 1].numpy())
        nearest[i] = NearestRows(scaler(seen).astype(np.float32)).scores(row)[0]
        classes[i] = ClassMahalanobis.fit(scaler(seen), y[member[a]].numpy()).scores(row)[0]
    assert found.arrays["ood_scores"][1] == pytest.approx(np.sort(nearest), abs=1e-3)
    assert found.arrays["ood_scores"][2] == pytest.approx(np.sort(classes), abs=1e-6)


def test_a_server_compares_with_the_rows_of_the_first_network() -> None:
    _, y = images(ROWS)
    found, networks, x, member = fitted(convolutional(), y)
    own, seen = networks.served(x), member[0]
    assert own is not None
    detectors = Detectors(INPUTS, found.described, found.arrays)
    assert detectors.features == 8 and detectors.ask_the_network
    assert found.arrays["ood_center"] == pytest.approx(own[seen].numpy().mean(axis=0), abs=1e-6)
    assert found.arrays["ood_means"].shape == (CLASSES, 8) and found.arrays["ood_rows"].shape == (int(seen.sum()), 8)
    assert detectors.judge(x.numpy(), np.zeros(ROWS), own.numpy()).columns is None

    # What is far from all classes is known for it, as nothing of the network's own says.
    strange = networks.served(4 * images(50, seed=1)[0].roll(3, dims=-1))
    assert strange is not None
    familiar = np.zeros(50)
    said = detectors.judge(x.numpy()[:50], familiar, strange.numpy()).detectors
    assert all(np.median(said[name][1]) < 0.05 for name in ("nearest_features", "mahalanobis_features"))


def test_a_regression_has_one_middle() -> None:
    found, _, _, _ = fitted(convolutional(outputs=1), torch.randn(ROWS))
    assert found.described.detectors == ["epistemic_to_noise", "nearest_features", "mahalanobis_features"]
    assert found.arrays["ood_means"].shape == (1, 8)


def test_no_features_are_kept_where_none_shall_be() -> None:
    _, y = images(ROWS)
    found, _, _, _ = fitted(convolutional(), y, reference_rows=0)
    assert found.described.detectors == ["mutual_information", "mahalanobis_features"]
    assert "ood_rows" not in found.arrays


def test_without_features_the_network_alone_is_asked() -> None:
    _, y = images(ROWS)
    found, _, _, _ = fitted(Scaled(), y)
    assert found.described.detectors == ["mutual_information"]
    assert set(found.arrays) == {"ood_scores", "ood_combined"}
    assert Detectors(INPUTS, found.described, found.arrays).features == 0
