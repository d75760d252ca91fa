"""Renders results of the serving benchmark as a page.

python -m benchmarks.serving.page [RESULTS.json] [docs/performance.md]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT
from benchmarks.results import measured_with
from benchmarks.serving.tables import judge, table
from benchmarks.table import markdown

_INTRODUCTION = """\
# Benchmarks: the cost of 32 posterior samples

Written by `python -m benchmarks.serving.page` from the results of `make bench-serving`; not edited by hand.

One thread on one core. *det* is one run of ONNX Runtime on the same network with its weights as constants, which it
lays out in advance; *samples* is the time from 32 weight vectors in memory to the outputs of all, through the code that
the server runs; *statistics* what turns them into the columns of an answer; *together* is the whole, checks included.
Medians, in time of the processor, of turns in which each call has its own data in the processor's caches: 32 weight
vectors often fit into none, and then reading them is what takes the time, as the last column says. Encoding, HTTP and
JSON are not in these times.

Where the time goes:

- Small networks of linear layers: one product for the first layer of all samples, and ONNX Runtime's own cost a run.
- Wide ones, one row: reading the weights. The first layer is read along rows that all samples share, of which a set of
  weights then holds a copy; the others are 32 products of one row each.
- Wide ones, many rows: arithmetic, 32 times that of one network. Activations are columns, so that no weight is moved.
- Convolutions: the first, whose input all samples share, is one convolution; others loop over the samples. The layout
  in which ONNX Runtime convolves fastest needs weights that are constants, which these are not.
"""


def page(content: dict[str, Any]) -> str:
    """The page, in Markdown, of a results file's content."""
    found = content["runs"]
    goals = [[g.text, g.state, g.found] for g in judge(found)]
    lines = [_INTRODUCTION, *measured_with(content), *markdown(*table(found)), ""]
    lines += ["## Goals", "", *markdown(["goal", "state", "found"], goals)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the results, writes the page."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    source = Path(given[0]) if given else ROOT / "benchmarks" / "results" / "serving.json"
    target = Path(given[1]) if len(given) > 1 else ROOT / "docs" / "performance.md"
    target.write_text(page(json.loads(source.read_text())))
    print(f"Written to {target}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
