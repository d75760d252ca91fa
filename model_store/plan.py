"""Draws from a latent plan: which latents a given (samples, seed) means, the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import LatentPlan

Float64 = NDArray[np.float64]


def _uniforms(seed: int, count: int) -> Float64:
    # Only the raw stream of a bit generator is promised to stay the same over numpy versions.
    raw = np.random.Philox(key=seed).random_raw(count)
    return (np.asarray(raw, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_latents(
    plan: LatentPlan, nodes: NDArray[np.float32], samples: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draws `samples` latents from a plan.

    The draw is stratified, so that few samples already stand for the whole posterior: anchors take turns,
    an anchor's trajectories are each used once before one is used again, and positions cover [start, stop]
    evenly with jitter.

    Args:
        plan: the latent plan.
        nodes: (A, N, T+1, k) latents of the trajectories, position 0 first.
        samples: S, at least 1.
        seed: a non-negative integer below 2**128.

    Returns:
        latents (S, k) float32 and the anchor of each (S,) int64.
    """
    anchors, trajectories, points, _ = nodes.shape
    u = _uniforms(seed, 2 * samples + anchors * (trajectories + 1))
    jitter, order, rest = u[:samples], u[samples : 2 * samples], u[2 * samples :]
    anchor_order = np.argsort(rest[:anchors], kind="stable")
    trajectory_order = np.argsort(rest[anchors:].reshape(anchors, trajectories), axis=1, kind="stable")

    turn = np.arange(samples)
    anchor = anchor_order[turn % anchors]
    trajectory = trajectory_order[anchor, (turn // anchors) % trajectories]
    stratum = np.argsort(order, kind="stable")
    position = plan.start + (plan.stop - plan.start) * (stratum + jitter) / samples

    at = position * (points - 1)
    low = np.minimum(np.floor(at).astype(np.int64), points - 2)
    part = (at - low)[:, None].astype(np.float32)
    here, there = nodes[anchor, trajectory, low], nodes[anchor, trajectory, low + 1]
    # This form gives both nodes exactly; here + part * (there - here) misses the second by rounding.
    return ((1 - part) * here + part * there).astype(np.float32), anchor.astype(np.int64)
