"""The serving benchmark: what it serves is right in every form, and how times become goals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from benchmarks.networks import lenet5
from benchmarks.serving import page
from benchmarks.serving.__main__ import main
from benchmarks.serving.limits import LIMITS, Limit, What, judge_limits, measure_limit
from benchmarks.serving.measure import by_turns
from benchmarks.serving.models import CASES, Case, rows_of, serve_beside
from benchmarks.serving.tables import judge, table
from builder.network import MLP, FunctionalNetwork
from model_store.manifest import BASE_FILE, MIXING, RegressionTarget
from model_store.plan import draw_latents
from service.model import Asked, ServedModel

MAKERS: dict[str, Case] = {
    "regression": Case(lambda: MLP(13, [50], 1, "tanh"), (13,), 0),
    "wide": Case(lambda: MLP(300, [256, 20], 4), (300,), 4),
    "mixed": Case(lambda: MLP(300, [256, 20], 4), (300,), 4, rank=5),
    "images": Case(lenet5, (1, 28, 28), 10),
}


def exact(make: Callable[[], nn.Module], thetas: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Outputs (S, B, O) in float64."""
    network = FunctionalNetwork(make().double())
    with torch.no_grad():
        return torch.stack(
            [network(torch.from_numpy(t).double(), torch.from_numpy(x).double()) for t in thetas]
        ).numpy()


def all_weights(model: ServedModel, decoded: np.ndarray) -> np.ndarray:
    """The weights (S, P) that decoded numbers stand for, those of a mixed first layer with them."""
    network = model.manifest.network
    assert bool(network.mixed) == (MIXING in [p.input for p in network.parameters])
    if not network.mixed:
        return decoded
    ((name, shape),) = network.mixed.items()
    graph = onnx.load_from_string(model.bundle.read(BASE_FILE)).graph
    (columns,) = (numpy_helper.to_array(t) for t in graph.initializer if t.name == f"{name}.head")
    (mixing,) = (p for p in network.parameters if p.input == MIXING)
    shares, others = decoded[:, mixing.offset :], decoded[:, : mixing.offset]
    first: np.ndarray = shares.astype(np.float64) @ columns.reshape(shares.shape[1], -1).astype(np.float64)
    assert first.shape[1] == np.prod(shape)
    return np.concatenate([first, others], axis=1)


@pytest.fixture(scope="module", params=MAKERS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, ServedModel, ort.InferenceSession]:
    """A network, the model that holds it, and the deterministic run of it."""
    case = MAKERS[request.param]
    return case, *serve_beside(case, tmp_path_factory.mktemp("store"))


def test_what_is_served_is_what_float64_gives(served: tuple[Case, ServedModel, ort.InferenceSession]) -> None:
    case, model, det = served
    samples = 6
    latents, anchors = draw_latents(model.plan("predict"), model.nodes, samples, 1)
    decoded = model.engine.decode(latents, anchors)
    weights = model.engine.bind(decoded, anchors)
    thetas = all_weights(model, model.engine.joined(decoded))
    for rows in (1, 3, 70):
        x = rows_of(case, rows)
        found = model.predict(weights, x, Asked(0.9))
        outputs = exact(case.make, thetas, x)
        if isinstance(model.manifest.target, RegressionTarget):
            each, own = outputs[..., 0], found["epistemic_variance"]
        else:
            each = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
            own = found["variance"]
        assert np.abs(found["mean"] - each.mean(0)).max() < 1e-4 * np.abs(each.mean(0)).max()
        assert np.abs(own - each.var(0)).max() < 1e-3 * each.var(0).max()
        # The deterministic network is the anchor, of the same weights in the same order.
        anchor = all_weights(model, model.engine.joined(model.engine.decode(np.zeros_like(latents[:1]), anchors[:1])))
        assert np.allclose(det.run(None, {"inputs": x})[0], exact(case.make, anchor, x)[0], rtol=1e-4, atol=1e-5)


def test_answers_are_the_same_to_the_bit(served: tuple[Case, ServedModel, ort.InferenceSession]) -> None:
    """On every server, whatever it was asked before and, but for convolutions, however many threads it has."""
    case, model, _ = served
    many = 2 if len(case.shape) == 1 else 1
    latents, anchors = draw_latents(model.plan("predict"), model.nodes, 8, 1)
    found: dict[int, list[np.ndarray]] = {1: [], 2: [], 65: []}
    for threads, order in ((1, (1, 2, 65)), (many, (65, 1, 2)), (1, (2, 1, 65, 1, 2))):
        server = ServedModel(model.bundle, threads=threads)
        weights = server.engine.bind(server.engine.decode(latents, anchors), anchors)
        for rows in order:
            found[rows].append(server.predict(weights, rows_of(case, rows), Asked(0.9))["variance"])
    assert all(np.array_equal(f[0], other) for f in found.values() for other in f[1:])


def test_every_call_gets_its_turn() -> None:
    calls = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1

    times = by_turns({"a": lambda: count("a"), "b": lambda: count("b")}, 0.0)
    assert times.keys() == calls.keys()
    assert min(calls.values()) >= 3
    assert min(times.values()) > 0


def run(name: str, rows: int, **times: float) -> dict[str, Any]:
    plain = {"det": 10.0, "network": 15.0, "statistics": 20.0, "predict": 40.0, "read": 10.0}
    return {"set": name, "rows": rows, "samples": 32, **plain, **times}


def test_goals_are_of_single_rows() -> None:
    small, wide = "MLP 13-50-1", "MLP 784-256-128-10"
    found = [run(n, b) for n in (small, wide) for b in (1, 64)]
    assert [g.state for g in judge(found)] == ["met"]
    assert [g.state for g in judge([run(small, 64, statistics=51.0), run(wide, 1)])] == ["met"]
    assert [g.state for g in judge([run(small, 1, statistics=51.0)])] == ["not met"]
    assert [g.state for g in judge([])] == ["not measured"]
    header, rows = table(found)
    assert {len(r) for r in rows} == {len(header)}


@pytest.mark.parametrize("name", CASES)
def test_every_network_can_be_served(name: str) -> None:
    case = CASES[name]
    network = FunctionalNetwork(case.make(), case.posterior)
    outputs = network(network.current(), torch.from_numpy(rows_of(case, 2)))
    assert outputs.shape == (2, max(case.classes, 1))
    assert (network.fixed_weights > network.weights) == ("last" in name)


def test_limits_are_bounds_from_their_own_side() -> None:
    assert len({limit.text for limit in LIMITS}) == len(LIMITS)
    for factor in (1.01, 0.99):
        found = [{"set": limit.text, "ratio": factor * limit.bound} for limit in reversed(LIMITS)]
        for goal, limit in zip(judge_limits(found), LIMITS, strict=True):
            assert (goal.state == "met") == ((limit.what in ("read", "sgemm")) == (factor > 1))
    assert {g.state for g in judge_limits([])} == {"not measured"}


@pytest.mark.parametrize("what", ["det", "read", "sgemm", "hot"])
def test_every_limit_can_be_measured(what: What) -> None:
    found = measure_limit(Limit("MLP 13-50-1", 2, 3, what, 1.0), 0.01)
    assert set(found) == ({"ratio", "own"} if what == "sgemm" else {"ratio"})
    assert all(0 < share < 1000 for share in found.values())


def test_the_command_measures_and_its_page_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, target = tmp_path / "serving.json", tmp_path / "performance.md"
    # A working tree that others write to must not end the run.
    monkeypatch.setattr("benchmarks.results.revision", lambda _: "a")
    arguments = ["--networks", "MLP 13-50-1", "--rows", "1", "--seconds", "0.05", "--output", str(results)]
    assert main(arguments) == 0
    assert "MLP 13-50-1" in capsys.readouterr().out
    measured, limit = json.loads(results.read_text())["runs"]
    assert limit["set"] in {each.text for each in LIMITS} and limit["ratio"] > 0
    assert 0 < measured["det"] < measured["predict"]
    assert 0 < measured["network"] < measured["predict"]
    assert page.main([str(tmp_path), str(target)]) == 0
    text = target.read_text()
    assert "| MLP 13-50-1 | 1 |" in text
    assert "not measured" in text
