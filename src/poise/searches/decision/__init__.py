"""Decision-based searches: they are told whether a point's label is wrong, and nothing else."""

from poise.searches.decision.block_descent import BlockDescent
from poise.searches.decision.boundary_attack import Boundary
from poise.searches.decision.hop_skip_jump import HopSkipJump
from poise.searches.decision.rambo import RamBo
from poise.searches.decision.sign_opt import SignOPT
from poise.searches.decision.slow import Slow

__all__ = ["BlockDescent", "Boundary", "HopSkipJump", "RamBo", "SignOPT", "Slow"]
