"""A file of answers that is only ever appended to, and knows what was torn off at its end."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from poise.errors import RunError, TargetError
from poise.types import OutputKind

_HEADER = re.compile(rb"poise journal 1, (\d+) classes, [a-z]+\n")
_LONGEST = 100
"""Bytes that no header is longer than."""

_FRAME = struct.Struct("<II")  # bytes that follow, CRC-32 of that number and those bytes
_KEY = struct.Struct("<q16sI")  # sample, digest of the point, how many times it was asked before
_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # by their code, the byte behind the key
_SCORES = _KEY.size + 1
_TRIED = 2**30

Place = tuple[int, int]
"""Where the content of a record begins (key, type, scores), and its size in bytes."""


def key(sample: int, digest: bytes, before: int) -> bytes:
    """What an answer is found by: sample, digest (16 bytes) of the point, how many times it was asked before."""
    return _KEY.pack(sample, digest, before)


class JournalFile:
    """Keys and scores on disk. The file begins with a line of text: version, number of classes, kind of scores.

    A record is its length and CRC-32, the key, the type's code and the scores, little-endian. What a process left that
    was killed while it wrote is cut off when the file is opened.

    Args:
        path: made if missing, its folder too; held by one process at a time.
        classes, kind: of the scores; must be those of the file.

    Attributes:
        recorded: where each answer lies that was not taken yet, by key.

    Raises:
        RunError: the file is no journal, that of other scores, damaged before its end, in use, or cannot be written.
    """

    def __init__(self, path: Path, classes: int, kind: OutputKind) -> None:
        self.path = path
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with refusals(path):
                self.recorded = self._opened(f"poise journal 1, {classes} classes, {kind.value}\n".encode())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the file."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def append(self, answers: list[tuple[bytes, Tensor]]) -> None:
        """Writes keys and scores (K,) behind the last record; they are on the disk when it returns."""
        written = [(name, _record(name, scores)) for name, scores in answers]
        with refusals(self.path):
            end = os.lseek(self._handle, 0, os.SEEK_END)
            _write(self._handle, b"".join(content for _, content in written))
            os.fsync(self._handle)
        for name, content in written:
            self.recorded[name] = (end + _FRAME.size, len(content) - _FRAME.size)
            end += len(content)

    def take(self, name: bytes) -> Tensor:
        """The scores (K,) recorded under a key, bit by bit; its place is forgotten."""
        begin, size = self.recorded.pop(name)
        with refusals(self.path):
            content = os.pread(self._handle, size, begin)
        return torch.frombuffer(bytearray(content[_SCORES:]), dtype=_TYPES[content[_KEY.size]])

    def _opened(self, header: bytes) -> dict[bytes, Place]:
        """What is recorded; afterwards the file ends with its last whole record, and is written to there."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"journal: '{self.path}' must not be in use, another process writes to it") from None
        found, end = {}, len(header)
        begun = os.pread(self._handle, end, 0)
        if len(begun) < end and header.startswith(begun):  # new, or killed while this line was written
            os.ftruncate(self._handle, 0)
            _write(self._handle, header)
            _sync_names(self.path.parent)
        elif begun != header:
            ours, given = (_brief(line) for line in (header, os.pread(self._handle, _LONGEST, 0)))
            raise RunError(f"journal: '{self.path}' must be this target's ({ours}), got {given}")
        else:
            for name, place in records(self.path):
                found[name], end = place, sum(place)
            os.ftruncate(self._handle, end)
        os.fsync(self._handle)
        return found


def records(path: Path) -> Iterator[tuple[bytes, Place]]:
    """Key and place of every record of a journal, in order, up to a torn or damaged end.

    Raises:
        RunError: the file is no journal, cannot be read, or is damaged before its end.
    """
    with refusals(path), path.open("rb") as handle:
        if os.fstat(handle.fileno()).st_size == 0:  # killed before a byte was written
            return
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = _HEADER.match(content)
            if header is None:
                if len(content) < _LONGEST and b"\n" not in content[:]:  # killed in its first line
                    return
                raise RunError(f"journal: '{path}' must be a journal of poise, got {_brief(content[:_LONGEST])}")
            classes, at = int(header[1]), header.end()
            del header  # it holds the map open
            while (found := _record_at(content, at)) is not None:
                yield found
                at = sum(found[1])
            if _record_behind(content, at, classes):
                raise RunError(
                    f"journal: '{path}' is damaged at byte {at} of {len(content)}, which is not its end; "
                    "delete it and give --resume: its answers are then asked for again"
                )


def _record_at(content: mmap.mmap, at: int) -> tuple[bytes, Place] | None:
    """Key and place of the whole record that begins there, or None."""
    begin = at + _FRAME.size
    if begin > len(content):
        return None
    size, check = _FRAME.unpack_from(content, at)
    if size <= _SCORES or begin + size > len(content):
        return None
    body = content[begin : begin + size]
    if _check(body) != check or body[_KEY.size] >= len(_TYPES):
        return None
    return body[: _KEY.size], (begin, size)


def _record_behind(content: mmap.mmap, at: int, classes: int) -> bool:
    """A whole record begins somewhere behind a place where none does: that place is not the file's end.

    Bytes that look like the beginnings of more records than `_TRIED` bytes hold are no torn end either.
    """
    tried = 0
    for size in {_SCORES + dtype.itemsize * classes for dtype in _TYPES}:
        if size > len(content):
            continue
        length, found = struct.pack("<I", size), at
        while (found := content.find(length, found + 1)) >= 0:
            tried += size
            if tried > _TRIED or _record_at(content, found) is not None:
                return True
    return False


def _record(name: bytes, scores: Tensor) -> bytes:
    if scores.dtype not in _TYPES:
        raise TargetError(f"Journal: scores must be floats of a usual type, got {scores.dtype}")
    body = name + bytes([_TYPES.index(scores.dtype)]) + scores.contiguous().view(torch.uint8).numpy().tobytes()
    return _FRAME.pack(len(body), _check(body)) + body


def _check(body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<I", len(body))))


def _brief(line: bytes) -> str:
    """What a header says, or that it is none."""
    found = re.match(rb"poise journal 1, (\d+ classes, [a-z]+)\n", line)
    return found[1].decode() if found else "another file"


def _write(handle: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]


def _sync_names(folder: Path) -> None:
    """Makes the operating system write the folder's names; some file systems cannot."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses about a journal into one line."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"journal: '{path}' must be a file that can be read and written, got: {error.strerror or error}"
        ) from error
