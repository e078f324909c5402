"""The adaptive attacker: for every sample the worst of several attacks, all judged on the model that is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from poise import metrics
from poise.data import Dataset
from poise.errors import RunError, brief
from poise.experiments import files
from poise.experiments.defend_attackers import ATTACKS, BARE, SURROGATE, THROUGH, knowledge, surrogate
from poise.experiments.prepare import Prepared
from poise.experiments.run_folder import RunFolder
from poise.recipebook import Recipe, Setting, ball
from poise.recipebook import recipe as recipe_named
from poise.rng import Rng
from poise.table import read_parquet
from poise.targets import ModuleTarget, Target
from poise.types import Outputs


@dataclass(frozen=True)
class Judged:
    """The attacker's choice for n samples.

    Args:
        images: (n, C, H, W) the chosen images.
        rows: id, label, attack (whose image it is), merit and accepted of every attack, prediction, confidence, Brier
            score and NLL before and after on the defended model.
    """

    images: Tensor
    rows: pl.DataFrame


@dataclass(frozen=True)
class Member:
    """What one attack found for n samples.

    Args:
        images: (n, C, H, W) inside the ball.
        recorded: what the served model answered when the attack was made: prediction_before and the columns of
            `answered` for "after". None where answers are random, so that a record would be the luckiest of many.
    """

    images: Tensor
    recorded: pl.DataFrame | None = None


def judge(
    target: Target, recipe: Recipe, clean: Tensor, found: dict[str, Member], truth: tuple[Tensor, Tensor], seed: int
) -> Judged:
    """For every sample the image that serves the recipe's goal best, as the target answers it.

    An image that the goal does not accept (its label changed under a recipe that keeps labels) counts only where no
    attack has one that it does; among the rest the least merit wins, the earlier attack among equals. Attacks on
    confidence end at the very boundary, where the label depends on the other rows of a batch: where a record says that
    it was kept, it was, and the record's figures are reported, as in an audit.

    Args:
        target: the model that is served.
        recipe: says what the attacker is after.
        clean: (n, C, H, W).
        found: by attack (a name of `ATTACKS`); at least one.
        truth: labels (n,) and ids (n,).
        seed: of the run; recipes with random goals take them from it and the ids.
    """
    labels, ids = (part.to(target.device) for part in truth)
    everyone = torch.arange(len(clean), device=target.device)
    with target.session(seed):
        before = target.query(clean.to(target.device), ids)
        answers = [target.query(member.images.to(target.device), ids) for member in found.values()]
    goal = recipe.objective.bind(before, labels, everyone, Rng(seed, ids))
    merit = torch.stack([goal.merit(answer, everyone) for answer in answers])
    accepted = torch.stack([goal.accept(answer, everyone) for answer in answers])
    if recipe.keeps_label:
        accepted |= torch.stack([_kept(member, len(clean)) for member in found.values()]).to(accepted.device)
    best = torch.where(accepted | ~accepted.any(dim=0), merit, torch.inf).argmin(dim=0).cpu()
    images = torch.stack([member.images.cpu() for member in found.values()])[best, torch.arange(len(clean))]
    frames = [
        pl.DataFrame(answered(answer, labels, "after")) if member.recorded is None else member.recorded
        for member, answer in zip(found.values(), answers, strict=True)
    ]
    after = [
        pl.Series(f"{name}_after", [frames[at][f"{name}_after"][row] for row, at in enumerate(best.tolist())])
        for name in ("prediction", "confidence", "brier", "nll")
    ]
    frame = pl.DataFrame({"id": ids.cpu().numpy(), "label": labels.cpu().numpy()}).with_columns(
        pl.Series("attack", [list(found)[at] for at in best.tolist()], dtype=pl.String),
        *(_member(f"merit_{name}", merit.double(), found, name, pl.Float64()) for name in ATTACKS),
        *(_member(f"accepted_{name}", accepted, found, name, pl.Boolean()) for name in ATTACKS),
        *answered(before, labels, "before"),
        *after,
    )
    return Judged(images, frame)


def _kept(member: Member, n: int) -> Tensor:
    """(n,) bool: the record says that the label was kept."""
    rows = member.recorded
    if rows is None:
        return torch.zeros(n, dtype=torch.bool)
    return torch.tensor((rows["prediction_after"] == rows["prediction_before"]).to_list(), dtype=torch.bool)


def _member(column: str, values: Tensor, found: dict[str, Member], name: str, kind: pl.DataType) -> pl.Series:
    """The row of values (attacks, n) that belongs to an attack; nulls where it was not made."""
    own = values[list(found).index(name)].tolist() if name in found else [None] * values.shape[1]
    return pl.Series(column, own, dtype=kind)


def answered(outputs: Outputs, labels: Tensor, when: str) -> list[pl.Series]:
    """Prediction, confidence, Brier score and NLL of every row, in columns that end in _before or _after."""
    truth, probabilities = labels.cpu().numpy(), outputs.probabilities.cpu().numpy()
    return [
        pl.Series(f"prediction_{when}", outputs.labels.cpu().numpy()),
        pl.Series(f"confidence_{when}", outputs.confidence.cpu().numpy()),
        pl.Series(f"brier_{when}", metrics.brier_rows(probabilities, truth)),
        pl.Series(f"nll_{when}", metrics.nll_rows(probabilities, truth)),
    ]


class AdaptiveFolder:
    """What an adaptive attacker chose, beside the audit it builds on: OUT/adaptive.

    Args:
        root: the run folder OUT.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "adaptive"

    def file(self, kind: str, recipe: str, defence: str, chunk: int, suffix: str) -> Path:
        return self.root / kind / f"{recipe}.{defence}.{chunk:05d}.{suffix}"

    def has(self, recipe: str, defence: str, chunk: int) -> bool:
        """The chunk is complete; its rows are written last."""
        return all(path.exists() for path in self._pair(recipe, defence, chunk))

    def write(self, recipe: str, defence: str, chunk: int, judged: Judged) -> None:
        images, rows = self._pair(recipe, defence, chunk)
        ids = torch.from_numpy(judged.rows["id"].to_numpy().copy())
        files.write_tensors(images, {"ids": ids, "images": judged.images})
        tags = pl.lit(recipe).alias("recipe"), pl.lit(defence).alias("defence"), pl.lit("adaptive").alias("view")
        files.write_parquet(rows, judged.rows.with_columns(*tags))

    def rows(self, recipe: str, defence: str, chunks: int) -> pl.DataFrame:
        """The rows of one recipe on one defence.

        Raises:
            RunError: a table is damaged.
        """
        tables = []
        for chunk in range(chunks):
            path = self.file("samples", recipe, defence, chunk, "parquet")
            try:
                tables.append(read_parquet(path))
            except (OSError, pl.exceptions.PolarsError) as error:
                reason = brief(next(iter(str(error).splitlines()), type(error).__name__))
                raise RunError(f"adaptive: '{path}' is damaged ({reason}); delete it and give --resume") from None
        return pl.concat(tables)

    def _pair(self, recipe: str, defence: str, chunk: int) -> tuple[Path, Path]:
        images = self.file("adversarial", recipe, defence, chunk, "safetensors")
        return images, self.file("samples", recipe, defence, chunk, "parquet")


def chunks(prepared: Prepared) -> list[Dataset]:
    """The attacked images in the chunks of the run."""
    size = prepared.spec.batch_size
    return [prepared.attacked[start : start + size] for start in range(0, len(prepared.attacked), size)]


def adapt(prepared: Prepared, run: RunFolder, folder: AdaptiveFolder, recipe: str, defence: str) -> None:
    """Runs what is missing of the adaptive attack of one recipe on one defence.

    Args:
        prepared: model, data and fitted defences of the run.
        run: the finished audit, whose images this chooses from.
        folder: where the choice goes.
    """
    for number, part in enumerate(chunks(prepared)):
        if folder.has(recipe, defence, number):
            continue
        images, labels, ids = next(iter(part.batches(len(part))))
        rows = slice(number * prepared.spec.batch_size, number * prepared.spec.batch_size + len(part))
        recorded: dict[str, pl.DataFrame | None] = dict.fromkeys((THROUGH, BARE))
        if not prepared.defences[defence].stochastic:
            recorded = {
                THROUGH: run.rows(recipe, defence, "aware")[rows],
                BARE: run.rows(recipe, defence, "unaware")[rows],
            }
        found = {
            THROUGH: Member(_images(run, recipe, defence, number, ids), recorded[THROUGH]),
            BARE: Member(_images(run, recipe, "none", number, ids), recorded[BARE]),
        }
        further = _surrogate(prepared, recipe, defence, images, labels, ids)
        if further is not None:
            found[SURROGATE] = further
        target = prepared.targets[defence]
        judged = judge(target, recipe_named(recipe), images, found, (labels, ids), prepared.spec.seed)
        folder.write(recipe, defence, number, judged)


def _images(run: RunFolder, recipe: str, defence: str, chunk: int, ids: Tensor) -> Tensor:
    stored = run.images(recipe, defence, chunk)
    if not torch.equal(stored["ids"], ids):
        raise RunError(
            f"adversarial: '{run.root}' must hold {recipe} × {defence} of this run's images, it holds others"
        )
    return stored["images"]


def _surrogate(
    prepared: Prepared, recipe: str, defence: str, images: Tensor, labels: Tensor, ids: Tensor
) -> Member | None:
    """What the further attack finds that the defence's entry asks for."""
    module, bare, served = prepared.defences[defence], prepared.target, prepared.targets[defence]
    if not isinstance(bare, ModuleTarget) or not isinstance(served, ModuleTarget):
        return None
    pair = surrogate(knowledge(defence, module), recipe_named(recipe), bare, served, module)
    if pair is None:
        return None
    spec, (changed, target) = prepared.spec, pair
    setting = Setting(ball(spec.norm, spec.eps), spec.budget, spec.steps)
    result = changed.run(target, images, labels, setting, ids=ids, seed=spec.seed)
    if module.stochastic:
        return Member(result.images)
    return Member(
        result.images,
        pl.DataFrame(
            [result.table["prediction_before"], *answered(Outputs(result.scores, target.kind), labels, "after")]
        ),
    )
