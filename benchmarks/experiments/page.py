"""Renders the figures of the experiments as a page with pictures.

python -m benchmarks.experiments.page [RESULTS FOLDER] [docs/experiments.md]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.data import ROOT
from benchmarks.experiments.catalogue import EXPERIMENTS
from benchmarks.experiments.experiment import Report

RESULTS: Final = ROOT / "benchmarks" / "results" / "experiments"
PAGE: Final = ROOT / "docs" / "experiments.md"
PICTURES: Final = ROOT / "docs" / "experiments"


def page(contents: Mapping[str, dict[str, Any]], pictures: str) -> tuple[str, dict[str, Report]]:
    """The page, in Markdown, of the contents of results files by experiment, and the reports it was made from.

    Args:
        pictures: where the page finds its pictures.
    """
    lines = [
        "# Experiments",
        "",
        "Written by `python -m benchmarks.experiments.page` from the results of `make bench-experiments`; not edited",
        "by hand. Figures are mean ± standard error over as many splits as stand behind a set's name, NLL in nats and",
        "of the averaged predictive distribution. Everything that is chosen is chosen on training rows.",
    ]
    reports = {}
    for name, experiment in EXPERIMENTS.items():
        if name not in contents:
            continue
        runs = contents[name]["runs"]
        place = {case: i for i, case in enumerate(experiment.cases)}
        known = sorted((r for r in runs if (r["set"], r["split"]) in place), key=lambda r: place[r["set"], r["split"]])
        if not known:
            continue
        report = reports[name] = experiment.report(known)
        lines += ["", f"## {experiment.title}", "", experiment.about, "", f"`python -m benchmarks.experiments {name}`"]
        lines += ["", *(f"- {finding}" for finding in report.findings)]
        for picture in report.pictures:
            lines += ["", f"![{experiment.title}]({pictures}/{picture})"]
        for table in report.tables:
            rows = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
            lines += ["", f"**{table.title}**", "", *(f"| {' | '.join(cells)} |" for cells in rows)]
        lines += ["", _origin(contents[name], known)]
    return "\n".join(lines) + "\n", reports


def _origin(content: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    """What the figures were measured with."""
    used = [e for key, e in content["environments"].items() if key in {r["environment"] for r in runs}]
    commits = ", ".join(f"`{e['commit'].split('+')[0][:12]}`{' (changed)' if '+' in e['commit'] else ''}" for e in used)
    presets = ", ".join(dict.fromkeys(e["preset"] for e in used))
    torch = ", ".join(dict.fromkeys(e["libraries"]["torch"] for e in used))
    seconds = sum(r["seconds"] for r in runs)
    return f"Commit {commits}, preset {presets}, torch {torch}; {seconds / 60:.1f} minutes."


def write_pictures(report: Report, folder: Path) -> None:
    """Writes a report's pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in report.pictures.items():
        (folder / name).write_bytes(picture)


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the results, writes page and pictures. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    source = Path(given[0]) if given else RESULTS
    target = Path(given[1]) if len(given) > 1 else PAGE
    try:
        contents = {f.stem: json.loads(f.read_text()) for f in sorted(source.glob("*.json"))}
    except (OSError, ValueError) as e:
        print(f"{source} cannot be read ({e}).", file=sys.stderr)
        return 2
    if not contents:
        print(f"{source} holds no results; run make bench-experiments first.", file=sys.stderr)
        return 2
    folder = target.with_suffix("")
    text, reports = page(contents, folder.name)
    for report in reports.values():
        write_pictures(report, folder)
    target.write_text(text)
    print(f"Written to {target}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
