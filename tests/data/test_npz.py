"""NumPy archives: keys, splits, bombs, damage."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.data import load, npz
from poise.errors import InputError

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
IMAGES = np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3)
LABELS = np.array([1, 0, 1, 0])


def save(path: Path, **arrays) -> str:
    np.savez_compressed(path, **arrays)
    return f"npz:{path}"


def test_plain_keys(tmp_path) -> None:
    uri = save(tmp_path / "a.npz", images=IMAGES, labels=LABELS, class_names=np.array(["no", "yes"]))
    data = load(uri)
    assert data.class_names == ("no", "yes")
    assert data.names_given
    assert torch.equal(data.images[:, 0], torch.from_numpy(IMAGES).float() / 255)
    assert data.source.array.dtype == np.uint8
    assert data.name == uri


def test_split_keys(tmp_path) -> None:
    parts = {"train": IMAGES, "val": IMAGES[:3], "test": IMAGES[:2]}
    arrays = {f"{part}_images": array for part, array in parts.items()}
    arrays |= {f"{part}_labels": LABELS[: len(array), None].astype(np.uint8) for part, array in parts.items()}
    uri = save(tmp_path / "a.npz", **arrays)
    assert len(load(uri)) == 2
    assert len(load(uri, split="val")) == len(load(f"{uri}?split=val")) == 3
    assert len(load(f"{uri}?split=train", split="train")) == 4
    assert load(uri, split="val").ids.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="split must be given once, got 'train' and 'val'"):
        load(f"{uri}?split=train", split="val")
    with pytest.raises(InputError, match="needs an array 'dev_images', the file holds: train_images, val_images"):
        load(uri, split="dev")


def test_named_keys(tmp_path) -> None:
    uri = save(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    assert len(load(f"{uri}?images=x&labels=y")) == 4
    with pytest.raises(InputError, match="needs an array 'images', the file holds: x, y"):
        load(uri)
    with pytest.raises(InputError, match="needs an array 'labels', the file holds: x, y"):
        load(f"{uri}?images=x")
    with pytest.raises(InputError, match="must not be given together"):
        load(f"{uri}?images=x&split=test")
    with pytest.raises(InputError, match=r"query key: .*'image' \(did you mean images"):
        load(f"{uri}?image=x")


def test_layout_key(tmp_path) -> None:
    uri = save(tmp_path / "a.npz", images=np.zeros((4, 3, 5, 3), np.uint8), labels=LABELS)
    assert load(f"{uri}?layout=nchw").shape == (3, 5, 3)
    with pytest.raises(InputError, match="layout must be one of nhwc, nchw, got 'hwc'"):
        load(f"{uri}?layout=hwc")


def test_labels_outside_the_class_names(tmp_path) -> None:
    uri = save(tmp_path / "a.npz", images=IMAGES, labels=LABELS + 1, class_names=np.array(["no", "yes"]))
    with pytest.raises(InputError, match="must be below the 2 class names, got 2"):
        load(uri)
    uri = save(tmp_path / "b.npz", images=IMAGES, labels=LABELS, class_names=np.array([[1, 2]]))
    with pytest.raises(InputError, match="class_names must be a list of texts"):
        load(uri)


def test_objects_are_never_unpickled(tmp_path) -> None:
    marker = tmp_path / "touched"

    class Trap:
        def __reduce__(self):
            return Path.touch, (marker,)

    path = tmp_path / "a.npz"
    trapped = np.empty(4, dtype=object)
    trapped[:] = [Trap()] * 4
    uri = save(path, images=IMAGES, labels=trapped)
    with pytest.raises(InputError, match="array 'labels' must be numbers or texts, got Python objects"):
        load(uri)
    assert not marker.exists()
    np.load(path, allow_pickle=True)["labels"]  # the broken twin: the trap does work where objects are unpickled
    assert marker.exists()


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def forge(path: Path, images: bytes) -> str:
    """An archive whose images are these bytes."""
    labels = io.BytesIO()
    np.save(labels, LABELS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", images)
        file.writestr("labels.npy", labels.getvalue())
    return f"npz:{path}"


def test_a_shape_that_the_file_does_not_hold_is_not_allocated(tmp_path) -> None:
    uri = forge(tmp_path / "a.npz", header((4, 2**20, 2**20)) + bytes(100))
    with pytest.raises(InputError, match=r"array 'images' is damaged: shape .* takes 4398046511104 bytes"):
        load(uri)


def test_a_bomb_is_refused_before_it_is_read(tmp_path, monkeypatch) -> None:
    uri = forge(tmp_path / "a.npz", header((4, 2**10, 2**10)) + bytes(4 * 2**20))
    assert (tmp_path / "a.npz").stat().st_size < 2**15
    assert load(uri).shape == (1, 2**10, 2**10)  # the broken twin: without the limit it is read
    monkeypatch.setattr(npz, "MAX_BYTES", 2**20)
    monkeypatch.setattr(npz.npy, "read_array", lambda *args, **kwargs: pytest.fail("the array was read"))
    with pytest.raises(InputError, match=r"array 'images' must take at most 0.000977 GiB, it declares 0.00391 GiB"):
        load(uri)


def test_the_limit_follows_the_memory(tmp_path, monkeypatch) -> None:
    uri = save(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    assert npz.available_memory() > 2**20
    monkeypatch.setattr(npz, "available_memory", lambda: 10)
    with pytest.raises(InputError, match="must take at most"):
        load(uri)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "flipped", "magic", "npy"])
def test_damaged_files(tmp_path, kind: str) -> None:
    path = tmp_path / "a.npz"
    rng = np.random.default_rng(0)
    save(path, images=rng.integers(0, 256, (4, 30, 30), dtype=np.uint8), labels=LABELS)
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[:-50])
    elif kind == "text":
        path.write_text("no archive")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        path.write_bytes(whole[:600] + bytes([whole[600] ^ 255]) + whole[601:])
    elif kind == "magic":
        forge(path, b"no array")
    else:
        path.write_bytes(header((4, 3, 3)) + IMAGES.tobytes())
    with pytest.raises(InputError) as caught:
        load(f"npz:{path}")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"npz:{path}: ")


def test_missing_file(tmp_path) -> None:
    with pytest.raises(InputError, match="data must be an existing file"):
        load(f"npz:{tmp_path / 'no.npz'}")
    with pytest.raises(InputError, match="data must be a file, got the folder"):
        load(f"npz:{tmp_path}")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is missing")
def test_real_archives() -> None:
    lossless = load(f"npz:{SHARED / 'cifar10_test_lossless_subset.npz'}")
    assert (len(lossless), lossless.shape, lossless.num_classes) == (300, (3, 32, 32), 10)
    assert lossless.class_names[:2] == ("airplane", "automobile")
    assert lossless.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # CIFAR-10's test set starts so
    sizes = {part: len(load(f"npz:{SHARED / 'pneumoniamnist.npz'}", split=part)) for part in ("train", "val", "test")}
    assert sizes == {"train": 3882, "val": 524, "test": 624}
    assert load(f"npz:{SHARED / 'pneumoniamnist.npz'}").shape == (1, 28, 28)
    with pytest.raises(InputError, match="needs an array 'images', the file holds: probabilities, labels"):
        load(f"npz:{SHARED / 'records' / 'lenet-5-cifar-10.npz'}")
