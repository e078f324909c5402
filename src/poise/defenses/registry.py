"""The defences by the names of the command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from poise.defenses.base import PostHoc
from poise.defenses.inference import Dent, InferenceDefense, Quantize, RandomNoise
from poise.defenses.posthoc import (
    AAA,
    CompressionScaling,
    HistogramBinning,
    Identity,
    Isotonic,
    MatrixScaling,
    MultiDomainTemperature,
    Platt,
    Splines,
    TemperatureScaling,
    VectorScaling,
)
from poise.errors import InputError, one_of


class Entry(NamedTuple):
    """How a post-hoc defence is made with its default hyper-parameters, and one line about it."""

    factory: Callable[[], PostHoc]
    summary: str


class InferenceEntry(NamedTuple):
    """The same of an inference-time defence."""

    factory: Callable[[], InferenceDefense]
    summary: str


DEFENSES: dict[str, Entry] = {
    "none": Entry(Identity, "no defence: the model's own logits"),
    "ts": Entry(TemperatureScaling, "temperature scaling: one T for all, least NLL on held-out data (Guo et al. 2017)"),
    "cs": Entry(
        CompressionScaling, "compression scaling: confidences moved into the top 3 of 15 bins (Obadinma et al.)"
    ),
    "md-ts": Entry(
        MultiDomainTemperature,
        "multi-domain temperature: T read off features; one T where it has none (Yu et al. 2022)",
    ),
    "splines": Entry(Splines, "splines: top-1 confidence corrected by a cubic spline of its gap (Gupta et al. 2021)"),
    "platt": Entry(Platt, "Platt scaling: a logistic curve of the top-1 log-odds (Platt 1999)"),
    "isotonic": Entry(Isotonic, "isotonic regression of correctness on top-1 confidence (Zadrozny and Elkan 2002)"),
    "histogram": Entry(
        HistogramBinning, "histogram binning: the accuracy of each of 15 bins (Zadrozny and Elkan 2001)"
    ),
    "vector": Entry(
        VectorScaling, "vector scaling: a weight and a bias per class; labels may change (Guo et al. 2017)"
    ),
    "matrix": Entry(MatrixScaling, "matrix scaling: a full affine map; labels may change (Guo et al. 2017)"),
    "aaa-linear": Entry(
        partial(AAA, "linear"), "AAA: the margin runs backwards in steps of 6 logits, solved exactly (Chen et al. 2022)"
    ),
    "aaa-sine": Entry(partial(AAA, "sine"), "AAA: the margin follows a sine, solved exactly (Chen et al. 2022)"),
}
"""Every post-hoc defence by its name; to add one, write its file and its line here."""

INFERENCE: dict[str, InferenceEntry] = {
    "rnd": InferenceEntry(RandomNoise, "RND: noise of standard deviation .02 on every query's image (Qin et al. 2021)"),
    "quantize": InferenceEntry(Quantize, "quantisation: images rounded to 8 bits before the model sees them"),
    "dent": InferenceEntry(Dent, "DENT: six steps of entropy minimisation on every image (Wang et al. 2021)"),
}
"""Every inference-time defence by its name. They need no fit."""


def make(name: str) -> PostHoc:
    """A new post-hoc defence by its name, unfitted, with its default hyper-parameters.

    Raises:
        InputError: the name is not in DEFENSES; the message names the nearest ones.

    Example:
        >>> make("cs")
        CompressionScaling(bins=3, total=15, input_range='unit', mode='exact')
    """
    if name in INFERENCE:
        raise InputError(f"defense: '{name}' goes around the model and needs no fit; must be one of the others")
    if name not in DEFENSES:
        raise one_of("defense", name, list(DEFENSES))
    return DEFENSES[name].factory()


def make_any(name: str) -> PostHoc | InferenceDefense:
    """As `make`, of both registries.

    Example:
        >>> make_any("rnd").stochastic
        True
    """
    if name not in summaries():
        raise one_of("defense", name, list(summaries()))
    return INFERENCE[name].factory() if name in INFERENCE else DEFENSES[name].factory()


def summaries() -> dict[str, str]:
    """Name to line, of both registries.

    >>> summaries()["ts"]
    'temperature scaling: one T for all, least NLL on held-out data (Guo et al. 2017)'
    """
    ours, around = DEFENSES.items(), INFERENCE.items()
    return {name: entry.summary for name, entry in ours} | {name: entry.summary for name, entry in around}
