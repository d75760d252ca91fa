"""The table of peers over HTTP, and its goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.quality.goals import Goal, make_goal

SHOWN: Final = {
    "plain": "one network without samples: torch behind FastAPI",
    "batched": "32 networks, torch vmap behind FastAPI",
    "laplace": "laplace-torch, last layer, behind FastAPI",
    "ensemble": "10 networks, ONNX Runtime behind FastAPI",
    "mc_dropout": "32 dropout masks as one batch, torch behind FastAPI",
    "litserve": "32 networks, torch vmap, LitServe",
    "litserve_batched": "32 networks, torch vmap, LitServe with its batching",
    "bentoml": "32 networks, torch vmap, BentoML",
}
MOST_CLIENTS: Final = 32
LEAST_RATIO: Final = {"batched": 25.0, "bentoml": 25.0, "litserve_batched": 10.0, "laplace": 8.0, "plain": 1.0}


def table(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one for each peer and number of clients."""
    header = ["peer", "clients", "requests/s", "all weights", "ratio", "rank 8", "ratio"]
    header += ["p50 ms", "all weights", "rank 8"]
    rows = []
    for f in found:
        each = [f[name] for name in ("peer", "ours", "ours_mixed")]
        cells = [SHOWN[f["set"]], str(f["clients"]), f"{each[0]['rate']:,.0f}"]
        for ours in each[1:]:
            cells += [f"{ours['rate']:,.0f}", f"{ours['rate'] / each[0]['rate']:.1f}"]
        rows.append([*cells, *[f"{one['p50']:.2f}" for one in each]])
    return header, rows


def judge(found: Sequence[dict[str, Any]]) -> list[Goal]:
    """The goals, all of many clients."""
    return [
        _goal(peer, [f for f in found if f["clients"] == MOST_CLIENTS and f["set"] == peer]) for peer in LEAST_RATIO
    ]


def _goal(peer: str, runs: Sequence[dict[str, Any]]) -> Goal:
    def met() -> tuple[bool, str]:
        mixed, whole = (runs[0][name]["rate"] / runs[0]["peer"]["rate"] for name in ("ours_mixed", "ours"))
        return mixed >= LEAST_RATIO[peer], f"{mixed:.1f}; with all weights {whole:.1f}"

    times = f"at least {LEAST_RATIO[peer]:g} times the answers a second of {SHOWN[peer]}"
    return make_goal(f"{MOST_CLIENTS} clients, rank 8: {times}", runs, None, met)
