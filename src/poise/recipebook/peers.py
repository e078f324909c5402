"""Attacks that other libraries have, under names of their own; their extra is needed when one runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from poise.attacks import NOTHING, Watch
from poise.objectives import Margin
from poise.peers import ART_ATTACKS, ArtAttack, run_art
from poise.recipebook.base import Recipe, Setting
from poise.searches import Search
from poise.targets.base import Target
from poise.types import Access, AttackResult


def _no_search(setting: Setting) -> Search:
    raise TypeError("an attack of another library has no search of ours")


@dataclass(frozen=True)
class PeerRecipe(Recipe):
    """An attack of the Adversarial Robustness Toolbox, verified like ours. It knows no budget.

    Args:
        attack: what ART runs.
    """

    attack: ArtAttack = ART_ATTACKS["deepfool"]

    @property
    def access(self) -> Access:
        """What ART asks of the target."""
        return self.attack.access

    def run(
        self,
        target: Target,
        images: Tensor,
        labels: Tensor,
        setting: Setting,
        *,
        ids: Tensor | None = None,
        seed: int = 0,
        watch: Watch = NOTHING,
    ) -> AttackResult:
        """Runs it; progress and checkpoints are not heard of, the budget is not kept."""
        return run_art(self.attack, target, setting.constraint, images, labels, ids, seed, setting.steps)


RECIPES = tuple(
    PeerRecipe(f"art-{name}", one.summary, one.paper, Margin(), _no_search, attack=one)
    for name, one in ART_ATTACKS.items()
)
