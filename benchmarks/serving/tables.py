"""The benchmark's table and its goals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.quality.goals import NOT_MEASURED, Goal, make_goal
from benchmarks.table import mark

MOST_STATISTICS: Final = 50.0
BATCHED: Final = "MLP 784-256-128-10"
LEAST_GAIN: Final = (32, 2.0)
MOST_LONE: Final = 1.05
MOST_READY: Final = 2.0
MOST_BESIDE: Final = 150 * 10**6
MOST_GROWTH: Final = 0.02


def table(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one for each network and number of rows."""
    header = ["network", "rows", "det µs", "samples µs", "in det", "statistics µs", "together µs", "in det"]
    header += ["share of samples", "of statistics", "of reading the weights"]
    rows = []
    for f in found:
        det, predict = f["det"], f["predict"]
        cells = [f["set"], str(f["rows"]), f"{det:,.1f}", f"{f['network']:,.1f}", f"{f['network'] / det:.1f}"]
        cells += [f"{f['statistics']:,.1f}", f"{predict:,.1f}", f"{predict / det:.1f}"]
        cells += [f"{f[part] / predict:.0%}" for part in ("network", "statistics", "read")]
        rows.append(cells)
    return header, rows


def judge(found: Sequence[dict[str, Any]]) -> list[Goal]:
    """The goal of the statistics, of single rows."""
    of = {f["set"]: f for f in found if f["rows"] == 1}
    goals = []
    text = f"Statistics of one row within {MOST_STATISTICS:g} µs"
    if of:
        slowest = max(of.values(), key=lambda f: float(f["statistics"]))
        fast = slowest["statistics"] <= MOST_STATISTICS
        goals.append(Goal(text, mark(fast), f"{slowest['statistics']:.0f} µs ({slowest['set']})"))
    else:
        goals.append(Goal(text, NOT_MEASURED, ""))
    return goals


def http_table(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of requests over HTTP, one for each number of clients."""
    header = ["network", "clients", "requests/s alone", "together", "gain"]
    header += ["p50 ms alone", "together", "ratio", "p99 ms alone", "together", "rows a run"]
    rows = []
    for f in found:
        alone, together = f["alone"], f["together"]
        cells = [f["set"], str(f["clients"]), f"{alone['rate']:,.0f}", f"{together['rate']:,.0f}"]
        cells += [f"{together['rate'] / alone['rate']:.2f}"]
        cells += [f"{alone['p50']:.2f}", f"{together['p50']:.2f}", f"{together['p50'] / alone['p50']:.2f}"]
        cells += [f"{alone['p99']:.1f}", f"{together['p99']:.1f}", f"{f['rows']:.1f}"]
        rows.append(cells)
    return header, rows


def judge_http(found: Sequence[dict[str, Any]]) -> list[Goal]:
    """The goals of requests over HTTP."""
    clients, least = LEAST_GAIN
    own = [f for f in found if f["set"] == BATCHED]
    many, one = ([f for f in own if f["clients"] == count] for count in (clients, 1))

    def gain() -> tuple[bool, str]:
        ratio = many[0]["together"]["rate"] / many[0]["alone"]["rate"]
        return ratio >= least, f"{ratio:.2f}"

    def wait() -> tuple[bool, str]:
        ratio = one[0]["together"]["p50"] / one[0]["alone"]["p50"]
        return ratio <= MOST_LONE, f"{ratio:.2f}"

    text = f"{clients} clients get {least:g} times the answers a second where requests go together, or more"
    lone = f"One client waits for {MOST_LONE:g} times as long, or less (p50)"
    return [make_goal(text, many, None, gain), make_goal(lone, one, None, wait)]


def soak_table(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what a server takes, by the requests that it answered."""
    rows = []
    for f in found:
        last = len(f["requests"]) - 1
        at = [0, *range(0, last, max(1, last // 5)), last]
        rows += [[f"{f['requests'][i]:,}", f"{f['memory'][i] / 1e6:,.0f}"] for i in dict.fromkeys(at)]
    return ["requests answered", "memory MB"], rows


def judge_soak(found: Sequence[dict[str, Any]]) -> list[Goal]:
    """The goals of starting, of memory, and of many requests."""
    goals = []
    for f in found:
        ready, beside = statistics.median(f["ready"]), f["first"] - f["first_set"]
        settled, last = f["memory"][len(f["memory"]) // 5], f["memory"][-1]
        goals += [
            Goal(
                f"{f['set']}: ready within {MOST_READY:g} s",
                mark(ready <= MOST_READY),
                f"{ready:.2f} s, of {len(f['ready'])} starts {min(f['ready']):.2f} to {max(f['ready']):.2f}",
            ),
            Goal(
                f"Memory beside the weight set at most {MOST_BESIDE / 1e6:.0f} MB",
                mark(beside <= MOST_BESIDE),
                f"{beside / 1e6:.0f} MB",
            ),
            Goal(
                f"Memory flat to {MOST_GROWTH:.0%} from a fifth of the requests on",
                mark(last <= (1 + MOST_GROWTH) * settled),
                f"{settled / 1e6:.0f} to {last / 1e6:.0f} MB over {f['requests'][-1]:,} requests",
            ),
        ]
        if "ids" in f:
            goals.append(
                Goal(
                    f"And after targets for unknown ids, each answered with a status of 404, to {MOST_GROWTH:.0%}",
                    mark(f["told"] <= (1 + MOST_GROWTH) * last),
                    f"{last / 1e6:.0f} to {f['told'] / 1e6:.0f} MB over {f['ids']:,} ids",
                )
            )
    return goals
