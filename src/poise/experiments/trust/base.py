"""What a check of the evaluation is, and what several of them ask of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from poise.objectives import MMA, OCA, RCA, UCA, ConfSmooth, KeepLabel, MinConfidence, RandomConfidence
from poise.recipebook import PEERS
from poise.recipebook import recipe as recipe_named
from poise.recipebook.base import Setting, ball
from poise.searches import Cascade, Negative, Noise
from poise.types import Access


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Args:
        name: what is checked.
        warned: it found something.
        figure: what it saw.
        advice: what to do about it.
    """

    name: str
    warned: bool
    figure: str
    advice: str

    def plain(self) -> dict[str, str]:
        """As it stands in summary.json."""
        status = "warned" if self.warned else "passed"
        return {"name": self.name, "status": status, "figure": self.figure, "advice": self.advice}


def whitebox(recipe: str) -> bool:
    """The recipe follows gradients."""
    return recipe_named(recipe).access == Access.GRADIENTS


def goal(recipe: str) -> str | None:
    """What the attack is after, for comparing attacks of one goal; None where no other may be compared with it.

    >>> goal("confsmooth"), goal("sa-confsmooth"), goal("standard"), goal("pgd"), goal("negative"), goal("sa-rca")
    ('underconfidence', 'underconfidence', 'miscalibration', 'wrong labels', None, None)
    """
    found = recipe_named(recipe)
    if found.constraint is not None:  # not in the ball of the others
        return None
    if not isinstance(found.objective, KeepLabel):
        return "wrong labels"
    wanted = found.objective.objective
    if isinstance(wanted, UCA | ConfSmooth | MinConfidence):
        return "underconfidence"
    if isinstance(wanted, OCA):
        return "overconfidence"
    return "miscalibration" if isinstance(wanted, MMA) else None


def wants_miscalibration(recipe: str) -> bool:
    """More ECE is what the attack wants; a random goal that is met exactly can have less than one that is missed."""
    objective = recipe_named(recipe).objective
    return isinstance(objective, KeepLabel) and not isinstance(objective.objective, RCA | RandomConfidence)


def spends_the_budget(recipe: str) -> bool:
    """The attack goes on until its budget is gone: random search, or a bundle that ends in it.

    >>> [spends_the_budget(name) for name in ("sa-mma", "standard", "pgd", "negative")]
    [True, True, False, False]
    """
    if recipe in PEERS:
        return False
    search = recipe_named(recipe).search(Setting(ball("linf", 0.1)))
    last = search.members[-1].search if isinstance(search, Cascade) else search
    return last.access < Access.GRADIENTS and not isinstance(last, Negative | Noise)
