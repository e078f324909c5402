"""Every method's loss by hand, and what it attacks with: where the points lie, what they depend on, what they raise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from training_cases import batch, cross_entropy, linear, log_softmax, network, target_of, turned

from poise.constraints import L2, Linf
from poise.errors import InputError, PoiseError
from poise.models import Ensemble
from poise.objectives import OCA, UCA, ConfSmooth, CrossEntropy, KeepLabel, KLDivergence, MaxConfidence, MinConfidence
from poise.rng import Rng
from poise.searches import PGD, AdaptivePGD, ConfidencePGD, DropoutPGD, MomentumPGD
from poise.training import METHODS, Batch, Method
from poise.training.base import Terms
from poise.training.methods import (
    AT,
    CAAT,
    CCAT,
    DCA,
    MMCE,
    TRADES,
    TRS,
    UAT,
    Copies,
    LabelSmoothing,
    Mixup,
    NoisyPairing,
    RobustAugMix,
    Standard,
)
from poise.training.methods.ensemble import mean_cosine, members_apart
from poise.training.noise import augmix, gaussian
from toys import generator, untouched_generators

NATURAL, OTHER, THIRD = [[2.0, 1, 0], [0, 1, 3]], [[1.0, 1, 0], [0, 2, 2]], [[0.0, 0, 0], [1, 0, 0]]


def looked_up(*logits: list[list[float]]) -> tuple[Callable[[Tensor], Tensor], Batch, list[Tensor]]:
    """A forward that gives the i-th version of a batch the i-th logits; labels 0 and 1 as in the specification."""
    versions = [torch.full((2, 1, 1, 1), float(i)) for i in range(len(logits))]
    table = torch.tensor(logits, dtype=torch.float64)

    def forward(images: Tensor) -> Tensor:
        rows = torch.arange(len(images)) % 2
        return table[images.flatten().long(), rows]

    return forward, Batch(versions[0], torch.tensor([0, 1]), torch.tensor([4, 9])), versions[1:]


def numbers(terms: Terms) -> dict[str, float]:
    return {name: value.item() for name, value in terms.items()}


# --- losses on the specification's logits ---


@pytest.mark.parametrize(
    ("method", "logits", "expected"),
    [
        (Standard(), [NATURAL], {"cross_entropy": 1.288725992}),
        (AT(), [NATURAL, OTHER], {"attacked": cross_entropy(OTHER, [0, 1])}),
        (
            AT(clean_weight=0.25),
            [NATURAL, OTHER],
            {"cross_entropy": 0.25 * 1.288725992, "attacked": 0.75 * cross_entropy(OTHER, [0, 1])},
        ),
        (AT(clean_weight=1.0), [NATURAL, OTHER], {"cross_entropy": 1.288725992}),
        (TRADES(beta=1.0), [NATURAL, OTHER], {"cross_entropy": 1.288725992, "divergence": 0.219003493}),
        (TRADES(), [NATURAL, OTHER], {"cross_entropy": 1.288725992, "divergence": 2.602746952 - 1.288725992}),
        (RobustAugMix(), [NATURAL, OTHER], {"cross_entropy": 1.288725992, "divergence": 12 * 0.058064209}),
        (
            RobustAugMix(weight=2.0, mixed=True),
            [NATURAL, OTHER, THIRD],
            {"cross_entropy": 1.288725992, "divergence": 2 * 0.146213241},
        ),
        (DCA(), [NATURAL], {"cross_entropy": 1.288725992, "calibration_gap": 2.545178451}),
        (MMCE(weight=3.0), [NATURAL], {"cross_entropy": 1.288725992, "mmce": 3 * 0.680095162}),
        (MMCE(weight=1.0, weighted=False), [NATURAL], {"cross_entropy": 1.288725992, "mmce": 0.340047581}),
        (
            CAAT(),
            [NATURAL, OTHER, THIRD],
            {"under": cross_entropy(OTHER, [0, 1]), "over": cross_entropy(THIRD, [0, 1])},
        ),
        (CAAT(directions="under"), [NATURAL, OTHER], {"under": cross_entropy(OTHER, [0, 1])}),
        (UAT(), [NATURAL, OTHER], {"attacked": cross_entropy(OTHER, [0, 1])}),
        (
            Copies(copies=2),
            [NATURAL, OTHER, THIRD],
            {"attacked": (cross_entropy(OTHER, [0, 1]) + cross_entropy(THIRD, [0, 1])) / 2},
        ),
    ],
    ids=repr,
)
def test_losses_on_the_specifications_logits(
    method: Method, logits: list[list[list[float]]], expected: dict[str, float]
) -> None:
    """R2: 1.288725992 + beta .219003493; R3, R4, R7 (x 10), R10, with the weights really applied."""
    forward, given, views = looked_up(*logits)
    assert numbers(method.loss(forward, given, tuple(views))) == pytest.approx(expected, abs=3e-9)


def test_trades_with_weight_6() -> None:
    forward, given, views = looked_up(NATURAL, OTHER)
    assert sum(numbers(TRADES().loss(forward, given, tuple(views))).values()) == pytest.approx(2.602746952, abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 200.0])
def test_a_temperature_divides_the_logits(temperature: float) -> None:
    """Value, and the slope (softmax(z / T) - onehot) / T; at 1 it is plain cross-entropy to the last bit."""
    given = batch(5)
    z = torch.randn(5, 3, generator=generator(1), dtype=torch.float64).requires_grad_()
    loss = Standard(temperature).loss(lambda images: z, given, ())["cross_entropy"]
    assert loss.item() == pytest.approx(cross_entropy(z.detach().numpy() / temperature, given.labels.numpy()))
    (slope,) = torch.autograd.grad(loss, z)
    p = np.exp(log_softmax(z.detach().numpy() / temperature))
    expected = (p - np.eye(3)[given.labels.numpy()]) / temperature / 5
    np.testing.assert_allclose(slope.numpy(), expected, rtol=0, atol=1e-15)
    plain = Standard().loss(lambda images: z, given, ())["cross_entropy"]
    assert (loss.item() == plain.item()) == (temperature == 1.0)
    attacked = AT(temperature=temperature).loss(lambda images: z, given, (given.images,))["attacked"]
    assert attacked.item() == loss.item()


@pytest.mark.parametrize(("convention", "true", "rest"), [("uniform", 0.85, 0.05), ("others", 0.8, 0.2 / 3)])
def test_label_smoothing(convention: str, true: float, rest: float) -> None:
    given = batch(4, classes=4)
    z = torch.randn(4, 4, generator=generator(1), dtype=torch.float64)
    loss = LabelSmoothing(0.2, convention).loss(lambda images: z, given, ())["cross_entropy"].item()
    log_p = log_softmax(z.numpy())
    expected = [
        -sum((true if k == y else rest) * row[k] for k in range(4))
        for row, y in zip(log_p, given.labels.tolist(), strict=True)
    ]
    assert loss == pytest.approx(np.mean(expected), abs=1e-12)


def test_the_gap_waits_for_its_patience() -> None:
    forward, given, _ = looked_up(NATURAL)
    method = DCA(patience=0.5)
    assert set(method.loss(forward, replace(given, progress=0.49), ())) == {"cross_entropy"}
    assert set(method.loss(forward, replace(given, progress=0.5), ())) == {"cross_entropy", "calibration_gap"}


def test_attacked_images_come_after_the_first_epochs() -> None:
    """PNI: half clean, half attacked, from epoch 5 on; before that clean images alone, with the whole weight."""
    method, target = AT(steps=1, clean_weight=0.5, after=5), target_of(network())
    for epoch, views in ((0, 0), (4, 0), (5, 1), (9, 1)):
        given = batch(epoch=epoch)
        found = method.views(target, given)
        assert len(found) == views
        terms = numbers(method.loss(target.module, given, found))
        clean = cross_entropy(target.module(given.images).detach().numpy(), given.labels.numpy())
        assert terms["cross_entropy"] == pytest.approx(clean * (0.5 if views else 1.0), rel=1e-5)
        assert set(terms) == ({"cross_entropy", "attacked"} if views else {"cross_entropy"})


# --- CCAT (R5) ---


def test_labels_fade_as_in_the_specification() -> None:
    """eps .03, rho 10, K = 10: changes of 0, .003, .015, .03."""
    clean = torch.full((4, 1, 2, 2), 0.5, dtype=torch.float64)
    moved, y = clean.clone(), torch.tensor([3, 0, 9, 4])
    moved[:, 0, 1, 0] += torch.tensor([0.0, 0.003, -0.015, 0.03], dtype=torch.float64)
    targets = CCAT(eps=0.03).targets(clean, moved, y, 10)
    g = [0, 0.651321560, 0.999023438, 1]
    for row, label, share in zip(targets, y.tolist(), g, strict=True):
        assert row[label].item() == pytest.approx(1 - share + share / 10, abs=1e-8)
        assert np.delete(row.numpy(), label) == pytest.approx([share / 10] * 9, abs=1e-8)
    assert targets[1, 0].item() == pytest.approx(0.413810596, abs=1e-8)
    assert targets[1, 1].item() == pytest.approx(0.065132156, abs=1e-8)
    slower = CCAT(eps=0.03, rho=1.0).targets(clean, moved, y, 10)
    assert slower[1, 0].item() == pytest.approx(0.9 + 0.1 / 10, abs=1e-8)
    euclidean = clean.clone()
    euclidean[:, 0, 0] += torch.tensor([0.003, 0.004], dtype=torch.float64)  # of length .005
    assert CCAT(eps=0.01, norm="l2", rho=1.0).targets(clean, euclidean, y, 10)[0, 3].item() == pytest.approx(0.55)
    assert torch.equal(CCAT(eps=0.0).targets(clean, clean, y, 10).double(), torch.eye(10).double()[y])


@pytest.mark.parametrize(("n", "share", "clean"), [(6, 0.5, 3), (6, 1.0, 6), (6, 0.0, 0), (5, 0.25, 1), (1, 0.5, 0)])
def test_ccat_mixes_clean_and_faded(n: int, share: float, clean: int) -> None:
    """The loss is the mean over the batch of -sum t log p, one-hot t for the clean part; hand-made, row by row."""
    method, module = CCAT(steps=2, clean_share=share), network()
    given = batch(n)
    views = method.views(target_of(module), given)
    assert len(views[0]) == n - clean
    shown = torch.cat([given.images[:clean], views[0]])
    log_p = log_softmax(module(shown).detach().numpy())
    expected = 0.0
    for i, y in enumerate(given.labels.tolist()):
        far = min(1.0, float((shown[i] - given.images[i]).abs().max()) / (8 / 255))
        g = 1 - (1 - far) ** 10
        expected -= sum(((1 - g) * (k == y) + g / 3) * log_p[i, k] for k in range(3)) / n
    terms = numbers(method.loss(module, given, views))
    assert sum(terms.values()) == pytest.approx(expected, rel=1e-5)
    assert ("cross_entropy" in terms, "attacked" in terms) == (clean > 0, clean < n)


# --- noise and mixtures (R9, R14) ---


def test_noisy_pairing() -> None:
    """R14: the squared difference is averaged over all entries (.5, not 1.5 a row), times the weight."""
    forward, given, views = looked_up(NATURAL, OTHER)
    terms = numbers(NoisyPairing(clean=0.25, noisy=0.75, weight=1.2).loss(forward, given, tuple(views)))
    assert terms["pairing"] == pytest.approx(1.2 * 0.5, abs=1e-12)
    for name, z, d in (("cross_entropy", NATURAL, 0.25), ("noisy", OTHER, 0.75)):
        rows = zip(log_softmax(z), (0, 1), strict=True)
        each = [-sum((1 - d if k == y else d / 2) * row[k] for k in range(3)) for row, y in rows]
        assert terms[name] == pytest.approx(np.mean(each), abs=1e-12)
    uniform = numbers(NoisyPairing(clean=0.25, convention="uniform").loss(forward, given, tuple(views)))
    assert uniform["cross_entropy"] != pytest.approx(terms["cross_entropy"], abs=1e-3)
    assert numbers(NoisyPairing(weight=0.0).loss(forward, given, tuple(views)))["pairing"] == 0


def test_noise_has_its_deviation_and_its_limits() -> None:
    grey = Batch(torch.full((64, 1, 16, 16), 0.5), torch.zeros(64, dtype=torch.long), torch.arange(64))
    noise = gaussian(grey, 0.5, clip=False) - 0.5
    assert stats.kstest(noise.flatten().numpy() / 0.5, "norm").pvalue > 1e-3
    assert stats.kstest(noise.flatten().numpy() / 0.4, "norm").pvalue < 1e-6
    clipped = gaussian(grey, 0.5, clip=True)
    torch.testing.assert_close(clipped, (grey.images + noise).clamp(0, 1), rtol=0, atol=0)
    assert clipped.min() == 0
    assert clipped.max() == 1
    assert torch.equal(gaussian(grey, 0.0, clip=False), grey.images)


def lam_and_partner(method: Mixup, given: Batch) -> tuple[dict[int, float], dict[int, int]]:
    """By name: each sample's lam, and the name of its partner."""
    lam, partner = method.partners(given)
    names = given.ids.tolist()
    return dict(zip(names, lam.tolist(), strict=True)), dict(zip(names, given.ids[partner].tolist(), strict=True))


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixtures_are_a_function_of_names(per_sample: bool) -> None:
    method, given = Mixup(0.4, per_sample), batch(9, step=5, seed=2)
    lam, partner = lam_and_partner(method, given)
    for order in (torch.arange(9).flip(0), torch.randperm(9, generator=generator(3))):
        assert lam_and_partner(method, turned(given, order)) == (lam, partner)
    assert sorted(partner.values()) == sorted(partner)  # everybody is used once,
    assert all(name != other for name, other in partner.items())  # and nobody is mixed with itself
    assert len(set(lam.values())) == (9 if per_sample else 1)
    for changed in (replace(given, step=6), replace(given, seed=3)):
        assert lam_and_partner(method, changed)[0] != lam
        assert lam_and_partner(method, changed)[1] != partner


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_lam_follows_its_distribution(alpha: float) -> None:
    drawn = [lam_and_partner(Mixup(alpha), batch(2, step=step))[0].popitem()[1] for step in range(600)]
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert stats.kstest(drawn, stats.beta(4 * alpha, 4 * alpha).cdf).pvalue < 1e-4


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixup_is_its_definition(per_sample: bool) -> None:
    """x~ = lam x_i + (1 - lam) x_j, loss lam CE(., y_i) + (1 - lam) CE(., y_j), one sample at a time."""
    method, module, given = Mixup(0.4, per_sample), network(), batch(8, step=3)
    (mixed,) = method.views(target_of(module), given)
    lam, partner = method.partners(given)
    log_p = log_softmax(module(mixed).detach().numpy())
    expected = 0.0
    for i in range(8):
        j, share = int(partner[i]), float(lam[i])
        image = share * given.images[i].double() + (1 - share) * given.images[j].double()
        torch.testing.assert_close(mixed[i].double(), image, rtol=0, atol=1e-6)
        own, other = int(given.labels[i]), int(given.labels[j])
        expected -= (share * log_p[i, own] + (1 - share) * log_p[i, other]) / 8
    assert method.loss(module, given, (mixed,))["mixed"].item() == pytest.approx(expected, rel=1e-5)
    of_images = cross_entropy(module(mixed).detach().numpy(), given.labels.numpy())
    assert of_images != pytest.approx(expected, rel=1e-3)  # without the partners' labels it is another number


def test_mixup_without_mixing_is_plain() -> None:
    module, given = network(), batch(8)
    (mixed,) = Mixup(0.0).views(target_of(module), given)
    assert torch.equal(mixed, given.images)
    loss = Mixup(0.0).loss(module, given, (mixed,))["mixed"]
    assert loss.item() == Standard().loss(module, given, ())["cross_entropy"].item()


def test_augmix() -> None:
    """8-bit images of the same shape, the same for the same step, drawn without touching the global generators."""
    for channels in (1, 3):
        given = batch(4, (channels, 12, 12), step=2)
        with untouched_generators():
            mixed = augmix(given)
        assert mixed.shape == given.images.shape
        levels = mixed * 255
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
        assert 0 <= mixed.min() <= mixed.max() <= 1
        assert torch.equal(mixed, augmix(given))
        assert not torch.equal(mixed, augmix(replace(given, step=3)))
        assert (mixed - given.images).abs().max() > 0.05


# --- attacked versions ---

INNER = {
    AT(): (CrossEntropy(), PGD(10, 2 / 255, random_start=True, undo=False)),
    AT(random_start=False): (CrossEntropy(), PGD(10, 2 / 255, undo=False)),
    TRADES(): (KLDivergence(), PGD(10, 2 / 255, jitter=1e-3, undo=False)),
    RobustAugMix(): (CrossEntropy(), PGD(10, 2 / 255, random_start=True, undo=False)),
    CCAT(): (MaxConfidence(tol=0), MomentumPGD(10, 2 / 255, decay=0.9, random_start=True, backtrack=1.5)),
    UAT("gap"): (KeepLabel(UCA(tol=0)), AdaptivePGD(5, 5 / 255, growth=1.1)),
    UAT("smooth"): (KeepLabel(ConfSmooth(0.98, tol=0)), AdaptivePGD(5, 5 / 255, growth=1.1)),
    UAT("standard"): (KeepLabel(MinConfidence(tol=0)), ConfidencePGD(5)),
}
"""R1, R2, R3, R5, R6: what is followed, and how; a random start or none, nothing undone where labels may flip."""


@pytest.mark.parametrize("method", INNER, ids=repr)
def test_the_attack_inside(method: AT) -> None:
    assert (method.inner.objective, method.inner.search) == INNER[method]
    assert method.inner.constraint == Linf(8 / 255)


def test_the_attacks_inside_caat() -> None:
    inner = CAAT().inner
    assert {name: attack.objective for name, attack in inner.items()} == {
        "under": KeepLabel(UCA(tol=0)),
        "over": KeepLabel(OCA(tol=0)),
    }
    for attack in inner.values():
        assert attack.search == DropoutPGD(10, 5 / 255, keep_under=0.05, keep_over=0.8, mask_target="step")
        assert attack.constraint == Linf(0.05)
    assert CAAT(norm="l2", eps=0.5).inner["over"].constraint == L2(0.5)


ATTACKING = {
    "at": AT(steps=3),
    "at in l2": AT(eps=0.3, step=0.15, steps=3, norm="l2"),
    "trades": TRADES(steps=3),
    "robustaugmix": RobustAugMix(steps=3),
    "ccat": CCAT(steps=3, clean_share=0.0),
    "caat": CAAT(steps=10),  # a step keeps 5 % of 16 pixels, often none
    "uat-gap": UAT("gap", steps=3),
    "uat-smooth": UAT("smooth", steps=3),
    "uat-standard": UAT("standard", steps=3),
    "copies": Copies(copies=2, steps=3),
}


def far_from(moved: Tensor, clean: Tensor, norm: str) -> Tensor:
    change = (moved - clean).flatten(1)
    return change.abs().amax(dim=1) if norm == "linf" else change.square().sum(dim=1).sqrt()


@pytest.mark.parametrize("method", ATTACKING.values(), ids=ATTACKING)
def test_points_lie_in_ball_and_box(method: AT) -> None:
    given = batch(30)
    given = replace(given, images=given.images.round(decimals=1).mul(1.25).sub(0.125).clamp(0, 1))  # some on the edge
    for view in method.views(target_of(network()), given):
        far = far_from(view, given.images, method.norm)
        assert bool((far <= method.eps + 1e-6).all())
        assert bool((far > method.eps / 10).any())  # and they are not the clean images
        assert 0 <= view.min() <= view.max() <= 1
        if method.eps < 0.05:
            assert bool((far > method.eps / 2 - 1e-6).any())
            assert not bool((far <= method.eps / 2).all())  # half the ball would not hold them


@pytest.mark.parametrize("method", ATTACKING.values(), ids=ATTACKING)
def test_points_depend_on_names_seed_and_step(method: Method) -> None:
    target, given = target_of(network()), batch(12, step=3)
    views = method.views(target, given)
    order = torch.randperm(12, generator=generator(5))
    for view, other in zip(views, method.views(target, turned(given, order)), strict=True):
        torch.testing.assert_close(other, view[order], rtol=0, atol=1e-6)
    begins_anywhere = not isinstance(method, UAT)  # UAT starts at the clean image and draws nothing
    for changed in (replace(given, step=4), replace(given, seed=1)):
        again = method.views(target, changed)
        assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True)) != begins_anywhere


@pytest.mark.parametrize("method", ATTACKING.values(), ids=ATTACKING)
def test_the_network_is_attacked_in_eval_mode_and_left_alone(method: Method) -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), network((3, 2, 2)))
    modes: list[bool] = []
    module[2].register_forward_hook(lambda part, given, answer: modes.append(part.training))
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with untouched_generators():
        method.views(target_of(module), batch(5))
    assert modes
    assert not any(modes)
    assert module.training
    assert module[1].training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def rows_of(module: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return log_softmax(module(images).numpy())


def true_loss(clean: np.ndarray, moved: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy of the true class, before and after."""
    rows = np.arange(len(y))
    return -clean[rows, y], -moved[rows, y]


def kl_of_clean(clean: np.ndarray, moved: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(len(y)), (np.exp(clean) * (clean - moved)).sum(axis=1)


def surest_wrong(clean: np.ndarray, moved: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array([np.delete(row, k).max() for row, k in zip(z, y, strict=True)]) for z in (clean, moved))


def gap(clean: np.ndarray, moved: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minus the gap of the clean prediction: what UAT-Gap raises."""
    k = clean.argmax(axis=1)
    return tuple(
        np.array([np.delete(row, a).max() - row[a] for row, a in zip(np.exp(z), k, strict=True)])
        for z in (clean, moved)
    )


def smooth(clean: np.ndarray, moved: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minus the cross-entropy to the label smoothed by .98."""
    k, rows = clean.argmax(axis=1), np.arange(len(y))
    return tuple(0.02 * z[rows, k] + 0.98 * z.mean(axis=1) for z in (clean, moved))


def unsure(clean: np.ndarray, moved: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    k, rows = clean.argmax(axis=1), np.arange(len(y))
    return tuple(1 - np.exp(z[rows, k]) for z in (clean, moved))


def sure(clean: np.ndarray, moved: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tuple(1 - each for each in unsure(clean, moved, y))


RAISED = {
    "at": (true_loss,),
    "at in l2": (true_loss,),
    "trades": (kl_of_clean,),
    "robustaugmix": (true_loss,),
    "ccat": (surest_wrong,),
    "caat": (gap, sure),
    "uat-gap": (gap,),
    "uat-smooth": (smooth,),
    "uat-standard": (unsure,),
    "copies": (true_loss, true_loss),
}


@pytest.mark.parametrize("name", ATTACKING)
def test_what_the_attack_raises(name: str) -> None:
    """On nearly all samples strictly, on none does it fall; the goal's opposite would fall."""
    module, given = network(), batch(40)
    clean, y = rows_of(module, given.images), given.labels.numpy()
    for view, measure in zip(ATTACKING[name].views(target_of(module), given), RAISED[name], strict=True):
        before, after = measure(clean, rows_of(module, view), y)
        if name in ("at", "at in l2", "robustaugmix", "copies"):  # ranked by the margin: the loss may fall a little
            assert (after > before).mean() >= 0.9
        else:
            assert bool((after >= before - 1e-6).all())
            assert (after > before + 1e-6).mean() >= 0.9


KEEPING = [name for name in ATTACKING if name.startswith(("caat", "uat"))]


@pytest.mark.parametrize("name", KEEPING)
def test_labels_are_kept(name: str) -> None:
    """In a ball so large that attacks without the promise flip most of them; wrong predictions are kept too."""
    module, given = network(), batch(40)
    method = replace(ATTACKING[name], eps=0.3, step=0.1, steps=6)
    k = rows_of(module, given.images).argmax(axis=1)
    assert 0 < (k == given.labels.numpy()).mean() < 1
    for view in method.views(target_of(module), given):
        after = rows_of(module, view)
        assert (after.argmax(axis=1) == k).all()
        assert (-gap(rows_of(module, given.images), after, k)[1] > 1e-4 - 1e-6).all()  # not by a rounding error
    (free,) = AT(eps=0.3, step=0.1, steps=6).views(target_of(module), given)
    assert (rows_of(module, free).argmax(axis=1) != k).mean() > 0.5


def test_the_copies_are_different_and_one_is_adversarial_training() -> None:
    target, given = target_of(network()), batch(12)
    views = Copies(copies=3, steps=2).views(target, given)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(views, 2))
    (plain,) = AT(steps=2).views(target, given)
    (one,) = Copies(copies=1, steps=2).views(target, given)
    assert torch.equal(one, plain)
    assert torch.equal(views[0], plain)


def test_both_directions_of_caat_start_at_the_clean_image() -> None:
    """W9: the released code starts the second attack at the first one's end."""
    target, given = target_of(network()), batch(12)
    both = CAAT(steps=1, keep_under=1.0, keep_over=1.0).views(target, given)
    for view in both:
        assert bool(((view - given.images).abs() <= 5 / 255 + 1e-6).all())
    clean, y = rows_of(target.module, given.images), given.labels.numpy()
    before, after = sure(clean, rows_of(target.module, both[1]), y)
    assert (after >= before - 1e-6).all()


def test_both_directions_of_caat_draw_masks_of_their_own() -> None:
    target, given = target_of(network()), batch(12)
    under, over = (view != given.images for view in CAAT(steps=1, keep_under=0.5, keep_over=0.5).views(target, given))
    assert bool((under & over).any())
    assert bool((under & ~over).any())
    assert bool((over & ~under).any())


@pytest.mark.parametrize(
    "method", [AT(eps=0), TRADES(eps=0), CAAT(eps=0), UAT(eps=0), CCAT(eps=0), Copies(eps=0), RobustAugMix(eps=0)]
)
def test_a_ball_without_a_radius_gives_the_clean_images(method: Method) -> None:
    module, given = network(), batch(6)
    clean = cross_entropy(module(given.images).detach().numpy(), given.labels.numpy())
    views = method.views(target_of(module), given)
    whole = given.images[3:] if isinstance(method, CCAT) else given.images
    assert all(torch.equal(view, whole) for view in views)
    times = 2 if isinstance(method, CAAT) else 1  # R4: 2 CE(clean)
    assert sum(numbers(method.loss(module, given, views)).values()) == pytest.approx(times * clean, rel=1e-5)


def test_trades_without_weight_makes_no_attack() -> None:
    target, given = target_of(network()), batch(3)
    assert TRADES(beta=0).views(target, given) == ()
    assert numbers(TRADES(beta=0).loss(target.module, given, ())) == numbers(Standard().loss(target.module, given, ()))


# --- TRS (T4) ---


class Opened(nn.Module):
    """Something around the ensemble, as the training loop's wrappers are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def ensemble(*weights: list[list[float]]) -> Ensemble:
    return Ensemble([linear(weight) for weight in weights])


def double(n: int, pixels: int, seed: int = 0) -> Batch:
    given = batch(n, (1, 1, pixels), 2, source=seed)
    return replace(given, images=given.images.double())


def test_cosine_of_equal_and_of_orthogonal_members() -> None:
    one, across = [[1.0, 0.0], [-2.0, 0.0]], [[0.0, 1.5], [0.0, 0.5]]
    given = double(5, 2)
    for members, cosine in (((one, one, one), 1.0), ((one, across), 0.0), ((one, one, across), 1 / 3)):
        terms = numbers(TRS().loss(ensemble(*members), given, ()))
        assert terms["diversity"] == pytest.approx(5 * 2 * cosine, abs=1e-9)
    opposite = [[-2.0, 0.0], [1.0, 0.0]]  # gradients that point the other way count as equal: |cos|
    assert numbers(TRS().loss(ensemble(one, opposite), given, ()))["diversity"] == pytest.approx(10, abs=1e-9)


def test_mean_cosine_is_a_loop() -> None:
    slopes = [torch.randn(4, 6, generator=generator(i), dtype=torch.float64) for i in range(3)]
    each = [
        abs(float(a[row] @ b[row])) / math.sqrt(float(a[row] @ a[row]) * float(b[row] @ b[row]))
        for a, b in itertools.combinations(slopes, 2)
        for row in range(4)
    ]
    assert mean_cosine(slopes).item() == pytest.approx(np.mean(each), abs=1e-12)
    assert mean_cosine([1e-9 * slope for slope in slopes]).item() == pytest.approx(np.mean(each), abs=1e-5)


def test_trs_of_linear_members_by_hand() -> None:
    """g_m = W_m' (p - onehot) of an image's own loss; CE summed over members; 2 ||g||^2 averaged; weights applied."""
    weights = [torch.randn(2, 4, generator=generator(i)).tolist() for i in range(3)]
    given = double(5, 4)
    x, y = given.images.flatten(1).numpy(), given.labels.numpy()
    method = TRS(coeff=3.0, lamda=0.5, scale=7.0)
    slopes, ce = [], 0.0
    for weight in np.array(weights, dtype=np.float32).astype(float):
        z = x @ weight.T
        ce += cross_entropy(z, y)
        slopes.append((np.exp(log_softmax(z)) - np.eye(2)[y]) @ weight)
    cosines = [
        np.mean([abs(u @ v) / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b, strict=True)])
        for a, b in itertools.combinations(slopes, 2)
    ]
    terms = numbers(method.loss(ensemble(*weights), given, ()))
    assert terms["cross_entropy"] == pytest.approx(ce, rel=1e-9)
    assert terms["diversity"] == pytest.approx(7 * 3 * np.mean(cosines), rel=1e-9)
    squares = [2 * np.mean([u @ u for u in slope]) for slope in slopes]
    assert terms["smoothness"] == pytest.approx(7 * 0.5 * np.mean(squares), rel=1e-9)


@pytest.mark.parametrize("term", ["diversity", "smoothness"])
def test_double_backward_reaches_every_members_first_layer(term: str) -> None:
    """Against finite differences; a gradient taken without `create_graph` would be zero."""
    module = Ensemble([network((1, 1, 4), 2, seed=seed).double() for seed in range(2)])
    given = double(3, 4)

    def value() -> Tensor:
        return TRS().loss(module, given, ())[term]

    for member in module.members:
        weight = member[1].weight
        (found,) = torch.autograd.grad(value(), weight)
        assert found.abs().max() > 1e-4
        for at in ((0, 0), (5, 2), (11, 3)):
            values = []
            for change in (1e-6, -2e-6, 1e-6):
                weight.data[at] += change
                values.append(value().item())
            assert found[at].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-7)


def test_members_answer_apart_only_inside() -> None:
    module = ensemble([[1.0], [0.0]], [[0.0], [2.0]])
    given = double(2, 1)
    for forward in (module, Opened(module)):
        with members_apart(forward):
            assert forward(given.images).shape == (2, 2, 2)
        assert forward(given.images).shape == (2, 2)
        with pytest.raises(ZeroDivisionError), members_apart(forward):
            _ = 1 / 0
        assert not module.apart
    for other in (network(), nn.ModuleList([module, ensemble([[1.0], [0.0]], [[0.0], [2.0]])]), lambda x: x):
        with pytest.raises(PoiseError, match="TRS: the network must be one ensemble"):
            TRS().loss(other, given, ())


def test_every_second_image_is_moved_within_a_growing_radius() -> None:
    method = TRS(eps=0.2, steps=3)
    module = Ensemble([network(seed=0), network(seed=1)])
    assert method.views(target_of(module), batch(7, progress=0.0)) == ()
    assert TRS(eps=0.0).views(target_of(module), batch(7, progress=0.5)) == ()
    for progress in (0.25, 0.75):
        given = batch(7, progress=progress)
        (moved,) = method.views(target_of(module), given)
        far = far_from(moved, given.images, "linf")
        assert far[::2].tolist() == [0] * 4
        assert bool((far[1::2] <= 0.2 * progress + 1e-6).all())
        assert bool((far[1::2] > 0.1 * progress).all())
        terms = numbers(method.loss(module, given, (moved,)))
        assert terms["cross_entropy"] == pytest.approx(
            sum(cross_entropy(member(moved).detach().numpy(), given.labels.numpy()) for member in module.members),
            rel=1e-5,
        )
    (alone,) = method.views(target_of(module), batch(1, progress=0.5))
    assert torch.equal(alone, batch(1).images)


# --- the contract ---


def test_the_table_names_every_method() -> None:
    assert set(METHODS.values()) == {
        Standard, LabelSmoothing, DCA, MMCE, Mixup, NoisyPairing,
        AT, TRADES, RobustAugMix, CCAT, CAAT, UAT, Copies, TRS,
    }  # fmt: skip


def test_a_batch_knows_its_names() -> None:
    given = batch(5, seed=3)
    rows = torch.arange(5)
    expected = Rng(3, given.ids).uniform("anything", 0, rows)
    assert torch.equal(given.rng.uniform("anything", 0, given.rows), expected)
    part = given.part(slice(1, None, 2))
    assert torch.equal(part.ids, given.ids[[1, 3]])
    assert torch.equal(part.images, given.images[[1, 3]])
    assert torch.equal(part.labels, given.labels[[1, 3]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Standard(0.0), "Standard: temperature must be a positive number, got 0.0"),
        (lambda: Standard(math.inf), "Standard: temperature must be a positive number, got inf"),
        (lambda: LabelSmoothing(1.1), r"LabelSmoothing: smoothing must be in \[0, 1\], got 1.1"),
        (lambda: LabelSmoothing(0.1, "other"), "convention must be 'uniform' or 'others', got 'other'"),
        (lambda: DCA(-1.0), "DCA: weight must be a number of at least 0, got -1.0"),
        (lambda: DCA(patience=1.5), r"DCA: patience must be in \[0, 1\], got 1.5"),
        (lambda: MMCE(math.nan), "MMCE: weight must be a number of at least 0, got nan"),
        (lambda: Mixup(-0.1), "Mixup: alpha must be a number of at least 0, got -0.1"),
        (lambda: NoisyPairing(noisy=2.0), r"NoisyPairing: noisy must be in \[0, 1\], got 2.0"),
        (lambda: NoisyPairing(std=-1.0), "NoisyPairing: std must be a number of at least 0, got -1.0"),
        (lambda: AT(eps=8), "eps must be in .*8/255"),
        (lambda: AT(steps=0), "AT: steps must be at least 1, got 0"),
        (lambda: AT(step=-0.1), "AT: step must be a positive number, got -0.1"),
        (lambda: AT(norm="l1"), "norm must be one of l2, linf, got 'l1'"),
        (lambda: AT(clean_weight=1.5), r"AT: clean_weight must be in \[0, 1\], got 1.5"),
        (lambda: AT(after=-1), "AT: after must be a number of epochs of at least 0, got -1"),
        (lambda: TRADES(beta=-6), "TRADES: beta must be a number of at least 0, got -6"),
        (lambda: RobustAugMix(weight=-1), "RobustAugMix: weight must be a number of at least 0, got -1"),
        (lambda: CCAT(clean_share=2), r"CCAT: clean_share must be in \[0, 1\], got 2"),
        (lambda: CCAT(rho=-1), "CCAT: rho must be a number of at least 0, got -1"),
        (lambda: CAAT(directions="up"), "CAAT: directions must be 'both', 'under' or 'over', got 'up'"),
        (lambda: CAAT(keep_under=0), r"keep_under must be in \(0, 1\], got 0"),
        (lambda: UAT("gaps"), "UAT: goal must be 'gap', 'smooth' or 'standard', got 'gaps'"),
        (lambda: UAT(smoothing=0), r"smoothing must be in \(0, 1\], got 0"),
        (lambda: Copies(copies=0), r"Copies: copies must be in 1..256, got 0"),
        (lambda: TRS(lamda=-2), "TRS: lamda must be a number of at least 0, got -2"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
