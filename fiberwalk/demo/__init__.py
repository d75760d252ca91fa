"""The command `fiberwalk demo`: builds two models from real data, serves them and asks for predictions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from model_store import ModelStore
from model_store.errors import FiberwalkError

HERE = Path(__file__).parent
_READY_SECONDS = 60


def register(app: typer.Typer) -> None:
    """Adds `demo` to the command."""
    app.command()(demo)


def demo(
    store: Annotated[Path, typer.Option(help="Folder of the demo's model store.")] = Path(".demo/models"),
    port: Annotated[int, typer.Option(help="Port of the demo's server; another free one if it is taken.")] = 8000,
) -> None:
    """Build two models from real data, serve them, and show predictions with their error bars.

    The server stays up until Ctrl-C; with DEMO_EXIT=1 in the environment it is stopped at the end.
    """
    console = Console()
    try:
        for recipe in ("snelson", "digits"):
            _build(console, recipe, store)
    except FiberwalkError as e:
        console.print(f"{e.message}", markup=False)
        raise typer.Exit(1) from e
    server, address = _serve(store, port)
    try:
        _show_snelson(console, address)
        _show_digits(console, address)
        picture = ModelStore(store).open("snelson").path / "posterior.png"
        console.print(f"\nThe posterior (MAP, samples, mean and band over the data): {picture}", soft_wrap=True)
        if os.environ.get("DEMO_EXIT") == "1":
            console.print("DEMO_EXIT=1: the server is stopped.")
            return
        console.print(
            f"The server is running at {address}, which shows the reports of both models in a browser (documentation: "
            f"{address}/docs). Ctrl-C stops it."
        )
        server.wait()
    except KeyboardInterrupt:
        console.print("\nStopped.")
    finally:
        server.terminate()
        server.wait()


def _build(console: Console, recipe: str, store: Path) -> None:
    from builder.config import make_config
    from builder.pipeline import run_build
    from builder.progress import StageBars
    from builder.recipe import read_recipe

    values = read_recipe(HERE / f"{recipe}.toml")
    values |= {"store": store, "work": store.parent / "work" / recipe}
    console.rule(f"building {recipe}")
    start = time.perf_counter()
    result = run_build(make_config(values), bars=StageBars(console))
    figures = next(m for m in result.metrics if m.predictor == "posterior" and m.split == "test")
    shown = ", ".join(f"{k} {v:.3g}" for k, v in figures.values.items())
    console.print(f"{result.bundle.name}@{result.bundle.version} in {time.perf_counter() - start:.0f} s; test: {shown}")


def _serve(store: Path, port: int) -> tuple[subprocess.Popen[bytes], str]:
    for candidate in (port, 0):
        command = [sys.executable, "-m", "fiberwalk", "serve", "--store", str(store), "--port", str(candidate)]
        server = subprocess.Popen([*command, "--log-level", "warning"], stderr=subprocess.PIPE)
        assert server.stderr is not None
        line = server.stderr.readline().decode()
        address = line.rpartition(" at ")[2].strip()
        if address.startswith("http"):
            _wait_until_ready(address)
            return server, address
        server.wait()
    raise typer.Exit(1)


def _wait_until_ready(address: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _ask(address: str, route: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        address + route, json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def _show_snelson(console: Console, address: str) -> None:
    rows = {"data": [0.5, 1.2, 4.5], "gap": [2.25], "outside": [-6.0, 14.0]}
    inputs = [[x] for xs in rows.values() for x in xs]
    p = _ask(address, "/predict", model="snelson", inputs=inputs, ood=True)
    table = Table(
        "x",
        "where",
        "prediction",
        "90 % interval",
        "aleatoric std",
        "epistemic std",
        "OOD",
        title="snelson",
    )
    places = [place for place, xs in rows.items() for _ in xs]
    for i, place in enumerate(places):
        low, high = p["interval"][i]
        table.add_row(
            f"{inputs[i][0]:g}",
            place,
            f"{p['mean'][i]:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{p['aleatoric_variance'][i] ** 0.5:.2f}",
            f"{p['epistemic_variance'][i] ** 0.5:.2f}",
            "[bold red]flagged[/bold red]" if p["ood"]["flag"][i] else "no",
        )
    console.print(table)


def _show_digits(console: Console, address: str) -> None:
    import numpy as np

    with np.load(HERE / "digits.npz", allow_pickle=False) as z:
        x, y = z["x"], z["y"]
    rng = np.random.default_rng(0)
    rows = [(f"a {y[i]}", x[i]) for i in (0, 1, 2)]
    rows += [("a 3 over an 8", (x[3].astype(int) + x[8]) // 2), ("random pixels", rng.integers(0, 17, 64))]
    rows.append(("inverted", 16 - x[4].astype(int)))
    inputs = [np.asarray(v).tolist() for _, v in rows]
    p = _ask(address, "/predict", model="digits", inputs=inputs, ood=True)
    table = Table("input", "label", "probability", "aleatoric (nats)", "epistemic (nats)", "OOD", title="digits")
    for i, (what, _) in enumerate(rows):
        best = max(range(len(p["mean"][i])), key=p["mean"][i].__getitem__)
        deviation = p["variance"][i][best] ** 0.5
        table.add_row(
            what,
            str(p["label"][i]),
            f"{p['mean'][i][best]:.2f} ± {deviation:.2f}",
            f"{p['expected_entropy'][i]:.3f}",
            f"{p['mutual_information'][i]:.3f}",
            "[bold red]flagged[/bold red]" if p["ood"]["flag"][i] else "no",
        )
    console.print(table)
