"""Before the first attack: model and data loaded and matched, defences fitted, misfits told in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from poise import data, defenses, metrics, models
from poise.data import Dataset
from poise.defenses import MultiDomainTemperature, PostHoc
from poise.errors import AccessError, InputError, MissingExtraError, PoiseError
from poise.experiments.audit_spec import LIMITS, AuditSpec
from poise.experiments.domains import by_features
from poise.experiments.explain_cams import check_installed
from poise.experiments.served import Defence, ask, inside_model, served
from poise.experiments.till import PROBED, Till
from poise.recipebook import PEERS, Recipe
from poise.recipebook import recipe as recipe_named
from poise.recipebook.peers import PeerRecipe
from poise.searches.transfers import check_surrogate
from poise.targets import DifferentiableTarget, ModuleTarget, Target
from poise.targets.views import view
from poise.types import Access

FIT_SAMPLES = 1000
"""Most held-out images a defence is fitted on where the user named none."""

FEWEST_FIT_SAMPLES = 20


@dataclass(frozen=True)
class Loaded:
    """What is known before the model is asked anything.

    Args:
        spec: what to do.
        model: as it was loaded.
        defences: by name, not fitted yet.
        attacked: the images under attack.
        available: how many images the data holds.
        held_out: what the defences are fitted on; None where none of them learns.
        surrogate: the attacker's own model.
        recorded: fingerprints of all that is not in the spec and changes the tables.
    """

    spec: AuditSpec
    model: Target
    defences: dict[str, Defence]
    attacked: Dataset
    available: int
    held_out: Dataset | None
    recorded: dict[str, str]
    surrogate: ModuleTarget | None

    @property
    def fit_samples(self) -> int:
        """On how many images the defences that learn are fitted."""
        return 0 if self.held_out is None else len(self.held_out)

    @property
    def paid(self) -> bool:
        """Answers are worth keeping: the model is an endpoint, a file or a function, or the user wants a journal."""
        return self.spec.journal or not isinstance(self.model, ModuleTarget | DifferentiableTarget)


@dataclass(frozen=True)
class Prepared:
    """What the attacks need: the data, the undefended model, and the same with each defence behind it.

    Args:
        loaded: spec, model, data, and the defences, fitted by now.
        targets: the model as the attacker sees it with each defence behind it, by name.
        till: pays for the answers; None where they cost nothing.
    """

    loaded: Loaded
    targets: dict[str, Target]
    till: Till | None

    @property
    def spec(self) -> AuditSpec:
        """What to do."""
        return self.loaded.spec

    @property
    def attacked(self) -> Dataset:
        """The images under attack."""
        return self.loaded.attacked

    @property
    def defences(self) -> dict[str, Defence]:
        """The fitted defences, by name."""
        return self.loaded.defences

    @property
    def target(self) -> Target:
        """The undefended model, as the attacker sees it."""
        return self.targets["none"]

    @contextmanager
    def part(self, name: str) -> Iterator[Prepared]:
        """The same for one part of the run, with a journal of its own where answers cost; no part lies in another."""
        if self.till is None:
            yield self
            return
        with self.till.journal(name) as bare:
            yield replace(self, targets=_seen(self.spec, bare, self.defences))


def load(spec: AuditSpec, note: Callable[[str], None]) -> Loaded:
    """Loads model and data and tells all misfits that show without a question."""
    _check_extras(spec.recipes)
    model = models.load(spec.model, device=spec.device, batch_size=spec.batch_size, on_note=note)
    whole = data.load(spec.data).mixed()
    attacked = whole if spec.samples is None else whole[: spec.samples]
    if spec.samples is not None and len(whole) < spec.samples:
        raise InputError(f"samples: must be at most the {len(whole)} images of '{spec.data}', got {spec.samples}")
    data.check_matches(attacked, model.num_classes)
    if spec.costs is not None:
        spec.costs.check(model.num_classes)
    recorded = {"data": attacked.fingerprint()}
    learned, held_out = {name: defenses.make_any(name) for name in spec.defences}, None
    if any(defence.needs_fit for defence in learned.values()):
        held_out = held_out_images(spec.data, spec.fit_data, whole, attacked)
        data.check_matches(held_out, model.num_classes)
        recorded["fit_data"] = held_out.fingerprint()
    if isinstance(model, ModuleTarget):
        recorded["weights"] = models.fingerprint(model)
    elif isinstance(file := getattr(model, "fingerprint", None), str):  # an ONNX file's
        recorded["weights"] = file
    if (code := models.code_fingerprint(spec.model)) is not None:
        recorded["code"] = code
    if spec.precision != "float32" and (spec.journal or spec.view or not isinstance(model, ModuleTarget)):
        given = "journaled" if spec.journal else "seen by a view" if spec.view else f"a {type(model).__name__}"
        raise InputError(f"precision: needs a PyTorch module, the model is {given}")
    surrogate = _surrogate(spec, model, attacked, note)
    if surrogate is not None:
        recorded["surrogate"] = models.fingerprint(surrogate)
    loaded = Loaded(spec, model, learned, attacked, len(whole), held_out, recorded, surrogate)
    _check_access(loaded, _seen(spec, model, learned)["none"])
    if spec.explain and isinstance(model, ModuleTarget) and not loaded.paid:
        check_installed()
    return loaded


def _surrogate(spec: AuditSpec, model: Target, attacked: Dataset, note: Callable[[str], None]) -> ModuleTarget | None:
    """The attacker's own model, asked once; None where there is none."""
    if spec.surrogate is None:
        return None
    found = models.load(spec.surrogate, device=spec.device, batch_size=spec.batch_size, on_note=note)
    if not isinstance(found, ModuleTarget):
        raise InputError(f"surrogate: must be a PyTorch model, got a {type(found).__name__}")
    check_surrogate(found, model.num_classes, model.bounds)
    images, _, ids = next(iter(attacked[:PROBED].batches(PROBED)))
    try:
        ask(found, images, ids, attacked)
    except PoiseError as error:
        raise InputError(f"surrogate: {str(error).removeprefix('model: ')}") from None
    return found


def prepare(loaded: Loaded, till: Till | None) -> Prepared:
    """Asks the model once, so that misfits show before any attack, and fits the defences.

    Args:
        loaded: model and data.
        till: pays for the answers, where they cost.
    """
    spec, bare = loaded.spec, loaded.model if till is None else till.purse
    prepared = Prepared(loaded, _seen(spec, bare, loaded.defences), till)
    with prepared.part("probe") as part:
        _probe(part.target, loaded.attacked, spec.recipes)
    if loaded.held_out is not None:
        journal: AbstractContextManager[Target] = nullcontext(bare) if till is None else till.journal("fit")
        with journal as model:
            fit(spec, model, loaded.held_out, loaded.defences)
    return replace(prepared, targets=_seen(spec, bare, loaded.defences))


def _seen(spec: AuditSpec, bare: Target, learned: dict[str, Defence]) -> dict[str, Target]:
    """The model with each defence behind it, seen as the attacker sees it."""
    behind = {name: bare if name == "none" else served(bare, defence) for name, defence in learned.items()}
    return behind if spec.view is None else {name: view(target, spec.view) for name, target in behind.items()}


def _check_extras(recipes: tuple[str, ...]) -> None:
    """Refuses attacks of a library that is not installed, before anything is loaded."""
    for name in recipes:
        if name in PEERS and find_spec(PEERS[name].attack.package) is None:
            raise MissingExtraError(f"recipes: {name}", PEERS[name].attack.extra)


def _check_access(loaded: Loaded, seen: Target) -> None:
    """Refuses recipes that need more than the attacker gets, and limits of what costs nothing."""
    spec, given = loaded.spec, min(seen.access, Access.SCORES) if loaded.paid else seen.access
    for name in spec.recipes:
        needed = recipe_named(name).access
        if needed > given:
            raise AccessError(
                f"recipes: {name} needs access '{needed.name.lower()}', the model gives '{given.name.lower()}'"
            )
        _check_peer(name, recipe_named(name), seen, norm=spec.norm, journaled=spec.journal)
    if not loaded.paid and (limit := next((name for name in LIMITS if getattr(spec, name) is not None), None)):
        raise InputError(
            f"{limit.replace('_', '-')}: needs a model that is asked from outside (onnx:, http:, endpoint:, py:), or "
            f"--journal; the model is a {type(loaded.model).__name__}, whose queries --budget limits"
        )


def _check_peer(name: str, found: Recipe, target: Target, *, norm: str, journaled: bool) -> None:
    """What another library asks of a model beyond access."""
    if not isinstance(found, PeerRecipe):
        return
    if journaled or not isinstance(target, ModuleTarget):
        given = "journaled" if journaled else f"a {type(target).__name__}"
        raise AccessError(f"recipes: {name} needs a PyTorch module, the model is {given}")
    found.attack.check_norm(norm)
    if target.num_classes < found.attack.classes:
        raise InputError(
            f"recipes: {name} needs at least {found.attack.classes} classes, the model has {target.num_classes}"
        )


def _probe(target: Target, attacked: Dataset, recipes: tuple[str, ...]) -> None:
    """Asks for what the recipes will need, two images' worth of it."""
    images, _, ids = next(iter(attacked[:PROBED].batches(PROBED)))
    ask(target, images, ids, attacked)
    if isinstance(target, DifferentiableTarget) and any(recipe_named(n).access == Access.GRADIENTS for n in recipes):
        with inside_model("give gradients for", attacked):
            target.gradient(images.to(target.device), ids.to(target.device), lambda outputs: outputs.confidence)


def fit(spec: AuditSpec, target: Target, held_out: Dataset, learned: dict[str, Defence]) -> None:
    """Fits the defences that learn, in place, on the answers of the bare model."""
    logits, labels = [], []
    for images, truth, ids in held_out.batches(spec.batch_size):
        logits.append(ask(target, images, ids, held_out).logits.cpu())
        labels.append(truth)
    for name, defence in learned.items():
        if isinstance(defence, MultiDomainTemperature) and isinstance(target, ModuleTarget):
            around = by_features(target, defence, held_out, spec)
            if around is not None:
                learned[name] = around
                continue
        if isinstance(defence, PostHoc) and defence.needs_fit:
            defence.cpu().fit(torch.cat(logits), torch.cat(labels)).to(target.device)


def held_out_images(address: str, fit_data: str | None, whole: Dataset, attacked: Dataset) -> Dataset:
    """Images that no attack sees: the named set, the embedded validation part, or the rest of the data.

    Args:
        address: of the data. fit_data: of the images to fit on; None where the user named none.
        whole: all images of the data, in the order of the attack. attacked: the first of them.

    Raises:
        InputError: too few are left.
    """
    if fit_data is not None:
        return data.load(fit_data)
    if address == "builtin:digits":
        return data.load("builtin:digits", split="val")
    rest = whole[len(attacked) : len(attacked) + FIT_SAMPLES]
    if len(rest) < FEWEST_FIT_SAMPLES:
        raise InputError(
            f"fit-data: a defence that learns needs at least {FEWEST_FIT_SAMPLES} images not attacked, '{address}' "
            f"has {len(rest)} beyond the {len(attacked)} attacked (give --fit-data, or fewer --samples)"
        )
    return rest


def clean_figures(prepared: Prepared) -> dict[str, float]:
    """Accuracy, mean confidence, ECE and KS error of the undefended model on the images under attack."""
    confidence, right = [], []
    with prepared.part("clean") as part:
        for images, labels, ids in part.attacked.batches(part.spec.batch_size):
            outputs = ask(part.target, images, ids, part.attacked)
            confidence.append(outputs.confidence.cpu())
            right.append((outputs.labels.cpu() == labels).double())
    columns = torch.cat(confidence).numpy(), torch.cat(right).numpy()
    return {
        "accuracy": metrics.mean(columns[1]),
        "confidence": metrics.mean(columns[0]),
        "ece": metrics.ece(*columns),
        "ks": metrics.ks_error(*columns),
    }
