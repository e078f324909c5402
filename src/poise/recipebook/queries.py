"""Black-box attacks by queries: for a wrong label, and under every goal of the calibration attacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from poise.objectives import Margin, Misclassify
from poise.recipebook.base import Recipe, Setting
from poise.recipebook.calibration import CALIBRATION, GOALS
from poise.searches import NES, SPSA, Bandits, Boundary, HopSkipJump, QueryNet, RamBo, Search, SignHunter, SimBA

AAA = "Chen et al., Adversarial Attack on Attackers"


@dataclass(frozen=True)
class ScoreSearch:
    """A search on scores under a paper's name.

    Args:
        what: how it proposes, in a few words.
        paper: where it comes from.
        search: makes it for a setting.
    """

    what: str
    paper: str
    search: Callable[[Setting], Search]


SCORES: dict[str, ScoreSearch] = {
    "simba": ScoreSearch(
        "low frequencies one by one", "Guo et al., Simple Black-box Adversarial Attacks", lambda setting: SimBA()
    ),
    "signhunter": ScoreSearch(
        "the gradient's signs by bisection",
        "Al-Dujaili & O'Reilly, There Are No Bit Parts for Sign Bits",
        lambda setting: SignHunter(),
    ),
    "nes": ScoreSearch(
        "gradients estimated along random directions",
        "Ilyas et al., Black-box Adversarial Attacks with Limited Queries and Information",
        lambda setting: NES(step=setting.step(2 / 255, 8 / 255)),
    ),
    "spsa": ScoreSearch(
        "gradients estimated along random signs",
        "Uesato et al., Adversarial Risk and the Dangers of Evaluating Against Weak Attacks",
        lambda setting: SPSA(step=setting.step(2 / 255, 8 / 255)),
    ),
    "bandits": ScoreSearch(
        "a prior on tiles learns the gradient", "Ilyas et al., Prior Convictions", lambda setting: Bandits()
    ),
}
"""Searches on scores by their papers' names. `SEARCH-GOAL` (`simba-mma`, `nes-confsmooth`) composes one with a goal."""

RECIPES = (
    *(
        Recipe(name, f"wrong label, black box ({found.what})", found.paper, Margin(), found.search)
        for name, found in SCORES.items()
    ),
    Recipe(
        "querynet",
        "wrong label, black box (Square, helped by networks that learn from its queries)",
        "Chen et al., QueryNet",
        Margin(),
        lambda setting: QueryNet(),
    ),
    Recipe(
        "hopskipjump",
        "wrong label, sees labels alone (gradient of the boundary from random probes)",
        "Chen et al., HopSkipJumpAttack",
        Misclassify(),
        lambda setting: HopSkipJump(),
    ),
    Recipe(
        "boundary",
        "wrong label, sees labels alone (random walk along the boundary)",
        "Brendel et al., Decision-Based Adversarial Attacks",
        Misclassify(),
        lambda setting: Boundary(),
    ),
    Recipe(
        "rambo",
        "wrong label, sees labels alone (HopSkipJump, then blocks, then SignOPT)",
        "Vo et al., RamBoAttack",
        Misclassify(),
        lambda setting: RamBo(),
    ),
)


def composed(name: str) -> Recipe | None:
    """The recipe `SEARCH-GOAL` of a search on scores and a goal of the calibration attacks; None for other names.

    >>> found = composed("nes-confsmooth")
    >>> found.keeps_label, composed("nes-nothing")
    (True, None)
    """
    search, _, goal = name.partition("-")
    if search not in SCORES or goal not in GOALS:
        return None
    found, (what, objective) = SCORES[search], GOALS[goal]
    paper = f"{found.paper}; the goal: {CALIBRATION}"
    return Recipe(name, f"{what}, black box ({found.what})", paper, objective, found.search)
