"""Where a point may lie."""

from poise.constraints.anywhere import Anywhere
from poise.constraints.base import Box, Constraint
from poise.constraints.eight_bit import EightBit
from poise.constraints.l2 import L2
from poise.constraints.linf import Linf

__all__ = ["L2", "Anywhere", "Box", "Constraint", "EightBit", "Linf"]
