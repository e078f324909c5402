"""Real checkpoints reproduce the accuracy and the calibration error that their README states."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.data import Dataset, check_matches
from poise.data import load as load_data
from poise.models import load
from poise.targets import ModuleTarget

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is missing")

LOSSLESS, JPEG = "cifar10_test_lossless_subset.npz", "cifar10_test_jpeg75.npz"


def figures(target: ModuleTarget, data: Dataset) -> tuple[float, float]:
    """Accuracy and ECE(15), with bins (lower, upper]; independent of poise.metrics."""
    check_matches(data, target.num_classes)
    confidence, correct = [], []
    for images, labels, ids in data.batches(500):
        outputs = target.query(images, ids)
        confidence.append(outputs.confidence.numpy())
        correct.append((outputs.labels == labels).numpy())
    c, right = np.concatenate(confidence), np.concatenate(correct)
    bins = np.ceil(c * 15)
    ece = sum(abs(c[bins == b].sum() - right[bins == b].sum()) for b in np.unique(bins)) / len(c)
    return round(float(right.mean()), 4), round(float(ece), 4)


@pytest.mark.parametrize(
    ("name", "file", "data", "accuracy", "ece"),
    [
        ("resnet20-cifar10", "cifar10_resnet20", LOSSLESS, 0.9300, 0.0486),
        ("resnet32-cifar10", "cifar10_resnet32", LOSSLESS, 0.9167, 0.0662),
        ("resnet56-cifar10", "cifar10_resnet56", LOSSLESS, 0.9500, 0.0422),
        ("cnn-a-cifar10", "cifar10_cnn_a_adv", LOSSLESS, 0.7000, 0.1628),
        ("cnn-a-cifar10", "cifar10_cnn_a_mix", LOSSLESS, 0.7933, 0.1300),
        ("resnet2b-cifar10", "cifar10_resnet2b_adv", LOSSLESS, 0.7500, 0.1395),
        ("cnn-a-cifar10", "cifar10_cnn_a_adv", JPEG, 0.6554, 0.1176),
        ("cnn-a-cifar10", "cifar10_cnn_a_mix", JPEG, 0.7319, 0.0727),
        ("resnet2b-cifar10", "cifar10_resnet2b_adv", JPEG, 0.6870, 0.0773),
    ],
)
def test_cifar10(name: str, file: str, data: str, accuracy: float, ece: float) -> None:
    target = load(f"builtin:{name}?weights={SHARED}/checkpoints/{file}.safetensors")
    assert figures(target, load_data(f"npz:{SHARED}/{data}")) == (accuracy, ece)


def test_another_normalisation_is_seen() -> None:
    """The broken twin of the figures above."""
    weights = f"{SHARED}/checkpoints/cifar10_resnet20.safetensors"
    target = load(f"builtin:resnet20-cifar10?weights={weights}&mean=0.5,0.5,0.5&std=0.5,0.5,0.5")
    assert figures(target, load_data(f"npz:{SHARED}/{LOSSLESS}")) != (0.9300, 0.0486)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory) -> Dataset:
    """The 10,000 test images, unpacked to where torchvision looks; the train files it asks for are left empty."""
    root = tmp_path_factory.mktemp("mnist")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        (raw / f"t10k-{name}").write_bytes(gzip.decompress((SHARED / "mnist" / f"t10k-{name}.gz").read_bytes()))
        (raw / f"train-{name}").write_bytes(b"")
    return load_data(f"torchvision:MNIST?root={root}")


@pytest.mark.parametrize(("file", "accuracy", "ece"), [("clean", 0.9889, 0.0021), ("adv", 0.9864, 0.0057)])
def test_mnist(mnist, file: str, accuracy: float, ece: float) -> None:
    target = load(f"builtin:lenet5-mnist?weights={SHARED}/checkpoints/mnist_lenet5_{file}.safetensors")
    assert figures(target, mnist) == (accuracy, ece)


def test_squeezenet_recognises_its_images() -> None:
    """The first 20 of the 500; all 500 give the README's top-1 of 0.634."""
    import csv
    import io
    import zipfile

    from PIL import Image

    from poise.data.folder import centre_crop

    weights = f"{SHARED}/checkpoints/imagenet_squeezenet1_0_pad1.safetensors"
    target = load(f"builtin:squeezenet10-imagenet?weights={weights}")
    with zipfile.ZipFile(SHARED / "imagenet_sample_256.zip") as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("labels.csv"))))[:20]
        pictures = [Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB") for row in rows]
    pixels = np.stack([np.asarray(centre_crop(picture, resize=256, size=227)) for picture in pictures])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor([int(row["label"]) for row in rows])
    right = (target.query(x, torch.arange(20)).labels == labels).float().mean().item()
    turned = (target.query(x.flip(1), torch.arange(20)).labels == labels).float().mean().item()
    assert right > 0.5
    assert turned < right  # the broken twin: blue for red
