"""Choosing a source and a part of it; the digits and their fixed parts."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from poise.data import load, names
from poise.data.digits import split_rows
from poise.errors import InputError


def is_partition(parts: list[np.ndarray], total: int) -> bool:
    return sorted(np.concatenate(parts).tolist()) == list(range(total))


def test_the_parts_of_the_digits() -> None:
    parts = [split_rows(name) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [900, 400, 497]
    assert is_partition(parts, 1797)
    assert not is_partition([parts[0], parts[1], parts[1][:1], parts[2][1:]], 1797)  # the broken twin
    assert parts[2][:5].tolist() == [1374, 1403, 271, 1506, 1645]  # fixed for good: results depend on it
    for part in parts:  # a fair draw: every class is there about as often as in the whole
        shares = np.bincount(load_digits().target[part], minlength=10) / len(part)
        assert np.abs(shares - 0.1).max() < 0.04


def test_the_digits_are_scikit_learns() -> None:
    data = load("builtin:digits")
    bunch = load_digits()
    assert (len(data), data.shape, data.num_classes) == (497, (1, 8, 8), 10)
    assert torch.equal(data.images[:, 0], torch.from_numpy(bunch.images[data.ids] / 16).float())
    assert data.labels.tolist() == bunch.target[data.ids].tolist()
    assert data.images.min() == 0
    assert data.images.max() == 1


def test_splits() -> None:
    assert len(load("builtin:digits?split=val")) == len(load("builtin:digits", split="val")) == 400
    assert load("builtin:digits", split="train").fingerprint() != load("builtin:digits", split="val").fingerprint()
    with pytest.raises(InputError, match="split must be one of train, val, test, got 'dev'"):
        load("builtin:digits", split="dev")


def test_parts() -> None:
    whole = load("builtin:digits")
    part = load("builtin:digits", samples=100, offset=50)
    assert torch.equal(part.ids, whole.ids[50:150])
    assert len(load("builtin:digits", samples=10_000)) == 497
    assert len(load("builtin:digits", offset=496)) == 1
    with pytest.raises(InputError, match="samples must be at least 1, got 0"):
        load("builtin:digits", samples=0)
    for offset in (-1, 497):
        with pytest.raises(InputError, match=rf"offset must be in 0\.\.496, got {offset}"):
            load("builtin:digits", offset=offset)


def test_a_set_sorted_by_class_is_mixed_only_where_a_part_is_asked_for(tmp_path) -> None:
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1)
    np.savez(tmp_path / "sorted.npz", images=images, labels=np.repeat([0, 1], 20))
    np.savez(tmp_path / "mixed.npz", images=images, labels=np.tile([0, 1], 20))
    np.savez(tmp_path / "one.npz", images=images, labels=np.zeros(40, int))
    assert load(f"npz:{tmp_path}/sorted.npz").ids.tolist() == list(range(40))
    part = load(f"npz:{tmp_path}/sorted.npz", samples=20)
    assert 4 <= int(part.labels.sum()) <= 16
    assert (part.images.flatten() * 255).round().long().tolist() == part.ids.tolist()
    whole = load(f"npz:{tmp_path}/sorted.npz").mixed()
    assert whole[:20].ids.tolist() == part.ids.tolist()
    assert sorted(whole.ids.tolist()) == list(range(40))
    for name in ("mixed", "one"):
        assert load(f"npz:{tmp_path}/{name}.npz").mixed().ids.tolist() == list(range(40))
        assert load(f"npz:{tmp_path}/{name}.npz", samples=20).ids.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("builtin:digts", r"builtin data: .* got 'digts' \(did you mean digits"),
        ("builtin:digits?weights=x", "query key"),
        ("digits", "must be SCHEME:NAME such as builtin:digits"),
        ("npx:a.npz", r"did you mean npz\?"),
        ("hf:folder", "data: source 'hf:' is not in this version of poise"),
        ("https://example.org/a.npz", "data: source 'https:' is not in this version of poise"),
    ],
)
def test_refused_in_one_line(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(uri)
    assert "\n" not in str(caught.value)


def test_names() -> None:
    listed = names()
    assert "builtin:digits" in listed
    assert "torchvision:CIFAR10?root=DIR" in listed
    assert all(line and "\n" not in line for line in listed.values())


def test_loading_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    load("builtin:digits", samples=5)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    torch.rand(1)
    assert not torch.equal(torch.random.get_rng_state(), before[0])  # the broken twin: a draw is seen
