"""The work folder: finished stages of a build, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Stage = TypeVar("Stage", bound="DataclassInstance")
"""What a stage results in: tensors, and values that JSON can hold."""


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


def resume(work: WorkFolder | None, stage: str, key: str, kind: type[Stage]) -> Stage | None:
    """The result of a finished stage, as `WorkFolder.load` finds it."""
    found = work.load(stage, key) if work else None
    if found is None:
        return None
    values: dict[str, Any] = {**found[0], **found[1]}
    return kind(**values)


def keep(work: WorkFolder | None, stage: str, key: str, result: Stage) -> None:
    """Saves a stage's result, where there is a folder."""
    if work is None:
        return
    tensors = _tensors(result)
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    work.save(stage, key, tensors, {n: v for n, v in fields.items() if n not in tensors})


def on_device(result: Stage, device: torch.device) -> Stage:
    """The same with its tensors there."""
    return dataclasses.replace(result, **{n: t.to(device) for n, t in _tensors(result).items()})


def _tensors(result: DataclassInstance) -> dict[str, Tensor]:
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return {n: v for n, v in fields.items() if isinstance(v, Tensor)}
