"""How commands print tables."""

from __future__ import annotations

import os
from typing import Final

from rich.console import Console
from rich.table import Table

_NO_WRAP: Final = 10_000


def print_tables(*tables: Table) -> None:
    """Prints tables no wider than a terminal; in a file or a pipe, where lines are searched, as wide as they need."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _NO_WRAP
    for table in tables:
        console.print(table)
