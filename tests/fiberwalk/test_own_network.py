"""A network of the user's own, from the command `fiberwalk build` to an answer of the server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from builder.own_network import import_factory
from fiberwalk.cli import app
from model_store import ModelStore
from model_store.bundle import Bundle
from model_store.manifest import TRUNK_FILE
from service.model import ServedModel
from tests.servers import serving

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("rough_pictures")

Array = NDArray[Any]

NETWORKS = """
from torch import nn


class Headed(nn.Module):
    def __init__(self, inputs: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh())
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.body(x))


def wide():
    return Headed(3)


def pictures():
    from own_layers import Pictures

    return Pictures()
"""
LAYERS = """
from torch import nn


class Pictures(nn.Module):
    # Batch normalisation, which only trained weights may bring.
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x))
"""


QUICK = """
[map]
steps = 1000
[fiber]
trajectories = 4
steps = 5
refinement = 10
[autoencoder]
steps = 50
"""


@dataclass(frozen=True)
class Built:
    """A published bundle, and the module it was built from where that had been trained elsewhere."""

    store: Path
    bundle: Bundle
    module: nn.Module | None = None


def fiberwalk_build(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed command in a folder, as a user does; nothing else puts that folder on Python's path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FIBERWALK_") and k != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [str(Path(sys.executable).with_name("fiberwalk")), "build", "--preset", "fast", "--device", "cpu"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


def build_here(folder: Path, *arguments: str) -> Result:
    """Runs the command in a folder, but in this process, as a new one takes many seconds to load torch and what it
    exports with."""
    settings = {k: None for k in os.environ if k.startswith("FIBERWALK_")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command = ["build", "--preset", "fast", "--device", "cpu", *arguments]
        return CliRunner(env={**settings, "COLUMNS": "200"}).invoke(app, command)


def build(folder: Path, *arguments: str, module: nn.Module | None = None, installed: bool = False) -> Built:
    (folder / "quick.toml").write_text(QUICK)
    words = ("quick.toml", "--name", "own", "--quiet", *arguments)
    if installed:
        run = fiberwalk_build(folder, *words)
        code, out, err = run.returncode, run.stdout, run.stderr
    else:
        done = build_here(folder, *words)
        code, out, err = done.exit_code, done.stdout, done.stderr
    assert code == 0, err
    assert "own@1" in out
    bundle = ModelStore(folder / "models").open("own")
    bundle.verify()
    return Built(folder / "models", bundle, module)


def own_module(folder: Path, name: str, patch: pytest.MonkeyPatch) -> nn.Module:
    """What the command will make of `name` in the folder."""
    patch.chdir(folder)
    torch.manual_seed(7)
    return import_factory(name)()


def train(module: nn.Module, x: Array, y: Array, loss: Callable[..., torch.Tensor], steps: int = 300) -> None:
    inputs, target = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    optimizer = torch.optim.Adam(module.parameters(), 0.03, weight_decay=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        out = module(inputs)
        loss(out[:, 0] if target.is_floating_point() else out, target).backward()
        optimizer.step()
    module.eval()


def at_given_weights(bundle: Bundle, rows: list[Any]) -> Array:
    """Outputs (B, O) of the server's engine at the anchor itself, the start of every trajectory."""
    model = ServedModel(bundle)
    anchor = np.zeros(1, dtype=np.int64)
    weights = model.engine.bind(model.engine.decode(model.nodes[0, :1, 0], anchor), anchor)
    (out,) = model.engine.outputs(weights, model.encoder.encode(rows), 8192)
    return np.asarray(out[0])


def predict(built: Built, rows: list[Any]) -> dict[str, Any]:
    """What a running server answers."""
    with serving(built.store) as server, server.client() as client:
        answer = client.post("/predict", json={"inputs": rows}).raise_for_status().json()
    assert isinstance(answer, dict)
    return answer


def plane(rows: int = 120) -> tuple[Array, Array]:
    """y = sin(2a) + b / 2 + noise of 0.2."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (rows, 2))
    return x, np.sin(2 * x[:, 0]) + x[:, 1] / 2 + 0.2 * rng.normal(size=rows)


def stripes(rows: int = 90) -> tuple[Array, Array]:
    """Pictures (1, 6, 6) with stripes along one way, the other, or none, brightness in no unit that is usual."""
    rng = np.random.default_rng(1)
    y = np.arange(rows) % 3
    wave = np.tile([0.0, 40.0], 3)
    clean = np.stack([np.tile(wave, (6, 1)), np.tile(wave[:, None], (1, 6)), np.full((6, 6), 20.0)])
    return (100 + clean[y] + 6 * rng.normal(size=(rows, 6, 6)))[:, None], y


def folder_with_networks(root: Path) -> Path:
    (root / "own_networks.py").write_text(NETWORKS)
    (root / "own_layers.py").write_text(LAYERS)
    x, y = plane()
    np.savetxt(root / "plane.csv", np.c_[x, y], delimiter=",", header="a,b,y", comments="")
    pictures, kinds = stripes()
    np.savez(root / "stripes.npz", x=pictures, y=kinds)
    return root


REGRESSION = ("--data", "plane.csv", "--target", "y", "--task", "regression")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A regression trained elsewhere on the numbers as they are; all weights random."""
    folder = folder_with_networks(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        module = own_module(folder, "own_networks:Headed", patch)
    train(module, *(v.astype(np.float32) for v in plane()), nn.functional.mse_loss)
    save_file(module.state_dict(), folder / "map.safetensors")
    return build(folder, *REGRESSION, "--network", "own_networks:Headed", "--weights", "map.safetensors", module=module)


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A classifier of pictures trained elsewhere, with batch normalisation; only its head is random. Built as a user
    does, by the installed command, to which the factory's own import of another file is new."""
    folder = folder_with_networks(tmp_path_factory.mktemp("headed"))
    with pytest.MonkeyPatch.context() as patch:
        module = own_module(folder, "own_networks:pictures", patch)
    x, y = stripes()
    train(module, x, y, nn.functional.cross_entropy)
    save_file(module.state_dict(), folder / "map.safetensors")
    data = ("--data", "stripes.npz", "--task", "classification")
    network = ("--network", "own_networks:pictures", "--weights", "map.safetensors", "--posterior", r"head\.")
    return build(folder, *data, *network, module=module, installed=True)


def test_given_weights_are_served_with_error_bars(trained: Built) -> None:
    manifest, module = trained.bundle.manifest, trained.module
    assert module is not None
    assert TRUNK_FILE not in manifest.files
    assert manifest.network.trunk_outputs == []
    assert (manifest.latent.anchors, manifest.network.fixed_weights) == (1, 0)
    rows = [[a, b] for a in (-1.9, -0.7, 0.4, 1.6) for b in (-1.5, 0.2, 1.8)]
    with torch.no_grad():
        own = module(torch.tensor(rows)).numpy()
    np.testing.assert_allclose(at_given_weights(trained.bundle, rows), own, rtol=1e-5, atol=1e-5)
    answer = predict(trained, rows)
    low, high = np.array(answer["interval"]).T
    assert (low <= own[:, 0]).all() and (own[:, 0] <= high).all()
    assert (np.abs(answer["mean"] - own[:, 0]) < 2 * np.sqrt(answer["variance"])).all()
    # The error bar is that of the noise, not one of anything.
    assert 0.15 < np.sqrt(np.mean(answer["variance"])) < 0.6


def test_fixed_weights_are_served_as_a_trunk(headed: Built) -> None:
    manifest, module = headed.bundle.manifest, headed.module
    assert module is not None
    assert TRUNK_FILE in manifest.files
    assert manifest.network.trunk_outputs
    assert [p.name for p in manifest.network.parameters] == ["head.weight", "head.bias"]
    assert manifest.network.weights == 51
    # Convolution and the affine part of the normalisation.
    assert manifest.network.fixed_weights == 40 + 8
    x = stripes()[0][:12]
    with torch.no_grad():
        logits = module(torch.tensor(x, dtype=torch.float32))
    np.testing.assert_allclose(at_given_weights(headed.bundle, x.tolist()), logits.numpy(), rtol=1e-4, atol=1e-4)
    answer = predict(headed, x.tolist())
    calibration = manifest.calibration
    assert calibration.task == "classification"
    own = (logits / calibration.temperature).softmax(1).numpy()
    mean, std = np.array(answer["mean"]), np.sqrt(answer["variance"])
    assert (np.abs(mean - own) <= 3 * std + 1e-3).all()
    assert answer["label"] == logits.argmax(1).tolist() == (np.arange(12) % 3).tolist()


def test_an_untrained_network_is_trained_before_a_part_of_it_is_fixed(tmp_path: Path) -> None:
    built = build(
        folder_with_networks(tmp_path), *REGRESSION, "--network", "own_networks:Headed", "--posterior", "head"
    )
    manifest = built.bundle.manifest
    assert TRUNK_FILE in manifest.files
    assert (manifest.network.weights, manifest.network.fixed_weights) == (9, 140)
    assert manifest.build.config["network"]["factory"] == "own_networks:Headed"
    rows = [[a, b] for a in (-1.5, -0.5, 0.5, 1.5) for b in (-1.0, 1.0)]
    answer = predict(built, rows)
    truth = np.array([np.sin(2 * a) + b / 2 for a, b in rows])
    # An untrained body would leave the spread of sin(2a), 0.7.
    assert np.sqrt(np.mean((np.array(answer["mean"]) - truth) ** 2)) < 0.3
    # The noise is 0.2, so intervals for new measurements hold the function itself nearly everywhere.
    low, high = np.array(answer["interval"]).T
    assert ((low <= truth) & (truth <= high)).mean() >= 0.75


# ---- what cannot be used


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = folder_with_networks(tmp_path_factory.mktemp("wrong"))
    (found / "own_typo.py").write_text("def make(:\n")
    with pytest.MonkeyPatch.context() as patch:
        save_file(own_module(found, "own_networks:wide", patch).state_dict(), found / "wide.safetensors")
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--network own_networks:Head", "--network own_networks:Head cannot be imported: AttributeError"),
        ("--network own_typo:make", "--network own_typo:make cannot be imported: SyntaxError"),
        ("--network own_networks:wide", "The network does not take the data"),
        ("--network own_networks:Headed --weights map.safetensors", "--weights map.safetensors cannot be read"),
        ("--network own_networks:Headed --weights wide.safetensors", "--weights wide.safetensors does not fit"),
        ("--network own_networks:Headed --posterior tail", "--posterior matches no parameter of the network."),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_message(folder: Path, arguments: str, message: str) -> None:
    done = build_here(folder, "--name", "own", *REGRESSION, *arguments.split())
    assert_refused(folder, done.exit_code, done.stdout, done.stderr, message)


def test_a_network_that_is_not_there_is_refused_by_the_installed_command(folder: Path) -> None:
    done = fiberwalk_build(folder, "--name", "own", *REGRESSION, "--network", "own_network:Headed")
    message = "--network own_network:Headed cannot be imported: ModuleNotFoundError"
    assert_refused(folder, done.returncode, done.stdout, done.stderr, message)


def assert_refused(folder: Path, code: int, out: str, err: str, message: str) -> None:
    assert code == 1
    assert out == ""
    assert err.startswith(f"ConfigError: {message}")
    assert err.count("ConfigError") == 1 and "Traceback" not in err
    assert not (folder / "models").exists()
    assert not (folder / ".fiberwalk").exists()
