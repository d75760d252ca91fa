"""Reads files of a store that somebody else may have written to: without waiting, and no more than is wanted."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_regular(path: Path, limit: int) -> tuple[bytes, int]:
    """The first `limit` bytes of a regular file and its size. Links are refused; a pipe or device never blocks.

    No more memory is taken than the file has bytes, whatever the limit.

    Raises:
        ValueError: it is no file that may be read; the message goes on from its name.
        OSError: it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        if _is_link(path):
            raise ValueError("is a link, which is refused") from e
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is no regular file")
        with os.fdopen(fd, "rb", closefd=False) as f:
            return f.read(min(limit, status.st_size + 1)), status.st_size
    except MemoryError as e:
        raise ValueError("does not fit into memory") from e
    finally:
        os.close(fd)


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:
        return False  # its folder cannot be read
