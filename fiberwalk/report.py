"""`fiberwalk report`: the page that a build wrote of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fiberwalk.stores import DEFAULT_STORE, Reference, StoreOption, existing_store, reported
from model_store import StoreError
from model_store.errors import ConfigError
from model_store.manifest import REPORT_FILE


def register(app: typer.Typer) -> None:
    """Adds `report` to the command."""
    app.command()(report)


def report(
    reference: Reference,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Copy it to this file instead.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Say where a version's report lies: one page, with pictures, of what was built and how good it is.

    The page is verified first. A server shows the same at /models/NAME/report.
    """
    with reported():
        bundle = existing_store(store).open(reference)
        if REPORT_FILE not in bundle.manifest.files:
            raise StoreError(f"{bundle.name}@{bundle.version} has no report; build it again.")
        page, where = bundle.read(REPORT_FILE), bundle.path / REPORT_FILE
        if output is not None:
            where = output
            try:
                output.write_bytes(page)
            except OSError as e:
                raise ConfigError(
                    f"{str(output)!r} cannot be written ({e.strerror}); choose another file.", field="output"
                ) from e
        typer.echo(where)
        if show:
            typer.launch(where.absolute().as_uri())
