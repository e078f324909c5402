"""Whole runs: what equals what step for step, what attacked images promise on real steps; every recipe learns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_cases import Watched, differences, log_softmax, pictures, run, small, with_norm, without_norm

from poise import data
from poise.data import Dataset
from poise.errors import PoiseError
from poise.models import add_denoising, blank
from poise.targets import ModuleTarget
from poise.training import Batch, TrainingRecipe, training_recipe, training_recipes
from poise.training.base import Forward, Terms, Views
from poise.training.methods import AT

NETWORKS = {"batch norm": with_norm, "dropout": without_norm}


@pytest.fixture(scope="module")
def little() -> Dataset:
    """14 images in batches of 6, 6 and 2."""
    return pictures(14, (3, 16, 16), 10)


# --- what equals standard training, step for step ---

SAME = {
    "at with eps 0": small("at", method__eps=0.0, method__steps=2),
    "trades with beta 0": small("trades", method__beta=0.0, method__steps=2),
    "sam with rho 0": small("sam", update__rho=0.0),
    "temperature 1": small("high-temperature", method__temperature=1.0),
    "smoothing 0": small("label-smoothing", method__smoothing=0.0),
    "mixup with alpha 0": small("mixup", method__alpha=0.0),
    "dca with weight 0": small("dca", method__weight=0.0),
    "mmce with weight 0": small("mmce", method__weight=0.0),
    "uat with eps 0": small("uat-smooth", method__eps=0.0),
    "copies of nothing, their common direction": small(
        "ddi-at-unnormalised", method__eps=0.0, method__copies=1, method__steps=1, schedule__name="cosine"
    ),
    "pni's loss before its time": small("pni", optimizer__weight_decay=5e-4, schedule__name="cosine"),
    "ccat, all clean": small("ccat", method__clean_share=1.0, method__steps=1),
}
OTHER = {
    "at": small("at", method__steps=1),
    "trades": small("trades", method__steps=1),
    "sam": small("sam"),
    "a temperature": small("high-temperature"),
    "smoothing": small("label-smoothing"),
    "mixup": small("mixup"),
    "dca": small("dca"),
    "another seed": small("standard"),
}


@pytest.fixture(scope="module")
def standard(little: Dataset) -> dict[str, Watched]:
    return {name: run(make(), small("standard"), little) for name, make in NETWORKS.items()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", SAME)
def test_what_equals_standard_training(name: str, network: str, standard: dict[str, Watched], little: Dataset) -> None:
    """Weights and running statistics after each of six steps. SAM's second pass draws another dropout mask."""
    if name == "sam with rho 0" and network == "dropout":
        found = run(eval_dropout(NETWORKS[network]()), SAME[name], little)
        expected = run(eval_dropout(NETWORKS[network]()), small("standard"), little)
    else:
        found, expected = run(NETWORKS[network](), SAME[name], little), standard[network]
    assert len(found.states) == 6
    assert differences(found, expected) == pytest.approx([0] * 6, abs=1e-6)
    assert differences(found, expected)[0] == 0


def eval_dropout(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


@pytest.mark.parametrize("name", OTHER)
def test_what_does_not_equal_standard_training(name: str, standard: dict[str, Watched], little: Dataset) -> None:
    seed = 1 if name == "another seed" else 0
    found = run(with_norm(), OTHER[name], little, seed=seed)
    assert max(differences(found, standard["batch norm"])) > 1e-5


def test_the_same_run_again_is_the_same(standard: dict[str, Watched], little: Dataset) -> None:
    again = run(without_norm(), small("standard"), little)
    assert differences(again, standard["dropout"]) == [0] * 6


def test_trades_shows_two_versions_to_batch_norm(standard: dict[str, Watched], little: Dataset) -> None:
    """Why beta = 0 must make no attack: with one, the running statistics would count more batches."""
    counted = run(with_norm(), OTHER["trades"], little).states[0]["bn1.num_batches_tracked"].item()
    assert (counted, standard["batch norm"].states[0]["bn1.num_batches_tracked"].item()) == (2, 1)


# --- sgd, by hand ---


def test_a_run_is_sgd_written_out(little: Dataset) -> None:
    """Nesterov momentum, weight decay, cosine rate per step: v <- .9 v + g, w <- w - lr (g + .9 v)."""
    recipe = small("standard", epochs=1)
    order: list[tuple[Tensor, Tensor]] = []

    @dataclass
    class Noted:
        method: Any

        def views(self, target: ModuleTarget, batch: Batch) -> Views:
            order.append((batch.images.clone(), batch.labels.clone()))
            return self.method.views(target, batch)

        def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
            return self.method.loss(forward, batch, views)

    found = run(eval_dropout(without_norm()), recipe, little, wrap=Noted)
    module = eval_dropout(without_norm()).train()
    velocity = [torch.zeros_like(value) for value in module.parameters()]
    for step, (images, labels) in enumerate(order):
        lr = 0.05 * 0.5 * (1 + np.cos(np.pi * step / 3))
        log_p = module(images).log_softmax(dim=1)
        loss = -sum(row[label] for row, label in zip(log_p, labels, strict=True)) / len(labels)
        slopes = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for value, v, slope in zip(module.parameters(), velocity, slopes, strict=True):
                g = slope + 5e-4 * value
                v.mul_(0.9).add_(g)
                value.sub_(lr * (g + 0.9 * v))
        for name, value in module.state_dict().items():
            torch.testing.assert_close(found.states[step][name], value, rtol=0, atol=1e-6)
    assert len(order) == 3


# --- attacked images, on real steps ---


@dataclass
class Spy:
    """Between loop and method: keeps the model as it is when the images are attacked, and what came of it."""

    method: Any
    seen: list[tuple[nn.Module, Batch, Views]] = field(default_factory=list)

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        module = deepcopy(target.module.module).eval()
        views = self.method.views(target, batch)
        self.seen.append((module, batch, tuple(view.clone() for view in views)))
        return views

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        return self.method.loss(forward, batch, views)


def answers(module: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return log_softmax(module(images).numpy())


def gap(z: np.ndarray, k: np.ndarray) -> np.ndarray:
    p = np.exp(z)
    return np.array([row[a] - np.delete(row, a).max() for row, a in zip(p, k, strict=True)])


def smoothed(z: np.ndarray, k: np.ndarray) -> np.ndarray:
    rows = np.arange(len(k))
    return -(0.02 * z[rows, k] + 0.98 * z.mean(axis=1))


def confidence(z: np.ndarray, k: np.ndarray) -> np.ndarray:
    return np.exp(z[np.arange(len(k)), k])


def doubt(z: np.ndarray, k: np.ndarray) -> np.ndarray:
    return 1 - confidence(z, k)


Goals = tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...]
KEEPING: dict[str, Goals] = {
    "uat-gap": (gap,),
    "uat-smooth": (smoothed,),
    "uat-standard": (confidence,),
    "caat": (gap, doubt),
    "caat-under": (gap,),
}


def spied(name: str, digits: Dataset) -> list[tuple[nn.Module, Batch, Views]]:
    """Two epochs on digits in a large ball, with a rate at which predictions change from step to step."""
    changes = {"epochs": 2, "batch_size": 50, "augment": [], "optimizer.name": "adam", "optimizer.lr": 3e-3}
    recipe = training_recipe(name, changes | {"method.eps": 0.15, "method.step": 0.05, "method.steps": 4})
    spies: list[Spy] = []

    def wrap(method: Any) -> Spy:
        spies.append(Spy(method))
        return spies[0]

    run(blank("builtin:digits", seed=1).module, recipe, digits, wrap=wrap)
    return spies[0].seen


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("builtin:digits", split="train", samples=300)


def labels_are_kept(steps: list[tuple[nn.Module, Batch, Views]]) -> None:
    """Of every sample in every step: what the model of that very step answers."""
    for module, given, views in steps:
        k = answers(module, given.images).argmax(axis=1)
        for view in views:
            assert (answers(module, view).argmax(axis=1) == k).all()


@pytest.mark.parametrize("name", KEEPING)
def test_attacked_images_on_real_steps(name: str, digits: Dataset) -> None:
    """The current label stays, ball and box hold, and the goal's loss is nowhere above the clean one."""
    steps = spied(name, digits)
    assert len(steps) == 12
    labels_are_kept(steps)
    wrong, moved, fell = 0, 0, 0
    for module, given, views in steps:
        clean = answers(module, given.images)
        k = clean.argmax(axis=1)
        wrong += int((k != given.labels.numpy()).sum())
        assert len(views) == len(KEEPING[name])
        for view, goal in zip(views, KEEPING[name], strict=True):
            far = (view - given.images).abs().flatten(1).amax(dim=1)
            assert bool((far <= 0.15 + 1e-6).all())
            assert 0 <= view.min() <= view.max() <= 1
            before, after = goal(clean, k), goal(answers(module, view), k)
            assert (after <= before + 1e-6).all()
            moved += int((far > 0).sum())
            fell += int((after < before - 1e-6).sum())
    each = 2 * 300 * len(KEEPING[name])
    assert wrong > 100  # in early steps the label that is kept is mostly not the true one
    assert moved > 0.8 * each
    assert fell > 0.7 * each


def test_adversarial_training_does_not_keep_labels(digits: Dataset) -> None:
    with pytest.raises(AssertionError):
        labels_are_kept(spied("at", digits))


def test_an_outdated_model_is_noticed(digits: Dataset) -> None:
    """The labels are those of the model as it is: the model of the last step gives others."""
    steps = spied("uat-gap", digits)
    shifted = [(later[0], *now[1:]) for now, later in itertools.pairwise(steps)]
    with pytest.raises(AssertionError):
        labels_are_kept(shifted)


# --- SAM and DDi in the loop ---


def test_sam_in_the_loop_counts_batches_once(little: Dataset) -> None:
    found = run(with_norm(), small("sam", epochs=1), little)
    assert [state["bn1.num_batches_tracked"].item() for state in found.states] == [1, 2, 3]
    assert found.rows[0]["passes"] == pytest.approx(2)


def test_one_normalised_copy_moves_the_weights_by_the_rate(little: Dataset) -> None:
    """Without momentum and decay: ||w' - w|| = lr of the step, whatever the loss."""
    flat = {"optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0, "epochs": 1, "schedule__name": "cosine"}
    recipe = small("ddi-at", method__copies=3, method__steps=1, **flat)
    start = torch.cat([value.flatten() for value in without_norm().state_dict().values()])
    for step, state in enumerate(run(without_norm(), recipe, little).states):
        now = torch.cat([value.flatten() for value in state.values()])
        assert float((now - start).norm()) == pytest.approx(0.025 * (1 + np.cos(np.pi * step / 3)), rel=1e-3)
        start = now


@pytest.mark.parametrize("name", ["standard", "sam", "ddi-at", "uat-smooth", "trades", "caat"])
def test_a_run_that_diverges_ends_in_one_line(name: str, little: Dataset) -> None:
    fewer = {} if name in ("standard", "sam") else {"method__steps": 1}
    update = {"update__normalise": False} if name == "ddi-at" else {}
    recipe = small(name, epochs=8, optimizer__lr=1e30, schedule__name="constant", **fewer, **update)
    with pytest.raises(PoiseError, match=r"train: .* must be finite") as caught:
        run(without_norm(), recipe, little)
    assert "\n" not in str(caught.value)


# --- every recipe learns the digits ---

TERMS = {
    "at": {"attacked"},
    "caat": {"under", "over"},
    "caat-under": {"under"},
    "ccat": {"cross_entropy", "attacked"},
    "dca": {"cross_entropy", "calibration_gap"},
    "ddi-at": {"attacked"},
    "ddi-at-unnormalised": {"attacked"},
    "mixup": {"mixed"},
    "mmce": {"cross_entropy", "mmce"},
    "noisy-logit-pairing": {"cross_entropy", "noisy", "pairing"},
    "noisy-logit-pairing-mnist": {"cross_entropy", "noisy", "pairing"},
    "variable-label-smoothing": {"cross_entropy", "noisy", "pairing"},
    "pni": {"cross_entropy", "attacked"},
    "feature-denoising": {"attacked"},
    "robustaugmix": {"cross_entropy", "divergence"},
    "trades": {"cross_entropy", "divergence"},
    "trs": {"cross_entropy", "diversity", "smoothness"},
    "uat-gap": {"attacked"},
    "uat-smooth": {"attacked"},
    "uat-standard": {"attacked"},
}
PASSES = {
    "standard": 1, "dca": 1, "mmce": 1, "label-smoothing": 1, "extreme-label-smoothing": 1, "high-temperature": 1,
    "mixup": 1, "trs": 1, "sam": 2, "noisy-logit-pairing": 2, "variable-label-smoothing": 2,
    "noisy-logit-pairing-mnist": 2, "at": 5, "trades": 6, "robustaugmix": 6, "uat-gap": 4, "uat-smooth": 4,
    "uat-standard": 4, "caat-under": 4, "caat": 8, "ccat": 3, "feature-denoising": 5,
    "ddi-at": 10, "ddi-at-unnormalised": 10, "pni": 1,
}  # fmt: skip
"""Images passed forward per image with 2 inner steps, in the first epoch: clean, random start, 2 steps, the loss."""


class Residual(nn.Module):
    """One residual stage for digits, which denoising blocks need."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer1(x).flatten(1))


OWN: dict[str, dict[str, Any]] = {
    "pni": {"method.after": 2},
    "dca": {"epochs": 8, "method.patience": 0.5},  # from scratch, a weight of 10 holds the confidence at chance
    "mmce": {"epochs": 8, "method.weight": 0.5},
    "high-temperature": {"epochs": 8},
    "feature-denoising": {"optimizer.lr": 0.02},
    "trs": {"method.scale": 0.1},
}
"""What single recipes need to learn the digits in so few steps."""


def fast(name: str) -> TrainingRecipe:
    """24 steps of Adam; attacks in a ball for digits, with 2 steps."""
    method = training_recipe(name).method
    changes: dict[str, Any] = {"epochs": 4, "batch_size": 50, "augment": [], "schedule.name": "cosine"}
    changes |= {"optimizer.name": "adam", "optimizer.lr": 0.01}
    changes |= {f"method.{key}": value for key, value in {"steps": 2, "copies": 2}.items() if key in method}
    changes |= {f"method.{key}": 0.05 for key in ("eps", "step") if method.get(key)}
    return training_recipe(name, changes | OWN.get(name, {}))


def network(recipe: TrainingRecipe) -> nn.Module:
    if recipe.variant == "denoise":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return add_denoising(Residual())
    return blank("builtin:digits" + (f"?variant={recipe.variant}" if recipe.variant else ""), seed=1).module


@pytest.mark.parametrize("name", sorted(training_recipes()))
def test_every_recipe_learns(name: str, digits: Dataset) -> None:
    recipe = fast(name)
    val = data.load("builtin:digits", split="val", samples=100)
    module = network(recipe)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = run(module, recipe, digits, val)
    first, last = found.rows[0], found.rows[-1]
    assert [row["epoch"] for row in found.rows] == list(range(1, recipe.epochs + 1))
    assert last["val_accuracy"] > 0.6, last
    assert last["val_accuracy"] > first["val_accuracy"] - 0.05
    assert last["accuracy_shown"] > 0.5
    if name not in ("pni", "dca"):  # where a term is added on the way
        assert last["loss"] < first["loss"]
    if name == "dca":
        assert ["loss_calibration_gap" in row for row in found.rows] == [False] * 4 + [True] * 4
    terms = {key.removeprefix("loss_") for key in last if key.startswith("loss_")}
    assert terms == TERMS.get(name, {"cross_entropy"})
    assert last["loss"] == pytest.approx(sum(last[f"loss_{term}"] for term in terms))
    assert first["passes"] == pytest.approx(PASSES[name], abs=0.51)  # samples that are done early ask no more
    trained = found.module.state_dict()
    assert all(not torch.equal(before[key], trained[key]) for key in before if not key.endswith("bias"))
    if name == "pni":
        assert ["loss_attacked" in row for row in found.rows] == [False, False, True, True]
        alphas = [value for key, value in trained.items() if key.endswith("alpha")]
        assert any(float((alpha - 0.25).abs().max()) > 1e-3 for alpha in alphas)  # the strength is learned


def test_adversarial_training_does_what_it_is_for(digits: Dataset) -> None:
    """The same attack on networks trained with and without it, 36 steps each."""
    attack, right = AT(eps=0.15, step=0.05, steps=4), {}
    val = data.load("builtin:digits", split="val", samples=200)
    given = Batch(val.images, val.labels, val.ids, seed=9)
    for name in ("standard", "at"):
        changes = {"epochs": 6, "batch_size": 50, "optimizer.name": "adam", "optimizer.lr": 0.01, "augment": []}
        if name == "at":
            changes |= {"method.eps": 0.15, "method.step": 0.07, "method.steps": 3}
        module = run(blank("builtin:digits", seed=1).module, training_recipe(name, changes), digits).module.eval()
        (view,) = attack.views(ModuleTarget(module, num_classes=10), given)
        right[name] = float((answers(module, view).argmax(axis=1) == val.labels.numpy()).mean())
    assert right["at"] > right["standard"] + 0.1, right
