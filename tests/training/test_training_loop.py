"""The loop: resumption to the same weights, what it counts and keeps, when it stops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import poise
from poise.data import Dataset, from_arrays, load
from poise.errors import InputError, PoiseError, RunError
from poise.metrics import ece
from poise.models import fingerprint, load_weights
from poise.targets import ModuleTarget
from poise.training import TrainingRecipe, training_recipe
from poise.training.checkpoint import Store
from poise.training.loop import Job, Progress, Silent, Trainer

SMALL = {"epochs": 3, "batch_size": 32, "augment": [], "optimizer.lr": 0.05}


def fabric() -> Fabric:
    found = Fabric(accelerator="cpu", devices=1)
    found.launch()
    return found


def network(seed: int = 0) -> ModuleTarget:
    """Dropout and batch norm: what an inexact resumption would get wrong."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(6 * 64, 10),
        )
    return ModuleTarget(module, num_classes=10, mean=[0.3], std=[0.4])


def images(split: str, count: int = 100) -> Dataset:
    return load("builtin:digits", split=split)[:count]


def job(store: Path | None = None, recipe: TrainingRecipe | None = None, **changed: Any) -> Job:
    return replace(
        Job(
            target=network(),
            recipe=recipe or training_recipe("standard", SMALL),
            train=images("train"),
            val=images("val", 60),
            workers=0,
            store=None if store is None else Store(store),
        ),
        **changed,
    )


class Killed(BaseException):
    """What no code catches, as a kill would be."""


class DiesAt(Silent):
    """Ends the run after so many steps."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, done: int) -> None:
        if done == self.at:
            raise Killed


UAT = {**SMALL, "method.eps": 0.1, "method.steps": 2, "epochs": 2}
RECIPES: dict[str, dict[str, Any]] = {"standard": SMALL, "uat-smooth": UAT, "mixup": SMALL, "sam": SMALL}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dies", [1, 4, 5, 7])
def test_a_run_that_was_killed_ends_with_the_same_weights(name: str, dies: int, tmp_path: Path) -> None:
    """Inside an epoch (4 steps each) and at its end, with dropout, batch norm, momentum and random views."""
    recipe = training_recipe(name, RECIPES[name] | {"augment": ["crop", "flip"]})
    whole = job(tmp_path / "whole", recipe, save_seconds=0.0)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    ended = Trainer(fabric(), whole).run()
    first = job(tmp_path / "cut", recipe, save_seconds=0.0)
    with pytest.raises(Killed):
        Trainer(fabric(), first, DiesAt(dies)).run()
    other = 9 if dies > 1 else 0  # with a checkpoint the network's own weights must not matter
    second = job(tmp_path / "cut", recipe, target=network(other), save_seconds=0.0)
    resumed = Trainer(fabric(), second).run()
    assert fingerprint(second.target) == fingerprint(whole.target)
    assert [_timeless(row) for row in resumed.rows] == [_timeless(row) for row in ended.rows]


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}


def test_an_order_that_is_not_resumed_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: a run that begins its epoch anew after a kill ends elsewhere."""
    (tmp_path / "cut").mkdir()
    whole = job(None)
    Trainer(fabric(), whole).run()
    with pytest.raises(Killed):
        Trainer(fabric(), job(tmp_path / "cut", save_seconds=0.0), DiesAt(6)).run()
    monkeypatch.setattr(Store, "read_last", _begins_epoch_anew(Store.read_last))
    second = job(tmp_path / "cut", save_seconds=0.0)
    Trainer(fabric(), second).run()
    assert fingerprint(second.target) != fingerprint(whole.target)


def _begins_epoch_anew(read: Callable[[Store], dict[str, Any] | None]) -> Callable[[Store], dict[str, Any] | None]:
    def broken(store: Store) -> dict[str, Any] | None:
        found = read(store)
        assert found is not None
        found["progress"]["step"] = 0
        return found

    return broken


def test_the_seed_decides_and_the_global_generators_do_not() -> None:
    prints = []
    for seed, disturbed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbed)
        before = torch.random.get_rng_state()
        done = job(seed=seed)
        Trainer(fabric(), done).run()
        assert torch.equal(torch.random.get_rng_state(), before)
        prints.append(fingerprint(done.target))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_that_read_change_nothing(workers: int) -> None:
    one, other = job(), job(workers=workers)
    Trainer(fabric(), one).run()
    Trainer(fabric(), other).run()
    assert fingerprint(one.target) == fingerprint(other.target)


def test_what_a_run_leaves(tmp_path: Path) -> None:
    """A row per epoch, as computed anew from the kept weights; the best epoch's weights, the last of equals."""
    done = job(tmp_path)
    ended = Trainer(fabric(), done).run()
    table = pl.read_parquet(tmp_path / "metrics.parquet")
    assert table["epoch"].to_list() == [1, 2, 3]
    assert table["step"].to_list() == [4, 8, 12]
    assert table["passes"].to_list() == pytest.approx([1, 1, 1])
    accuracies = table["val_accuracy"].to_list()
    assert ended.best_epoch == max(range(1, 4), key=lambda epoch: (accuracies[epoch - 1], epoch))
    kept = network(5)
    load_weights(poise.models.bare(kept), tmp_path / "best.safetensors", name="kept")
    answer = kept.query(done.val.images, done.val.ids)
    confidence, right = answer.confidence.numpy(), (answer.labels == done.val.labels).numpy().astype(float)
    best = table.row(ended.best_epoch - 1, named=True)
    assert best["val_accuracy"] == pytest.approx(right.mean())
    assert best["val_confidence"] == pytest.approx(confidence.mean())
    assert best["val_ece"] == pytest.approx(ece(confidence, right))
    last = network(6)
    load_weights(poise.models.bare(last), tmp_path / "model.safetensors", name="last")
    assert fingerprint(last) == fingerprint(done.target)


def test_best_by_likelihood(tmp_path: Path) -> None:
    done = job(tmp_path, training_recipe("standard", SMALL | {"best": "nll", "optimizer.lr": 0.5}))
    ended = Trainer(fabric(), done).run()
    losses = [row["val_nll"] for row in ended.rows]
    assert ended.best_epoch - 1 == int(np.argmin(losses))


def test_passes_count_every_forward_pass() -> None:
    """UAT with 2 steps: clean, two candidates, and the loss: 4; SAM: 2."""
    uat = Trainer(fabric(), job(recipe=training_recipe("uat-smooth", UAT))).run()
    assert uat.rows[0]["passes"] == pytest.approx(4)
    sam = Trainer(fabric(), job(recipe=training_recipe("sam", SMALL))).run()
    assert sam.rows[0]["passes"] == pytest.approx(2)


class Counts(Silent):
    def __init__(self) -> None:
        self.begun: tuple[int, int, int] | None = None
        self.steps: list[int] = []
        self.epochs: list[int] = []
        self.ended = 0

    def begin(self, done: int, steps: int, epochs: int) -> None:
        self.begun = (done, steps, epochs)

    def step(self, done: int) -> None:
        self.steps.append(done)

    def epoch(self, row: dict[str, Any]) -> None:
        self.epochs.append(row["epoch"])

    def end(self) -> None:
        self.ended += 1


def test_a_listener_hears_every_step() -> None:
    heard = Counts()
    Trainer(fabric(), job(), heard).run()
    assert heard.begun == (0, 12, 3)
    assert heard.steps == list(range(1, 13))
    assert (heard.epochs, heard.ended) == ([1, 2, 3], 1)


def test_a_listener_hears_the_end_of_a_run_that_failed() -> None:
    heard = Counts()
    with pytest.raises(PoiseError):
        Trainer(fabric(), job(target=ModuleTarget(_Poisoned(at=2), num_classes=10)), heard).run()
    assert (heard.steps, heard.ended) == ([1], 1)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    good = job(tmp_path, training_recipe("standard", SMALL | {"epochs": 2}))
    Trainer(fabric(), good).run()
    kept = torch.load(tmp_path / "last.pt", weights_only=True)
    worse = job(
        tmp_path, training_recipe("standard", SMALL | {"epochs": 4, "optimizer.lr": 1e30, "schedule.name": "constant"})
    )
    with pytest.raises(
        PoiseError, match=r"train: .* must be finite, got .* at step [12] of epoch 3 .*; kept: .*last.pt"
    ):
        Trainer(fabric(), worse).run()
    after = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(torch.equal(kept["model"][name], after["model"][name]) for name in kept["model"])
    assert after["progress"]["epoch"] == 2


class _Poisoned(nn.Module):
    """Answers NaN from the given call on, in training mode."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.layer, self.calls, self.at = nn.Linear(64, 10), 0, at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        answer: Tensor = self.layer(x.flatten(1))
        return answer * (math.nan if self.training and self.calls >= self.at else 1.0)


def test_the_message_says_where(tmp_path: Path) -> None:
    target = ModuleTarget(_Poisoned(at=6), num_classes=10)
    with pytest.raises(PoiseError, match="got nan in the term 'cross_entropy' at step 2 of epoch 2"):
        Trainer(fabric(), job(tmp_path, target=target)).run()


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """The loss is finite, the weights after the step are not: the next look refuses them."""

    class Spoils(Silent):
        def __init__(self, module: nn.Module) -> None:
            self.module = module

        def step(self, done: int) -> None:
            if done == 8:
                with torch.no_grad():
                    next(self.module.parameters()).fill_(math.inf)

    done = job(tmp_path)
    with pytest.raises(PoiseError, match="the weights must be finite"):
        Trainer(fabric(), done, Spoils(done.target.module)).run()
    kept = torch.load(tmp_path / "last.pt", weights_only=True)
    assert kept["progress"]["epoch"] == 1
    assert all(torch.isfinite(value.float()).all() for value in kept["model"].values())


def test_gradient_clipping_bounds_the_step() -> None:
    """Plain SGD of one step: the weights move by lr times at most clip_norm."""
    changes = {
        "epochs": 1, "batch_size": 128, "augment": [], "optimizer.lr": 1.0, "optimizer.momentum": 0.0,
        "optimizer.nesterov": False, "optimizer.weight_decay": 0.0,
    }  # fmt: skip
    lengths = {}
    for clip in (None, 0.01):
        done = job(recipe=training_recipe("standard", changes | ({} if clip is None else {"clip_norm": clip})))
        before = [one.detach().clone() for one in done.target.module.parameters()]
        Trainer(fabric(), done).run()
        moved = [one.detach() - old for one, old in zip(done.target.module.parameters(), before, strict=True)]
        lengths[clip] = math.sqrt(sum(float(part.square().sum()) for part in moved))
    assert lengths[0.01] == pytest.approx(0.01, rel=1e-3)
    assert lengths[None] > 0.05


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    target = poise.models.blank("builtin:digits?frozen=true", num_classes=10)
    before = {name: value.clone() for name, value in target.module.state_dict().items()}
    Trainer(fabric(), job(tmp_path, target=target)).run()
    after = target.module.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    assert all(name.startswith("7.") for name in changed), changed


def test_bf16_trains() -> None:
    mixed = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    mixed.launch()
    done = job(recipe=training_recipe("uat-smooth", UAT))
    ended = Trainer(mixed, done).run()
    assert all(one.dtype is torch.float32 for one in done.target.module.parameters())
    assert math.isfinite(ended.rows[-1]["loss"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val": images("val")[:0]}, "val must hold at least one image, got none"),
        ({"train": images("train")[:0]}, "data must hold at least one image per device, got 0"),
    ],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trainer(fabric(), job(**changed))


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    Trainer(fabric(), job(tmp_path)).run()
    path = tmp_path / "last.pt"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"no checkpoint", whole[:-200] + bytes(200)):
        path.write_bytes(broken)
        with pytest.raises(RunError, match=r"last.pt' is damaged .*delete it to begin anew"):
            Store(tmp_path).read_last()
    torch.save({"model": {}, "optimizer": {}}, path)
    with pytest.raises(RunError, match="it is no checkpoint"):
        Store(tmp_path).read_last()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    Trainer(fabric(), job(tmp_path)).run()
    other = poise.models.blank("builtin:digits", num_classes=10)
    with pytest.raises(InputError, match=r"weights: the checkpoint's weights do not fit the network"):
        Trainer(fabric(), job(tmp_path, target=other)).run()


def test_a_single_image_and_a_batch_larger_than_the_data() -> None:
    rng = np.random.default_rng(0)
    one = from_arrays(
        rng.integers(0, 256, (3, 8, 8), dtype=np.uint8), np.array([0, 1, 2]), class_names=list("0123456789")
    )
    ended = Trainer(fabric(), job(train=one, recipe=training_recipe("standard", SMALL | {"epochs": 1}))).run()
    assert isinstance(ended, Progress)
    assert ended.rows[0]["step"] == 1
