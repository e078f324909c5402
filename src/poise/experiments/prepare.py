"""Before the first attack: model and data loaded and matched, defences fitted, misfits told in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from poise import data, defenses, metrics, models
from poise.data import Dataset
from poise.defenses import PostHoc
from poise.errors import AccessError, InputError, MissingExtraError
from poise.experiments.audit_spec import AuditSpec
from poise.experiments.served import ask, behind, inside_model
from poise.recipebook import PEERS, Recipe
from poise.recipebook import recipe as recipe_named
from poise.recipebook.peers import PeerRecipe
from poise.targets import DifferentiableTarget, ModuleTarget, Target
from poise.types import Access

FIT_SAMPLES = 1000
"""Most held-out images a defence is fitted on where the user named none."""

FEWEST_FIT_SAMPLES = 20


@dataclass(frozen=True)
class Prepared:
    """What the attacks need: the data, the undefended model, and the same with each defence behind it.

    Args:
        spec: what to do.
        attacked: the images under attack.
        available: how many images the data holds.
        target: the undefended model.
        defences, targets: the defences, and the model with each behind it, by name.
        fit_samples: on how many images the defences that learn were fitted.
        recorded: fingerprints of all that is not in the spec and changes the tables.
    """

    spec: AuditSpec
    attacked: Dataset
    available: int
    target: Target
    defences: dict[str, PostHoc]
    targets: dict[str, Target]
    fit_samples: int
    recorded: dict[str, str]


def prepare(spec: AuditSpec, note: Callable[[str], None]) -> Prepared:
    """Loads model and data, fits the defences and asks the model once, so that misfits show before any attack."""
    _check_extras(spec.recipes)
    target = models.load(spec.model, device=spec.device, batch_size=spec.batch_size, on_note=note)
    whole = data.load(spec.data).mixed()
    attacked = whole if spec.samples is None else whole[: spec.samples]
    if spec.samples is not None and len(whole) < spec.samples:
        raise InputError(f"samples: must be at most the {len(whole)} images of '{spec.data}', got {spec.samples}")
    data.check_matches(attacked, target.num_classes)
    _probe(target, attacked, spec.recipes)
    learned = {name: defenses.make(name) for name in spec.defences}
    recorded, fit_samples = {"data": attacked.fingerprint()}, 0
    if any(defence.needs_fit for defence in learned.values()):
        held_out = _held_out(spec, whole, attacked)
        _fit(spec, target, held_out, learned)
        recorded["fit_data"], fit_samples = held_out.fingerprint(), len(held_out)
    targets = {name: target if name == "none" else _defended(target, defence) for name, defence in learned.items()}
    if isinstance(target, ModuleTarget):
        recorded["weights"] = models.fingerprint(target)
    if (code := models.code_fingerprint(spec.model)) is not None:
        recorded["code"] = code
    return Prepared(spec, attacked, len(whole), target, learned, targets, fit_samples, recorded)


def _check_extras(recipes: tuple[str, ...]) -> None:
    """Refuses attacks of a library that is not installed, before anything is loaded."""
    for name in recipes:
        if name in PEERS and find_spec("art") is None:
            raise MissingExtraError(f"recipes: {name}", "peers")


def _check_peer(name: str, found: Recipe, target: Target) -> None:
    """What ART asks of a model beyond access."""
    if not isinstance(found, PeerRecipe):
        return
    if not isinstance(target, ModuleTarget):
        raise AccessError(f"recipes: {name} needs a PyTorch module, the model is a {type(target).__name__}")
    if target.num_classes < found.attack.classes:
        raise InputError(
            f"recipes: {name} needs at least {found.attack.classes} classes, the model has {target.num_classes}"
        )


def _probe(target: Target, attacked: Dataset, recipes: tuple[str, ...]) -> None:
    """Asks for what the recipes will need, two images' worth of it."""
    images, _, ids = next(iter(attacked[:2].batches(2)))
    ask(target, images, ids, attacked)
    for name in recipes:
        needed = recipe_named(name).access
        _check_peer(name, recipe_named(name), target)
        if needed > target.access:
            raise AccessError(
                f"recipes: {name} needs access '{needed.name.lower()}', the model gives '{target.access.name.lower()}'"
            )
    if isinstance(target, DifferentiableTarget) and any(recipe_named(n).access == Access.GRADIENTS for n in recipes):
        with inside_model("give gradients for", attacked):
            target.gradient(images.to(target.device), ids.to(target.device), lambda outputs: outputs.confidence)


def _fit(spec: AuditSpec, target: Target, held_out: Dataset, learned: dict[str, PostHoc]) -> None:
    data.check_matches(held_out, target.num_classes)
    logits, labels = [], []
    for images, truth, ids in held_out.batches(spec.batch_size):
        logits.append(ask(target, images, ids, held_out).logits.cpu())
        labels.append(truth)
    for defence in learned.values():
        if defence.needs_fit:
            defence.fit(torch.cat(logits), torch.cat(labels))


def _held_out(spec: AuditSpec, whole: Dataset, attacked: Dataset) -> Dataset:
    """Images that no attack sees: the named set, the embedded validation part, or the rest of the data."""
    if spec.fit_data is not None:
        return data.load(spec.fit_data)
    if spec.data == "builtin:digits":
        return data.load("builtin:digits", split="val")
    rest = whole[len(attacked) : len(attacked) + FIT_SAMPLES]
    if len(rest) < FEWEST_FIT_SAMPLES:
        raise InputError(
            f"fit-data: a defence that learns needs at least {FEWEST_FIT_SAMPLES} images not attacked, '{spec.data}' "
            f"has {len(rest)} beyond the {len(attacked)} attacked (give --fit-data, or fewer --samples)"
        )
    return rest


def _defended(target: Target, defence: PostHoc) -> Target:
    if not isinstance(target, ModuleTarget):
        raise InputError(f"defences: a {type(target).__name__} cannot carry a defence, got {type(defence).__name__}")
    return behind(target, defence)


def clean_figures(prepared: Prepared) -> dict[str, float]:
    """Accuracy, mean confidence, ECE and KS error of the undefended model on the images under attack."""
    confidence, right = [], []
    for images, labels, ids in prepared.attacked.batches(prepared.spec.batch_size):
        outputs = ask(prepared.target, images, ids, prepared.attacked)
        confidence.append(outputs.confidence.cpu())
        right.append((outputs.labels.cpu() == labels).double())
    columns = torch.cat(confidence).numpy(), torch.cat(right).numpy()
    return {
        "accuracy": metrics.mean(columns[1]),
        "confidence": metrics.mean(columns[0]),
        "ece": metrics.ece(*columns),
        "ks": metrics.ks_error(*columns),
    }
