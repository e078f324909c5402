"""What a run counts while it trains, on the device: means of the loss's terms, right answers, images passed forward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from poise.training.base import Terms
from poise.types import exact

_ROWS, _RIGHT, _FORWARD = "rows", "right", "forward"


class Tally:
    """Sums over the steps of one epoch; nothing here waits for a device until it is asked for numbers.

    Args:
        device: where the terms are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._kind = device, exact(device)
        self._sums: dict[str, Tensor] = {}
        self._forward = 0
        self._open = False
        self._first: Tensor | None = None
        self.pending: list[tuple[int, Terms]] = []

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Counts the images that go through the module from `begin_step` to `add`: the attacks' and the loss's own."""

        def hook(part: nn.Module, given: Any, answer: Any) -> None:
            if not self._open:
                return
            self._forward += len(answer)
            if part.training and self._first is None:
                self._first = answer.detach()

        handle = module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def begin_step(self) -> None:
        """Begins to count, and to wait for the step's first answer in training mode."""
        self._first, self._open = None, True

    def add(self, step: int, terms: Terms, labels: Tensor) -> None:
        """Adds a step's terms, weighted by its rows (b,), and stops counting."""
        self._open = False
        rows = len(labels)
        kept = {name: value.detach() for name, value in terms.items()}
        self.pending.append((step, kept))
        for name, value in kept.items():
            self._plus(f"term {name}", value * rows)
        right: Tensor | float = 0.0
        shown = self._first
        if shown is not None and shown.ndim == 3:  # an ensemble's members, apart: its answer is their mean
            shown = shown.softmax(dim=2).mean(dim=1)
        if shown is not None and shown.ndim == 2 and len(shown) == rows:
            right = (shown.argmax(dim=1) == labels).sum()
        self._plus(_RIGHT, right)
        self._plus(_ROWS, float(rows))

    def _plus(self, name: str, value: Tensor | float) -> None:
        before = self._sums.get(name)
        given = torch.as_tensor(value, dtype=self._kind, device=self._device)
        self._sums[name] = given if before is None else before + given

    def first_not_finite(self) -> tuple[int, str, float] | None:
        """Step, term and value of the first pending term that is not finite; forgets what is pending."""
        pending, self.pending = self.pending, []
        if not pending:
            return None
        named = [(step, name, value) for step, terms in pending for name, value in terms.items()]
        values = torch.stack([value.float() for _, _, value in named]).tolist()
        bad = (at for at, value in enumerate(values) if not math.isfinite(value))
        at = next(bad, None)
        return None if at is None else (named[at][0], named[at][1], values[at])

    def state(self) -> dict[str, float]:
        """The sums as plain numbers, for a checkpoint."""
        return {name: value.item() for name, value in self._sums.items()} | {_FORWARD: float(self._forward)}

    def restore(self, sums: dict[str, float]) -> None:
        """Goes on from `state()`."""
        self._forward = int(sums.get(_FORWARD, 0))
        self._sums = {}
        for name, value in sums.items():
            if name != _FORWARD:
                self._plus(name, value)

    def means(self, fabric: Any) -> dict[str, float]:
        """Loss, its terms, the share of right answers to what was shown, passes per image; over all processes.

        The sums begin anew.
        """
        names = sorted(self._sums)
        values = torch.stack([self._sums[name] for name in names] + [self._sums[_ROWS].new_tensor(self._forward)])
        summed = fabric.all_reduce(values, reduce_op="sum").tolist()
        found = dict(zip([*names, _FORWARD], summed, strict=True))
        self._sums, self._forward = {}, 0
        rows = found[_ROWS]
        terms = {name.removeprefix("term "): value / rows for name, value in found.items() if name.startswith("term ")}
        means = {"loss": math.fsum(terms.values())} | {f"loss_{name}": value for name, value in terms.items()}
        return means | {"accuracy_shown": found[_RIGHT] / rows, "passes": found[_FORWARD] / rows}
