"""What an attacker who knows a defence does about it: one line per defence, and the model as he attacks it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum

from torch import nn

from poise.defenses import PostHoc
from poise.defenses.inference.base import InputDefense
from poise.experiments.served import Defence, as_logits, with_module
from poise.recipebook import PEERS, Recipe
from poise.searches import EOT, Search
from poise.searches.base import Problem, Steps
from poise.targets import BPDA, ModuleTarget
from poise.types import Access

EOT_SAMPLES = 10
"""Answers that are averaged for one gradient of a defence that draws random numbers."""

ATTACKS = THROUGH, BARE, SURROGATE = "through", "bare", "surrogate"
"""The attacks that an adaptive attacker chooses from for every sample, in the order in which ties are decided."""


class Gradient(Enum):
    """Where a gradient recipe's gradient comes from when its user knows the defence."""

    STRAIGHT = "straight"  # autograd through model and defence
    BPDA = "bpda"  # values of the defended model, gradient of the bare model
    EOT = "eot"  # the mean of several answers


@dataclass(frozen=True, slots=True)
class Knowledge:
    """How a defence is attacked by someone who knows it.

    Args:
        gradient: where gradient recipes take their gradient from.
        why: one line.
    """

    gradient: Gradient
    why: str


def _straight(why: str) -> Knowledge:
    return Knowledge(Gradient.STRAIGHT, why)


KNOWLEDGE: dict[str, Knowledge] = {
    "none": _straight("nothing to know"),
    "ts": _straight("T is part of the graph, so the gradient has the size that the attack expects"),
    "cs": _straight("differentiable; the bare member is the search on the score before the compression"),
    "md-ts": _straight("T of each image is part of the graph, and so are the features that it is read off"),
    "splines": _straight("piecewise linear in the confidence, differentiable almost everywhere"),
    "platt": _straight("a smooth curve of the top log-odds"),
    "isotonic": Knowledge(Gradient.BPDA, "blocks of equal confidence have no slope: the bare model's gradient instead"),
    "histogram": Knowledge(Gradient.BPDA, "steps have no slope: the bare model's gradient instead"),
    "vector": _straight("an affine map of the logits"),
    "matrix": _straight("an affine map of the logits"),
    "aaa-linear": _straight("the exact solution is differentiable; bi-square and op-square are its label attacks"),
    "aaa-sine": _straight("the exact solution is differentiable; bi-square and op-square are its label attacks"),
    "rnd": Knowledge(Gradient.EOT, "draws noise for every query: the mean gradient of several answers"),
    "quantize": Knowledge(Gradient.BPDA, "grey levels have no slope: straight through them instead"),
    "dent": Knowledge(Gradient.BPDA, "the gradient with the adapted model held fixed; beside it the bare model's"),
}
"""The defences of the registries by name. One that is missing here is attacked by what its class promises."""


def knowledge(name: str, defence: Defence) -> Knowledge:
    """How the defence is attacked: by its line in `KNOWLEDGE`, else by its promises.

    >>> from poise.defenses import Identity
    >>> knowledge("histogram", Identity()).gradient.value, knowledge("mine", Identity()).gradient.value
    ('bpda', 'straight')
    """
    if name in KNOWLEDGE:
        return KNOWLEDGE[name]
    if defence.stochastic:
        return Knowledge(Gradient.EOT, "draws random numbers: the mean gradient of several answers")
    if not defence.differentiable:
        return Knowledge(Gradient.BPDA, "no usable gradient: the bare model's instead")
    return _straight("differentiable")


def surrogate(
    known: Knowledge,
    recipe: Recipe,
    bare: ModuleTarget,
    defended: ModuleTarget,
    defence: Defence,
) -> tuple[Recipe, ModuleTarget] | None:
    """The further attack, beside the one through the defence, that this knowledge asks for; None where there is none.

    Args:
        known: of the defence.
        recipe: one that needs no gradient has no further attack, nor has one of another library under EOT.
        bare, defended: the model without and with the defence.
        defence: fitted, on the model's device.

    Returns:
        The recipe and the target to run it on. What it finds is judged on `defended`, whatever this target says.
    """
    if recipe.access < Access.GRADIENTS or known.gradient is Gradient.STRAIGHT:
        return None
    if known.gradient is Gradient.BPDA:
        return recipe, with_module(defended, _with_bare_gradient(as_logits(bare), defence))
    if recipe.name in PEERS:
        return None
    return dataclasses.replace(recipe, search=lambda setting: Averaged(recipe.search(setting))), defended


def _with_bare_gradient(bare: nn.Module, defence: Defence) -> nn.Module:
    """The defended model with the bare model's gradient: the Jacobian of the part that has none is left out."""
    if isinstance(defence, PostHoc):
        return nn.Sequential(bare, BPDA(defence, nn.Identity()))
    if isinstance(defence, InputDefense):
        return nn.Sequential(BPDA(defence, nn.Identity()), bare)
    return BPDA(defence.around(bare), bare)


@dataclass(frozen=True)
class Averaged:
    """A search whose every gradient is the mean of several answers.

    Args:
        search: the search.
        source: how many answers.
    """

    search: Search
    source: EOT = dataclasses.field(default_factory=lambda: EOT(EOT_SAMPLES))

    @property
    def access(self) -> Access:
        return self.search.access

    def run(self, problem: Problem) -> Steps:
        yield from self.source.through(self.search.run(problem), problem)
