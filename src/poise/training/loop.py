"""The one training loop, on Lightning Fabric: any number of devices, mixed precision, exact resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from poise.data import Dataset, Loader, augmentation, epoch_batches, epoch_length
from poise.errors import InputError, PoiseError, TargetError
from poise.models import bare
from poise.models.weights import put_state
from poise.rng import Rng, mix_int
from poise.targets import ModuleTarget
from poise.targets.base import private_random
from poise.training.base import Batch, trained
from poise.training.checkpoint import Row, Store
from poise.training.recipe import TrainingRecipe
from poise.training.schedule import learning_rate, made_optimizer
from poise.training.tally import Tally
from poise.training.validation import figures, sums

LOOK_EVERY = 20
"""Steps between looks at the losses of a GPU, each of which waits for it; on a CPU every loss is looked at."""


class Listener(Protocol):
    """What follows a run; only process 0 is followed."""

    def begin(self, done: int, steps: int, epochs: int) -> None:
        """`steps` steps in all, of which `done` are done."""
        ...

    def step(self, done: int) -> None:
        """So many steps are done."""
        ...

    def epoch(self, row: Row) -> None:
        """The row of the epoch that has just ended."""
        ...

    def end(self) -> None:
        """The run is over, however it ended."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained on what.

    Args:
        target: the network, with its normalisation, in `poise.models.blank`'s form; its module is trained in place.
        recipe: how.
        train, val: images to learn from; images that choose the epoch that is kept.
        seed: of the order, the augmentation, the attacks and the network's own draws.
        workers: threads that read images.
        save_seconds: time between checkpoints inside an epoch; the end of an epoch always writes one.
        store: where checkpoints, weights and metrics go; None keeps nothing.
    """

    target: ModuleTarget
    recipe: TrainingRecipe
    train: Dataset
    val: Dataset
    seed: int = 0
    workers: int = 2
    save_seconds: float = 600.0
    store: Store | None = None


@dataclass
class Progress:
    """Where a run stands: everything that a checkpoint holds besides weights and the optimiser."""

    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


class Silent:
    """A listener that shows nothing."""

    def begin(self, done: int, steps: int, epochs: int) -> None: ...

    def step(self, done: int) -> None: ...

    def epoch(self, row: Row) -> None: ...

    def end(self) -> None: ...


class Trainer:
    """Trains one network. `run()` does it all.

    Args:
        fabric: a launched `lightning_fabric.Fabric`.
        job: what is trained on what.
        listener: follows.

    Raises:
        InputError: fewer training images than devices, a batch that cannot be shared out, or no validation image.
    """

    def __init__(self, fabric: Any, job: Job, listener: Listener | None = None) -> None:
        _check(job, fabric.world_size)
        self.fabric, self.job, self.listener = fabric, job, listener or Silent()
        recipe, target = job.recipe, job.target
        self.per_epoch = epoch_length(len(job.train), recipe.batch_size, world=fabric.world_size)
        self.method, self.update = recipe.made_method(), recipe.made_update()
        self.module = target.module.to(fabric.device)
        if fabric.device.type == "cuda":  # what its convolutions are fastest with
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.raw_optimizer = made_optimizer(recipe.optimizer, trained(self.module))
        self.forward, self.optimizer = fabric.setup(self.module, self.raw_optimizer)
        self.attacked = ModuleTarget(
            _InPrecision(self.module, fabric),
            num_classes=target.num_classes,
            bounds=target.bounds,
            device=fabric.device,
            batch_size=recipe.batch_size,
        )
        self.augment = augmentation(recipe.augment)
        self.at = Progress()
        self.tally = Tally(fabric.device)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.per_epoch * self.job.recipe.epochs

    @property
    def done(self) -> int:
        """Steps done."""
        return self.at.epoch * self.per_epoch + self.at.step

    def run(self) -> Progress:
        """Trains to the last epoch, from the checkpoint in the store where there is one.

        Returns:
            Where it ended, with a row per epoch. The module holds the last weights, in eval mode.

        Raises:
            PoiseError: the loss is no longer finite; the store keeps the last good checkpoint.
        """
        self._resume()
        self.listener.begin(self.done, self.steps, self.job.recipe.epochs)
        try:
            with private_random(self.fabric.device, None), self.tally.watching(self.module):
                while self.at.epoch < self.job.recipe.epochs:
                    self._epoch()
        finally:
            self.listener.end()
        self.module.eval()
        if self.job.store is not None and self.fabric.is_global_zero:
            self.job.store.write_weights("model", bare(self.job.target), self.at.rows[-1])
        self.fabric.barrier()
        return self.at

    def _epoch(self) -> None:
        began = saved = time.perf_counter()
        before = self.at.seconds
        for images, labels, ids in self._batches():
            self._step(self._batch(images, labels, ids))
            self.at.step += 1
            self.at.seconds = before + time.perf_counter() - began
            self.listener.step(self.done)
            if self.at.step < self.per_epoch and time.perf_counter() - saved >= self.job.save_seconds:
                self._save()
                saved = time.perf_counter()
        self._look()
        self._end_epoch()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        fabric, recipe = self.fabric, self.job.recipe
        positions = epoch_batches(
            len(self.job.train),
            recipe.batch_size,
            seed=self.job.seed,
            epoch=self.at.epoch,
            start=self.at.step,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        return iter(self._loader(self.job.train, positions))

    def _loader(self, data: Dataset, positions: Iterable[Tensor]) -> Loader:
        return Loader(data, positions, workers=self.job.workers, pin_memory=self.fabric.device.type == "cuda")

    def _batch(self, images: Tensor, labels: Tensor, ids: Tensor) -> Batch:
        device = self.fabric.device
        images, labels, ids = (part.to(device, non_blocking=True) for part in (images, labels, ids))
        images = self.augment(images, Rng(self.job.seed, ids), self.at.epoch)
        return Batch(images, labels, ids, self.job.seed, self.done, self.at.epoch, self.done / self.steps)

    def _step(self, batch: Batch) -> None:
        recipe = self.job.recipe
        rate = learning_rate(recipe.schedule, recipe.optimizer.lr, self.done, self.steps, self.per_epoch)
        for group in self.raw_optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(mix_int(mix_int(self.job.seed) + (self.done << 16) + self.fabric.global_rank) >> 1)
        self.tally.begin_step()
        try:
            views = self.method.views(self.attacked, batch)
        except TargetError as error:
            raise self._diverged(f"the network's answers must be finite ({error})") from error
        self.module.train()
        self.optimizer.zero_grad()
        terms = self.update.gradients(
            lambda some: self.method.loss(self.forward, batch, some), views, self.fabric.backward, self.module
        )
        self.tally.add(self.at.step, terms, batch.labels)
        if self.fabric.device.type == "cpu" or len(self.tally.pending) >= LOOK_EVERY:
            self._look_at_losses()
        if recipe.clip_norm is not None:
            self.fabric.clip_gradients(
                self.forward, self.optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()

    def _look_at_losses(self) -> None:
        """Stops the run where a term of one of the last steps is not finite."""
        found = self.tally.first_not_finite()
        if found is not None:
            step, name, value = found
            raise self._diverged(f"the loss must be finite, got {value} in the term '{name}'", step)

    def _look(self) -> None:
        """The same, and the weights themselves: what is saved next is good."""
        self._look_at_losses()
        tensors = (one.detach() for one in self.module.state_dict().values() if one.numel())
        if not bool(torch.isfinite(torch.stack([one.abs().max().float() for one in tensors])).all()):
            raise self._diverged("the weights must be finite, got NaN or infinite ones")

    def _diverged(self, what: str, step: int | None = None) -> PoiseError:
        where = f"step {(self.at.step if step is None else step) + 1} of epoch {self.at.epoch + 1}"
        kept = "" if self.job.store is None else f"; {self.job.store.last_good()}"
        return PoiseError(f"train: {what} at {where} (a lower learning rate, or clip_norm, may help){kept}")

    def _end_epoch(self) -> None:
        recipe, fabric = self.job.recipe, self.fabric
        means = self.tally.means(fabric)
        found = self._validate()
        row: Row = {"epoch": self.at.epoch + 1, "step": self.done, "lr": self.raw_optimizer.param_groups[0]["lr"]}
        row |= means | {f"val_{name}": value for name, value in found.items()}
        row |= {"seconds": self.at.seconds, "images_per_second": len(self.job.train) / max(self.at.seconds, 1e-9)}
        value = found["accuracy"] if recipe.best == "accuracy" else -found["nll"]
        better = value >= self.at.best
        self.at.rows.append(row | {"best": better})
        self.at.epoch, self.at.step, self.at.seconds = self.at.epoch + 1, 0, 0.0
        if better:
            self.at.best, self.at.best_epoch = value, self.at.epoch
        store = self.job.store
        if store is not None and fabric.is_global_zero:
            if better:
                store.write_weights("best", bare(self.job.target), self.at.rows[-1])
            self._write()
            store.write_rows(self.at.rows)
        fabric.barrier()
        self.listener.epoch(self.at.rows[-1])

    def _validate(self) -> dict[str, float]:
        """Accuracy, confidence, ECE and NLL on the validation images, each process a share of them."""
        rank, world, size = self.fabric.global_rank, self.fabric.world_size, self.job.recipe.batch_size
        mine = torch.arange(rank, len(self.job.val), world)
        batches = ((images, labels) for images, labels, _ in self._loader(self.job.val, torch.split(mine, size)))
        self.module.eval()
        found = sums(_InPrecision(self.module, self.fabric), batches, self.fabric.device)
        return figures(self.fabric.all_reduce(found, reduce_op="sum"))

    def _save(self) -> None:
        """A checkpoint inside an epoch."""
        self._look()
        if self.job.store is not None and self.fabric.is_global_zero:
            self._write()
        self.fabric.barrier()

    def _write(self) -> None:
        assert self.job.store is not None
        self.at.sums = self.tally.state() if self.at.step else {}
        self.job.store.write_last(
            {
                "model": bare(self.job.target).state_dict(),
                "optimizer": self.raw_optimizer.state_dict(),
                "progress": asdict(self.at),
            }
        )

    def _resume(self) -> None:
        found = None if self.job.store is None else self.job.store.read_last()
        if found is None:
            return
        put_state(bare(self.job.target), found["model"], name="the network", origin="the checkpoint's weights")
        self.raw_optimizer.load_state_dict(found["optimizer"])
        self.at = Progress(**found["progress"])
        self.tally.restore(self.at.sums)


def _check(job: Job, world: int) -> None:
    if len(job.val) == 0:
        raise InputError("train: val must hold at least one image, got none")
    if len(job.train) < world:
        raise InputError(f"train: data must hold at least one image per device, got {len(job.train)} for {world}")
    if job.recipe.batch_size % world:
        raise InputError(f"train: batch_size must be a multiple of the {world} devices, got {job.recipe.batch_size}")


class _InPrecision(nn.Module):
    """The network as it is, in the precision of the run, without what gathers gradients from other processes."""

    def __init__(self, module: nn.Module, fabric: Any) -> None:
        super().__init__()
        self.module, self._fabric = module, fabric

    def forward(self, x: Tensor) -> Tensor:
        """(m, C, H, W) to logits (m, K) in float32 or better."""
        with self._fabric.autocast():
            answer: Tensor = self.module(x)
        return answer if answer.dtype.itemsize >= 4 else answer.float()
