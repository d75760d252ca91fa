"""Renders results of the calibration benchmark as a page.

python -m benchmarks.calibration.page [RESULTS.json] [docs/calibration.md]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.calibration.conformal import GRID, SHARE
from benchmarks.calibration.cost import BATCHES, ROUNDS
from benchmarks.calibration.goals import judge
from benchmarks.calibration.monitored import BROKEN_ROWS, RUNS, SOUND_ROWS
from benchmarks.calibration.tables import tables
from benchmarks.calibration.unfamiliar import CLUSTERS, LEAST_CLUSTER, NEIGHBOURS, SHIFT, SHIFTED_SHARE
from benchmarks.data import ROOT
from benchmarks.results import measured_with
from benchmarks.table import markdown

_INTRODUCTION = f"""\
# Benchmarks: does the service keep its word?

Written by `python -m benchmarks.calibration.page` from the results of `make bench-calibration`; not edited by hand.

Sets, splits, network (one hidden layer of 50 units, 100 for protein), training budget and tuning are those of
[benchmarks.md](benchmarks.md). Ours is built, published and served, and asked over HTTP. Means over as many splits as
stand behind each set's name, ± their standard error; a share of few test rows is known roughly, whatever stands here.

**Conformal peers** are MAPIE's. Each puts {SHARE:.0%} of the training rows aside, at random, and trains on the others;
ours trains on all. Networks take prior precision, noise and temperature from the tuning that all share, which has seen
all training rows. Intervals of the ensemble and of Laplace go with the predicted standard deviation. Conformalised
quantile regression is gradient boosting (scikit-learn's, on histograms), each quantile with the best of the settings
`{GRID}` by three-fold cross-validation, and one correction for both ends.
APS sets are randomised, as in their paper, and two classes have LAC sets alone. A peer whose coverage falls more than
1.5 points short of its level is not valid there, and no measure of width. Widths are in standard deviations of the
training targets. Our sets hold the likeliest class unless asked otherwise (`"empty_sets": true`): where it alone is
right more often than the level, they cover more than asked. Peers give out empty sets, and so goals are judged by ours
that may be empty too.

**ECE** is that of the likeliest class over 15 bins of confidence. Of few rows even probabilities that are right show
some: the table beside it has the mean ECE of the same probabilities for classes that are drawn from them.

**False alarms** stand with the standard error that a rate of exactly what was asked has over all test rows of the
splits (binomial). Splits share test rows, so the true one is larger. Goals on coverage and on false alarms take no
account of it, but count how many of all rates, whether within the goal's tolerance or not, are further from what was
asked than two of these errors: by chance alone that is about one in twenty.

**Unfamiliar rows**, told from the split's test rows by the score of `/ood` and by detectors fitted on the same encoded
training rows (scikit-learn: an isolation forest with its defaults; the distance to the {NEIGHBOURS}th nearest
neighbour):

- a cluster held out: all rows, z-scored, in {CLUSTERS} k-means clusters; the smallest of them with
  {LEAST_CLUSTER:.0%} of the rows or more is left out of training, a build of its own, and out of the test rows;
- shifted columns: the test rows themselves, in each {SHIFTED_SHARE:.0%} of the columns (rounded, at least one), drawn
  anew for each row, moved up or down by {SHIFT:g} standard deviations of the training rows.

**The cost of flags**: one client asks a server about {" and ".join(map(str, BATCHES))} rows a request, by turns for
predictions without and with `"ood": true`, for predictions of a single sample (the nearest to a deterministic network
that is served) and for `/ood` alone; ratios of the medians of {ROUNDS} requests each, from sending to the answer.

**The monitor**: a model of the synthetic set with 200 training rows is served. In each of {RUNS} runs a fresh server is
told the targets of {SOUND_ROWS:,} unseen rows, then of {BROKEN_ROWS:,} others, all moved by the amount that halves the
coverage at 90 %.

Wall time is a method's own with the shared tuning: for ours the build, for peers training, conformalisation and
answers. Gradient boosting has no part in the tuning.
"""


def page(content: dict[str, Any]) -> str:
    """The page, in Markdown, of a results file's content."""
    summary = content["summary"]
    lines = [_INTRODUCTION, *measured_with(content)]
    goals = [[g.text, g.state, g.found] for g in judge(summary)]
    lines += ["## Goals", "", *markdown(["goal", "state", "found"], goals)]
    for table in tables(summary):
        lines += ["", f"## {table.title[0].upper()}{table.title[1:]}", "", *markdown(table.header, table.rows)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the results and writes the page. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    source = Path(given[0]) if given else ROOT / "benchmarks" / "results" / "calibration.json"
    target = Path(given[1]) if len(given) > 1 else ROOT / "docs" / "calibration.md"
    try:
        content = json.loads(source.read_text())
    except (OSError, ValueError) as e:
        print(f"{source} cannot be read ({e}); run make bench-calibration first.", file=sys.stderr)
        return 2
    target.write_text(page(content))
    print(f"Written to {target}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
