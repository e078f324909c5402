"""An attack's result table with what reports want besides: proper scores, size of the change, a defended answer."""

from __future__ import annotations

import dataclasses

import polars as pl
import torch
from torch import Tensor

from poise import metrics
from poise.targets import Target
from poise.types import AttackResult, OutputKind, Outputs


def similarity(clean: Tensor, adversarial: Tensor) -> pl.DataFrame:
    """Size of the change per image: delta_w and SSIM."""
    before, after = clean.cpu().numpy(), adversarial.cpu().numpy()
    return pl.DataFrame({"delta_w": metrics.delta_w(before, after), "ssim": metrics.ssim(before, after)})


def with_scores(result: AttackResult, labels: Tensor, kind: OutputKind, similar: pl.DataFrame) -> pl.DataFrame:
    """The result table with the proper scores of the whole distribution and the size of the change."""
    truth, columns = labels.cpu().numpy(), {}
    for when, scores in (("before", result.scores_before), ("after", result.scores)):
        probabilities = Outputs(scores, kind).probabilities.cpu().numpy()
        columns[f"brier_{when}"] = metrics.brier_rows(probabilities, truth)
        columns[f"nll_{when}"] = metrics.nll_rows(probabilities, truth)
    return result.table.hstack(pl.DataFrame(columns)).hstack(similar)


def answered_by(result: AttackResult, clean: Outputs, attacked: Outputs) -> AttackResult:
    """The result as another model answers its images, before and after."""
    table = result.table.with_columns(
        pl.Series("prediction_before", clean.labels.cpu().numpy()),
        pl.Series("prediction_after", attacked.labels.cpu().numpy()),
        pl.Series("confidence_before", clean.confidence.cpu().numpy()),
        pl.Series("confidence_after", attacked.confidence.cpu().numpy()),
        pl.lit(None, pl.Float64).alias("wrong_confidence"),  # known of the attacked model alone
    )
    return dataclasses.replace(result, table=table, scores_before=clean.scores, scores=attacked.scores)


def asked(target: Target, points: tuple[Tensor, ...], names: pl.Series) -> list[Outputs]:
    """The target's answers to each set of points, one per sample."""
    ids = torch.tensor(names.to_numpy().copy(), device=target.device)
    with target.session(0):
        return [target.query(x.to(target.device), ids) for x in points]
