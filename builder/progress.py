"""How a long stage tells where it is, and the bar that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

StepReport = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, present loss)."""


def silent(done: int, steps: int, loss: float) -> None:
    """Reports nothing."""


class StageBars:
    """One progress bar a stage, with its loss and the estimated time left."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet

    def say(self, text: str, style: str | None = None) -> None:
        """Prints a line between the bars, as it is: names in it may hold brackets."""
        if not self._quiet:
            self._console.print(text, style=style, markup=False, highlight=False)

    @contextmanager
    def stage(self, title: str) -> Iterator[StepReport]:
        """Shows a bar while the stage runs and yields its report function."""
        if self._quiet:
            yield silent
            return
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(30),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=None, loss="")

            def report(done: int, steps: int, loss: float) -> None:
                progress.update(task, completed=done, total=steps, loss=f"loss {loss:.4g}")

            yield report
            total = progress.tasks[0].total or 1
            progress.update(task, completed=total, total=total)
