"""Convolutions in the layout in which ONNX Runtime convolves fastest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from benchmarks.networks import lenet5, resnet20
from benchmarks.serving.models import Case, rows_of, serve
from builder.export import export_network
from builder.exported import ExportedNetwork, Runner
from builder.network import FunctionalNetwork
from builder.onnx_blocked import DOMAIN
from model_store import layout
from model_store.layout import BLOCKS
from model_store.manifest import BLOCKED_FILE, BLOCKS_FILE
from model_store.store import ModelStore
from service.engine import Engine

SIZES = [(1, 1), (5, 1), (1, 3), (6, 9)]


class Branches(nn.Module):
    """A value in blocks that a convolution, a sum and a pool read, and padding, strides and dilations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=(2, 1), dilation=(2, 1), stride=(1, 2), bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.third, self.last = nn.Conv2d(32, 32, 1), nn.Linear(32 * 4 * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.second(torch.relu(self.first(x))))
        h = torch.relu(self.third(h) + self.norm(h)) + torch.tanh(h)
        return self.last(nn.functional.max_pool2d(h, 2).flatten(1))


def network(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


# The network, and the convolutions of the loop that are in blocks and that are not.
BLOCKED: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "pooled": (
        network(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(),
            nn.Linear(5, 1),
        ),
        1, 0,
    ),
    "pooled before the function": (
        network(
            nn.Conv2d(2, 5, 3, bias=False), nn.MaxPool2d(2, padding=1), nn.ReLU(), nn.Conv2d(5, 16, 2),
            nn.MaxPool2d(3, stride=1, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2),
        ),
        1, 0,
    ),
    "averaged": (
        network(
            nn.Conv2d(2, 16, 3, stride=2, padding=1), nn.AvgPool2d(2), nn.Conv2d(16, 16, 2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
        ),
        1, 0,
    ),
    "normalised": (
        network(
            nn.Conv2d(2, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.GroupNorm(4, 32),
            nn.Conv2d(32, 16, 1), nn.Flatten(), nn.Linear(256, 2),
        ),
        2, 0,
    ),
    "other widths": (
        network(
            nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.Conv2d(16, 9, 1), nn.Conv2d(9, 16, 1),
            nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(256, 2),
        ),
        1, 3,
    ),
    "groups": (
        network(
            nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
        ),
        0, 1,
    ),
    "branches": (Branches, 2, 0),
}  # fmt: skip


def exported(make: Callable[[], nn.Module], posterior: str = ".*") -> ExportedNetwork:
    """The export of a network, every file of which was held against torch in float64."""
    torch.manual_seed(3)
    network = FunctionalNetwork(make().eval(), posterior)
    found = export_network(network, torch.randn(4, 2, 8, 8))
    for samples, rows in SIZES:
        thetas = network.current() + 0.2 * torch.randn(samples, network.weights)
        x = torch.randn(rows, 2, 8, 8)
        outputs = Runner(found, network)(thetas, x)
        with torch.no_grad():
            network.module.double()
            exact = FunctionalNetwork(network.module, posterior)
            want = torch.stack([exact(theta, x.double()) for theta in thetas.double()]).numpy()
            network.module.float()
        assert len(outputs) == 1 + (found.blocked is not None)
        for got in outputs:
            assert got.shape == want.shape
            assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    return found


def loops(data: bytes) -> list[list[onnx.NodeProto]]:
    """The nodes of the loop over the rows, and of that over the samples."""
    scans = [n for n in onnx.load_from_string(data).graph.node if n.op_type == "Scan"]
    return [[n for a in scan.attribute if a.name == "body" for n in a.g.node] for scan in scans]


@pytest.mark.parametrize("name", BLOCKED)
def test_convolutions_are_in_blocks_where_they_fit(name: str) -> None:
    make, fitting, others = BLOCKED[name]
    found = exported(make)
    assert found.blocked is not None
    assert found.blocks is not None
    shared, own_domains = ([n.domain for n in nodes if n.op_type == "Conv"] for nodes in loops(found.blocked))
    assert shared == [DOMAIN]
    assert (own_domains.count(DOMAIN), own_domains.count("")) == (fitting, others)
    outer = onnx.load_from_string(found.blocked).graph
    # Each weight enters once, in one layout, and those that are laid out are what the other file makes.
    own = [i.name for i in outer.input if i.name.startswith("weights.")]
    assert sorted(n.removesuffix(BLOCKS) for n in own) == sorted(p.input for p in found.spec.parameters)
    made = onnx.load_from_string(found.blocks).graph.output
    assert {n for n in own if n.endswith(BLOCKS)} == {o.name for o in made}
    assert len(made) > fitting


@pytest.mark.parametrize("name", ["first of many inputs", "no linear layer"])
def test_other_networks_do_without(name: str) -> None:
    layers: dict[str, list[nn.Module]] = {
        "first of many inputs": [nn.Conv2d(2, 9, 1), nn.Conv2d(9, 9, 1), nn.Flatten(), nn.Linear(576, 2)],
        "no linear layer": [nn.Conv2d(2, 16, 3), nn.Conv2d(16, 16, 6), nn.Flatten()],
    }
    fixed = name == "first of many inputs"
    found = exported(network(*layers[name]), "[123]" if fixed else ".*")
    assert (found.blocked, found.blocks) == (None, None)
    assert {BLOCKED_FILE, BLOCKS_FILE} & found.files.keys() == set()


def test_they_are_left_out_where_it_is_not_known_that_there_are_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout.platform, "machine", lambda: "aarch64")
    assert exported(BLOCKED["pooled"][0]).blocked is None


def test_what_follows_the_last_convolution_is_done_for_all_samples_at_once() -> None:
    found = exported(BLOCKED["pooled"][0])
    assert found.blocked is not None
    assert [n.op_type for n in loops(found.blocked)[1]] == ["Conv"]


CASES = {"LeNet-5": Case(lenet5, (1, 28, 28), 10), "ResNet-20": Case(resnet20, (3, 32, 32), 10)}


@pytest.mark.parametrize("name", CASES)
def test_the_server_uses_them_only_where_they_are_right(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    model = serve(case, tmp_path)
    bundle = ModelStore(tmp_path).open("random")
    torch.manual_seed(0)
    exact = FunctionalNetwork(case.make().eval().double())
    anchors = np.zeros(3, np.int64)
    parts = model.engine.decode(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), anchors)
    x = rows_of(case, 2)
    with torch.no_grad():
        thetas = torch.from_numpy(model.engine.joined(parts)).double()
        want = torch.stack([exact(theta, torch.from_numpy(x).double()) for theta in thetas])

    def outputs(engine: Engine) -> tuple[np.ndarray, set[str]]:
        weights = engine.bind(parts, anchors)
        (found,) = engine.outputs(weights, x, 8192)
        assert np.abs(found - want.numpy()).max() < 1e-5 * want.abs().max()
        return found, {n for n in weights.arrays if n.endswith(BLOCKS)}

    by_blocks, laid_out = outputs(Engine(bundle))
    assert laid_out
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(layout.platform, "machine", lambda: "aarch64")
        plain, none = outputs(Engine(bundle))
    assert none == set()
    assert not np.array_equal(plain, by_blocks)
    # As a processor with other blocks than the file is for would.
    with monkeypatch.context() as elsewhere:
        run = ort.InferenceSession.run

        def turned(self: ort.InferenceSession, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            found: list[np.ndarray] = run(self, names, feeds)
            return [a[..., ::-1].copy() if n.endswith(BLOCKS) else a for n, a in zip(names, found, strict=True)]

        elsewhere.setattr(ort.InferenceSession, "run", turned)
        again, none = outputs(Engine(bundle))
    assert none == set()
    assert np.array_equal(again, plain)
