"""Renders results of the fidelity benchmark as a page with a picture.

python -m benchmarks.fidelity.page [RESULTS.json] [docs/fidelity.md]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT
from benchmarks.fidelity.picture import draw
from benchmarks.fidelity.summary import judge, tables
from benchmarks.table import markdown

_INTRODUCTION = """\
# Benchmarks: fidelity to Hamiltonian Monte Carlo

Written by `python -m benchmarks.fidelity.page` from the results of `make bench-fidelity`; not edited by hand.

All methods approximate one posterior: the same network (one hidden layer of tanh units), the same Gaussian noise, the
same Gaussian prior, all training rows of the set's first split. Noise and prior come from cross-fitted MAP networks and
are then fixed, for the peers too: what is compared is how well each finds a given posterior, not how it is tuned. The
reference is numpyro's no-U-turn sampler, with chains that start at draws from the prior. MC dropout alone has a noise
of its own in training, and a prior of its own in its masks.

Ours: ten MAP anchors on all rows, which are the ensemble's members too. Judged are 512 decoded samples at drift scale
1, the scale at which the sampler is exact for linear models. 24 fibers an anchor walk in two drift steps, each with 100
refinement steps and 40 Hamiltonian moves of 120 leapfrog steps (`fiber.moves`); these numbers were settled on with
HMC's answers to the three regression sets at hand. A build does without such moves unless it is told to; what its
default walk gives has a line of its own, as have other parts of the trajectories. Mean ± standard error over as many
seeds (anchors, drift directions, draws) as stand behind each set's name; HMC is run once. HMC's own line is the noise
floor: one half of its chains against the other.
"""


def page(content: dict[str, Any], picture: str | None) -> str:
    """The page, in Markdown, of a results file's content; `picture` is a file beside it."""
    summary = content["summary"]
    lines = [_INTRODUCTION]
    for e in content["environments"].values():
        libraries = ", ".join(f"{k} {v}" for k, v in e["libraries"].items())
        lines += [
            f"Commit `{e['commit'][:12]}`, {e['machine']['cores']} cores, {e['machine']['architecture']}; {libraries}.",
            "",
        ]
    if picture:
        lines += [f"![Bands of function values of HMC and of other methods]({picture})", ""]
        lines += [
            "*Snelson's data without the gap's rows: nine tenths of the function values lie in each band.*",
            "",
        ]
    goals = [[g.text, g.state, g.found] for g in judge(summary)]
    lines += ["## Goal", "", "Total variation on test rows.", "", *markdown(["goal", "state", "found"], goals)]
    for table in tables(summary):
        lines += ["", f"## {table.title}", "", *markdown(table.header, table.rows)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the results and writes the page and its picture. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    source = Path(given[0]) if given else ROOT / "benchmarks" / "results" / "fidelity.json"
    target = Path(given[1]) if len(given) > 1 else ROOT / "docs" / "fidelity.md"
    try:
        content = json.loads(source.read_text())
    except (OSError, ValueError) as e:
        print(f"{source} cannot be read ({e}); run make bench-fidelity first.", file=sys.stderr)
        return 2
    curves = [r["curve"] for r in content["runs"] if "curve" in r and r["split"] == 0]
    picture = target.with_suffix(".png")
    if curves:
        picture.write_bytes(draw(curves[0]))
    target.write_text(page(content, picture.name if curves else None))
    print(f"Written to {target}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
