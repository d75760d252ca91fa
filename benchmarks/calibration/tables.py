"""The benchmark's tables, for the screen and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.calibration.cost import BATCHES, RATIOS
from benchmarks.calibration.goals import KINDS, OURS
from benchmarks.calibration.monitored import MONITOR
from benchmarks.calibration.run import METHODS
from benchmarks.calibration.summary import Summary, figure
from benchmarks.figures import rate_error
from benchmarks.served import ALARM_RATES, LEVELS
from benchmarks.table import Table


def tables(summary: Sequence[Summary]) -> Iterator[Table]:
    """All tables, in their order."""
    measured = [s for s in summary if s["task"] != MONITOR]
    for task, size in (("regression", "mean width"), ("classification", "mean set size")):
        sets = [s for s in measured if s["task"] == task]
        for level in LEVELS:
            yield from _by_method(f"{task}: coverage of {level:.0%}", sets, f"coverage_{level:g}")
            yield from _by_method(f"{task}: {size} at {level:.0%}", sets, f"size_{level:g}")
        yield from _by_method(f"{task}: ECE", sets, "ece")
        yield from _by_method(f"{task}: ECE of calibrated probabilities, by chance", sets, "ece_by_chance")
    if measured:
        yield _false_alarms(measured)
    for kind, text in KINDS.items():
        yield from _by_method(f"AUROC: {text} against test rows", measured, f"auroc_{kind}")
    for name, ratio in RATIOS.items():
        for rows in BATCHES:
            yield from _by_method(f"time of {ratio.text}, {rows} rows a request", measured, f"{name}_{rows}")
    for task in ("regression", "classification"):
        yield from _cost(task, [s for s in measured if s["task"] == task])
    yield from _monitor([s for s in summary if s["task"] == MONITOR])


def _by_method(title: str, summary: Sequence[Summary], name: str) -> Iterator[Table]:
    """One row a method that has the figure on any set; nothing where none has."""
    rows = []
    for method, label in METHODS.items():
        found = [figure(s, method, name) for s in summary]
        if any(found):
            rows.append([label, *("–" if e is None else e.text() for e in found)])
    if rows:
        # Only sets on which it is measured: unfamiliar rows are looked for on a few.
        shown = [i for i in range(len(summary)) if any(row[i + 1] != "–" for row in rows)]
        header = ["method", *(f"{summary[i]['set']} ({summary[i]['splits']})" for i in shown)]
        yield Table(title, header, [[row[0], *(row[i + 1] for i in shown)] for row in rows])


def _false_alarms(summary: Sequence[Summary]) -> Table:
    """Rates flagged, and beside them the error that so many test rows leave, in percent."""
    rows = []
    for s in summary:
        found = {rate: figure(s, OURS, f"flagged_{rate:g}") for rate in ALARM_RATES}
        cells = [
            "–" if e is None else f"{e.mean:.1%} ± {rate_error(rate, s['test_rows']):.1%}" for rate, e in found.items()
        ]
        rows.append([f"{s['set']} ({s['splits']})", f"{s['test_rows']:,}", *cells])
    return Table("False alarms of /ood", ["set", "test rows", *(f"{rate:.0%} asked" for rate in ALARM_RATES)], rows)


def _cost(task: str, summary: Sequence[Summary]) -> Iterator[Table]:
    rows = []
    for method, label in METHODS.items():
        own = [s["methods"].get(method) for s in summary]
        if any(own):
            rows.append([label, *("–" if o is None else f"{o['seconds']:.1f}" for o in own)])
    if rows:
        yield Table(f"{task}: wall time a split, seconds", ["method", *(s["set"] for s in summary)], rows)


def _monitor(summary: Sequence[Summary]) -> Iterator[Table]:
    for s in summary:
        rows = []
        for number, run in enumerate(s["runs"], 1):
            cells = ["none" if run[k] is None else f"{run[k]:,}" for k in ("false_alarm", "rows_until_alarm")]
            rows.append([str(number), *cells])
        covered = f"coverage {s['coverage']:.3f}, {s['shifted_coverage']:.3f} after the shift"
        header = ["run", "row of a false alarm", "rows from the shift to the alarm"]
        yield Table(f"Monitor: {s['set']}, {covered}", header, rows)
