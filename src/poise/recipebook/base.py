"""What a recipe is: objective, search and defaults under a paper's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from poise.attacks import NOTHING, Watch, attack
from poise.constraints import L2, Constraint, Linf
from poise.errors import InputError
from poise.objectives import KeepLabel, Objective
from poise.searches import Search
from poise.searches.base import shares
from poise.targets.base import DifferentiableTarget, Target
from poise.types import Access, AttackResult

NORMS: dict[str, Callable[[float], Constraint]] = {"linf": Linf, "l2": L2}
"""Balls by the name of their norm."""


def check_norm(name: str) -> str:
    """The name of a norm of `NORMS`, as it is.

    Raises:
        InputError: it is none.
    """
    if name not in NORMS:
        raise InputError(f"norm must be one of {', '.join(sorted(NORMS))}, got '{name}'")
    return name


def ball(norm: str, eps: float) -> Constraint:
    """The constraint of radius eps in the norm of that name ("linf" or "l2")."""
    return NORMS[check_norm(norm)](eps)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a recipe's search is made for.

    Args:
        constraint: the ball.
        budget: most queries per sample.
        steps: gradient steps; None is the paper's number.
        surrogate: a network of the attacker's own, for recipes that can use one.
    """

    constraint: Constraint
    budget: int = 1000
    steps: int | None = None
    surrogate: DifferentiableTarget | None = None

    def step(self, published: float, at_eps: float) -> float:
        """The paper's step as a share of the paper's eps, so that it keeps its meaning at any eps and norm."""
        return max(self.constraint.eps, 1e-12) * published / at_eps


@dataclass(frozen=True)
class Recipe:
    """A named attack.

    Args:
        name: lower case with dashes.
        summary: one line.
        paper: where it comes from.
        objective: what is minimised.
        search: makes the search for a setting.
        constraint: where points may lie, for attacks that know no radius; None is the ball of the setting.
        surrogate: its search can use the surrogate of a setting.

    >>> import poise
    >>> poise.recipe("sa-mma").paper
    'Obadinma et al., Calibration Attacks'
    """

    name: str
    summary: str
    paper: str
    objective: Objective
    search: Callable[[Setting], Search]
    constraint: Constraint | None = None
    surrogate: bool = False

    @property
    def keeps_label(self) -> bool:
        """Results keep the clean prediction."""
        return isinstance(self.objective, KeepLabel)

    @property
    def access(self) -> Access:
        """The least access the attack needs."""
        return max(self.objective.access, self.search(Setting(Linf(0.1))).access)

    @property
    def shares(self) -> bool:
        """The samples of one batch inform each other: results depend on the batch size and on the order."""
        return shares(self.search(Setting(Linf(0.1))))

    def run(
        self,
        target: Target,
        images: Tensor,
        labels: Tensor,
        setting: Setting,
        *,
        ids: Tensor | None = None,
        seed: int = 0,
        watch: Watch = NOTHING,
    ) -> AttackResult:
        """Runs it on images (n, C, H, W) with labels (n,); arguments as in `poise.attack`."""
        search, constraint = self.search(setting), self.constraint or setting.constraint
        return attack(target, self.objective, search, constraint, images, labels, ids, setting.budget, seed, watch)
