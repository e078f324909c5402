"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUFFIX = ".tmp"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to it when all went well, removed otherwise.

    The content is on the disk before the new name is, and the name before this returns: after a power cut the old file
    or the new one is there, never a half.

    Args:
        path: what is replaced at once; its folder exists.

    Raises:
        OSError: the operating system refuses, because the disk is full for example; `path` is as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole(Path(folder, "notes.txt")) as temporary:
    ...         _ = temporary.write_text("all of it")
    ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
    [('notes.txt', 'all of it')]
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{SUFFIX}")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_names(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def is_leftover(path: Path) -> bool:
    """A temporary file of `whole`, which a killed process could not remove."""
    return path.name.startswith(".") and path.name.endswith(SUFFIX)


def _sync_names(folder: Path) -> None:
    """Makes the operating system write the folder's names; some file systems cannot."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
