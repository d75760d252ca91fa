"""Words, numbers and tables as Markdown has them."""

from __future__ import annotations

import math
import re
from typing import Final

from model_store.manifest import RegressionTarget, Target

_WRITTEN_OUT: Final = 1e12
"""Numbers below are nowhere told in powers of ten."""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_unit(name: str, unit: str | None) -> str:
    """A name with its unit in brackets, where it has one."""
    return f"{name} ({unit})" if unit else name


def learned(target: Target) -> str:
    """Name and unit of what a network learns: of the target or of its logarithm."""
    if not isinstance(target, RegressionTarget):
        return target.name
    return ("natural logarithm of " if target.log else "") + with_unit(target.name, target.unit)


def escape(text: str) -> str:
    """Text that Markdown shows letter for letter, on one line, in tables too."""
    return re.sub(r"([\\`*\[\]<>|~$&]|\b_|_\b)", r"\\\1", " ".join(text.split()))


def unit_of(target: Target) -> str:
    """The unit that stands behind a number of the target, in Markdown, with a space before it; nothing without one."""
    unit = target.unit if isinstance(target, RegressionTarget) else None
    return f" {escape(unit)}" if unit else ""


def count(many: int, what: str) -> str:
    """So many of a thing, whose name is that of one."""
    return f"{many:,} {what}" + ("" if many == 1 else "s")


def number(value: float, digits: int = 4) -> str:
    """A number of so many digits; what is larger is written out with zeros."""
    short = f"{value:.{digits}g}"
    return f"{float(short):,.0f}" if abs(value) < _WRITTEN_OUT and abs(float(short)) >= 10**digits else short


def rounded(value: float, spread: float) -> float:
    """A value to about a thousandth of the spread around it."""
    digits = 3 - math.floor(math.log10(spread)) if spread > 0 and math.isfinite(spread) else 6
    return round(value, digits)
