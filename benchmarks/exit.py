"""How a benchmark's command ends."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from model_store.errors import FiberwalkError


def exit_status(run: Callable[[], int], log: Console) -> int:
    """What the run returns, or 2 where it cannot start or go on, which is told."""
    try:
        return run()
    except FiberwalkError as e:
        log.print(f"{type(e).__name__}: {e.message}", markup=False, soft_wrap=True)
        return 2
