"""Checks that ask the model again: the same twice, one image at a time, and what its numbers look like."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from poise.experiments.run_folder import RunFolder
from poise.experiments.trust.base import Check
from poise.recipebook import recipe as recipe_named
from poise.types import OutputKind, Outputs

if TYPE_CHECKING:
    from poise.experiments.prepare import Prepared

ASKED = 64
"""Clean images that are asked for again."""

REPEATED, TIMES = 16, 3
"""Clean images that are asked for again and again, and how often."""

RE_PREDICTED = 32
"""Attacked images that are predicted again, one at a time."""

MOST_DECIMALS = 4
"""Scores rounded to more decimals than this cannot be told from float32 numbers; large ones not to this many."""

FEWEST_VALUES = 20
"""Different scores strictly inside the range that must lie on a grid before it is called one."""

SAME = 0.2
"""Share of images with the very same highest score from which scores are called clipped."""


def most_queries(samples: int) -> int:
    """What these checks ask at most in a run on so many images."""
    return TIMES * min(samples, REPEATED) + 2 * min(samples, ASKED) + min(samples, RE_PREDICTED)


def _answers(prepared: Prepared, count: int) -> tuple[Outputs, Tensor]:
    """The model's answers at the first clean images, and their labels."""
    images, labels, ids = next(iter(prepared.attacked[:count].batches(count)))
    device = prepared.target.device
    with prepared.target.session(0):
        return prepared.target.query(images.to(device), ids.to(device)), labels.to(device)


def randomness(prepared: Prepared) -> Check:
    """The same images get the same answers."""
    images, _, ids = next(iter(prepared.attacked[:REPEATED].batches(REPEATED)))
    device = prepared.target.device
    with prepared.target.session(0):
        answers = [prepared.target.query(images.to(device), ids.to(device)).scores for _ in range(TIMES)]
    spread = max(float((answer - answers[0]).abs().max()) for answer in answers[1:])
    return Check(
        "randomness",
        spread > 1e-4,
        f"the same images answered three times differ by at most {spread:.2g}",
        "The model is randomised: attacks that trust a single answer are misled; average several answers.",
    )


def output_kind(prepared: Prepared) -> Check:
    """The scores look like what they are declared to be."""
    if prepared.target.kind is OutputKind.LABELS:
        return Check("output kind", False, "the model answers labels alone", "")
    outputs, labels = _answers(prepared, ASKED)
    found = misdeclared(outputs, labels)
    kind = outputs.kind.value
    logs = " (log-probabilities, which is as good)" if found is None and _log_probabilities(outputs) else ""
    return Check(
        "output kind",
        found is not None,
        found or f"declared {kind}, and {kind} they look like{logs}",
        "Declare what the model returns (outputs=…) or give its logits: otherwise every confidence on this page, "
        "and what the attacks follow, is that of another model.",
    )


def misdeclared(outputs: Outputs, labels: Tensor) -> str | None:
    """What contradicts the declared kind of scores (m, K) with true classes labels (m,); None where nothing does.

    >>> import torch
    >>> z = torch.tensor([[9.0, 0.0], [1.0, 9.0]])
    >>> misdeclared(Outputs(z), torch.tensor([0, 1])) is None
    True
    >>> misdeclared(Outputs(100 * z.softmax(dim=1)), torch.tensor([0, 1]))
    'declared logits, but no row has a negative score and every row sums to 100: probabilities on another scale'
    """
    scores, kind = outputs.scores.double(), outputs.kind.value
    sums, classes = scores.sum(dim=1), scores.shape[1]
    distinct = len(scores) > 1 and bool((scores != scores[:1]).any())
    if outputs.kind is OutputKind.LOGITS and distinct and bool((scores >= 0).all()):
        total = float(sums.mean())
        if bool(((sums - total).abs() <= 1e-4 * abs(total)).all()):
            scale = "probabilities on another scale"
            return f"declared {kind}, but no row has a negative score and every row sums to {total:.4g}: {scale}"
    logits = outputs.logits
    widest = float((logits.amax(dim=1) - logits.amin(dim=1)).max())
    cap = math.e / (math.e + classes - 1)
    accuracy = float((outputs.labels == labels).double().mean())
    if distinct and 0.5 < widest <= 1 + 1e-6 and accuracy > cap + 0.1:
        return (
            f"declared {kind}, but all logits of a row lie within 1, so that no confidence exceeds {cap:.2f} while "
            f"{accuracy:.0%} are right: a softmax or sigmoid already inside the model"
        )
    return None


def _log_probabilities(outputs: Outputs) -> bool:
    return outputs.kind is OutputKind.LOGITS and bool((outputs.scores.double().logsumexp(dim=1).abs() < 1e-4).all())


def post_hoc_step(prepared: Prepared) -> Check:
    """The scores are neither rounded nor clipped before they are served."""
    name = "post-hoc step"
    if prepared.target.kind is OutputKind.LABELS:
        return Check(name, False, "the model answers labels alone", "")
    outputs, _ = _answers(prepared, ASKED)
    found = [text for text in (rounded(outputs), clipped(outputs)) if text]
    return Check(
        name,
        bool(found),
        "; ".join(found) or f"neither rounding nor clipping in the answers to {len(outputs.scores)} images",
        "A step behind the model hides its scores from the attack without making it safer: attack the model before "
        "that step too, and take the worse figure.",
    )


def rounded(outputs: Outputs) -> str | None:
    """Says to how many decimals the scores or the probabilities are rounded; None where they are not.

    >>> import torch
    >>> z = torch.linspace(-3, 3, 100).view(10, 10)
    >>> rounded(Outputs(z)), rounded(Outputs((z * 10).round() / 10))
    (None, 'the scores lie on a grid of 1 decimal')
    """
    views = [("scores", outputs.scores.double())]
    if outputs.kind is OutputKind.LOGITS:
        views.append(("probabilities", outputs.probabilities))
    for name, values in views:
        inner = values.flatten()
        if name == "probabilities" or outputs.kind is OutputKind.PROBABILITIES:
            inner = inner[(inner > 1e-4) & (inner < 1 - 1e-4)]  # saturated ones lie on every grid
        decimals = _decimals(inner)
        if decimals is not None:
            return f"the {name} lie on a grid of {decimals} decimal{'' if decimals == 1 else 's'}"
    return None


def _decimals(values: Tensor) -> int | None:
    """The fewest decimals that all values are rounded to, as far as float32 can tell."""
    if len(set(values.tolist())) < FEWEST_VALUES:
        return None
    precision = 4e-7 * float(values.abs().max())
    for decimals in range(MOST_DECIMALS + 1):
        scaled, slack = values * 10.0**decimals, precision * 10.0**decimals
        if slack < 0.02 and bool(((scaled - scaled.round()).abs() <= slack + 1e-9).all()):
            return decimals
    return None


def clipped(outputs: Outputs) -> str | None:
    """Says how many images share the very same highest score, below certainty; None where few do."""
    top = outputs.scores.amax(dim=1)
    if outputs.kind is OutputKind.PROBABILITIES:
        top = top[top < 1 - 1e-6]
    if not len(top):
        return None
    same = int((top == top.max()).sum())
    if same < 5 or same < SAME * len(outputs.scores):
        return None
    return f"{same} of {len(outputs.scores)} images share the very same highest score {float(top.max()):.4g}"


def single_predictions(prepared: Prepared, folder: RunFolder, undefended: list[dict[str, Any]]) -> Check:
    """Labels of the strongest label-keeping attack's images, predicted one image at a time."""
    keeping = [row for row in undefended if recipe_named(row["recipe"]).keeps_label]
    if not keeping:
        return Check("labels at batch size 1", False, "no label-keeping recipe was run", "")
    strongest = max(keeping, key=lambda row: row["metrics"]["ece_after"]["value"])["recipe"]
    stored, rows = folder.images(strongest, "none", 0), folder.rows(strongest, "none", "aware")
    count = min(RE_PREDICTED, len(stored["images"]))
    device = prepared.target.device
    images = stored["images"][:count].to(device)
    again = [int(prepared.target.query(image[None], stored["ids"][:1].to(device)).labels[0]) for image in images]
    flips = sum(now != before for now, before in zip(again, rows["prediction_before"][:count], strict=True))
    return Check(
        "labels at batch size 1",
        flips > 0,
        f"{flips} of {count} images of {strongest} change their label when predicted alone",
        "Results sit on the decision boundary closer than this model's numerical noise; raise label_margin.",
    )
