"""Arrays in memory as a data set: values, parts, ids, fingerprints, and everything that is refused."""

import numpy as np
import pytest
import torch

from poise.data import Dataset, check_matches, from_arrays
from poise.errors import InputError


def grey(n: int = 6) -> np.ndarray:
    return np.arange(n * 12, dtype=np.uint8).reshape(n, 3, 4)


def labels(n: int = 6) -> np.ndarray:
    return np.arange(n) % 3


def test_layouts_give_the_same_images() -> None:
    nhwc = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    nchw = np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2))
    wanted = torch.from_numpy(nchw).float() / 255
    for given in (nhwc, nchw, nhwc / np.float32(255), nchw / np.float32(255), (nchw / np.float32(255)).astype(">f4")):
        data = from_arrays(given, labels(5))
        assert data.shape == (3, 6, 7)
        assert data.images.dtype is torch.float32
        assert torch.equal(data.images, wanted)
        assert data.images.is_contiguous()
    assert from_arrays(nhwc[..., 0], labels(5)).shape == (1, 6, 7)


def test_an_ambiguous_layout_is_asked_for() -> None:
    images = np.zeros((2, 3, 5, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="may be nhwc or nchw, say which: layout=nhwc or layout=nchw"):
        from_arrays(images, labels(2))
    assert from_arrays(images, labels(2), layout="nhwc").shape == (3, 3, 5)
    assert from_arrays(images, labels(2), layout="nchw").shape == (3, 5, 3)
    with pytest.raises(InputError, match="layout=nchw"):
        from_arrays(np.zeros((2, 5, 5, 3), dtype=np.uint8), labels(2), layout="nchw")


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 100])
def test_batches_cover_the_set_in_order(batch_size: int) -> None:
    data = from_arrays(grey(), labels())
    parts = list(data.batches(batch_size))
    assert all(len(part[0]) <= batch_size for part in parts)
    assert torch.equal(torch.cat([part[0] for part in parts]), data.images)
    assert torch.equal(torch.cat([part[1] for part in parts]), data.labels)
    assert torch.equal(torch.cat([part[2] for part in parts]), torch.arange(6))
    assert data.labels.dtype is data.ids.dtype is torch.int64


def test_a_batch_is_decoded_only_when_it_is_asked_for() -> None:
    data = from_arrays(grey(), labels())
    asked: list[int] = []

    class Counting:
        shape, storage = data.source.shape, data.source.storage

        def __len__(self) -> int:
            return len(data.source)

        def take(self, rows):
            asked.append(len(rows))
            return data.source.take(rows)

        def stored(self, rows):
            return data.source.stored(rows)

    lazy = Dataset("x", data.class_names, Counting(), data.all_labels, data.rows)
    stream = lazy[1:].batches(2)
    assert asked == []
    next(stream)
    assert asked == [2]
    assert lazy.labels.tolist() == [0, 1, 2, 0, 1, 2]
    lazy.fingerprint()
    assert asked == [2]


def test_uint8_stays_uint8_and_is_shared_by_parts() -> None:
    images = grey()
    data = from_arrays(images, labels())
    assert np.shares_memory(data.source.array, images)
    assert data[2:4].source is data.source


def test_a_batch_is_a_copy() -> None:
    images = (grey() / 255).astype(np.float32)
    data = from_arrays(images, labels())
    next(data.batches(6))[0].zero_()
    data.images.zero_()
    data.labels.zero_()
    data.ids.zero_()
    assert data.images.sum() > 0
    assert data.labels.sum() > 0
    assert data.ids.sum() > 0


def test_ids_survive_taking_parts() -> None:
    data = from_arrays(grey(), labels())
    part = data[1:6][::2].select([2, 0])
    assert part.ids.tolist() == [5, 1]
    assert part.labels.tolist() == [2, 1]
    assert torch.equal(part.images, data.images[[5, 1]])
    assert len(data[6:]) == 0
    for wrong in ([6], [-1], torch.tensor([0, 9])):
        with pytest.raises(InputError, match=r"positions must be in 0\.\.5"):
            data.select(wrong)
    with pytest.raises(InputError, match="slice"):
        data[0]
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        next(data.batches(0))


def test_fingerprint_sees_every_change() -> None:
    data = from_arrays(grey(), labels())
    same = from_arrays(grey().copy(), labels().astype(np.uint8), class_names=["a", "b", "c"])
    assert data.fingerprint() == same.fingerprint()
    assert data.fingerprint().startswith("sha256:")
    assert len(data.fingerprint()) == 71
    pixel = grey()
    pixel[3, 1, 1] ^= 1
    others = [
        from_arrays(pixel, labels()),
        from_arrays(grey(), np.roll(labels(), 1)),
        from_arrays(grey().reshape(6, 4, 3), labels()),
        from_arrays((grey() / 255).astype(np.float32), labels()),
        data[1:],
        data.select([1, 0, 2, 3, 4, 5]),
    ]
    assert len({other.fingerprint() for other in [data, *others]}) == len(others) + 1


def test_class_names() -> None:
    assert from_arrays(grey(), labels()).class_names == ("0", "1", "2")
    assert from_arrays(grey(), labels(), class_names=["a", "b", "c", "d"]).num_classes == 4
    assert from_arrays(grey()[:1], np.array([[0]])).labels.tolist() == [0]
    assert from_arrays(grey()[:2], np.array([False, True])).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("images", "given", "message"),
    [
        (np.zeros((0, 4, 4), np.uint8), np.zeros(0, int), "must hold at least one image"),
        (np.zeros((2, 0, 4), np.uint8), np.zeros(2, int), "must hold at least one image"),
        (np.zeros((2, 4), np.uint8), np.zeros(2, int), r"must have shape .* got \(2, 4\)"),
        (np.zeros((2, 7, 4, 5), np.uint8), np.zeros(2, int), r"must have shape .* got \(2, 7, 4, 5\)"),
        (np.zeros((2, 4, 4), np.int64), np.zeros(2, int), r"must be uint8 or float in \[0, 1\], got int64"),
        (np.zeros((2, 4, 4), np.uint16), np.zeros(2, int), "got uint16"),
        (np.zeros((2, 4, 4), np.complex64), np.zeros(2, int), "got complex64"),
        (np.zeros((2, 4, 4), np.longdouble), np.zeros(2, int), "images must be uint8 or float"),
        (
            np.full((2, 4, 4), -0.1, np.float32),
            np.zeros(2, int),
            r"normalised images outside \[0, 1\] .*mean= and std=",
        ),
        (np.full((2, 4, 4), 200.0), np.zeros(2, int), r"got 200 to 200: .*divide by 255"),
        (np.array([0, 0, 0, np.nan]).reshape(2, 1, 2), np.zeros(2, int), r"must be finite, .*row 1"),
        (np.array([np.inf, 0, 0, 0]).reshape(2, 1, 2), np.zeros(2, int), r"must be finite, .*row 0"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(3, int), "one label per image, got 2 images and 3 labels"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2), r"labels must be \(n,\) whole numbers, got shape \(2,\) float64"),
        (np.zeros((2, 4, 4), np.uint8), np.eye(2, dtype=int), r"got shape \(2, 2\)"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, -1]), r"labels must be at least 0, got -1 \(row 1\)"),
        (np.zeros((2, 4, 4), np.uint8), np.array([0, 2**63 + 1], np.uint64), r"got 9223372036854775809 \(row 1\)"),
        (np.zeros((2, 4, 4), np.uint8), np.array(["a", "b"]), "whole numbers"),
    ],
)
def test_refused_in_one_line(images, given, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        from_arrays(images, given, name="npz:x")
    assert str(caught.value).startswith("npz:x: ")
    assert "\n" not in str(caught.value)


def test_the_edges_of_the_range_are_accepted() -> None:
    images = np.array([0.0, 1.0, 0.5, 1.0]).reshape(2, 1, 2)
    assert from_arrays(images, np.array([0, 1])).images.flatten().tolist() == [0.0, 1.0, 0.5, 1.0]
    with pytest.raises(InputError, match="normalised"):
        from_arrays(np.nextafter(images, 2, dtype=np.float64), np.array([0, 1]))


def test_labels_beyond_the_class_names() -> None:
    with pytest.raises(InputError, match=r"labels must be below the 2 class names, got 2 \(row 2\)"):
        from_arrays(grey(), labels(), class_names=["a", "b"])


def test_check_matches() -> None:
    named = from_arrays(grey(), labels(), class_names=["a", "b", "c"], name="npz:x")
    unnamed = from_arrays(grey(), labels(), name="npz:x")
    check_matches(named, 3)
    check_matches(unnamed, 3)
    check_matches(unnamed, 10)
    for data in (named, unnamed):
        with pytest.raises(InputError, match="npz:x: labels must be below the model's 2 classes, got 2"):
            check_matches(data, 2)
    with pytest.raises(InputError, match="npz:x: the data must have the model's 10 classes, got 3 class names"):
        check_matches(named, 10)
    with pytest.raises(InputError, match="npz:x: data must hold at least one image, got none"):
        check_matches(named[6:], 3)
