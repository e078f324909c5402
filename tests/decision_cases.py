"""What the tests of the decision-based searches share: runs on linear toys, and a loop's own tools in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from poise.constraints import L2, Linf
from poise.objectives import Misclassify
from poise.rng import Rng
from poise.searches import Search
from poise.searches.driver import Run
from toys import Case, RecordingTarget, drive

NOWHERE = {"l2": L2(0.0), "linf": Linf(0.0)}
"""Balls without room, so that a walk goes on to the end of its budget."""


def walked(case: Case, search: Search, norm: str, budget: int, **settings) -> tuple[RecordingTarget, Run]:
    """The whole walk, which nothing stops early."""
    target = case.target()
    run = drive(case, Misclassify(), search, NOWHERE[norm], target=target, budget=budget, **settings)
    return target, run


def asked(target: RecordingTarget, case: Case, row: int) -> np.ndarray:
    """(points, d) all points asked for one sample, in order."""
    name = int(case.ids[row])
    return torch.cat([x[ids == name] for ids, x, *_ in target.log]).flatten(1).numpy()


def shortest(case: Case, norm: str) -> float:
    """Distance of the boundary in a two-class toy whose margins are all 2."""
    w = case.weight[1] - case.weight[0]
    return 2.0 / float(w.norm() if norm == "l2" else w.abs().sum())


def lengths(change: Tensor, norm: str) -> Tensor:
    """(m,) of changes (m, C, H, W)."""
    return change.flatten(1).norm(dim=1) if norm == "l2" else change.flatten(1).abs().amax(dim=1)


def nearest_wrong(target: RecordingTarget, case: Case, norm: str) -> Tensor:
    """(n,) distance of the nearest wrong point that was asked alone, not as one of many probes."""
    row_of = {name: row for row, name in enumerate(case.ids.tolist())}
    found = torch.full((len(case.ids),), torch.inf, dtype=torch.float64)
    for names, x, scores, _ in target.log:
        rows = torch.tensor([row_of[name] for name in names.tolist()])
        alone = torch.bincount(rows, minlength=len(found))[rows] == 1
        wrong = scores.argmax(dim=1) != case.labels[rows]
        length = torch.where(alone & wrong, lengths(x - case.images[rows], norm).double(), torch.inf)
        found.scatter_reduce_(0, rows, length, "amin")
    return found


class Spent(Exception):
    """A loop has used its budget."""


@dataclass
class Loop:
    """One sample of a linear model for a loop in numpy: decisions one at a time, the search's own draws."""

    case: Case
    row: int
    budget: int
    seed: int = 0
    asked: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x0 = self.case.images[self.row].flatten().numpy()
        self.rng = Rng(self.seed, self.case.ids)

    def wrong(self, x: np.ndarray) -> bool:
        if len(self.asked) == self.budget:
            raise Spent
        self.asked.append(x.copy())
        z = self.case.weight.flatten(1).numpy() @ x + self.case.bias.numpy()
        return int(z.argmax()) != int(self.case.labels[self.row])

    def draw(self, kind: str, purpose: str, step: int, *count: int) -> np.ndarray:
        shape = (*count, *self.case.images.shape[1:])
        values = getattr(self.rng, kind)(purpose, step, torch.tensor([self.row]), shape)[0].double()
        return values.reshape(*count, -1).numpy()

    def start(self) -> np.ndarray:
        """Noise until it is wrong, blended to 0.001."""
        step = 0
        while not self.wrong(noise := self.draw("uniform", "noise-start", step)):
            step += 1
        return self.bisect(lambda t: self.x0 + t * (noise - self.x0), 1.0, 1e-3)

    def bisect(self, point: Callable[[float], np.ndarray], high: float, width: float) -> np.ndarray:
        low = 0.0
        while high - low > width:
            middle = (low + high) / 2
            low, high = (low, middle) if self.wrong(point(middle)) else (middle, high)
        return point(high)


def length_of(change: np.ndarray, norm: str = "l2") -> float:
    """Of one change (d,)."""
    return float(np.abs(change).max() if norm == "linf" else np.sqrt((change**2).sum()))


def hop_skip_jump(
    loop: Loop,
    norm: str = "l2",
    *,
    probes: int = 100,
    slow: tuple[float, int] | None = None,
    centre: bool = True,
    radius: float = 0.1,
    root: float = 0.5,
) -> np.ndarray:
    """Chen et al., Alg. 2, one point at a time; the nearest boundary point once it is slow (gain, probes)."""
    x0, d = loop.x0, len(loop.x0)

    def to_boundary(x: np.ndarray) -> np.ndarray:
        if norm == "l2":
            return loop.bisect(lambda t: x0 + t * (x - x0), 1.0, 1 / d**1.5)
        top = length_of(x - x0, norm)
        return loop.bisect(lambda r: np.clip(x, x0 - r, x0 + r), top, min(top, 1) / d**2)

    x = nearest = loop.start()
    reach, x, spent, looked = length_of(x - x0, norm), to_boundary(x), 0, np.inf
    for j in range(1, 41):
        distance = length_of(x - x0, norm)
        nearest = x if distance < length_of(nearest - x0, norm) else nearest
        if slow is not None and spent > slow[1]:
            if looked - distance < slow[0]:
                break
            looked, spent = distance, 0
        delta = radius if j == 1 else reach / d
        u = loop.draw("normal" if norm == "l2" else "uniform", "hop-probes", j * 10**6, int(probes * j**0.5))
        u = u if norm == "l2" else 2 * u - 1
        points = np.clip(x + delta * u / np.sqrt((u**2).sum(axis=1, keepdims=True)), 0, 1)
        sign = np.array([2.0 * loop.wrong(point) - 1 for point in points])
        weight = sign - sign.mean() if centre and abs(sign.mean()) < 1 else sign
        slope = (weight[:, None] * (points - x) / delta).mean(axis=0)
        slope = np.sign(slope) if norm == "linf" else slope / length_of(slope)
        step, spent = distance / j**root, spent + len(points)
        while not loop.wrong(np.clip(x + step * slope, 0, 1)):
            step /= 2
        x = np.clip(x + step * slope, 0, 1)
        reach, x = length_of(x - x0, norm), to_boundary(x)
    return nearest


def compared(case: Case, target: RecordingTarget, budget: int, loop: Callable[[Loop], None], atol: float) -> int:
    """Holds every point asked against those of a loop, sample by sample; returns how many samples walked."""
    walks = 0
    for row in range(len(case.images)):
        mine = Loop(case, row, budget)
        try:
            if not mine.wrong(mine.x0):
                walks += 1
                loop(mine)
        except Spent:
            pass
        np.testing.assert_allclose(asked(target, case, row), np.stack(mine.asked), rtol=0, atol=atol)
    return walks
