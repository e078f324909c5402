"""Folders with splits, folders with more than images, and Tiny-ImageNet's own layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from poise.data import load
from poise.data.vision import import_torchvision
from poise.errors import InputError

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (6, 6)) -> torch.Tensor:
    """Writes a random image without loss; returns it as (3, H, W) in [0, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


@pytest.fixture
def xray(tmp_path) -> Path:
    """train, val and test with three classes; val lacks the middle one."""
    for split, classes in (("train", "abc"), ("val", "ac"), ("test", "abc")):
        for name in classes:
            for i in range({"train": 4, "val": 1, "test": 2}[split]):
                picture(tmp_path / split / name / f"{i}.png")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "README.txt").write_text("about")
    return tmp_path


def test_splits(xray) -> None:
    train, val, test = (load(f"folder:{xray}?split={split}") for split in ("train", "val", "test"))
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert val.labels.tolist() == [0, 2]  # not [0, 1]: the classes are those of train
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.class_names == val.class_names == test.class_names == ("a", "b", "c")
    assert test.name == f"folder:{xray}?split=test"
    assert torch.equal(load(f"folder:{xray}", split="test").images, test.images)
    assert torch.equal(load(f"folder:{xray}/test").images, test.images)
    assert load(f"folder:{xray}/val").labels.tolist() == [0, 1]  # the broken twin: a folder by itself counts anew


def test_a_split_may_have_any_name(tmp_path) -> None:
    for split in ("15_DEG", "17_DEG"):
        for name in ("BMP2", "T72"):
            picture(tmp_path / split / name / "HB1.png")
    assert load(f"folder:{tmp_path}?split=15_DEG").class_names == ("BMP2", "T72")


def test_a_part_of_a_split(xray) -> None:
    train = load(f"folder:{xray}?split=train")
    val = load(f"folder:{xray}?split=train&part=val&fractions=75:25")
    assert val.labels.tolist() == [0, 1, 2]
    assert val.name == f"folder:{xray}?split=train&part=val&fractions=75:25"
    assert torch.equal(val.images, train.images[val.ids])
    tail = load(f"folder:{xray}?split=train&longtail=0.25")
    assert tail.labels.bincount().tolist() == [4, 2, 1]


def test_masks_and_other_classes_are_left_out(tmp_path) -> None:
    for name in ("benign", "malignant", "normal"):
        for i in (1, 2):
            for ending in ("", "_mask", "_mask_1"):
                picture(tmp_path / name / f"{name} ({i}){ending}.png")
    assert len(load(f"folder:{tmp_path}")) == 18
    assert len(load(f"folder:{tmp_path}?exclude=(1)")) == 9
    data = load(f"folder:{tmp_path}?exclude=_mask&classes=malignant,benign")
    assert data.class_names == ("benign", "malignant")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert [Path(file).name for file in data.source.files] == [
        "benign (1).png",
        "benign (2).png",
        "malignant (1).png",
        "malignant (2).png",
    ]


def test_stretching_is_torchvisions_resize_to_both_sides(tmp_path) -> None:
    transforms = import_torchvision("transforms", feature="test")
    for i, size in enumerate([(31, 11), (10, 23), (8, 8)]):
        picture(tmp_path / "a" / f"{i}.png", size)
    data = load(f"folder:{tmp_path}?size=8&resize=stretch")
    turn = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])
    wanted = [turn(Image.open(tmp_path / "a" / f"{i}.png")) for i in range(3)]
    assert torch.equal(data.images, torch.stack(wanted))
    assert data.fingerprint() != load(f"folder:{tmp_path}?size=8").fingerprint()


@pytest.fixture
def tiny(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Tiny-ImageNet with three classes; wnids.txt is in another order than the alphabet."""
    wnids = ["n03", "n01", "n02"]
    (tmp_path / "wnids.txt").write_text("\n".join(wnids))
    (tmp_path / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn03\tbus\nn99\tnone\n")
    pixels = {}
    for wnid in wnids:
        for i in range(2):
            pixels[f"{wnid}_{i}"] = picture(tmp_path / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    lines = []
    for i, wnid in enumerate(["n02", "n03", "n01", "n02"]):
        pixels[f"val_{i}"] = picture(tmp_path / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    picture(tmp_path / "test" / "images" / "test_0.JPEG")
    return tmp_path, pixels


def test_tiny_imagenet(tiny) -> None:
    root, pixels = tiny
    train, val = load(f"folder:{root}?split=train"), load(f"folder:{root}?split=val")
    assert train.class_names == val.class_names == ("goldfish, Carassius auratus", "n02", "bus")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert val.labels.tolist() == [1, 2, 0, 1]
    assert torch.equal(val.images, torch.stack([pixels[f"val_{i}"] for i in range(4)]))
    assert torch.equal(train.images[2], pixels["n02_0"])
    assert load(f"folder:{root}?split=val&classes=n02,n03").labels.tolist() == [0, 1, 0]


def test_tiny_imagenet_is_refused_in_one_line(tiny) -> None:
    root, _ = tiny
    annotations = root / "val" / "val_annotations.txt"
    for text, message in [
        ("val_0.JPEG n02\n", r"val_annotations.txt: line 1 must read FILE, tab, CLASS, got 'val_0.JPEG n02'"),
        ("val_0.JPEG\tn02\nval_1.JPEG\tn07\n", r"line 2 must name a class of wnids.txt, got 'n07'"),
        ("", r"val_annotations.txt must name images, got none"),
        ("val_9.JPEG\tn02\n", r"val_9.JPEG: must be a readable image: .*No such file"),
    ]:
        annotations.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            load(f"folder:{root}?split=val")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="class folders of 'test' must be those of the training data, got 'images'"):
        load(f"folder:{root}?split=test")


def test_refused_in_one_line(xray) -> None:
    uri = f"folder:{xray}"
    for text, message in [
        (uri, r"holds the splits train, val, test: say which, such as split=train$"),
        (f"{uri}?split=dev", r"split must be a subfolder that is there \(train, val, test\), got 'dev'"),
        (f"{uri}?split=__MACOSX", "must hold one subfolder per class, got none"),
        (f"{uri}/__MACOSX?split=train", r"split must be a subfolder that is there \(no subfolder\), got 'train'"),
        (f"{uri}?split=test&classes=a,x", r"class: must be one of the known names, got 'x' .*known: a, b, c"),
        (f"{uri}?split=val&classes=b", "must hold images of b, got none in 'val'"),
        (f"{uri}?split=test&exclude=.png", r"class folder 'a' must hold images \(.*\), got none"),
        (f"{uri}?split=train&part=val&fractions=0.9:0.2", "fractions must add up to 1"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(text)
        assert "\n" not in str(caught.value)
    picture(xray / "test" / "d" / "0.png")
    with pytest.raises(InputError, match="class folders of 'test' must be those of the training data, got 'd'"):
        load(f"{uri}?split=test")
    (xray / "train" / "e").mkdir()
    with pytest.raises(InputError, match="class folder 'e' must hold images"):
        load(f"{uri}?split=train")
    picture(xray / "val" / "a" / "large.png", (7, 7))
    with pytest.raises(InputError, match=r"must have one size, got 6 x 6 and 7 x 7 \(large.png\); add size=N"):
        load(f"{uri}?split=val")
