"""What a build says between its bars."""

from __future__ import annotations

import io

from rich.console import Console

from builder.progress import StageBars


def test_brackets_in_names_are_no_markup() -> None:
    said = io.StringIO()
    StageBars(Console(file=said, width=200)).say("Column 'speed [m/s]' and class 'a[/s]' or '[low]'.", "yellow")
    assert said.getvalue() == "Column 'speed [m/s]' and class 'a[/s]' or '[low]'.\n"
