"""Image folders, held against torchvision's ImageFolder and transforms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from poise.data import load
from poise.data.vision import import_torchvision
from poise.errors import InputError

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8), mode).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("dog/b.png", "dog/a.png", "cat/deep/c.PNG", "cat/x.bmp", "eel/y.png"):
        picture(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / "._x.png").write_text("a resource fork")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def reference(folder: Path, transform) -> tuple[torch.Tensor, list[int], list[str]]:
    datasets = import_torchvision("datasets", feature="test")
    found = datasets.ImageFolder(str(folder), transform=transform)
    return torch.stack([image for image, _ in found]), [label for _, label in found], found.classes


def test_same_as_torchvision(folder) -> None:
    transforms = import_torchvision("transforms", feature="test")
    (folder / ".hidden").rmdir()
    (folder / "cat" / "._x.png").unlink()
    images, labels, classes = reference(folder, transforms.ToTensor())
    data = load(f"folder:{folder}")
    assert list(data.class_names) == classes == ["cat", "dog", "eel"]
    assert data.labels.tolist() == labels
    assert torch.equal(data.images, images)
    assert data.shape == (3, 6, 8)
    assert data.ids.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("size", "resize"), [(5, None), (7, 9), (16, None), (4, 4), (3, 8)])
def test_resize_and_crop_as_torchvision(folder, size: int, resize: int | None) -> None:
    transforms = import_torchvision("transforms", feature="test")
    picture(folder / "dog" / "wide.png", (31, 11))
    picture(folder / "eel" / "tall.png", (10, 23))
    (folder / ".hidden").rmdir()
    (folder / "cat" / "._x.png").unlink()
    steps = [transforms.Resize(resize or size), transforms.CenterCrop(size), transforms.ToTensor()]
    images, _, _ = reference(folder, transforms.Compose(steps))
    query = f"size={size}" + (f"&resize={resize}" if resize else "")
    data = load(f"folder:{folder}?{query}")
    assert data.shape == (3, size, size)
    assert torch.equal(data.images, images)


def test_grey_only_where_every_file_is_grey(tmp_path) -> None:
    picture(tmp_path / "a" / "1.png", mode="L")
    picture(tmp_path / "b" / "1.png", mode="L")
    assert load(f"folder:{tmp_path}").shape == (1, 6, 8)
    picture(tmp_path / "b" / "2.png", mode="RGBA")
    data = load(f"folder:{tmp_path}")
    assert data.shape == (3, 6, 8)
    assert torch.equal(data.images[0, 0], data.images[0, 2])


def test_different_sizes_need_a_size(folder) -> None:
    picture(folder / "eel" / "z.png", (9, 9))
    with pytest.raises(InputError, match=r"must have one size, got 8 x 6 and 9 x 9 \(z.png\); add size=N"):
        load(f"folder:{folder}")
    assert load(f"folder:{folder}?size=4").images.shape == (6, 3, 4, 4)


def test_a_part_of_a_sorted_set_holds_all_classes(tmp_path) -> None:
    for label in "abcde":
        for i in range(20):
            picture(tmp_path / label / f"{i:02d}.png", (2, 2))
    whole = load(f"folder:{tmp_path}")
    first, second = load(f"folder:{tmp_path}", samples=50), load(f"folder:{tmp_path}", samples=60, offset=50)
    assert sorted(set(first.labels.tolist())) == [0, 1, 2, 3, 4]
    assert set(whole[:50].labels.tolist()) == {0, 1, 2}  # the broken twin: the first rows as they lie
    assert sorted(first.ids.tolist() + second.ids.tolist()) == list(range(100))
    assert torch.equal(first.images, whole.images[first.ids])
    assert torch.equal(first.labels, whole.labels[first.ids])
    assert first.ids.tolist() == load(f"folder:{tmp_path}", samples=50).ids.tolist()


def test_fingerprint_is_that_of_the_files(folder) -> None:
    before = load(f"folder:{folder}").fingerprint()
    assert load(f"folder:{folder}").fingerprint() == before
    assert load(f"folder:{folder}?size=4").fingerprint() != before
    picture(folder / "eel" / "y.png")
    assert load(f"folder:{folder}").fingerprint() != before


def test_refused_in_one_line(folder, tmp_path) -> None:
    uri = f"folder:{folder}"
    for text, message in [
        (f"folder:{tmp_path / 'no'}", "must be an existing folder"),
        (f"{uri}/dog/a.png", "must be a folder, got the file"),
        (f"{uri}/dog", "must hold one subfolder per class, got none"),
        (f"{uri}?size=0", "size must be a whole number, at least 1, got '0'"),
        (f"{uri}?resize=5", "resize must come with a size"),
        (f"{uri}?size=5&resize=4", "resize must come with a size"),
        (f"{uri}?split=val", r"split must be a subfolder that is there \(cat, dog, eel\), got 'val'"),
        (f"{uri}?sise=5", r"query key: .* got 'sise' \(did you mean size"),
        (f"{uri}?size=5&resize=strech", "resize must be a whole number, at least 1, got 'strech'"),
        (f"{uri}?resize=stretch", "resize must come with a size"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(text)
        assert "\n" not in str(caught.value)


def test_an_empty_class_is_refused(folder) -> None:
    (folder / "fox").mkdir()
    with pytest.raises(InputError, match="class folder 'fox' must hold images"):
        load(f"folder:{folder}")


def test_damaged_images(folder) -> None:
    file = folder / "dog" / "a.png"
    whole = file.read_bytes()
    file.write_bytes(b"no image")
    with pytest.raises(InputError, match="must be a readable image"):
        load(f"folder:{folder}")
    file.write_bytes(whole[: len(whole) // 2])
    data = load(f"folder:{folder}")  # the header is sound
    with pytest.raises(InputError, match=r"a\.png: must be a readable image"):
        data.images.sum()


def test_a_file_that_changes_after_listing(folder) -> None:
    data = load(f"folder:{folder}")
    picture(folder / "dog" / "a.png", (5, 5))
    with pytest.raises(InputError, match="must be 8 x 6, got 5 x 5: it changed"):
        data.images.sum()


def test_sixteen_bits_are_refused(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "a" / "x.png")
    with pytest.raises(InputError, match=r"must have 8 bits per channel, got mode I;16 in x\.png"):
        load(f"folder:{tmp_path}")


def test_an_image_bomb_is_refused(folder) -> None:
    with pytest.raises(InputError, match=r"must be a readable image: .*exceeds limit of 19 pixels"):
        load(f"folder:{folder}?pixels=19")
    assert len(load(f"folder:{folder}?pixels=48"))
