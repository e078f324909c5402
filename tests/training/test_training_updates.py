"""How gradients come from the loss: SAM's and DDi's vectors, exact restoration, batch norm, and broken twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F
from training_cases import batch, network

from poise.errors import InputError
from poise.training.base import Terms, Update, Views
from poise.training.updates import SAM, CommonDescent, Plain, project_to_simplex, shortest
from toys import generator

# --- what an update sees ---


class Weights(nn.Module):
    """Two parameters, of which a loss is made directly."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        half = len(values) // 2
        self.a = nn.Parameter(torch.tensor(values[:half], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(values[half:], dtype=torch.float64))

    def flat(self) -> Tensor:
        return torch.cat([self.a, self.b])

    def slope(self) -> list[float]:
        return torch.cat([self.a.grad, self.b.grad]).tolist()


@dataclass
class Seen:
    """Where each pass was made, and the gradients and terms after the last."""

    at: list[Tensor]
    terms: Terms


def drive(
    update: Update,
    module: Weights,
    loss: Callable[[Tensor, Tensor | None], Tensor],
    views: Views = (),
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Seen:
    seen = Seen([], {})

    def loss_of(some: Views) -> Terms:
        seen.at.append(module.flat().detach().clone())
        return {"whole": loss(module.flat(), some[0] if some else None)}

    seen.terms = update.gradients(loss_of, views, backward, module)
    return seen


def bowl(w: Tensor, _: Tensor | None = None) -> Tensor:
    """Slope (3, 4) at (0, 0), curvature 2 and 10."""
    return 3 * w[0] + 4 * w[1] + w[0] ** 2 + 5 * w[1] ** 2


# --- plain ---


def test_plain_is_one_pass() -> None:
    module = Weights(0.0, 0.0)
    seen = drive(Plain(), module, bowl)
    assert len(seen.at) == 1
    assert module.slope() == [3, 4]
    assert seen.terms["whole"].item() == 0


# --- SAM (R8) ---

Sharp = Callable[[float], Update]


def the_vector_of_the_specification(sharp: Sharp) -> None:
    """g = (3, 4), rho .05 -> e = (.03, .04), the norm over both parameters; the gradient is that of w + e."""
    module = Weights(0.0, 0.0)
    seen = drive(sharp(0.05), module, bowl)
    assert seen.at[0].tolist() == [0, 0]
    assert seen.at[1].tolist() == pytest.approx([0.03, 0.04], abs=1e-12)
    assert module.slope() == pytest.approx([3 + 2 * 0.03, 4 + 10 * 0.04], abs=1e-12)


def the_weights_come_back_bit_for_bit(sharp: Sharp) -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    given = batch()
    sharp(0.3).gradients(
        lambda some: {"ce": F.cross_entropy(module(given.images), given.labels)}, (), Tensor.backward, module
    )
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def without_a_radius_it_is_plain(sharp: Sharp) -> None:
    ours, plain = network(), network()
    given = batch()
    for module, update in ((ours, sharp(0.0)), (plain, Plain())):
        update.gradients(
            lambda some, module=module: {"ce": F.cross_entropy(module(given.images), given.labels)},
            (),
            Tensor.backward,
            module,
        )
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


SHARP = [the_vector_of_the_specification, the_weights_come_back_bit_for_bit, without_a_radius_it_is_plain]


@pytest.mark.parametrize("check", SHARP, ids=lambda check: check.__name__)
def test_sam(check: Callable[[Sharp], None]) -> None:
    check(SAM)


@dataclass(frozen=True)
class NormPerParameter:
    """Every parameter goes rho far; subtracting e again leaves a rounding error; the first gradient stays."""

    rho: float

    def gradients(
        self, loss_of: Callable, views: Views, backward: Callable[[Tensor], None], module: nn.Module
    ) -> Terms:
        terms = loss_of(views)
        backward(terms[next(iter(terms))])
        moves = [(p, self.rho * p.grad / (p.grad.norm() + 1e-12)) for p in module.parameters()]
        with torch.no_grad():
            for parameter, move in moves:
                parameter.add_(move)
        again = loss_of(views)
        backward(again[next(iter(again))])
        with torch.no_grad():
            for parameter, move in moves:
                parameter.sub_(move)
        return terms


@pytest.mark.parametrize("check", SHARP, ids=lambda check: check.__name__)
def test_a_broken_sam_is_noticed(check: Callable[[Sharp], None]) -> None:
    with pytest.raises(AssertionError):
        check(NormPerParameter)


def test_the_terms_are_those_of_the_first_pass() -> None:
    module = Weights(1.0, 1.0)
    assert drive(SAM(0.5), module, bowl).terms["whole"].item() == 13


def test_a_flat_place_and_parameters_without_a_gradient() -> None:
    module = Weights(0.0, 0.0)
    module.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    module.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    seen = drive(SAM(0.05), module, lambda w, _: (w**2).sum())
    assert seen.at[1].tolist() == [0, 0]
    assert module.slope() == [0, 0]
    assert module.unused.grad is None
    assert module.frozen.grad is None
    assert module.unused.tolist() == module.frozen.tolist() == [1, 1]


def normed() -> tuple[nn.Module, Tensor]:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2, momentum=None))
    draws = generator(0)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=draws))
    return module, torch.randn(8, 3, generator=draws)


def statistics(module: nn.Module) -> list[list[float]]:
    return [value.flatten().tolist() for name, value in module.named_buffers()]


def test_running_statistics_are_those_of_the_first_pass() -> None:
    (module, x), (once, _), (twice, _) = normed(), normed(), normed()
    SAM(0.5).gradients(lambda some: {"loss": module(x).square().mean()}, (), Tensor.backward, module)
    once(x)
    twice(x)
    twice(x)
    assert statistics(module) == statistics(once)
    assert statistics(module) != statistics(twice)
    assert [part.momentum for part in module if isinstance(part, nn.BatchNorm1d)] == [0.1, None]
    module(x)
    assert statistics(module) == statistics(twice)  # and they run on afterwards


def test_a_second_pass_that_fails_leaves_nothing_behind() -> None:
    """Half precision overflows in the first steps: the step is skipped, weights and statistics must be good."""
    module, x = normed()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    calls = []

    def broken(loss: Tensor) -> None:
        loss.backward()
        calls.append(0)
        if len(calls) == 1:
            module[0].weight.grad[0, 0] = math.inf  # the next point is not finite

    SAM(0.5).gradients(lambda some: {"loss": module(x).square().mean()}, (), broken, module)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    assert all(torch.equal(before[name], value) for name, value in module.named_parameters())

    def interrupted(loss: Tensor) -> None:
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        loss.backward()

    with pytest.raises(KeyboardInterrupt):
        SAM(0.5).gradients(lambda some: {"loss": module(x).square().mean()}, (), interrupted, module)
    assert all(torch.equal(before[name], value) for name, value in module.named_parameters())


# --- the shortest vector of a convex hull (R12, 26.3) ---


def hull(rows: list[list[float]]) -> tuple[Tensor, list[float], list[float]]:
    g = torch.tensor(rows, dtype=torch.float64)
    weights = shortest(g @ g.T, 100)
    return g, weights.tolist(), (weights @ g).tolist()


@pytest.mark.parametrize(
    ("rows", "weights", "point"),
    [
        ([[2, 0], [0, 1]], [0.2, 0.8], [0.4, 0.8]),
        ([[3, 0], [1, 0]], [0, 1], [1, 0]),
        ([[1, 1], [-1, -1]], [0.5, 0.5], [0, 0]),
        ([[1, 1], [1, 2], [2, 2], [2, 1]], [1, 0, 0, 0], [1, 1]),
        ([[3, 4]], [1], [3, 4]),
        ([[0, 0], [0, 0]], [0.5, 0.5], [0, 0]),
    ],
)
def test_vectors_of_the_specification(rows: list[list[float]], weights: list[float], point: list[float]) -> None:
    _, found, at = hull(rows)
    assert found == pytest.approx(weights, abs=1e-9)
    assert at == pytest.approx(point, abs=1e-9)


@pytest.mark.parametrize("alike", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_solver(seed: int, alike: float) -> None:
    """Ten gradients, nearly parallel as those of ten attacks are: scipy's shortest vector is no shorter."""
    g = torch.randn(10, 40, generator=generator(seed), dtype=torch.float64) + alike
    weights = shortest(g @ g.T, 100)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert weights.min().item() >= 0
    products = (g @ g.T).numpy()
    solved = minimize(
        lambda w: w @ products @ w,
        np.full(10, 0.1),
        jac=lambda w: 2 * products @ w,
        bounds=[(0, 1)] * 10,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    d = weights @ g
    assert float(d @ d) <= solved.fun * (1 + 1e-9)
    assert float((g @ d).min()) >= float(d @ d) * (1 - 1e-9)


def nearest_by_bisection(point: list[float]) -> list[float]:
    """The simplex's nearest point: max(v - t, 0) for the t at which it sums to 1."""
    low, high = min(point) - 1, max(point)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(v - middle, 0) for v in point) > 1 else (low, middle)
    return [max(v - low, 0) for v in point]


def test_projection_to_the_simplex() -> None:
    for seed in range(20):
        point = 3 * torch.randn(1 + seed % 6, generator=generator(seed), dtype=torch.float64)
        assert project_to_simplex(point).tolist() == pytest.approx(nearest_by_bisection(point.tolist()), abs=1e-9)
    assert project_to_simplex(torch.tensor([0.2, 0.8])).tolist() == pytest.approx([0.2, 0.8])


def test_products_that_are_not_finite_raise_nothing() -> None:
    """The loss is then not finite either, and the run stops with a line on that."""
    for bad in (math.nan, math.inf):
        assert shortest(torch.tensor([[1.0, bad], [bad, 1.0]]), 10).tolist() == [0.5, 0.5]


# --- CommonDescent ---


def along(rows: list[list[float]], update: Update) -> tuple[list[float], Seen]:
    """The direction for losses <g_m, w>, one per view."""
    module = Weights(0.0, 0.0)
    views = tuple(torch.tensor(row, dtype=torch.float64) for row in rows)
    seen = drive(update, module, lambda w, view: (w * view).sum() + view.sum(), views)
    return module.slope(), seen


def test_the_direction_is_the_shortest_vector() -> None:
    assert along([[2, 0], [0, 1]], CommonDescent(normalise=False))[0] == pytest.approx([0.4, 0.8], abs=1e-9)
    unit = [0.4 / math.sqrt(0.8), 0.8 / math.sqrt(0.8)]
    direction, seen = along([[2, 0], [0, 1]], CommonDescent())
    assert direction == pytest.approx(unit, abs=1e-9)
    assert len(seen.at) == 2
    assert seen.terms["whole"].item() == pytest.approx((2 + 1) / 2)  # the mean of the views'


def test_one_view_is_its_own_gradient_at_length_one() -> None:
    """k = 1 -> normalised adversarial training."""
    assert along([[3, 4]], CommonDescent())[0] == pytest.approx([0.6, 0.8], abs=1e-12)
    assert along([[3, 4]], CommonDescent(normalise=False))[0] == [3, 4]


def test_where_no_common_direction_is_left_nothing_moves() -> None:
    for update in (CommonDescent(), CommonDescent(normalise=False)):
        assert along([[0, 0], [0, 0]], update)[0] == [0, 0]
    assert along([[1, 1], [-1, -1]], CommonDescent(normalise=False))[0] == pytest.approx([0, 0], abs=1e-9)


def descends_for_every_view(update: Update) -> None:
    """<g_m, d> >= ||d||^2 for all m, on a network with ten versions of a batch; ||d|| <= min ||g_m||."""
    module, given = network(), batch(8)
    draws = generator(3)
    views = tuple((given.images + 0.3 * torch.randn(given.images.shape, generator=draws)) for _ in range(10))

    def loss(view: Tensor) -> Tensor:
        return F.cross_entropy(module(view), given.labels)

    update.gradients(lambda some: {"attacked": loss(some[0])}, views, Tensor.backward, module)
    d = torch.cat([value.grad.flatten() for value in module.parameters()]).double()
    for view in views:
        g = torch.cat([part.flatten() for part in torch.autograd.grad(loss(view), list(module.parameters()))]).double()
        assert float(g @ d) >= float(d @ d) * (1 - 1e-5)
        assert float(d.norm()) <= float(g.norm()) * (1 + 1e-6)


def test_it_descends_for_every_view() -> None:
    descends_for_every_view(CommonDescent(normalise=False))


@dataclass(frozen=True)
class Mean:
    """The mean gradient: longer than the shortest, and against some views' promise."""

    def gradients(
        self, loss_of: Callable, views: Views, backward: Callable[[Tensor], None], module: nn.Module
    ) -> Terms:
        found = [loss_of((view,)) for view in views]
        backward(sum(terms["attacked"] for terms in found) / len(found))
        return found[0]


def test_the_mean_gradient_is_noticed() -> None:
    with pytest.raises(AssertionError):
        descends_for_every_view(Mean())


def test_frozen_and_unused_parameters() -> None:
    module = Weights(0.0, 0.0)
    module.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    module.frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    views = (torch.tensor([2.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double())
    drive(CommonDescent(normalise=False), module, lambda w, view: (w * view).sum(), views)
    assert module.slope() == pytest.approx([0.4, 0.8], abs=1e-9)
    assert module.unused.grad.tolist() == [0, 0, 0]
    assert module.frozen.grad is None


def test_a_direction_needs_versions() -> None:
    with pytest.raises(InputError, match="CommonDescent: the method must make other versions of the images"):
        drive(CommonDescent(), Weights(0.0, 0.0), bowl)


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"SAM: rho must be a number of at least 0, got -0\.1"):
        SAM(-0.1)
    with pytest.raises(InputError, match="CommonDescent: iterations must be a number of at least 0, got -1"):
        CommonDescent(iterations=-1)
