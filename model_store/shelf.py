"""One model of a store, as it was found at one time: its versions, its aliases, and what a reference to it means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_store.errors import InvalidNameError, StoreError, UnknownModelError

CHAMPION: Final = "champion"
"""The alias that a bare NAME means, where it is set; otherwise NAME means the newest version."""

Stamp = tuple[int, ...]
"""See `ModelStore.stamp`."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Shelf:
    """What a store held of one model.

    Attributes:
        name: the model's.
        stamps: of every version, oldest first; None where it is there and cannot be read.
        aliases: and the versions they mean.
        damage: why the aliases, or anything at all, could not be read; None where all could.
    """

    name: str
    stamps: Mapping[int, Stamp | None]
    aliases: Mapping[str, int]
    damage: StoreError | None = None

    def choices(self, reference: str) -> list[int]:
        """The versions that `NAME`, `NAME@VERSION` or `NAME@ALIAS` means, the one that is meant first.

        There are several only of a bare name without a champion: the older ones stand in for the newest while that
        cannot be served. A bare name whose champion is gone means nothing: whoever set one did not want the newest
        version unasked.

        Raises:
            UnknownModelError: there is no such version or alias; the message lists what there is.
            StoreError: what it means could not be read.
        """
        _, at, wanted = reference.partition("@")
        numbered = VERSION.fullmatch(wanted) is not None
        if numbered and int(wanted) in self.stamps:
            return [int(wanted)]
        if self.damage is not None:
            raise self.damage
        alias = wanted if at else CHAMPION
        if alias in self.aliases and not numbered:
            if self.aliases[alias] not in self.stamps:
                raise self._dangling(reference, alias)
            return [self.aliases[alias]]
        if at:
            known = ", ".join([*self._latest(), *sorted(self.aliases)])
            raise UnknownModelError(
                f"Model {self.name!r} has no version or alias {wanted[:80]!r}.",
                field="model",
                expected=f"{self.name}@ one of: {known}",
                got=reference[:80],
            )
        return sorted(self.stamps, reverse=True)

    def _latest(self) -> list[str]:
        return [str(v) for v in sorted(self.stamps)[-8:]]

    def _dangling(self, reference: str, alias: str) -> UnknownModelError:
        """The error of an alias whose version is no more, which only happens behind the store's back."""
        name, version = self.name, self.aliases[alias]
        means = f"Model {name!r} means its {alias}, version {version}"
        if reference != name:
            means = f"{name}@{alias} means version {version}"
        return UnknownModelError(
            f"{means}, which is gone; run `fiberwalk models alias {name}@VERSION {alias}` with a version that there "
            "is, or with --remove.",
            field="model",
            expected=f"{name}@ one of: {', '.join(self._latest())}",
            got=reference[:80],
        )


def is_one_models(folder: Path) -> bool:
    """Whether a folder is that of one model, in a store, and no store: easily named by mistake."""
    try:
        return any(VERSION.fullmatch(p.name) and (p / "manifest.json").is_file() for p in folder.iterdir())
    except OSError:
        return False


def checked_name(name: str) -> str:
    """The name, where it can be a model's. Raises InvalidNameError where it cannot."""
    if not NAME.fullmatch(name):
        raise InvalidNameError(
            f"{name[:80]!r} cannot be a model's name; use letters, digits, '_', '-' and '.', a letter or digit first.",
            field="model",
            expected="1 to 64 letters, digits, '_', '-' or '.'",
            got=name[:80],
        )
    return name
