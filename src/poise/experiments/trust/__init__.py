"""Checks of the evaluation itself: signs that a figure understates the risk, or means less than it seems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poise.experiments.run_folder import RunFolder
from poise.experiments.trust import by_answers, by_attack, by_figures, by_temperature
from poise.experiments.trust.base import Check

if TYPE_CHECKING:
    from poise.experiments.prepare import Prepared

__all__ = ["Check", "trust"]


def trust(prepared: Prepared, folder: RunFolder, rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Every check on a complete run; `rows` are the summary's."""
    undefended, recipes = [row for row in rows if row["defence"] == "none"], prepared.spec.recipes
    checks = [
        by_figures.clean_calibration(undefended[0]["metrics"]),
        by_attack.saturation(folder.rows(recipes[0], "none", "aware")),
        by_figures.sample_size(undefended),
        by_answers.randomness(prepared),
        by_answers.output_kind(prepared),
        by_answers.post_hoc_step(prepared),
        by_attack.gradients(folder, recipes),
        by_figures.black_against_white(undefended),
        by_figures.aware_against_unaware(rows),
        by_figures.hidden_defence(rows),
        by_attack.still_improving(folder, recipes),
        by_attack.budget(folder, recipes),
        by_answers.single_predictions(prepared, folder, undefended),
        by_figures.labels_kept(rows),
        by_temperature.illusion_check(folder),
    ]
    return [check.plain() for check in checks]
