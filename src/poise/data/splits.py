"""Parts of a data set and long-tailed versions of it, drawn by a seed; ids are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import ROUND_FLOOR, Context, Decimal
from math import fsum, isfinite

import numpy as np
import torch

from poise.data.arrays import Rows
from poise.data.dataset import Dataset
from poise.data.uri import Uri
from poise.errors import InputError
from poise.rng import Rng

KEYS = ("part", "fractions", "longtail", "seed")
"""Query keys of every data address."""

PARTS = ("train", "val", "test")
"""Names of the parts of an address, in the order of its fractions."""

_DIGITS = Context(prec=60)
_ROUNDING = Decimal(10) ** -40


def split(data: Dataset, fractions: Sequence[float], seed: int = 0, stratified: bool = True) -> tuple[Dataset, ...]:
    """Disjoint parts that cover a set, drawn by a seed; each is in the order of the set.

    The papers keep 10 % of the training data for validation, `(0.9, 0.1)`, and cut sets without splits 80:10:10,
    `(0.8, 0.1, 0.1)`. Which part a sample falls into depends on the seed and on the ids of its class (of the set,
    without strata), and not on the order of the set.

    Args:
        data: the set.
        fractions: of each part, positive, adding up to 1.
        seed: chooses the samples.
        stratified: share out every class by itself. A part gets its share of each class up to one sample; what
            rounding leaves goes to the parts furthest behind, so that the sizes of the whole parts hold as well.

    Returns:
        One data set per fraction; ids are those of `data`.

    Raises:
        InputError: for fractions that do not add up to 1, or a part that would be empty.

    >>> import poise
    >>> train, val = split(poise.data.load("builtin:digits", split="train"), (0.9, 0.1))
    >>> len(train), len(val)
    (810, 90)
    """
    shares = _checked(data, fractions)
    labels = data.labels.numpy()
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)] if stratified else [np.arange(len(data))]
    part_of = np.empty(len(data), dtype=np.int64)
    wanted, given = np.zeros(len(shares)), np.zeros(len(shares), dtype=np.int64)
    for group in groups:
        wanted += shares * len(group)
        sizes = _sizes(shares, len(group), wanted - given)
        given += sizes
        part_of[group[_shuffled(data, group, seed, "split")]] = np.repeat(np.arange(len(shares)), sizes)
    parts = tuple(data.select(np.flatnonzero(part_of == part)) for part in range(len(shares)))
    for part, share in zip(parts, shares, strict=True):
        if len(part) == 0:
            raise InputError(f"{data.name}: every part must get a sample, got none for {share:g} of {len(data)} images")
    return parts


def long_tail(data: Dataset, rho: float, seed: int = 0, n_max: int | None = None) -> Dataset:
    """A long-tailed version of a set: class c keeps floor(n_max rho^(c / (C - 1))) samples (Cao et al. 2019).

    Classes are taken in the order of their numbers, so class 0 is the largest and class C - 1 keeps rho times as
    many. A class that has fewer samples keeps all. Within a class the samples are drawn by the seed; a smaller rho
    keeps a part of what a larger one keeps. Cut off validation data first, as the papers do; test data stay balanced.

    Args:
        data: at least two classes.
        rho: size of the smallest class over that of the largest, in (0, 1].
        seed: chooses the samples within each class.
        n_max: samples of class 0; the number of images over the number of classes unless given.

    Returns:
        The chosen samples in the order of `data`; ids are those of `data`.

    Raises:
        InputError: for rho outside (0, 1], fewer than two classes, or a class that would keep no sample.

    >>> import poise
    >>> tail = long_tail(poise.data.load("builtin:digits", split="train"), rho=0.1)
    >>> tail.labels.bincount().tolist()
    [90, 69, 53, 41, 32, 25, 19, 15, 11, 9]
    """
    if not 0 < rho <= 1:
        raise InputError(f"{data.name}: long tail: rho must be in (0, 1], got {rho:g}")
    if n_max is not None and n_max < 1:
        raise InputError(f"{data.name}: long tail: n_max must be at least 1, got {n_max}")
    largest = Decimal(len(data)) / max(data.num_classes, 1) if n_max is None else Decimal(n_max)
    sizes = tail_sizes(data.name, data.num_classes, rho, largest)
    labels = data.labels.numpy()
    kept = []
    for label, size in enumerate(sizes):
        group = np.flatnonzero(labels == label)
        if not min(size, len(group)):
            raise InputError(
                f"{data.name}: long tail: every class must keep a sample, got none of class "
                f"'{data.class_names[label]}' ({len(group)} images, {size} to keep)"
            )
        kept.append(group[_shuffled(data, group, seed, "long-tail")[:size]])
    return data.select(np.sort(np.concatenate(kept)))


def tail_sizes(name: str, num_classes: int, rho: float, n_max: Decimal) -> list[int]:
    """floor(n_max rho^(c / (C - 1))) for c = 0..C-1, in decimal arithmetic: 100 of rho 0.29 ends in 29, not in 28.

    >>> tail_sizes("cifar-10", 10, 0.01, Decimal(5000))
    [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    if num_classes < 2:
        raise InputError(f"{name}: long tail: there must be at least two classes, got {num_classes}")
    base = Decimal(repr(float(rho)))  # the decimal number that was written, not its nearest binary one
    sizes = []
    for label in range(num_classes):
        exponent = _DIGITS.divide(Decimal(label), Decimal(num_classes - 1))
        size = _DIGITS.multiply(n_max, _DIGITS.power(base, exponent))
        sizes.append(int((size + _ROUNDING).to_integral_value(ROUND_FLOOR)))
    return sizes


def take_parts(uri: Uri, data: Dataset) -> Dataset:
    """The part of a set, and then its long tail, that the keys part, fractions, longtail and seed ask for.

    Args:
        uri: `part=train|val|test&fractions=80:10:10` (`90:10`: train and val), `longtail=0.01`, `seed=0`.
        data: what the address gave without these keys.

    Returns:
        The part, with the keys in its name; `data` itself where none is given.

    Raises:
        InputError: for keys that need each other, and what `split` and `long_tail` refuse.
    """
    asked = {key: uri.query[key] for key in KEYS if key in uri.query}
    if not asked:
        return data
    if ("part" in asked) != ("fractions" in asked):
        raise uri.fail(
            f"part and fractions must be given together, such as part=val&fractions=80:10:10, got {_text(asked)}"
        )
    if "part" not in asked and "longtail" not in asked:
        raise uri.fail(f"seed must come with part and fractions, or with longtail, got {_text(asked)}")
    seed = uri.integer("seed", low=0) or 0
    if "part" in asked:
        fractions = _fractions(uri)
        part = uri.choice("part", PARTS[: len(fractions)], "train")
        data = split(data, fractions, seed)[PARTS.index(part)]
    rho = uri.floats("longtail")
    if rho is not None:
        if len(rho) > 1:
            raise uri.fail(f"longtail must be one number in (0, 1], got '{asked['longtail']}'")
        data = long_tail(data, rho[0], seed)
    return replace(data, name=f"{data.name}{'&' if '?' in data.name else '?'}{_text(asked)}")


def _text(query: dict[str, str]) -> str:
    return "&".join(f"{key}={value}" for key, value in query.items())


def _fractions(uri: Uri) -> tuple[float, ...]:
    """Two or three numbers with colons between them; percentages are divided by 100."""
    text = uri.text("fractions", "") or ""
    try:
        numbers = tuple(float(number) for number in text.split(":"))
    except ValueError:
        numbers = ()
    if len(numbers) not in (2, 3):
        raise uri.fail(f"fractions must be two or three numbers such as 90:10 or 80:10:10, got '{text}'")
    return tuple(number / 100 for number in numbers) if sum(numbers) > 2 else numbers


def _checked(data: Dataset, fractions: Sequence[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The fractions as they are, positive and adding up to 1."""
    given = ":".join(f"{share:g}" for share in fractions)
    if not fractions or not all(isfinite(share) and share > 0 for share in fractions):
        raise InputError(f"{data.name}: fractions must be positive numbers, got {given or 'none'}")
    total = fsum(fractions)
    if abs(total - 1) > 1e-9:
        raise InputError(f"{data.name}: fractions must add up to 1, got {given}, which add up to {total:g}")
    return np.array(fractions, dtype=np.float64)


def _sizes(
    shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    total: int,
    behind: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> Rows:
    """How many of `total` samples each part gets: its share rounded down, the rest to those furthest behind."""
    exact = shares * total
    sizes = np.floor(exact + 1e-6).astype(np.int64)
    left = total - int(sizes.sum())
    order = np.argsort(-(behind - sizes).round(6), kind="stable")
    sizes[order[:left]] += 1
    return sizes


def _shuffled(data: Dataset, group: Rows, seed: int, purpose: str) -> Rows:
    """An order of the positions in a group that depends on the seed and the samples' ids alone."""
    ids = data.ids[torch.from_numpy(group)]
    drawn = Rng(seed, ids).bits(purpose, 0, torch.arange(len(ids)), ())
    return np.asarray(drawn.argsort(stable=True))
