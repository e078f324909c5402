"""The defences by the names of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from poise.defenses.base import PostHoc
from poise.defenses.posthoc import CompressionScaling, Identity, TemperatureScaling
from poise.errors import one_of


class Entry(NamedTuple):
    """How a defence is made with its default hyper-parameters, and one line about it."""

    factory: Callable[[], PostHoc]
    summary: str


DEFENSES: dict[str, Entry] = {
    "none": Entry(Identity, "no defence: the model's own logits"),
    "ts": Entry(TemperatureScaling, "temperature scaling: one T for all, least NLL on held-out data (Guo et al. 2017)"),
    "cs": Entry(
        CompressionScaling, "compression scaling: confidences moved into the top 3 of 15 bins (Obadinma et al.)"
    ),
}
"""Every defence by its name; to add one, write its file and its line here."""


def make(name: str) -> PostHoc:
    """A new defence by its name, unfitted, with its default hyper-parameters.

    Raises:
        InputError: the name is not in DEFENSES; the message names the nearest ones.

    Example:
        >>> make("cs")
        CompressionScaling(bins=3, total=15, input_range='unit', mode='exact')
    """
    if name not in DEFENSES:
        raise one_of("defense", name, list(DEFENSES))
    return DEFENSES[name].factory()
