"""From a network that a source makes to a target: weights, variants, new heads, frozen backbones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from poise.data.uri import Uri
from poise.errors import InputError
from poise.models.digits import Note
from poise.models.heads import freeze_backbone, head_names, renew_head
from poise.models.variants import Variant, chosen
from poise.models.weights import State, put_state, read_state
from poise.targets import ModuleTarget

Channels = tuple[float, ...]

_T = TypeVar("_T")

TRAINING_KEYS = ("head", "frozen")
"""Query keys that make sense for a network that is to be trained."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A network that is to be trained.

    Args:
        seed: of whatever is initialised.
        num_classes: K of the data; None where the address decides.
    """

    seed: int
    num_classes: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how a model runs, who hears what the user should know, and whether it is to be trained."""

    device: torch.device
    batch_size: int
    note: Note
    fresh: Fresh | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A network of a source, its number of classes, what it answers, and the normalisation that is its own."""

    module: nn.Module
    num_classes: int
    mean: Channels | None = None
    std: Channels | None = None
    outputs: str = "logits"


def _plain(path: Path, module: nn.Module) -> State:
    return read_state(path)


@dataclass(frozen=True, slots=True)
class Draft:
    """What a source says of an address before anything is made.

    Args:
        keys: query keys that it knows.
        make: a network, as often as it is called.
        trained: its weights are of use as they are made.
        needs: what to answer where they are not, and there is no file.
        channels: C, where it is known.
        assumed: the user should hear which normalisation was taken.
        read: the tensors of a file for a module.
    """

    keys: tuple[str, ...]
    make: Callable[[], Made]
    trained: bool = False
    needs: str = "needs weights=FILE"
    channels: int | None = None
    assumed: bool = False
    read: Callable[[Path, nn.Module], State] = _plain


def asked_classes(uri: Uri, place: Place) -> int | None:
    """K as the address or the data say; they must not contradict each other."""
    given = uri.integer("num_classes", low=2)
    data = None if place.fresh is None else place.fresh.num_classes
    if given is not None and data is not None and given != data:
        raise uri.fail(f"num_classes must be {data} as the data have, or be left out, got {given}")
    return data if given is None else given


def assemble(uri: Uri, place: Place, draft: Draft) -> ModuleTarget:
    """The target of an address.

    Raises:
        InputError: for keys, files and weights that do not fit.
    """
    variant = check_keys(uri, place, draft)
    weights = uri.text("weights")
    file = None if weights is None else uri.file(weights, role="weights")
    if file is None and place.fresh is None and not draft.trained:
        raise uri.fail(draft.needs)
    if file is None and place.fresh is None and variant is not None:
        raise uri.fail(f"variant={uri.text('variant')} needs weights=FILE, the weights of this form of the network")
    mean, std = uri.normalisation()
    if mean is not None and draft.channels is not None and len(mean) != draft.channels:
        raise uri.fail(f"mean and std must have {draft.channels} values, one per channel, got {len(mean)}")
    builder = _Builder(uri, place, draft)
    module = builder.module(variant)
    made = builder.made[0]
    if file is not None:
        builder.put(module, file)
    if uri.flag("frozen"):
        _in_one_line(uri, lambda: freeze_backbone(module, made.num_classes))
    if mean is None:
        mean, std = made.mean, made.std
        if draft.assumed and mean is not None and std is not None:
            place.note(
                f"{uri} is given images normalised by mean {list(mean)} and std {list(std)}; mean= and std= change it"
            )
    target = ModuleTarget(
        module,
        num_classes=made.num_classes,
        mean=mean,
        std=std,
        device=place.device,
        batch_size=place.batch_size,
        outputs=made.outputs,
    )
    target.module.eval()
    return target


def check_keys(uri: Uri, place: Place, draft: Draft) -> Variant | None:
    """Refuses every query key that this source, this variant or this purpose does not know; gives the variant."""
    variant = chosen(uri)
    if place.fresh is None:
        for key in TRAINING_KEYS:
            if key in uri.query:
                raise uri.fail(f"{key} is for a network that is to be trained (poise.models.blank), leave it out")
    own = () if variant is None else variant.keys
    uri.allow(*draft.keys, "variant", *own, *(TRAINING_KEYS if place.fresh else ()))
    if "head" in uri.query and uri.query["head"] != "new":
        raise uri.fail(f"head must be new, got '{uri.query['head']}'")
    if "head" in uri.query and asked_classes(uri, place) is None:
        raise uri.fail("head=new needs num_classes=N")
    return variant


class _Builder:
    """Makes the networks of an address, each from its own seed, and fills them."""

    def __init__(self, uri: Uri, place: Place, draft: Draft) -> None:
        self.uri, self.place, self.draft = uri, place, draft
        self.made: list[Made] = []
        self.names: set[str] = set()  # of the parameters of the plain network

    def module(self, variant: Variant | None) -> nn.Module:
        """The network, or its variant."""
        if variant is None:
            return self._build(0)
        with self._random("variant"):
            return _in_one_line(self.uri, lambda: variant.make(self.uri, self._build))

    def _build(self, i: int) -> nn.Module:
        with self._random(i):
            made = self._fitted(self.draft.make())
        self.names = self.names or set(made.module.state_dict())
        self.made.append(made)
        return made.module

    def _fitted(self, made: Made) -> Made:
        """With as many classes as asked for."""
        classes = asked_classes(self.uri, self.place)
        if "head" in self.uri.query and self.draft.trained and classes is not None:
            _in_one_line(self.uri, lambda: renew_head(made.module, classes))
            return replace(made, num_classes=classes)
        if classes is not None and made.num_classes != classes:
            raise self.uri.fail(
                f"num_classes must be {made.num_classes} with these weights (head=new makes another last layer), "
                f"got {classes}"
            )
        return made

    @contextmanager
    def _random(self, which: int | str) -> Iterator[None]:
        """A copy of torch's random state, from the seed where there is one; the first network has the seed itself."""
        fresh = self.place.fresh
        with torch.random.fork_rng(devices=[]):
            if fresh is not None:
                key = hashlib.sha256(f"{fresh.seed} {which}".encode()).digest()[:6]
                torch.default_generator.manual_seed(fresh.seed if which == 0 else int.from_bytes(key, "big"))
            yield

    def put(self, module: nn.Module, file: Path) -> None:
        """The weights of a file; what training starts anew keeps the values that it has."""
        state = self.draft.read(file, module)
        if self.place.fresh is not None:
            own = module.state_dict()
            added = set(own) - self.names
            if self.names <= set(own) and not added & set(state):  # the plain network's weights, for a variant of it
                state = {name: own[name] for name in added} | state
            if "head" in self.uri.query:
                heads = _in_one_line(self.uri, lambda: head_names(module, self.made[0].num_classes))
                inside = tuple(f"{head}." for head in heads)
                kept = {name: value for name, value in state.items() if not name.startswith(inside)}
                state = kept | {name: value for name, value in own.items() if name.startswith(inside)}
        put_state(module, state, name=str(self.uri), origin=f"'{file}'")


def _in_one_line(uri: Uri, do: Callable[[], _T]) -> _T:
    """What `do` returns; its error starts with the address."""
    try:
        return do()
    except InputError as error:
        if str(error).startswith(f"{uri}:"):
            raise
        raise uri.fail(str(error)) from error
