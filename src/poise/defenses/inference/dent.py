"""DENT: the model sharpens its own answers on every batch before it gives them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poise.defenses.base import PoiseWarning
from poise.defenses.inference.base import InferenceDefense, check_images
from poise.errors import InputError, one_of


class Dent(InferenceDefense):
    """Test-time entropy minimisation over the scale and shift of every batch norm, one pair per image.

    Wang et al. 2021, "Fighting Gradients with Gradients: Dynamic Defenses against Adversarial Attacks", section 4, with
    the settings of the AAA paper (Chen et al. 2022): loss "tent", Adam, 6 steps. Each `BatchNorm2d` keeps its running
    statistics and gets scale and shift of shape (n, C), which start at the model's own. `steps` times: entropy of the
    model's answers, one Adam step on scale and shift alone. Then the answer in eval mode. Every call starts afresh.

    Rows and batches. "tent" is the sum of the rows' entropies and Adam works entry by entry: image i's scale and shift
    see image i alone, and its answer does not change with its company, up to the rounding of batched kernels, which
    Adam's first step lr sign(g) can enlarge where g is about 0. (The published mean over the batch divides g by n, so
    that Adam's 1e-8 makes n matter.) "shot" adds sum_k pbar_k ln pbar_k of the batch's mean probabilities: there the
    images do interact, `batch_dependent` is True, and a target's batch_size changes its answers.

    The model itself is never changed: while a call lasts, its batch norms compute with the pairs of that call, and
    mode and computation are restored whatever happens. Two threads must not call one model at the same time.

    The gradient with respect to the images holds the adapted scale and shift fixed. `differentiable` is therefore
    False, yet little is missing: an Adam step has derivative 0 wherever |g| is far above 1e-8.

    A call costs `steps` forward and backward passes and one forward pass; a target counts it as one query.

    Deviations: the sum for the mean, as above; of the model only dropout layers are put in train mode while it adapts
    (all of it upstream), so that no running statistic moves.

    Args:
        steps: 0 is the model itself in eval mode, bit by bit.
        lr: Adam's learning rate.
        betas: Adam's two decay rates.
        loss: "tent" or "shot".
        dropout: whether dropout layers are active during adaptation, as published. A model that has some then draws
            random numbers, and `Dented.stochastic` says so.

    Raises:
        InputError: an argument is not as above.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).eval()
        >>> Dent(steps=2).around(model)(torch.rand(5, 1, 4, 4)).shape
        torch.Size([5, 3])
    """

    differentiable = False
    exportable = False

    def __init__(
        self,
        *,
        steps: int = 6,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        loss: Literal["tent", "shot"] = "tent",
        dropout: bool = True,
    ) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise InputError(f"Dent: steps must be an integer >= 0, got {steps}")
        if not 0 < lr < float("inf"):
            raise InputError(f"Dent: lr must be positive and finite, got {lr}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"Dent: betas must be two numbers in [0, 1), got {betas}")
        if loss not in ("tent", "shot"):
            raise one_of("Dent: loss", loss, ["tent", "shot"])
        self.steps, self.lr, self.betas, self.loss, self.dropout = steps, lr, betas, loss, dropout
        self.batch_dependent = loss == "shot"  # type: ignore[misc]  # a promise of this instance

    def around(self, model: nn.Module) -> Dented:
        return Dented(model, self)

    def __repr__(self) -> str:
        given = f"steps={self.steps}, lr={self.lr:g}, betas={self.betas}, loss={self.loss!r}, dropout={self.dropout}"
        return f"Dent({given})"


class Dented(nn.Module):
    """A model that adapts to every batch; made by `Dent(...).around(model)`.

    Raises:
        InputError: at construction, where the model already holds one of these.

    Attributes:
        model: the model as it was given; its parameters and buffers stay bit-identical.
        dent: the hyper-parameters.
        stochastic: whether two calls on the same images differ: dropout is active while it adapts, or the model draws
            random numbers of its own where its parts declare it.

    Warns:
        PoiseWarning: at construction, where the model has no `BatchNorm2d` with scale, shift and running statistics
            (other norms, and subclasses that compute something else, are left as they are): it then answers as it is.
    """

    def __init__(self, model: nn.Module, dent: Dent) -> None:
        if any(isinstance(part, Dented) for part in model.modules()):
            raise InputError("Dent: must be the only one around a model, got a model that already holds a Dent")
        super().__init__()
        self.model = model
        self.dent = dent
        if not _norms(model):
            warnings.warn(
                "Dent: the model has no BatchNorm2d with scale, shift and running statistics, so nothing adapts",
                PoiseWarning,
                stacklevel=3,
            )

    @property
    def stochastic(self) -> bool:
        adapts = bool(self.dent.steps and _norms(self.model))
        drops = any(isinstance(part, _DROPOUT) and part.p > 0 for part in self.model.modules())
        return (adapts and self.dent.dropout and drops) or any(
            getattr(part, "stochastic", False) for part in self.model.modules()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of the model adapted to x.

        Args:
            x: (n, C, H, W), n >= 0.

        Raises:
            InputError: another shape or type, or a batch norm that does not see one row per image.
        """
        check_images("Dent", x)
        norms = _norms(self.model)
        if not (self.dent.steps and norms and len(x)):
            with _modes(self.model):
                plain: Tensor = self.model(x)
                return plain
        with torch.inference_mode(False):
            pairs = [_Pair(norm, len(x)) for norm in norms]
        with _computing_with(pairs):
            self._adapt(x, pairs)
            with _modes(self.model):
                answer: Tensor = self.model(x)
        return answer

    def _adapt(self, x: Tensor, pairs: list[_Pair]) -> None:
        """Moves the pairs in place; works under no_grad and inference_mode, and leaves no gradient anywhere else."""
        droppers = [part for part in self.model.modules() if isinstance(part, _DROPOUT)] if self.dent.dropout else []
        with torch.inference_mode(False), torch.enable_grad(), _modes(self.model, train=droppers):
            points = x.detach().clone()  # a tensor of inference mode could not be differentiated through
            values = [value for pair in pairs for value in (pair.scale, pair.shift)]
            adam = torch.optim.Adam(values, lr=self.dent.lr, betas=self.dent.betas)
            for _ in range(self.dent.steps):
                loss = _LOSSES[self.dent.loss](self.model(points))
                gradients = torch.autograd.grad(loss, values, allow_unused=True)
                for value, gradient in zip(values, gradients, strict=True):
                    value.grad = gradient
                adam.step()
            for value in values:
                value.requires_grad_(False).grad = None

    def extra_repr(self) -> str:
        return repr(self.dent)


class _Pair:
    """Scale and shift (n, C) that stand in for those of one batch norm."""

    def __init__(self, norm: nn.BatchNorm2d, rows: int) -> None:
        self.norm = norm
        self.scale = norm.weight.detach().clone().expand(rows, -1).clone().requires_grad_(True)
        self.shift = norm.bias.detach().clone().expand(rows, -1).clone().requires_grad_(True)

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or len(x) != len(self.scale):
            raise InputError(
                f"Dent: a BatchNorm2d must see one (C, H, W) per image, {len(self.scale)} in all, got {tuple(x.shape)}"
            )
        plain = F.batch_norm(x, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)
        return torch.addcmul(self.shift[:, :, None, None], plain, self.scale[:, :, None, None])


def _entropies(logits: Tensor) -> Tensor:
    """(n, K) to (n,), in nats."""
    logs = logits.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def _tent(logits: Tensor) -> Tensor:
    return _entropies(logits).sum()


def _shot(logits: Tensor) -> Tensor:
    """n times (mean entropy - entropy of the mean): low where each image is certain and the classes are all used."""
    mean = logits.log_softmax(dim=1).exp().mean(dim=0)
    diversity: Tensor = torch.special.xlogy(mean, mean).sum()
    return _tent(logits) + len(logits) * diversity


_LOSSES = {"tent": _tent, "shot": _shot}
_DROPOUT = (nn.modules.dropout._DropoutNd,)


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms that compute as nn.BatchNorm2d does and have something to adapt."""
    return [
        part
        for part in model.modules()
        if isinstance(part, nn.BatchNorm2d)
        and type(part).forward is nn.BatchNorm2d.forward
        and "forward" not in vars(part)
        and part.affine
        and part.running_mean is not None
    ]


@contextmanager
def _computing_with(pairs: list[_Pair]) -> Iterator[None]:
    """Each batch norm computes with its pair; at the end as its class does, also after an exception."""
    try:
        for pair in pairs:
            vars(pair.norm)["forward"] = pair  # found before the class's own by nn.Module's call, hooks included
        yield
    finally:
        for pair in pairs:
            vars(pair.norm).pop("forward", None)


@contextmanager
def _modes(model: nn.Module, *, train: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Eval mode, the parts in `train` excepted; every part's own mode at the end, also after an exception."""
    before = [(part, part.training) for part in model.modules()]
    try:
        for part, _ in before:
            part.training = False
        for part in train:
            part.training = True
        yield
    finally:
        for part, training in before:
            part.training = training
