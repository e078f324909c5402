"""Searches on a grid: every question of a search is settled on it, whatever the search knows of grids."""

from __future__ import annotations

import dataclasses
from contextlib import closing

from poise.constraints.eight_bit import EightBit
from poise.searches.base import Problem, Search, Steps


def steps_of(search: Search, problem: Problem) -> Steps:
    """`search.run(problem)`; on a grid, the search moves in the ball and what it asks for is settled on the grid.

    The clean points, its first question, are asked for as they are. What it knows of its own points stays as it was:
    answers and gradients are those of the grid point, as with a straight-through estimator.

    Raises:
        InputError: an image whose ball holds no point of the grid.
    """
    constraint = problem.constraint
    if not isinstance(constraint, EightBit):
        return search.run(problem)
    constraint.check(problem.clean, problem.box)
    return _settled(search.run(dataclasses.replace(problem, constraint=constraint.inner)), problem, constraint)


def _settled(steps: Steps, problem: Problem, constraint: EightBit) -> Steps:
    with closing(steps):
        reply = yield next(steps)
        while True:
            try:
                ask = steps.send(reply)
            except StopIteration:
                return
            settled = constraint.settle(ask.x, problem.clean[ask.ids])
            reply = yield dataclasses.replace(ask, x=settled, inside=False)
