"""How a store is written: in a private folder, from which things enter by one rename, and by one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from model_store.errors import StoreError

STAGING: Final = ".staging"
_LOCK: Final = ".lock"
_FORGOTTEN_SECONDS: Final = 24 * 3600.0
"""How old what lies in the staging folder is before it counts as left behind by a process that was killed."""


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Says what to do where a store cannot be written."""
    try:
        yield
    except OSError as e:
        full = e.errno in {errno.ENOSPC, errno.EDQUOT}
        remedy = "make room, such as with `fiberwalk models delete`" if full else _REMEDY
        raise _unwritable(root, e.strerror, remedy) from e


def refuse_unwritable(root: Path, folder: Path) -> None:
    """Raises StoreError where a folder of a store, there or not yet, can surely not be written; touches nothing."""
    why = why_not_writable(folder) or why_not_writable(root / STAGING)
    if why is None and (folder / _LOCK).exists() and not os.access(folder / _LOCK, os.W_OK):
        why = f"no right to write to {folder / _LOCK}"
    if why is not None:
        raise _unwritable(root, why)


def why_not_writable(folder: Path) -> str | None:
    """Why a folder, there or not yet, can surely not be written; None where it may be. Touches nothing.

    Raises:
        OSError: nobody can tell.
    """
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"no right to write to {there}"


@contextmanager
def workplace(root: Path) -> Iterator[Path]:
    """A private folder on a store's own file system; what is left in it at the end is removed."""
    staging = root / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    _forget_old(staging)
    work = Path(tempfile.mkdtemp(dir=staging))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def enter(work: Path, target: Path) -> None:
    """Renames a finished workplace to where it is seen from then on."""
    # Who may write to the model's folder may also delete what others published there.
    work.chmod(0o755 | (target.parent.stat().st_mode & 0o020))
    sync_folder(work)
    work.rename(target)
    sync_folder(target.parent)


def remove(root: Path, path: Path) -> None:
    """Removes a folder of a store so that no reader ever sees half of it, and without room for anything new."""
    staging = root / STAGING
    staging.mkdir(exist_ok=True)
    gone = staging / f"removed-{secrets.token_hex(8)}"
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def write(path: Path, data: bytes) -> None:
    """Writes a file, and waits until it is on the disk."""
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def replace(path: Path, text: str) -> None:
    """Writes a file anew: a reader sees the old text or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.stem}-", delete=False) as f:
        new = Path(f.name)
        try:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
            new.chmod(0o644)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def sync_folder(path: Path) -> None:
    """Waits until a folder's entries are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other writers of a model out."""
    # Without following a link, whose end may be anything, or waiting for the other end of a pipe.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(folder / _LOCK, flags, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _forget_old(staging: Path) -> None:
    for left in staging.iterdir():
        with suppress(OSError):  # another may remove it too
            if time.time() - left.stat().st_mtime > _FORGOTTEN_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


_REMEDY: Final = "choose a folder that you may write to, or see to its owner and rights"


def _unwritable(root: Path, why: str | None, remedy: str = _REMEDY) -> StoreError:
    return StoreError(f"The store {str(root)!r} cannot be written ({why}); {remedy}.", field="store")
