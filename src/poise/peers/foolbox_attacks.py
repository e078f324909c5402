"""Foolbox's attacks (3.3) by name, each with the parameters that poise gives it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from poise.peers.base import Parameters, PeerAttack, PeerSetting, any_norm
from poise.peers.bridge import Bridge
from poise.types import Access


@dataclass(frozen=True, slots=True)
class FoolboxAttack(PeerAttack):
    """An attack of Foolbox; `kinds` are classes in `foolbox.attacks`, `bounded` those that Foolbox gives an epsilon.

    >>> FOOLBOX_ATTACKS["ddn"].bounded, FOOLBOX_ATTACKS["pgd"].bounded
    (False, True)
    """

    library: ClassVar[str] = "Foolbox"
    package: ClassVar[str] = "foolbox"
    extra: ClassVar[str] = "peers"

    def points(self, bridge: Bridge, clean: Tensor, labels: Tensor, setting: PeerSetting) -> Tensor:
        foolbox = self.load()
        model = foolbox.PyTorchModel(bridge, bounds=bridge.target.bounds, device=clean.device)
        made = getattr(foolbox.attacks, self.kinds[setting.norm])(**self.parameters(setting))
        wanted = foolbox.criteria.Misclassification(labels)
        raw, clipped, _ = made(model, clean, wanted, epsilons=setting.eps if self.bounded else None)
        points: Tensor = clipped if self.bounded else raw
        return points


def _each(linf: str, l2: str) -> dict[float, str]:
    return {math.inf: linf, 2: l2}


def _steps(usual: int, **fixed: Any) -> Parameters:
    return lambda s: {"steps": s.steps or usual, **fixed}


def _nothing(s: PeerSetting) -> dict[str, Any]:
    return {}


_MADRY = "Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018"

FOOLBOX_ATTACKS: dict[str, FoolboxAttack] = {
    entry.name: entry
    for entry in (
        FoolboxAttack(
            "fgsm",
            "wrong label, one step along the gradient",
            "Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015",
            _each("LinfFastGradientAttack", "L2FastGradientAttack"),
            _nothing,
            bounded=True,
        ),
        FoolboxAttack(
            "pgd",
            "wrong label, cross-entropy from a random start",
            _MADRY,
            _each("LinfProjectedGradientDescentAttack", "L2ProjectedGradientDescentAttack"),
            _steps(40),
            bounded=True,
        ),
        FoolboxAttack(
            "adam-pgd",
            "wrong label, cross-entropy from a random start, steps of Adam",
            f"{_MADRY}, with the optimiser of Kingma & Ba",
            _each("LinfAdamProjectedGradientDescentAttack", "L2AdamProjectedGradientDescentAttack"),
            _steps(40),
            bounded=True,
        ),
        FoolboxAttack(
            "bim",
            "wrong label, cross-entropy from the image itself",
            "Kurakin et al., Adversarial Examples in the Physical World, 2017",
            _each("LinfBasicIterativeAttack", "L2BasicIterativeAttack"),
            _steps(10),
            bounded=True,
        ),
        FoolboxAttack(
            "mi-fgsm",
            "wrong label, gradients with momentum",
            "Dong et al., Boosting Adversarial Attacks with Momentum, 2018",
            _each("LinfMomentumIterativeFastGradientMethod", "L2MomentumIterativeFastGradientMethod"),
            _steps(10),
            bounded=True,
        ),
        FoolboxAttack(
            "deepfool",
            "nearest wrong label by linearisation, white box",
            "Moosavi-Dezfooli et al., DeepFool, 2016",
            _each("LinfDeepFoolAttack", "L2DeepFoolAttack"),
            _steps(50),
        ),
        FoolboxAttack(
            "fmn",
            "nearest wrong label in few steps, white box",
            "Pintor et al., Fast Minimum-norm Adversarial Attacks, 2021",
            _each("LInfFMNAttack", "L2FMNAttack"),
            _steps(100),
        ),
        FoolboxAttack(
            "ddn",
            "nearest wrong label in l2, direction and norm apart, white box",
            "Rony et al., Decoupling Direction and Norm, 2019",
            any_norm("DDNAttack"),
            _steps(100),
        ),
        FoolboxAttack(
            "cw-l2",
            "nearest wrong label in l2, white box",
            "Carlini & Wagner, Towards Evaluating the Robustness of Neural Networks, 2017",
            any_norm("L2CarliniWagnerAttack"),
            _steps(200, binary_search_steps=9),
        ),
        FoolboxAttack(
            "ead",
            "nearest wrong label in an elastic net of l1 and l2, white box",
            "Chen et al., EAD, 2018",
            any_norm("EADAttack"),
            _steps(200, binary_search_steps=9),
        ),
        FoolboxAttack(
            "newtonfool",
            "lowers the confidence of the predicted class by Newton steps, white box",
            "Jang et al., Objective Metrics and Gradient Descent Algorithms for Adversarial Examples, 2017",
            any_norm("NewtonFoolAttack"),
            _steps(100),
        ),
        FoolboxAttack(
            "vat",
            "another answer than the clean one, by power iterations, white box",
            "Miyato et al., Distributional Smoothing with Virtual Adversarial Training, 2015",
            {2: "VirtualAdversarialAttack"},
            _steps(10),
            bounded=True,
        ),
        FoolboxAttack(
            "noise",
            "the first wrong label among draws of noise, black box",
            "Rauber et al., Foolbox Native, 2020",
            _each("LinfRepeatedAdditiveUniformNoiseAttack", "L2RepeatedAdditiveGaussianNoiseAttack"),
            lambda s: {"repeats": s.steps or 100},
            bounded=True,
            access=Access.SCORES,
        ),
        FoolboxAttack(
            "contrast",
            "nearest wrong label when contrast is lost, black box",
            "Rauber et al., Foolbox Native, 2020",
            any_norm("LinearSearchContrastReductionAttack"),
            lambda s: {"steps": s.steps or 1000},
            access=Access.SCORES,
        ),
        FoolboxAttack(
            "salt-and-pepper",
            "nearest wrong label among draws of black and white pixels, black box",
            "Rauber et al., Foolbox Native, 2020",
            any_norm("SaltAndPepperNoiseAttack"),
            lambda s: {"steps": s.steps or 1000, "across_channels": True},
            access=Access.SCORES,
        ),
    )
}
"""Foolbox's attacks by name, with the parameters used here."""
