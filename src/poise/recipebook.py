"""The papers' names for attacks: each is a row of objective, search and defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from poise.attacks import NOTHING, Watch, attack
from poise.constraints import L2, Constraint, Linf
from poise.errors import InputError, one_of
from poise.objectives import MMA, OCA, RCA, UCA, ConfSmooth, CrossEntropy, KeepLabel, Margin, Objective
from poise.searches import PGD, AdaptivePGD, DropoutPGD, Search, Square
from poise.targets.base import Target
from poise.types import Access, AttackResult

CALIBRATION = "Obadinma et al., Calibration Attacks"
UAT = "Martinez et al., Underconfidence Adversarial Training"

NORMS: dict[str, Callable[[float], Constraint]] = {"linf": Linf, "l2": L2}
"""Balls by the name of their norm."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a recipe's search is made for.

    Args:
        constraint: the ball.
        budget: most queries per sample.
        steps: gradient steps; None is the paper's number.
    """

    constraint: Constraint
    budget: int = 1000
    steps: int | None = None

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
    """

    name: str
    summary: str
    paper: str
    objective: Objective
    search: Callable[[Setting], Search]

    @property
    def keeps_label(self) -> bool:
        """Results keep the clean prediction."""
        return isinstance(self.objective, KeepLabel)

    @property
    def access(self) -> Access:
        """The least access the attack needs."""
        return max(self.objective.access, self.search(Setting(Linf(0.1))).access)


PAPER_HORIZON = 1000
"""Iterations of the calibration-attack paper; a smaller budget is the beginning of such a run, not a shrunken one."""


def _clean_square(setting: Setting) -> Search:
    return Square(start="clean", horizon=max(setting.budget - 1, PAPER_HORIZON))


def _square(setting: Setting) -> Search:
    return Square(start="stripes")


def _dropout(setting: Setting) -> Search:
    return DropoutPGD(steps=setting.steps or 10, step=setting.step(5 / 255, 0.05), mask_target="step")


def _adaptive(setting: Setting) -> Search:
    return AdaptivePGD(steps=setting.steps or 20, step=setting.step(5 / 255, 0.03))


def _pgd(setting: Setting) -> Search:
    return PGD(steps=setting.steps or 40, step=setting.step(2 / 255, 8 / 255), random_start=True, undo=False)


def _fgsm(setting: Setting) -> Search:
    return PGD(steps=1, step=None, undo=False)


_GOALS: dict[str, tuple[str, Objective]] = {
    "uca": ("underconfidence", UCA()),
    "oca": ("overconfidence", OCA()),
    "mma": ("maximum miscalibration", MMA()),
    "rca": ("random confidence, stops at the goal", RCA()),
    "rca-direction": ("random direction, as the published tables", RCA(mode="direction")),
    "confsmooth": ("underconfidence towards the smoothed label", ConfSmooth()),
    "mma-confsmooth": (
        "maximum miscalibration, ConfSmooth where the label is right",
        MMA(under=ConfSmooth()),
    ),
}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(
            Recipe(
                f"sa-{name}",
                f"{goal}, black box (Square without a starting pattern)",
                CALIBRATION,
                KeepLabel(o),
                _clean_square,
            )
            for name, (goal, o) in _GOALS.items()
        ),
        *(
            Recipe(
                f"pgd-{name}", f"{goal}, white box (PGD with dropout of the steps)", CALIBRATION, KeepLabel(o), _dropout
            )
            for name, (goal, o) in _GOALS.items()
            if not name.endswith("confsmooth")
        ),
        Recipe(
            "adaptive",
            "underconfidence, white box (adaptive step, step-back)",
            UAT,
            KeepLabel(UCA()),
            _adaptive,
        ),
        Recipe(
            "confsmooth",
            "underconfidence towards the smoothed label, white box",
            UAT,
            KeepLabel(ConfSmooth()),
            _adaptive,
        ),
        Recipe(
            "square",
            "wrong label, black box",
            "Andriushchenko et al., Square Attack",
            Margin(),
            _square,
        ),
        Recipe("pgd", "wrong label, white box, random start", "Madry et al., 2018", CrossEntropy(), _pgd),
        Recipe("fgsm", "wrong label, white box, one step", "Goodfellow et al., 2015", CrossEntropy(), _fgsm),
    )
}
"""Every recipe by name."""


def recipes() -> dict[str, Recipe]:
    """Names to recipes.

    >>> recipes()["sa-mma"].keeps_label
    True
    """
    return dict(RECIPES)


def recipe(name: str) -> Recipe:
    """The recipe of that name; an unknown one raises InputError with the nearest names."""
    if name not in RECIPES:
        raise one_of("recipe", name, list(RECIPES))
    return RECIPES[name]


def ball(norm: str, eps: float) -> Constraint:
    """The constraint of radius eps in the norm of that name ("linf" or "l2")."""
    if norm not in NORMS:
        raise InputError(f"norm must be one of {', '.join(sorted(NORMS))}, got '{norm}'")
    return NORMS[norm](eps)


def run_recipe(
    name: str,
    target: Target,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int | None = None,
    budget: int = 1000,
    seed: int = 0,
    ids: Tensor | None = None,
    watch: Watch = NOTHING,
) -> AttackResult:
    """Runs the recipe `name` on images (n, C, H, W) with labels (n,).

    Args:
        eps: radius of the ball in pixel units.
        norm: "linf" or "l2".
        steps: gradient steps instead of the paper's number; black-box recipes use the whole budget.
        budget, seed, ids, watch: as in `poise.attack`.

    >>> import torch, poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> result = run_recipe("adaptive", target, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), eps=0.1)
    >>> bool((result.table["loss_after"] <= result.table["loss_before"]).all())
    True
    """
    chosen, constraint = recipe(name), ball(norm, eps)
    search = chosen.search(Setting(constraint, budget, steps))
    return attack(target, chosen.objective, search, constraint, images, labels, ids, budget, seed, watch)
