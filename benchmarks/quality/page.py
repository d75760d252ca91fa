"""Renders results of the quality benchmark as a page.

python -m benchmarks.quality.page [RESULTS.json] [docs/benchmarks.md]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT
from benchmarks.quality.goals import judge
from benchmarks.quality.tables import FIGURES, cost_table, table
from benchmarks.table import markdown

_NAMES = {
    "nll": "Test NLL (nats, lower is better)",
    "rmse": "Test RMSE",
    "accuracy": "Test accuracy",
    "ece": "Test ECE",
}


def page(content: dict[str, Any]) -> str:
    """The page, in Markdown, of a results file's content."""
    summary = content["summary"]
    environments = content["environments"].values()
    lines = [
        "# Benchmarks: the quality of the posterior beside its peers",
        "",
        "Written by `python -m benchmarks.quality.page` from the results of `make bench-quality`; not edited by hand.",
        "",
        "Every method has the same splits, the same network (one hidden layer of 50 units, 100 for protein), the same",
        "training budget and the same tuning: prior precision, noise and temperature come from cross-fitted MAP",
        "networks, on training rows only. Scored is the averaged predictive distribution on the test rows of the",
        "standard splits. Mean ± standard error over as many splits as stand behind each set's name. A mean rank is",
        "over the sets that have all methods. Cost includes the shared tuning.",
        "",
    ]
    for e in environments:
        machine, libraries = e["machine"], ", ".join(f"{k} {v}" for k, v in e["libraries"].items())
        where = f"{machine['cores']} cores, {machine['architecture']}"
        lines += [f"Commit `{e['commit'][:12]}`, preset `{e['preset']}`, {where}; {libraries}.", ""]
    lines += [
        "## Goals",
        "",
        *markdown(["goal", "state", "found"], [[g.text, g.state, g.found] for g in judge(summary)]),
    ]
    for task, figures in FIGURES.items():
        sets = [s for s in summary if s["task"] == task]
        if not sets:
            continue
        lines += ["", f"## {task.capitalize()}"]
        for figure in figures:
            lines += ["", f"### {_NAMES[figure]}", "", *markdown(*table(sets, figure))]
        lines += ["", "### Cost a split: row gradients, wall time", "", *markdown(*cost_table(sets))]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the results and writes the page. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    source = Path(given[0]) if given else ROOT / "benchmarks" / "results" / "quality.json"
    target = Path(given[1]) if len(given) > 1 else ROOT / "docs" / "benchmarks.md"
    try:
        content = json.loads(source.read_text())
    except (OSError, ValueError) as e:
        print(f"{source} cannot be read ({e}); run make bench-quality first.", file=sys.stderr)
        return 2
    target.write_text(page(content))
    print(f"Written to {target}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
