"""Every recipe keeps its promises: a table of recipes, a table of properties, a broken twin of each property."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import poise
import toys
from poise.constraints import Box
from poise.errors import InputError
from poise.objectives import OCA, UCA, KeepLabel, Margin, Objective
from poise.objectives.base import Bound, downwards
from poise.recipebook import Setting, ball
from poise.rng import Rng
from poise.searches import PGD, AdaptivePGD, Ask, DropoutPGD, Problem, Search, Square
from poise.searches.base import Steps
from poise.types import Access, AttackResult, Outputs

RECIPES = poise.recipes()
every_recipe = pytest.mark.parametrize("name", RECIPES)
SHAPES = [(1, 4, 4), (3, 5, 4), (1, 3, 7), (3, 4, 6)]
KEYED = ["id", "label", "prediction_before", "prediction_after", "confidence_before", "confidence_after", "loss_before"]
KEYED += ["loss_after", "accepted", "queries", "queries_to_success", "gradients", "linf", "l2", "stop"]


@dataclass(frozen=True)
class Setup:
    """How a recipe is run."""

    shape: tuple[int, int, int] = (1, 4, 4)
    classes: int = 3
    n: int = 3
    norm: str = "linf"
    eps: float = 0.1
    budget: int = 12
    seed: int = 0
    batch_size: int = 256
    dtype: torch.dtype = torch.float64
    scale: float = 3.0

    def case(self) -> toys.Case:
        return toys.linear_case(
            self.n, shape=self.shape, classes=self.classes, seed=self.seed, dtype=self.dtype, scale=self.scale
        )


setups = st.builds(
    Setup,
    shape=st.sampled_from(SHAPES),
    classes=st.sampled_from([2, 3, 10, 100]),
    n=st.integers(0, 4),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.sampled_from([0.0, 0.02, 0.1, 0.4]),
    budget=st.sampled_from([1, 2, 3, 8, 20]),
    seed=st.integers(0, 2**31),
    batch_size=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([0.01, 3.0, 100.0]),
)


@dataclass(frozen=True)
class Attacked:
    """One run of a recipe and all that is needed to judge it; `passes` are the rows that the module itself saw."""

    recipe: poise.Recipe
    setup: Setup
    case: toys.Case
    target: toys.RecordingTarget
    result: AttackResult
    passes: dict[str, int]


def run(name: str, setup: Setup) -> Attacked:
    case = setup.case()
    target = case.target(batch_size=setup.batch_size)
    result = poise.run_recipe(
        name,
        target,
        case.images,
        case.labels,
        eps=setup.eps,
        norm=setup.norm,
        budget=setup.budget,
        seed=setup.seed,
        ids=case.ids,
    )
    return Attacked(RECIPES[name], setup, case, target, result, dict(target.module.passes))


def run_own(objective: Objective, search: Search, setup: Setup, target: toys.RecordingTarget | None = None) -> Attacked:
    """The same with parts of the test's own, as a nameless recipe."""
    case = setup.case()
    target = target or case.target(batch_size=setup.batch_size)
    constraint = ball(setup.norm, setup.eps)
    given_ = target, objective, search, constraint, case.images, case.labels, case.ids, setup.budget, setup.seed
    result = poise.attack(*given_)
    recipe = poise.Recipe("own", "of a test", "none", objective, lambda setting: search)
    return Attacked(recipe, setup, case, target, result, dict(target.module.passes))


def bound_to(attacked: Attacked) -> Bound:
    """The goal, bound anew from the clean scores, batch by batch as attack() does (the streams know ids, not rows)."""
    case = attacked.case
    clean = Outputs(attacked.target.module(case.images).detach())
    rng = Rng(attacked.setup.seed, case.ids)
    return attacked.recipe.objective.bind(clean, case.labels, torch.arange(len(case.ids)), rng)


def stays_inside(attacked: Attacked) -> None:
    images, clean, eps = attacked.result.images.double(), attacked.case.images.double(), attacked.setup.eps
    assert images.shape == clean.shape
    assert attacked.result.images.dtype == attacked.case.images.dtype
    assert attacked.result.images.device == attacked.case.images.device
    assert bool(((images >= 0) & (images <= 1)).all())
    change = (images - clean).flatten(1)
    if attacked.setup.norm == "linf":
        assert bool((change.abs() <= eps + 1e-6).all())
    else:
        assert bool((change.square().sum(dim=1).sqrt() <= eps * (1 + 1e-6) + 1e-6).all())


def keeps_labels_one_by_one(attacked: Attacked) -> None:
    if not attacked.recipe.keeps_label:
        return
    for image, before in zip(attacked.result.images, attacked.case.images, strict=True):
        alone, clean = (attacked.target.module(x[None]).detach()[0] for x in (image, before))
        assert alone.argmax() == clean.argmax()


def is_no_worse(attacked: Attacked) -> None:
    table, ids = attacked.result.table, torch.arange(len(attacked.case.ids))
    assert bool((table["loss_after"] <= table["loss_before"]).all())
    if not len(ids):
        return
    merit = bound_to(attacked).merit(Outputs(attacked.target.module(attacked.result.images).detach()), ids)
    torch.testing.assert_close(merit, torch.tensor(table["loss_after"].to_list(), dtype=merit.dtype), rtol=0, atol=0)


def counts_what_the_model_saw(attacked: Attacked) -> None:
    table, target = attacked.result.table, attacked.target
    assert table["queries"].to_list() == target.counted(attacked.case.ids, gradients=False)
    assert table["gradients"].to_list() == target.counted(attacked.case.ids, gradients=True)
    assert attacked.passes == {"forward": table["queries"].sum(), "backward": table["gradients"].sum()}


def respects_the_budget(attacked: Attacked) -> None:
    table = attacked.result.table
    assert bool(table["queries"].is_between(1, attacked.setup.budget).all())
    assert bool((table["gradients"] <= table["queries"]).all())


def points_of(attacked: Attacked, row: int) -> tuple[Tensor, Outputs]:
    """All points asked for one sample, in order, and their answers."""
    name = int(attacked.case.ids[row])
    calls = [(x[ids == name], scores[ids == name]) for ids, x, scores, _ in attacked.target.log]
    return torch.cat([x for x, _ in calls]), Outputs(torch.cat([scores for _, scores in calls]))


def replayed(attacked: Attacked, row: int) -> tuple[int, int | None]:
    """Positions of a sample's best acceptable point and of the first that reached the goal, from the log alone."""
    x, answers = points_of(attacked, row)
    bound, ids = bound_to(attacked), torch.full((len(x),), row)
    merit, accept, done = bound.merit(answers, ids), bound.accept(answers, ids), bound.done(answers, ids)
    ball_, clean = ball(attacked.setup.norm, attacked.setup.eps), attacked.case.images[row].expand_as(x)
    inside = ball_.contains(x, clean) & Box().contains(x)
    best, reached = 0, 0 if accept[0] and done[0] else None
    for position in range(1, len(x)):
        if accept[position] and inside[position] and merit[position] < merit[best]:
            best = position
            if done[position] and reached is None:
                reached = position
    return best, reached


def returns_the_best_point(attacked: Attacked) -> None:
    for row, image in enumerate(attacked.result.images):
        x, answers = points_of(attacked, row)
        best, _ = replayed(attacked, row)
        assert torch.equal(image, x[best])
        assert torch.equal(attacked.result.scores[row], answers.scores[best])


def never_asks_the_finished(attacked: Attacked) -> None:
    for row, told in enumerate(attacked.result.table.iter_rows(named=True)):
        x, _ = points_of(attacked, row)
        _, reached = replayed(attacked, row)
        assert (told["stop"] == "success") == (reached is not None)
        assert told["queries_to_success"] == (None if reached is None else len(x))
        assert reached is None or reached == len(x) - 1
        assert told["stop"] != "budget" or told["queries"] == attacked.setup.budget


def tells_the_truth(attacked: Attacked) -> None:
    """The table's columns, computed anew in float64 from the images and the model."""
    table, case, module = attacked.result.table, attacked.case, attacked.target.module
    assert table.schema == poise.table.SCHEMA
    assert table["id"].to_list() == case.ids.tolist()
    assert table["label"].to_list() == case.labels.tolist()
    change = (attacked.result.images - case.images).flatten(1)
    for when, images in (("before", case.images), ("after", attacked.result.images)):
        probabilities = module(images).detach().double().softmax(dim=1)
        assert table[f"prediction_{when}"].to_list() == probabilities.argmax(dim=1).tolist()
        expected = probabilities.max(dim=1).values.numpy() if len(images) else []
        assert table[f"confidence_{when}"].to_list() == pytest.approx(list(expected), abs=1e-12)
    assert table["linf"].to_list() == pytest.approx(change.abs().amax(dim=1).tolist(), abs=1e-12)
    assert table["l2"].to_list() == pytest.approx(change.norm(dim=1).tolist(), abs=1e-12)


PROPERTIES: dict[str, Callable[[Attacked], None]] = {
    check.__name__: check
    for check in (
        stays_inside,
        keeps_labels_one_by_one,
        is_no_worse,
        counts_what_the_model_saw,
        respects_the_budget,
        returns_the_best_point,
        never_asks_the_finished,
        tells_the_truth,
    )
}


@every_recipe
@given(setup=setups)
def test_recipe_keeps_every_promise(name: str, setup: Setup) -> None:
    attacked = run(name, setup)
    for check in PROPERTIES.values():
        check(attacked)


# --- broken twins: each breaks one promise, and the property that guards it must say so ---


class Forgetful(KeepLabel):
    """Says that it keeps the label, and follows the margin across the boundary."""

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return Margin(stop=False).bind(clean, clean.labels, ids, rng)


class Chatty(toys.RecordingTarget):
    """Asks its module twice for every answer."""

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        self.module(x)
        return super().query(x, ids)


@dataclass(frozen=True)
class Restless:
    """Asks for every sample until the budget is spent, finished or not."""

    access: ClassVar[Access] = Access.LABELS

    def run(self, problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        for step in range(problem.budget - 1):
            points = problem.constraint.sample(problem.clean, problem.box, problem.everyone, problem.rng, step)
            yield Ask(points, problem.everyone)


def tampered(attacked: Attacked, **columns: pl.Expr) -> Attacked:
    table = attacked.result.table.with_columns(**columns)
    return dataclasses.replace(attacked, result=dataclasses.replace(attacked.result, table=table))


def with_images(attacked: Attacked, images: Tensor) -> Attacked:
    return dataclasses.replace(attacked, result=dataclasses.replace(attacked.result, images=images))


def _outside() -> Attacked:
    attacked = run("sa-uca", Setup())
    images = attacked.result.images.clone()
    images[0, 0, 0, 0] = attacked.case.images[0, 0, 0, 0] + 0.1 + 1e-4
    return with_images(attacked, images)


def _outside_the_box() -> Attacked:
    attacked = run("sa-uca", Setup(eps=0.0))
    images = attacked.result.images.clone()
    images[0, 0, 0, 0] = -1e-9
    return with_images(attacked, images)


def _returns_clean() -> Attacked:
    attacked = run("sa-oca", Setup(budget=20))
    return with_images(attacked, attacked.case.images)


def _chatty() -> Attacked:
    case = Setup().case()
    return run_own(KeepLabel(UCA()), Square(), Setup(), Chatty(case.module(), num_classes=3))


TWINS: list[tuple[Callable[[Attacked], None], Callable[[], Attacked]]] = [
    (stays_inside, _outside),
    (stays_inside, _outside_the_box),
    (keeps_labels_one_by_one, lambda: run_own(Forgetful(UCA()), PGD(), Setup(eps=0.4, budget=20))),
    (is_no_worse, lambda: tampered(run("sa-oca", Setup()), loss_after=pl.col("loss_before") + 1e-9)),
    (is_no_worse, lambda: tampered(run("sa-oca", Setup()), loss_after=pl.col("loss_after") - 1e-9)),
    (counts_what_the_model_saw, _chatty),
    (counts_what_the_model_saw, lambda: tampered(run("adaptive", Setup()), gradients=pl.col("gradients") - 1)),
    (respects_the_budget, lambda: dataclasses.replace(run("sa-oca", Setup()), setup=Setup(budget=11))),
    (returns_the_best_point, _returns_clean),
    (never_asks_the_finished, lambda: run_own(KeepLabel(OCA(tol=0.4)), Restless(), Setup(n=6))),
    (tells_the_truth, lambda: tampered(run("sa-oca", Setup()), confidence_after=pl.col("confidence_before"))),
    (tells_the_truth, lambda: tampered(run("sa-oca", Setup()), linf=pl.col("linf") / 2)),
]


@pytest.mark.parametrize(("check", "twin"), TWINS, ids=lambda part: getattr(part, "__name__", "twin"))
def test_broken_twin_fails(check: Callable[[Attacked], None], twin: Callable[[], Attacked]) -> None:
    broken = twin()
    with pytest.raises(AssertionError):
        check(broken)


def test_every_property_has_a_twin() -> None:
    assert {check.__name__ for check, _ in TWINS} == set(PROPERTIES)


# --- the same result, however the data are cut ---


def assert_same(first: AttackResult, second: AttackResult, order: Tensor) -> None:
    """`second` was run on the data in `order`; bit for bit the same images, scores and table rows."""
    assert torch.equal(first.images[order], second.images)
    assert torch.equal(first.scores[order], second.scores)
    expected = first.table.select(KEYED)[order.tolist()]
    assert expected.equals(second.table.select(KEYED))


def cut_differently(attack_: Callable[[toys.Case, int], AttackResult], setup: Setup) -> None:
    """Whole, again, permuted in batches of 2, and split into calls of one: always the same."""
    case = setup.case()
    whole = attack_(case, 256)
    everyone = torch.arange(setup.n)
    assert_same(whole, attack_(case, 256), everyone)
    order = torch.randperm(setup.n, generator=toys.generator(1))
    moved = dataclasses.replace(case, images=case.images[order], labels=case.labels[order], ids=case.ids[order])
    assert_same(whole, attack_(moved, 2), order)
    last = slice(setup.n - 1, None)
    alone = dataclasses.replace(case, images=case.images[last], labels=case.labels[last], ids=case.ids[last])
    assert_same(whole, attack_(alone, 1), everyone[last])


def with_recipe(name: str, setup: Setup) -> Callable[[toys.Case, int], AttackResult]:
    def attack_(case: toys.Case, batch_size: int) -> AttackResult:
        target = case.target(batch_size=batch_size)
        rest = {"eps": setup.eps, "norm": setup.norm, "budget": setup.budget, "seed": setup.seed, "ids": case.ids}
        return poise.run_recipe(name, target, case.images, case.labels, **rest)

    return attack_


CUTS = st.builds(
    Setup,
    shape=st.sampled_from(SHAPES),
    classes=st.sampled_from([2, 10]),
    n=st.just(5),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.just(0.15),
    budget=st.sampled_from([6, 18]),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)


@every_recipe
@settings(max_examples=4)
@given(setup=CUTS)
def test_permuting_splitting_and_batching_change_nothing(name: str, setup: Setup) -> None:
    cut_differently(with_recipe(name, setup), setup)


@dataclass(frozen=True)
class OneDrawPerBatch:
    """Random search whose draws go by the row in the batch, as in the released codes."""

    access: ClassVar[Access] = Access.LABELS

    def run(self, problem: Problem) -> Steps:
        rng = Rng(problem.rng.seed, problem.everyone)
        yield Ask(problem.clean, problem.everyone)
        for step in range(problem.budget - 1):
            yield Ask(
                problem.constraint.sample(problem.clean, problem.box, problem.everyone, rng, step), problem.everyone
            )


class CentredTarget(toys.RecordingTarget):
    """Subtracts the batch's mean score, as batch norm in train mode does."""

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        answer = super().query(x, ids)
        return Outputs(answer.scores - answer.scores.mean(dim=0) * 0.5, answer.kind)


def test_draws_per_batch_are_noticed() -> None:
    def attack_(case: toys.Case, batch_size: int) -> AttackResult:
        target, linf = case.target(batch_size=batch_size), ball("linf", 0.15)
        search = OneDrawPerBatch()
        return poise.attack(target, Margin(stop=False), search, linf, case.images, case.labels, case.ids, budget=6)

    with pytest.raises(AssertionError):
        cut_differently(attack_, Setup(n=5))


def test_a_target_that_mixes_rows_is_noticed() -> None:
    def attack_(case: toys.Case, batch_size: int) -> AttackResult:
        target = CentredTarget(case.module(), num_classes=3, batch_size=batch_size)
        search, linf = Square(), ball("linf", 0.15)
        return poise.attack(target, KeepLabel(OCA()), search, linf, case.images, case.labels, case.ids, budget=6)

    with pytest.raises(AssertionError):
        cut_differently(attack_, Setup(n=5))


RANDOM = [name for name, one in RECIPES.items() if not isinstance(one.search(Setting(ball("linf", 0.1))), AdaptivePGD)]


@pytest.mark.parametrize("name", [name for name in RANDOM if name != "fgsm"])
def test_another_seed_gives_other_points(name: str) -> None:
    setup = Setup(n=4, budget=4, eps=0.05)
    case = setup.case()
    first, second = (with_recipe(name, dataclasses.replace(setup, seed=seed))(case, 256).images for seed in (1, 2))
    assert not torch.equal(first, second)


# --- edge cases ---


@every_recipe
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radius_zero_returns_the_images_themselves(name: str, norm: str, dtype: torch.dtype) -> None:
    attacked = run(name, Setup(eps=0.0, norm=norm, dtype=dtype, shape=(3, 5, 4)))
    assert torch.equal(attacked.result.images, attacked.case.images)


@every_recipe
@pytest.mark.parametrize("classes", [2, 10])
def test_constant_model_moves_nothing(name: str, classes: int) -> None:
    target = poise.ModuleTarget(toys.Constant(classes), num_classes=classes)
    images = torch.rand(3, 1, 4, 4, generator=toys.generator(0))
    result = poise.run_recipe(name, target, images, torch.tensor([0, 1, 1]), eps=0.1, budget=10)
    assert torch.equal(result.images, images)
    assert result.table["prediction_after"].to_list() == [0, 0, 0]
    assert result.table["confidence_after"].to_list() == pytest.approx([1 / classes] * 3)


@dataclass(frozen=True)
class Finished:
    """A goal that every sample has reached before the attack begins."""

    access: ClassVar[Access] = Access.LABELS

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _Finished(k=clean.labels, over=downwards(clean))


class _Finished(Bound):
    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return outputs.logits.sum(dim=1)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return torch.ones_like(ids, dtype=torch.bool)


@every_recipe
def test_a_batch_that_is_finished_costs_one_query_each(name: str) -> None:
    search = RECIPES[name].search(Setting(ball("linf", 0.1)))
    attacked = run_own(Finished(), search, Setup())
    assert attacked.passes["forward"] == 3
    assert attacked.result.table["queries"].to_list() == [1, 1, 1]
    assert attacked.result.table["stop"].to_list() == ["success"] * 3
    assert torch.equal(attacked.result.images, attacked.case.images)


@every_recipe
@pytest.mark.parametrize("n", [0, 1])
def test_no_image_and_one_image(name: str, n: int) -> None:
    attacked = run(name, Setup(n=n, classes=10))
    assert attacked.result.table.height == n
    assert attacked.result.images.shape == (n, 1, 4, 4)
    assert attacked.result.scores.shape == attacked.result.scores_before.shape == (n, 10)


@every_recipe
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (1, 2, 2), (1, 6, 1)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_tiny_and_narrow_images(name: str, shape: tuple[int, int, int], norm: str) -> None:
    attacked = run(name, Setup(shape=shape, norm=norm, budget=15))
    for check in PROPERTIES.values():
        check(attacked)


# --- what is the caller's stays as it was ---


def half_trained() -> nn.Module:
    """A CNN in train mode but for its batch norm, one parameter frozen, weights in a known state."""
    module = toys.SmallCNN().train()
    module.body[1].eval()
    module.head.bias.requires_grad_(False)
    return module


def state_of(module: nn.Module) -> tuple:
    """All of a module that an attack could leave changed."""
    modes = [part.training for part in module.modules()]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    wants = [(value.requires_grad, value.grad is None) for value in module.parameters()]
    return modes, hooks, wants, [value.tolist() for value in module.state_dict().values()]


def leaves_no_trace(attack_: Callable[[poise.ModuleTarget, Tensor, Tensor, Tensor], object]) -> None:
    module = half_trained()
    target = poise.ModuleTarget(module, num_classes=4)
    images = torch.rand(4, 1, 8, 8, generator=toys.generator(5))
    labels, ids = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 3, 2, 1])
    copies, versions = [x.detach().clone() for x in (images, labels, ids)], [x._version for x in (images, labels, ids)]
    before, gradients_on = state_of(module), torch.is_grad_enabled()
    try:
        with toys.untouched_generators():
            attack_(target, images, labels, ids)
    finally:
        assert state_of(module) == before
        assert torch.is_grad_enabled() == gradients_on
        assert all(torch.equal(x.detach(), copy) for x, copy in zip((images, labels, ids), copies, strict=True))
        assert [x._version for x in (images, labels, ids)] == versions
        assert not images.requires_grad


@every_recipe
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_leaves_no_trace(name: str, grad_mode: Callable[[], torch.set_grad_enabled]) -> None:
    with grad_mode():
        leaves_no_trace(
            lambda target, x, y, ids: poise.run_recipe(name, target, x, y, eps=0.1, budget=6, ids=ids, seed=3)
        )


def test_images_that_require_gradients_are_welcome() -> None:
    target = poise.ModuleTarget(half_trained(), num_classes=4)
    images = torch.rand(2, 1, 8, 8, generator=toys.generator(5)).requires_grad_()
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        result = poise.run_recipe("adaptive", target, images, torch.tensor([0, 1]), eps=0.1, budget=4)
    finally:
        torch.set_warn_always(always)
    assert images.requires_grad
    assert images.grad is None
    assert not result.images.requires_grad


class Interrupted(Exception):
    """Stands for a user's Ctrl-C or a model that breaks down in the middle."""


@every_recipe
def test_leaves_no_trace_when_interrupted(name: str) -> None:
    def stop(progress: poise.searches.driver.Progress) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        leaves_no_trace(
            lambda target, x, y, ids: poise.run_recipe(
                name, target, x, y, eps=0.1, budget=6, ids=ids, watch=poise.Watch(on_progress=stop)
            )
        )


def _draws(target, x, y, ids) -> None:
    torch.rand(1)


def _trains(target, x, y, ids) -> None:
    target.module.eval()


def _counts_batches(target, x, y, ids) -> None:
    target.module.train()(x.detach())
    target.module.body[1].eval()


def _pulls_parameters(target, x, y, ids) -> None:
    target.module(x.detach()).sum().backward()


def _writes(target, x, y, ids) -> None:
    x.detach().mul_(0.5)


@pytest.mark.parametrize("twin", [_draws, _trains, _counts_batches, _pulls_parameters, _writes])
def test_traces_are_noticed(twin: Callable) -> None:
    with torch.random.fork_rng(), pytest.raises(AssertionError):
        leaves_no_trace(twin)


@every_recipe
def test_results_and_images_share_no_memory(name: str) -> None:
    attacked = run(name, Setup(eps=0.0))
    attacked.result.images.fill_(0.5)
    assert torch.equal(attacked.case.images, Setup(eps=0.0).case().images)


# --- on a real network, where another batch shape may change the last bits ---


@every_recipe
def test_label_survives_prediction_one_by_one_on_a_cnn(name: str) -> None:
    target = poise.ModuleTarget(toys.SmallCNN(classes=3), num_classes=3)
    images = torch.rand(24, 1, 8, 8, generator=toys.generator(2))
    labels = torch.arange(24) % 3
    result = poise.run_recipe(name, target, images, labels, eps=0.3, budget=40)
    alone = torch.cat([target.query(x[None], torch.zeros(1, dtype=torch.long)).scores for x in result.images])
    torch.testing.assert_close(alone, result.scores, rtol=1e-4, atol=1e-5)
    assert bool((result.table["loss_after"] < result.table["loss_before"]).any())
    if RECIPES[name].keeps_label:
        assert alone.argmax(dim=1).tolist() == result.table["prediction_before"].to_list()


def test_without_the_margin_a_label_may_sit_on_a_tie() -> None:
    """Why the margin is there: a goal of exactly zero gap is reached, and no margin would be left."""
    case = toys.binary_case(2, margin=1.0)
    strict = poise.attack(
        case.target(), KeepLabel(UCA(tol=0)), PGD(20, 0.01), ball("linf", 0.3), case.images, case.labels
    )
    gap = [2 * confidence - 1 for confidence in strict.table["confidence_after"]]
    assert min(gap) > 1e-4


# --- what the spec says of single recipes ---


def table_of(name: str, case: toys.Case, **settings_: object) -> pl.DataFrame:
    arguments = {"eps": 0.1, "budget": 60, "ids": case.ids} | settings_
    return poise.run_recipe(name, case.target(), case.images, case.labels, **arguments).table


OVER = [name for name in RECIPES if name.endswith("-oca")]
UNDER = [name for name in RECIPES if name in ("adaptive", "confsmooth") or name.endswith(("-uca", "-confsmooth"))]
UNDER = [name for name in UNDER if "mma" not in name]


@pytest.mark.parametrize("name", OVER)
def test_overconfidence_never_lowers_the_confidence(name: str) -> None:
    """Spec 3, P3."""
    table = table_of(name, toys.linear_case(30, classes=5))
    assert (table["confidence_after"] >= table["confidence_before"]).all()
    assert (table["confidence_after"] > table["confidence_before"] + 0.05).any()


@pytest.mark.parametrize("name", UNDER)
def test_underconfidence_never_raises_it_for_two_classes(name: str) -> None:
    """Spec 3, P2: implied for K = 2 alone. ConfSmooth stops at .51, so samples that begin below it are left out."""
    table = table_of(name, toys.linear_case(30, classes=2)).filter(pl.col("confidence_before") > 0.52)
    assert table.height > 15
    assert (table["confidence_after"] <= table["confidence_before"]).all()
    assert (table["confidence_after"] < table["confidence_before"] - 0.05).any()


@pytest.mark.parametrize("name", [name for name in RECIPES if "mma" in name])
@pytest.mark.parametrize("classes", [2, 10])
def test_miscalibration_stays_under_the_bound_and_beats_underconfidence(name: str, classes: int) -> None:
    """Spec 3, P6 and P7: with accuracy q, |confidence - correct| averages to at most 1 - q / K; UCA reaches less."""
    case = toys.linear_case(60, classes=classes, scale=4.0)
    table = table_of(name, case)
    right = (table["prediction_before"] == table["label"]).cast(float)
    gap = (table["confidence_after"] - right).abs().mean()
    assert gap <= 1 - right.mean() / classes + 1e-12
    assert gap > (table["confidence_before"] - right).abs().mean() + 0.02
    under = table_of(name.replace("mma-confsmooth", "confsmooth").replace("mma", "uca"), case)
    assert gap > (under["confidence_after"] - right).abs().mean()


@every_recipe
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_larger_radius_is_no_worse_on_average(name: str, norm: str) -> None:
    """Spec 28.3, over 40 samples; a goal that stops when it is reached may stop early, never worse than it began."""
    case = toys.linear_case(40, classes=3, shape=(1, 5, 5))
    radii = (0.0, 0.02, 0.1) if norm == "linf" else (0.0, 0.1, 0.5)
    losses = [table_of(name, case, eps=eps, norm=norm)["loss_after"].mean() for eps in radii]
    assert losses[2] < losses[0]
    assert losses[1] <= losses[0]
    assert losses[2] <= losses[1] + 0.01


# --- names ---


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"recipe: must be one of the known names, got 'sa_mma' \(did you mean sa-mma"):
        poise.recipe("sa_mma")


def test_unknown_norm() -> None:
    with pytest.raises(InputError, match="norm must be one of l2, linf, got 'l1'"):
        run("sa-uca", Setup(norm="l1"))


@every_recipe
def test_recipe_describes_itself(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.name == name == name.lower()
    assert recipe.summary
    assert "\n" not in recipe.summary
    assert recipe.paper


def test_steps_replace_the_papers_number() -> None:
    for name in ("pgd", "adaptive", "confsmooth", "pgd-mma"):
        short = RECIPES[name].search(Setting(ball("linf", 0.1), steps=3))
        assert short.steps == 3


def test_papers_hyper_parameters() -> None:
    """Spec 4 to 7 at the papers' own eps, elsewhere the same share of eps; spec 3: no start, 1000 iterations."""
    evaluation, calibration, madry = (Setting(ball("linf", eps)) for eps in (0.03, 0.05, 8 / 255))
    for name in ("adaptive", "confsmooth"):
        adaptive = RECIPES[name].search(evaluation)
        assert adaptive == AdaptivePGD(steps=20, step=adaptive.step)
        assert adaptive.step == pytest.approx(5 / 255)
    pgd = RECIPES["pgd"].search(madry)
    assert pgd == PGD(steps=40, step=pgd.step, random_start=True, undo=False)
    assert pgd.step == pytest.approx(2 / 255)
    assert RECIPES["fgsm"].search(madry) == PGD(steps=1, step=None, undo=False)
    dropout = RECIPES["pgd-uca"].search(calibration)
    assert isinstance(dropout, DropoutPGD)
    assert (dropout.steps, dropout.keep_under, dropout.keep_over) == (10, 0.05, 0.8)
    assert dropout.step == pytest.approx(5 / 255)
    assert RECIPES["sa-mma"].search(Setting(ball("linf", 0.05), budget=100)) == Square(start="clean", horizon=1000)
    assert RECIPES["square"].search(madry) == Square(start="stripes")
    for constraint in (ball("l2", 0.6), ball("linf", 0.6)):
        assert RECIPES["adaptive"].search(Setting(constraint)).step == pytest.approx(0.6 * (5 / 255) / 0.03)
