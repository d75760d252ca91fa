"""Where bundles live: a folder of `NAME/VERSION/`, published atomically, immutable, with movable aliases.

Layout: `NAME/1/`, `NAME/2/` ... hold bundles and `NAME/aliases.json` says which version an alias means. Bundles in
the making live in `.staging/` on the same file system, and enter by one rename: a reader sees all or nothing.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from model_store.bundle import MANIFEST_FILE, Bundle, file_entry, is_file_name
from model_store.errors import IntegrityError, InvalidNameError, StoreError, UnknownModelError
from model_store.files import read_regular
from model_store.manifest import Manifest
from model_store.shelf import NAME, VERSION, Shelf, Stamp, checked_name
from model_store.writing import enter, locked, refuse_unwritable, remove, replace, workplace, write, writing

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_ALIASES_FILE = "aliases.json"
_MAX_ALIASES_BYTES = 2**20


class ModelStore:
    """A folder of bundles. Creating the object touches nothing on disk."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    # ---- reading

    def names(self) -> list[str]:
        """The names of all models with at least one version, sorted.

        Raises:
            StoreError: the store cannot be read.
        """
        return [n for n in self.folders() if self._has_versions(n)]

    def folders(self) -> list[str]:
        """The names of all models, also of those that have no version any more, sorted; empty if there is no store.

        Raises:
            StoreError: the store cannot be read.
        """
        with _reading("The store's folder"):
            try:
                return sorted(p.name for p in self.root.iterdir() if NAME.fullmatch(p.name) and p.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                return []

    def _has_versions(self, name: str) -> bool:
        try:
            return bool(self.versions(name))
        except StoreError:
            return True  # who asks for it is told why it cannot be read

    def versions(self, name: str) -> list[int]:
        """The versions of a model, oldest first; empty if there is no such model. One that cannot be read is there too.

        Raises:
            StoreError: its folder cannot be read.
        """
        return list(self._stamps(name))

    def unfinished(self, name: str) -> list[int]:
        """The folders of a model that are named like versions and hold no manifest: copies that are not whole.

        Raises:
            StoreError: its folder cannot be read.
        """
        found = self._stamps(name)
        return [v for v in self._numbered(name) if v not in found]

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases of a model and the versions they mean.

        Raises:
            StoreError: they cannot be read.
        """
        path = self.root / checked_name(name) / _ALIASES_FILE
        remedy = "set the aliases again after removing it"
        with _reading(f"{name}/{_ALIASES_FILE} in the store"):
            try:
                data, size = read_regular(path, _MAX_ALIASES_BYTES + 1)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            except ValueError as e:
                raise StoreError(f"{name}/{_ALIASES_FILE} {e}; {remedy}.") from e
        if len(data) > _MAX_ALIASES_BYTES:
            raise StoreError(f"{name}/{_ALIASES_FILE} has {size} bytes, more than any aliases take; {remedy}.")
        try:
            # A name with half a character could not be told to anyone.
            return {k.encode().decode(): int(v) for k, v in json.loads(data).items()}
        except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as e:
            raise StoreError(f"{name}/{_ALIASES_FILE} is damaged; {remedy}.") from e

    def shelf(self, name: str) -> Shelf:
        """What there is of a model; what of it cannot be read is told by its `damage`.

        Raises:
            InvalidNameError: the name cannot be a model's.
        """
        stamps: dict[int, Stamp | None] = {}
        aliases: dict[str, int] = {}
        damage = None
        checked_name(name)
        try:
            # Before the versions: an alias that is read is of a version that had been published.
            aliases = self.aliases(name)
        except StoreError as e:
            damage = e
        try:
            stamps = self._stamps(name)
        except StoreError as e:
            damage = e
        return Shelf(name, stamps, aliases, damage)

    def resolve(self, reference: str) -> tuple[str, int]:
        """The (name, version) that `NAME`, `NAME@VERSION` or `NAME@ALIAS` means; see `Shelf.choices`.

        Raises:
            InvalidNameError: the reference is not of that form.
            UnknownModelError: there is no such model, version or alias; the message lists what there is.
            StoreError: what it means cannot be read.
        """
        name, _, wanted = reference.partition("@")
        if VERSION.fullmatch(wanted):
            # A version that is there needs no look at the others, of which there may be many.
            with suppress(StoreError):
                self.stamp(name, int(wanted))
                return name, int(wanted)
        shelf = self.shelf(name)
        if not shelf.stamps and shelf.damage is None:
            known = ", ".join(self.names()) or "none yet"
            raise UnknownModelError(
                f"There is no model {shelf.name!r}.", field="model", expected=f"one of: {known}", got=reference[:80]
            )
        return shelf.name, shelf.choices(reference)[0]

    def stamp(self, name: str, version: int) -> Stamp:
        """What differs, without a look into them, between a bundle and another that takes its place.

        Equal stamps mean the same bundle. The same bundle may come to have another: when a backup of it is restored.

        Raises:
            UnknownModelError: there is no such version any more.
            StoreError: it cannot be read.
        """
        path = self.root / checked_name(name) / str(version) / MANIFEST_FILE
        with _reading(f"{name}@{version} in the store"):
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            raise UnknownModelError(f"There is no {name}@{version} any more.", field="model")
        # A copy may keep the time of writing, and a file get the number of one before it; only ctime cannot be set.
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def open(self, reference: str) -> Bundle:
        """Opens a bundle by `NAME`, `NAME@VERSION` or `NAME@ALIAS`.

        Raises:
            UnknownModelError, InvalidNameError: see `resolve`.
            IntegrityError, IncompatibleError: see `Bundle`.
        """
        name, version = self.resolve(reference)
        bundle = Bundle(self.root / name / str(version))
        if (bundle.name, bundle.version) != (name, version):
            raise IntegrityError(f"{bundle.path} holds {bundle.name}@{bundle.version}; publish it again.")
        return bundle

    # ---- writing

    def publish(self, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
        """Publishes a bundle as the next version of `manifest.name`.

        Args:
            manifest: its `version` and `files` are filled in here.
            files: file name -> content; plain names, no folders.

        Returns:
            The bundle, read back from the store and verified.

        Raises:
            InvalidNameError: the model's name is not usable as a folder, or a file's name not as a file.
            IntegrityError: what was written does not verify; nothing was published.
            StoreError: the store cannot be written; nothing was published.
        """
        folder = self.root / checked_name(manifest.name)
        for name in files:
            if not is_file_name(name):
                raise InvalidNameError(
                    f"{name[:80]!r} cannot be a bundle's file; use letters, digits, '_', '-' and '.', and no folder.",
                    field="files",
                    got=name[:80],
                )
        with writing(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            with workplace(self.root) as work:
                for name, data in files.items():
                    write(work / name, data)
                with locked(folder):
                    version = max(self._taken(folder), default=0) + 1
                    final = manifest.model_copy(
                        update={"version": version, "files": {n: file_entry(d) for n, d in sorted(files.items())}}
                    )
                    return self._entered(work, folder / str(version), final.model_dump_json(indent=1).encode())

    def adopt(self, bundle: Bundle, *, renumber: bool = False) -> Bundle:
        """Takes up a bundle of another store, under its own number and the same to the byte.

        Args:
            bundle: is verified first. Where the same is here already, nothing is done.
            renumber: whether it may get the next number where its own is, or was, another's here.

        Returns:
            The bundle here.

        Raises:
            IntegrityError: it does not verify, or what is here in its place does not.
            StoreError: its number was given to another bundle here, or the store cannot be written.
        """
        folder = self.root / checked_name(bundle.name)
        bundle.verify()
        with writing(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            with workplace(self.root) as work:
                if self._same_as(bundle) is None:
                    # Before the lock, as they may come from far away, and an alias must not wait for that.
                    for name in bundle.manifest.files:
                        write(work / name, bundle.read(name))
                with locked(folder):
                    same = self._same_as(bundle)
                    if same is not None:
                        same.verify()
                        return same
                    version = self._number_of(bundle, folder, renumber)
                    raw = bundle.read_manifest()
                    raw = raw if version == bundle.version else _numbered(raw, version)
                    return self._entered(work, folder / str(version), raw)

    def refuse_unwritable(self, name: str) -> None:
        """Tells in time what a later `publish` of this name would surely fail for; touches nothing.

        Raises:
            InvalidNameError: the name cannot be a model's.
            StoreError: the store cannot be written.
        """
        with writing(self.root):
            refuse_unwritable(self.root, self.root / checked_name(name))

    def set_alias(self, name: str, alias: str, version: int) -> int | None:
        """Makes `NAME@ALIAS` mean `version` from now on, and returns which version it meant before.

        Raises:
            InvalidNameError: an alias starts with a letter, so that it cannot be taken for a version.
            UnknownModelError: no such model or version.
        """
        if not _ALIAS.fullmatch(alias):
            raise InvalidNameError(
                f"{alias!r} cannot be an alias; use a letter, then letters, digits, '_' and '-'.",
                field="alias",
                expected="a letter, then up to 63 letters, digits, '_' or '-'",
                got=alias[:80],
            )
        self.resolve(f"{name}@{version}")
        folder = self.root / name
        with writing(self.root), locked(folder):
            self.resolve(f"{name}@{version}")  # again, as it may have been deleted while the lock was awaited
            before = self.aliases(name)
            self._write_aliases(folder, before | {alias: version})
        return before.get(alias)

    def remove_alias(self, name: str, alias: str) -> None:
        """Removes an alias. Raises UnknownModelError where it is not set."""
        folder = self.root / checked_name(name)
        if alias not in self.aliases(name):
            raise UnknownModelError(f"Model {name!r} has no alias {alias!r}.", field="alias", got=alias[:80])
        with writing(self.root), locked(folder):
            self._write_aliases(folder, {k: v for k, v in self.aliases(name).items() if k != alias})

    def delete(self, reference: str) -> tuple[str, int]:
        """Deletes the version `NAME@VERSION`; its number is never given again.

        Raises:
            StoreError: the reference names no version, or an alias still means it.
            UnknownModelError: there is no such version.
        """
        if "@" not in reference:
            raise StoreError(
                f"Say which version of {reference!r} to delete.",
                field="model",
                expected="NAME@VERSION",
                got=reference,
            )
        name, version = self.resolve(reference)
        folder = self.root / name
        with writing(self.root), locked(folder):
            self.resolve(f"{name}@{version}")  # again, as another may have deleted it while the lock was awaited
            held = sorted(a for a, v in self.aliases(name).items() if v == version)
            if held:
                raise StoreError(
                    f"{name}@{version} is what {', '.join(held)} means; move the alias to another version first.",
                    field="model",
                )
            (folder / f".retired-{version}").touch()
            remove(self.root, folder / str(version))
        return name, version

    # ---- inside

    def _numbered(self, name: str) -> list[int]:
        """What is named like a version in a model's folder, in order."""
        folder = self.root / checked_name(name)
        with _reading(f"{name} in the store"):
            try:
                return sorted(int(p.name) for p in folder.iterdir() if VERSION.fullmatch(p.name))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def _stamps(self, name: str) -> dict[int, Stamp | None]:
        """The stamp of every version, None where it cannot be read: that concerns none of the others."""
        found: dict[int, Stamp | None] = {}
        for version in self._numbered(name):
            try:
                found[version] = self.stamp(name, version)
            except UnknownModelError:
                continue
            except StoreError:
                found[version] = None
        return found

    def _number_of(self, bundle: Bundle, folder: Path, renumber: bool) -> int:
        """The number that a bundle of another store gets here."""
        taken = self._taken(folder)
        if bundle.version not in taken:
            return bundle.version
        if not renumber:
            raise StoreError(
                f"{bundle.name}@{bundle.version} is or was something else in the store {str(self.root)!r}; "
                f"copy it with --renumber, as {bundle.name}@{max(taken) + 1}.",
                field="version",
            )
        return max(taken) + 1

    @staticmethod
    def _taken(folder: Path) -> set[int]:
        # Damaged and deleted versions count too: a number means one bundle for ever.
        names = (p.name.removeprefix(".retired-") for p in folder.iterdir())
        return {int(n) for n in names if VERSION.fullmatch(n)}

    def _same_as(self, bundle: Bundle) -> Bundle | None:
        """The version here that differs from a bundle in nothing but its number, if there is one."""
        wanted = _numbered(bundle.read_manifest(), 1)
        for version in self.versions(bundle.name):
            try:
                mine = Bundle(self.root / bundle.name / str(version))
            except StoreError:
                continue
            if _numbered(mine.read_manifest(), 1) == wanted:
                return mine
        return None

    @staticmethod
    def _entered(work: Path, target: Path, manifest: bytes) -> Bundle:
        write(work / MANIFEST_FILE, manifest)
        Bundle(work).verify()
        enter(work, target)
        return Bundle(target)

    @staticmethod
    def _write_aliases(folder: Path, aliases: Mapping[str, int]) -> None:
        replace(folder / _ALIASES_FILE, json.dumps(dict(sorted(aliases.items()))))


def _numbered(manifest: bytes, version: int) -> bytes:
    """A manifest with another version, and else as it was written, maybe by another fiberwalk."""
    return json.dumps(json.loads(manifest) | {"version": version}, indent=1).encode()


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise StoreError(f"{what} cannot be read ({e.strerror}); see to its owner and rights.") from e
