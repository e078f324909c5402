"""Caltech-101, GTSRB and ImageNet in torchvision's layout, written here and held against torchvision's classes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from poise.data import Loader, load, names
from poise.data.vision import import_torchvision
from poise.errors import InputError

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int], *, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], *(() if grey else (3,))), dtype=np.uint8)).save(path)


def of_torchvision(name: str, **arguments: object) -> tuple[torch.Tensor, list[int]]:
    """Images (n, 3, 8, 8) and labels as torchvision's own class gives them."""
    transforms = import_torchvision("transforms", feature="test")
    turn = transforms.Compose(
        [lambda image: image.convert("RGB"), transforms.Resize(10), transforms.CenterCrop(8), transforms.ToTensor()]
    )
    factory: Callable[..., object] = getattr(import_torchvision("datasets", feature="test"), name)
    found = list(factory(transform=turn, **arguments))  # type: ignore[call-overload]
    return torch.stack([image for image, _ in found]), [label for _, label in found]


def check(uri: str, images: torch.Tensor, labels: list[int]) -> None:
    data = load(uri)
    assert data.labels.tolist() == labels
    assert torch.equal(data.images, images)
    streamed = list(Loader(data, [list(range(len(data)))]))
    assert torch.equal(streamed[0][0], images)


@pytest.fixture
def caltech(tmp_path) -> Path:
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    for name, count in (("Faces", 3), ("accordion", 2), ("BACKGROUND_Google", 2), ("Motorbikes", 4), ("airplanes", 1)):
        for i in range(1, count + 1):
            picture(folder / name / f"image_{i:04d}.jpg", (12 + i, 20 - i), grey=i == 2)
    return tmp_path


def test_caltech101(caltech) -> None:
    uri = f"torchvision:Caltech101?root={caltech}&size=8&resize=10"
    check(uri, *of_torchvision("Caltech101", root=str(caltech)))
    data = load(uri)
    assert data.class_names == ("Faces", "Motorbikes", "accordion", "airplanes")
    assert data.shape == (3, 8, 8)
    parts = [load(f"{uri}&part={part}&fractions=80:10:10") for part in ("train", "val", "test")]
    assert sorted(torch.cat([part.ids for part in parts]).tolist()) == list(range(10))
    assert [len(part) for part in parts] == [8, 1, 1]


def test_nothing_is_opened_or_written_before_a_batch(caltech, monkeypatch) -> None:
    opened: list[str] = []
    before = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **more: opened.append(str(file)) or before(file, **more))
    there = sorted(map(str, caltech.rglob("*")))
    data = load(f"torchvision:Caltech101?root={caltech}&size=8")
    assert opened == []
    next(data.batches(2))
    assert len(opened) == 2
    assert sorted(map(str, caltech.rglob("*"))) == there
    with pytest.raises(InputError, match="root must hold the folder caltech101/101_ObjectCategories"):
        load(f"torchvision:Caltech101?root={caltech / 'caltech101'}&size=8")
    assert not (caltech / "caltech101" / "caltech101").exists()
    with pytest.raises(RuntimeError, match="not found"):
        of_torchvision("Caltech101", root=str(caltech / "caltech101"))
    assert (caltech / "caltech101" / "caltech101").exists()  # the broken twin: torchvision's own class makes folders


@pytest.fixture
def gtsrb(tmp_path) -> Path:
    base = tmp_path / "gtsrb"
    for label in range(3):
        for i in range(2 + label):
            picture(base / "GTSRB" / "Training" / f"{label:05d}" / f"{i:05d}_00000.ppm", (9 + i, 11))
        table = base / "GTSRB" / "Training" / f"{label:05d}" / f"GT-{label:05d}.csv"
        table.write_text("Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n")
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i, label in enumerate([2, 0, 42, 1]):
        picture(base / "GTSRB" / "Final_Test" / "Images" / f"{i:05d}.ppm", (13, 9 + i))
        rows.append(f"{i:05d}.ppm;13;{9 + i};1;1;8;8;{label}")
    (base / "GT-final_test.csv").write_text("\r\n".join(rows) + "\r\n")
    return tmp_path


def test_gtsrb(gtsrb) -> None:
    for split in ("train", "test"):
        images, labels = of_torchvision("GTSRB", root=str(gtsrb), split=split)
        check(f"torchvision:GTSRB?root={gtsrb}&split={split}&size=8&resize=10", images, labels)
    data = load(f"torchvision:GTSRB?root={gtsrb}&size=8")
    assert data.labels.tolist() == [2, 0, 42, 1]
    assert data.num_classes == 43
    assert data.class_names[7] == "00007"
    assert data.name == "torchvision:GTSRB?split=test"


def test_gtsrb_without_its_table(gtsrb) -> None:
    table, uri = gtsrb / "gtsrb" / "GT-final_test.csv", f"torchvision:GTSRB?root={gtsrb}&size=8"
    for text, message in [
        ("Filename;ClassId\n00000.ppm;43\n", "a row must hold Filename and ClassId below 43, got"),
        ("Filename,ClassId\n00000.ppm,4\n", "a row must hold Filename and ClassId below 43, got"),
        ("Filename;ClassId\n", "GT-final_test.csv must hold a row per image, got none"),
    ]:
        table.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            load(uri)
        assert "\n" not in str(caught.value)
    table.unlink()
    with pytest.raises(InputError, match=r"root must hold gtsrb/GT-final_test.csv, .* got none"):
        load(uri)


@pytest.fixture
def imagenet(tmp_path) -> Path:
    wnids = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",), "n02012849": ("crane",)}
    for split, count in (("train", 3), ("val", 2)):
        for wnid in wnids:
            for i in range(count):
                picture(tmp_path / split / wnid / f"{wnid}_{i}.JPEG", (12 + i, 10 + 2 * i))
    torch.save((wnids, ["n01440764"] * 6), tmp_path / "meta.bin")
    return tmp_path


def test_imagenet(imagenet) -> None:
    for split in ("train", "val"):
        images, labels = of_torchvision("ImageNet", root=str(imagenet), split=split)
        check(f"torchvision:ImageNet?root={imagenet}&split={split}&size=8&resize=10", images, labels)
    data = load(f"torchvision:ImageNet?root={imagenet}&size=8")
    assert data.name == "torchvision:ImageNet?split=val"
    assert data.class_names == ("tench, Tinca tinca", "goldfish", "crane")
    (imagenet / "meta.bin").unlink()
    assert load(f"torchvision:ImageNet?root={imagenet}&size=8").class_names[0] == "n01440764"


def test_a_meta_file_runs_no_code(imagenet, tmp_path) -> None:
    marker = tmp_path / "touched"

    class Trap:
        def __reduce__(self):
            return Path.touch, (marker,)

    torch.save((Trap(), []), imagenet / "meta.bin")
    with pytest.raises(InputError, match=r"meta\.bin must be the file that torchvision writes") as caught:
        load(f"torchvision:ImageNet?root={imagenet}&size=8")
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    torch.load(imagenet / "meta.bin", weights_only=False)  # the broken twin: opened, the trap does work
    assert marker.exists()


def test_refused_in_one_line(caltech, gtsrb, imagenet) -> None:
    where = f"root={caltech}"
    torch.save(({}, []), imagenet / "meta.bin")
    for text, message in [
        (f"torchvision:Caltech101?{where}", "needs size=N, such as size=224, because the images differ in size"),
        (f"torchvision:Caltech101?{where}&size=8&split=test", r"has no splits \(use part=test&fr.*\), got split=test"),
        (f"torchvision:Caltech101?{where}&size=8&resize=4", "resize must come with a size that is not larger"),
        (f"torchvision:GTSRB?{where}&size=8&split=val", "split must be one of train, test, got 'val'"),
        (f"torchvision:ImageNet?{where}&size=8&split=test", "split must be one of train, val, got 'test'"),
        (f"torchvision:ImageNet?{where}&size=8", "class folders of 'val' must be wnids of meta.bin, got 'n01440764'"),
        (f"torchvision:ImageNet?root={caltech / 'gtsrb'}&size=8", "root must hold the folder val, got"),
        ("torchvision:GTSRB?size=8", "needs root=DIR"),
        (f"torchvision:Caltech?{where}", r"got 'Caltech' \(did you mean Caltech101"),
        (f"torchvision:GTSRB?{where}&size=8&train=1", "query key"),
        (f"torchvision:MNIST?{where}&size=8", r"query key: .* got 'size'"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(text)
        assert "\n" not in str(caught.value)


def test_names() -> None:
    for name in ("Caltech101", "GTSRB", "ImageNet"):
        assert f"torchvision:{name}?root=DIR&size=N" in names()
