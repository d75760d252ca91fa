"""`fiberwalk models`: looks after the bundles of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.markup import escape
from rich.table import Table

from fiberwalk.stores import DEFAULT_STORE, Reference, StoreOption, existing_store, one_line, reported, store_at
from fiberwalk.tables import print_tables
from model_store import Bundle, FiberwalkError, IntegrityError, ModelStore, StoreError
from model_store.changes import changes
from model_store.manifest import CategoricalColumn, NumericColumn, RegressionTarget, TensorInput
from model_store.printable import harmless, harmless_lines
from model_store.shelf import Shelf

app = typer.Typer(no_args_is_help=True, help="List, show, verify, alias, copy and delete the models of a store.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_models(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List every version of every model."""
    with reported():
        rows = list(_rows(existing_store(store)))
        if as_json:
            _print_json(rows)
            return
        table = Table("model", "aliases", "task", "target", "created", "weights", "manifest")
        for row in rows:
            table.add_row(
                _shown(f"{row['name']}@{row['version']}" if row["version"] else row["name"]),
                _shown(", ".join(row["aliases"])),
                row["task"] or "",
                _shown(row["target"] or ""),
                (row["created"] or "")[:16].replace("T", " "),
                "" if row["weights"] is None else f"{row['weights']:,}",
                "ok" if row["error"] is None else f"[red]{_shown(row['error'])}[/red]",
            )
        if rows:
            print_tables(table)
        else:
            _tell_empty(store)


@app.command()
def show(reference: Reference, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show what one model takes, what it answers and how well it did."""
    with reported():
        models = existing_store(store)
        bundle = models.open(reference)
        aliases = sorted(a for a, v in models.aliases(bundle.name).items() if v == bundle.version)
        if as_json:
            manifest = bundle.manifest.model_dump(mode="json")
            _print_json(
                {"path": str(bundle.path), "digest": bundle.digest, "aliases": aliases, "manifest": manifest},
            )
            return
        print_tables(_summary(bundle, aliases), _inputs(bundle), _metrics(bundle), _files(bundle))


@app.command()
def verify(
    references: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME[@VERSION|@ALIAS]]...", help="The models; all by default.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Check every byte of the models against their manifests.

    This finds accidents: files that are missing, damaged or half copied. It is no signature: whoever may write to the
    store can change a file and the manifest with it.
    """
    with reported():
        models = existing_store(store)
        every = [(r, partial(models.open, r)) for r in references] if references else list(_every(models))
    damaged = 0
    for reference, opened in every:
        try:
            bundle = opened()
            bundle.verify()
        except Exception as e:
            # Whatever a bundle makes a library raise, the others are looked at.
            damaged += 1
            why = one_line(e) if isinstance(e, FiberwalkError) else f"cannot be checked ({e!r}); publish it again."
            typer.echo(f"{reference}: {why}", err=True)
        else:
            size = sum(f.size for f in bundle.manifest.files.values())
            typer.echo(f"{bundle.name}@{bundle.version}: ok, {len(bundle.manifest.files)} files, {size:,} bytes")
    if not every:
        _tell_empty(store)
    if damaged:
        typer.echo(f"{damaged} of {len(every)} did not verify.", err=True)
        raise typer.Exit(1)


@app.command()
def alias(
    reference: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The version that the alias shall mean.")],
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias, such as champion.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias instead.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Set it even where the version does not verify.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Make an alias mean a version. A server follows without a restart; a bare NAME means its champion."""
    with reported():
        models = existing_store(store)
        if remove:
            model = reference.partition("@")[0]
            models.remove_alias(model, name)
            typer.echo(f"{model}@{name} means nothing any more.")
            return
        if "@" not in reference:
            raise StoreError(f"Say which version of {reference!r} {name!r} shall mean.", expected="NAME@VERSION")
        model, version = models.resolve(reference)
        if not force:
            _refuse_damaged(models, f"{model}@{version}")
        before = models.set_alias(model, name, version)
        # To roll back one has to know.
        told = "" if before in {None, version} else f"; before it meant {model}@{before}"
        typer.echo(f"{model}@{name} means {model}@{version}{told}.")
        if before is not None:
            tell_changes(models, f"{model}@{before}", f"{model}@{version}")


@app.command()
def copy(
    reference: Reference,
    destination: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store to copy it into.")],
    renumber: Annotated[
        bool, typer.Option("--renumber", help="Where its number is taken there, give it the next one.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Copy a version into another store, such as from staging to production.

    The copy is verified and appears as a whole, so that a server of that store can run. It keeps its number and is the
    same to the byte; where it is there already nothing is done. Aliases are not copied.
    """
    with reported():
        bundle = existing_store(store).open(reference)
        if not destination.is_dir():
            raise StoreError(f"There is no folder {str(destination)!r} to copy into; make it first.")
        other = store_at(destination)
        there = other.adopt(bundle, renumber=renumber)
        told = f"{bundle.name}@{bundle.version} is in {str(destination)!r} as {there.name}@{there.version}"
        means = "" if other.resolve(there.name)[1] != there.version else f"; there {there.name} means it"
        typer.echo(f"{told}{means}.")


@app.command()
def delete(
    references: Annotated[list[str], typer.Argument(metavar="NAME@VERSION...", help="The versions to delete.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Delete versions. Their numbers are never given again."""
    with reported():
        models = existing_store(store)
        wanted = list(dict.fromkeys("{}@{}".format(*models.resolve(r)) if "@" in r else r for r in references))
        if not yes and all("@" in r for r in wanted) and not _confirmed(f"Delete {', '.join(wanted)} for good?"):
            typer.echo("Nothing was deleted.")
            raise typer.Exit(1)
        for reference in wanted:
            name, version = models.delete(reference)
            typer.echo(f"{name}@{version} is deleted.")


def _confirmed(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:
        typer.echo("\nNobody answered; --yes deletes without asking.", err=True)
        return False


def tell_changes(models: ModelStore, before: str, after: str) -> None:
    """Warns whoever lets a version answer in place of another, where requests for that may not fit."""
    with suppress(StoreError):  # what cannot be read answers nobody
        for change in changes(models.open(before).manifest, models.open(after).manifest):
            typer.echo(harmless(f"Warning: {after} differs from {before}. {change}"), err=True)


# ---- reading the store


def _tell_empty(folder: Path) -> None:
    typer.echo(f"The store {str(folder)!r} holds no model yet.")


def _refuse_damaged(models: ModelStore, reference: str) -> None:
    try:
        models.open(reference).verify()
    except FiberwalkError as e:
        raise StoreError(f"No alias may mean what does not verify, unless with --force. {one_line(e)}") from e


def _every(models: ModelStore) -> Iterator[tuple[str, Callable[[], Bundle]]]:
    """A reference to everything that looks like a version, and what opens it, or raises why it cannot be opened."""
    for name in models.folders():
        try:
            versions, unfinished = models.versions(name), models.unfinished(name)
        except StoreError as e:
            yield name, partial(_raised, e)
            continue
        for version in sorted(versions + unfinished):
            reference = f"{name}@{version}"
            missing = IntegrityError(f"{reference} has no manifest; copy it again as a whole, or remove its folder.")
            yield reference, partial(_raised, missing) if version in unfinished else partial(models.open, reference)


def _raised(error: StoreError) -> Bundle:
    raise error


def _rows(models: ModelStore) -> Iterator[dict[str, Any]]:
    shelf = Shelf("", {}, {})
    for reference, opened in _every(models):
        name, _, version = reference.partition("@")
        if shelf.name != name:  # all versions of a name come after each other
            shelf = models.shelf(name)
        error: FiberwalkError | None = shelf.damage
        manifest = None
        try:
            manifest = opened().manifest
        except FiberwalkError as e:
            error = e
        yield {
            "name": name,
            "version": int(version) if version else None,
            "aliases": sorted(a for a, v in shelf.aliases.items() if str(v) == version),
            "task": manifest and manifest.task,
            "target": manifest and manifest.target.name,
            "created": manifest and manifest.build.created.isoformat(),
            "weights": manifest and manifest.network.random_weights,
            "error": error and error.message,
        }


# ---- tables


def _summary(bundle: Bundle, aliases: list[str]) -> Table:
    m = bundle.manifest
    table = Table(title=f"{bundle.name}@{bundle.version}", show_header=False, title_justify="left")
    if isinstance(m.target, RegressionTarget):
        target = f"{m.target.name}{f' ({m.target.unit})' if m.target.unit else ''}"
        target += ", of which its logarithm is learned" if m.target.log else ""
    else:
        target = f"{m.target.name}: {', '.join(str(c) for c in m.target.classes)}"
    network = (
        f"{m.network.description}, {m.network.random_weights:,} random and {m.network.fixed_weights:,} fixed weights"
    )
    built = f"{m.build.created:%Y-%m-%d %H:%M} on {m.build.data_rows:,} rows, seed {m.build.seed}, {m.build.device}"
    rows = {
        "task": m.task,
        "target": target,
        "network": network.removeprefix(", "),
        "posterior": f"{m.latent.anchors} anchors, {m.latent.trajectories} trajectories each, rank {m.latent.rank}",
        "samples": ", ".join(f"{name} {plan.samples}" for name, plan in m.latent.plans.items()),
        "built": built,
        "aliases": ", ".join(aliases) or "none",
        "digest": bundle.digest,
        "folder": str(bundle.path),
    }
    for key, value in [*rows.items(), *(("warning", w) for w in m.build.warnings)]:
        table.add_row(key, _shown(value))
    return table


def _inputs(bundle: Bundle) -> Table:
    spec = bundle.manifest.inputs
    table = Table("input", "kind", "unit", "seen in training", title="inputs", title_justify="left")
    if isinstance(spec, TensorInput):
        table.add_row("array", " x ".join(str(n) for n in spec.shape), _shown(spec.unit or ""), "")
        return table
    for column in spec.columns:
        table.add_row(_shown(column.name), column.kind, _shown(column.unit or ""), _shown(_seen(column)))
    return table


def _seen(column: NumericColumn | CategoricalColumn) -> str:
    if isinstance(column, CategoricalColumn):
        return ", ".join(column.categories)
    if column.minimum is None or column.maximum is None:
        return ""
    return f"{column.minimum:g} to {column.maximum:g}"


def _metrics(bundle: Bundle) -> Table:
    measured = bundle.manifest.metrics
    names = list(dict.fromkeys(key for m in measured for key in m.values))
    table = Table("predictor", "split", "rows", *(_shown(n) for n in names), title="metrics", title_justify="left")
    for m in measured:
        values = (f"{m.values[n]:.4g}" if n in m.values else "" for n in names)
        table.add_row(m.predictor, m.split.replace("_", " "), f"{m.rows:,}", *values)
    return table


def _files(bundle: Bundle) -> Table:
    table = Table("file", "bytes", "sha256", title="files", title_justify="left")
    for name, entry in bundle.manifest.files.items():
        table.add_row(_shown(name), f"{entry.size:,}", entry.sha256[:16])
    return table


# ---- answers


def _shown(text: str) -> str:
    """A bundle's words in a table: neither markup nor a command to the terminal."""
    return escape(harmless(text))


def _print_json(content: Any) -> None:
    # NaN and infinity, which a metric may be, are no JSON.
    typer.echo(harmless_lines(to_json(content, indent=2, inf_nan_mode="null").decode()))
