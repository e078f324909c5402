"""Data in torchvision's file formats, written here: CIFAR's pickles and MNIST's IDX."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.data import load
from poise.data.vision import import_torchvision
from poise.errors import InputError

RNG = np.random.default_rng(0)


def idx(path: Path, array: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


@pytest.fixture
def mnist(tmp_path) -> tuple[Path, np.ndarray, np.ndarray]:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = RNG.integers(0, 256, (7, 28, 28), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5, 9, 2], dtype=np.uint8)
    for part, n in (("train", 7), ("t10k", 5)):
        idx(raw / f"{part}-images-idx3-ubyte", images[:n])
        idx(raw / f"{part}-labels-idx1-ubyte", labels[:n])
    return tmp_path, images, labels


def test_mnist(mnist) -> None:
    root, images, labels = mnist
    data = load(f"torchvision:MNIST?root={root}")
    assert len(data) == 5
    assert data.shape == (1, 28, 28)
    assert data.class_names[3] == "3 - three"
    assert torch.equal(data.images[:, 0], torch.from_numpy(images[:5]).float() / 255)
    assert data.labels.tolist() == labels[:5].tolist()
    assert data.source.array.dtype == np.uint8
    assert len(load(f"torchvision:MNIST?root={root}&split=train")) == 7
    assert len(load(f"torchvision:MNIST?root={root}", split="train", samples=3, offset=2)) == 3


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> tuple[Path, np.ndarray, list[int]]:
    """Small files in CIFAR-10's format; torchvision is told their checksums in place of the real ones."""
    cifar10 = import_torchvision("datasets", feature="test").CIFAR10
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    labels = [6, 9, 0, 3]

    def write(name: str, content: object) -> list[str]:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    batch = {"data": images.reshape(4, -1), "labels": labels}
    names = [f"class {i}" for i in range(10)]
    monkeypatch.setattr(cifar10, "train_list", [write("data_batch_1", batch), write("data_batch_2", batch)])
    monkeypatch.setattr(cifar10, "test_list", [write("test_batch", batch)])
    monkeypatch.setattr(cifar10, "meta", dict(cifar10.meta, md5=write("batches.meta", {"label_names": names})[1]))
    return tmp_path, images, labels


def test_cifar10(cifar) -> None:
    root, images, labels = cifar
    data = load(f"torchvision:CIFAR10?root={root}")
    assert data.shape == (3, 32, 32)
    assert torch.equal(data.images, torch.from_numpy(images).float() / 255)
    assert data.labels.tolist() == labels
    assert data.class_names[1] == "class 1"
    assert len(load(f"torchvision:CIFAR10?root={root}&split=train")) == 8


def test_a_pickle_with_another_checksum_is_not_opened(cifar, tmp_path) -> None:
    root, _, _ = cifar
    marker = tmp_path / "touched"

    class Trap:
        def __reduce__(self):
            return Path.touch, (marker,)

    content = pickle.dumps(Trap())
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(InputError, match="root must hold the complete files of CIFAR10"):
        load(f"torchvision:CIFAR10?root={root}")
    assert not marker.exists()
    pickle.loads(content)  # the broken twin: opened, the trap does work
    assert marker.exists()


def test_refused_in_one_line(mnist, tmp_path) -> None:
    root, _, _ = mnist
    for text, message in [
        ("torchvision:MNIST", "needs root=DIR"),
        (f"torchvision:MNIST?root={tmp_path / 'no'}", "root must be an existing folder"),
        (f"torchvision:CIFAR10?root={root}", "complete files of CIFAR10, got .*: Dataset not found or corrupted$"),
        (f"torchvision:MNITS?root={root}", r"torchvision data: .* got 'MNITS' \(did you mean .*MNIST"),
        (f"torchvision:MNIST?root={root}&split=val", "split must be one of train, test, got 'val'"),
        (f"torchvision:MNIST?root={root}&train=1", "query key"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(text)
        assert "\n" not in str(caught.value)


def test_damaged_idx(mnist) -> None:
    root, _, _ = mnist
    file = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="root must hold the complete files of MNIST"):
        load(f"torchvision:MNIST?root={root}")
    idx(file, np.zeros((4, 28, 28), np.uint8))
    with pytest.raises(InputError, match="one label per image, got 4 images and 5 labels"):
        load(f"torchvision:MNIST?root={root}")
