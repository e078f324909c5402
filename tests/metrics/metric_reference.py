"""Plain-loop twins of the metrics, written from the formulas alone, and the hand-worked vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

V10 = np.array([0.95, 0.92, 0.87, 0.81, 0.76, 0.66, 0.61, 0.55, 0.43, 0.31])
H10 = np.array([1, 1, 1, 0, 1, 1, 0, 1, 0, 0])
P4 = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3]])
Y4 = np.array([0, 1, 0, 2])

QUERIES, FINISHED = np.array([1, 5, 20, 100]), np.array([1, 1, 0, 0])


def for_all(check: Callable[..., None], *strategies: st.SearchStrategy[Any], examples: int = 80) -> None:
    """Runs a property on drawn inputs: the same ones every time, and without a database on disk."""
    run = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=(Phase.explicit, Phase.generate),
    )
    run(given(*strategies)(check))()


def columns(
    min_size: int = 1, max_size: int = 40, low: float = 0.0
) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Confidences in [low, 1], among them ties, bin edges, 0 and 1; and hits."""
    edges = [v for v in (0.0, 1.0, 0.2, 0.4, 0.6, 0.8, 1 / 3, 2 / 3, 0.5, 1 / 15, 7 / 15) if v >= low]
    number = st.one_of(st.floats(low, 1.0), st.sampled_from(edges))
    rows = st.lists(st.tuples(number, st.integers(0, 1)), min_size=min_size, max_size=max_size)
    return rows.map(lambda r: (np.array([c for c, _ in r]), np.array([h for _, h in r])))


def random_columns(n: int, seed: int, power: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    return confidence, (rng.random(n) < confidence**power).astype(int)


def random_probabilities(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(classes), n), rng.integers(0, classes, n)


def bins_by_loop(
    confidence: Sequence[float], hits: Sequence[int], bins: int, edges: str
) -> list[list[tuple[float, int]]]:
    """The (confidence, hit) pairs in each bin."""
    extra = [[(c, h) for c, h in zip(confidence, hits, strict=True) if c == 1]] if edges == "torchmetrics" else []
    content = []
    for m in range(bins):
        lo, hi = m / bins, (m + 1) / bins
        right = {"right": True, "left": False, "torchmetrics": False}[edges]
        inside = []
        for c, h in zip(confidence, hits, strict=True):
            within = lo < c <= hi or (m == 0 and c == 0) if right else lo <= c < hi
            if within or (edges == "left" and m == bins - 1 and c == 1):
                inside.append((float(c), int(h)))
        content.append(inside)
    return content + extra


def gaps_by_loop(confidence: Sequence[float], hits: Sequence[int], bins: int, edges: str) -> list[tuple[int, float]]:
    """(rows, |accuracy - mean confidence|) of the bins that are not empty."""
    content = [b for b in bins_by_loop(confidence, hits, bins, edges) if b]
    return [(len(b), abs(sum(h for _, h in b) / len(b) - math.fsum(c for c, _ in b) / len(b))) for b in content]


def ece_by_loop(confidence: Sequence[float], hits: Sequence[int], bins: int = 15, edges: str = "right") -> float:
    return sum(size * gap for size, gap in gaps_by_loop(confidence, hits, bins, edges)) / len(confidence)


def ks_by_loop(confidence: Sequence[float], hits: Sequence[int], tie_blocks: bool = True) -> float:
    rows = sorted(zip(confidence, hits, strict=True), key=lambda row: row[0])
    worst = total = 0.0
    for i, (c, h) in enumerate(rows):
        total += h - c
        if not tie_blocks or i + 1 == len(rows) or rows[i + 1][0] != c:
            worst = max(worst, abs(total) / len(rows))
    return worst
