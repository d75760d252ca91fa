"""What an experiment is: cases that are run one by one, and a report that is a function of their figures alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.results import Run
from benchmarks.table import estimate

Case = tuple[str, int]
"""A data set and the number of its split."""


@dataclass(frozen=True)
class Table:
    """A table of text, its first column to the left."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """What the figures show.

    Attributes:
        findings: sentences, made from the figures.
        pictures: PNG files by name.
    """

    tables: Sequence[Table]
    pictures: dict[str, bytes] = field(default_factory=dict)
    findings: Sequence[str] = ()


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        title: a heading; about: what is done and what the figures mean, in Markdown.
        cases: in the order in which they are run.
        run: figures of one case with a preset of the build, as JSON values.
        report: of the figures of one case or more, in the order of `cases`.
    """

    title: str
    about: str
    cases: Sequence[Case]
    run: Callable[[str, int, str], dict[str, Any]]
    report: Callable[[Sequence[Run]], Report]


def by_set(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by data set, in their order."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run["set"], []).append(run)
    return found


def heading(name: str, runs: Sequence[Run]) -> str:
    """A set's name with the number of splits behind its figures."""
    return f"{name} ({len(runs)})"


def apart(values: Sequence[float], others: Sequence[float]) -> str:
    """The mean paired difference with its standard error, as text with a sign."""
    found = estimate([v - o for v, o in zip(values, others, strict=True)])
    sign = "+" if found.mean >= 0 else "−"
    error = "" if found.standard_error is None else f" ± {found.standard_error:.3f}"
    return f"{sign}{abs(found.mean):.3f}{error}"
