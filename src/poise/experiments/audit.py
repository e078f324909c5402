"""An audit: recipes × defences on one model and one data set, in chunks on disk that are never computed twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from torch import Tensor

from poise.attacks import Watch
from poise.data import Dataset
from poise.defenses import PostHoc
from poise.experiments import files
from poise.experiments.audit_spec import AuditSpec
from poise.experiments.explain import store_explanations
from poise.experiments.prepare import Loaded, Prepared, clean_figures, load, prepare
from poise.experiments.rows import answered_by, asked, similarity, with_scores
from poise.experiments.run_folder import TRACED, RunFolder
from poise.experiments.served import defended_logits
from poise.experiments.summary import summarise
from poise.experiments.till import Till, estimate
from poise.experiments.trust.by_temperature import store_illusion
from poise.recipebook import PEERS, run_recipe
from poise.recipebook import recipe as recipe_named
from poise.searches.driver import Progress
from poise.targets import ModuleTarget, Target
from poise.targets.mixed import PRECISIONS, Mixed
from poise.types import AttackResult, OutputKind, Outputs


class AuditListener(Protocol):
    """Hears how an audit goes; the command line shows it. Every method may do nothing."""

    def note(self, line: str) -> None:
        """Something the user should know."""
        ...

    def ready(self, target: Target, attacked: Dataset, clean: dict[str, float]) -> None:
        """Everything is loaded; `clean` holds accuracy, confidence, ece and ks of the undefended model."""
        ...

    def begin(self, recipe: str, defence: str, done: int, total: int) -> None:
        """An attack starts, or goes on where `done` of its `total` samples are on disk already."""
        ...

    def advance(self, samples: float, queries: int) -> None:
        """So many samples (parts count) of this attack are done, at so many queries each."""
        ...

    def end(self, rows: pl.DataFrame) -> None:
        """The attack's rows are complete."""
        ...


def run_audit(
    spec: AuditSpec, out: Path, *, resume: bool, listener: AuditListener, command: str = ""
) -> dict[str, Any]:
    """Runs what is missing in the folder `out`, writes summary.json and returns it.

    Args:
        spec: what to do.
        out: the run folder; made if missing.
        resume: go on with a run of the same spec that lies there.
        listener: hears how it goes.
        command: the command that repeats the run, for the report.

    Raises:
        InputError, TargetError: model, data and spec do not fit; RunError: another run lies in `out`; BudgetError:
            what the run may spend is spent; what was answered is kept, and a run with a higher limit goes on.
    """
    return audited(spec, out, resume=resume, listener=listener, command=command)[1]


def audited(
    spec: AuditSpec, out: Path, *, resume: bool, listener: AuditListener, command: str = ""
) -> tuple[Prepared, dict[str, Any]]:
    """`run_audit` for those who go on with the same run: what was prepared for it, and its summary."""
    began = time.time()
    folder = RunFolder(out)
    folder.check(spec, resume=resume)  # before anything is loaded or written
    loaded, till = load(spec, listener.note), None
    with ExitStack() as held:
        if loaded.paid:  # before the first question, so that its answer can be kept
            held.enter_context(_opened(folder, loaded, resume=resume))
            till = Till(loaded.model, folder, spec)
            listener.note(estimate(spec, len(loaded.attacked), loaded.fit_samples, till.purse.spent))
        prepared = prepare(loaded, till)
        listener.ready(prepared.target, prepared.attacked, clean_figures(prepared))
        if not loaded.paid:  # a misfit leaves nothing behind
            held.enter_context(_opened(folder, loaded, resume=resume))
        for recipe in spec.recipes:
            for defence in spec.defences:
                _attack(prepared, folder, recipe, defence, listener)
        store_illusion(prepared, folder, listener.note)
        store_explanations(prepared, folder, listener.note)
        return prepared, summarise(prepared, folder, seconds=time.time() - began, command=command)


@contextmanager
def _opened(folder: RunFolder, loaded: Loaded, *, resume: bool) -> Iterator[None]:
    """The folder for this process alone, with this run begun in it."""
    with files.locked(folder.root):
        folder.check(loaded.spec, resume=resume)
        folder.open(loaded.spec, loaded.recorded)
        yield


def checkpoints(budget: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, … and the budget itself.

    >>> checkpoints(30)
    (1, 2, 5, 10, 20, 30)
    """
    grid = (digit * 10**power for power in range(len(str(budget))) for digit in (1, 2, 5))
    return (*(step for step in grid if step < budget), budget)


def _chunks(dataset: Dataset, size: int) -> Iterator[tuple[int, Dataset]]:
    for number, start in enumerate(range(0, len(dataset), size)):
        yield number, dataset[start : start + size]


def _attack(prepared: Prepared, folder: RunFolder, recipe: str, defence: str, listener: AuditListener) -> None:
    spec, size = prepared.spec, prepared.spec.batch_size
    shown_to = _others(spec) if defence == "none" else ()
    missing = [
        (number, part)
        for number, part in _chunks(prepared.attacked, size)
        if not folder.has(recipe, defence, number, shown_to, traced=_traced(prepared, number))
    ]
    done = len(prepared.attacked) - sum(len(part) for _, part in missing)
    listener.begin(recipe, defence, done, len(prepared.attacked))
    for number, part in missing:
        before = done

        def progress(at: Progress, before: int = before) -> None:
            listener.advance(before + at.first + at.batch * min(at.spent / at.budget, 1.0), at.spent)

        watch = Watch(progress, checkpoints(spec.budget), trace=_traced(prepared, number))
        with prepared.part(f"{recipe}.{defence}.{number:05d}") as asked:
            _chunk(asked, folder, (recipe, defence, number), part, watch)
        done += len(part)
        listener.advance(done, spec.budget)
    listener.end(folder.rows(recipe, defence, "aware"))


def _traced(prepared: Prepared, chunk: int) -> bool:
    """The chunk holds some of the first images, and a trace is wanted."""
    spec = prepared.spec
    return (spec.trace or spec.explain) and chunk * prepared.spec.batch_size < TRACED


def _others(spec: AuditSpec) -> tuple[str, ...]:
    """The defences that are shown the undefended model's adversarial images."""
    return tuple(name for name in spec.defences if name != "none")


def _chunk(prepared: Prepared, folder: RunFolder, key: tuple[str, str, int], part: Dataset, watch: Watch) -> None:
    """One attack on one chunk; where one of its files is missing, all are computed again."""
    (recipe, defence, number), spec = key, prepared.spec
    images, labels, ids = next(iter(part.batches(len(part))))
    target = prepared.targets[defence]
    result = run_recipe(
        recipe, _asked(target, recipe, spec.precision), images, labels,
        ids=ids, eps=spec.eps, norm=spec.norm, steps=spec.steps, budget=spec.budget,
        seed=spec.seed, watch=watch, eight_bit=spec.eight_bit,
        surrogate=prepared.loaded.surrogate if recipe_named(recipe).surrogate else None,
    )  # fmt: skip
    similar = similarity(images, result.images)
    curve = result.curve.join(result.table.select("id", "label"), on="id")
    folder.write_images(recipe, defence, number, ids, result.images)
    folder.write_curve(recipe, defence, number, curve)
    if watch.trace:
        first = prepared.attacked[:TRACED].ids.tolist()
        folder.write_trace(recipe, defence, number, result.trace.filter(pl.col("id").is_in(first)))
    if defence == "none":
        for name in _others(spec):
            shown, kind = _shown_to(prepared, name, images, result)
            folder.write_rows(recipe, name, "unaware", number, with_scores(shown, labels, kind, similar))
    folder.write_rows(recipe, defence, "aware", number, with_scores(result, labels, target.kind, similar))


def _asked(target: Target, recipe: str, precision: str) -> Target:
    """The target in the precision that a search asks it in; other libraries ask it as it is."""
    dtype = PRECISIONS[precision]
    if dtype is None or recipe in PEERS or not isinstance(target, ModuleTarget):
        return target
    return Mixed(target, dtype)


def _shown_to(prepared: Prepared, name: str, images: Tensor, result: AttackResult) -> tuple[AttackResult, OutputKind]:
    """The undefended model's adversarial images, as the defended model answers them, and what it answers with.

    What the defence makes of the recorded answers; where the attacker saw less than them, or the defence is not behind
    the answers but around the model, the model is asked again.
    """
    defence, bare = prepared.defences[name], prepared.target.kind
    if prepared.spec.view is None and isinstance(defence, PostHoc):
        answers = [
            Outputs(defended_logits(defence, Outputs(scores, bare))) for scores in (result.scores_before, result.scores)
        ]
    else:
        answers = asked(prepared.targets[name], (images, result.images), result.table["id"])
    clean, attacked = answers
    return answered_by(result, clean, attacked), clean.kind
