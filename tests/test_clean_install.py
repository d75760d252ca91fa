"""`pip install .` alone, with no extra, serves a bundle: in a fresh environment, where torch is absent."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests import bundles

ROOT = Path(__file__).parent.parent
ABSENT = ["torch", "onnx", "onnxscript", "pandas", "pyarrow", "matplotlib", "sklearn"]


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment that holds nothing but `pip install .`."""
    folder = tmp_path_factory.mktemp("clean")
    # A copy, because setuptools leaves its build folder in the source tree.
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("builder", "fiberwalk", "model_store", "service"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    # This environment's pip installs into the fresh one, and leaves compiling what is never imported: half the time.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-compile", source]
    command = [sys.executable, "-m", "pip", "--python", folder / "env/bin/python", *install]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder / "env" / "bin"


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """This process's environment without what could lend the clean one a package or a setting."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FIBERWALK_", "VIRTUAL_ENV", "COV"))}


@pytest.fixture(scope="module")
def address(binaries: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server of the clean environment listens."""
    folder = tmp_path_factory.mktemp("served")
    bundles.mixed_regression("prices", trunk=True).publish(folder / "models")
    bundles.classification("flowers").publish(folder / "models")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--store", folder / "models", "--host", "127.0.0.1", "--port", str(port)]
    log = (folder / "log").open("wb")
    with (
        log,
        subprocess.Popen(
            [binaries / "fiberwalk", "serve", *options], cwd=folder, env=environment, stdout=log, stderr=log
        ) as server,
    ):
        try:
            await_ready(f"http://127.0.0.1:{port}", server, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


def await_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the server did not become ready:\n{log.read_text()}")


def test_nothing_of_the_builder_is_installed(binaries: Path, environment: dict[str, str], tmp_path: Path) -> None:
    code = f"import importlib.util as u; print(*[n for n in {ABSENT} if u.find_spec(n)])"
    run = subprocess.run(
        [binaries / "python", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


def test_it_serves_regression(address: str) -> None:
    rows = [[6, 90, "Bonn"], [3, 45.5, "Köln"], [11, 800, "Aachen"]]
    answer = httpx.post(f"{address}/predict", json={"model": "prices", "inputs": rows}, timeout=20)
    assert answer.status_code == 200, answer.text
    got = answer.json()
    parts = np.array(got["epistemic_variance"]) + np.array(got["aleatoric_variance"])
    np.testing.assert_allclose(got["variance"], parts, rtol=1e-9)
    assert all(low < mean < high for mean, (low, high) in zip(got["mean"], got["interval"], strict=True))
    assert (got["model"], got["version"], len(got["mean"])) == ("prices", 1, 3)


def test_it_serves_classification_and_ood(address: str) -> None:
    request = {"model": "flowers", "inputs": [[4.0, 4.0], [40.0, -40.0]]}
    got = httpx.post(f"{address}/predict", json=request, timeout=20).json()
    np.testing.assert_allclose(np.sum(got["mean"], axis=1), 1.0, rtol=1e-9)
    assert set(got["label"]) <= {"setosa", "versicolor", "virginica"}
    ood = httpx.post(f"{address}/ood", json=request, timeout=20).json()
    assert ood["flag"] == [p <= ood["false_alarm_rate"] for p in ood["p_value"]] == [False, True]


def test_the_store_can_be_looked_after(binaries: Path, environment: dict[str, str], tmp_path: Path) -> None:
    bundles.classification("flowers").publish(tmp_path)
    run = subprocess.run(
        [binaries / "fiberwalk", "models", "verify", "--store", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("flowers@1: ok")


def test_building_without_the_extra_says_what_to_install(
    binaries: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    options = ["--data", "t.csv", "--target", "b", "--task", "regression", "--name", "t"]
    run = subprocess.run(
        [binaries / "fiberwalk", "build", *options], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "fiberwalk[build]" in run.stderr
    assert "Traceback" not in run.stderr
