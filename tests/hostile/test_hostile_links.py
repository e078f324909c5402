"""Names and links that lead out of a folder, and things in it that are no files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import readers
from PIL import Image

from poise import data
from poise.errors import InputError, RunError
from poise.experiments.bench.store import LocalStore


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, and a secret beside it."""
    (tmp_path / "secret").mkdir()
    Image.new("RGB", (9, 8), (255, 0, 0)).save(tmp_path / "secret" / "x.png")
    (tmp_path / "set" / "cat").mkdir(parents=True)
    Image.new("RGB", (9, 8)).save(tmp_path / "set" / "cat" / "a.png")
    return tmp_path / "set"


def refused(address: str, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        data.load(address)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("place", ["cat/b.png", "dog"])
def test_links_out_of_the_folder_are_refused_unless_asked_for(images: Path, place: str) -> None:
    target = images.parent / "secret" / ("x.png" if place.endswith(".png") else "")
    (images / place).symlink_to(target)
    refused(f"folder:{images}", "must not link out of 'set'", "links=true")
    assert len(data.load(f"folder:{images}?links=true")) == 2


def test_links_within_the_folder_are_followed(images: Path) -> None:
    (images / "cat" / "b.png").symlink_to(images / "cat" / "a.png")
    (images / "dog").symlink_to(images / "cat")
    assert data.load(f"folder:{images}").labels.tolist() == [0, 0, 1, 1]


def test_a_circle_of_links_ends(images: Path) -> None:
    (images / "cat" / "again").symlink_to(images)
    (images / "cat" / "b.png").symlink_to(images / "cat" / "c.png")
    (images / "cat" / "c.png").symlink_to(images / "cat" / "b.png")
    refused(f"folder:{images}", "must")


def test_a_pipe_called_an_image_is_not_opened(images: Path) -> None:
    os.mkfifo(images / "cat" / "b.png")
    refused(f"folder:{images}", "'b.png' must be a file")


@pytest.mark.parametrize("name", ["../../../secret/x.png", "/etc/passwd", "a/../b.png", "val_0.png\0"])
def test_a_list_names_files_of_its_folder_only(tmp_path: Path, name: str) -> None:
    listed = readers.tiny(tmp_path)
    listed.write_text(f"{name}\tn1\t0\t0\t8\t8\n")
    refused(f"folder:{tmp_path}?split=val", "val_annotations.txt must name images of its folder")
    if "\0" not in name:
        readers.gtsrb(tmp_path).write_text(f"Filename;ClassId\n{name};1\n")
        refused(f"torchvision:GTSRB?root={tmp_path}&size=8", "GT-final_test.csv must name images of its folder")


def test_an_archive_writes_nothing(tmp_path: Path) -> None:
    """Members called ../evil.npy stay where they are; those that are asked for are read into memory."""
    np.savez(tmp_path / "set.npz", images=readers.pixels(3), labels=np.arange(3), **{"../evil": np.arange(3)})
    assert len(data.load(f"npz:{tmp_path / 'set.npz'}")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_a_shard_names_files_of_its_folder_only(tmp_path: Path) -> None:
    done = readers.shard(tmp_path / "store")
    (tmp_path / "secret").write_text("secret")
    about = json.loads(done.read_text())
    about["files"]["../../../../secret"] = [6, "0" * 64]
    done.write_text(json.dumps(about))
    store = LocalStore(str(tmp_path / "store"))
    assert not store.intact(readers.KEY)
    with pytest.raises(RunError, match=r"is damaged \(it names '\.\./"):
        store.read(readers.KEY, "../../../../secret")
