"""The command `fiberwalk`: joins builder, store and server without making any of them import another."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from fiberwalk import build, demo, models, report, serve

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Calibrated uncertainty for neural networks, over REST."
)
build.register(app)
serve.register(app)
report.register(app)
demo.register(app)
app.add_typer(models.app, name="models", help="List, show, verify, alias, copy and delete models of a store.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("fiberwalk"))
        raise typer.Exit


@app.callback()
def main(
    show: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Calibrated uncertainty for neural networks, over REST."""
