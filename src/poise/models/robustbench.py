"""Adversarially trained networks that RobustBench lists, from files that the user has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from poise.models.dm_wide_resnet import DMWideResNet, PSSiLU
from poise.models.weights import State, read_state
from poise.models.wide_resnet import WideResNet

CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
"""Mean and std inside DeepMind's networks."""

_GOWAL20 = "Gowal et al., Uncovering the Limits of Adversarial Training, arXiv:2010.03593"
_REBUFFI = "Rebuffi et al., Fixing Data Augmentation to Improve Adversarial Robustness, arXiv:2103.01946"
_PANG = "Pang et al., Robustness and Accuracy Could Be Reconcilable by (Proper) Definition, ICML 2022"
_DAI = "Dai, Mahloujifar & Mittal, Parameterizing Activation Functions for Adversarial Robustness, arXiv:2110.05626"
_RADE = "Rade & Moosavi-Dezfooli, Helper-based Adversarial Training, ICML 2021 workshop"


@dataclass(frozen=True, slots=True)
class Published:
    """An entry of RobustBench, threat model Linf with eps = 8/255.

    Args:
        paper: where it comes from.
        depth, width: of the wide residual network.
        classes: 10 and 100 where there are files for CIFAR-10 and CIFAR-100.
        pssilu: whether it is Dai et al.'s network (no normalisation) instead of DeepMind's.
    """

    paper: str
    depth: int
    width: int
    classes: tuple[int, ...] = (10, 100)
    pssilu: bool = False

    def build(self, num_classes: int) -> nn.Module:
        """The network for K classes, images in [0, 1] to logits; CIFAR-10's normalisation unless K is 100."""
        if self.pssilu:
            return WideResNet(self.depth, self.width, num_classes, PSSiLU())
        return DMWideResNet(self.depth, self.width, num_classes, *(CIFAR100 if num_classes == 100 else CIFAR10))


ROBUSTBENCH: dict[str, Published] = {
    "Gowal2020Uncovering": Published(_GOWAL20, 70, 16),
    "Gowal2020Uncovering_extra": Published(_GOWAL20, 70, 16),
    "Gowal2020Uncovering_70_16": Published(_GOWAL20, 70, 16, (10,)),
    "Gowal2020Uncovering_70_16_extra": Published(_GOWAL20, 70, 16, (10,)),
    "Gowal2020Uncovering_28_10_extra": Published(_GOWAL20, 28, 10, (10,)),
    "Rebuffi2021Fixing_28_10_cutmix_ddpm": Published(_REBUFFI, 28, 10),
    "Rebuffi2021Fixing_70_16_cutmix_ddpm": Published(_REBUFFI, 70, 16),
    "Pang2022Robustness_WRN28_10": Published(_PANG, 28, 10),
    "Pang2022Robustness_WRN70_16": Published(_PANG, 70, 16),
    "Dai2021Parameterizing": Published(_DAI, 28, 10, (10,), pssilu=True),
    "Rade2021Helper_extra": Published(_RADE, 34, 10, (10,)),
}
"""RobustBench's name → network; its older releases call the two CIFAR-10 files of Gowal et al. without `70_16`."""


def read_robustbench(path: Path, module: nn.Module) -> State:
    """The tensors of a file, under the names of the module.

    Takes off the prefixes that RobustBench takes off, and lets the buffers `mean` and `std` be missing: then those of
    the module stay.

    Raises:
        InputError: as for `read_state`.
    """
    state = read_state(path)
    if all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    own = module.state_dict()
    return {name: own[name] for name in ("mean", "std") if name in own and name not in state} | state
