"""The training methods by name: each is a loss and a way to make the versions of a batch that it needs."""

from __future__ import annotations

from poise.training.base import Method
from poise.training.methods.adversarial import AT, CCAT, TRADES, RobustAugMix
from poise.training.methods.confidence import CAAT, UAT
from poise.training.methods.copies import Copies
from poise.training.methods.ensemble import TRS
from poise.training.methods.mixed import Mixup, NoisyPairing
from poise.training.methods.plain import DCA, MMCE, LabelSmoothing, Standard

METHODS: dict[str, type[Method]] = {
    "standard": Standard,
    "label-smoothing": LabelSmoothing,
    "dca": DCA,
    "mmce": MMCE,
    "mixup": Mixup,
    "noisy-pairing": NoisyPairing,
    "at": AT,
    "trades": TRADES,
    "robustaugmix": RobustAugMix,
    "ccat": CCAT,
    "caat": CAAT,
    "uat": UAT,
    "copies": Copies,
    "trs": TRS,
}
"""What `method.name` of a training recipe may be."""

__all__ = [
    "AT",
    "CAAT",
    "CCAT",
    "DCA",
    "METHODS",
    "MMCE",
    "TRADES",
    "TRS",
    "UAT",
    "Copies",
    "LabelSmoothing",
    "Mixup",
    "NoisyPairing",
    "RobustAugMix",
    "Standard",
]
