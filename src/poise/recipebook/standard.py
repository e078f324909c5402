"""The standard confidence attack: what AutoAttack is to accuracy, this is to confidence.

Nothing but norm, radius and goal is to be chosen. How the members were chosen, and on what, is told in the reference.
"""

from __future__ import annotations

from poise.objectives import MMA, OCA, KeepLabel, MinConfidence, Objective, RandomConfidence
from poise.objectives.lowest import GAP, GOAL
from poise.recipebook.base import Recipe, Setting
from poise.searches import (
    ACE,
    APGD,
    AdaptivePGD,
    Aimed,
    Cascade,
    ConfidencePGD,
    Gratings,
    LearnedSquares,
    NewtonFool,
    Search,
    Square,
    Stage,
)

STEPS = 100
"""Gradient steps of the walk and the landing together."""

RESTARTS = 2
"""Walks from random points, half as long as the first, where the number of steps is not given."""

AGAIN = 400
"""Queries of those walks and of the papers' searches, at most; left out where the budget is less than twice that."""

ENOUGH_TO_LAND = 50
"""Gradient steps below which all of them are needed to get there."""

HORIZON = 1000
"""Length of the schedule of a random search; with fewer queries it is broken off."""

EARLY = 100
"""Queries of `learned-squares` before plain squares: it gains most at first, and costs more than a small network."""

UNFINISHED = 0.02
"""Merit above which the later members join in: the gradients may have misled, or another basin may lie lower."""

PAPER = "this library"


def standard(setting: Setting) -> Search:
    """White box: walk with a decaying step, land from the best point with short ones; black box on what is left.

    Where the number of steps is not given, samples that are still unfinished walk again from random points, and the
    papers' searches have their turn.
    """
    steps = setting.steps or STEPS
    last = steps * 3 // 10 if steps >= ENOUGH_TO_LAND else 0
    members: list[Stage | Search] = [ConfidencePGD(steps=steps - last)]
    if last:
        members.append(ConfidencePGD(steps=last, start="best", scale=0.05))
    learned = None
    if setting.steps is None and setting.budget - 1 - steps >= 2 * AGAIN:  # the random search keeps half of the rest
        members.append(Stage(ConfidencePGD(steps=STEPS // 2, start="random"), above=UNFINISHED, repeats=RESTARTS))
        members += [Stage(one, above=UNFINISHED) for one in _known(setting)]
        steps += AGAIN
        learned = LearnedSquares(square=Square(p=0.1, start="best", horizon=HORIZON, strict=False))
    black = _random_search(learned, UNFINISHED, setting.budget - 1 - steps)
    return Cascade((*members, *black))


def _known(setting: Setting) -> tuple[Search, ...]:
    """The papers' white-box searches along the papers' losses: on no sample does one of them end lower alone."""
    adaptive = AdaptivePGD(steps=20, step=setting.step(5 / 255, 0.03))
    return Aimed(APGD(), GAP), Aimed(NewtonFool(), GOAL), Aimed(adaptive, GAP), Aimed(ACE(), GOAL)


def few_queries(setting: Setting) -> Search:
    """Gratings and the way back from where they led, then squares with a learned response of all logits."""
    *first, learned = _few_queries(setting)
    return Cascade((*first, learned)) if first else learned


def _few_queries(setting: Setting) -> tuple[Search, ...]:
    """The members of that; a surrogate knows better than gratings where to begin."""
    if setting.surrogate is not None:
        return (LearnedSquares(surrogate=setting.surrogate),)
    square = Square(p=0.2, start="best", horizon=2 * HORIZON, strict=False)
    return Gratings(), LearnedSquares(square=square, squares=1)


def light(setting: Setting) -> Search:
    """Scores alone: the start of `few_queries`, then random search on the same losses, free to cross the boundary."""
    *first, learned = _few_queries(setting)
    return Cascade((*first, *_random_search(learned, 0.0, setting.budget - 1)))


def _random_search(learned: Search | None, above: float, queries: int) -> tuple[Stage, ...]:
    """First all classes at once, `learned` before plain squares; then, from the best point, the highest class."""
    spread, stages = max(queries * 6 // 10, 1), []
    if learned is not None:
        stages = [Stage(learned, above=above, queries=min(EARLY, spread))]
        spread -= EARLY
    if spread > 0:
        squares = Square(p=0.2, start="best", horizon=HORIZON, strict=False)
        stages.append(Stage(squares, above=above, queries=spread))
    peak = Square(p=0.1, start="best", horizon=HORIZON, strict=False, aim=4.0)
    return *stages, Stage(peak, above=above)


_OVER = OCA(tol=1e-3, follow="cross-entropy")

GOALS: dict[str, tuple[str, Objective]] = {
    "": ("maximum miscalibration", MMA(under=MinConfidence(), over=_OVER)),
    "-under": ("underconfidence", MinConfidence()),
    "-over": ("overconfidence", _OVER),
    "-random": ("a random confidence for every image", RandomConfidence()),
}

RECIPES = (
    Recipe(
        "learned-squares",
        "maximum miscalibration, black box with few queries (gratings, squares, a learned response of all logits)",
        PAPER,
        KeepLabel(GOALS[""][1]),
        few_queries,
        surrogate=True,
    ),
    *(
        Recipe(
            f"standard{name}", f"{goal}, the strongest of white and black box", PAPER, KeepLabel(objective), standard
        )
        for name, (goal, objective) in GOALS.items()
    ),
    *(
        Recipe(
            f"standard-light{name}",
            f"{goal}, the strongest of black box",
            PAPER,
            KeepLabel(objective),
            light,
            surrogate=True,
        )
        for name, (goal, objective) in GOALS.items()
    ),
)
