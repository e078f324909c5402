"""attack(): checks the input, drives one search per batch, and returns images and a result table."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from poise import table
from poise.constraints.base import TOLERANCE, Constraint
from poise.errors import AccessError, InputError
from poise.objectives.base import Objective
from poise.searches.base import Search
from poise.searches.driver import Driver, OnProgress, Run
from poise.spec import fingerprint
from poise.targets.base import DifferentiableTarget, Target
from poise.types import Access, AttackResult, OutputKind, Outputs


@dataclass(frozen=True, slots=True)
class Watch:
    """What to look at while an attack runs; changes no result.

    Args:
        on_progress: called after every ask.
        checkpoints: numbers of queries after which confidence and prediction are kept in `AttackResult.curve`.
        trace: keep margin, confidence, loss and step of every point in `AttackResult.trace`; grows with the budget.

    >>> import poise
    >>> from poise.constraints import Linf
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> watch = Watch(checkpoints=(5, 10), trace=True)
    >>> goal, search = poise.objectives.KeepLabel(poise.objectives.UCA()), poise.searches.PGD(steps=9)
    >>> result = poise.attack(target, goal, search, Linf(0.1), data.images, data.labels, watch=watch)
    >>> result.curve["queries"].unique().sort().to_list(), result.trace["iteration"].max()
    ([5, 10], 9)
    """

    on_progress: OnProgress | None = None
    checkpoints: tuple[int, ...] = ()
    trace: bool = False


NOTHING = Watch()


def attack(
    target: Target,
    objective: Objective,
    search: Search,
    constraint: Constraint,
    images: Tensor,
    labels: Tensor,
    ids: Tensor | None = None,
    budget: int = 1000,
    seed: int = 0,
    watch: Watch = NOTHING,
) -> AttackResult:
    """Attacks every image and returns for each the best point that was verified: in ball and bounds, accepted.

    Args:
        target: the classifier under attack.
        objective: what is minimised, e.g. `KeepLabel(UCA())`.
        search: how points are proposed, e.g. `Square()`.
        constraint: where they may lie, e.g. `Linf(8 / 255)`.
        images: (n, C, H, W) float32 or float64 in the target's bounds.
        labels: (n,) true classes in 0..K-1.
        ids: (n,) names of the samples; random draws depend on them, not on the order. Default 0..n-1.
        budget: most forward passes per sample, the clean one included.
        seed: of all random draws; the global generators are neither read nor written.
        watch: progress callback and checkpoints.

    Returns:
        Images, result table, scores before and after, and the curve over queries. A sample whose attack found nothing
        keeps its clean image.

    Raises:
        InputError: shapes, types or values that make no sense; AccessError: the target gives less than is needed.

    >>> import torch, poise
    >>> from poise.objectives import UCA, KeepLabel
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> result = attack(target, KeepLabel(UCA()), poise.searches.Square(), poise.constraints.Linf(0.1),
    ...                 torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), budget=20)
    >>> (result.table["prediction_before"] == result.table["prediction_after"]).all()
    True
    """
    _check_tensors(images=images, labels=labels, ids=ids)
    ids = torch.arange(len(images)) if ids is None else ids
    labels, ids = _checked(target, images, labels, ids)
    _check_access(target, objective, search)
    if budget < 1:
        raise InputError(f"attack: budget must be at least 1 query per sample, got {budget}")
    if not 0 <= seed < 2**63:
        raise InputError(f"attack: seed must be in 0..2^63 - 1, got {seed}")
    spec = fingerprint(objective, search, constraint, budget)
    parts, low, high = [], *target.bounds
    for start in range(0, len(images), target.batch_size):
        rows = slice(start, start + target.batch_size)
        began = time.perf_counter()
        driver = Driver(
            target=target,
            objective=objective,
            search=search,
            constraint=constraint,
            labels=labels[rows].to(target.device),
            sample_ids=ids[rows].to(target.device),
            budget=budget,
            seed=seed,
            on_progress=_shifted(watch.on_progress, start, len(images)),
            checkpoints=tuple(sorted({q for q in watch.checkpoints if q <= budget})),
            trace=watch.trace,
        )
        clean = images[rows].detach().to(target.device).clone(memory_format=torch.contiguous_format).clamp_(low, high)
        run = driver.run(clean)
        parts.append(_part(run, clean, driver, (time.perf_counter() - began) / len(clean), spec))
    return _joined(parts, images, target.num_classes)


def _check_tensors(**given: object) -> None:
    for name, value in given.items():
        if value is not None and not isinstance(value, Tensor):
            raise InputError(
                f"attack: {name} must be a torch tensor, got {type(value).__name__} (torch.as_tensor makes one)"
            )


def _checked(target: Target, images: Tensor, labels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    if images.ndim != 4:
        raise InputError(f"attack: images must be (n, C, H, W), got shape {tuple(images.shape)}")
    if images.dtype not in (torch.float32, torch.float64):
        hint = " (divide uint8 images by 255)" if images.dtype == torch.uint8 else ""
        raise InputError(f"attack: images must be float32 or float64, got {images.dtype}{hint}")
    for name, value in (("labels", labels), ("ids", ids)):
        if value.shape != (len(images),) or value.is_floating_point() or value.dtype == torch.bool:
            raise InputError(
                f"attack: {name} must be ({len(images)},) integers, got {tuple(value.shape)} {value.dtype}"
            )
    if len(images) == 0:
        return labels.long(), ids.long()
    low, high = (float(end) for end in images.detach().aminmax())  # a NaN image makes both NaN
    if not (target.bounds[0] - TOLERANCE <= low and high <= target.bounds[1] + TOLERANCE):
        raise InputError(
            f"attack: images must lie in the target's bounds [{target.bounds[0]:g}, {target.bounds[1]:g}], "
            f"got values in [{low:.4g}, {high:.4g}] (normalisation belongs inside the target: mean=, std=)"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= target.num_classes:
        raise InputError(
            f"attack: labels must be in 0..{target.num_classes - 1}, "
            f"got values in {int(labels.min())}..{int(labels.max())}"
        )
    return labels.long(), ids.long()


def _check_access(target: Target, objective: Objective, search: Search) -> None:
    needed = max(objective.access, search.access)
    given = Access.LABELS if target.kind is OutputKind.LABELS else target.access
    if given == Access.GRADIENTS and not isinstance(target, DifferentiableTarget):
        given = Access.SCORES
    if needed > given:
        raise AccessError(
            f"attack: {type(objective).__name__} with {type(search).__name__} needs access '{needed.name.lower()}', "
            f"the target gives '{given.name.lower()}'"
        )


def _shifted(callback: OnProgress | None, start: int, total: int) -> OnProgress | None:
    if callback is None:
        return None
    return lambda progress: callback(dataclasses.replace(progress, first=start, total=total))


def _part(run: Run, clean: Tensor, driver: Driver, seconds: float, spec: str) -> AttackResult:
    """Result of one batch, still on the target's device but for its tables."""
    after = Outputs(run.best.scores, run.clean.kind)
    change = (run.best.x - clean).flatten(1)
    broke = ~run.done & (run.meter.queries >= driver.budget)
    stop = torch.where(run.done, 0, torch.where(broke, 1, 2)).cpu().numpy()
    columns = {
        "id": driver.sample_ids,
        "label": driver.labels,
        "prediction_before": run.clean.labels,
        "prediction_after": after.labels,
        "confidence_before": run.clean.confidence,
        "confidence_after": after.confidence,
        "loss_before": run.clean_merit,
        "loss_after": run.best.merit,
        "accepted": run.bound.accept(after, torch.arange(len(clean), device=clean.device)),
        "queries": run.meter.queries,
        "gradients": run.meter.gradients,
        "zero_gradients": run.zero_gradients,
        "improved_at": run.improved_at,
        "linf": change.abs().amax(dim=1),
        "l2": change.norm(dim=1),
    }
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in columns.items()}
    arrays |= {
        "queries_to_success": pl.Series([count if count >= 0 else None for count in run.queries_to_success.tolist()]),
        "stop": [("success", "budget", "finished")[code] for code in stop],
        "wrong_confidence": None if run.aside is None else (-run.aside).cpu().numpy(),
        "seconds": seconds,
        "seed": driver.seed,
        "spec": spec,
    }
    return AttackResult(
        images=run.best.x,
        table=table.rows(arrays, len(clean)),
        scores_before=run.clean.scores,
        scores=run.best.scores,
        curve=_curve(run, driver.sample_ids),
        trace=_trace(run, driver.sample_ids),
    )


def _trace(run: Run, ids: Tensor) -> pl.DataFrame:
    frames = []
    for at in run.trace:
        rows = {"id": ids[at.ids], "queries": at.queries, "margin": at.margin, "confidence": at.confidence}
        frame = pl.DataFrame({name: value.cpu().numpy() for name, value in (rows | {"loss": at.loss}).items()})
        step = (
            pl.Series("step", at.step.cpu().numpy()) if isinstance(at.step, Tensor) else pl.lit(at.step).alias("step")
        )
        frames.append(frame.with_columns(pl.lit(at.iteration).alias("iteration"), step))
    return table.joined([table.cast_trace(frame) for frame in frames], table.TRACE)


def _curve(run: Run, ids: Tensor) -> pl.DataFrame:
    frames = []
    for queries, scores in run.curve:
        outputs = Outputs(scores, run.clean.kind)
        rows = {"id": ids, "confidence": outputs.confidence, "prediction": outputs.labels}
        frame = pl.DataFrame({name: value.cpu().numpy() for name, value in rows.items()})
        frames.append(frame.with_columns(pl.lit(queries).alias("queries")))
    return table.joined([table.cast_curve(frame) for frame in frames], table.CURVE)


def _joined(parts: list[AttackResult], images: Tensor, classes: int) -> AttackResult:
    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors).to(images.device) if tensors else images.new_zeros(0, classes)

    return AttackResult(
        images=joined([part.images for part in parts]).to(images.dtype) if parts else images.detach().clone(),
        table=table.joined([part.table for part in parts], table.SCHEMA),
        scores_before=joined([part.scores_before for part in parts]),
        scores=joined([part.scores for part in parts]),
        curve=table.joined([part.curve for part in parts], table.CURVE),
        trace=table.joined([part.trace for part in parts], table.TRACE),
    )
