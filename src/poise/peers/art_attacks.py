"""Attacks of the Adversarial Robustness Toolbox (ART 1.20) by name, each with the parameters that poise gives it.

ART 1.20.1 has no FAB; its AutoAttack runs APGD-CE, APGD-DLR, DeepFool and Square, which is not the published suite.
Importing ART makes the folder `.art` in the user's home, or where the variable ART_DATA_PATH says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from poise.peers.art_bridge import art_estimator, process_pools
from poise.peers.base import Parameters, PeerAttack, PeerSetting, any_norm
from poise.peers.bridge import Bridge
from poise.types import Access, OutputKind


@dataclass(frozen=True, slots=True)
class ArtAttack(PeerAttack):
    """An attack of the Adversarial Robustness Toolbox; `kinds` are classes in `art.attacks.evasion`.

    >>> ART_ATTACKS["zoo"].access.name
    'SCORES'
    """

    library: ClassVar[str] = "ART"
    package: ClassVar[str] = "art"
    extra: ClassVar[str] = "peers"

    def make(self, estimator: Any, setting: PeerSetting) -> Any:
        """ART's attack object, silent; `steps` holds for each member of a suite."""
        kind = getattr(self.load("attacks.evasion"), self.kinds[setting.norm])
        made = kind(estimator, **self.parameters(setting))
        for member in getattr(made, "attacks", ()):
            member.verbose = False
            if setting.steps is not None:
                member.max_iter = setting.steps
        return made

    def points(self, bridge: Bridge, clean: Tensor, labels: Tensor, setting: PeerSetting) -> Tensor:
        with process_pools():
            made = self.make(art_estimator(bridge, clean.shape[1:], self.name), setting)
            return torch.as_tensor(made.generate(x=clean.cpu().numpy(), y=labels.cpu().numpy()))


def _cw(confidence: float) -> Parameters:
    def parameters(s: PeerSetting) -> dict[str, Any]:
        steps = {"max_iter": s.steps or 20, "binary_search_steps": 10, "initial_const": 0.01, "learning_rate": 0.01}
        return {"confidence": confidence, **steps, "batch_size": s.batch_size, "verbose": False}

    return parameters


def _deepfool(s: PeerSetting) -> dict[str, Any]:
    batch = {"batch_size": s.batch_size, "verbose": False}
    return {"max_iter": s.steps or 50, "epsilon": 0.02, "nb_grads": 10, **batch}


def _newtonfool(s: PeerSetting) -> dict[str, Any]:
    return {"max_iter": s.steps or 100, "eta": 0.01, "batch_size": s.batch_size, "verbose": False}


def _zoo(s: PeerSetting) -> dict[str, Any]:
    """One image at a time: ART 1.20.1 keeps the moments of one image alone, and stops with an IndexError on more."""
    constant = {"binary_search_steps": 5, "initial_const": 0.01, "learning_rate": 0.01}
    plain = {"use_resize": False, "use_importance": False, "abort_early": False}
    batch = {"nb_parallel": min(128, s.pixels), "batch_size": 1, "verbose": False}
    return {"max_iter": s.steps or 100, **constant, **plain, **batch}


def _suite(s: PeerSetting) -> dict[str, Any]:
    return {"norm": s.norm, "eps": s.eps, "eps_step": 2 * s.eps, "batch_size": s.batch_size}


def _apgd(loss: str) -> Parameters:
    def parameters(s: PeerSetting) -> dict[str, Any]:
        return {**_suite(s), "max_iter": s.steps or 100, "nb_random_init": 5, "loss_type": loss, "verbose": False}

    return parameters


_CW = "Carlini & Wagner, Towards Evaluating the Robustness of Neural Networks, 2017"
_AUTO = "Croce & Hein, Reliable Evaluation of Adversarial Robustness, 2020"

ART_ATTACKS: dict[str, ArtAttack] = {
    entry.name: entry
    for entry in (
        ArtAttack("cw-l2", "nearest wrong label in l2, white box", _CW, any_norm("CarliniL2Method"), _cw(0.0)),
        ArtAttack(
            "cw-l2-confident",
            "nearest wrong label that leads by 5 logits (a confident error), white box",
            _CW,
            any_norm("CarliniL2Method"),
            _cw(5.0),
        ),
        ArtAttack(
            "deepfool",
            "nearest wrong label in l2 by linearisation, white box",
            "Moosavi-Dezfooli et al., DeepFool, 2016",
            any_norm("DeepFool"),
            _deepfool,
        ),
        ArtAttack(
            "newtonfool",
            "lowers the confidence of the predicted class by Newton steps, white box",
            "Jang et al., Objective Metrics and Gradient Descent Algorithms for Adversarial Examples, 2017",
            any_norm("NewtonFool"),
            _newtonfool,
            outputs=OutputKind.PROBABILITIES,
        ),
        ArtAttack(
            "zoo",
            "nearest wrong label in l2 by finite differences, black box",
            "Chen et al., ZOO, 2017",
            any_norm("ZooAttack"),
            _zoo,
            access=Access.SCORES,
        ),
        ArtAttack(
            "apgd-ce",
            "wrong label, cross-entropy",
            _AUTO,
            any_norm("AutoProjectedGradientDescent"),
            _apgd("cross_entropy"),
            True,
        ),
        ArtAttack(
            "apgd-dlr",
            "wrong label, difference of logits ratio",
            _AUTO,
            any_norm("AutoProjectedGradientDescent"),
            _apgd("difference_logits_ratio"),
            bounded=True,
            classes=3,
        ),
        ArtAttack(
            "autoattack",
            "wrong label, APGD-CE, APGD-DLR, DeepFool and Square in turn",
            _AUTO,
            any_norm("AutoAttack"),
            _suite,
            bounded=True,
            classes=3,
        ),
    )
}
"""ART's attacks by name, with the parameters used here."""
