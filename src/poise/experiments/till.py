"""What a run asks of a model that costs: one purse for all of it, a journal for each part, and what it may come to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from poise.experiments.audit_spec import AuditSpec
from poise.experiments.run_folder import RunFolder
from poise.experiments.trust.by_answers import most_queries
from poise.targets import Journal, Purse, Target

PROBED = 2
"""Images that are asked for first, so that misfits show."""


class Till:
    """The only way in which a run asks a model that costs.

    Args:
        model: answers.
        folder: the run's, where earlier journals are counted.
        spec: names the limits.

    Attributes:
        purse: the model, metered; what earlier runs asked is counted already.

    Raises:
        RunError: a journal is damaged.
    """

    def __init__(self, model: Target, folder: RunFolder, spec: AuditSpec) -> None:
        self._folder = folder
        self.purse = Purse(model, spec.max_queries, spec.cost_per_query, spec.max_cost, spent=folder.journaled())

    @contextmanager
    def journal(self, part: str) -> Iterator[Journal]:
        """The model as one part of the run asks it; what the part asked before is answered from its journal."""
        with Journal(self.purse, self._folder.journal_file(part)) as journal:
            yield journal


def estimate(spec: AuditSpec, samples: int, fitted_on: int, recorded: int) -> str:
    """The line that says before a run what it can come to: an upper bound, for attacks may end early.

    Args:
        spec: what to do.
        samples: images under attack.
        fitted_on: images that the defences are fitted on.
        recorded: answers that are there already.

    >>> from poise.experiments.audit_spec import make_spec
    >>> estimate(make_spec(recipes=("square",), defences=("none",), cost_per_query=0.002), 100, 0, 0)
    'asks at most 100,310 queries: 100 images × 1,000 × 1 recipe × 1 defence, and 310 before and after; 200.62 in all'
    """
    attacks, around = len(spec.recipes) * len(spec.defences), queries_around(spec, samples, fitted_on)
    whole = samples * spec.budget * attacks + around
    recipes, defences = (
        f"{len(names)} {what}{'' if len(names) == 1 else 's'}"
        for names, what in ((spec.recipes, "recipe"), (spec.defences, "defence"))
    )
    line = (
        f"asks at most {whole:,} queries: {samples:,} images × {spec.budget:,} × {recipes} × {defences}, "
        f"and {around:,} before and after"
    )
    if spec.cost_per_query is not None:
        line += f"; {whole * spec.cost_per_query:,.2f} in all"
    if recorded:
        line += f"; {recorded:,} are answered already"
    limits = [
        f"--{name.replace('_', '-')} {limit:,g}"
        for name in ("max_queries", "max_cost")
        if (limit := getattr(spec, name))
    ]
    return line + (f"; stops at {' or '.join(limits)}" if limits else "")


def queries_around(spec: AuditSpec, samples: int, fitted_on: int) -> int:
    """The most that is asked outside the attacks: the probe, clean images, the fit, the checks, the unaware views."""
    shown = 0 if spec.view is None else 2 * samples * len(spec.recipes) * (len(spec.defences) - 1)
    return min(samples, PROBED) + samples + fitted_on + most_queries(samples) + shown
