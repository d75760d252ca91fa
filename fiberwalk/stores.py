"""What commands that look after a store share: its options, and how a refusal ends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from model_store import FiberwalkError, ModelStore, StoreError
from model_store.printable import harmless
from model_store.shelf import is_one_models

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="FIBERWALK_STORE", help="Folder of the models.", show_default="models")
]
Reference = Annotated[str, typer.Argument(metavar="NAME[@VERSION|@ALIAS]", help="The model.")]
DEFAULT_STORE = Path("models")


def existing_store(folder: Path) -> ModelStore:
    """The store of a folder. Raises StoreError where there is no folder, or it is that of one model."""
    if not folder.is_dir():
        raise StoreError(f"There is no store {str(folder)!r}; name one with --store, or build a model first.")
    return store_at(folder)


def store_at(folder: Path) -> ModelStore:
    """The same of a folder that need not be there."""
    if is_one_models(folder):
        raise StoreError(f"{str(folder)!r} is the folder of one model; name the store that it lies in.")
    return ModelStore(folder)


def one_line(error: FiberwalkError) -> str:
    """What an error says, as a terminal may show it."""
    return harmless(error.message + (f" Expected {error.expected}." if error.expected else ""))


@contextmanager
def reported() -> Iterator[None]:
    """Ends the command with one line on stderr and exit code 1 where fiberwalk refused."""
    try:
        yield
    except FiberwalkError as e:
        typer.echo(f"Error: {one_line(e)}", err=True)
        raise typer.Exit(1) from e
