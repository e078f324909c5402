"""Attacks for a wrong label, and for the surest wrong label."""

from __future__ import annotations

from poise.constraints import Anywhere
from poise.objectives import CrossEntropy, Margin, MaxConfidence, Unconditional
from poise.recipebook.base import Recipe, Setting
from poise.searches import (
    APGD,
    FAB,
    PGD,
    Cascade,
    CrossingSquare,
    EveryClass,
    MomentumPGD,
    Negative,
    Noise,
    Search,
    Square,
    Stage,
)

AAA = "Chen et al., Adversarial Attack on Attackers"
THRESHOLD = "Goodfellow et al., An Evaluation of Confidence Thresholding for Rejecting Adversarial Examples"


def _pgd(setting: Setting) -> PGD:
    return PGD(steps=setting.steps or 40, step=setting.step(2 / 255, 8 / 255), random_start=True, undo=False)


def _bim(setting: Setting) -> Search:
    return PGD(steps=setting.steps or 10, step=setting.step(1 / 255, 8 / 255), undo=False)


def _bundle(setting: Setting) -> Search:
    """Noise, then targeted PGD with the usual and with short steps, then random search on what is left."""
    usual = _pgd(setting)
    short = PGD(steps=2 * usual.steps, step=setting.step(0.5 / 255, 8 / 255), random_start=True, undo=False)
    missed = -1.99  # neither wrong nor sure
    return Cascade(
        (
            Noise(points=20),
            EveryClass(usual),
            Stage(EveryClass(short), above=missed),
            Stage(EveryClass(usual), above=missed, repeats=2),
            Stage(Square(start="best", strict=False), above=missed),
        )
    )


RECIPES = (
    Recipe(
        "square",
        "wrong label, black box",
        "Andriushchenko et al., Square Attack",
        Margin(),
        lambda setting: Square(start="stripes"),
    ),
    Recipe(
        "bi-square",
        "wrong label, black box, for margins that may run backwards: downwards until a big rise, then op-square",
        AAA,
        Margin(),
        lambda setting: CrossingSquare("both"),
    ),
    Recipe(
        "op-square",
        "wrong label, black box, for margins that run backwards: upwards, and down at big drops",
        AAA,
        Margin(),
        lambda setting: CrossingSquare("up"),
    ),
    Recipe("pgd", "wrong label, white box, random start", "Madry et al., 2018", CrossEntropy(), _pgd),
    Recipe(
        "fgsm",
        "wrong label, white box, one step",
        "Goodfellow et al., 2015",
        CrossEntropy(),
        lambda setting: PGD(steps=1, step=None, undo=False),
    ),
    Recipe("bim", "wrong label, white box, no random start", "Kurakin et al., 2017", CrossEntropy(), _bim),
    Recipe(
        "momentum",
        "wrong label, white box, accumulated gradient",
        "Dong et al., 2018",
        CrossEntropy(),
        lambda setting: MomentumPGD(steps=setting.steps or 10),
    ),
    Recipe(
        "apgd",
        "wrong label, white box, automatic step size",
        "Croce & Hein, Reliable Evaluation of Adversarial Robustness, 2020",
        CrossEntropy(),
        lambda setting: APGD(steps=setting.steps or 100, random_start=True),
    ),
    Recipe(
        "fab",
        "nearest wrong label, white box",
        "Croce & Hein, Minimally Distorted Adversarial Examples, 2020",
        Margin(),
        lambda setting: FAB(steps=setting.steps or 100),
    ),
    Recipe(
        "max-confidence",
        "the surest wrong label, white box (targeted PGD at every class)",
        THRESHOLD,
        MaxConfidence(),
        lambda setting: EveryClass(_pgd(setting)),
    ),
    Recipe(
        "bundle",
        "the surest wrong label, attack bundling (noise, targeted PGD twice, random search)",
        THRESHOLD,
        MaxConfidence(),
        _bundle,
    ),
    Recipe("noise", "the surest wrong label among random points", THRESHOLD, MaxConfidence(), lambda setting: Noise()),
    Recipe(
        "negative",
        "semantic negative: brightness turned round, no radius",
        "Hosseini et al., 2017",
        Unconditional(),
        lambda setting: Negative(),
        constraint=Anywhere(),
    ),
)
