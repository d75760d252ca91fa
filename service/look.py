"""What the store held when it was last looked through. Requests are resolved by it, so that they need no disk."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from model_store.errors import StoreError
from model_store.shelf import Shelf, Stamp
from model_store.store import ModelStore
from service.memory import forget_frames

Version = tuple[str, int]
Choice = tuple[Version, Stamp | None]
"""A version, and the stamp of what the store has in its place; None where that cannot be read."""


@dataclass(frozen=True)
class Look:
    """What there was in the store.

    Attributes:
        shelves: by name, also of models that have no version any more.
        meanings: what every bare name and every alias means, as in `Shelf.choices`.
        problems: why references mean nothing, or what they mean is what they meant before.
        failure: why the store as a whole could not be read; the rest is then what it last held.
    """

    shelves: Mapping[str, Shelf] = field(default_factory=dict)
    meanings: Mapping[str, list[Choice]] = field(default_factory=dict)
    problems: dict[str, StoreError] = field(default_factory=dict)
    failure: StoreError | None = None

    def names(self) -> list[str]:
        """The names of all models that have a version, or of which it cannot be said."""
        return [name for name, shelf in self.shelves.items() if shelf.stamps or shelf.damage is not None]

    def choices(self, reference: str) -> list[Choice]:
        """What `NAME`, `NAME@VERSION` or `NAME@ALIAS` means, as in `Shelf.choices`; empty where it is not known."""
        found = self.meanings.get(reference)
        if found is not None:
            return found
        shelf = self.shelves.get(reference.partition("@")[0])
        with suppress(StoreError):
            return [] if shelf is None else _choices(shelf, reference)
        return []

    def has(self, version: Version) -> bool:
        """Whether there was this version."""
        return version[0] in self.shelves and version[1] in self.shelves[version[0]].stamps

    def stamp(self, version: Version) -> Stamp | None:
        """The stamp of a version that there was; None where it could not be read."""
        return self.shelves[version[0]].stamps[version[1]]


def look_through(store: ModelStore, last: Look) -> Look:
    """Looks through the store once.

    Args:
        store: is read; where a model of it cannot be, that stays what it was.
        last: the look before.
    """
    try:
        folders = folders_of(store, last)
    except StoreError as e:
        forget_frames(e)
        return replace(last, failure=e)
    shelves: dict[str, Shelf] = {}
    meanings: dict[str, list[Choice]] = {}
    problems: dict[str, StoreError] = {}
    for name in folders:
        shelf, before = store.shelf(name), last.shelves.get(name)
        if shelf.damage is not None:
            problems[name] = shelf.damage
            if before is not None:
                shelf = Shelf(name, shelf.stamps or before.stamps, before.aliases, before.damage)
        shelves[name] = shelf
        for version in (v for v, stamp in shelf.stamps.items() if stamp is None):
            reference = f"{name}@{version}"
            problems[reference] = StoreError(f"{reference} in the store cannot be read; see to its owner and rights.")
        if not shelf.stamps:
            continue
        for reference in (name, *(f"{name}@{alias}" for alias in shelf.aliases)):
            try:
                meanings[reference] = _choices(shelf, reference)
            except StoreError as e:
                problems[reference] = e
    for error in problems.values():
        forget_frames(error)
    return Look(shelves, meanings, problems)


def folders_of(store: ModelStore, last: Look) -> list[str]:
    """The names of the store's models, also of those that have no version any more.

    Raises:
        StoreError: there is no store, or none of the models that it had, as where a volume is not mounted.
    """
    folders = store.folders()
    if not folders and not store.root.is_dir():
        raise StoreError("There is no model store; see that its folder is mounted, or build a model first.")
    if not folders and last.shelves:
        raise StoreError(
            "The store held models and is empty; see that its folder is mounted, or restart the server if they were "
            "removed on purpose."
        )
    return folders


def _choices(shelf: Shelf, reference: str) -> list[Choice]:
    return [((shelf.name, version), shelf.stamps[version]) for version in shelf.choices(reference)]
