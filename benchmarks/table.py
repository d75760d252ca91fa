"""Means over splits with their standard error, and tables of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from rich import table as rich_table
from rich.console import Console

MET, NOT_MET = "met", "not met"
NOT_DECIDED = "not decided"
"""Of what the means meet and chance may explain."""
_ERRORS = 2
_PLAIN_WIDTH = 200


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, which one value alone does not have (None)."""

    mean: float
    standard_error: float | None

    def text(self, digits: int = 3) -> str:
        """As `0.904 ± 0.011`, or the mean alone."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.standard_error is None else f"{mean} ± {self.standard_error:.{digits}f}"

    def surely_below(self, most: float) -> bool:
        """Whether the mean is below by more than two standard errors; where there is none, nothing is sure."""
        return self.standard_error is not None and self.mean + _ERRORS * self.standard_error < most

    def surely_above(self, least: float) -> bool:
        """The same the other way."""
        return Estimate(-self.mean, self.standard_error).surely_below(-least)


@dataclass(frozen=True)
class Table:
    """A titled table of text."""

    title: str
    header: list[str]
    rows: list[list[str]]


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of at least one value, and the sample standard deviation over the root of their number."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), error)


def mark(met: bool) -> str:
    """What a promise is marked with."""
    return MET if met else NOT_MET


def verdict(sure: bool, by_the_mean: bool) -> str:
    """What a goal is marked with that is met where figures say so beyond chance, and left open where only means do."""
    return NOT_DECIDED if by_the_mean and not sure else mark(sure)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown, the first column to the left."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---", *["---:"] * (len(header) - 1)], *rows)]


def render(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], file: IO[str] | None = None) -> None:
    """Prints a table, the first column to the left; on a terminal marks are coloured, a file gets the full width."""
    file = file or sys.stdout
    table = rich_table.Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    colours = {MET: "[green]met[/green]", NOT_MET: "[red]not met[/red]", NOT_DECIDED: "[yellow]not decided[/yellow]"}
    for row in rows:
        table.add_row(*(colours.get(cell, cell) for cell in row))
    Console(file=file, width=None if file.isatty() else _PLAIN_WIDTH, highlight=False).print(table)
