"""Renders results of the quality benchmark as a page.

python -m benchmarks.quality.page [RESULTS.json] [docs/benchmarks.md]

Results of the curves (`curves.json`) and of the image sets (`images.json`) are taken up where they lie beside the
others; the picture of the curves is written beside the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT, SEEN
from benchmarks.quality.curves.picture import picture
from benchmarks.quality.curves.summary import judge as judge_curves
from benchmarks.quality.curves.summary import summarize_all
from benchmarks.quality.curves.summary import table as curve_table
from benchmarks.quality.goals import judge
from benchmarks.quality.images.summary import alarm_table, beyond_reach, doubt_table, reach_table
from benchmarks.quality.images.summary import judge as judge_images
from benchmarks.quality.images.summary import table as image_table
from benchmarks.quality.images.summary import title as image_title
from benchmarks.quality.summary import OURS, Summary, rank_ours
from benchmarks.quality.tables import FIGURES, cost_table, published_table, table
from benchmarks.results import Results, measured_with
from benchmarks.table import markdown
from model_store.errors import ConfigError

Content = dict[str, Any]

PICTURE = "quality-curves.png"

_PUBLISHED = """\
MC dropout: Gal and Ghahramani (2016), figures of their repository; deep ensemble of 10: uncertainty-baselines. Reached
is what is no more than two standard errors above. Published are means over all standard splits, of networks trained by
their authors' own schedules; a few splits of a small set differ from all of them by more than methods do.
"""

_GOALS = [
    "*Not decided* is what means meet, but not by more than two standard errors. Of images there is one run: chance is",
    "that of so few images alone (of AUROC: Hanley and McNeil 1982), not of other starts.",
]

_NAMES = {
    "nll": "Test NLL (nats, lower is better)",
    "rmse": "Test RMSE",
    "accuracy": "Test accuracy",
    "ece": "Test ECE",
}


def page(content: Content, curves: Content | None = None, images: Content | None = None) -> str:
    """The page, in Markdown, of the content of the files of results."""
    summary = content["summary"]
    of_curves, of_images = (c["summary"] if c is not None else [] for c in (curves, images))
    goals = [*judge(summary), *judge_curves(of_curves), *judge_images(of_images)]
    lines = [
        "# Benchmarks: the quality of the posterior beside its peers",
        "",
        "Written by `python -m benchmarks.quality.page` from the results of `make bench-quality`; not edited by hand.",
        "",
        "Every method has the same splits, the same network (one hidden layer of 50 units, 100 for protein), the same",
        "training budget and the same tuning: prior precision, noise and temperature come from cross-fitted MAP",
        "networks, on training rows only. Scored is the averaged predictive distribution on the test rows of the",
        "standard splits. Mean ± standard error over as many splits as stand behind each set's name. A mean rank is",
        "among the peers and ours as served, or a variant of ours in its place, over the sets that have every method",
        "which most sets have. Cost includes the shared tuning. All methods of a set were measured with the same code;",
        "where a set was measured anew since, commits say so. All have one noise level for all rows.",
        "",
        "NLL of regression: fiberwalk's is that of what a server answers, the Gaussian of its mean and variance. A",
        "peer's is that of the mixture of its samples or of the Gaussian of its mean and variance, whichever is less.",
        "Our fiber samples are what a decoder without an error would give for the same draws; of sets measured before",
        "commit ca8417c all nodes of the fibers.",
        "",
    ]
    lines += [*_weaker(summary, of_images), *_seen(summary, of_images), *measured_with(content)]
    lines += ["## Goals", "", *_GOALS, ""]
    lines += markdown(["goal", "state", "found"], [[g.text, g.state, g.found] for g in goals])
    for task, figures in FIGURES.items():
        sets = [s for s in summary if s["task"] == task]
        if not sets:
            continue
        lines += ["", f"## {task.capitalize()}"]
        for figure in figures:
            lines += ["", f"### {_NAMES[figure]}", "", *markdown(*table(sets, figure))]
        lines += ["", "### Cost a split: row gradients, wall time", "", *markdown(*cost_table(sets))]
        if task == "regression":
            lines += ["", "### Peers beside their published NLL", "", _PUBLISHED, *markdown(*published_table(sets))]
    if curves is not None:
        lines += _curves(curves)
    if images is not None:
        lines += _images(images)
    return "\n".join(lines) + "\n"


def _weaker(summary: Sequence[Summary], images: Sequence[Content]) -> list[str]:
    """On which sets peers are weaker than they are measured now: those of runs that know no Laplace chosen out of
    fold."""
    names = [s["set"] for s in summary if "laplace_last_tuned" not in s["methods"] or "ensemble_20" not in s["methods"]]
    names += [s["set"] for s in images if "laplace_last" in s["methods"] and "laplace_last_tuned" not in s["methods"]]
    if not names:
        return []
    return [
        f"Not measured anew since peers were given more: {', '.join(names)}. There Laplace has the probit link, which",
        "takes outputs that all shift at once for doubt, and of numbers the noise alone was chosen out of fold, of",
        "classes nothing; SWAG was chosen on one fold; there is no ensemble of twenty, nor nearer neighbours and",
        "classes' distances of one network's features; our anchors without fibers have the noise that suits fibers.",
        "",
    ]


def _seen(summary: Sequence[Summary], images: Sequence[Content]) -> list[str]:
    """Which of the sets had their test figures looked at, and how ours ranks on the others."""
    names = [s["set"] for s in (*summary, *images) if s["set"] in SEEN]
    if not names:
        return []
    told = []
    for task in FIGURES:
        ranks = rank_ours([s for s in summary if s["task"] == task and s["set"] not in SEEN], "nll")
        if OURS in ranks.means:
            told.append(f"{ranks.means[OURS]:.2f} in {task} ({len(ranks.sets)})")
    others = f"; over the other sets our mean rank in test NLL is {' and '.join(told)}" if told else ""
    return [f"Test figures of {', '.join(names)} were seen while the method was made{others}.", ""]


def _curves(content: Content) -> list[str]:
    lines = [
        "",
        "## NLL against cost",
        "",
        f"![Test NLL over row gradients, a line a method]({PICTURE})",
        "",
        "Each method with less and with more work; what it is given more of stands behind its name. A point is charged",
        "with all that it would take alone. Ours is drawn as served: five anchors are served of those that tune all",
        "methods (`map.served`). Where targets have least noise (naval, yacht) it is how many networks are averaged",
        "that counts: there five anchors, whatever their fibers, are about as good as an ensemble of five.",
        "Curves that only some of a set's splits have are dotted, and in the picture moved by how much easier these",
        "splits are for the ensemble of ten; the table has them as they are, means over other test rows.",
        "Written by `python -m benchmarks.quality.curves`.",
        "",
        *measured_with(content),
    ]
    for task in FIGURES:
        sets = [s for s in content["summary"] if s["task"] == task]
        if sets:
            lines += [
                f"### {task.capitalize()}: test NLL (row gradients, time)",
                "",
                *markdown(*curve_table(sets)),
                "",
            ]
    return lines[:-1]


def _images(content: Content) -> list[str]:
    lines = [
        "",
        "## Images",
        "",
        "AUROC: how often a foreign image has more doubt than one of the test set; doubt is the mutual information of",
        "class and sample, or the entropy for a single network: fiberwalk's as a server answers it, a peer's of its",
        "samples as drawn, whatever the dispersion of what it predicts. *By score*: for fiberwalk the score of `/ood`",
        "and that of each of its detectors; for MAP scores of the field. Written by `python -m",
        "benchmarks.quality.images`.",
        "",
        *measured_with(content),
    ]
    for s in content["summary"]:
        lines += [f"### {image_title(s)}", "", *markdown(*image_table(s)), ""]
        for line in beyond_reach(s):
            lines += [line, ""]
        lines += ["AUROC by score:", "", *markdown(*doubt_table(s)), ""]
        if alarm_table(s)[1]:
            lines += ["Share of the test images that `/ood` flags:", "", *markdown(*alarm_table(s)), ""]
        if reach_table(s)[1]:
            lines += [
                "One anchor of four fifths of the rows, by how far its fiber samples go; the other rows chose what is",
                "served:",
                "",
                *markdown(*reach_table(s)),
                "",
            ]
    return lines[:-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the results and writes the page. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    source = Path(given[0]) if given else ROOT / "benchmarks" / "results" / "quality.json"
    target = Path(given[1]) if len(given) > 1 else ROOT / "docs" / "benchmarks.md"
    try:
        content, curves, images = (_read(source.with_name(n)) for n in (source.name, "curves.json", "images.json"))
        if curves is not None:  # its runs say more than the summary of an older file
            curves["summary"] = summarize_all(Results(source.with_name("curves.json"), "curves", {}))
    except (OSError, ValueError, ConfigError) as e:
        print(f"Results cannot be read ({e}).", file=sys.stderr)
        return 2
    if content is None:
        print(f"There is no {source}; run make bench-quality first.", file=sys.stderr)
        return 2
    if curves is not None and curves["summary"]:
        target.with_name(PICTURE).write_bytes(picture(curves["summary"]))
    target.write_text(page(content, curves, images))
    print(f"Written to {target}.")
    return 0


def _read(path: Path) -> Content | None:
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
