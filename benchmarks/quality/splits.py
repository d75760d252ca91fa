"""Splits of sets run side by side, one process a core, into a file of results that can be gone on with."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.data import ROOT, check_available, read_set
from benchmarks.quality.run import one_thread
from benchmarks.results import Results, Run, environment, refuse_changed
from benchmarks.served import PRESETS
from model_store.errors import ConfigError, FiberwalkError

OneSplit = Callable[[str, int, str], dict[str, Any]]
"""From a set's name, a split and a preset to what was found."""


def run_splits(
    benchmark: str,
    run: OneSplit,
    show: Callable[[dict[str, Any]], str],
    wanted: Mapping[str, int],
    preset: str,
    output: Path,
    workers: int,
    log: Console,
    merge: Callable[[Run | None, Run], Run] = lambda _, found: found,
    enough: Callable[[Run], bool] = lambda _: True,
) -> tuple[Results, dict[str, int]]:
    """Runs the splits that the file does not have yet.

    Args:
        benchmark: what the file calls itself.
        run: a function of a module, as worker processes import it.
        show: one split's results in a line.
        wanted: how many splits of each set, the first ones; more than there are means all.
        merge: what is kept of a split's older run and of what was found now.
        enough: whether a finished run has all that is wanted.

    Returns:
        The results, and how many splits of each set count.

    Raises:
        FiberwalkError: a set cannot be had, or the code was changed meanwhile.
    """
    for name in wanted:
        check_available(name)
    here = environment(ROOT, preset)
    results = Results(output, benchmark, here)
    counts = {name: min(splits, read_set(name).splits) for name, splits in wanted.items()}
    # All sets have their first split before one has its second, so that an early stop leaves a whole picture.
    waiting = [
        (n, s)
        for s in range(max(counts.values()))
        for n, count in counts.items()
        if s < count and not (results.finished(n, s) and enough(results.run(n, s) or {}))
    ]
    for name, split, found in _all_splits(run, waiting, preset, workers):
        results.add(name, split, merge(results.run(name, split), found))
        log.print(f"{name} {split}:", found.get("error") or show(found), markup=False, soft_wrap=True)
    refuse_changed(here, environment(ROOT, preset))
    return results, counts


def read_options(
    arguments: Sequence[str] | None,
    prog: str,
    doc: str | None,
    output: Path,
    *,
    full: bool = True,
    sets: str,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """The options of a benchmark whose splits run side by side.

    Args:
        doc: the command's docstring; its first line says what it does.
        output: where results go by default.
        full: whether there is an option for all sets and splits.
        sets: help of the option `--sets`.
        more: adds options of its own.
    """
    parser = argparse.ArgumentParser(prog=prog, description=(doc or "").split("\n")[0])
    if full:
        parser.add_argument("--full", action="store_true", help="all sets and splits (many hours)")
    parser.add_argument("--sets", nargs="+", metavar="NAME[:N]", help=sets)
    many = "; with --full all" if full else ""
    parser.add_argument("--splits", type=int, metavar="N", help=f"the first N of each set (default 2{many})")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: cores)"
    )
    parser.add_argument("--output", type=Path, default=output, metavar="FILE")
    if more is not None:
        more(parser)
    options = parser.parse_args(arguments)
    if (options.splits or 1) < 1 or options.workers < 1:
        parser.error("--splits and --workers must be at least 1")
    return options


def splits_of_sets(options: argparse.Namespace, default: Sequence[str], splits: int) -> dict[str, int]:
    """How many splits of each set the options `--sets NAME[:N] ...` and `--splits N` ask for.

    Raises:
        ConfigError: a number of splits is none.
    """
    found = {}
    for asked in options.sets or default:
        name, colon, own = asked.partition(":")
        if colon and not (own.isascii() and own.isdigit() and int(own)):
            raise ConfigError(
                f"{asked!r} does not say how many splits; write NAME, or NAME:N with N at least 1.",
                field="--sets",
                expected="NAME or NAME:N, N at least 1",
                got=own,
            )
        found[name] = int(own) if colon else options.splits or splits
    return found


def _all_splits(
    run: OneSplit, waiting: Sequence[tuple[str, int]], preset: str, workers: int
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Runs sets' splits, in this process or side by side in others, and yields each when it is done."""
    if workers == 1:
        for name, split in waiting:
            yield name, split, _one_split(run, name, split, preset)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        tasks = {pool.submit(_one_split, run, name, split, preset): (name, split) for name, split in waiting}
        for done in as_completed(tasks):
            yield *tasks[done], done.result()


def _one_split(run: OneSplit, name: str, split: int, preset: str) -> dict[str, Any]:
    try:
        return run(name, split, preset)
    except FiberwalkError as e:
        return {"error": e.message}
