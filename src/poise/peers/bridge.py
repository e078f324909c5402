"""How another library sees one of our targets: every pass goes through it and is counted; nothing global is changed."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from poise.errors import MissingExtraError
from poise.targets import ModuleTarget
from poise.types import OutputKind, Outputs


def load_library(module: str, feature: str, extra: str) -> Any:
    """A module of another library, imported without its warnings, which concern its own authors.

    Raises:
        MissingExtraError: it is not installed; one line that says what `feature` needs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise MissingExtraError(feature, extra) from error


class Bridge(nn.Module):
    """What a library holds for a model, in eval mode: every pass goes through our target, and its rows are counted.

    The target is no submodule: a library's calls of `train`, `to` and `zero_grad` do not reach it.

    Args:
        target: what answers.
        outputs: what the library is shown, logits or probabilities.

    Attributes:
        forwards, backwards: rows of forward and backward passes so far.
    """

    def __init__(self, target: ModuleTarget, outputs: OutputKind) -> None:
        super().__init__()
        self.target, self.outputs = target, outputs
        self.forwards = self.backwards = 0
        # Empty: torchattacks asks the first parameter of a model where it lies.
        self.place = nn.Parameter(torch.empty(0, device=target.device), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            passed: Tensor = _Pass.apply(x, self)  # type: ignore[no-untyped-call]
            return passed
        self.forwards += len(x)
        answer = self.target.query(x.to(self.target.device), torch.arange(len(x), device=self.target.device))
        return self.shown(answer).to(x)

    def shown(self, answer: Outputs) -> Tensor:
        return answer.logits if self.outputs is OutputKind.LOGITS else answer.probabilities

    def predict(self, x: np.ndarray[Any, Any], **_: object) -> np.ndarray[Any, Any]:
        """(m, K) float32 for x (m, C, H, W), in batches of the target whatever the library says."""
        with torch.no_grad():
            return self(torch.as_tensor(np.asarray(x, dtype=np.float32))).cpu().numpy()  # type: ignore[no-any-return]


class _Pass(torch.autograd.Function):
    """The target's scores, and their gradient with respect to the points alone: no parameter's `.grad` is written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bridge: Bridge) -> Tensor:
        target = bridge.target
        with torch.enable_grad():
            points = x.detach().to(target.device).requires_grad_(True)
            parts = torch.split(points, target.batch_size)
            scores = torch.cat([target.module(part.to(target.dtype, copy=True)) for part in parts])
            ctx.shown = bridge.shown(Outputs(scores, target.kind))
        bridge.forwards += len(x)
        ctx.points, ctx.bridge = points, bridge
        shown: Tensor = ctx.shown.detach().to(x)
        return shown

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        ctx.bridge.backwards += len(gradient)
        if not ctx.shown.requires_grad:  # a model that is constant in x
            return torch.zeros_like(ctx.points).to(gradient), None
        (found,) = torch.autograd.grad(
            ctx.shown, ctx.points, gradient.to(ctx.shown), retain_graph=True, allow_unused=True
        )
        return (torch.zeros_like(ctx.points) if found is None else found).to(gradient), None


@contextmanager
def global_generators() -> Iterator[None]:
    """Puts numpy's and Python's global generators back as they were; the target's session does so with torch's."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
