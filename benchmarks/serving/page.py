"""Renders results of the serving benchmark as a page.

python -m benchmarks.serving.page [FOLDER] [docs/performance.md]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.data import ROOT
from benchmarks.quality.goals import Goal
from benchmarks.results import measured_with
from benchmarks.serving.curve_tables import picture
from benchmarks.serving.limits import judge_limits
from benchmarks.serving.peers.tables import judge as judge_peers
from benchmarks.serving.peers.tables import table as peers_table
from benchmarks.serving.tables import http_table, judge, judge_http, judge_soak, soak_table, table
from benchmarks.serving.wire_tables import cold_table, workers_table
from benchmarks.serving.wire_tables import judge as judge_wire
from benchmarks.serving.wire_tables import table as wire_table
from benchmarks.table import markdown

Content = dict[str, Any]

_INTRODUCTION = """\
# Benchmarks: the cost of 32 posterior samples

Written by `python -m benchmarks.serving.page` from the results of `make bench-serving`; not edited by hand.

One thread on one core. *det* is one run of ONNX Runtime on the same network with its weights as constants, which it
lays out in advance; *samples* is the time from 32 weight vectors in memory to the outputs of all, through the code that
the server runs; *statistics* what turns them into the columns of an answer; *together* is the whole, checks included.
Medians, in time of the processor, of turns in which each call has its own data in the processor's caches: 32 weight
vectors often fit into none, and then reading them is what takes the time, as the last column says. Encoding, HTTP and
JSON are not in these times.

The machine is a virtual one that others share. From day to day its times differ by a factor of four (*det* of the
smallest network was 4 to 18 µs in this page's history), and ratios by up to two: what waits for memory, and what wakes
other threads, slows down by another factor than arithmetic does.

Where the time goes:

- Small networks of linear layers: one product for the first layer of all samples, and ONNX Runtime's own cost a run.
- Wide ones, one row: reading the weights. The first layer is read along rows that all samples share, of which a set of
  weights then holds a copy; the others are 32 products of one row each.
- Wide ones, many rows: arithmetic, 32 times that of one network. Activations are columns, so that no weight is moved.
- Wide ones whose first layer is mixed (*rank 8*): it is computed once for each of its nine columns, which are constants
  that ONNX Runtime packs, and 32 samples mix the results. What is left is the weights of the other layers.
- Convolutions: the first, whose input all samples share, is one convolution; others loop over the samples. All are in
  the layout in which ONNX Runtime convolves fastest, into which the weights of a set are brought once. About half of
  what one row of LeNet-5 takes is the reading of the weights of its linear layers.
"""


_BINDS = """\

What keeps ratios from being smaller, by what the networks' sizes say:

- 784-256-128-10, one row: a run of one network reads .94 MB, which lie in the caches nearest to the core, one of 32 all
  30 MB, which lie in none of those. At rank 8 it is 7.2 MB of columns and 4.4 MB of the other layers: 12.3 times the
  bytes of one network, which no layout of float32 reads in 8 times the time. Half as many bits a number would do it,
  for which ONNX Runtime has no product on such a processor that keeps the mean within 1e-4.
- 784-256-128-10, 100 samples of 64 rows: 100 times the arithmetic of one network; at rank 8, 22 times.
- 784-256-128-10, 256 rows: ONNX Runtime's own product of square matrices is slower than numpy's, as the goal says, and
  products of one side of 256 are slower than that.
- Convolutions: 32 times the arithmetic of one network but for what all samples share, the first layer. The last block
  of ResNet-20 is a ninth of its arithmetic: 32 of them behind one trunk are as much as 4.4 networks.
- Fresh latents: a product with the decoder's 33 columns, which takes 33 operations for each one of a row's run, and
  writes 30 MB. At rank 8 it is 9 columns, of the other layers' weights alone.
"""

_TOGETHER = """\

## Requests that go together

One process of `fiberwalk serve`, clients on the same machine over connections that stay open, one row each, as JSON, 32
samples. *together* is the server as it comes: what waits for the same model and samples goes through the network in one
run. *alone* has `FIBERWALK_BATCH_ROWS=1`. Medians of turns, the servers started several times.

A run of up to 16 rows of the wide network takes hardly longer than one of 2, as products are computed in blocks of 16
columns; from 32 rows on every row costs the same, a seventh of a row alone, so that more would only make others wait.
Answers are those of lone requests but for the last bits of the network's outputs, which are float32: 5e-7 of their size
at most in what was measured. Behind the network it is the interpreter that binds: a process reads, routes and writes
one request at a time, while the network's runs, which need no interpreter, go on beside it.
"""


_PEERS = """\

## Beside other servers

The network 784-256-128-10, one row a request, as JSON over connections that stay open, from one client and from 32.
Every server is one process with one thread for its arithmetic, written as its own documentation shows, and `fiberwalk
serve`, with 32 samples, is asked by turns with each: its figures differ from line to line as the machine does. It has
the weights of all samples in memory, or, as *rank 8*, mixes its first layer of nine columns. With 32 clients it is
bound by the interpreter, which takes most of the time that there is for an answer, samples or none: at 25 times the
answers of torch's vmap, that would be less than what uvicorn alone takes (*HTTP* above).
"""


_SOAK = """\

## Start, memory, and many requests

One process of `fiberwalk serve` with a network of 298,143 weights. Ready is when `/readyz` says so, counted from the
launch, with the bundle's files in the operating system's cache. Of its memory 18 MB are the columns of the mixed
first layer, which ONNX Runtime holds for rows alone and for several; in return a weight set takes 5.5 MB, not 38.

32 clients then ask for predictions of one row and of eight, with flags and without, of a dozen seeds whose weight sets
do not all fit into the process (`FIBERWALK_CACHE_BYTES` of 32 MiB), and for flags alone. What grows at first is the
cache of weight sets and what is remembered for feedback (`FIBERWALK_REMEMBER_BYTES` of 4 MiB, full after some 8,000
requests). At last they tell targets of predictions that were never made, each of another id.
"""


_WIRE = """\

## Over HTTP

One client's median wait for an answer of 32 samples, over a connection that stays open, beside the median of the call
that the server makes for it, in a process of its own and by turns. *msgpack* carries the bytes of arrays, both ways.
What is added, in µs:

- *HTTP*: uvicorn alone, which reads a body as long and answers as many bytes. Bodies of 64 rows are 200 KB as bytes and
  420 KB as JSON.
- *idle*: by how much longer the very same call takes after a pause as long as a server's between two calls. Of what the
  network needs less is left in the caches, and a core of a virtual machine wakes slowly.
- *reading* and *writing*: from the body to encoded rows, and from what the network found to the answer's bytes, in the
  caches as a run of the network leaves them.
- *all else*: routing, the queue, the way to a worker thread and back, as each wakes the other, metrics, the log, and by
  how much the call takes longer in the server's process than in this one.

What *HTTP* takes, no server behind uvicorn can do without; the last three columns are the interpreter's time mostly.
"""

PICTURE: Final = "performance.png"

_CURVES = f"""\

## How the cost grows

![How the cost of an answer grows]({PICTURE})

32 samples of one row, but for what is varied; of the latent space what decoding 32 fresh latents takes.

- With the weights P: up to some thousands ONNX Runtime's own cost a run, which does not grow; from some ten thousands
  on 32 times P numbers no longer lie in the caches nearest to the core, and the cost goes with P, at memory's speed.
- With the samples S: in proportion, where weights are read for every sample. A mixed first layer has its own cost, that
  of its columns, and the other layers grow with S.
- With the rows B: hardly, while the weights are read anyway; from about 16 rows on in proportion, at the speed of
  arithmetic.
- With the latent dimension k: not at all. With the columns of the decoder's head in proportion: each is as long as all
  weights that are decoded. Up to rank 16 those of the first layer are not: it is mixed.
- With clients: answers a second rise while runs take the rows of several, up to `FIBERWALK_BATCH_ROWS`.
"""

_REPLICAS = """\

Workers compute with one thread each (`FIBERWALK_CONCURRENCY=1`). Each has its own 30 MB of weights of the wide network,
and both read them through one cache and one memory; convolutions are arithmetic, which is each core's own. A replica's
first answer with a set of weights that another server left in a Redis on the same machine: *fetched* with
`FIBERWALK_REDIS_WEIGHTS=always`, *decoded* with `never`, and as the server decides by what it measured of both.
"""


def page(
    serving: Content,
    http: Content | None = None,
    peers: Content | None = None,
    soak: Content | None = None,
    wire: Content | None = None,
    curves: Content | None = None,
) -> str:
    """The page, in Markdown, of the content of results files: of the cost of samples, of requests that go together, of
    peers, of a server's start and memory, of what HTTP, workers and replicas take, and of how costs grow."""
    found = [run for run in serving["runs"] if "ratio" not in run]
    lines = [
        _INTRODUCTION,
        *measured_with(serving),
        *markdown(*table(found)),
        "",
        "## Goals",
        "",
        *_goals([*judge_limits(serving["runs"]), *judge(found)]),
        _BINDS,
    ]
    if curves is not None:
        lines += [_CURVES, *measured_with(curves)]
    if http is not None:
        found = http["runs"]
        lines += [_TOGETHER, *measured_with(http), *markdown(*http_table(found)), "", *_carried(found), ""]
        lines += _goals(judge_http(found))
    if wire is not None:
        found = wire["runs"]
        lines += [_WIRE, *measured_with(wire), *markdown(*wire_table(found)), "", *markdown(*workers_table(found))]
        lines += [_REPLICAS, *markdown(*cold_table(found)), "", *_goals(judge_wire(found))]
    if peers is not None:
        found = peers["runs"]
        lines += [_PEERS, *measured_with(peers), *markdown(*peers_table(found)), "", *_goals(judge_peers(found))]
    if soak is not None:
        found = soak["runs"]
        lines += [_SOAK, *measured_with(soak), *markdown(*soak_table(found)), "", *_goals(judge_soak(found))]
    return "\n".join(lines) + "\n"


def _carried(found: Sequence[dict[str, Any]]) -> list[str]:
    """What one process carries, in a sentence for each network."""
    best: dict[str, dict[str, Any]] = {}
    for run in found:
        held = best.get(run["set"])
        if held is None or run["together"]["rate"] > held["together"]["rate"]:
            best[run["set"]] = run
    return [
        f"One process carries {run['together']['rate']:,.0f} answers a second of {name}, at {run['clients']} clients, "
        f"who wait {run['together']['p50']:.0f} ms (p50)."
        for name, run in best.items()
    ]


def _goals(goals: Sequence[Goal]) -> list[str]:
    return markdown(["goal", "state", "found"], [[g.text, g.state, g.found] for g in goals])


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the results, of which those of samples have to be there, and writes the page."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    folder = Path(given[0]) if given else ROOT / "benchmarks" / "results"
    target = Path(given[1]) if len(given) > 1 else ROOT / "docs" / "performance.md"
    serving = json.loads((folder / "serving.json").read_text())
    others = [folder / f"{name}.json" for name in ("http", "peers", "soak", "wire", "curves_serving")]
    contents = [json.loads(f.read_text()) if f.exists() else None for f in others]
    if contents[-1] is not None:
        clients = contents[0]["runs"] if contents[0] is not None else []
        (target.parent / PICTURE).write_bytes(picture(contents[-1]["runs"], clients))
    target.write_text(page(serving, *contents))
    print(f"Written to {target}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
