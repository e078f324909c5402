"""Parts of a set and long tails: sizes of the papers, disjoint, covering, a function of seed and ids."""

from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.data import Dataset, from_arrays, load, long_tail, split
from poise.data.splits import tail_sizes
from poise.errors import InputError


def of_classes(*sizes: int, shuffled: bool = True) -> Dataset:
    """Tiny images, so many of each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    if shuffled:
        labels = np.random.default_rng(0).permutation(labels)
    return from_arrays(np.zeros((len(labels), 1, 1), np.uint8), labels, class_names=[*map(str, range(len(sizes)))])


def counts(data: Dataset) -> list[int]:
    return data.labels.bincount(minlength=data.num_classes).tolist()


def is_partition(parts: tuple[Dataset, ...], data: Dataset) -> bool:
    return sorted(torch.cat([part.ids for part in parts]).tolist()) == sorted(data.ids.tolist())


def test_ten_percent_for_validation() -> None:
    data = of_classes(*[500] * 100)  # CIFAR-100
    train, val = split(data, (0.9, 0.1))
    assert counts(train) == [450] * 100
    assert counts(val) == [50] * 100
    assert is_partition((train, val), data)
    assert not is_partition((train, train), data)  # the broken twin
    assert [len(part) for part in split(data, (0.9, 0.1), stratified=False)] == [45000, 5000]
    assert set(counts(split(data, (0.9, 0.1), stratified=False)[1])) != {50}


def test_eighty_ten_ten() -> None:
    data = of_classes(31, 40, 55, 80, 435, 800, 33)  # as uneven as Caltech-101
    parts = split(data, (0.8, 0.1, 0.1))
    assert [len(part) for part in parts] == [1179, 148, 147]
    assert is_partition(parts, data)
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
        for got, n in zip(counts(part), counts(data), strict=True):
            assert abs(got - share * n) <= 1


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(lambda sizes: sum(sizes) >= 40),
    st.sampled_from([(0.5, 0.5), (0.9, 0.1), (0.8, 0.1, 0.1), (0.7, 0.15, 0.15), (0.25, 0.25, 0.25, 0.25), (1.0,)]),
    st.integers(-3, 3),
)
def test_parts_cover_and_hold_their_shares(sizes: list[int], fractions: tuple[float, ...], seed: int) -> None:
    data = of_classes(*sizes)
    parts = split(data, fractions, seed)
    assert is_partition(parts, data)
    for part, share in zip(parts, fractions, strict=True):
        assert part.ids.tolist() == sorted(part.ids.tolist())
        assert abs(len(part) - share * len(data)) < 2
        assert all(abs(got - share * n) <= 1 for got, n in zip(counts(part), counts(data), strict=True))


def test_the_seed_chooses() -> None:
    data = of_classes(50, 50)
    first, again, other = (split(data, (0.5, 0.5), seed)[0].ids.tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first[:6] == [3, 4, 7, 8, 9, 10]  # fixed for good: results depend on it
    train, val = split(data, (0.5, 0.5))
    assert abs(train.ids.float().mean() - val.ids.float().mean()) < 20  # the first half is not the training part


def test_the_order_of_the_set_does_not_matter() -> None:
    data = of_classes(50, 30, 20)
    turned = data.select(torch.arange(100).flip(0))
    for stratified in (True, False):
        parts, others = (split(it, (0.6, 0.2, 0.2), 5, stratified) for it in (data, turned))
        assert [sorted(part.ids.tolist()) for part in others] == [part.ids.tolist() for part in parts]


def test_a_part_of_a_part_keeps_ids_and_images() -> None:
    data = load("builtin:digits", split="train")
    inner = split(split(data, (0.5, 0.5))[1], (0.5, 0.5))[0]
    whole = load("builtin:digits", split="train")
    at = torch.searchsorted(whole.ids.sort().values, inner.ids)
    rows = whole.ids.argsort()[at]
    assert torch.equal(whole.select(rows).images, inner.images)
    assert torch.equal(whole.select(rows).labels, inner.labels)


@pytest.mark.parametrize(
    ("n_max", "rho", "first", "last", "total"),
    [
        (500, 0.01, 500, 5, 10847),
        (500, 0.02, 500, 10, 12608),
        (500, 0.1, 500, 50, 19573),
        (450, 0.01, 450, 4, 9754),
        (450, 0.02, 450, 9, 11349),
        (450, 0.1, 450, 45, 17614),
    ],
)
def test_the_long_tails_of_cifar100(n_max: int, rho: float, first: int, last: int, total: int) -> None:
    data = of_classes(*[n_max] * 100)
    for tail in (long_tail(data, rho), long_tail(of_classes(*[500] * 100), rho, n_max=n_max)):
        found = counts(tail)
        assert (found[0], found[-1], len(tail)) == (first, last, total)
        assert found == sorted(found, reverse=True)
    if (n_max, rho) == (500, 0.01):
        assert (counts(long_tail(data, rho))[1], counts(long_tail(data, rho))[50]) == (477, 48)


def test_the_long_tail_of_cifar10() -> None:
    found = counts(long_tail(of_classes(*[5000] * 10), 0.01))
    assert found == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(found) == 12406


def test_validation_first_and_then_the_tail() -> None:
    tail = long_tail(split(of_classes(*[500] * 100), (0.9, 0.1))[0], 0.01)
    assert len(tail) == 9754


def test_the_floor_is_that_of_the_exact_number() -> None:
    """rho n_max is a whole number more often than binary fractions say."""
    wrong = []
    for n_max in (100, 450, 500, 5000):
        for percent in range(1, 100):
            rho, exact = percent / 100, n_max * percent // 100
            assert tail_sizes("x", 4, rho, Decimal(n_max))[-1] == exact
            if int(n_max * rho ** (3 / 3)) != exact:
                wrong.append((n_max, percent))
            assert tail_sizes("x", 3, rho**2, Decimal(n_max))[1] in (exact, exact - 1)
    assert (100, 29) in wrong  # the broken twin: 100 * 0.29 = 28.999999999999996
    assert tail_sizes("x", 3, 0.25, Decimal(1000)) == [1000, 500, 250]
    assert tail_sizes("x", 5, 0.0001, Decimal(10000)) == [10000, 1000, 100, 10, 1]
    assert tail_sizes("x", 7, 1.0, Decimal(33)) == [33] * 7


def test_a_small_class_keeps_all() -> None:
    assert counts(long_tail(of_classes(30, 3, 40, 47), 0.5)) == [30, 3, 18, 15]


def test_tails_are_nested_and_keep_ids() -> None:
    data = of_classes(*[40] * 5)[10:]
    small, large = long_tail(data, 0.1, n_max=30), long_tail(data, 0.5, n_max=30)
    assert set(small.ids.tolist()) < set(large.ids.tolist()) < set(data.ids.tolist())
    assert small.ids.tolist() == sorted(small.ids.tolist())
    assert small.ids.tolist() != long_tail(data, 0.1, seed=1, n_max=30).ids.tolist()
    turned = long_tail(data.select(torch.arange(len(data)).flip(0)), 0.1, n_max=30)
    assert sorted(turned.ids.tolist()) == small.ids.tolist()
    assert long_tail(data, 1.0, n_max=40).ids.tolist() == data.ids.tolist()


def test_addresses() -> None:
    base = "builtin:digits?split=train"
    whole = load(base)
    parts = [load(f"{base}&part={part}&fractions=80:10:10") for part in ("train", "val", "test")]
    wanted = split(whole, (0.8, 0.1, 0.1))
    for part, same in zip(parts, wanted, strict=True):
        assert part.ids.tolist() == same.ids.tolist()
    assert is_partition(tuple(parts), whole)
    assert parts[1].name == "builtin:digits?part=val&fractions=80:10:10"
    assert load(f"{base}&part=val&fractions=0.9:0.1").ids.tolist() == split(whole, (0.9, 0.1))[1].ids.tolist()
    other = load("builtin:digits?part=val&fractions=90:10&seed=3", split="train")
    assert other.ids.tolist() == split(whole, (0.9, 0.1), 3)[1].ids.tolist()
    tail = load(f"{base}&part=train&fractions=90:10&longtail=0.1&seed=2")
    assert tail.ids.tolist() == long_tail(split(whole, (0.9, 0.1), 2)[0], 0.1, 2).ids.tolist()
    assert len(load(f"{base}&longtail=0.1", samples=20)) == 20


def test_addresses_of_an_archive(tmp_path) -> None:
    images, labels = np.zeros((40, 2, 2), np.uint8), np.repeat([0, 1], 20)
    np.savez(
        tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images[:3], test_labels=[0, 1, 1]
    )
    val = load(f"npz:{tmp_path}/a.npz?split=train&part=val&fractions=90:10")
    assert counts(val) == [2, 2]
    assert len(load(f"npz:{tmp_path}/a.npz")) == 3


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("part=val", r"part and fractions must be given together, such as .*, got part=val$"),
        ("fractions=90:10", r"part and fractions must be given together, .* got fractions=90:10$"),
        ("part=test&fractions=90:10", "part must be one of train, val, got 'test'"),
        ("part=dev&fractions=80:10:10", "part must be one of train, val, test, got 'dev'"),
        ("part=val&fractions=80:10:5", r"fractions must add up to 1, got 0.8:0.1:0.05, which add up to 0.95"),
        ("part=val&fractions=0.9:0.2", r"fractions must add up to 1, got 0.9:0.2, which add up to 1.1"),
        ("part=val&fractions=110:-10", r"fractions must be positive numbers, got 1.1:-0.1"),
        ("part=val&fractions=nan:1", r"fractions must be positive numbers, got nan:1"),
        ("part=val&fractions=100", r"must be two or three numbers such as 90:10 or 80:10:10, got '100'"),
        ("part=val&fractions=a:b", r"must be two or three numbers such as 90:10 or 80:10:10, got 'a:b'"),
        ("seed=3", r"seed must come with part and fractions, or with longtail, got seed=3"),
        ("seed=x&longtail=0.1", r"seed must be a whole number, at least 0, got 'x'"),
        ("longtail=0", r"long tail: rho must be in \(0, 1\], got 0"),
        ("longtail=1.5", r"long tail: rho must be in \(0, 1\], got 1.5"),
        ("longtail=-0.1", r"long tail: rho must be in \(0, 1\], got -0.1"),
        ("longtail=few", r"longtail must be numbers separated by commas, got 'few'"),
        ("longtail=0.1,0.2", r"longtail must be one number in \(0, 1\], got '0.1,0.2'"),
        ("longtail=0.001", r"every class must keep a sample, got none of class '6' \(81 images, 0 to keep\)"),
        ("fractoins=90:10", r"query key: .* got 'fractoins' \(did you mean fractions"),
    ],
)
def test_refused_in_one_line(query: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(f"builtin:digits?split=train&{query}")
    assert str(caught.value).startswith("builtin:digits: ")
    assert "\n" not in str(caught.value)


def test_functions_refuse_in_one_line() -> None:
    data = of_classes(3, 3)
    for call, message in [
        (lambda: split(data, ()), "fractions must be positive numbers, got none"),
        (lambda: split(data, (0.5, 0.4)), "arrays: fractions must add up to 1, got 0.5:0.4, which add up to 0.9"),
        (lambda: split(data, (0.99, 0.01)), "every part must get a sample, got none for 0.01 of 6 images"),
        (lambda: split(data, (float("inf"), 0.5)), "must be positive numbers, got inf:0.5"),
        (lambda: long_tail(data, float("nan")), r"rho must be in \(0, 1\], got nan"),
        (lambda: long_tail(data, 0.5, n_max=0), "n_max must be at least 1, got 0"),
        (lambda: long_tail(of_classes(4), 0.5), "there must be at least two classes, got 1"),
        (lambda: long_tail(of_classes(4, 0, 4), 0.9), r"got none of class '1' \(0 images, 2 to keep\)"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_global_generators_are_left_alone() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    long_tail(split(of_classes(20, 20), (0.5, 0.5))[0], 0.5)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
