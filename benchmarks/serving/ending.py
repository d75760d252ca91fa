"""How every serving benchmark ends: goals into its file, and the table and the goals on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.quality.goals import Goal
from benchmarks.quality.tables import render_goals
from benchmarks.results import Results
from benchmarks.table import render


def conclude(
    results: Results,
    output: Path,
    title: str,
    shown: tuple[list[str], list[list[str]]],
    goals: Sequence[Goal],
    log: Console,
) -> int:
    """Saves the results' goals, and shows all. Returns the exit status.

    Args:
        results: of the file `output`.
        title, shown: of the table, and its header and rows.
    """
    results.save([{"goal": g.text, "state": g.state, "found": g.found} for g in goals])
    render(title, *shown)
    render_goals(goals)
    log.print(f"Written to {output}.", markup=False, soft_wrap=True)
    return 0
