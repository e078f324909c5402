"""Figures on held-out images against the library's metrics and sklearn; the means of an epoch, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor, nn

from poise.metrics import ece
from poise.training.tally import Tally
from poise.training.validation import BINS, figures, sums
from toys import generator

CPU = torch.device("cpu")

# --- validation ---

Figures = Callable[[Iterable[tuple[Tensor, Tensor]]], dict[str, float]]


def measured(batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The 'images' are the logits."""
    return figures(sums(lambda z: z, batches, CPU))


def on_edges() -> tuple[Tensor, Tensor]:
    """Confidences k/15 of K = 15 classes, to the last bit where float64 allows it, the class right in turns."""
    rows = []
    for k in range(2, 15):
        p = torch.full((15,), (1 - k / 15) / 14, dtype=torch.float64)
        p[k % 15] = k / 15
        rows.append(p)
    rows += [torch.full((15,), 1 / 15, dtype=torch.float64), torch.eye(15, dtype=torch.float64)[3]]
    z = torch.stack(rows).clamp_min(1e-300).log()
    return z, torch.tensor([k % 15 if k % 2 else 0 for k in range(2, 15)] + [0, 4])


CASES = {
    "random": (3 * torch.randn(500, 7, generator=generator(0)), torch.randint(7, (500,), generator=generator(1))),
    "float64": (torch.randn(40, 3, generator=generator(2)).double(), torch.randint(3, (40,), generator=generator(3))),
    "one row": (torch.tensor([[0.5, 0.2]]), torch.tensor([1])),
    "two classes": (torch.randn(60, 2, generator=generator(4)), torch.randint(2, (60,), generator=generator(5))),
    "sure": (100 * torch.eye(4), torch.tensor([0, 1, 2, 0])),
    "on edges": on_edges(),
}


def as_the_references(found: Figures) -> None:
    for z, y in CASES.values():
        p = z.double().softmax(dim=1).numpy()
        confidence, hits = p.max(axis=1), p.argmax(axis=1) == y.numpy()
        got = found([(z, y)])
        assert got["accuracy"] == pytest.approx(hits.mean(), abs=1e-12)
        assert got["confidence"] == pytest.approx(confidence.mean(), abs=1e-12)
        assert got["ece"] == pytest.approx(ece(confidence, hits.astype(float)), abs=1e-12)
        ours = -np.mean([row.log_softmax(0)[label].item() for row, label in zip(z.double(), y.tolist(), strict=True)])
        assert got["nll"] == pytest.approx(ours, abs=1e-9)
        if z.abs().max() < 30:
            assert got["nll"] == pytest.approx(log_loss(y.numpy(), p, labels=range(z.shape[1])), abs=1e-9)


def in_parts_as_in_one(found: Figures) -> None:
    z, y = CASES["random"]
    whole = found([(z, y)])
    parts = found((z[cut], y[cut]) for cut in (slice(0, 128), slice(128, 129), slice(129, 500)))
    assert parts == pytest.approx(whole, abs=1e-12)


CHECKS = [as_the_references, in_parts_as_in_one]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_figures(check: Callable[[Figures], None]) -> None:
    check(measured)


def edges_to_the_right(batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Bins [lo, hi): a confidence on an edge goes up."""
    z, y = (torch.cat(column) for column in zip(*batches, strict=True))
    p = z.double().softmax(dim=1).numpy()
    error = ece(p.max(axis=1), (p.argmax(axis=1) == y.numpy()).astype(float), edges="left")
    return measured([(z, y)]) | {"ece": error}


def mean_of_batches(batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    each = [measured([part]) for part in batches]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


@pytest.mark.parametrize(
    ("check", "twin"), [(as_the_references, edges_to_the_right), (in_parts_as_in_one, mean_of_batches)]
)
def test_other_figures_are_noticed(check: Callable[[Figures], None], twin: Figures) -> None:
    with pytest.raises(AssertionError):
        check(twin)


def test_sums_add_up_over_processes() -> None:
    z, y = CASES["random"]
    shares = [sums(lambda images: images, [(z[rank::2], y[rank::2])], CPU) for rank in (0, 1)]
    assert figures(shares[0] + shares[1]) == pytest.approx(measured([(z, y)]), abs=1e-12)
    assert shares[0].shape == (2 + 3 * BINS,)


# --- the tally ---


class OneProcess:
    """Sums over one process."""

    def all_reduce(self, values: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "sum"
        return values


def test_means_are_weighted_by_rows() -> None:
    """Rows 4 and 1: terms (1, 3) and (6, 13); right 3 and 0; 4 + 4 and 1 + 1 images passed forward."""
    tally, answer = Tally(CPU), nn.Identity()
    with tally.watching(answer):
        for step, (terms, rights, rows) in enumerate((((1.0, 3.0), 3, 4), ((6.0, 13.0), 0, 1))):
            tally.begin_step()
            z = torch.eye(2).repeat(2, 1)[:rows]
            labels = z.argmax(dim=1)
            labels[rights:] = 1 - labels[rights:]
            answer.eval()(-z)  # an attack: counted, but it is not what was shown
            answer.train()(z)
            tally.add(step, {"one": torch.tensor(terms[0]), "other": torch.tensor(terms[1])}, labels)
    means = tally.means(OneProcess())
    assert means == pytest.approx(
        {
            "loss": (4 * 4 + 19) / 5,
            "loss_one": (4 * 1 + 6) / 5,
            "loss_other": (4 * 3 + 13) / 5,
            "accuracy_shown": 3 / 5,
            "passes": 10 / 5,
        }
    )
    answer(torch.zeros(3, 2))
    tally.add(2, {"one": torch.tensor(2.0)}, torch.zeros(3, dtype=torch.long))
    again = tally.means(OneProcess())  # begins anew, and the hook is gone
    assert again["loss"] == 2
    assert again["passes"] == 0


def test_members_of_an_ensemble_are_right_together() -> None:
    """(b, M, K): the mean of their probabilities answers, not any single one."""
    tally, answer = Tally(CPU), nn.Identity()
    logits = torch.tensor([[[5.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 3.0]], [[4.0, 0.0], [0.0, 5.0]]])
    with tally.watching(answer):
        tally.begin_step()
        answer.train()(logits)
        tally.add(0, {"one": torch.tensor(0.0)}, torch.tensor([0, 1, 0]))
    assert tally.means(OneProcess())["accuracy_shown"] == pytest.approx(2 / 3)


def test_a_tally_goes_on_from_its_state() -> None:
    straight, first, second = Tally(CPU), Tally(CPU), Tally(CPU)
    labels = torch.zeros(4, dtype=torch.long)
    for step in range(4):
        terms = {"one": torch.tensor(1 / (step + 3))}
        straight.add(step, terms, labels)
        (first if step < 2 else second).add(step, terms, labels)
        if step == 1:
            second.restore(first.state())
    assert second.means(OneProcess()) == straight.means(OneProcess())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_term_that_is_not_finite(bad: float) -> None:
    tally, labels = Tally(CPU), torch.zeros(2, dtype=torch.long)
    assert tally.first_not_finite() is None
    for step, (one, other) in enumerate(((1.0, 2.0), (3.0, bad), (bad, bad))):
        tally.add(step + 7, {"one": torch.tensor(one), "other": torch.tensor(other)}, labels)
    step, name, value = tally.first_not_finite()
    assert (step, name) == (8, "other")
    assert value == bad or math.isnan(value)
    assert tally.first_not_finite() is None  # looked at once
