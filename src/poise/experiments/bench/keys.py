"""What a shard's result depends on besides its settings: the files behind an address, without loading them."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

CODE = 1
"""Version of the results: raised by hand where a change of code changes a result without changing any setting."""

_BLOCK = 1 << 20
FILE_KEYS = ("weights", "root")
FILE_SCHEMES = ("npz", "folder", "idx", "onnx", "hf", "endpoint", "py")


def files_of(address: str) -> list[Path]:
    """The files and folders that an address of a model or of data names.

    >>> [str(path) for path in files_of("builtin:resnet20-cifar10?weights=a/b.safetensors&num_classes=10")]
    ['a/b.safetensors']
    >>> [str(path) for path in files_of("npz:d/x.npz?split=test")], files_of("builtin:digits")
    (['d/x.npz'], [])
    """
    scheme, _, rest = address.partition(":")
    name, _, query = rest.partition("?")
    found = []
    if scheme in FILE_SCHEMES:
        found.append(name.rsplit(":", 1)[0] if scheme == "py" else name)
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if key in FILE_KEYS and value:
            found.append(value)
    return [Path(unquote(name)) for name in found]


def missing(*addresses: str | None) -> list[Path]:
    """The files that these addresses name and that are not there."""
    return [path for address in addresses if address is not None for path in files_of(address) if not path.exists()]


def fingerprint_files(address: str) -> list[str]:
    """One text per file or folder of an address: what it holds, or that it is missing."""
    return [_fingerprint(path) for path in files_of(address)]


def _fingerprint(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return "missing"
    if path.is_dir():
        return _of_folder(path)
    return _of_file(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _of_file(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


@lru_cache(maxsize=64)
def _of_folder(path: Path) -> str:
    """Names and sizes of all files below a folder: a data set of a million images is not read for its name."""
    digest, waiting = hashlib.sha256(), [path]
    while waiting:
        folder = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                else:
                    where = os.path.relpath(entry.path, path)
                    digest.update(f"{where}\0{entry.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return f"names:{digest.hexdigest()}"
