"""Renders results of the serving benchmark as a page.

python -m benchmarks.serving.page [RESULTS.json] [docs/performance.md] [HTTP.json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT
from benchmarks.results import measured_with
from benchmarks.serving.tables import http_table, judge, judge_http, table
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


_TOGETHER = """\

## Requests that go together

One process of `fiberwalk serve`, clients on the same machine over connections that stay open, one row each, as JSON, 32
samples. *together* is the server as it comes: what waits for the same model and samples goes through the network in one
run. *alone* has `FIBERWALK_BATCH_ROWS=1`. Medians of turns, the servers started several times.

A run of up to 16 rows of the wide network takes hardly longer than one of 2, as products are computed in blocks of 16
columns; from 32 rows on every row costs the same, a seventh of a row alone, so that more would only make others wait.
Convolutions cost the same a row from 8 rows on, half of a row alone. Answers are those of lone requests but for the
last bits of the network's outputs, which are float32: 5e-7 of their size at most in what was measured.
"""


def page(content: dict[str, Any], http: dict[str, Any] | None = None) -> str:
    """The page, in Markdown, of the content of results files: of the cost of samples, and of requests over HTTP."""
    found = content["runs"]
    goals = [[g.text, g.state, g.found] for g in judge(found)]
    lines = [_INTRODUCTION, *measured_with(content), *markdown(*table(found)), ""]
    lines += ["## Goals", "", *markdown(["goal", "state", "found"], goals)]
    if http is not None:
        requests = http["runs"]
        goals = [[g.text, g.state, g.found] for g in judge_http(requests)]
        lines += [_TOGETHER, *measured_with(http), *markdown(*http_table(requests)), ""]
        lines += markdown(["goal", "state", "found"], goals)
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the results, writes the page."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    source = Path(given[0]) if given else ROOT / "benchmarks" / "results" / "serving.json"
    target = Path(given[1]) if len(given) > 1 else ROOT / "docs" / "performance.md"
    http = Path(given[2]) if len(given) > 2 else source.with_name("http.json")
    target.write_text(page(json.loads(source.read_text()), json.loads(http.read_text()) if http.exists() else None))
    print(f"Written to {target}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
