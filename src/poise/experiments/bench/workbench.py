"""What one process keeps between shards: the model, data and fitted defence of the last few cells."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import torch

from poise import data, models
from poise.data import Dataset
from poise.defenses import DEFENSES, INFERENCE, PostHoc, TemperatureScaling, make_any
from poise.errors import InputError, brief
from poise.experiments.audit_spec import make_spec
from poise.experiments.bench.plan import Place, Plain, Shard
from poise.experiments.bench.store import Files
from poise.experiments.prepare import fit, held_out_images
from poise.experiments.served import Defence, served
from poise.targets import Target

KEPT = 2
"""Models, data sets and defences that are kept; shards come cell by cell, so more would only cost memory."""

Inputs = Mapping[str, Files]
"""Files of the shards that a shard needs, by name."""

Found = TypeVar("Found")


class _Recent(OrderedDict[str, Any]):
    """The last few things made, by name."""

    def get_or_make(self, name: str, make: Callable[[], Found]) -> Found:
        if name not in self:
            while len(self) >= KEPT:
                self.popitem(last=False)
            self[name] = make()
        self.move_to_end(name)
        found: Found = self[name]
        return found


class Workbench:
    """What the shards of a run need, made once: models, data, defences.

    Args:
        place: where files and device are.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._models, self._data, self._defences = _Recent(), _Recent(), _Recent()

    def model(self, shard: Shard, inputs: Inputs) -> Target:
        """The bare model of a shard."""
        settings = shard.settings
        needed = shard.needs.get("train")
        name = settings["source"] if needed is None else needed.key(self.place)
        return self._models.get_or_make(
            f"{name} {settings['batch_size']}", lambda: self._loaded(settings, inputs.get("train"))
        )

    def _loaded(self, settings: Plain, trained: Files | None) -> Target:
        with self.address_of(settings, trained) as address:
            return models.load(address, device=self.place.device, batch_size=settings["batch_size"])

    @contextmanager
    def address_of(self, settings: Plain, trained: Files | None) -> Iterator[str]:
        """The address of a cell's model; the weights of one that was trained lie in a file meanwhile."""
        if trained is None:
            yield self.place.address(settings["source"])
            return
        with tempfile.TemporaryDirectory(prefix="poise-bench-") as scratch:
            weights = Path(scratch) / "model.safetensors"
            weights.write_bytes(trained["model.safetensors"])
            yield trained["address.txt"].decode().replace("{weights}", quote(str(weights)))

    def images(self, address: str) -> Dataset:
        """All images of an address, in the order in which they are attacked."""
        return self._data.get_or_make(address, lambda: data.load(self.place.address(address)).mixed())

    def attacked(self, settings: Plain) -> Dataset:
        """The images that a cell attacks, before any choice by confidence."""
        whole, samples = self.images(settings["data"]), settings["samples"]
        if samples is not None and len(whole) < samples:
            raise InputError(f"samples: must be at most the {len(whole)} images of '{settings['data']}', got {samples}")
        return whole if samples is None else whole[:samples]

    def part(self, shard: Shard, target: Target) -> Dataset:
        """The images of one shard."""
        part = self.attacked(shard.settings)[shard.start : shard.stop]
        data.check_matches(part, target.num_classes)
        limits = shard.settings["confidence"]
        if limits is None:
            return part
        with target.session(0):
            confidence = torch.cat(
                [
                    target.query(x.to(target.device), ids.to(target.device)).confidence.cpu()
                    for x, _, ids in part.batches(target.batch_size)
                ]
            )
        return part.select(((confidence >= limits[0]) & (confidence <= limits[1])).nonzero()[:, 0].numpy())

    def defended(self, shard: Shard, bare: Target, inputs: Inputs) -> Target:
        """The model behind the defence of a shard."""
        settings = shard.settings
        if settings["defence"]["use"] == "none" and settings["defence"]["temperature"] is None:
            return bare
        needed = shard.needs.get("train")
        named = [settings[name] for name in ("source", "defence", "fit_data", "data", "samples", "seed", "eps", "norm")]
        return self._defences.get_or_make(
            str([named, needed and needed.key(self.place)]), lambda: served(bare, self._fitted(settings, bare))
        )

    def _fitted(self, settings: Plain, bare: Target) -> Defence:
        chosen = settings["defence"]
        defence = make_defence(chosen)
        if isinstance(defence, PostHoc):
            defence.to(bare.device)
        if chosen["temperature"] is not None or not defence.needs_fit:
            return defence
        whole, attacked = self.images(settings["data"]), self.attacked(settings)
        fit_data = settings["fit_data"]
        held_out = held_out_images(
            settings["data"], None if fit_data is None else self.place.address(fit_data), whole, attacked
        )
        spec = make_spec(
            eps=settings["eps"], norm=settings["norm"], seed=settings["seed"], eight_bit=settings["eight_bit"],
            batch_size=settings["batch_size"],
        )  # fmt: skip
        learned = {"it": defence}
        fit(spec, bare, held_out, learned)
        return learned["it"]


def make_defence(chosen: Plain) -> Defence:
    """A defence with its options, not fitted yet; a fixed temperature needs no fit.

    Raises:
        InputError: the options are not arguments of the defence.
    """
    if chosen["temperature"] is not None:
        fixed = TemperatureScaling()
        fixed.temperature.fill_(chosen["temperature"])
        fixed.fitted.fill_(True)
        return fixed
    name, options = chosen["use"], chosen["options"]
    if not options:
        return make_any(name)
    factory: Any = (INFERENCE[name] if name in INFERENCE else DEFENSES[name]).factory
    try:
        made: Defence = factory(**options)
    except TypeError as error:
        raise InputError(f"defence '{name}': options must be its arguments, got {brief(error)}") from error
    return made
