"""Forms of a network that training-time defences need: `variant=NAME` in an address."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import nn

from poise.data.uri import Uri
from poise.errors import one_of
from poise.models.variants.denoise import AFFINITIES, Affinity, DenoisingBlock, add_denoising
from poise.models.variants.ensemble import Ensemble
from poise.models.variants.pni import GRANULARITIES, Granularity, NoisyConv2d, NoisyLinear, inject_noise

Build = Callable[[int], nn.Module]
"""The i-th network of an address; their initial weights are independent."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A form of any network.

    Args:
        summary: one line for `poise list models`.
        keys: query keys of its own.
        make: the changed network, from the address and what builds the plain one.

    >>> import poise
    >>> target = poise.models.blank("builtin:digits?variant=pni")
    >>> any(name.endswith("alpha") for name, _ in target.module.named_parameters())
    True
    """

    summary: str
    keys: tuple[str, ...]
    make: Callable[[Uri, Build], nn.Module]


def _pni(uri: Uri, build: Build) -> nn.Module:
    granularity = uri.choice("granularity", GRANULARITIES, "channel")
    return inject_noise(build(0), cast(Granularity, granularity))


def _denoise(uri: Uri, build: Build) -> nn.Module:
    affinity = uri.choice("affinity", AFFINITIES, "softmax")
    return add_denoising(build(0), cast(Affinity, affinity))


def _trs(uri: Uri, build: Build) -> nn.Module:
    return Ensemble([build(i) for i in range(uri.integer("members", low=2) or 3)])


VARIANTS: dict[str, Variant] = {
    "pni": Variant("noise on every weight, its strength learned (granularity=)", ("granularity",), _pni),
    "denoise": Variant("a denoising block behind every residual stage (affinity=)", ("affinity",), _denoise),
    "trs": Variant("an ensemble: ln of the mean of the softmax of three (members=)", ("members",), _trs),
}
"""Name → form."""


def chosen(uri: Uri) -> Variant | None:
    """The variant that an address asks for; None for the plain network.

    Raises:
        InputError: no such variant; the message names those that there are.
    """
    name = uri.text("variant")
    if name is not None and name not in VARIANTS:
        raise one_of(f"{uri}: variant", name, list(VARIANTS))
    return None if name is None else VARIANTS[name]


__all__ = [
    "VARIANTS",
    "DenoisingBlock",
    "Ensemble",
    "NoisyConv2d",
    "NoisyLinear",
    "Variant",
    "add_denoising",
    "chosen",
    "inject_noise",
]
