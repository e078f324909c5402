"""How points are proposed: one flat generator per paper's algorithm."""

from poise.searches.ace import ACE
from poise.searches.adaptive import AdaptivePGD
from poise.searches.aimed import Aimed
from poise.searches.apgd import APGD
from poise.searches.bandits import Bandits
from poise.searches.base import Ask, Problem, Reply, Search
from poise.searches.cascade import Cascade, Stage
from poise.searches.confidence_pgd import ConfidencePGD
from poise.searches.crossing_square import CrossingSquare
from poise.searches.decision import Boundary, HopSkipJump, RamBo
from poise.searches.every_class import EveryClass
from poise.searches.fab import FAB
from poise.searches.gratings import Gratings
from poise.searches.learned_squares import LearnedSquares
from poise.searches.momentum import MomentumPGD
from poise.searches.negative import Negative
from poise.searches.nes import NES, SPSA
from poise.searches.newton_fool import NewtonFool
from poise.searches.noise import Noise
from poise.searches.pgd import PGD, DropoutPGD
from poise.searches.query_net import QueryNet
from poise.searches.signhunter import SignHunter
from poise.searches.simba import SimBA
from poise.searches.sources import EOT, Autograd, Source
from poise.searches.square import Square

SEARCHES = {
    kind.__name__: kind
    for kind in (
        Square, CrossingSquare, Gratings, LearnedSquares,
        PGD, DropoutPGD, AdaptivePGD, MomentumPGD, APGD, ConfidencePGD, ACE, NewtonFool, FAB,
        HopSkipJump, Boundary, RamBo, QueryNet,
        SimBA, SignHunter, NES, SPSA, Bandits,
        Noise, Negative, EveryClass, Cascade, Aimed,
    )
}  # fmt: skip
"""Every search by its public name."""

__all__ = [
    "ACE",
    "APGD",
    "EOT",
    "FAB",
    "NES",
    "PGD",
    "SEARCHES",
    "SPSA",
    "AdaptivePGD",
    "Aimed",
    "Ask",
    "Autograd",
    "Bandits",
    "Boundary",
    "Cascade",
    "ConfidencePGD",
    "CrossingSquare",
    "DropoutPGD",
    "EveryClass",
    "Gratings",
    "HopSkipJump",
    "LearnedSquares",
    "MomentumPGD",
    "Negative",
    "NewtonFool",
    "Noise",
    "Problem",
    "QueryNet",
    "RamBo",
    "Reply",
    "Search",
    "SignHunter",
    "SimBA",
    "Source",
    "Square",
    "Stage",
]
