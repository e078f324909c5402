"""How points are proposed: one flat generator per paper's algorithm."""

from poise.searches.adaptive import AdaptivePGD
from poise.searches.base import Ask, Problem, Reply, Search
from poise.searches.pgd import PGD, DropoutPGD
from poise.searches.square import Square

SEARCHES = {kind.__name__: kind for kind in (Square, PGD, DropoutPGD, AdaptivePGD)}
"""Every search by its public name."""

__all__ = ["PGD", "SEARCHES", "AdaptivePGD", "Ask", "DropoutPGD", "Problem", "Reply", "Search", "Square"]
