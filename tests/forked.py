"""What a process of `tests.servers.serving` runs. It is forked from one that has imported the service: to import it
takes a second of the processor, and the tests start more than a hundred servers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

IMPORTED = ["fiberwalk.serve", "service.app", "uvicorn"]
"""Before any fork. Importing them starts nothing and reads no setting."""


def serve_forked(before: str, environment: dict[str, str], log: Path) -> None:
    """Runs `before` and then the server, with this environment and no other; what it says goes to the log."""
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    # As any process has it: uvicorn hands it on to its workers by number.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    exec(before, {})
    from fiberwalk.serve import serve

    serve()
