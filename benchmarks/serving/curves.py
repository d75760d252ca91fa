"""How the cost of an answer grows: with the network's weights, the samples, the rows, and the latent space.

    python -m benchmarks.serving.curves [--seconds S] [--output FILE.json]

One of them is varied at a time, on one core and by turns with one deterministic run of the same network; of the latent
space what decoding 32 fresh latents takes, by its dimension k and by the columns of the decoder's head. How answers a
second go with clients is measured by `benchmarks.serving.http`. `python -m benchmarks.serving.page` draws all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.data import ROOT
from benchmarks.exit import exit_status
from benchmarks.results import Results, environment, refuse_changed
from benchmarks.serving.curve_tables import table
from benchmarks.serving.ending import conclude
from benchmarks.serving.measure import all_outputs, by_turns, on_one_core
from benchmarks.serving.models import CASES, Case, rows_of, serve_beside
from builder.network import MLP
from model_store.plan import draw_latents

OUTPUT: Final = ROOT / "benchmarks" / "results" / "curves_serving.json"
_WIDE: Final = "MLP 784-256-128-10"
NETWORKS: Final = (_WIDE, f"{_WIDE}, rank 8", "MLP 13-50-1")
WIDTHS: Final = (8, 32, 128, 256, 512, 1024)
"""Hidden units of both layers of networks with 32 inputs and 10 outputs."""
SAMPLES: Final = (1, 4, 8, 16, 32, 64, 128, 256)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DIMENSIONS: Final = (2, 8, 32, 128)
RANKS: Final = (4, 8, 16, 32, 64, 128, 256)
_FIXED_SAMPLES: Final = 32


def point(case: Case, samples: int, rows: int, seconds: float) -> dict[str, float]:
    """Microseconds of the outputs of S samples, of decoding them, and of one deterministic run; and P."""
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as store:
        model, det = serve_beside(case, Path(store))
    latents, anchors = draw_latents(model.plan("predict"), model.nodes, samples, 0)
    weights = model.engine.bind(model.engine.decode(latents, anchors), anchors)
    x = rows_of(case, rows)
    calls: dict[str, Callable[[], object]] = {
        "det": partial(det.run, ["outputs"], {"inputs": x}),
        "network_us": partial(all_outputs, model, weights, x),
        "decode": lambda: model.engine.bind(model.engine.decode(latents, anchors), anchors),
    }
    times = {name: round(1e6 * taken, 2) for name, taken in by_turns(calls, seconds).items()}
    return {**times, "weights": model.manifest.network.random_weights}


def measure(seconds: float) -> list[dict[str, Any]]:
    """All points: `curve` and `network` say which, `at` where."""
    found: list[dict[str, Any]] = []

    def add(curve: str, network: str, at: int, case: Case, samples: int = _FIXED_SAMPLES, rows: int = 1) -> None:
        found.append({"curve": curve, "network": network, "at": at, **point(case, samples, rows, seconds)})

    for width in WIDTHS:
        case = Case(partial(MLP, 32, [width, width], 10), (32,), 10)
        add("weights", "MLP 32-h-h-10", width, case)
    for name in NETWORKS:
        for samples in SAMPLES:
            add("samples", name, samples, CASES[name], samples=samples)
        for rows in ROWS:
            add("rows", name, rows, CASES[name], rows=rows)
    for dimension in DIMENSIONS:
        add("dimension", _WIDE, dimension, replace(CASES[_WIDE], dimension=dimension))
    for rank in RANKS:
        add("rank", _WIDE, rank, replace(CASES[_WIDE], rank=rank))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 2 where it cannot start."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.curves", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of measuring each point, default 1")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    options = parser.parse_args(arguments)
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options, log), log)


def _run(options: argparse.Namespace, log: Console) -> int:
    here = environment(ROOT, "random weights")
    results = Results(options.output, "curves_serving", here)
    with on_one_core():
        points = measure(options.seconds)
    for i, found in enumerate(points):
        results.add("curves", i, found)
    refuse_changed(here, environment(ROOT, "random weights"))
    shown = table(results.current("curves"))
    return conclude(results, options.output, "32 samples, one row, but for what is varied", shown, [], log)


if __name__ == "__main__":
    sys.exit(main())
