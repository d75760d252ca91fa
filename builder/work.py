"""The work folder: finished stages of a build, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
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
    """One file a stage; a stage is found again only under the key it was saved with."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and values of a finished stage, or None where it is missing, damaged or of another key."""
        file = self.path / f"{stage}.safetensors"
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as f:
                metadata = f.metadata() or {}
                if metadata.get("key") != key:
                    return None
                return {name: f.get_tensor(name) for name in f.keys()}, json.loads(metadata["values"])  # noqa: SIM118
        except Exception:
            # A file cut off by a crash is as good as none: the stage is run again.
            return None

    def save(self, stage: str, key: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Saves a finished stage; the file appears whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        part = self.path / f".{stage}.part"
        contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(contiguous, part, metadata={"key": key, "values": json.dumps(values)})
        part.replace(self.path / f"{stage}.safetensors")

    def clear(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
