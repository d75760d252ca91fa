"""The command `fiberwalk build`."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from fiberwalk.models import tell_changes
from fiberwalk.tables import print_tables
from model_store import FiberwalkError, ModelStore, StoreError

if TYPE_CHECKING:
    from builder.pipeline import BuildResult


def register(app: typer.Typer) -> None:
    """Adds `build` and `recipe` to the command."""
    app.command()(build)
    app.command()(recipe)


def build(
    recipe: Annotated[Path | None, typer.Argument(help="TOML with any option, one table a stage.")] = None,
    data: Annotated[Path | None, typer.Option(help="CSV, Parquet or .npz (arrays x, y).")] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict; not needed for .npz.")] = None,
    task: Annotated[str | None, typer.Option(help="regression or classification.")] = None,
    log_target: Annotated[
        bool, typer.Option("--log-target", help="Learn the target's logarithm: prices, durations and the like.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    store: Annotated[
        Path | None, typer.Option(envvar="FIBERWALK_STORE", help="Folder of the model store; default: models.")
    ] = None,
    network: Annotated[str | None, typer.Option(help="module:factory of your own nn.Module.")] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors with its trained weights.")] = None,
    posterior: Annotated[str | None, typer.Option(help="REGEX: names of the random parameters; default: all.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column to leave out; may be repeated.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    seed: Annotated[int | None, typer.Option(help="A build is a function of its inputs and this.")] = None,
    preset: Annotated[str | None, typer.Option(help="fast, default or thorough.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for finished stages, which are then kept.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.OPTION=VALUE",
            help="Any option (`fiberwalk recipe` lists them), such as map.served=5; may be repeated.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Train the posterior of a network on a data file and publish it in the model store.

    On several GPUs or machines: torchrun --nproc-per-node 4 -m fiberwalk build ...
    """
    console = Console(stderr=True)
    # Lines of a log are whole.
    say = partial(console.print, markup=False, highlight=False, soft_wrap=not console.is_terminal)
    with _builder(console):
        from builder.config import make_config
        from builder.distributed import first, joined, leave
        from builder.pipeline import refuse_unwritable, run_build
        from builder.progress import StageBars
        from builder.recipe import read_recipe, with_settings
    options: dict[str, dict[str, Any] | Any] = {
        "": {"name": name, "store": store, "device": device, "seed": seed, "preset": preset, "work": work},
        "data": {"file": data, "target": target, "task": task, "drop": drop or None, "log_target": log_target or None},
        "network": {"factory": network, "weights": weights, "posterior": posterior},
    }
    running, before = False, None
    try:
        with joined():
            values: dict[str, Any] = read_recipe(recipe) if recipe else {}
            for table, given in options.items():
                place = values.setdefault(table, {}) if table else values
                if isinstance(place, dict):
                    place.update({k: v for k, v in given.items() if v is not None})
            values = with_settings(values, settings or [])
            table = values["data"]
            lacks_task = isinstance(table, dict) and not table.get("task")
            for option, lacks in (("--name", not values.get("name")), ("--task", lacks_task)):
                if lacks:
                    say(f"Say {option}, or name a recipe that does.")
                    raise typer.Exit(2)
            config = make_config(values)
            if first():
                # Now, and not after hours.
                refuse_unwritable(config)
                before = _meant(ModelStore(config.store), config.name)
            running = True
            result = run_build(config, bars=StageBars(console, quiet or not first()))
            for warning in result.bundle.manifest.build.warnings if quiet else ():
                say(warning)
            _show(result, config.store, before)
            return
        leave()
    except FiberwalkError as e:
        console.print(f"[red]{type(e).__name__}[/red]: ", end="")
        say(e.message)
        for label, detail in (("field", e.field), ("expected", e.expected), ("got", e.got)):
            if detail:
                say(f"  {label}: {detail}")
        if running and isinstance(e, StoreError):
            say("Finished stages are kept: the same command goes on from there, also with another --store.")
        raise typer.Exit(1) from e
    except (OSError, SafetensorError) as e:
        if not _is_full(e):
            raise
        say(f"The disk is full ({e}). Finished stages are kept: make room, and the same command goes on from there.")
        raise typer.Exit(1) from e
    except KeyboardInterrupt as e:
        console.print("Stopped. Finished stages are kept: the same command goes on from there.")
        raise typer.Exit(130) from e


def recipe() -> None:
    """Print every option of a build, as a recipe to start from: fiberwalk recipe > recipe.toml"""
    with _builder(Console(stderr=True)):
        from builder.recipe import template
    typer.echo(template(), nl=False)


@contextmanager
def _builder(console: Console) -> Iterator[None]:
    """Says what to install where an import of the builder fails."""
    try:
        yield
    except ImportError as e:
        console.print(f"{e.name} is missing; to build: pip install 'fiberwalk[build]'", markup=False)
        raise typer.Exit(1) from e


def _show(result: BuildResult, store: Path, before: int | None) -> None:
    """Tells what was built, and what becomes of requests that a version before answered."""
    bundle, models = result.bundle, ModelStore(store)
    table = Table("predictor", "split", "rows", "figures", title=f"{bundle.name}@{bundle.version}")
    for m in result.metrics:
        figures = "  ".join(f"{k} {v:.4g}" for k, v in m.values.items())
        table.add_row(m.predictor, m.split, str(m.rows), figures)
    print_tables(table)
    at = f"--store {shlex.quote(str(store))}"
    typer.echo(f"Published in {bundle.path}. Serve it: fiberwalk serve {at}")
    if before is None:
        return
    served = _meant(models, bundle.name)
    if served != bundle.version:
        # Whoever set a champion chose that; whoever forgot it wonders.
        typer.echo(
            f"The bare name means {bundle.name}@{served}. To roll out: "
            f"fiberwalk models alias {bundle.name}@{bundle.version} champion {at}"
        )
    tell_changes(models, f"{bundle.name}@{before}", f"{bundle.name}@{bundle.version}")


def _is_full(error: Exception) -> bool:
    """Whether a file found no room; what writes tensors tells it in words alone."""
    full = {errno.ENOSPC, errno.EDQUOT}
    return getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full)


def _meant(models: ModelStore, name: str) -> int | None:
    """The version that a bare name means, if any."""
    with suppress(StoreError):
        return models.resolve(name)[1]
    return None
