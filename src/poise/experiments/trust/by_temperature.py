"""The illusion of robustness: does the model resist only because its temperature hides the gradients?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poise.errors import RunError
from poise.experiments import files
from poise.experiments.run_folder import RunFolder
from poise.experiments.trust.base import Check
from poise.illusion import illusion_of_robustness
from poise.recipebook import ball
from poise.targets import DifferentiableTarget
from poise.types import Access

if TYPE_CHECKING:
    from poise.experiments.prepare import Prepared

IMAGES = 64
"""Images, at most, that the test attacks."""

ILLUSION = "illusion.json"


def store_illusion(prepared: Prepared, folder: RunFolder, note: Callable[[str], None]) -> None:
    """Runs the test where the run folder does not hold its outcome yet, and writes it there; notes what it found."""
    path = folder.root / ILLUSION
    if path.exists():
        return
    reason = _why_not(prepared)
    outcome = {"skipped": reason} if reason else _measured(prepared)
    files.write_json(path, outcome)
    if outcome.get("found"):
        note(f"WARNING: {outcome['sentence']}")


def _why_not(prepared: Prepared) -> str:
    """Why the test cannot run, in plain words; empty where it can."""
    target = prepared.target
    if target.access < Access.GRADIENTS or not isinstance(target, DifferentiableTarget):
        return f"the attacker gets {target.access.name.lower()} alone: a temperature that hides gradients hides nothing"
    images, _, ids = next(iter(prepared.attacked[:2].batches(2)))
    try:
        target.gradient(images.to(target.device), ids.to(target.device), lambda answer: answer.confidence)
    except Exception as error:  # the user's model may raise anything; white-box recipes were refused before this
        return f"the model gives no gradients ({type(error).__name__})"
    return ""


def _measured(prepared: Prepared) -> dict[str, Any]:
    spec = prepared.spec
    images, labels, _ = next(iter(prepared.attacked[:IMAGES].batches(IMAGES)))
    found = illusion_of_robustness(prepared.target, images, labels, ball(spec.norm, spec.eps), seed=spec.seed % 2**32)
    return dataclasses.asdict(found) | {"found": found.found, "sentence": found.sentence}


def illusion_check(folder: RunFolder) -> Check:
    """The outcome that `store_illusion` left in the run folder.

    Raises:
        RunError: it is missing or damaged.
    """
    name, path = "illusion of robustness", folder.root / ILLUSION
    try:
        outcome = json.loads(path.read_text(encoding="utf-8"))
        if "skipped" in outcome:
            return Check(name, False, f"not tested: {outcome['skipped']}", "")
        found, sentence = bool(outcome["found"]), str(outcome["sentence"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{ILLUSION}: '{path}' is damaged ({type(error).__name__}); delete it, give --resume") from None
    return Check(
        name,
        found,
        sentence,
        "The model's temperature hides its gradients: take the figures of standard and of the black-box recipes, "
        "and calibrate the model before its robustness is compared with another's.",
    )
