"""The rules that the whole repository keeps."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import LONGEST

ROOT = Path(__file__).parent.parent
PACKAGES = ["benchmarks", "builder", "fiberwalk", "model_store", "service"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAX_LINES = 400
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
HEAVY = ["torch", "onnx", "onnxscript", "pandas", "pyarrow", "matplotlib", "builder"]


def modules(*folders: str) -> list[Path]:
    found = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def names(paths: list[Path]) -> list[str]:
    return [p.relative_to(ROOT).as_posix() for p in paths]


# ---- structure


def test_the_import_contracts_hold() -> None:
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", run.stdout)


@pytest.mark.parametrize("module", ["service.app", "model_store", "fiberwalk.cli"])
def test_what_serves_loads_nothing_of_the_builder(module: str) -> None:
    """The contract is about the source; this is about what a process really loads."""
    code = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_no_module_is_long() -> None:
    lengths = {p: len(p.read_text().splitlines()) for p in modules(*PACKAGES, "tests")}
    assert {p.relative_to(ROOT).as_posix(): n for p, n in lengths.items() if n >= MAX_LINES} == {}


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [n for n in names(modules(*PACKAGES, "tests")) if Path(n).stem in drawers] == []


def test_the_files_that_start_first_are_there() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


# ---- nothing that runs code when it reads data


def unsafe(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in UNSAFE_MODULES:
                yield f"from {node.module}"
            if node.module == "torch":
                yield from (f"torch.{a.name}" for a in node.names if a.name == "load")
        elif isinstance(node, ast.Attribute):
            called = ast.unparse(node)
            if called in {"torch.load", "torch.jit.load", "torch.hub.load"} or node.attr == "read_pickle":
                yield called
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            yield node.func.id


def test_nothing_unpickles_or_evaluates() -> None:
    found = {p.relative_to(ROOT).as_posix(): list(unsafe(ast.parse(p.read_text()))) for p in modules(*PACKAGES)}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(f)",
        "from torch import load",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "import joblib.numpy_pickle",
        "pd.read_pickle(f)",
        "eval(text)",
    ],
)
def test_the_search_for_unsafe_reading_finds_it(source: str) -> None:
    assert list(unsafe(ast.parse(source)))


# ---- one version, written down once


def test_the_version_lives_in_pyproject_alone() -> None:
    assert version("fiberwalk") == PROJECT["version"]
    written = [n for p, n in zip(modules(*PACKAGES), names(modules(*PACKAGES)), strict=True) if quoted(p)]
    assert written == []


def quoted(path: Path) -> bool:
    """Whether a module carries the version as a literal of its own."""
    constants = (n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant))
    return PROJECT["version"] in constants


def test_the_changelog_has_the_current_version_first() -> None:
    first = re.search(r"^## \[(.+?)\] - (\d{4}-\d\d-\d\d|Unreleased)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first is not None
    assert first.group(1) == PROJECT["version"]


# ---- make and the README


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "docs/operating.md"])
def test_every_make_target_that_is_promised_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    promised = set(re.findall(r"(?:^|`|\$ )(?:[A-Z_]+=\S+ )*make ([a-z][a-z-]*)", text, re.M))
    assert promised
    assert promised - targets() == set()


def test_make_explains_every_target() -> None:
    run = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {line.split()[1] for line in run.stdout.splitlines()} == targets()


# ---- locked dependencies of the images


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / "docker" / f"{name}.lock").read_text().splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(package): number for package, number in pins}


@pytest.mark.parametrize(
    ("name", "requirements"),
    [
        ("server", PROJECT["dependencies"]),
        ("builder", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["build"]]),
    ],
)
def test_the_locks_satisfy_the_project(name: str, requirements: list[str]) -> None:
    pins = locked(name)
    for requirement in map(Requirement, requirements):
        number = pins.get(canonicalize_name(requirement.name))
        assert number is not None, f"{requirement.name} is not in docker/{name}.lock; run make lock"
        assert requirement.specifier.contains(number), f"{requirement} is locked as {number}; run make lock"


def test_the_server_image_carries_nothing_of_the_builder() -> None:
    build = {canonicalize_name(Requirement(r).name) for r in PROJECT["optional-dependencies"]["build"]}
    assert build & set(locked("server")) == set()
