"""A file is there whole or not at all, and nothing else is."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from poise import files
from poise.files import is_leftover, whole


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def broken_off() -> None:
        with whole(path) as temporary:
            temporary.write_text("half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert path.read_text() == "old"
    with whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert is_leftover(temporary)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_never_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_the_name_and_the_name_at_the_end(tmp_path: Path, monkeypatch) -> None:
    seen: list[str] = []
    sync, replace = os.fsync, Path.replace

    def watched(handle: int) -> None:
        seen.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        sync(handle)

    monkeypatch.setattr(files.os, "fsync", watched)
    monkeypatch.setattr(Path, "replace", lambda self, to: seen.append("name") or replace(self, to))
    with whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert seen == ["content", "name", "folder"]


def test_two_threads_do_not_share_a_temporary_name(tmp_path: Path) -> None:
    names, meet = [], threading.Barrier(2)

    def write() -> None:
        with whole(tmp_path / "a.txt") as temporary:
            names.append(temporary.name)
            temporary.write_text("x" * 1000)
            meet.wait(10)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 2
    assert (tmp_path / "a.txt").read_text() == "x" * 1000


@pytest.mark.parametrize(
    ("name", "leftover"), [(".a.txt.12.34.tmp", True), (".lock", False), ("a.tmp", False), ("a.txt", False)]
)
def test_leftovers(name: str, leftover: bool) -> None:
    assert is_leftover(Path(name)) is leftover
