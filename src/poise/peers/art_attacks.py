"""ART's attacks by name, each with the parameters that poise gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from poise.peers.art_bridge import load_art
from poise.types import Access, OutputKind


@dataclass(frozen=True, slots=True)
class ArtSetting:
    """What an ART attack is made for.

    Args:
        eps: radius of the ball in pixel units.
        norm: `math.inf` or 2.
        seed: that ART's random draws start from; for attacks that take one of their own.
        steps: iterations; None is the number written in `ART_ATTACKS`.
        batch_size: most images that ART sends at once.
        pixels: C * H * W of one image.
    """

    eps: float
    norm: float
    seed: int
    steps: int | None
    batch_size: int
    pixels: int


@dataclass(frozen=True, slots=True)
class ArtAttack:
    """An attack of ART: its class, and the parameters it is made with.

    Args:
        name: lower case with dashes.
        summary: one line.
        paper: where it comes from.
        art: name of the class in `art.attacks.evasion`.
        parameters: ART's arguments for a setting, as plain data; part of the result table's `spec`.
        bounded: the attack searches inside the ball; others look for the nearest wrong label and are cut off at eps.
        access: what ART uses; attacks with `Access.SCORES` take no gradient.
        classes: least number of classes.
        outputs: what ART is shown, logits or probabilities, whatever the target returns.
    """

    name: str
    summary: str
    paper: str
    art: str
    parameters: Callable[[ArtSetting], dict[str, Any]]
    bounded: bool = False
    access: Access = Access.GRADIENTS
    classes: int = 2
    outputs: OutputKind = OutputKind.LOGITS

    def make(self, estimator: Any, setting: ArtSetting) -> Any:
        """ART's attack object, silent; `steps` holds for each member of a suite."""
        made = getattr(load_art("art.attacks.evasion", self.name), self.art)(estimator, **self.parameters(setting))
        for member in getattr(made, "attacks", ()):
            member.verbose = False
            if setting.steps is not None:
                member.max_iter = setting.steps
        return made


def _cw(confidence: float) -> Callable[[ArtSetting], dict[str, Any]]:
    def parameters(s: ArtSetting) -> dict[str, Any]:
        steps = {"max_iter": s.steps or 20, "binary_search_steps": 10, "initial_const": 0.01, "learning_rate": 0.01}
        return {"confidence": confidence, **steps, "batch_size": s.batch_size, "verbose": False}

    return parameters


def _deepfool(s: ArtSetting) -> dict[str, Any]:
    batch = {"batch_size": s.batch_size, "verbose": False}
    return {"max_iter": s.steps or 50, "epsilon": 0.02, "nb_grads": 10, **batch}


def _newtonfool(s: ArtSetting) -> dict[str, Any]:
    return {"max_iter": s.steps or 100, "eta": 0.01, "batch_size": s.batch_size, "verbose": False}


def _zoo(s: ArtSetting) -> dict[str, Any]:
    """One image at a time: ART 1.20.1 keeps the moments of one image alone, and stops with an IndexError on more."""
    constant = {"binary_search_steps": 5, "initial_const": 0.01, "learning_rate": 0.01}
    plain = {"use_resize": False, "use_importance": False, "abort_early": False}
    batch = {"nb_parallel": min(128, s.pixels), "batch_size": 1, "verbose": False}
    return {"max_iter": s.steps or 100, **constant, **plain, **batch}


def _suite(s: ArtSetting) -> dict[str, Any]:
    return {"norm": s.norm, "eps": s.eps, "eps_step": 2 * s.eps, "batch_size": s.batch_size}


def _apgd(loss: str) -> Callable[[ArtSetting], dict[str, Any]]:
    def parameters(s: ArtSetting) -> dict[str, Any]:
        return {**_suite(s), "max_iter": s.steps or 100, "nb_random_init": 5, "loss_type": loss, "verbose": False}

    return parameters


_CW = "Carlini & Wagner, Towards Evaluating the Robustness of Neural Networks, 2017"
_AUTO = "Croce & Hein, Reliable Evaluation of Adversarial Robustness, 2020"

ART_ATTACKS: dict[str, ArtAttack] = {
    entry.name: entry
    for entry in (
        ArtAttack("cw-l2", "nearest wrong label in l2, white box", _CW, "CarliniL2Method", _cw(0.0)),
        ArtAttack(
            "cw-l2-confident",
            "nearest wrong label that leads by 5 logits (a confident error), white box",
            _CW,
            "CarliniL2Method",
            _cw(5.0),
        ),
        ArtAttack(
            "deepfool",
            "nearest wrong label in l2 by linearisation, white box",
            "Moosavi-Dezfooli et al., DeepFool, 2016",
            "DeepFool",
            _deepfool,
        ),
        ArtAttack(
            "newtonfool",
            "lowers the confidence of the predicted class by Newton steps, white box",
            "Jang et al., Objective Metrics and Gradient Descent Algorithms for Adversarial Examples, 2017",
            "NewtonFool",
            _newtonfool,
            outputs=OutputKind.PROBABILITIES,
        ),
        ArtAttack(
            "zoo",
            "nearest wrong label in l2 by finite differences, black box",
            "Chen et al., ZOO, 2017",
            "ZooAttack",
            _zoo,
            access=Access.SCORES,
        ),
        ArtAttack(
            "apgd-ce", "wrong label, cross-entropy", _AUTO, "AutoProjectedGradientDescent", _apgd("cross_entropy"), True
        ),
        ArtAttack(
            "apgd-dlr",
            "wrong label, difference of logits ratio",
            _AUTO,
            "AutoProjectedGradientDescent",
            _apgd("difference_logits_ratio"),
            bounded=True,
            classes=3,
        ),
        ArtAttack(
            "autoattack",
            "wrong label, APGD-CE, APGD-DLR, DeepFool and Square in turn",
            _AUTO,
            "AutoAttack",
            _suite,
            bounded=True,
            classes=3,
        ),
    )
}
"""ART's attacks by name, with the parameters used here."""
