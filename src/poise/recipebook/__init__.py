"""The papers' names for attacks: each is a row of objective, search and defaults."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from poise.attacks import NOTHING, Watch
from poise.constraints import Box
from poise.constraints.eight_bit import EightBit
from poise.errors import InputError, one_of
from poise.recipebook import calibration, classic, peers, queries, standard
from poise.recipebook.base import NORMS, Recipe, Setting, ball, check_norm
from poise.targets.base import DifferentiableTarget, Target
from poise.types import AttackResult

__all__ = [
    "NORMS",
    "PEERS",
    "RECIPES",
    "Recipe",
    "Setting",
    "ball",
    "check_eight_bit",
    "check_norm",
    "check_takes_surrogate",
    "recipe",
    "recipes",
    "run_recipe",
]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (*standard.RECIPES, *calibration.RECIPES, *classic.RECIPES, *queries.RECIPES)
}
"""Every recipe of ours by name."""

PEERS: dict[str, peers.PeerRecipe] = {recipe.name: recipe for recipe in peers.RECIPES}
"""Attacks of other libraries (extras `peers`, `torchattacks`), by name."""


def recipes() -> dict[str, Recipe]:
    """Names to recipes, without those of other libraries (`PEERS`).

    >>> recipes()["sa-mma"].keeps_label
    True
    """
    return dict(RECIPES)


def recipe(name: str) -> Recipe:
    """The recipe of that name, or the one that SEARCH-GOAL composes; another raises InputError with the nearest names.

    >>> recipe("nes-uca").keeps_label
    True
    """
    known = RECIPES | PEERS
    found = known.get(name) or queries.composed(name)
    if found is None:
        raise one_of("recipe", name, list(known))
    return found


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
    eight_bit: bool = False,
    surrogate: DifferentiableTarget | None = None,
) -> AttackResult:
    """Runs the recipe `name` on images (n, C, H, W) with labels (n,).

    Args:
        eps: radius of the ball in pixel units.
        norm: "linf" or "l2".
        steps: gradient steps instead of the paper's number; black-box recipes use the whole budget.
        budget, seed, ids, watch: as in `poise.attack`.
        eight_bit: attacked images hold 8-bit values (`poise.constraints.EightBit`).
        surrogate: a network of the attacker's own, which black-box recipes may ask and differentiate at no cost.

    Raises:
        InputError: as `poise.attack`, 8-bit values are asked of another library's attack, or the recipe has no use for
            a surrogate.

    >>> import torch, poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> result = run_recipe("adaptive", target, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), eps=0.1)
    >>> bool((result.table["loss_after"] <= result.table["loss_before"]).all())
    True
    """
    found, constraint = recipe(name), ball(norm, eps)
    if surrogate is not None:
        check_takes_surrogate((name,))
    if eight_bit:
        check_eight_bit(name)
        box = Box(*target.bounds)
        constraint = EightBit(constraint, box=box)
        if found.constraint is not None:
            found = replace(found, constraint=EightBit(found.constraint, box=box))
    setting = Setting(constraint, budget, steps, surrogate)
    return found.run(target, images, labels, setting, ids=ids, seed=seed, watch=watch)


def check_eight_bit(name: str) -> None:
    """Refuses 8-bit values for an attack of another library, which knows balls alone.

    Raises:
        InputError: the recipe is one of `PEERS`.
    """
    if name in PEERS:
        raise InputError(f"eight-bit: an attack of another library cannot be kept to 8-bit values, got {name}")


def check_takes_surrogate(names: tuple[str, ...]) -> None:
    """Refuses a surrogate where no recipe of these names can use one.

    Raises:
        InputError: names those that can.
    """
    if not any(recipe(name).surrogate for name in names):
        able = ", ".join(name for name, found in RECIPES.items() if found.surrogate)
        raise InputError(f"surrogate: needs a recipe that can use one ({able}), got {', '.join(names)}")
