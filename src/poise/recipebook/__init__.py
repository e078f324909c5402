"""The papers' names for attacks: each is a row of objective, search and defaults."""

from __future__ import annotations

from torch import Tensor

from poise.attacks import NOTHING, Watch
from poise.errors import one_of
from poise.recipebook import calibration, classic, peers, standard
from poise.recipebook.base import NORMS, Recipe, Setting, ball
from poise.targets.base import Target
from poise.types import AttackResult

__all__ = ["NORMS", "PEERS", "RECIPES", "Recipe", "Setting", "ball", "recipe", "recipes", "run_recipe"]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (*standard.RECIPES, *calibration.RECIPES, *classic.RECIPES)
}
"""Every recipe of ours by name."""

PEERS: dict[str, Recipe] = {recipe.name: recipe for recipe in peers.RECIPES}
"""Attacks of other libraries (extra `peers`), by name."""


def recipes() -> dict[str, Recipe]:
    """Names to recipes, without those of other libraries (`PEERS`).

    >>> recipes()["sa-mma"].keeps_label
    True
    """
    return dict(RECIPES)


def recipe(name: str) -> Recipe:
    """The recipe of that name; an unknown one raises InputError with the nearest names."""
    known = RECIPES | PEERS
    if name not in known:
        raise one_of("recipe", name, list(known))
    return known[name]


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
    setting = Setting(ball(norm, eps), budget, steps)
    return recipe(name).run(target, images, labels, setting, ids=ids, seed=seed, watch=watch)
