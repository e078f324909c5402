"""Fingerprints: the same for the same parts, another for every change of a field, readable as plain data."""

from __future__ import annotations

import dataclasses
import json

import pytest

import poise
from poise.constraints import L2, Linf
from poise.objectives import MMA, UCA, ConfSmooth, KeepLabel
from poise.recipebook import Setting
from poise.searches import PGD, AdaptivePGD, DropoutPGD, Square
from poise.spec import describe, fingerprint
from poise.types import Access

PARTS = [Square(), PGD(), DropoutPGD(), AdaptivePGD(), Linf(0.1), L2(0.1), UCA(), KeepLabel(UCA()), ConfSmooth()]
OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.01, type(None): lambda v: 1}


@pytest.mark.parametrize("part", PARTS, ids=repr)
def test_every_field_counts(part: object) -> None:
    fields = [field.name for field in dataclasses.fields(part)]
    changed = 0
    for name in fields:
        value = getattr(part, name)
        if type(value) in OTHER:
            assert fingerprint(dataclasses.replace(part, **{name: OTHER[type(value)](value)})) != fingerprint(part)
            changed += 1
    assert changed
    assert fingerprint(dataclasses.replace(part)) == fingerprint(part)


def test_order_and_number_of_parts_count() -> None:
    assert fingerprint(Linf(0.1), UCA()) != fingerprint(UCA(), Linf(0.1)) != fingerprint(UCA())


def test_norms_of_the_same_radius_differ() -> None:
    assert fingerprint(Linf(0.1)) != fingerprint(L2(0.1))


def test_twelve_hexadecimal_digits() -> None:
    text = fingerprint(UCA())
    assert len(text) == 12
    assert int(text, 16) >= 0


def test_description_is_plain_and_nested() -> None:
    told = describe(KeepLabel(MMA(under=ConfSmooth())))
    assert told["type"] == "KeepLabel"
    assert told["objective"]["under"] == {"type": "ConfSmooth", "smoothing": 0.98, "tol": 1e-6}
    assert describe({"a": [Access.SCORES, (1, 2.5)], "b": None}) == {"a": [1, [1, 2.5]], "b": None}


@pytest.mark.parametrize("name", poise.recipes())
def test_every_recipe_can_be_written_down(name: str) -> None:
    recipe = poise.recipe(name)
    parts = [describe(recipe.objective), describe(recipe.search(Setting(Linf(0.1))))]
    assert json.loads(json.dumps(parts)) == parts
    assert "<class" not in json.dumps(parts)


def test_recipes_differ() -> None:
    prints = {
        fingerprint(recipe.objective, recipe.search(Setting(Linf(0.1))), Linf(0.1))
        for recipe in poise.recipes().values()
    }
    assert len(prints) == len(poise.recipes())
