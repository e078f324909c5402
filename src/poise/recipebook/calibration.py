"""Confidence attacks of the papers: calibration attacks, UAT's attacks, ACE, NewtonFool."""

from __future__ import annotations

from poise.objectives import MMA, OCA, RCA, UCA, ConfSmooth, KeepLabel, MinConfidence, Objective
from poise.recipebook.base import Recipe, Setting
from poise.searches import ACE, APGD, AdaptivePGD, DropoutPGD, NewtonFool, Search, Square

CALIBRATION = "Obadinma et al., Calibration Attacks"
UAT = "Martinez et al., Underconfidence Adversarial Training"

PAPER_HORIZON = 1000
"""Iterations of the calibration-attack paper; a smaller budget is the beginning of such a run, not a shrunken one."""


def _clean_square(setting: Setting) -> Search:
    return Square(start="clean", horizon=max(setting.budget - 1, PAPER_HORIZON))


def _dropout(setting: Setting) -> Search:
    return DropoutPGD(steps=setting.steps or 10, step=setting.step(5 / 255, 0.05), mask_target="step")


def _adaptive(setting: Setting) -> Search:
    return AdaptivePGD(steps=setting.steps or 20, step=setting.step(5 / 255, 0.03))


GOALS: dict[str, tuple[str, Objective]] = {
    "uca": ("underconfidence", KeepLabel(UCA())),
    "oca": ("overconfidence", KeepLabel(OCA())),
    "mma": ("maximum miscalibration", KeepLabel(MMA())),
    "rca": ("random confidence, stops at the goal", KeepLabel(RCA())),
    "rca-direction": ("random direction, as the published tables", KeepLabel(RCA(mode="direction"))),
    "confsmooth": ("underconfidence towards the smoothed label", KeepLabel(ConfSmooth())),
    "mma-confsmooth": (
        "maximum miscalibration, ConfSmooth where the label is right",
        KeepLabel(MMA(under=ConfSmooth())),
    ),
}
"""What the calibration attacks want: name to a few words and the objective."""

BLACK_BOX = tuple(
    Recipe(f"sa-{name}", f"{goal}, black box (Square without a starting pattern)", CALIBRATION, o, _clean_square)
    for name, (goal, o) in GOALS.items()
)
WHITE_BOX = tuple(
    Recipe(f"pgd-{name}", f"{goal}, white box (PGD with dropout of the steps)", CALIBRATION, o, _dropout)
    for name, (goal, o) in GOALS.items()
    if not name.endswith("confsmooth")
)
SINGLE = (
    Recipe("adaptive", "underconfidence, white box (adaptive step, step-back)", UAT, KeepLabel(UCA()), _adaptive),
    Recipe(
        "confsmooth",
        "underconfidence towards the smoothed label, white box",
        UAT,
        KeepLabel(ConfSmooth()),
        _adaptive,
    ),
    Recipe(
        "apgd-mma",
        "maximum miscalibration, white box (APGD's step sizes)",
        "Croce & Hein, 2020, with the goal of the calibration attacks",
        KeepLabel(MMA()),
        lambda setting: APGD(steps=setting.steps or 100),
    ),
    Recipe(
        "ace",
        "miscalibration of the ranking, white box (one gradient, shrinking step)",
        "Galil & El-Yaniv, Disrupting Deep Uncertainty Estimation Without Harming Accuracy",
        KeepLabel(MMA(under=MinConfidence(follow="goal"), over=OCA())),
        lambda setting: ACE(),
    ),
    Recipe(
        "newtonfool",
        "underconfidence, white box (Newton steps on the top probability)",
        "Jang et al., 2017",
        KeepLabel(MinConfidence(follow="goal")),
        lambda setting: NewtonFool(steps=setting.steps or 100),
    ),
)
RECIPES = (*BLACK_BOX, *WHITE_BOX, *SINGLE)
