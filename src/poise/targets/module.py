"""A PyTorch module as a target: scores, and gradients of a per-sample scalar."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from poise.errors import InputError, TargetError
from poise.targets.answers import check_sizes
from poise.targets.base import Loss, private_random
from poise.types import Access, OutputKind, Outputs


class Normalize(nn.Module):
    """(x - mean) / std per channel, inside the model so that eps stays in pixel units.

    >>> Normalize([0.5], [0.25])(torch.tensor([[[[1.0]]]])).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise InputError(
                "Normalize: mean and std must have one value per channel, std positive, "
                f"got mean={list(mean)}, std={list(std)}"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean.shape[1] not in (1, x.shape[1]):
            raise InputError(f"Normalize: images must have {self.mean.shape[1]} channels, got {x.shape[1]}")
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


class Trial:
    """A call on a copy of the caller's points (m, C, H, W): it tells whether the module can be given those themselves.

    Not where it writes into them, keeps them or a view of them, or answers with one; nor where torch cannot count the
    views. Judged when the graph is gone.
    """

    def __init__(self, given: Tensor, dtype: torch.dtype) -> None:
        self.given, self.points = given, given.to(dtype, copy=True)
        self.answer: object = None
        self.before = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        """Writes so far, names in Python, tensors that share the memory; None where they cannot be counted."""
        try:
            sharing = torch._C._storage_Use_Count(self.points.untyped_storage()._cdata)
        except (AttributeError, NotImplementedError):  # a torch without this private counter, a tensor without storage
            return None
        return self.points._version, sys.getrefcount(self.points), sharing

    def passed(self) -> bool:
        """The module left its points alone, and nothing of them is left behind but this copy."""
        if self.before is None or self._state() != self.before:
            return False
        return torch.equal(self.points, self.given.to(self.points.dtype))


class ModuleTarget:
    """A classifier given as an `nn.Module` from images to scores.

    Args:
        module: maps (m, C, H, W) to (m, K).
        num_classes: K, at least 2; checked against every answer.
        mean, std: per-channel normalisation, applied inside the target; images given to the target stay in `bounds`.
        bounds: lowest and highest legal pixel value.
        device: where the module runs; it is moved there.
        batch_size: most points per forward pass.
        outputs: "logits" or "probabilities": what the module returns. Declared, and refused where values contradict it.
        access: the most an attacker may use; `Access.SCORES` hides the gradients.

    Attributes:
        module: the module with the normalisation inside: images in `bounds` to scores.

    Raises:
        InputError: for arguments that make no sense.
        TargetError: from `query`, where an answer contradicts the declaration (shape, classes, kind, NaN).

    >>> target = ModuleTarget(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), num_classes=3)
    >>> target.query(torch.rand(2, 1, 2, 2), torch.arange(2)).scores.shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        num_classes: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        device: str | torch.device = "cpu",
        batch_size: int = 256,
        outputs: str = "logits",
        access: Access = Access.GRADIENTS,
    ) -> None:
        kinds = {"logits": OutputKind.LOGITS, "probabilities": OutputKind.PROBABILITIES}
        if outputs not in kinds:
            raise InputError(f"ModuleTarget: outputs must be 'logits' or 'probabilities', got '{outputs}'")
        if num_classes < 2:
            raise InputError(f"ModuleTarget: num_classes must be at least 2, got {num_classes}")
        check_sizes("ModuleTarget", bounds, batch_size)
        if (mean is None) != (std is None):
            raise InputError(f"ModuleTarget: mean and std must be given together, got mean={mean}, std={std}")
        self.kind = kinds[outputs]
        self.access = access
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.device = torch.device(device)
        normalised = module if mean is None or std is None else nn.Sequential(Normalize(mean, std), module)
        self.module = normalised.to(self.device)
        self._checked_kind = False
        self._open: torch.dtype | None = None
        self._lent: dict[bool, bool] = {}
        self._trial: Trial | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the module's first parameter; float32 where it has none."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """Answers for x (m, C, H, W); one forward pass per `batch_size` points. `ids` is not used."""
        lasting = self._open is not None
        with self.session(), torch.inference_mode(False), torch.no_grad():
            outputs = self._outputs([self._forward(part, lasting) for part in self._parts(x)], len(x))
            self._judge()
            return outputs

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        return (x,) if len(x) <= self.batch_size else torch.split(x, self.batch_size)

    def _forward(self, part: Tensor, lasting: bool) -> Tensor:
        """One forward pass; of a lasting session's first, one with and one without a graph are a `Trial`."""
        dtype, graph = self._open or self.dtype, part.requires_grad
        if self._lent.get(graph) and part.dtype == dtype and not part.is_inference():
            version = part._version
            answer = self.module(part)
            if part._version != version:
                raise TargetError(
                    "ModuleTarget: the model wrote into its input, which it had left as it was in the session's first "
                    "call; it must do so in all calls or in none"
                )
        elif not lasting or graph in self._lent or self._trial is not None:
            answer = self.module(part.to(dtype, copy=True))
        else:
            self._trial = Trial(part, dtype)
            answer = self._trial.answer = self.module(self._trial.points)
        if not isinstance(answer, Tensor):
            raise TargetError(f"ModuleTarget: the model must return a tensor of scores, got {type(answer).__name__}")
        return answer

    def _judge(self) -> None:
        """Ends a trial: from now on the session's calls are given their caller's points, or copies."""
        if self._trial is not None:
            self._lent[self._trial.given.requires_grad] = self._trial.passed()
            self._trial = None

    def gradient(self, x: Tensor, ids: Tensor, loss: Loss) -> tuple[Outputs, Tensor]:
        """Answers and d loss_i / d x_i (m, C, H, W); one forward and one backward pass per `batch_size` points.

        `loss` is called once, with the answers of all m points.
        """
        if self.access < Access.GRADIENTS:
            raise TargetError(
                f"ModuleTarget: gradients need access 'gradients', the target declares '{self.access.name.lower()}'"
            )
        lasting = self._open is not None
        with self.session(), torch.inference_mode(False), torch.enable_grad():
            points = (x.clone() if x.is_inference() else x.detach()).requires_grad_(True)
            outputs = self._outputs([self._forward(part, lasting) for part in self._parts(points)], len(x))
            losses = loss(outputs)
            if not losses.requires_grad:  # a model or a loss that is constant in x
                gradient = torch.zeros_like(x)
            else:
                found = torch.autograd.grad(losses.sum(), points, allow_unused=True)[0]
                gradient = torch.zeros_like(x) if found is None else found.to(x.dtype)
            self._judge()
        return outputs.detached(), gradient

    @contextmanager
    def session(self, seed: int | None = None) -> Iterator[None]:
        """Eval mode and a private copy of the random state, both restored at the end; an inner session does nothing.

        A model that draws random numbers draws them from `seed`, or from the global state's copy where it is None.
        """
        if self._open is not None:
            yield
            return
        training = [part for part in self.module.modules() if part.training]
        with private_random(self.device, seed):
            self._open = self.dtype  # slow to find out, and nobody changes it in between
            try:
                for part in training:
                    part.training = False
                yield
            finally:
                self._open = self._trial = None
                self._lent.clear()
                for part in training:
                    part.training = True

    def _outputs(self, parts: list[Tensor], rows: int) -> Outputs:
        scores = parts[0] if len(parts) == 1 else torch.cat(parts)
        if scores.shape != (rows, self.num_classes):
            raise TargetError(
                f"ModuleTarget: the model must answer ({rows}, {self.num_classes}) scores for {rows} images, "
                f"got {tuple(scores.shape)}"
            )
        if rows and (not self._checked_kind or scores.device.type == "cpu"):
            self._check_values(scores.detach() if scores.requires_grad else scores)
        return Outputs(scores, self.kind)

    def _check_values(self, scores: Tensor) -> None:
        """Refuses NaN, infinities, and scores that contradict the declared kind (on a GPU: the first answer only)."""
        if not math.isfinite(float(scores.sum())) and not torch.isfinite(scores).all():
            raise TargetError(
                "ModuleTarget: scores must be finite, "
                f"got {int((~torch.isfinite(scores)).sum())} NaN or infinite values"
            )
        if self._checked_kind and self.kind is OutputKind.LOGITS:
            return
        slack = 1e-2 if scores.dtype.itemsize < 4 else 1e-5
        rows_are_probabilities = bool(((scores >= 0).all() & ((scores.sum(dim=1) - 1).abs() < slack).all()).item())
        if self.kind is OutputKind.LOGITS and rows_are_probabilities:
            raise TargetError(
                "ModuleTarget: the model is declared to return logits, but its rows are probabilities "
                "(non-negative, sum 1); remove its softmax or declare outputs='probabilities'"
            )
        if self.kind is OutputKind.PROBABILITIES and not rows_are_probabilities:
            raise TargetError(
                "ModuleTarget: the model is declared to return probabilities, but its rows are not "
                "(non-negative, sum 1); declare outputs='logits'"
            )
        self._checked_kind = True
