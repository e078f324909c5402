"""What an attack of another library is: a name, what the library calls it, and the parameters that poise gives it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from poise.errors import InputError
from poise.peers.bridge import Bridge, load_library
from poise.types import Access, OutputKind


@dataclass(frozen=True, slots=True)
class PeerSetting:
    """What an attack of another library is made for.

    Args:
        eps: radius of the ball in pixel units.
        norm: `math.inf` or 2.
        seed: that the library's random draws start from; for attacks that take one of their own.
        steps: iterations; None is the number written in the library's table here.
        batch_size: most images that are sent at once.
        pixels: C * H * W of one image.
        classes: K.

    >>> from poise.peers import FOOLBOX_ATTACKS
    >>> FOOLBOX_ATTACKS["pgd"].parameters(PeerSetting(8 / 255, math.inf, 0, None, 256, 3 * 32 * 32, 10))
    {'steps': 40}
    """

    eps: float
    norm: float
    seed: int
    steps: int | None
    batch_size: int
    pixels: int
    classes: int


NORMS: dict[str, float] = {"linf": math.inf, "l2": 2}
"""Norms as the libraries have them, by poise's names."""

Parameters = Callable[[PeerSetting], dict[str, Any]]
"""A library's arguments for a setting, as plain data."""


def any_norm(kind: str) -> dict[float, str]:
    """One class for both norms."""
    return {math.inf: kind, 2: kind}


@dataclass(frozen=True, slots=True)
class PeerAttack(ABC):
    """An attack of another library: its class there, and the parameters it is made with.

    Args:
        name: lower case with dashes.
        summary: one line.
        paper: where it comes from.
        kinds: the library's class for each norm (`math.inf`, 2) that the attack knows.
        parameters: the library's arguments for a setting, as plain data; part of the result table's `spec`.
        bounded: the attack searches inside the ball; others look for the nearest wrong label and are cut off at eps.
        access: what the attack uses; those with `Access.SCORES` take no gradient.
        classes: least number of classes.
        outputs: what the library is shown, logits or probabilities, whatever the target returns.

    >>> from poise.peers import PEER_ATTACKS
    >>> attack = PEER_ATTACKS["torchattacks-pgd"]
    >>> str(attack), attack.kinds[2]
    ('torchattacks pgd', 'PGDL2')
    """

    library: ClassVar[str]
    """Its name, as messages have it."""
    package: ClassVar[str]
    """What is imported."""
    extra: ClassVar[str]
    """What installs it."""
    unit_box: ClassVar[bool] = False
    """It clips to [0, 1], whatever a target's bounds are."""

    name: str
    summary: str
    paper: str
    kinds: dict[float, str]
    parameters: Parameters
    bounded: bool = False
    access: Access = Access.GRADIENTS
    classes: int = 2
    outputs: OutputKind = OutputKind.LOGITS

    def __str__(self) -> str:
        return f"{self.library} {self.name}"

    def load(self, module: str = "") -> Any:
        """The library, or a module in it; one line that names the extra where it is not installed."""
        return load_library(f"{self.package}.{module}".removesuffix("."), str(self), self.extra)

    def version(self) -> str:
        """Of the library."""
        return str(self.load().__version__)

    def check_norm(self, name: str) -> None:
        """Refuses a norm ("linf", "l2") that the attack does not know.

        Raises:
            InputError: one line with those that it knows.
        """
        if NORMS[name] not in self.kinds:
            known = " or ".join(norm for norm, value in NORMS.items() if value in self.kinds)
            raise InputError(f"{self}: the norm must be {known}, got {name}")

    @abstractmethod
    def points(self, bridge: Bridge, clean: Tensor, labels: Tensor, setting: PeerSetting) -> Tensor:
        """What the library makes of clean (m, C, H, W) float32 with labels (m,): points (m, C, H, W), not trusted."""
