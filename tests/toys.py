"""Targets with a known optimum, targets that misbehave, and small things that many tests need.

The linear toy adds in a fixed order, so that no bit of an answer depends on which other rows are in the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from poise.constraints import Box, Linf
from poise.constraints.base import Constraint
from poise.objectives import Objective
from poise.objectives.base import Bound
from poise.rng import Rng
from poise.searches import Search
from poise.searches.base import Ask, Problem, Reply, Steps
from poise.searches.driver import Driver, Run
from poise.targets import ModuleTarget
from poise.types import Access, OutputKind, Outputs


def generator(seed: int) -> torch.Generator:
    """A private generator, so that no test reads or writes the global one."""
    return torch.Generator().manual_seed(seed)


def fold(values: Tensor, dim: int) -> Tensor:
    """Sum over `dim` by halving: additions of whole tensors alone, so a row's sum never depends on other rows."""
    values = values.movedim(dim, -1)
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        odd = values[..., 2 * half :]
        values = values[..., :half] + values[..., half : 2 * half]
        if odd.shape[-1]:
            values = torch.cat([values, odd], dim=-1)
    return values[..., 0]


class _Scores(torch.autograd.Function):
    """z = W x + b with both passes added by `fold`, reporting how many rows each pass saw."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, count: Callable[[str, int], None]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.count = count
        count("forward", len(x))
        return fold(x[:, None] * weight, 2) + bias

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        ctx.count("backward", len(grad))
        to_weight = (grad[:, :, None] * x[:, None]).sum(0) if ctx.needs_input_grad[1] else None
        to_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return fold(grad[:, :, None] * weight, 1), to_weight, to_bias, None


class Linear(nn.Module):
    """z = W x + b; counts the rows of its forward and backward passes.

    Args:
        weight: (K, C, H, W).
        bias: (K,), zeros if absent.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.flatten(1).clone())
        self.bias = nn.Parameter(weight.new_zeros(len(weight)) if bias is None else bias.clone())
        self.passes = {"forward": 0, "backward": 0}

    def _count(self, kind: str, rows: int) -> None:
        self.passes[kind] += rows

    def forward(self, x: Tensor) -> Tensor:
        return _Scores.apply(x.flatten(1), self.weight, self.bias, self._count)


class Softmax(nn.Module):
    """Probabilities of a module that returns logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).softmax(dim=1)


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.classes)


class Fixed(nn.Module):
    """Any function of the images, as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Rescaled(nn.Module):
    """A module that sees factor * x + shift."""

    def __init__(self, inner: nn.Module, factor: float, shift: float) -> None:
        super().__init__()
        self.inner, self.factor, self.shift = inner, factor, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * self.factor + self.shift)


class InPlace(nn.Module):
    """Writes into its input before it does anything else."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mul_(0.5))


class Noisy(nn.Module):
    """Adds noise from torch's global generator to the logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        scores = self.inner(x)
        return scores + 0.1 * torch.randn_like(scores)


class SmallCNN(nn.Module):
    """Two convolutions with batch norm and dropout; random weights, all classes equally likely on random images."""

    def __init__(self, channels: int = 1, classes: int = 4, size: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * ((size + 1) // 2) ** 2, classes)
        source = generator(seed)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=source) / max(value[0].numel(), 1) ** 0.5 * 1.5)
            typical = self.eval()(torch.rand(256, channels, size, size, generator=source))
            self.head.weight.mul_(6 / typical.std())
            self.head.bias.copy_(-(6 / typical.std()) * (typical - self.head.bias).mean(dim=0))
            self.train()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class RecordingTarget(ModuleTarget):
    """A ModuleTarget that writes down every point it is asked about, and how.

    Attributes:
        log: for each call, in order: ids (m,), points (m, C, H, W), scores (m, K), and whether gradients were asked.
    """

    def __init__(self, module: nn.Module, **declared) -> None:
        super().__init__(module, **declared)
        self.log: list[tuple[Tensor, Tensor, Tensor, bool]] = []

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        answer = super().query(x, ids)
        self.log.append((ids.clone(), x.clone(), answer.scores.clone(), False))
        return answer

    def gradient(self, x: Tensor, ids: Tensor, loss) -> tuple[Outputs, Tensor]:
        answer, gradient = super().gradient(x, ids, loss)
        self.log.append((ids.clone(), x.clone(), answer.scores.clone(), True))
        return answer, gradient

    def counted(self, ids: Tensor, *, gradients: bool) -> list[int]:
        """How often each of ids occurs in the log (with gradients: in calls that asked for them)."""
        asked = [sample for call, _, _, grad in self.log if grad or not gradients for sample in call.tolist()]
        return [asked.count(sample) for sample in ids.tolist()]


@dataclass(frozen=True)
class Case:
    """A linear toy problem: images, labels, names and the model, all from one seed."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    weight: Tensor
    bias: Tensor

    def module(self) -> Linear:
        return Linear(self.weight, self.bias)

    def target(self, *, batch_size: int = 256, **declared) -> RecordingTarget:
        return RecordingTarget(self.module(), num_classes=len(self.weight), batch_size=batch_size, **declared)


def linear_case(
    n: int,
    *,
    shape: tuple[int, int, int] = (1, 4, 4),
    classes: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    scale: float = 3.0,
) -> Case:
    """n random images of `shape` and a random linear classifier whose logits spread by about `scale`.

    Every third prediction is wrong, the second one first.
    """
    source = generator(seed)
    pixels = shape[0] * shape[1] * shape[2]
    images = torch.rand(n, *shape, generator=source, dtype=torch.float64)
    weight = torch.randn(classes, *shape, generator=source, dtype=torch.float64) * scale / pixels**0.5
    bias = -0.5 * weight.flatten(1).sum(dim=1)
    predicted = (images.flatten(1) @ weight.flatten(1).T + bias).argmax(dim=1)
    labels = (predicted + (torch.arange(n) % 3 == 1)) % classes
    ids = torch.randperm(1000, generator=source)[:n] * 7 - 300
    return Case(images.to(dtype), labels, ids, weight.to(dtype), bias.to(dtype))


def binary_case(n: int, *, seed: int = 0, shape: tuple[int, int, int] = (1, 4, 4), margin: float = 2.0) -> Case:
    """Two classes; images in [0.1, 0.9], where a small box stays inactive; |z_1 - z_0| is `margin`, classes in turn."""
    source = generator(seed)
    images = 0.45 + 0.1 * torch.rand(n, *shape, generator=source, dtype=torch.float64)
    weight = 1.5 * torch.randn(2, *shape, generator=source, dtype=torch.float64)
    bias = -0.5 * weight.flatten(1).sum(dim=1)
    difference = weight[1] - weight[0]
    clean = (images * difference).flatten(1).sum(dim=1) + bias[1] - bias[0]
    side = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
    images = images + ((side * margin - clean) / difference.square().sum()).view(-1, 1, 1, 1) * difference
    assert bool(((images > 0.1) & (images < 0.9)).all()), "the box would be active"
    return Case(images, (side > 0).long(), torch.arange(n), weight, bias)


def outputs(*rows: list[float], kind: OutputKind = OutputKind.PROBABILITIES) -> Outputs:
    """Answers written by hand, float64."""
    return Outputs(torch.tensor(rows, dtype=torch.float64), kind)


def bind(objective: Objective, clean: Outputs, labels: list[int] | Tensor, *, seed: int = 0) -> Bound:
    """`objective` bound to all rows of `clean`, which are named 0..n-1."""
    ids = torch.arange(len(clean.scores))
    return objective.bind(clean, torch.as_tensor(labels), ids, Rng(seed, ids))


def problem(
    clean: Tensor,
    constraint: Constraint | None = None,
    *,
    box: Box | None = None,
    seed: int = 0,
    budget: int = 1000,
    ids: Tensor | None = None,
) -> Problem:
    """What a search is given before its first question, for driving its generator by hand."""
    names = torch.arange(len(clean)) if ids is None else ids
    over = torch.zeros(len(clean), dtype=torch.bool)
    best, merit = clean.clone(), clean.new_full((len(clean),), torch.inf)
    rng = Rng(seed, names)
    return Problem(clean, constraint or Linf(0.1), box or Box(), rng, budget, over, classes=3, best=best, merit=merit)


def drive(case: Case, objective: Objective, search: Search, constraint: Constraint, **settings) -> Run:
    """One batch through the driver itself, without the checks and the table of attack()."""
    return Driver(
        target=settings.pop("target", None) or case.target(),
        objective=objective,
        search=search,
        constraint=constraint,
        labels=case.labels,
        sample_ids=case.ids,
        budget=settings.pop("budget", 100),
        seed=settings.pop("seed", 0),
        **settings,
    ).run(case.images.clone())


@dataclass(frozen=True)
class Scripted:
    """A search that asks for the clean points, then for clean + each of `changes` in turn, for all or active samples.

    Args:
        changes: what is added to every image.
        probe: positions in `changes` that are asked as probes.
        forever: ask for the last one again and again, whatever the reply says.
    """

    access: ClassVar[Access] = Access.LABELS
    changes: tuple[float, ...]
    probe: tuple[int, ...] = ()
    forever: bool = False

    def run(self, problem: Problem) -> Steps:
        reply = yield Ask(problem.clean, problem.everyone)
        for position, change in enumerate(self.changes):
            ids = problem.everyone if self.forever else problem.everyone[reply.active]
            reply = yield Ask(problem.clean[ids] + change, ids, probe=position in self.probe)
        while self.forever:
            reply = yield Ask(problem.clean + self.changes[-1], problem.everyone)


class Elsewhere(TorchFunctionMode):
    """Inside, every tensor says that it lies on an accelerator, though its values stay on the CPU.

    So the code runs that is there for devices where a look at a value costs a synchronisation.
    """

    device = torch.device("xla")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == Tensor.device.__get__:
            return self.device
        here = {
            key: torch.device("cpu") if isinstance(value, torch.device) else value
            for key, value in (kwargs or {}).items()
        }
        return func(*(torch.device("cpu") if isinstance(arg, torch.device) else arg for arg in args), **here)


@dataclass
class Transcript:
    """What a search asked and was told, as `by_hand` saw it."""

    asks: list[Ask] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)


def by_hand(steps: Steps, answer: Callable[[Ask, int], Reply], *, most: int = 1000) -> Transcript:
    """Drives a search's generator with answers from a function of the ask and its number."""
    told = Transcript()
    ask = next(steps, None)
    while ask is not None:
        assert len(told.asks) < most, "the search never ends"
        told.asks.append(replace(ask, x=ask.x.clone()))  # a search may write into its points afterwards
        told.replies.append(answer(ask, len(told.replies)))
        try:
            ask = steps.send(told.replies[-1])
        except StopIteration:
            ask = None
    return told


def same_ask(one: Ask, other: Ask) -> bool:
    """The ask itself, or its copy in a transcript."""
    rest = ("ids", "aim", "grad", "probe", "repeats", "step")
    return torch.equal(one.x, other.x) and all(getattr(one, name) is getattr(other, name) for name in rest)


def random_states() -> tuple:
    """The state of every global generator, as something that compares."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    return torch.random.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate()


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Fails if a global generator (torch, numpy, random) is advanced or seeded inside."""
    before = random_states()
    yield
    assert random_states() == before, "a global random generator was touched"
