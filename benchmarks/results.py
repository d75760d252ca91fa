"""Results on disk: one JSON file that a benchmark adds to run by run, so that it can be stopped and goes on.

A run is one split of one set. It is finished if the file holds it without an error, measured in the same environment:
the same code, preset, libraries and machine. Anything else is run again, and then replaces what was there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from model_store.errors import ConfigError, FiberwalkError

PACKAGES: Final = ["benchmarks", "builder", "fiberwalk", "model_store", "service"]
_SOURCES: Final = [f":(glob){package}/**/*.py" for package in PACKAGES]
_PEERS: Final = ["scikit-learn", "mapie", "laplace-torch", "numpyro"]
_LIBRARIES: Final = ["fiberwalk", "torch", "onnx", "onnxruntime", "numpy", "pandas", "fastapi", "pydantic", *_PEERS]

Run = dict[str, Any]
_MOST_LISTED: Final = 6
EARLIER: Final = "earlier"
"""In a run that holds some parts of an older one: the environment of each of these."""


def revision(root: Path) -> str:
    """The last commit that touched the code, with a hash of the code where it is changed since or there is no git."""
    commit = _git(root, "log", "-1", "--format=%H", "--", *_SOURCES)
    if commit and not _git(root, "status", "--porcelain", "--", *_SOURCES):
        return commit
    h = hashlib.sha256()
    for path in sorted(p for package in PACKAGES for p in (root / package).rglob("*.py")):
        h.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return "+".join(filter(None, [commit, h.hexdigest()[:12]]))


def environment(root: Path, preset: str) -> dict[str, Any]:
    """What a figure or a time depends on besides the data."""
    return {
        "commit": revision(root),
        "preset": preset,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "machine": {
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "architecture": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
    }


def refuse_changed(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises FiberwalkError where the environment is no longer that of the run's start."""
    if now != before:
        raise FiberwalkError(
            "The code was changed during the run, which measures none of both; run it in a copy of its own.",
            code="code_changed",
        )


class Results:
    """The runs in a file, of which those of one environment count.

    Raises:
        ConfigError: the file is there and holds something else.
    """

    def __init__(self, path: Path, benchmark: str, environment: dict[str, Any]) -> None:
        self._path = path
        self._benchmark = benchmark
        self._id = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:12]
        content = _read(path, benchmark)
        self._environments: dict[str, Any] = {**content.get("environments", {}), self._id: environment}
        self._runs: list[Run] = content.get("runs", [])

    def current(self, data_set: str) -> list[Run]:
        """The runs of a set in this environment, by split, failed ones included."""
        found = [r for r in self._runs if r["set"] == data_set and r["environment"] == self._id]
        return sorted(found, key=lambda r: int(r["split"]))

    def run(self, data_set: str, split: int) -> Run | None:
        """What the file has of a split, whatever the environment."""
        return next((r for r in self._runs if (r["set"], r["split"]) == (data_set, split)), None)

    @property
    def sets(self) -> list[str]:
        """Every set in the file, whatever the environment."""
        return list(dict.fromkeys(r["set"] for r in self._runs))

    def latest(self, data_set: str, preset: str | None = None) -> list[Run]:
        """The runs of a set, by split, in the environment that it was run in last, of those with a preset if one is
        named: a set that is run anew takes the place of its older runs, and those of other sets stay."""
        runs = [r for r in self._runs if r["set"] == data_set]
        if preset is not None:
            runs = [r for r in runs if self._environments[r["environment"]]["preset"] == preset]
        return sorted((r for r in runs if r["environment"] == runs[-1]["environment"]), key=lambda r: int(r["split"]))

    def preset(self, data_set: str) -> str | None:
        """That of the latest run of a set, or of its part `data_set/...`; None where there is none."""
        runs = [r for r in self._runs if r["set"].partition("/")[0] == data_set]
        return str(self._environments[runs[-1]["environment"]]["preset"]) if runs else None

    def finished(self, data_set: str, split: int) -> bool:
        """Whether there is nothing left to do for this split."""
        return any(r["split"] == split and "error" not in r for r in self.current(data_set))

    def add(self, data_set: str, split: int, found: dict[str, Any]) -> None:
        """Takes up a run in place of the one that was there, and saves."""
        self._runs = [r for r in self._runs if (r["set"], r["split"]) != (data_set, split)]
        self._runs.append({"set": data_set, "split": split, "environment": self._id, **found})
        self.save()

    def save(self, summary: list[dict[str, Any]] | None = None) -> None:
        """Writes the file, whole or not at all; a summary is of the current environment."""
        used = {r["environment"] for r in self._runs}.union(*(r.get(EARLIER, {}).values() for r in self._runs))
        content = {
            "benchmark": self._benchmark,
            "environments": {key: e for key, e in self._environments.items() if key in used},
            "summary": summary or [],
            "runs": self._runs,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f".{self._path.name}.part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(self._path)


def measured_with(content: dict[str, Any]) -> list[str]:
    """Lines of Markdown: with what code, libraries and machine the latest runs of a file's sets were measured."""
    lines = []
    latest = {r["set"]: r["environment"] for r in content.get("runs", [])}
    earlier = {r["set"]: r.get(EARLIER, {}) for r in content.get("runs", [])}
    several = len({*latest.values()}.union(*(old.values() for old in earlier.values()))) > 1
    for key, e in content["environments"].items():
        machine, libraries = e["machine"], ", ".join(f"{k} {v}" for k, v in e["libraries"].items())
        where = f"{machine['cores']} cores, {machine['architecture']}"
        sets = [name for name, environment in latest.items() if environment == key]
        of_parts: dict[str, list[str]] = {}
        for name, old in earlier.items():
            parts = [part for part, environment in old.items() if environment == key != latest[name]]
            if parts:
                of_parts.setdefault(", ".join(parts), []).append(name)
        sets += [f"{', '.join(names)}: {parts}" for parts, names in of_parts.items()]
        # Most of many are those that no other commit names.
        listed = "all others" if len(sets) > max(_MOST_LISTED, len(latest) / 2) else ", ".join(sets)
        which = f" ({listed})" if several else ""
        if sets or not latest:
            lines += [f"Commit `{e['commit'][:12]}`{which}, preset `{e['preset']}`, {where}; {libraries}.", ""]
    return lines


def _read(path: Path, benchmark: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content: Any = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("benchmark") != benchmark:
        raise ConfigError(
            f"{path} holds no results of this benchmark; name another file with --output.",
            field="--output",
            expected=f"results of the benchmark {benchmark}",
            got=str(path),
        )
    return content


def _git(root: Path, *arguments: str) -> str:
    """What git says; nothing where there is no git or no repository."""
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
