"""A training run in a folder: loads network and images, trains on any number of devices, says what came out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from poise import __version__, data, models
from poise.data import Dataset
from poise.errors import InputError, MissingExtraError, RunError
from poise.experiments import files
from poise.experiments.served import ask
from poise.experiments.train_spec import TrainSpec, differences, read_train_spec
from poise.targets import ModuleTarget
from poise.training.checkpoint import Store
from poise.training.loop import Job, Listener, Progress, Silent, Trainer

PARTS = ("builtin", "torchvision")
"""Schemes whose sources have a training part that is taken unless the address says otherwise."""

WHOLE = ("Caltech101",)
"""Names among them that come in one piece."""

Follow = Callable[[], Listener]
"""Makes a listener in the process that is followed."""


def run_train(spec: TrainSpec, out: Path, *, resume: bool = False, follow: Follow = Silent) -> dict[str, Any]:
    """Trains, and returns what summary.json holds.

    The folder holds train.toml, last.pt, best.safetensors, model.safetensors, metrics.parquet and summary.json.

    Args:
        spec: what to do.
        out: the run folder; made if missing.
        resume: go on with a run of the same spec that lies there.
        follow: makes what hears how the run goes; with several devices it must be a function of a module, because it
            is called in another process.

    Raises:
        InputError: network, data and spec do not fit; RunError: another run lies in `out`; PoiseError: the loss is no
            longer finite; MissingExtraError: Lightning Fabric is not installed.
    """
    fabric = _fabric(spec)
    toml = out / "train.toml"
    files.check_folder(
        out, toml, what="a training run", others=lambda: differences(read_train_spec(toml)[0], spec), resume=resume
    )
    with files.locked(out):
        files.sweep(out)
        loaded = _load(spec)
        recorded = {"data": loaded.train.fingerprint(), "val": loaded.val.fingerprint()}
        _open(spec, out, recorded)
        if spec.devices == 1:
            fabric.launch()
            _work(fabric, spec, out, follow, loaded)
        else:
            fabric.launch(_work, spec, out, follow)
        return _summary(spec, out, loaded)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a run works on."""

    target: ModuleTarget
    train: Dataset
    val: Dataset


def _load(spec: TrainSpec) -> Loaded:
    """Images first, since they say how many classes the network has."""
    train = data.load(training_part(spec.data))
    if spec.val is None:
        train, val = data.split(train, (1 - spec.val_share, spec.val_share), seed=spec.seed)
    else:
        val = data.load(spec.val)
    target = models.blank(
        spec.address, num_classes=_classes(spec.model, train), seed=spec.seed, batch_size=spec.recipe.batch_size
    )
    for part in (train, val):
        data.check_matches(part, target.num_classes)
        ask(target, part[:2].images, part[:2].ids, part)
    return Loaded(target, train, val)


def training_part(address: str) -> str:
    """The address with split=train, where it names no part and its source has one to learn from.

    >>> training_part("builtin:digits"), training_part("torchvision:MNIST?root=d"), training_part("npz:a.npz")
    ('builtin:digits?split=train', 'torchvision:MNIST?root=d&split=train', 'npz:a.npz')
    """
    scheme, _, rest = address.partition(":")
    if scheme not in PARTS or "split=" in rest or rest.startswith(WHOLE):
        return address
    return f"{address}{'&' if '?' in rest else '?'}split=train"


def _classes(model: str, train: Dataset) -> int | None:
    return None if "num_classes=" in model else train.num_classes


def _work(fabric: Any, spec: TrainSpec, out: Path, follow: Follow, loaded: Loaded | None = None) -> None:
    """What every process does."""
    if loaded is None:  # another process than the one that loaded them
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // spec.devices))
        loaded = _load(spec)
    about = {"poise": __version__, "recipe": spec.recipe.name, "model": spec.address, "data": training_part(spec.data)}
    job = Job(
        target=loaded.target,
        recipe=spec.recipe,
        train=loaded.train,
        val=loaded.val,
        seed=spec.seed,
        workers=spec.workers,
        save_seconds=60 * spec.save_minutes,
        store=Store(out, about),
    )
    Trainer(fabric, job, follow() if fabric.is_global_zero else Silent()).run()


def _fabric(spec: TrainSpec) -> Any:
    """Lightning Fabric for the devices of the spec."""
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtraError("train", "train") from error
    kind, _, index = spec.device.partition(":")
    try:
        torch.empty(0, device=spec.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"device: must be one that this machine has, got '{spec.device}' ({reason})") from error
    if index and spec.devices > 1:
        raise InputError(f"devices: must be 1 with one device named, got {spec.devices} with '{spec.device}'")
    if kind == "cuda" and spec.devices > torch.cuda.device_count():
        raise InputError(
            f"devices: must be at most the {torch.cuda.device_count()} of this machine, got {spec.devices}"
        )
    chosen: list[int] | int = [int(index)] if index and kind == "cuda" else spec.devices
    strategy = "ddp_spawn" if spec.devices > 1 else "auto"
    return Fabric(accelerator=kind, devices=chosen, strategy=strategy, precision=spec.precision)


def _open(spec: TrainSpec, out: Path, recorded: dict[str, str]) -> None:
    """Writes train.toml, or compares the images with those that the run was begun on."""
    path = out / "train.toml"
    if path.exists():
        _, old = read_train_spec(path)
        for name, value in recorded.items():
            if old.get(name) != value:
                raise RunError(f"out: '{out}' was begun with other {name} ({old.get(name)}), give another --out")
        return
    files.write_text(path, spec.to_toml(recorded))


def _summary(spec: TrainSpec, out: Path, loaded: Loaded) -> dict[str, Any]:
    found = Store(out).read_last()
    assert found is not None
    at = Progress(**found["progress"])
    best = at.rows[at.best_epoch - 1]
    summary = {
        "recipe": spec.recipe.name,
        "paper": spec.recipe.paper,
        "model": spec.address,
        "num_classes": loaded.target.num_classes,
        "data": {"name": training_part(spec.data), "train": len(loaded.train), "val": len(loaded.val)},
        "epochs": len(at.rows),
        "best": best,
        "last": at.rows[-1],
        "seconds": sum(row["seconds"] for row in at.rows),
        "weights": {name: str(out / f"{name}.safetensors") for name in ("best", "model")},
        "address": trained_address(spec, out, loaded.target.num_classes),
        "versions": {"poise": __version__, "torch": torch.__version__},
    }
    files.write_json(out / "summary.json", summary)
    return summary


def trained_address(spec: TrainSpec, out: Path, classes: int) -> str:
    """The address of the network as it was kept, for `--model` of every other command."""
    name, _, query = spec.address.partition("?")
    keys = [part for part in query.split("&") if part and part.split("=")[0] not in _ONLY_BLANK]
    if not any(part.startswith("num_classes=") for part in keys):
        keys.append(f"num_classes={classes}")
    weights = quote(str(out / "best.safetensors"))
    return f"{name}?{'&'.join([f'weights={weights}', *keys])}"


_ONLY_BLANK = ("weights", "head", "frozen", "pretrained")
"""Query keys that say where training begins, not what the network is."""
