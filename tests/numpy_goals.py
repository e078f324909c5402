"""Goals in numpy, one sample at a time: what a loop that was written from a paper's text asks instead of a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import poise
from poise.constraints import L2, Anywhere, Linf
from poise.constraints.base import Constraint
from poise.objectives import OCA, UCA, KeepLabel, Margin, Objective
from poise.searches import Search
from toys import Case

GOALS: dict[str, Objective] = {
    "margin": Margin(),
    "margin, no stop": Margin(stop=False),
    "uca": KeepLabel(UCA(tol=0)),
    "oca": KeepLabel(OCA(tol=0)),
}


class Finished(Exception):
    """Raised by a question that the driver would not allow any more."""


@dataclass
class Oracle:
    """Answers the points of one sample of a linear case: loss, and whether the point would do as a result.

    Attributes:
        asked: all points so far.
        merits: their losses, infinite where the point would not do.
        finished: the goal is reached.
    """

    case: Case
    row: int
    goal: str
    budget: int
    asked: list[np.ndarray] = field(default_factory=list)
    merits: list[float] = field(default_factory=list)
    finished: bool = False

    def __call__(self, x: np.ndarray) -> tuple[float, bool]:
        if self.finished or len(self.asked) == self.budget:
            raise Finished
        loss, accept, done = self._judge(x)
        self.asked.append(x)
        self.merits.append(loss if accept else np.inf)
        self.finished = done
        return loss, accept

    def _judge(self, x: np.ndarray) -> tuple[float, bool, bool]:
        z, z_clean = self._scores(x), self._scores(self.clean)
        if self.goal.startswith("margin"):
            y = int(self.case.labels[self.row])
            return z[y] - np.delete(z, y).max(), True, bool(z.argmax() != y) and self.goal == "margin"
        k, p = int(z_clean.argmax()), np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        gap = p[k] - np.delete(p, k).max()
        accept = int(z.argmax()) == k and gap > 1e-4
        return (gap if self.goal == "uca" else 1 - p[k]), accept, False

    def _scores(self, x: np.ndarray) -> np.ndarray:
        weight = self.case.weight.numpy()
        return weight.reshape(len(weight), -1) @ x.ravel() + self.case.bias.numpy()

    @property
    def clean(self) -> np.ndarray:
        return self.case.images[self.row].numpy()


Loop = Callable[[Oracle, Callable[[np.ndarray], np.ndarray]], None]
"""A loop of one sample: asks an oracle, and projects points into ball and box with a function."""


def projection(constraint: Constraint, clean: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The change clamped (linf) or scaled (l2), then the box [0, 1]."""

    def project(x: np.ndarray) -> np.ndarray:
        change = x - clean
        if isinstance(constraint, Linf):
            change = np.clip(change, -constraint.eps, constraint.eps)
        elif isinstance(constraint, L2):
            change = change * min(1, constraint.eps / max(np.sqrt((change**2).sum()), 1e-300))
        else:
            assert isinstance(constraint, Anywhere)
        return np.clip(clean + change, 0, 1)

    return project


def agrees(case: Case, goal: str, search: Search, constraint: Constraint, loop: Loop, *, budget: int) -> None:
    """Every point that the search asks, their number, the ledger and the result are those of the loop."""
    target = case.target()
    result = poise.attack(target, GOALS[goal], search, constraint, case.images, case.labels, case.ids, budget)
    assert result.table["queries"].to_list() == target.counted(case.ids, gradients=False)
    for row, name in enumerate(case.ids.tolist()):
        oracle = Oracle(case, row, goal, budget)
        try:
            loop(oracle, projection(constraint, oracle.clean))
        except Finished:
            pass
        else:
            raise AssertionError("the loop ended by itself")
        asked = [x.numpy() for ids, points, *_ in target.log for x in points[ids == name]]
        assert len(asked) == len(oracle.asked), f"row {row}: {len(asked)} points, the loop has {len(oracle.asked)}"
        for position, (x, expected) in enumerate(zip(asked, oracle.asked, strict=True)):
            np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12, err_msg=f"row {row}, question {position}")
        np.testing.assert_allclose(result.table["loss_after"][row], min(oracle.merits), rtol=0, atol=1e-12)
        best = oracle.asked[int(np.argmin(oracle.merits))]
        np.testing.assert_allclose(result.images[row].numpy(), best, rtol=0, atol=1e-12)
