"""Where finished shards lie: a folder or any place that fsspec reaches; written whole or not at all, checked by sum."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from poise.errors import InputError, RunError, brief
from poise.experiments import files

DONE = "done.json"
Files = Mapping[str, bytes]
"""What a shard left: file name to content."""


class Store(ABC):
    """Shards by their key; runs of any specs share them.

    A shard is a folder shards/KK/KEY with its files and done.json, which names them with size and sha256 and is there
    only where all of them are.

    Args:
        root: as the user gave it.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    @abstractmethod
    def finished(self) -> set[str]:
        """The keys that have a done.json."""

    @abstractmethod
    def write(self, key: str, content: Files, about: dict[str, Any]) -> None:
        """Puts a shard there at once, in place of what lies under its key.

        Raises:
            RunError: the place cannot be written, because the disk is full for example.
        """

    @abstractmethod
    def discard(self, key: str) -> None:
        """Removes a shard."""

    @abstractmethod
    def read_file(self, key: str, name: str) -> bytes:
        """The bytes of one file as they lie there; FileNotFoundError where there is none."""

    @abstractmethod
    def write_note(self, name: str, value: Any) -> None:
        """Puts a small JSON file beside the shards."""

    @abstractmethod
    def read_note(self, name: str) -> Any:
        """What lies in that file, None where it is missing or damaged."""

    def about(self, key: str) -> dict[str, Any]:
        """What done.json says of a shard.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            found: dict[str, Any] = json.loads(self.read_file(key, DONE))
            _ = found["about"]
            if odd := [name for name in found["files"] if not _is_name(name)]:
                raise ValueError(f"it names '{brief(odd[0], 80)}'")
            if not all(isinstance(listed, list) for listed in found["files"].values()):
                raise ValueError("it must list the files with size and checksum")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(self.root, key, DONE, error) from None
        return found

    def read(self, key: str, name: str) -> bytes | None:
        """The content of one file of a shard; None where it was written without such a file.

        Raises:
            RunError: it is missing, or its content is not what was written.
        """
        listed = self.about(key)["files"]
        return self._checked(key, name, listed[name]) if name in listed else None

    def files(self, key: str) -> Files:
        """All files of a shard; errors as `read`."""
        return {name: self._checked(key, name, listed) for name, listed in self.about(key)["files"].items()}

    def intact(self, key: str) -> bool:
        """Every file of the shard is there and holds what was written."""
        try:
            for name, listed in self.about(key)["files"].items():
                self._checked(key, name, listed)
        except RunError:
            return False
        return True

    def _checked(self, key: str, name: str, listed: Any) -> bytes:
        """The content of a file that done.json lists with this size and sum."""
        try:
            content = self.read_file(key, name)
        except OSError as error:
            raise _damaged(self.root, key, name, error) from None
        if listed != _sum(content):
            raise _damaged(self.root, key, name, ValueError("its checksum differs"))
        return content


def _is_name(name: str) -> bool:
    """A file of the shard's own folder can be called so."""
    return PurePath(name).name == name and name.isprintable() and len(name) < 256


def _sum(content: bytes) -> list[Any]:
    return [len(content), hashlib.sha256(content).hexdigest()]


def _done(content: Files, about: dict[str, Any]) -> bytes:
    listed = {name: _sum(part) for name, part in content.items()}
    return json.dumps({"files": listed, "about": about}, allow_nan=False).encode()


def _damaged(root: str, key: str, name: str, error: Exception) -> RunError:
    reason = getattr(error, "strerror", None) or brief(error)
    return RunError(f"shard: '{root}/{_path(key)}/{name}' is damaged ({reason}); poise bench run computes it again")


def _path(key: str) -> str:
    return f"shards/{key[:2]}/{key}"


class LocalStore(Store):
    """Shards in a folder of this machine: a shard's folder appears by one rename."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.folder = Path(root)

    def finished(self) -> set[str]:
        found = set()
        for outer in (self.folder / "shards").glob("??"):
            with os.scandir(outer) as entries:
                found |= {entry.name for entry in entries if not entry.name.startswith(".")}
        return {key for key in found if (self.folder / _path(key) / DONE).exists()}

    def write(self, key: str, content: Files, about: dict[str, Any]) -> None:
        place = self.folder / _path(key)
        temporary = place.with_name(f".{key[:16]}.{os.getpid()}.{threading.get_ident()}.tmp")
        with files.refusals(place):
            try:
                temporary.mkdir(parents=True)
                for name, part in (*content.items(), (DONE, _done(content, about))):
                    (temporary / name).write_bytes(part)
                if place.exists():
                    shutil.rmtree(place)
                temporary.rename(place)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def discard(self, key: str) -> None:
        with files.refusals(self.folder):
            shutil.rmtree(self.folder / _path(key), ignore_errors=True)

    def read_file(self, key: str, name: str) -> bytes:
        return (self.folder / _path(key) / name).read_bytes()

    def write_note(self, name: str, value: Any) -> None:
        files.write_json(self.folder / name, value)

    def read_note(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def sweep(self) -> None:
        """Removes what killed processes left; other runs may be at work in the same folder."""
        for left in (self.folder / "shards").glob("??/.*.tmp"):
            if not _lives(left.name.split(".")[2]):
                shutil.rmtree(left, ignore_errors=True)


def _lives(pid: str) -> bool:
    """A process of this number runs on this machine."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True


class RemoteStore(Store):
    """Shards behind a URL: their files first, done.json last. Nothing keeps two runs apart, and two lose nothing."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        try:
            from fsspec.core import url_to_fs

            self.system, self.base = url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise InputError(f"out: '{root}' must be a folder or a URL that fsspec opens, got: {error}") from error

    def finished(self) -> set[str]:
        try:
            found = self.system.find(f"{self.base}/shards")
        except FileNotFoundError:
            return set()
        return {name.split("/")[-2] for name in found if name.endswith(f"/{DONE}")}

    def write(self, key: str, content: Files, about: dict[str, Any]) -> None:
        self.discard(key)
        with files.refusals(Path(self.root)):
            for name, part in (*content.items(), (DONE, _done(content, about))):
                self.system.pipe_file(self._at(key, name), part)

    def discard(self, key: str) -> None:
        for name in (DONE, ""):  # done.json first: without it the rest is nothing
            with suppress(FileNotFoundError):
                self.system.rm(self._at(key, name).rstrip("/"), recursive=not name)

    def read_file(self, key: str, name: str) -> bytes:
        content: bytes = self.system.cat_file(self._at(key, name))
        return content

    def write_note(self, name: str, value: Any) -> None:
        with files.refusals(Path(self.root)):
            self.system.pipe_file(f"{self.base}/{name}", json.dumps(value, allow_nan=False).encode())

    def read_note(self, name: str) -> Any:
        try:
            return json.loads(self.system.cat_file(f"{self.base}/{name}"))
        except (OSError, ValueError, RecursionError):
            return None

    def _at(self, key: str, name: str) -> str:
        return f"{self.base}/{_path(key)}/{name}"


def open_store(out: str) -> Store:
    """The store at a folder or a URL such as s3://BUCKET/PATH.

    Raises:
        InputError: no file system is installed for the URL.
    """
    scheme, colon, rest = out.partition("://")
    if colon and scheme == "file":
        return LocalStore(rest)
    return RemoteStore(out.rstrip("/")) if colon else LocalStore(out)
