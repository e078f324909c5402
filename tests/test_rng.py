"""Random streams: the very bits of SplitMix64, uniform, independent, and the same in any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from poise.errors import InputError
from poise.rng import Rng, mix, mix_int
from toys import untouched_generators

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def splitmix64(state: int) -> int:
    """The output function of SplitMix64 on an already advanced state, as printed by its authors."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference_bits(seed: int, purpose: str, step: int, sample_id: int, position: int) -> int:
    """The stream of the module's docstring in plain integers: keyed by (seed, purpose, step), then by the id."""
    name = int.from_bytes(blake2b(purpose.encode(), digest_size=8).digest(), "little")
    base = splitmix64(splitmix64(seed * GAMMA + name) + (step + 1) * GAMMA)
    return splitmix64(splitmix64(sample_id * GAMMA + base) + (position + 1) * GAMMA)


def unsigned(values: torch.Tensor) -> list[int]:
    return [value & MASK for value in values.flatten().tolist()]


def draws(rng: Rng, purpose: str = "test", step: int = 0, count: int = 20_000) -> np.ndarray:
    return rng.uniform(purpose, step, torch.arange(len(rng.sample_ids)), (count,)).double().numpy()


def test_published_first_outputs_of_seed_zero() -> None:
    """The generator seeded with 0: 16294208416658607535, 7960286522194355700, 487617019471545679."""
    expected = [16294208416658607535, 7960286522194355700, 487617019471545679]
    assert [mix_int(GAMMA * i) for i in (1, 2, 3)] == expected
    assert [splitmix64(GAMMA * i) for i in (1, 2, 3)] == expected


@given(value=st.integers(-(2**63), 2**63 - 1))
def test_mix_on_tensors_equals_mix_on_integers(value: int) -> None:
    assert unsigned(mix(torch.tensor([value])))[0] == splitmix64(value) == mix_int(value)


@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    purpose=st.sampled_from(["square", "dropout", "ä"]),
    step=st.integers(0, 2**40),
    sample_id=st.integers(-(2**63), 2**63 - 1),
)
def test_bits_equal_the_reference(seed: int, purpose: str, step: int, sample_id: int) -> None:
    rng = Rng(seed, torch.tensor([sample_id, 5]))
    bits = rng.bits(purpose, step, torch.tensor([1, 0]), (2, 3))
    expected = [reference_bits(seed, purpose, step, name, position) for name in (5, sample_id) for position in range(6)]
    assert bits.shape == (2, 2, 3)
    assert bits.dtype == torch.int64
    assert unsigned(bits) == expected


def test_float_draws_are_made_of_those_bits() -> None:
    rng, ids = Rng(3, torch.tensor([8])), torch.tensor([0])
    words = [reference_bits(3, "p", 2, 8, position) for position in range(50)]
    low = [(word & 0xFFFFFF) * 2.0**-24 for word in words]
    assert rng.uniform("p", 2, ids, (50,))[0].tolist() == low
    assert rng.signs("p", 2, ids, (50,))[0].tolist() == [word >> 63 == 1 for word in words]
    assert rng.integers("p", 2, ids, 7, (50,))[0].tolist() == [(word & (2**63 - 1)) % 7 for word in words]
    expected = [
        math.sqrt(-2 * math.log(((word & 0xFFFFFF) + 1) * 2.0**-24))
        * math.cos(2 * math.pi * ((word >> 32) & 0xFFFFFF) * 2.0**-24)
        for word in words
    ]
    assert rng.normal("p", 2, ids, (50,))[0].tolist() == pytest.approx(expected, abs=2e-5)


def test_shapes_and_empty_draws() -> None:
    rng = Rng(0, torch.arange(4))
    assert rng.uniform("p", 0, torch.arange(4)).shape == (4,)
    assert rng.uniform("p", 0, torch.arange(0), (2, 3)).shape == (0, 2, 3)
    assert rng.normal("p", 0, torch.arange(4), (0,)).shape == (4, 0)
    assert Rng(0, torch.zeros(0, dtype=torch.int64)).bits("p", 0, torch.arange(0), (3,)).shape == (0, 3)


# --- distributions (fixed seeds: a failure is a change of the generator, not bad luck) ---


def assert_uniform(values: np.ndarray) -> None:
    """On [0, 1), and neighbours in the sequence know nothing of each other."""
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert_independent(values[:-1], values[1:])


def assert_independent(first: np.ndarray, second: np.ndarray) -> None:
    """Jointly uniform on the unit square (bins of at least 25 expected points)."""
    bins = min(16, int((len(first) / 25) ** 0.5))
    assert stats.chisquare(np.histogram2d(first, second, bins=bins, range=[[0, 1]] * 2)[0].ravel()).pvalue > 1e-3


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_uniform(seed: int) -> None:
    assert_uniform(draws(Rng(seed, torch.arange(5))).ravel())


@pytest.mark.parametrize("ids", [range(50_000), range(-25_000, 25_000), range(0, 50_000 << 20, 1 << 20)])
def test_uniform_over_consecutive_names(ids: range) -> None:
    """One draw for each of many samples: names in a row must not give draws in a row."""
    assert_uniform(Rng(0, torch.tensor(list(ids))).uniform("p", 0, torch.arange(len(ids))).double().numpy())


def test_uniform_over_consecutive_steps_and_seeds() -> None:
    one = torch.arange(1)
    assert_uniform(np.array([float(Rng(0, one).uniform("p", step, one)) for step in range(4000)]))
    assert_uniform(np.array([float(Rng(seed, one).uniform("p", 0, one)) for seed in range(4000)]))


def test_normal() -> None:
    values = Rng(0, torch.arange(4)).normal("p", 0, torch.arange(4), (20_000,)).double().numpy().ravel()
    assert np.isfinite(values).all()
    assert_uniform(stats.norm.cdf(values))


@pytest.mark.parametrize(
    "values",
    [
        np.arange(20_000) / 20_000,  # in order
        np.arange(1, 20_001) * 0.6180339887498949 % 1,  # evenly spread, each next one known
        np.tile(draws(Rng(0, torch.arange(1)))[0], 2)[:20_001] ** 1.05,  # not flat
        np.repeat(draws(Rng(0, torch.arange(1)))[0], 2),  # each drawn twice
        draws(Rng(0, torch.arange(1)))[0] * 1.001,  # beyond 1
    ],
)
def test_bad_generators_are_noticed(values: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        assert_uniform(values)


@pytest.mark.parametrize("high", [2, 7, 10, 1000])
def test_integers(high: int) -> None:
    values = Rng(0, torch.arange(4)).integers("p", 0, torch.arange(4), high, (20_000,)).numpy().ravel()
    assert values.min() >= 0
    assert values.max() < high
    assert stats.chisquare(np.bincount(values, minlength=high)).pvalue > 1e-3


def test_one_integer_to_choose_from() -> None:
    assert Rng(0, torch.arange(1)).integers("p", 0, torch.arange(1), 1, (9,)).tolist() == [[0] * 9]


def test_every_bit_is_a_fair_coin() -> None:
    words = Rng(0, torch.arange(1)).bits("p", 0, torch.arange(1), (40_000,))[0]
    counts = [int(((words >> bit) & 1).sum()) for bit in range(64)]
    assert all(stats.binomtest(count, 40_000).pvalue > 1e-4 for count in counts)
    signs, lowest = (words < 0).long().numpy(), (words & 1).numpy()  # both may be used of one and the same word
    assert stats.chisquare(np.bincount(2 * signs + lowest, minlength=4)).pvalue > 1e-3


# --- streams ---


@pytest.mark.parametrize(
    "other",
    [
        (1, "test", 0, 0),
        (0, "other", 0, 0),
        (0, "test", 1, 0),
        (0, "test", 0, 1),
        (-1, "test", 0, 0),
        (0, "test", 0, -1),
    ],
)
def test_streams_are_independent(other: tuple[int, str, int, int]) -> None:
    """Another seed, purpose, step or sample: jointly uniform draws, and no word in common."""
    seed, purpose, step, name = other
    first = draws(Rng(0, torch.tensor([0])))[0]
    second = draws(Rng(seed, torch.tensor([name])), purpose, step)[0]
    assert_independent(first, second)
    assert not np.intersect1d(unsigned(_words(0, "test", 0, 0)), unsigned(_words(seed, purpose, step, name))).size


def _words(seed: int, purpose: str, step: int, name: int) -> torch.Tensor:
    return Rng(seed, torch.tensor([name])).bits(purpose, step, torch.arange(1), (5000,))


@given(order=st.permutations(range(6)), count=st.integers(1, 6))
def test_order_and_company_change_nothing(order: list[int], count: int) -> None:
    names = torch.tensor([3, -4, 10**12, 0, 77, 5])
    rng, some = Rng(9, names), torch.tensor(order[:count])
    for draw in (rng.uniform, rng.normal, rng.signs):
        whole = draw("p", 4, torch.arange(6), (2, 2))
        assert torch.equal(draw("p", 4, some, (2, 2)), whole[some])
        moved = Rng(9, names[order])
        assert torch.equal(getattr(moved, draw.__name__)("p", 4, torch.arange(6), (2, 2)), whole[order])


def test_a_longer_draw_begins_with_the_shorter() -> None:
    rng, ids = Rng(0, torch.arange(2)), torch.arange(2)
    assert torch.equal(rng.bits("p", 0, ids, (10,))[:, :4], rng.bits("p", 0, ids, (4,)))


def test_equal_names_get_equal_draws() -> None:
    twins = Rng(0, torch.tensor([7, 7])).uniform("p", 0, torch.arange(2), (5,))
    assert torch.equal(twins[0], twins[1])


def test_global_generators_are_neither_read_nor_written() -> None:
    ids = torch.arange(3)
    with untouched_generators():
        first = Rng(0, ids).normal("p", 0, ids, (4,))
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert torch.equal(Rng(0, ids).normal("p", 0, ids, (4,)), first)


# --- refusals ---


@pytest.mark.parametrize("ids", [torch.arange(3.0), torch.zeros(2, 2, dtype=torch.int64), torch.arange(3).int()])
def test_names_must_be_a_row_of_int64(ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"Rng: sample_ids must be \(n,\) int64, got"):
        Rng(0, ids)


def test_integers_need_a_range() -> None:
    with pytest.raises(InputError, match=r"Rng.integers: high must be at least 1, got 0"):
        Rng(0, torch.arange(1)).integers("p", 0, torch.arange(1), 0)


# --- forks ---


def forks_are_fresh(fork: Callable[[Rng, int], Rng]) -> None:
    """Streams of branches, of forks of forks, of the trunk and of other seeds: all different, pairwise independent.

    Neighbouring seeds and branches above all: seed 1's first branch must not be seed 0's second one.
    """
    ids = torch.arange(3)
    streams = [Rng(seed, ids) for seed in range(3)]
    streams += [fork(Rng(seed, ids), branch) for seed in range(3) for branch in range(4)]
    streams += [fork(fork(Rng(0, ids), first), second) for first in range(3) for second in range(3)]
    values = [draws(stream, count=2000) for stream in streams]
    firsts = {value.tobytes() for value in values}
    assert len(firsts) == len(streams)
    for first, second in ((0, 3), (3, 4), (4, 7), (7, 8), (15, 3), (15, 16), (16, 18)):
        assert_independent(values[first].ravel(), values[second].ravel())
    for value in values:
        assert_uniform(value.ravel())


def test_forks_are_fresh() -> None:
    forks_are_fresh(Rng.fork)


def _adds_up(rng: Rng, branch: int) -> Rng:
    """Seed and branch in one sum: (0, 1) and (1, 0) are the same stream."""
    return Rng(mix_int((rng.seed + branch + 1) * GAMMA) >> 1, rng.sample_ids)


@pytest.mark.parametrize("twin", [_adds_up, lambda rng, branch: rng, lambda rng, branch: Rng(rng.seed, rng.sample_ids)])
def test_stale_forks_are_noticed(twin: Callable[[Rng, int], Rng]) -> None:
    with pytest.raises(AssertionError):
        forks_are_fresh(twin)


@given(seed=st.integers(-(2**63), 2**64 - 1), branch=st.integers(0, 2**40))
def test_a_fork_equals_the_reference_and_knows_samples_by_name(seed: int, branch: int) -> None:
    name = int.from_bytes(blake2b(b"fork", digest_size=8).digest(), "little")
    expected = splitmix64(splitmix64(seed * GAMMA + name) + (branch + 1) * GAMMA)
    forked = Rng(seed, torch.tensor([4, -9])).fork(branch)
    assert forked.seed % 2**64 == expected
    alone = Rng(seed, torch.tensor([-9])).fork(branch)
    both = forked.bits("p", 0, torch.tensor([1]), (3,))
    assert torch.equal(both, alone.bits("p", 0, torch.tensor([0]), (3,)))
