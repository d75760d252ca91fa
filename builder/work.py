"""The work folder: finished stages of a build, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def make_key(*parts: Any) -> str:
    """A stage's key (hex): a hash of everything its result depends on, given as JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class WorkFolder:
    """One file a stage; a stage is found again only under the key it was saved with.

    Attributes:
        spared: seconds that all stages which were found again took when they were run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spared = 0.0
        self._begun: dict[str, float] = {}

    def load(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and values of a finished stage, or None where it is missing, damaged or of another key: then it
        is run from here on, until it is saved."""
        found = self._read(stage, key)
        if found is None:
            self._begun[stage] = time.perf_counter()
            return None
        tensors, values, seconds = found
        self.spared += seconds
        return tensors, values

    def _read(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any], float] | None:
        file = self.path / f"{stage}.safetensors"
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as f:
                metadata = f.metadata() or {}
                if metadata.get("key") != key:
                    return None
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
                return tensors, json.loads(metadata["values"]), float(metadata["seconds"])
        except Exception:
            # A file cut off by a crash, or an older version's, is as good as none: the stage is run again.
            return None

    def save(self, stage: str, key: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Saves a finished stage; the file appears whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        part = self.path / f".{stage}.part"
        contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        now = time.perf_counter()
        seconds = now - self._begun.pop(stage, now)
        save_file(contiguous, part, metadata={"key": key, "values": json.dumps(values), "seconds": f"{seconds:.3f}"})
        part.replace(self.path / f"{stage}.safetensors")

    def clear(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
