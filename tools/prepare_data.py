"""Makes the archives that experiments/training/ reads from the carriers that MNIST and CIFAR-10 come in.

    python tools/prepare_data.py FOLDER [OUT]

FOLDER holds mnist/*-ubyte.gz (IDX), cifar10_train_jpeg75.zip (an image per file, a folder per class) and
cifar10_test_jpeg75.npz; what is missing is left out. OUT (runs/data) gets mnist.npz and cifar10_jpeg75.npz, with train
and test parts, ready for `npz:`.
"""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def idx(path: Path) -> np.ndarray:
    """An array in MNIST's own format."""
    with gzip.open(path) as file:
        raw = file.read()
    sizes = [int.from_bytes(raw[4 + 4 * at : 8 + 4 * at], "big") for at in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)


def mnist(source: Path, out: Path) -> None:
    parts = {"train": "train", "test": "t10k"}
    arrays = {}
    for part, name in parts.items():
        arrays[f"{part}_images"] = idx(source / f"{name}-images-idx3-ubyte.gz")
        arrays[f"{part}_labels"] = idx(source / f"{name}-labels-idx1-ubyte.gz").astype(np.int64)
    np.savez(out, **arrays)


def cifar10(train: Path, test: Path, out: Path) -> None:
    with np.load(test) as held_out:
        images, labels, names = held_out["images"], held_out["labels"], list(held_out["class_names"])
    with zipfile.ZipFile(train) as archive:
        files = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = [names.index(Path(name).parent.name) for name in files]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in files])
    np.savez(
        out,
        train_images=pixels,
        train_labels=np.array(classes),
        test_images=images,
        test_labels=labels,
        class_names=np.array(names),
    )


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "runs/data")
    out.mkdir(parents=True, exist_ok=True)
    train, test = source / "cifar10_train_jpeg75.zip", source / "cifar10_test_jpeg75.npz"
    if (source / "mnist").is_dir():
        mnist(source / "mnist", out / "mnist.npz")
    if train.exists() and test.exists():
        cifar10(train, test, out / "cifar10_jpeg75.npz")
    for path in sorted(out.glob("*.npz")):
        print(f"{path}  {path.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
