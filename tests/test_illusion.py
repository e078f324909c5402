"""Illusion of robustness: temperatures an attacker would choose, and a verdict that a temperature alone can cause."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

import poise
from poise import illusion
from poise.constraints import L2, Linf
from poise.defenses.posthoc.temperature import optimal_temperature as least_nll
from poise.errors import AccessError, InputError
from poise.illusion import Adversary, Illusion, calibrated_temperature, illusion_of_robustness, optimal_temperature
from poise.objectives import CrossEntropy
from poise.objectives.through_temperature import ThroughTemperature
from poise.recipebook import Setting, recipe
from poise.types import Access, Outputs
from toys import Fixed, linear_case, untouched_generators

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is missing")
BALL = Linf(0.1)


class Served(nn.Module):
    """softmax(z / T_d): what the owner of the model puts behind it."""

    def __init__(self, inner: nn.Module, temperature: float) -> None:
        super().__init__()
        self.inner, self.temperature = inner, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / self.temperature


@cache
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """The built-in network and 64 of its test images."""
    images, labels, _ = next(iter(poise.data.load("builtin:digits").batches(64)))
    return poise.models.load("builtin:digits").module, images, labels


def served(temperature: float) -> poise.ModuleTarget:
    return poise.ModuleTarget(Served(digits()[0], temperature), num_classes=10)


@cache
def of_digits(temperature: float) -> Illusion:
    _, images, labels = digits()
    return illusion_of_robustness(served(temperature), images, labels, BALL)


# --- cal ---


def answering(logits: Tensor) -> tuple[poise.ModuleTarget, Tensor]:
    """A target and images that it answers with the rows of logits (n, K)."""
    images = torch.linspace(0, 1, len(logits)).view(-1, 1, 1, 1)
    module = Fixed(lambda x: logits[(x.flatten() * (len(logits) - 1)).round().long()])
    return poise.ModuleTarget(module, num_classes=logits.shape[1]), images


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_cal_undoes_the_served_temperature(temperature: float) -> None:
    """Against scipy on the logarithm of T, and T_cal * T_d is the same for every T_d (P1, P4)."""
    case = linear_case(60, scale=8.0)
    target = poise.ModuleTarget(Served(case.module(), temperature), num_classes=3)
    z = Outputs(case.module()(case.images).detach()).logits

    def nll(log_t: float) -> float:
        return float(nn.functional.cross_entropy(z / math.exp(log_t), case.labels))

    expected = math.exp(minimize_scalar(nll, bounds=(-10, 10), method="bounded", options={"xatol": 1e-10}).x)
    found = calibrated_temperature(target, case.images, case.labels)
    assert found * temperature == pytest.approx(expected, rel=1e-5)
    assert nll(math.log(found * temperature)) <= nll(0.0)
    narrow, _ = least_nll(z / temperature, case.labels)  # the twin: a range made for models that hide nothing
    assert (narrow * temperature == pytest.approx(expected, rel=1e-5)) == (1 <= temperature <= 1e3)


def test_cal_where_every_image_is_right() -> None:
    """9 images with gap 1000 and one assumed error: p = 9/10 at T = 1000 / log 9; the runner-up is the error."""
    target, images = answering(torch.tensor([[1000.0, 0.0]] * 9))
    labels = torch.zeros(9, dtype=torch.long)
    assert calibrated_temperature(target, images, labels) == pytest.approx(1000 / math.log(9), rel=1e-6)
    uneven, images = answering(torch.tensor([[2000.0, 0.0]] * 8 + [[0.0, 1000.0]]))  # the last is the least certain
    gaps = np.array([2000.0] * 8 + [1000.0, -1000.0])
    expected = minimize_scalar(
        lambda t: np.logaddexp(0, -gaps / t).sum(), bounds=(100, 5000), method="bounded", options={"xatol": 1e-6}
    ).x
    labels = torch.tensor([0] * 8 + [1])
    assert calibrated_temperature(uneven, images, labels) == pytest.approx(expected, rel=1e-5)
    one, images = answering(torch.tensor([[7.0, 0.0]] * 2))
    assert math.isfinite(calibrated_temperature(one, images[:1], torch.tensor([0])))


# --- opt ---


def counting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The temperatures of all attacks that are run from now on."""
    real, seen = illusion.attack, []

    def counted(target, objective, *rest, **named):
        seen.append(objective.temperature)
        return real(target, objective, *rest, **named)

    monkeypatch.setattr(illusion, "attack", counted)
    return seen


def survivors(target: poise.Target, images: Tensor, labels: Tensor, temperature: float, steps: int = 5) -> float:
    """Accuracy after the short attack, assembled here."""
    search = recipe("pgd").search(Setting(BALL, steps=steps))
    goal = ThroughTemperature(CrossEntropy(stop=True), temperature)
    table = poise.attack(target, goal, search, BALL, images, labels, budget=steps + 2).table
    return float((table["prediction_after"] == table["label"]).mean())


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e6])
def test_opt_is_the_best_of_what_it_tries_and_tries_a_bounded_number(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, (_, images, labels) = served(temperature), digits()
    images, labels = images[:32], labels[:32]
    tried = counting(monkeypatch)
    with untouched_generators():
        found = optimal_temperature(target, images, labels, BALL)
    count = len(tried)
    assert count <= 25
    assert found in tried
    assert {1.0, *(10.0**power for power in range(-8, 9))} <= set(tried)
    accuracies = [survivors(target, images, labels, t) for t in (found, 1.0, 1 / temperature)]
    assert accuracies[0] == min(accuracies)
    assert found == optimal_temperature(target, images, labels, BALL), "the same call gave another temperature"


def test_opt_of_a_model_as_it_is_does_not_beat_the_plain_attack_by_luck() -> None:
    """Two classes: every T gives the same signs, so every T ties, and T = 1 is taken."""
    case = linear_case(12, classes=2, dtype=torch.float32)
    target = case.target()
    labels = target.query(case.images, torch.arange(12)).labels
    assert optimal_temperature(target, case.images, labels, Linf(0.01)) == 1.0


def test_opt_with_nothing_to_take_away(monkeypatch: pytest.MonkeyPatch) -> None:
    case, tried = linear_case(6, dtype=torch.float32), counting(monkeypatch)
    target = case.target()
    wrong = (target.query(case.images, torch.arange(6)).labels + 1) % 3
    assert optimal_temperature(target, case.images, wrong, BALL) == 1.0
    assert tried == []


# --- the whole ---


def test_a_tiny_temperature_is_an_illusion() -> None:
    """Served at 1e-3 the digits network resists plain PGD, and loses exactly what it loses at T = 1."""
    hidden, honest = of_digits(1e-3), of_digits(1.0)
    assert hidden.plain.accuracy > honest.plain.accuracy + 0.3
    assert hidden.found
    for adversary in (hidden.cal, hidden.opt):
        assert adversary.accuracy == pytest.approx(honest.opt.accuracy, abs=2 / 64)
        assert adversary.recovered == pytest.approx(1 - adversary.accuracy / hidden.plain.accuracy)
        assert adversary.p_value < 1e-6
    assert hidden.sentence.startswith("Robustness is an illusion of temperature: PGD leaves ")
    assert f"{hidden.plain.accuracy:.1%} of 64" in hidden.sentence
    assert f"{hidden.strongest.accuracy:.1%} when" in hidden.sentence
    assert "\n" not in hidden.sentence


@pytest.mark.parametrize("temperature", [1e3, 1e6])
def test_a_huge_temperature_misleads_and_is_undone(temperature: float) -> None:
    """There the cross-entropy is z_y minus the mean logit: another, weaker loss, not a flat one."""
    blurred, honest = of_digits(temperature), of_digits(1.0)
    assert blurred.plain.accuracy > honest.plain.accuracy
    assert blurred.opt.accuracy == pytest.approx(honest.opt.accuracy, abs=2 / 64)
    assert blurred.opt.recovered == pytest.approx(1 - blurred.opt.accuracy / blurred.plain.accuracy)
    assert blurred.cal.temperature * temperature == pytest.approx(honest.cal.temperature, rel=1e-4)


def test_the_model_as_it_is_has_no_illusion() -> None:
    honest = of_digits(1.0)
    assert not honest.found
    assert honest.sentence.startswith("No illusion of robustness found: PGD leaves ")
    assert 0 < honest.plain.accuracy < honest.clean_accuracy


def test_labels_and_clean_accuracy_do_not_see_a_temperature() -> None:
    """P1."""
    assert len({of_digits(t).clean_accuracy for t in (1e-3, 1.0, 1e3, 1e6)}) == 1
    confidences = [of_digits(t).clean_confidence for t in (1e-3, 1.0, 1e3, 1e6)]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] == pytest.approx(1, abs=1e-6)
    assert confidences[-1] == pytest.approx(0.1, abs=1e-5)


def test_a_shattered_gradient_is_no_illusion_of_temperature() -> None:
    """The negative twin: rounded logits have no gradient at all, and no temperature gives them one."""
    module, images, labels = digits()
    target = poise.ModuleTarget(Fixed(lambda x: (module(x) * 16).round() / 16), num_classes=10)
    found = illusion_of_robustness(target, images[:24], labels[:24], BALL, steps=3)
    assert found.plain.accuracy == found.cal.accuracy == found.opt.accuracy
    assert not found.found


def test_judged_on_the_served_model_with_a_sign_test_of_pairs() -> None:
    """Every figure again from attacks assembled here."""
    target, (_, images, labels) = served(1e-3), digits()
    images, labels = images[:30], labels[:30]
    given = illusion_of_robustness(target, images, labels, BALL, steps=6, seed=3)
    search = recipe("pgd").search(Setting(BALL, steps=6))
    right = {}
    for name in ("plain", "cal", "opt"):
        adversary = getattr(given, name)
        goal = ThroughTemperature(CrossEntropy(), adversary.temperature)
        result = poise.attack(target, goal, search, BALL, images, labels, budget=8, seed=3)
        answer = target.query(result.images, torch.arange(30))
        right[name] = (answer.labels == labels).numpy()
        assert adversary.accuracy == pytest.approx(right[name].mean())
        assert adversary.confidence == pytest.approx(float(answer.confidence.mean()))
        b, c = int((right["plain"] & ~right[name]).sum()), int((~right["plain"] & right[name]).sum())
        tail = sum(math.comb(b + c, k) for k in range(b, b + c + 1)) / 2 ** (b + c)
        assert adversary.p_value == pytest.approx(tail)
    assert given.plain.temperature == 1
    assert given.samples == 30


def test_validation_images_choose_the_temperatures() -> None:
    """The attacked images themselves, given as validation, change nothing; others change `cal`."""
    target, (_, images, labels) = served(1e-3), digits()
    there = images[:20], labels[:20]
    alone = illusion_of_robustness(target, *there, BALL, steps=3)
    assert illusion_of_robustness(target, *there, BALL, steps=3, validation=there) == alone
    other = illusion_of_robustness(target, *there, BALL, steps=3, validation=(images[20:], labels[20:]))
    assert other.cal.temperature != alone.cal.temperature
    assert other.plain == alone.plain


def test_in_the_euclidean_ball_and_with_small_batches() -> None:
    module, images, labels = digits()
    target = poise.ModuleTarget(Served(module, 1e-3), num_classes=10, batch_size=7)
    found = illusion_of_robustness(target, images[:20], labels[:20], L2(1.5), steps=8)
    assert found.found
    whole = illusion_of_robustness(served(1e-3), images[:20], labels[:20], L2(1.5), steps=8)
    assert found.cal.temperature == pytest.approx(whole.cal.temperature, rel=1e-5)
    assert found.opt.accuracy == whole.opt.accuracy


# --- the verdict ---


def verdict(plain: float, through: float, p_value: float) -> Illusion:
    honest = Adversary(1.0, plain, 0.9, 0.0, 1.0)
    other = Adversary(50.0, through, 0.9, 1 - through / plain if plain else None, p_value)
    return Illusion(100, 1.0, 0.9, honest, honest, other)


@pytest.mark.parametrize(
    ("plain", "through", "p_value", "found"),
    [
        (0.5, 0.4, 1e-3, True),
        (0.5, 0.4, 0.02, False),  # within noise
        (0.5, 0.46, 1e-9, False),  # real, but small
        (0.5, 0.45, 1e-9, False),  # the threshold must be exceeded
        (0.5, 0.6, 1e-9, False),
        (0.0, 0.0, 1.0, False),
    ],
)
def test_found_needs_a_drop_and_more_than_noise(plain: float, through: float, p_value: float, found: bool) -> None:
    by_opt = verdict(plain, through, p_value)
    by_cal = dataclasses.replace(by_opt, cal=by_opt.opt, opt=by_opt.cal)
    for one in (by_opt, by_cal):
        assert one.found is found
        assert one.sentence.startswith("Robustness is an illusion") is found


def test_the_sentence_names_the_stronger_adversary() -> None:
    assert verdict(0.5, 0.4, 1e-3).sentence == (
        "Robustness is an illusion of temperature: PGD leaves 50.0% of 100 images right when it follows the answers "
        "as served, 40.0% when it follows them through T = 50."
    )
    assert "50.0% when it follows them through T = 1." in verdict(0.5, 0.6, 1.0).sentence


def test_five_flips_are_no_evidence() -> None:
    """n = 5, all of them flipped by the second attack alone: p = 1/32."""
    target, (_, images, labels) = served(1e-3), digits()
    found = illusion_of_robustness(target, images[:5], labels[:5], Linf(0.3), steps=10)
    assert found.plain.accuracy > found.opt.accuracy
    assert min(found.cal.p_value, found.opt.p_value) >= 1 / 32
    assert not found.found


# --- refusals ---


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(0, 1, 8, 8), torch.zeros(0).long(), r"images must be \(n, C, H, W\) with n >= 1, got shape \(0, 1"),
        (torch.rand(2, 8, 8), torch.zeros(2).long(), r"images must be .*, got shape \(2, 8, 8\)"),
        (torch.rand(2, 1, 8, 8), torch.zeros(3).long(), r"labels must be \(2,\) integers, got \(3,\) torch.int64"),
        (torch.rand(2, 1, 8, 8), torch.zeros(2), r"labels must be \(2,\) integers, got \(2,\) torch.float32"),
        (torch.rand(2, 1, 8, 8), torch.tensor([0, 10]), r"labels must be in 0..9, got values in 0..10"),
    ],
)
def test_bad_input(images: Tensor, labels: Tensor, message: str) -> None:
    for name, call in (
        ("calibrated_temperature", lambda: calibrated_temperature(served(1.0), images, labels)),
        ("optimal_temperature", lambda: optimal_temperature(served(1.0), images, labels, BALL)),
        ("illusion_of_robustness", lambda: illusion_of_robustness(served(1.0), images, labels, BALL)),
    ):
        with pytest.raises(InputError, match=f"^{name}: {message}") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_access() -> None:
    module, images, labels = digits()
    scores = poise.ModuleTarget(module, num_classes=10, access=Access.SCORES)
    for name, call in (
        ("optimal_temperature", optimal_temperature),
        ("illusion_of_robustness", illusion_of_robustness),
    ):
        with pytest.raises(AccessError) as caught:
            call(scores, images, labels, BALL)
        assert str(caught.value) == f"{name}: needs access 'gradients', the target gives 'scores'"
    assert calibrated_temperature(scores, images, labels) > 0
    blind = poise.ModuleTarget(module, num_classes=10, access=Access.LABELS)
    with pytest.raises(AccessError, match="calibrated_temperature: needs access 'scores', the target gives 'labels'"):
        calibrated_temperature(blind, images, labels)


# --- real models ---


def real(name: str, checkpoint: str, temperature: float, count: int) -> tuple[poise.ModuleTarget, Tensor, Tensor]:
    target = poise.models.load(f"builtin:{name}?weights={SHARED}/checkpoints/{checkpoint}.safetensors")
    data = poise.data.load(f"npz:{SHARED}/cifar10_test_lossless_subset.npz")
    images, labels, _ = next(iter(data.batches(count)))
    return poise.ModuleTarget(Served(target.module, temperature), num_classes=10), images, labels


@needs_shared
@pytest.mark.parametrize(("temperature", "expected"), [(1e-3, True), (1.0, False)])
def test_resnet20(temperature: float, expected: bool) -> None:
    """Served at 1e-3 it loses at least 95 % of what plain PGD left it; as trained there is nothing to lose."""
    target, images, labels = real("resnet20-cifar10", "cifar10_resnet20", temperature, 12)
    found = illusion_of_robustness(target, images, labels, Linf(8 / 255), steps=6)
    assert found.found is expected
    if expected:
        assert found.plain.accuracy > 0.7
        assert found.cal.recovered >= 0.95
        assert found.opt.recovered >= 0.95


@needs_shared
def test_resnet20_stands_still_under_plain_pgd() -> None:
    """P3: without a random start no correctly classified image moves; through 1e3 all points are those at T = 1."""
    target, images, labels = real("resnet20-cifar10", "cifar10_resnet20", 1e-3, 16)
    honest, _, _ = real("resnet20-cifar10", "cifar10_resnet20", 1.0, 1)
    search = poise.searches.PGD(steps=4, step=2 / 255, undo=False)

    def run(to: poise.Target, goal: object) -> poise.AttackResult:
        return poise.attack(to, goal, search, Linf(8 / 255), images, labels, budget=6)

    plain = run(target, CrossEntropy()).table
    right = (plain["prediction_before"] == plain["label"]).to_numpy()
    assert right.sum() >= 14
    assert np.all(plain["linf"].to_numpy()[right] == 0)
    through, at_one = run(target, ThroughTemperature(CrossEntropy(), 1e3)), run(honest, CrossEntropy())
    assert through.table["prediction_after"].to_list() == at_one.table["prediction_after"].to_list()
    assert float((through.images != at_one.images).float().mean()) < 0.05


@needs_shared
@pytest.mark.parametrize(("temperature", "expected"), [(1e-3, True), (1.0, False)])
def test_adversarially_trained(temperature: float, expected: bool) -> None:
    """Real robustness is not taken for an illusion, and survives in part where an illusion is laid over it."""
    target, images, labels = real("cnn-a-cifar10", "cifar10_cnn_a_adv", temperature, 120)
    found = illusion_of_robustness(target, images, labels, Linf(4 / 255))
    assert found.found is expected
    assert 0.2 < found.opt.accuracy < 0.6
