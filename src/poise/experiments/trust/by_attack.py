"""Checks that read the result tables: gradients that vanish, attacks that were stopped while they still gained."""

from __future__ import annotations

import polars as pl

from poise import metrics
from poise.experiments.run_folder import RunFolder
from poise.experiments.trust.base import Check, spends_the_budget, whitebox
from poise.recipebook import PEERS

MOVING = 0.02
"""An attack whose mean confidence, ECE or accuracy moves by more than this while its queries double has not ended."""

LATE = 0.5
"""Share of images that were improved in the last `LAST` of their queries from which an attack ends too early."""

LAST = 0.1

FEWEST = 10
"""Queries from which an attack has a last tenth to look at."""

FLAT = 0.05
"""Share of gradients that are zero everywhere from which gradients are called missing."""


def saturation(rows: pl.DataFrame) -> Check:
    """Few clean confidences are so near to 1 that neither scores nor gradients say anything."""
    share = float((rows["confidence_before"] > 1 - 1e-6).to_numpy().mean())
    return Check(
        "saturation",
        share > 0.2,
        f"{share:.1%} of the clean confidences lie above 1 - 1e-6",
        "Gradients vanish and scores carry little information there; try more budget, and temperature scaling "
        "to see whether the resistance is real.",
    )


def gradients(folder: RunFolder, recipes: tuple[str, ...]) -> Check:
    """Of all gradients that the white-box recipes took, few are zero everywhere."""
    name, shares = "gradients", {}
    for recipe in recipes:
        if whitebox(recipe) and recipe not in PEERS:  # what another library took is not seen
            rows = folder.rows(recipe, "none", "aware")
            taken = int(rows["gradients"].sum())
            shares[recipe] = int(rows["zero_gradients"].sum()) / taken if taken else 0.0
    if not shares:
        return Check(name, False, "no white-box recipe was run", "")
    flat = {recipe: share for recipe, share in shares.items() if share > FLAT}
    worst = max(shares, key=lambda recipe: shares[recipe])
    return Check(
        name,
        bool(flat),
        "zero everywhere: " + ", ".join(f"{share:.1%} with {recipe}" for recipe, share in flat.items())
        if flat
        else f"at most {shares[worst]:.1%} of the gradients ({worst}) are zero everywhere",
        "White-box recipes cannot move an image along a gradient of zero, which says nothing about the model: look for "
        "a step that is detached, rounded or saturated, and take the black-box figures.",
    )


def late(rows: pl.DataFrame) -> float:
    """Share of the images without success whose returned image was found in the last tenth of their queries.

    >>> stops = ["finished", "finished", "success"]
    >>> late(pl.DataFrame({"stop": stops, "improved_at": [10, 3, 4], "queries": [10] * 3}))
    0.5
    """
    open_ended = rows.filter(pl.col("stop") != "success")
    if not len(open_ended):
        return 0.0
    recent = open_ended["improved_at"] > (1 - LAST) * open_ended["queries"]
    return float(recent.to_numpy().mean())


def last_doubling(curve: pl.DataFrame, used: int) -> tuple[str, float]:
    """What moved most over the last doubling of `used` queries, by name, and by how much."""
    steps = curve["queries"].unique().sort()
    halfway, end = (max(q for q in steps if q <= most) for most in (max(used // 2, int(steps[0])), int(steps[-1])))
    before, after = (_state(curve.filter(pl.col("queries") == at)) for at in (halfway, end))
    moves = {name: abs(after[name] - before[name]) for name in after}
    most = max(moves, key=lambda name: moves[name])
    return most, moves[most]


def _state(part: pl.DataFrame) -> dict[str, float]:
    confidence, right = part["confidence"].to_numpy(), (part["prediction"] == part["label"]).to_numpy().astype(float)
    return {
        "mean confidence": float(confidence.mean()),
        "ECE": metrics.ece(confidence, right),
        "accuracy": float(right.mean()),
    }


def still_improving(folder: RunFolder, recipes: tuple[str, ...]) -> Check:
    """Attacks that end by their own number of steps have come to rest by then."""
    name, moving, looked = "still improving", [], False
    for recipe in recipes:
        if recipe in PEERS or spends_the_budget(recipe):
            continue
        rows = folder.rows(recipe, "none", "aware")
        used = int(rows["queries"].to_numpy().max())
        if used < FEWEST:
            continue
        looked = True
        what, moved = last_doubling(folder.curve(recipe, "none"), used)
        if late(rows) > LATE and moved > MOVING:
            moving.append(
                f"{recipe} ({late(rows):.0%} of the unfinished images improved in the last tenth of their queries, "
                f"{what} moved by {moved:.3f} over the second half)"
            )
    if not looked:
        return Check(name, False, "no recipe with a number of steps was run", "")
    return Check(
        name,
        bool(moving),
        f"at the last step the loss still fell: {', '.join(moving)}" if moving else "every attack had come to rest",
        "These attacks ended while they still gained: their figures understate the risk; give more --steps, "
        "or take the recipe standard.",
    )


def in_mid_step(stopped: pl.DataFrame, recipe: str) -> bool:
    """The images `stopped` by the budget were so among gradient steps, not in the random search that comes after."""
    if not whitebox(recipe):
        return False
    return not spends_the_budget(recipe) or bool((stopped["gradients"] >= stopped["queries"] - 2).any())


def budget(folder: RunFolder, recipes: tuple[str, ...]) -> Check:
    """Attacks that spend their whole budget gain little by its last doubling; the others are not cut short by it."""
    rising, cut = [], []
    for recipe in recipes:
        if recipe in PEERS:  # ART knows no budget
            continue
        rows = folder.rows(recipe, "none", "aware")
        stopped = rows.filter(pl.col("stop") == "budget")
        if not len(stopped):
            continue
        if in_mid_step(stopped, recipe):
            cut.append(f"{recipe} ({len(stopped) / len(rows):.0%} of the images)")
            continue
        what, moved = last_doubling(folder.curve(recipe, "none"), int(rows["queries"].to_numpy().max()))
        if moved > MOVING:
            rising.append(f"{recipe} ({what} by {moved:.3f})")
    told = [f"the last doubling of the queries still moved {', '.join(rising)}"] if rising else []
    told += [f"the budget ended before the steps did: {', '.join(cut)}"] if cut else []
    return Check(
        "budget",
        bool(told),
        "; ".join(told) or "more queries would change little",
        "With this budget the figures are a beginning and understate the risk; give more --budget.",
    )
