"""ModuleTarget: what is declared is checked, answers and gradients are exact, and everything is put back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from poise import ModuleTarget
from poise.errors import InputError, TargetError
from poise.targets import DifferentiableTarget, Normalize, Target
from poise.types import Access, OutputKind, Outputs
from toys import (
    Constant,
    Fixed,
    InPlace,
    Noisy,
    SmallCNN,
    Softmax,
    generator,
    linear_case,
    random_states,
    untouched_generators,
)

CASE = linear_case(5)
IMAGES = torch.rand(5, 1, 8, 8, generator=generator(0))
IDS = torch.arange(5)


def cross_entropy(answer: Outputs) -> Tensor:
    return -answer.log_probabilities[:, 0]


def cnn(**declared: object) -> ModuleTarget:
    return ModuleTarget(SmallCNN(), num_classes=4, **declared)


# --- answers ---


def test_answers_are_the_modules_in_eval_mode() -> None:
    module = SmallCNN().train()
    answer = ModuleTarget(module, num_classes=4).query(IMAGES, IDS)
    torch.testing.assert_close(answer.scores, module.eval()(IMAGES).detach())
    assert answer.kind is OutputKind.LOGITS
    assert not answer.scores.requires_grad


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_of_the_given_size_and_no_bit_of_difference(batch_size: int) -> None:
    sizes: list[int] = []
    module = CASE.module()
    module.register_forward_hook(lambda part, given, answer: sizes.append(len(given[0])))
    target = ModuleTarget(module, num_classes=3, batch_size=batch_size)
    assert torch.equal(target.query(CASE.images, IDS).scores, CASE.module()(CASE.images))
    assert max(sizes) <= batch_size
    assert sum(sizes) == 5
    plain, gradient = ModuleTarget(CASE.module(), num_classes=3).gradient(CASE.images, IDS, cross_entropy)
    split, in_parts = target.gradient(CASE.images, IDS, cross_entropy)
    assert torch.equal(plain.scores, split.scores)
    assert torch.equal(gradient, in_parts)


def test_normalisation_is_inside() -> None:
    mean, std = [0.2, 0.5, 0.4], [0.1, 0.3, 2.0]
    module = SmallCNN(channels=3)
    images = torch.rand(4, 3, 8, 8, generator=generator(1))
    target = ModuleTarget(module, num_classes=4, mean=mean, std=std)
    by_hand = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    expected = module.eval()(by_hand).detach()
    torch.testing.assert_close(target.query(images, IDS[:4]).scores, expected)
    torch.testing.assert_close(target.module.eval()(images).detach(), expected)
    assert target.bounds == (0.0, 1.0)


def test_normalize_checks_its_channels() -> None:
    with pytest.raises(InputError, match="Normalize: images must have 3 channels, got 1"):
        Normalize([0.0] * 3, [1.0] * 3)(IMAGES)
    assert torch.equal(Normalize([0.5], [2.0])(torch.ones(1, 3, 1, 1)), torch.full((1, 3, 1, 1), 0.25))
    assert Normalize([0.5], [2.0])(torch.ones(1, 3, 1, 1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("images", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
def test_types_of_images_and_weights_may_differ(images: torch.dtype, weights: torch.dtype) -> None:
    target = ModuleTarget(CASE.module().to(weights), num_classes=3)
    assert target.dtype == weights
    x = CASE.images.to(images)
    answer, gradient = target.gradient(x, IDS, cross_entropy)
    assert gradient.dtype == images
    assert answer.scores.dtype == target.query(x, IDS).scores.dtype == weights


def test_gradient_is_that_of_each_rows_own_loss() -> None:
    """d -log p_0 / dx = sum_j (p_j - 1{j = 0}) w_j, by hand."""
    answer, gradient = CASE.target().gradient(CASE.images, IDS, cross_entropy)
    p = CASE.module()(CASE.images).detach().softmax(dim=1)
    p[:, 0] -= 1
    expected = torch.einsum("nk,kchw->nchw", p, CASE.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert not gradient.requires_grad
    assert not answer.scores.requires_grad


def test_a_constant_model_has_a_gradient_of_zero() -> None:
    _, gradient = ModuleTarget(Constant(3), num_classes=3).gradient(IMAGES, IDS, cross_entropy)
    assert torch.equal(gradient, torch.zeros_like(IMAGES))


def test_a_loss_without_gradient_gives_zero() -> None:
    _, gradient = cnn().gradient(IMAGES, IDS, lambda answer: answer.labels.double())
    assert torch.equal(gradient, torch.zeros_like(IMAGES))


def test_no_rows() -> None:
    target = cnn()
    assert target.query(IMAGES[:0], IDS[:0]).scores.shape == (0, 4)
    answer, gradient = target.gradient(IMAGES[:0], IDS[:0], cross_entropy)
    assert answer.scores.shape == (0, 4)
    assert gradient.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_works_in_every_grad_mode(mode: Callable[[], object]) -> None:
    expected = cnn().query(IMAGES, IDS).scores
    with mode():
        scores = cnn().query(IMAGES, IDS).scores
        if mode is not torch.inference_mode:  # autograd is off for good in there, torch's own rule
            _, gradient = cnn().gradient(IMAGES, IDS, cross_entropy)
            assert gradient.abs().sum() > 0
    assert torch.equal(scores.clone(), expected)


def test_protocols() -> None:
    assert isinstance(cnn(), Target)
    assert isinstance(cnn(), DifferentiableTarget)


# --- what is declared is checked ---


@pytest.mark.parametrize("rows", [1, 5])
def test_probabilities_declared_as_logits(rows: int) -> None:
    target = ModuleTarget(Softmax(SmallCNN()), num_classes=4)
    for ask in (target.query, lambda x, ids: target.gradient(x, ids, cross_entropy)):
        with pytest.raises(TargetError, match=r"declared to return logits, but its rows are probabilities"):
            ask(IMAGES[:rows], IDS[:rows])


def test_logits_declared_as_probabilities() -> None:
    target = cnn(outputs="probabilities")
    for ask in (target.query, lambda x, ids: target.gradient(x, ids, cross_entropy)):
        with pytest.raises(TargetError, match=r"declared to return probabilities, but its rows are not"):
            ask(IMAGES, IDS)


def test_an_empty_batch_does_not_switch_the_check_off() -> None:
    target = ModuleTarget(Softmax(SmallCNN()), num_classes=4)
    target.query(IMAGES[:0], IDS[:0])
    with pytest.raises(TargetError, match="rows are probabilities"):
        target.query(IMAGES, IDS)


@pytest.mark.parametrize("classes", [3, 5])
def test_wrong_number_of_classes(classes: int) -> None:
    with pytest.raises(TargetError, match=rf"must answer \(5, {classes}\) scores for 5 images, got \(5, 4\)"):
        ModuleTarget(SmallCNN(), num_classes=classes).query(IMAGES, IDS)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: torch.zeros(len(x), 3, 1), r"must answer \(5, 3\) scores for 5 images, got \(5, 3, 1\)"),
        (lambda x: torch.zeros(len(x)), r"must answer \(5, 3\) scores for 5 images, got \(5,\)"),
        (lambda x: torch.zeros(1, 3), r"must answer \(5, 3\) scores for 5 images, got \(1, 3\)"),
        (lambda x: torch.full((len(x), 3), float("nan")), "scores must be finite, got 15 NaN or infinite values"),
        (lambda x: torch.tensor([[0.0, 1.0, float("inf")]]).expand(len(x), 3), "must be finite, got 5 NaN"),
        (lambda x: {"logits": torch.zeros(len(x), 3)}, "must return a tensor of scores, got dict"),
        (lambda x: (torch.zeros(len(x), 3), None), "must return a tensor of scores, got tuple"),
    ],
)
def test_answers_that_make_no_sense(answer: Callable[[Tensor], object], message: str) -> None:
    target = ModuleTarget(Fixed(answer), num_classes=3)
    for ask in (target.query, lambda x, ids: target.gradient(x, ids, cross_entropy)):
        with pytest.raises(TargetError, match=message) as caught:
            ask(IMAGES, IDS)
        assert "\n" not in str(caught.value)


def test_nan_is_noticed_when_it_comes_late() -> None:
    """After 0.5 the model divides by zero; the first answers were fine."""
    target = ModuleTarget(Fixed(lambda x: x.flatten(1)[:, :3] / (x.amax() < 0.5)), num_classes=3)
    target.query(IMAGES * 0.4, IDS)
    with pytest.raises(TargetError, match="scores must be finite"):
        target.query(IMAGES, IDS)


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), None])
def test_an_in_place_first_layer_changes_nothing(first: nn.Module | None) -> None:
    inner = CASE.module()
    writing = ModuleTarget(InPlace(inner) if first is None else nn.Sequential(first, inner), num_classes=3)
    plain = ModuleTarget(Fixed(lambda x: inner(x * 0.5)) if first is None else inner, num_classes=3)
    plain.module.to(torch.float64)
    x = CASE.images.clone()
    assert torch.equal(writing.query(x, IDS).scores, inner(x * (0.5 if first is None else 1)).detach())
    _, gradient = writing.gradient(x, IDS, cross_entropy)
    _, expected = CASE.target().gradient(x * (0.5 if first is None else 1), IDS, cross_entropy)
    assert torch.equal(gradient, expected * (0.5 if first is None else 1))
    assert torch.equal(x, CASE.images)


def seen(module: nn.Module) -> tuple[list[bool], Callable[[Tensor], None]]:
    """Whether each call of the module was given the very memory of the points announced before it."""
    own: list[bool] = []
    points: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, given: own.append(given[0].data_ptr() == points[-1].data_ptr()))
    return own, points.append


def test_a_session_lends_its_callers_points_after_a_first_call_on_a_copy() -> None:
    module = CASE.module()
    own, ask = seen(module)
    target = ModuleTarget(module, num_classes=3)
    for _ in range(2):  # what was found out ends with the session
        with target.session():
            for _ in range(3):
                ask(CASE.images)
                target.query(CASE.images, IDS)
                target.gradient(CASE.images, IDS, cross_entropy)
    assert own == [False, False, True, True, True, True] * 2
    target.query(CASE.images.float(), IDS)  # of another type, and outside of any session
    assert own[-1] is False


def without_storage(_: Tensor) -> None:
    raise NotImplementedError("Cannot access storage")


@pytest.mark.parametrize("lacking", ["counter", "storage"])
def test_where_torch_cannot_count_views_nothing_is_lent(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter is a private function of torch, which a later version may lack; some tensors have no storage."""
    if lacking == "counter":
        monkeypatch.delattr("torch._C._storage_Use_Count")
    else:
        monkeypatch.setattr(Tensor, "untyped_storage", without_storage)
    module = CASE.module()
    own, ask = seen(module)
    target = ModuleTarget(module, num_classes=3)
    with target.session():
        for _ in range(3):
            ask(CASE.images)
            answer = target.query(CASE.images, IDS)
    assert own == [False] * 3
    assert torch.equal(answer.scores, module(CASE.images).detach())


class Keeps(nn.Module):
    """Does something to what it is given, and answers as the linear case."""

    def __init__(self, do: Callable[[Tensor, list], None]) -> None:
        super().__init__()
        self.inner, self.do, self.kept = CASE.module(), do, []

    def forward(self, x: Tensor) -> Tensor:
        self.do(x, self.kept)
        return self.inner(x)


@pytest.mark.parametrize(
    "do",
    [
        lambda x, kept: kept.append(x),
        lambda x, kept: kept.append(x.flatten(1)),
        lambda x, kept: x.clamp_(0, 1),  # which changes no value
        lambda x, kept: x.data.mul_(0.5),  # of which torch takes no note
        lambda x, kept: x.numpy().__imul__(0.5),
    ],
)
def test_a_model_that_keeps_or_writes_what_it_is_given_gets_copies(do: Callable[[Tensor, list], None]) -> None:
    module = Keeps(do)
    own, ask = seen(module)
    target, points = ModuleTarget(module, num_classes=3), CASE.images.clone()
    with target.session():
        for _ in range(3):
            ask(points)
            target.query(points, IDS)
    assert own == [False] * 3
    assert torch.equal(points, CASE.images)


def test_a_model_that_answers_with_its_input_gets_copies() -> None:
    target, points = ModuleTarget(nn.Flatten(), num_classes=64), IMAGES.clone()
    with target.session():
        answers = [target.query(points, IDS).scores for _ in range(3)]
        points.zero_()
    assert all(torch.equal(answer, IMAGES.flatten(1)) for answer in answers)


def test_a_model_that_writes_in_some_calls_alone_is_stopped() -> None:
    calls = Keeps(lambda x, kept: x.mul_(0.5) if len(kept) == 1 else kept.append(0))
    target = ModuleTarget(calls, num_classes=3)
    with target.session():
        target.query(CASE.images.clone(), IDS)
        with pytest.raises(TargetError, match="must do so in all calls or in none"):
            target.query(CASE.images.clone(), IDS)


def test_hidden_gradients() -> None:
    target = cnn(access=Access.SCORES)
    with pytest.raises(TargetError, match="gradients need access 'gradients', the target declares 'scores'"):
        target.gradient(IMAGES, IDS, cross_entropy)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be \(low, high\) with low < high, got \(1.0, 0.0\)"),
        ({"outputs": "softmax"}, "outputs must be 'logits' or 'probabilities', got 'softmax'"),
        ({"mean": [0.5]}, r"mean and std must be given together, got mean=\[0.5\], std=None"),
        ({"mean": [0.5], "std": [0.0]}, r"std positive, got mean=\[0.5\], std=\[0.0\]"),
        ({"mean": [0.5], "std": [1.0, 1.0]}, r"one value per channel, std positive, got"),
    ],
)
def test_refusals(declared: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModuleTarget(SmallCNN(), **{"num_classes": 4} | declared)


# --- everything is put back ---


class Broken(nn.Module):
    """Draws a random number, then raises."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = SmallCNN()

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3)
        raise ZeroDivisionError


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


@pytest.mark.parametrize("module", [SmallCNN(), Noisy(SmallCNN()), Broken()], ids=["plain", "random", "broken"])
@pytest.mark.parametrize("ask", ["query", "gradient"])
def test_modes_states_and_generators_are_put_back(module: nn.Module, ask: str) -> None:
    module.train()
    next(part for part in module.modules() if isinstance(part, nn.BatchNorm2d)).eval()
    target = ModuleTarget(module, num_classes=4)
    before, state = modes(module), {name: value.clone() for name, value in module.state_dict().items()}
    arguments = (IMAGES, IDS) if ask == "query" else (IMAGES, IDS, cross_entropy)
    with untouched_generators():
        if isinstance(module, Broken):
            with pytest.raises(ZeroDivisionError):
                getattr(target, ask)(*arguments)
        else:
            getattr(target, ask)(*arguments)
    assert modes(module) == before
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in module.parameters())


def test_session_nests_and_ends_with_the_outermost() -> None:
    module = SmallCNN().train()
    target = ModuleTarget(module, num_classes=4)
    with target.session():
        assert not any(modes(module))
        with target.session():
            target.query(IMAGES, IDS)
        assert not any(modes(module))
    assert all(modes(module))


def test_session_is_put_back_after_an_exception() -> None:
    module = SmallCNN().train()
    before = random_states()
    target = ModuleTarget(module, num_classes=4)

    def interrupted() -> None:
        with target.session(7):
            torch.rand(5)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert all(modes(module))
    assert random_states() == before


def test_a_seeded_session_repeats_a_random_model() -> None:
    target = ModuleTarget(Noisy(SmallCNN()), num_classes=4)

    def twice(seed: int) -> tuple[Tensor, Tensor]:
        with target.session(seed):
            return target.query(IMAGES, IDS).scores, target.query(IMAGES, IDS).scores

    first, second = twice(3)
    assert not torch.equal(first, second)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(twice(3)[0], first)
    assert not torch.equal(twice(4)[0], first)
