"""Draws from a latent plan: the same everywhere, stratified, and on the trajectories."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.manifest import LatentPlan
from model_store.plan import draw_latents

ANCHORS, TRAJECTORIES, STEPS, DIMENSION = 3, 4, 5, 2
GOLDEN_ANCHORS = [1, 2, 0, 1, 2]
GOLDEN_TRAJECTORIES = [7.0, 8.0, 0.0, 4.0, 9.0]
GOLDEN_POSITIONS = [4.011547, 3.241549, 0.111426, 1.564415, 2.502379]
GOLDEN_DIGEST = "62ab4b0366699dc815a71885813a5df246f575356a1e7fecc4452b09c84e59c5"


def plan(start: float = 0.0, stop: float = 1.0) -> LatentPlan:
    return LatentPlan(name="predict", samples=32, start=start, stop=stop, drift_scale=0.1)


def labelled_nodes(anchors: int = ANCHORS, trajectories: int = TRAJECTORIES, steps: int = STEPS) -> np.ndarray:
    """Nodes whose latents say what they are: (trajectory's number, position on it), exact in float32."""
    nodes = np.zeros((anchors, trajectories, steps + 1, 2), dtype=np.float32)
    nodes[..., 0] = np.arange(anchors * trajectories).reshape(anchors, trajectories, 1)
    nodes[..., 1] = np.arange(steps + 1)
    return nodes


cases = st.fixed_dictionaries(
    {
        "anchors": st.integers(1, 5),
        "trajectories": st.integers(1, 6),
        "steps": st.integers(1, 7),
        "samples": st.integers(1, 70),
        "seed": st.integers(0, 2**64),
    }
)


def test_golden_values() -> None:
    """Fixed for ever: a draw that changed would make replicas of two versions disagree, and caches lie."""
    latents, anchors = draw_latents(plan(), labelled_nodes(), samples=5, seed=0)
    assert anchors.tolist() == GOLDEN_ANCHORS
    assert latents[:, 0].tolist() == GOLDEN_TRAJECTORIES
    np.testing.assert_allclose(latents[:, 1], GOLDEN_POSITIONS, rtol=0, atol=1e-6)
    assert draw_digest() == GOLDEN_DIGEST


def draw_digest() -> str:
    nodes = np.linspace(-2, 2, ANCHORS * TRAJECTORIES * (STEPS + 1) * DIMENSION, dtype=np.float32)
    shaped = nodes.reshape(ANCHORS, TRAJECTORIES, STEPS + 1, DIMENSION)
    latents, anchors = draw_latents(plan(0.1, 0.9), shaped, samples=64, seed=2**40 + 7)
    return hashlib.sha256(latents.astype("<f4").tobytes() + anchors.astype("<i8").tobytes()).hexdigest()


def test_another_process_draws_the_same() -> None:
    code = "from tests.model_store.test_plan import draw_digest; print(draw_digest())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == draw_digest()


def test_seeds_and_plans_differ() -> None:
    nodes = labelled_nodes()
    draws = [draw_latents(plan(), nodes, 16, seed)[0] for seed in (0, 1, 2**63)]
    draws.append(draw_latents(plan(0.0, 0.5), nodes, 16, 0)[0])
    assert len({d.tobytes() for d in draws}) == len(draws)


@given(cases)
def test_anchors_take_turns(case: dict[str, int]) -> None:
    nodes = labelled_nodes(case["anchors"], case["trajectories"], case["steps"])
    latents, anchors = draw_latents(plan(), nodes, case["samples"], case["seed"])
    assert (latents.dtype, anchors.dtype) == (np.float32, np.int64)
    assert (latents.shape, anchors.shape) == ((case["samples"], 2), (case["samples"],))
    counts = np.bincount(anchors, minlength=case["anchors"])
    assert counts.max() - counts.min() <= 1
    # each sample lies on a trajectory of the anchor that it names
    np.testing.assert_array_equal(np.round(latents[:, 0]) // case["trajectories"], anchors)


@given(cases)
def test_an_anchors_trajectories_are_each_used_once_before_one_is_used_again(case: dict[str, int]) -> None:
    nodes = labelled_nodes(case["anchors"], case["trajectories"], case["steps"])
    latents, anchors = draw_latents(plan(), nodes, case["samples"], case["seed"])
    for anchor in range(case["anchors"]):
        used = np.round(latents[anchors == anchor, 0]).astype(int).tolist()
        for start in range(0, len(used), case["trajectories"]):
            turn = used[start : start + case["trajectories"]]
            assert len(set(turn)) == len(turn)


@given(cases, st.floats(0, 1), st.floats(0, 1))
def test_positions_lie_in_the_plans_range_and_cover_it_evenly(case: dict[str, int], a: float, b: float) -> None:
    start, stop = min(a, b), max(a, b)
    steps, samples = case["steps"], case["samples"]
    nodes = labelled_nodes(case["anchors"], case["trajectories"], steps)
    latents, _ = draw_latents(plan(start, stop), nodes, samples, case["seed"])
    position = np.sort(latents[:, 1].astype(np.float64)) / steps
    assert position.min() >= start - 1e-6
    assert position.max() <= stop + 1e-6
    edges = start + (stop - start) * np.arange(samples + 1) / samples
    assert (position >= edges[:-1] - 1e-6).all()  # one sample in each of S equal parts
    assert (position <= edges[1:] + 1e-6).all()


@settings(max_examples=50)
@given(st.integers(1, 9), st.integers(0, 1000), st.integers(0, 2**32))
def test_a_plan_at_a_node_gives_that_node_to_the_bit(steps: int, which: int, seed: int) -> None:
    nodes = np.random.default_rng(seed).normal(size=(2, 3, steps + 1, 4)).astype(np.float32)
    for node, at in ((0, 0.0), (steps, 1.0)):
        latents, anchors = draw_latents(plan(at, at), nodes, 6, which)
        for latent, anchor in zip(latents, anchors, strict=True):
            assert any((latent == n).all() for n in nodes[anchor, :, node])


def test_between_nodes_the_latents_are_interpolated_linearly() -> None:
    nodes = labelled_nodes(1, 1, 4)
    nodes[0, 0, :, 0] = [0, 10, 30, 60, 100]
    latents, _ = draw_latents(plan(), nodes, 200, 3)
    np.testing.assert_allclose(latents[:, 0], np.interp(latents[:, 1], range(5), nodes[0, 0, :, 0]), atol=1e-4)


def test_many_draws_are_uniform() -> None:
    """Over seeds, one sample's position is uniform: its mean and variance are those of U(0, 1)."""
    nodes = labelled_nodes(1, 1, 1)
    position = np.array([draw_latents(plan(), nodes, 1, seed)[0][0, 1] for seed in range(4000)])
    assert position.mean() == pytest.approx(0.5, abs=0.02)
    assert position.var() == pytest.approx(1 / 12, abs=0.005)
