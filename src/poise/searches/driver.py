"""The only code that queries a target: it owns the budget, the best points, early stop and the last verification."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from poise.constraints.base import Box, Constraint
from poise.errors import PoiseError
from poise.objectives.base import Bound, Objective, logit_margin, of_class
from poise.rng import Rng
from poise.searches.base import Ask, Problem, Reply, Search, Steps, marked
from poise.searches.grid import steps_of
from poise.targets.base import Target
from poise.targets.meter import Meter
from poise.types import Outputs, Seen, exact


@dataclass(frozen=True, slots=True)
class Progress:
    """What a progress callback is told after every ask.

    Args:
        step: number of asks answered so far.
        points: points in the last ask.
        spent: most queries that any sample of this batch has used.
        budget: queries allowed per sample.
        first: number of samples in earlier batches.
        batch: number of samples in this batch.
        total: number of samples in all.
    """

    step: int
    points: int
    spent: int
    budget: int
    first: int
    batch: int
    total: int


OnProgress = Callable[[Progress], None]


@dataclass
class Best:
    """Best verified point of each sample, and the answer recorded when that very tensor was queried."""

    x: Tensor
    scores: Tensor
    merit: Tensor

    def take(self, ids: Tensor, x: Tensor, scores: Tensor, merit: Tensor) -> None:
        """Takes over these points; ids must not repeat a sample."""
        for kept, new in ((self.x, x), (self.scores, scores), (self.merit, merit)):
            _write(kept, ids, new)


def _write(kept: Tensor, ids: Tensor, rows: Tensor) -> None:
    """kept[ids] = rows, in words of 16 bytes where they fit: on a CPU what it costs is the number of words."""
    wide = torch.complex128
    if kept.device.type == "cpu" and kept.shape[-1] * kept.element_size() % wide.itemsize == 0 and kept.ndim > 1:
        kept, rows = kept.view(wide), rows.contiguous().view(wide)
    kept.index_copy_(0, ids, rows)


@dataclass
class Run:
    """State, and in the end outcome, of one driven search over n samples (tensors on the target's device).

    `active` stays one and the same tensor as long as no sample has `ended`, so that nobody need look at it again;
    `anyone` is whether it marks any, None where nobody has looked.
    """

    problem: Problem
    meter: Meter
    bound: Bound
    best: Best
    clean: Outputs
    clean_merit: Tensor
    done: Tensor
    queries_to_success: Tensor
    improved_at: Tensor
    zero_gradients: Tensor
    aside: Tensor | None
    active: Tensor
    anyone: bool | None = None
    ended: bool = False
    checked: tuple[Seen, int] | None = None
    curve: list[tuple[int, Tensor]] = field(default_factory=list)
    trace: list[Traced] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Traced:
    """The points of one ask: rows, what they had cost by then, and the figures a trace shows; all (m,)."""

    iteration: int
    ids: Tensor
    queries: Tensor
    margin: Tensor
    confidence: Tensor
    loss: Tensor
    step: Tensor | float | None


@dataclass(frozen=True)
class Driver:
    """Drives one search over one batch of samples.

    Args:
        target, objective, search, constraint: the attack.
        labels: (n,) true classes, on the target's device.
        sample_ids: (n,) the caller's names, on the target's device.
        budget: most queries per sample.
        seed: of the random streams.
        on_progress: called after every ask, with numbers known without a device synchronisation.
        checkpoints: numbers of queries after which the best answers so far are kept in `Run.curve`, ascending.
        trace: keep the figures of every point in `Run.trace`.
    """

    target: Target
    objective: Objective
    search: Search
    constraint: Constraint
    labels: Tensor
    sample_ids: Tensor
    budget: int
    seed: int
    on_progress: OnProgress | None = None
    checkpoints: tuple[int, ...] = ()
    trace: bool = False

    def run(self, clean: Tensor) -> Run:
        """Attacks clean (n, C, H, W), n at most the target's batch size; verifies every result before it returns."""
        over = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        box, rng = Box(*self.target.bounds), Rng(self.seed, self.sample_ids)
        merit = clean.new_full(over.shape, torch.inf, dtype=exact(clean.device))
        classes, best = self.target.num_classes, clean.clone()
        goal = self.objective.access

        bound: list[Bound] = []

        def judge(outputs: Outputs, ids: Tensor, aim: Tensor | None) -> Tensor:
            return _loss(bound[0], outputs, ids, aim)  # not of the run, which holds the problem: no cycle to collect

        problem = Problem(clean, self.constraint, box, rng, self.budget, over, classes, best, merit, goal, judge)
        steps = steps_of(self.search, problem)
        with self.target.session(self.seed), closing(steps):
            ask = next(steps, None)
            if ask is None or ask.x is not clean or ask.aim is not None:
                raise PoiseError(
                    f"{type(self.search).__name__}: the first points a search asks for must be the clean ones"
                )
            run, reply = self._begin(problem, ask)
            bound.append(run.bound)
            answered = 1
            self._tell(run, ask, answered)
            while (ask := _next(steps, reply)) is not None and self._may_go_on(ask, run):
                self._keep_curve(run, ask)
                reply = self._answer(ask, run)
                answered += 1
                self._tell(run, ask, answered)
        run.curve.extend((queries, run.best.scores.clone()) for queries in self.checkpoints[len(run.curve) :])
        _verify(run)
        return run

    def _may_go_on(self, ask: Ask, run: Run) -> bool:
        """False where a search asks on although nobody is active; looked at on the CPU, or at the budget's end."""
        if ask.ids.device.type != "cpu" and run.meter.spent < self.budget:
            return True
        if run.anyone is None:
            run.anyone = bool(run.active.any())
        return run.anyone

    def _keep_curve(self, run: Run, ask: Ask) -> None:
        """Keeps the best answers of the checkpoints that this ask would pass, before it is answered."""
        for queries in self.checkpoints[len(run.curve) :]:
            if run.meter.spent + ask.repeats <= queries:
                break
            run.curve.append((queries, run.best.scores.clone()))

    def _tell(self, run: Run, ask: Ask, answered: int) -> None:
        if self.on_progress is not None:
            n = len(run.problem.clean)
            self.on_progress(Progress(answered, len(ask.ids), run.meter.spent, self.budget, 0, n, n))

    def _check_repeats(self, ask: Ask, run: Run) -> None:
        if run.checked is not None and run.checked[0].again(ask.ids) and run.checked[1] == ask.repeats:
            return  # the very samples of the last ask
        most = int(torch.bincount(ask.ids).max()) if len(ask.ids) else 0
        if most > ask.repeats:
            raise PoiseError(
                f"{type(self.search).__name__}: an ask must declare how many points of one sample it holds, "
                f"repeats={ask.repeats} was declared, {most} were found"
            )
        run.checked = Seen(ask.ids), ask.repeats

    def _begin(self, problem: Problem, ask: Ask) -> tuple[Run, Reply]:
        """Answers the clean points and binds the objective from that same forward pass."""
        meter, ids, gradient = Meter(self.target, self.sample_ids, self.budget), ask.ids, None
        bound: list[Bound] = []

        def first_loss(answer: Outputs, rows: slice) -> Tensor:
            if not bound:
                detached = Outputs(answer.scores.detach(), answer.kind)
                bound.append(self.objective.bind(detached, self.labels, ids, problem.rng))
            return bound[0].loss(answer, ids)

        settled = meter.settled(ask.x, ids) if meter.settles else None
        if settled is not None:
            first_loss(settled, slice(None))

        if ask.grad:
            answer, gradient = meter.gradient(ask.x, ids, first_loss)
        else:
            answer = meter.query(ask.x, ids)
            first_loss(answer, slice(None))
        answer = answer if settled is None else settled
        outputs = Outputs(answer.scores.clone(), answer.kind)  # a target may reuse its buffer for the next answer
        goal = bound[0]
        problem.over.copy_(goal.over)
        merit = goal.merit(outputs, ids)
        done = goal.done(outputs, ids) & goal.accept(outputs, ids)
        problem.merit.copy_(merit)
        run = Run(
            problem=problem,
            meter=meter,
            bound=goal,
            best=Best(problem.best, outputs.scores.clone(), problem.merit),
            clean=outputs,
            clean_merit=merit,
            done=done,
            queries_to_success=torch.where(done, 1, -1),
            improved_at=torch.ones_like(ids),
            zero_gradients=torch.zeros_like(ids),
            aside=goal.aside(outputs, ids),
            active=~done,
        )
        if gradient is not None:
            _count_flat(run, ids, gradient)
        loss = goal.loss(outputs, ids)
        if self.trace:
            _keep_trace(run, ask, outputs, loss)
        return run, Reply(loss, goal.accept(outputs, ids), _active(run), gradient, outputs)

    def _answer(self, ask: Ask, run: Run) -> Reply:
        """Answers what the budget allows; points beyond it come back with an infinite loss, unasked."""
        if (
            ask.ids.device.type == "cpu"
        ):  # elsewhere it would cost a synchronisation per ask; `check_search` looks there
            self._check_repeats(ask, run)
        affordable = run.meter.affordable(ask.ids, ask.repeats)
        if affordable is None or bool(affordable.all()):
            return self._evaluate(ask, run)
        answered = self._evaluate(ask.at(affordable), run)
        loss = torch.full(ask.ids.shape, torch.inf, dtype=answered.loss.dtype, device=ask.x.device)
        loss[affordable] = answered.loss
        accept = torch.zeros_like(affordable)
        accept[affordable] = answered.accept
        gradient = None
        if answered.grad is not None:
            gradient = torch.zeros_like(ask.x)
            gradient[affordable] = answered.grad
        outputs = None
        if answered.outputs is not None:
            scores = answered.outputs.scores.new_zeros(len(ask.ids), answered.outputs.scores.shape[1])
            scores[affordable] = answered.outputs.scores
            outputs = Outputs(scores, answered.outputs.kind)
        return Reply(loss, accept, answered.active, gradient, outputs)

    def _evaluate(self, ask: Ask, run: Run) -> Reply:
        ids, bound, gradient = ask.ids, run.bound, None
        if len(ids) == 0:
            nothing = torch.zeros(0, dtype=run.clean_merit.dtype, device=ids.device)
            return Reply(nothing, nothing.bool(), _active(run), ask.x if ask.grad else None)

        def part_loss(answer: Outputs, rows: slice) -> Tensor:
            whole = len(answer.scores) == len(ids)  # the very tensors then, by which an answer knows its figures again
            part, aim = (ids, ask.aim) if whole else (ids[rows], None if ask.aim is None else ask.aim[rows])
            return _loss(bound, answer, part, aim)

        if ask.grad:
            outputs, gradient = run.meter.gradient(ask.x, ids, part_loss, ask.repeats)
            _count_flat(run, ids, gradient)
        else:
            outputs = run.meter.query(ask.x, ids, ask.repeats)
        accept, loss = bound.accept(outputs, ids), _loss(bound, outputs, ids, ask.aim)
        if not ask.probe:
            _record(ask, run, outputs, accept)
        if self.trace:
            _keep_trace(run, ask, outputs, loss)
        return Reply(loss, accept, _active(run), gradient, outputs)


def _next(steps: Steps, reply: Reply) -> Ask | None:
    """What the search asks after this reply; None at its end."""
    try:
        return steps.send(reply)
    except StopIteration:
        return None


def _loss(bound: Bound, outputs: Outputs, ids: Tensor, aim: Tensor | None) -> Tensor:
    return bound.loss(outputs, ids) if aim is None else bound.aimed(outputs, ids, aim)


def _count_flat(run: Run, ids: Tensor, gradient: Tensor) -> None:
    """Counts the gradients that are zero everywhere."""
    if gradient.device.type == "cpu" and bool((gradient[:, 0, gradient.shape[2] // 2].amax(dim=1) > 0).all()):
        return  # a line of each image tells
    rows = gradient.flatten(1)
    flat = (rows.amax(dim=1) == 0) & (rows.amin(dim=1) == 0)  # ten times faster than any()
    run.zero_gradients.index_add_(0, ids, flat.long())


def _keep_trace(run: Run, ask: Ask, outputs: Outputs, loss: Tensor) -> None:
    ids, k = ask.ids, run.bound.k[ask.ids]
    margin, confidence = logit_margin(outputs, k), of_class(outputs.probabilities, k)
    run.trace.append(Traced(len(run.trace), ids, run.meter.queries[ids], margin, confidence, loss.detach(), ask.step))


def _record(ask: Ask, run: Run, outputs: Outputs, accept: Tensor) -> None:
    """Keeps the points that are accepted, inside ball and box, and better than all before."""
    if run.meter.settles:
        ask, outputs, accept = _settled(ask, run, outputs, accept)
        if not len(ask.ids):
            return
    ids, x, best = ask.ids, ask.x, run.best
    merit, scores = run.bound.merit(outputs, ids), outputs.scores
    better = accept & (merit < best.merit.index_select(0, ids))
    aside = run.bound.aside(outputs, ids)
    if aside is not None and run.aside is not None:
        lowest = torch.where(_inside(run.problem, x, ids), aside, torch.inf).to(run.aside.dtype)
        run.aside.scatter_reduce_(0, ids, lowest, reduce="amin")
    near = x.device.type == "cpu"  # mostly few are better; elsewhere to know how many would cost a synchronisation
    compact = near or ask.repeats > 1
    if near:
        rows = better.nonzero().view(-1)
        if not len(rows):
            return
        finished = run.bound.done(outputs, ids)
        if len(rows) < len(ids):
            parts = ids, x, scores, merit, finished
            ids, x, scores, merit, finished = (part.index_select(0, rows) for part in parts)
    else:
        finished = better & run.bound.done(outputs, ids)
    if not (near and ask.inside and ask.repeats == 1):
        better = torch.ones_like(finished) if near else better
        if not ask.inside:
            inside = _inside(run.problem, x, ids)
            better, finished = better & inside, finished & inside
        if ask.repeats > 1:  # several points of one sample: its best alone, so that no row is written twice
            better = better & _best_of_each(ids, torch.where(better, merit, torch.inf))
        if compact and not bool(better.all()):
            ids, x, scores, merit, finished = marked(better, ids, x, scores, merit, finished)
    improved = run.meter.queries.index_select(0, ids)
    if not compact:
        x = torch.where(better.view(-1, 1, 1, 1), x, best.x.index_select(0, ids))
        scores = torch.where(better[:, None], scores, best.scores.index_select(0, ids))
        merit, improved = (
            torch.where(better, merit, best.merit[ids]),
            torch.where(better, improved, run.improved_at[ids]),
        )
    best.take(ids, x, scores, merit)
    run.improved_at.index_copy_(0, ids, improved)
    if not near or bool(finished.any()):
        run.ended = True
        first = finished & ~run.done[ids]
        run.queries_to_success[ids] = torch.where(first, run.meter.queries[ids], run.queries_to_success[ids])
        run.done[ids] |= finished


def _settled(ask: Ask, run: Run, outputs: Outputs, accept: Tensor) -> tuple[Ask, Outputs, Tensor]:
    """The points that look better than all before, with the answers that count (one look at the device)."""
    rows = (accept & (run.bound.merit(outputs, ask.ids) < run.best.merit[ask.ids])).nonzero()[:, 0]
    ask = ask.at(rows)
    if len(rows):
        outputs = run.meter.settled(ask.x, ask.ids)
        accept = run.bound.accept(outputs, ask.ids)
    return ask, outputs, accept


def _inside(problem: Problem, x: Tensor, ids: Tensor) -> Tensor:
    """(m,) bool: x (m, C, H, W) lies in the ball around its clean image, and its pixels are legal."""
    return problem.constraint.contains(x, problem.clean.index_select(0, ids)) & problem.box.contains(x)


def _active(run: Run) -> Tensor:
    """(n,) bool: samples neither done nor out of budget; kept, as the driver looks at it before the next ask."""
    broke = run.meter.spent >= run.problem.budget
    if run.ended or broke or run.done.device.type != "cpu":  # elsewhere nobody knows whether a sample has ended
        run.active, run.anyone, run.ended = ~run.done, None, False
    if broke:
        run.active &= run.meter.queries < run.problem.budget
    return run.active


def _verify(run: Run) -> None:
    """The last word on every result, from the tensor that is returned and the answer recorded for it."""
    clean, best = run.problem.clean, run.best
    ids = torch.arange(len(clean), device=clean.device)
    moved = (best.x != clean).flatten(1).view(torch.uint8).amax(dim=1) > 0  # three times faster than any()
    accept = run.bound.accept(Outputs(best.scores, run.clean.kind), ids)
    inside = run.problem.constraint.contains(best.x, clean) & run.problem.box.contains(best.x)
    if bool(((moved & ~(accept & inside)) | (best.merit > run.clean_merit)).any()):
        raise PoiseError(
            "Driver: a result failed its last verification (ball, box, acceptance, merit): a defect of poise"
        )


def _best_of_each(ids: Tensor, merit: Tensor) -> Tensor:
    """(m,) bool: True at the first lowest merit of each sample among points whose ids repeat."""
    order = torch.sort(merit, stable=True).indices
    by_sample = torch.sort(ids[order], stable=True)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = by_sample.values[1:] != by_sample.values[:-1]
    chosen = torch.zeros_like(first)
    chosen[order[by_sample.indices[first]]] = True
    return chosen
