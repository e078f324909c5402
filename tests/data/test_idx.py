"""idx: MNIST's own files, plain and gzipped; damaged ones become one line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from poise import data
from poise.errors import InputError


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 7), ("t10k", 5)):
        images, labels = rng.integers(0, 256, (count, 28, 20)), np.arange(count) % 3
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_both_parts_are_read_as_written(folder: Path) -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (7, 28, 20))
    found = data.load(f"idx:{folder}?split=train")
    assert found.shape == (1, 28, 20)
    np.testing.assert_allclose(found.images[:, 0].numpy(), train / 255, atol=1e-7)
    assert data.load(f"idx:{folder}").labels.tolist() == [0, 1, 2, 0, 1]


BROKEN = {
    "missing": (None, "needs the file t10k-labels-idx1-ubyte"),
    "short": (idx(np.arange(5))[:-1], "is damaged"),
    "long": (idx(np.arange(5)) + b"x", "is damaged"),
    "other format": (b"PNG and more", "must be bytes in 1 dimensions"),
    "empty": (b"", "must be bytes in 1 dimensions"),
    "bomb": (bytes([0, 0, 8, 1, 255, 255, 255, 255]), "damaged|at most"),
    "other type": (bytes([0, 0, 13, 1, 0, 0, 0, 5]) + bytes(20), "must be bytes in 1 dimensions"),
    "another number of labels": (idx(np.arange(4)), "label"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_fit_is_one_line(folder: Path, kind: str) -> None:
    content, says = BROKEN[kind]
    path = folder / "t10k-labels-idx1-ubyte"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        data.load(f"idx:{folder}")
    assert "\n" not in str(caught.value)


def test_a_broken_gzip_is_one_line(folder: Path) -> None:
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"must be a readable IDX file|damaged"):
        data.load(f"idx:{folder}")
