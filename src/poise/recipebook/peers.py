"""Attacks that other libraries have, as LIBRARY-NAME; their extra is needed when one runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from poise.attacks import NOTHING, Watch
from poise.objectives import Margin
from poise.peers import PEER_ATTACKS, PeerAttack, run_peer
from poise.recipebook.base import Recipe, Setting
from poise.searches import Search
from poise.targets.base import Target
from poise.types import Access, AttackResult


def _no_search(setting: Setting) -> Search:
    raise TypeError("an attack of another library has no search of ours")


@dataclass(frozen=True)
class PeerRecipe(Recipe):
    """An attack of another library, verified like ours. It knows no budget.

    Args:
        attack: what the library runs.
    """

    attack: PeerAttack = PEER_ATTACKS["art-deepfool"]

    @property
    def access(self) -> Access:
        """What the library asks of the target."""
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
        return run_peer(self.attack, target, setting.constraint, images, labels, ids, seed=seed, steps=setting.steps)


RECIPES = tuple(
    PeerRecipe(name, one.summary, one.paper, Margin(), _no_search, attack=one) for name, one in PEER_ATTACKS.items()
)
