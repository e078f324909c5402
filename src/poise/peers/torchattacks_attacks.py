"""The attacks of torchattacks (3.5) by name, each with the parameters that poise gives it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from poise.peers.base import Parameters, PeerAttack, PeerSetting, any_norm
from poise.peers.bridge import Bridge
from poise.types import Access


@dataclass(frozen=True, slots=True)
class TorchattacksAttack(PeerAttack):
    """An attack of torchattacks; `kinds` are classes in `torchattacks`, made of the model and `parameters`.

    >>> TORCHATTACKS["pgd"].parameters(PeerSetting(0.4, math.inf, 0, None, 256, 3 * 32 * 32, 10))
    {'eps': 0.4, 'steps': 10, 'alpha': 0.1}
    """

    library: ClassVar[str] = "torchattacks"
    package: ClassVar[str] = "torchattacks"
    extra: ClassVar[str] = "torchattacks"
    unit_box: ClassVar[bool] = True

    def points(self, bridge: Bridge, clean: Tensor, labels: Tensor, setting: PeerSetting) -> Tensor:
        points: Tensor = getattr(self.load(), self.kinds[setting.norm])(bridge, **self.parameters(setting))(
            clean, labels
        )
        return points


def _steps(usual: int, *, step: float | None = 1 / 4, **fixed: Any) -> Parameters:
    """eps, steps, and a step as a share of eps; the library's own are 2/255 at eps 8/255 and 10 steps."""

    def parameters(s: PeerSetting) -> dict[str, Any]:
        length = {} if step is None else {"alpha": step * s.eps}
        return {"eps": s.eps, "steps": s.steps or usual, **length, **fixed}

    return parameters


def _pgd(s: PeerSetting) -> dict[str, Any]:
    return _steps(10, step=1 / 4 if s.norm == math.inf else 1 / 5)(s)


def _single(**shares: float) -> Parameters:
    return lambda s: {"eps": s.eps, **{name: share * s.eps for name, share in shares.items()}}


def _auto(usual: int, *, classes: bool = False, **fixed: Any) -> Parameters:
    """For the members of AutoAttack, which take a norm by name and a seed."""

    def parameters(s: PeerSetting) -> dict[str, Any]:
        known = {"n_classes": s.classes} if classes else {}
        norm = "Linf" if s.norm == math.inf else "L2"
        return {"norm": norm, "eps": s.eps, "steps": s.steps or usual, "seed": s.seed, **known, **fixed}

    return parameters


def _square(s: PeerSetting) -> dict[str, Any]:
    norm = "Linf" if s.norm == math.inf else "L2"
    return {"norm": norm, "eps": s.eps, "n_queries": s.steps or 1000, "p_init": 0.8, "seed": s.seed}


def _autoattack(s: PeerSetting) -> dict[str, Any]:
    norm = "Linf" if s.norm == math.inf else "L2"
    return {"norm": norm, "eps": s.eps, "n_classes": s.classes, "seed": s.seed}


_AUTO = "Croce & Hein, Reliable Evaluation of Adversarial Robustness, 2020"
_VARIANCE = "Wang & He, Enhancing the Transferability of Adversarial Attacks through Variance Tuning, 2021"
_NESTEROV = "Lin et al., Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks, 2020"
_CE = "wrong label, cross-entropy"


def _linf(name: str, summary: str, paper: str, kind: str, parameters: Parameters) -> TorchattacksAttack:
    return TorchattacksAttack(name, summary, paper, {math.inf: kind}, parameters, bounded=True)


TORCHATTACKS: dict[str, TorchattacksAttack] = {
    entry.name: entry
    for entry in (
        _linf("fgsm", "wrong label, one step along the gradient", "Goodfellow et al., 2015", "FGSM", _single()),
        _linf("ffgsm", "wrong label, one step from a random start", "Wong et al., 2020", "FFGSM", _single(alpha=5 / 4)),
        _linf("rfgsm", f"{_CE}, one random step first", "Tramèr et al., 2018", "RFGSM", _steps(10)),
        _linf("bim", f"{_CE}, from the image itself", "Kurakin et al., 2017", "BIM", _steps(10)),
        TorchattacksAttack(
            "pgd",
            f"{_CE}, from a random start",
            "Madry et al., 2018",
            {math.inf: "PGD", 2: "PGDL2"},
            _pgd,
            bounded=True,
        ),
        _linf("eotpgd", f"{_CE}, mean gradients of a random model", "Liu et al., 2019", "EOTPGD", _steps(10)),
        _linf("upgd", f"{_CE}, PGD in its unified form", "torchattacks 3.5", "UPGD", _steps(10)),
        _linf("tpgd", "another answer than the clean one (the TRADES loss)", "Zhang et al., 2019", "TPGD", _steps(10)),
        _linf("jitter", "wrong label, noisy and scaled logits", "Schwinn et al., 2021", "Jitter", _steps(10)),
        _linf("mifgsm", f"{_CE}, with momentum", "Dong et al., 2018", "MIFGSM", _steps(10)),
        _linf("nifgsm", f"{_CE}, with Nesterov's momentum", _NESTEROV, "NIFGSM", _steps(10)),
        _linf("sinifgsm", f"{_CE}, with Nesterov's momentum on scaled copies", _NESTEROV, "SINIFGSM", _steps(10)),
        _linf("vmifgsm", f"{_CE}, with momentum and variance tuning", _VARIANCE, "VMIFGSM", _steps(10)),
        _linf("vnifgsm", f"{_CE}, with Nesterov's momentum and variance tuning", _VARIANCE, "VNIFGSM", _steps(10)),
        _linf("difgsm", f"{_CE}, on resized and padded images", "Xie et al., 2019", "DIFGSM", _steps(10)),
        _linf("tifgsm", f"{_CE}, with smoothed gradients", "Dong et al., 2019", "TIFGSM", _steps(10)),
        TorchattacksAttack("apgd", f"{_CE}, steps that adapt", _AUTO, any_norm("APGD"), _auto(10), bounded=True),
        TorchattacksAttack(
            "apgdt",
            "each wrong label in turn, difference of logits ratio",
            _AUTO,
            any_norm("APGDT"),
            _auto(10, classes=True),
            bounded=True,
            classes=4,
        ),
        TorchattacksAttack(
            "fab",
            "nearest wrong label, white box",
            "Croce & Hein, Minimally Distorted Adversarial Examples, 2020",
            any_norm("FAB"),
            _auto(10, classes=True),
        ),
        TorchattacksAttack(
            "square",
            "wrong label, random squares, black box",
            "Andriushchenko et al., Square Attack, 2020",
            any_norm("Square"),
            _square,
            bounded=True,
            access=Access.SCORES,
        ),
        TorchattacksAttack(
            "autoattack",
            "wrong label, APGD-CE, APGD-T, FAB-T and Square in turn",
            _AUTO,
            any_norm("AutoAttack"),
            _autoattack,
            bounded=True,
            classes=4,
        ),
        TorchattacksAttack(
            "cw",
            "nearest wrong label in l2, white box",
            "Carlini & Wagner, Towards Evaluating the Robustness of Neural Networks, 2017",
            any_norm("CW"),
            lambda s: {"c": 1, "kappa": 0, "steps": s.steps or 50, "lr": 0.01},
        ),
        TorchattacksAttack(
            "deepfool",
            "nearest wrong label in l2 by linearisation, white box",
            "Moosavi-Dezfooli et al., DeepFool, 2016",
            any_norm("DeepFool"),
            lambda s: {"steps": s.steps or 50, "overshoot": 0.02},
        ),
    )
}
"""The attacks of torchattacks by name, with the parameters used here."""
