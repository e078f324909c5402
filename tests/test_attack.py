"""attack(): every bad input is refused in one line before the first query; what is allowed works."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import poise
from poise.constraints import L2, Linf
from poise.errors import AccessError, InputError, PoiseError, TargetError
from poise.objectives import OCA, UCA, CrossEntropy, KeepLabel, Margin, Misclassify
from poise.searches import PGD, Square
from poise.types import Access, OutputKind, Outputs
from toys import Fixed, InPlace, Noisy, RecordingTarget, Rescaled, Scripted, SmallCNN, Softmax, generator, linear_case

CASE = linear_case(4, dtype=torch.float32)
IMAGES, LABELS = CASE.images, CASE.labels


class Silent(RecordingTarget):
    """Fails the test if anything is asked."""

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        raise AssertionError("a query was spent on bad input")

    gradient = query


def refused(error: type[PoiseError], message: str, **changes: object) -> None:
    arguments = {
        "target": Silent(CASE.module(), num_classes=3),
        "objective": UCA(),
        "search": Square(),
        "constraint": Linf(0.1),
        "images": IMAGES,
        "labels": LABELS,
    }
    with pytest.raises(error, match=message) as caught:
        poise.attack(**arguments | changes)
    assert "\n" not in str(caught.value)


def with_value(value: float) -> Tensor:
    images = IMAGES.clone()
    images[1, 0, 2, 2] = value
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES[0]}, r"attack: images must be \(n, C, H, W\), got shape \(1, 4, 4\)"),
        ({"images": IMAGES.flatten(1)}, r"images must be \(n, C, H, W\), got shape \(4, 16\)"),
        ({"images": (IMAGES * 255).byte()}, r"must be float32 or float64, got torch.uint8 \(divide uint8 images by"),
        ({"images": IMAGES.half()}, "must be float32 or float64, got torch.float16"),
        ({"images": IMAGES * 255}, r"must lie in the target's bounds \[0, 1\], got values in .*normalisation belongs"),
        ({"images": (IMAGES - 0.5) / 0.25}, r"must lie in the target's bounds \[0, 1\], got values in \[-"),
        ({"images": with_value(float("nan"))}, r"must lie in the target's bounds \[0, 1\], got values in \[nan"),
        ({"images": with_value(float("inf"))}, r"must lie in the target's bounds \[0, 1\], got values in .*inf"),
        ({"images": with_value(1.001)}, r"got values in \[.*, 1.001\]"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, r"labels must be in 0..2, got values in 0..3"),
        ({"labels": torch.tensor([0, 1, 2, -1])}, r"labels must be in 0..2, got values in -1..2"),
        ({"labels": LABELS[:3]}, r"labels must be \(4,\) integers, got \(3,\) torch.int64"),
        ({"labels": LABELS[:, None]}, r"labels must be \(4,\) integers, got \(4, 1\)"),
        ({"labels": LABELS.double()}, r"labels must be \(4,\) integers, got \(4,\) torch.float64"),
        ({"labels": LABELS > 0}, r"labels must be \(4,\) integers, got \(4,\) torch.bool"),
        ({"ids": torch.arange(3)}, r"ids must be \(4,\) integers, got \(3,\)"),
        ({"ids": torch.arange(4.0)}, r"ids must be \(4,\) integers, got \(4,\) torch.float32"),
        ({"budget": 0}, "budget must be at least 1 query per sample, got 0"),
        ({"budget": -5}, "budget must be at least 1 query per sample, got -5"),
        ({"seed": 2**63}, r"seed must be in 0..2\^63 - 1, got 9223372036854775808"),
        ({"seed": -1}, r"seed must be in 0..2\^63 - 1, got -1"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    refused(InputError, message, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": [0, 1, 2, 0]},
        {"labels": np.array([0, 1, 2, 0])},
        {"images": IMAGES.numpy()},
        {"ids": [1, 2, 3, 4]},
    ],
)
def test_what_is_no_tensor_is_refused_and_called_by_its_name(changes: dict) -> None:
    (name,) = changes
    refused(InputError, rf"attack: {name} must be .*(list|ndarray)", **changes)


def test_eps_of_eight() -> None:
    with pytest.raises(InputError, match=r"Linf: eps must be in \[0, 1\], got 8 \(did you mean 8/255\?\)"):
        poise.run_recipe("sa-uca", CASE.target(), IMAGES, LABELS, eps=8)


class Labels(RecordingTarget):
    """Answers with labels alone."""

    def __init__(self, *arguments: object, **declared: object) -> None:
        super().__init__(*arguments, **declared)
        self.logits_kind, self.kind = self.kind, OutputKind.LABELS

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        self.kind = self.logits_kind
        answer = super().query(x, ids)
        self.kind = OutputKind.LABELS
        hot = torch.nn.functional.one_hot(answer.labels, self.num_classes).to(answer.scores.dtype)
        return Outputs(hot, OutputKind.LABELS)


class ScoresOnly:
    """A target without `gradient`, whatever it declares."""

    def __init__(self) -> None:
        inner = CASE.target()
        self.kind, self.bounds, self.num_classes, self.batch_size = inner.kind, inner.bounds, 3, 256
        self.device, self.query, self.session = inner.device, inner.query, inner.session
        self.access = Access.GRADIENTS


@pytest.mark.parametrize(
    ("target", "objective", "search", "message"),
    [
        (CASE.target(access=Access.SCORES), UCA(), PGD(), "UCA with PGD needs access 'gradients', .* gives 'scores'"),
        (CASE.target(access=Access.LABELS), UCA(), Square(), "UCA with Square needs access 'scores', .* 'labels'"),
        (Labels(CASE.module(), num_classes=3), Margin(), Square(), "Margin with Square needs access 'scores'"),
        (CASE.target(access=Access.LABELS), KeepLabel(Misclassify()), Square(), "needs access 'scores'"),
        (ScoresOnly(), CrossEntropy(), PGD(), "needs access 'gradients', the target gives 'scores'"),
    ],
)
def test_too_little_access(target: poise.Target, objective: object, search: object, message: str) -> None:
    with pytest.raises(AccessError, match=message) as caught:
        poise.attack(target, objective, search, Linf(0.1), IMAGES, LABELS)
    assert "\n" not in str(caught.value)
    assert not getattr(target, "log", [])


def test_labels_alone_are_enough_for_label_goals() -> None:
    target = Labels(CASE.module(), num_classes=3)
    result = poise.attack(target, Misclassify(), Square(start="stripes"), Linf(0.4), IMAGES, LABELS, budget=60)
    assert result.table["confidence_after"].to_list() == pytest.approx([1.0] * 4)
    assert (result.table["prediction_after"] != result.table["label"]).any()


@pytest.mark.parametrize("search", [Square(), PGD(steps=3)])
def test_a_wrong_declaration_stops_the_attack_every_time(search: object) -> None:
    """Softmax declared as logits: also the second run with the same target must refuse."""
    target = poise.ModuleTarget(Softmax(CASE.module()), num_classes=3)
    for _ in range(2):
        with pytest.raises(TargetError, match="declared to return logits, but its rows are probabilities"):
            poise.attack(target, KeepLabel(UCA()), search, Linf(0.1), IMAGES, LABELS, budget=5)


def test_nan_in_the_middle_of_an_attack_is_an_error() -> None:
    target = poise.ModuleTarget(Fixed(lambda x: x.flatten(1)[:, :3] / (x[:, 0, 0, 0] < 0.55)[:, None]), num_classes=3)
    images = torch.full((2, 1, 2, 2), 0.5)
    with pytest.raises(TargetError, match="scores must be finite"):
        poise.attack(target, Margin(), Scripted((0.1,)), Linf(0.2), images, torch.tensor([0, 0]))


# --- what is allowed ---


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int64])
def test_labels_of_any_integer_type(kind: torch.dtype) -> None:
    result = poise.attack(CASE.target(), UCA(), Square(), Linf(0.1), IMAGES, LABELS.to(kind), budget=3)
    assert result.table["label"].to_list() == LABELS.tolist()


@pytest.mark.parametrize("layout", ["channels last", "transposed", "expanded", "strided"])
@pytest.mark.parametrize("recipe", ["sa-mma", "square", "pgd", "adaptive", "pgd-oca"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_any_memory_layout_gives_the_same(layout: str, recipe: str, norm: str) -> None:
    case = linear_case(3, shape=(3, 4, 5), dtype=torch.float32)
    images = case.images[:1].repeat(3, 1, 1, 1) if layout == "expanded" else case.images
    views = {
        "channels last": lambda: images.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: images.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": lambda: images[:1].expand(3, -1, -1, -1),
        "strided": lambda: torch.stack([images, images], dim=4).flatten(3)[..., ::2],
    }
    view = views[layout]()
    assert torch.equal(view, images)
    assert layout == "channels last" or not view.is_contiguous()
    arguments = {"eps": 0.1, "norm": norm, "budget": 12}
    first = poise.run_recipe(recipe, case.target(), images, case.labels, **arguments)
    second = poise.run_recipe(recipe, case.target(), view, case.labels, **arguments)
    assert torch.equal(first.images, second.images)
    assert first.table["loss_after"].equals(second.table["loss_after"])


@pytest.mark.parametrize("recipe", ["sa-uca", "adaptive"])
def test_float64_images_and_a_float32_model(recipe: str) -> None:
    target = CASE.target()
    result = poise.run_recipe(recipe, target, IMAGES.double(), LABELS, eps=0.1, budget=10)
    assert result.images.dtype == torch.float64
    assert result.scores.dtype == torch.float32
    assert (result.table["loss_after"] < result.table["loss_before"]).all()
    assert torch.equal(target.query(result.images, CASE.ids).scores, result.scores)


@pytest.mark.parametrize("recipe", ["sa-oca", "pgd-oca", "adaptive", "square"])
def test_other_bounds(recipe: str) -> None:
    """Pixels in [-1, 1]: the same model and the same relative radius find the same as in [0, 1]."""
    case = linear_case(4, dtype=torch.float64)
    target = poise.ModuleTarget(Rescaled(case.module(), 0.5, 0.5), num_classes=3, bounds=(-1.0, 1.0))
    result = poise.run_recipe(recipe, target, case.images * 2 - 1, case.labels, eps=0.2, budget=30, ids=case.ids)
    assert bool((result.images.abs() <= 1).all())
    assert (result.images < 0).any()
    assert result.table["linf"].max() == pytest.approx(0.2, abs=1e-6)
    assert (result.table["loss_after"] < result.table["loss_before"]).any()


@pytest.mark.parametrize("search", [Square(), PGD(steps=5, step=0.1)])
@pytest.mark.parametrize("constraint", [Linf(0.3), L2(0.3)])
def test_grey_levels_up_to_255_are_attacked_or_refused(search: object, constraint: object) -> None:
    """float32 has steps of 1.5e-5 up there: rounding must not make every point look as if it left the ball."""
    images = 128 + 127 * IMAGES
    target = poise.ModuleTarget(Rescaled(CASE.module(), 1 / 127, -128 / 127), num_classes=3, bounds=(0.0, 255.0))
    try:
        result = poise.attack(target, OCA(tol=0), search, constraint, images, LABELS, budget=40)
    except InputError:
        return
    assert (result.table["loss_after"] < result.table["loss_before"]).all()


@pytest.mark.parametrize("search", [Square(), PGD(steps=5)])
def test_an_in_place_first_layer_is_attacked_like_any_other(search: object) -> None:
    plain = poise.ModuleTarget(Rescaled(CASE.module(), 0.5, 0.0), num_classes=3)
    writing = poise.ModuleTarget(InPlace(CASE.module()), num_classes=3)
    first, second = (
        poise.attack(target, KeepLabel(OCA()), search, Linf(0.1), IMAGES, LABELS, budget=10)
        for target in (plain, writing)
    )
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.scores, second.scores)


def test_a_random_model_gives_the_same_for_the_same_seed() -> None:
    """Whatever the global generator's state, which is neither read nor written."""
    target = poise.ModuleTarget(Noisy(SmallCNN()), num_classes=4)
    images, labels = torch.rand(3, 1, 8, 8, generator=generator(0)), torch.tensor([0, 1, 2])

    def attacked(state: int, seed: int) -> poise.AttackResult:
        with torch.random.fork_rng():
            torch.manual_seed(state)
            return poise.attack(target, Margin(), Square(), Linf(0.1), images, labels, budget=20, seed=seed)

    first = attacked(1, 5)
    assert torch.equal(first.images, attacked(2, 5).images)
    assert torch.equal(first.scores, attacked(2, 5).scores)
    assert not torch.equal(first.scores_before, attacked(1, 6).scores_before)


@pytest.mark.parametrize("recipe", ["sa-mma", "pgd-rca", "confsmooth", "square"])
def test_probabilities_and_logits_give_the_same_attack(recipe: str) -> None:
    case = linear_case(5, classes=4)
    by_logits = poise.ModuleTarget(case.module(), num_classes=4)
    by_probabilities = poise.ModuleTarget(Softmax(case.module()), num_classes=4, outputs="probabilities")
    first, second = (
        poise.run_recipe(recipe, target, case.images, case.labels, eps=0.1, budget=25, ids=case.ids)
        for target in (by_logits, by_probabilities)
    )
    torch.testing.assert_close(first.images, second.images, rtol=0, atol=1e-9)
    for column in ("confidence_after", "loss_after"):
        assert first.table[column].to_list() == pytest.approx(second.table[column].to_list(), abs=1e-9)
    assert first.table["queries"].equals(second.table["queries"])


def test_default_names_are_the_rows() -> None:
    first = poise.attack(CASE.target(), UCA(), Square(), Linf(0.1), IMAGES, LABELS, budget=9)
    second = poise.attack(CASE.target(), UCA(), Square(), Linf(0.1), IMAGES, LABELS, torch.arange(4), budget=9)
    assert first.table["id"].to_list() == [0, 1, 2, 3]
    assert torch.equal(first.images, second.images)


def test_a_pixel_a_rounding_step_outside_is_moved_inside() -> None:
    """Images decoded and normalised elsewhere are often at 1 + 1e-7."""
    result = poise.attack(CASE.target(), UCA(), Square(), Linf(0.0), with_value(1 + 2e-7), LABELS, budget=3)
    assert result.images.max() <= 1


def test_table_tells_how_it_was_made() -> None:
    def spec(**changes: object) -> str:
        arguments = {"objective": UCA(), "search": Square(), "constraint": Linf(0.1), "budget": 3} | changes
        result = poise.attack(CASE.target(), images=IMAGES, labels=LABELS, seed=4, **arguments)
        assert result.table["seed"].to_list() == [4] * 4
        assert (result.table["seconds"] > 0).all()
        (fingerprint,) = set(result.table["spec"])
        return fingerprint

    others = [
        spec(objective=UCA(tol=0.1)),
        spec(objective=KeepLabel(UCA())),
        spec(search=Square(p=0.3)),
        spec(constraint=Linf(0.2)),
        spec(constraint=L2(0.1)),
        spec(budget=4),
    ]
    assert spec() == spec()
    assert len({spec(), *others}) == 7


# --- progress and curve ---


def test_progress_numbers() -> None:
    told: list[poise.searches.driver.Progress] = []
    case = linear_case(5)
    poise.attack(
        case.target(batch_size=2),
        OCA(tol=0),
        Square(),
        Linf(0.1),
        case.images,
        case.labels,
        budget=4,
        watch=poise.Watch(on_progress=told.append),
    )
    assert [(p.first, p.batch, p.total) for p in told] == [(0, 2, 5)] * 4 + [(2, 2, 5)] * 4 + [(4, 1, 5)] * 4
    assert [p.step for p in told] == [1, 2, 3, 4] * 3
    assert [p.spent for p in told] == [1, 2, 3, 4] * 3
    assert [p.points for p in told] == [2] * 8 + [1] * 4
    assert {p.budget for p in told} == {4}


def test_watching_changes_nothing() -> None:
    plain = poise.attack(CASE.target(), UCA(), Square(), Linf(0.1), IMAGES, LABELS, budget=9)
    watch = poise.Watch(on_progress=lambda progress: None, checkpoints=(1, 5, 9))
    watched = poise.attack(CASE.target(), UCA(), Square(), Linf(0.1), IMAGES, LABELS, budget=9, watch=watch)
    assert torch.equal(plain.images, watched.images)
    assert plain.curve.height == 0
    assert watched.curve.height == 12


@pytest.mark.parametrize("recipe", ["sa-oca", "adaptive", "pgd", "sa-uca"])
def test_curve_is_the_best_so_far(recipe: str) -> None:
    """Against a shorter run: what a budget of q finds is what the curve shows after q queries."""
    case = linear_case(5)
    checkpoints = (1, 2, 5, 11, 30)
    arguments = {"eps": 0.1, "ids": case.ids, "seed": 3}
    whole = poise.run_recipe(
        recipe,
        case.target(batch_size=2),
        case.images,
        case.labels,
        budget=30,
        watch=poise.Watch(checkpoints=(30, 5, 2, 1, 11, 5)),
        **arguments,
    )
    assert whole.curve.schema == poise.table.CURVE
    assert whole.curve.height == 5 * 5
    for queries in checkpoints:
        part = whole.curve.filter(queries=queries)
        assert part["id"].to_list() == case.ids.tolist()
        short = poise.run_recipe(recipe, case.target(), case.images, case.labels, budget=queries, **arguments)
        assert part["confidence"].to_list() == short.table["confidence_after"].to_list()
        assert part["prediction"].to_list() == short.table["prediction_after"].to_list()


def test_checkpoints_beyond_the_budget_are_left_out() -> None:
    watch = poise.Watch(checkpoints=(2, 50))
    result = poise.attack(CASE.target(), UCA(), Square(), Linf(0.1), IMAGES, LABELS, budget=9, watch=watch)
    assert set(result.curve["queries"]) == {2}


def test_no_images_no_rows() -> None:
    watch = poise.Watch(checkpoints=(1, 2))
    result = poise.attack(CASE.target(), UCA(), Square(), Linf(0.1), IMAGES[:0], LABELS[:0], watch=watch)
    assert result.table.schema == poise.table.SCHEMA
    assert result.curve.schema == poise.table.CURVE
    assert result.table.height == result.curve.height == 0
    assert result.images.shape == (0, 1, 4, 4)


def test_stop_reasons() -> None:
    case = linear_case(3)
    by_steps = poise.attack(case.target(), OCA(tol=0), PGD(steps=3), Linf(0.1), case.images, case.labels, budget=100)
    assert set(by_steps.table["stop"]) == {"finished"}
    assert by_steps.table["queries_to_success"].is_null().all()
    broke = poise.attack(case.target(), OCA(tol=0), PGD(steps=9), Linf(0.1), case.images, case.labels, budget=4)
    assert set(broke.table["stop"]) == {"budget"}
    at_once = poise.attack(case.target(), OCA(tol=0.99), PGD(steps=9), Linf(0.1), case.images, case.labels)
    assert set(at_once.table["stop"]) == {"success"}
    assert set(at_once.table["queries_to_success"]) == {1}


CALLS: list[Callable[[], object]] = [lambda: poise.recipe("nope"), lambda: L2(-1)]


@pytest.mark.parametrize("call", CALLS)
def test_every_error_is_a_poise_error(call: Callable[[], object]) -> None:
    with pytest.raises(PoiseError):
        call()
