"""The store: whole or not at all, checked by sum, on a disk and behind a URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from poise.errors import InputError, RunError
from poise.experiments.bench.store import LocalStore, RemoteStore, Store, open_store

KEY = "ab" + 62 * "0"
CONTENT = {"rows.parquet": b"rows", "images.safetensors": bytes(1000)}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield open_store(str(tmp_path / "out"))
        return
    found = open_store(f"memory://{tmp_path.name}")
    assert isinstance(found, RemoteStore)
    yield found
    found.system.store.clear()


def test_what_was_written_is_there(store: Store) -> None:
    assert store.finished() == set()
    store.write(KEY, CONTENT, {"what": "a cell"})
    assert store.finished() == {KEY}
    assert store.intact(KEY)
    assert {name: store.read(KEY, name) for name in CONTENT} == CONTENT
    assert store.about(KEY)["about"] == {"what": "a cell"}
    store.write(KEY, {"rows.parquet": b"other"}, {})
    assert store.read(KEY, "rows.parquet") == b"other"
    assert not store.about(KEY)["files"].get("images.safetensors")
    store.discard(KEY)
    assert store.finished() == set()
    store.discard(KEY)


def test_notes(store: Store) -> None:
    assert store.read_note("runs/x/plan.json") is None
    store.write_note("runs/x/plan.json", {"a": 1})
    assert store.read_note("runs/x/plan.json") == {"a": 1}


def damage(store: Store, name: str, content: bytes | None) -> None:
    if isinstance(store, LocalStore):
        path = store.folder / "shards" / KEY[:2] / KEY / name
        path.unlink() if content is None else path.write_bytes(content)
    else:
        assert isinstance(store, RemoteStore)
        at = store._at(KEY, name)
        store.system.rm(at) if content is None else store.system.pipe_file(at, content)


@pytest.mark.parametrize("content", [b"rowz", b"row", b"", None])
def test_damage_is_seen(store: Store, content: bytes | None) -> None:
    store.write(KEY, CONTENT, {})
    damage(store, "rows.parquet", content)
    assert not store.intact(KEY)
    with pytest.raises(RunError, match=r"rows\.parquet' is damaged"):
        store.read(KEY, "rows.parquet")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"files": 3}'])
def test_a_damaged_done_file_is_a_damaged_shard(store: Store, content: bytes) -> None:
    store.write(KEY, CONTENT, {})
    damage(store, "done.json", content)
    assert not store.intact(KEY)


def test_without_its_done_file_a_shard_is_not_there(store: Store) -> None:
    store.write(KEY, CONTENT, {})
    damage(store, "done.json", None)
    assert store.finished() == set()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="must be a place that can be written"):
        open_store(str(tmp_path / "file")).write(KEY, CONTENT, {})


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(str(tmp_path))

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="No space left"):
        store.write(KEY, CONTENT, {})
    assert store.finished() == set()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_killed_process_left_is_swept_up_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    dead, alive = (tmp_path / "shards" / "ab" / f".{KEY[:16]}.{pid}.1.tmp" for pid in (2**22 + 1, os.getpid()))
    for folder in (dead, alive):
        folder.mkdir(parents=True)
    store.sweep()
    assert not dead.exists()
    assert alive.exists()
    assert store.finished() == set()


def test_an_unknown_scheme_is_one_line() -> None:
    with pytest.raises(InputError, match="must be a folder or a URL that fsspec opens"):
        open_store("nowhere://bucket/path")


def test_file_urls_are_folders(tmp_path: Path) -> None:
    assert isinstance(open_store(f"file://{tmp_path}"), LocalStore)
