"""poise train: one network by one recipe, in a folder that can be gone on with."""

from __future__ import annotations

import json
import shlex
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import TextColumn

from poise.cli.console import Shown
from poise.cli.options import DIGITS, Data, Device, Model, Out, Quiet, Seed, free_folder, number, resumable
from poise.errors import InputError, RunError

if TYPE_CHECKING:
    from poise.experiments.train_spec import TrainSpec

HELP = """Train a network by a recipe: plain, adversarial, or against attacks on its confidence.

\b
Examples:
  poise train uat-smooth --model builtin:resnet20-cifar10 --data torchvision:CIFAR10?root=DIR --epochs 30
  poise train standard --model builtin:digits --data builtin:digits --epochs 20
  poise train my-recipe.toml --model builtin:lenet5-mnist --data torchvision:MNIST?root=DIR --set method.eps=0.2
  poise train --out runs/mine --resume

`poise list training` names the recipes. The validation images (--val, or a tenth of the data) choose the epoch whose
weights are kept in best.safetensors; the last line is the address to audit them by.
"""

LearningRate = Annotated[str | None, typer.Option("--lr", help="Highest learning rate.  [default: the recipe's]")]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE: any other field of the recipe, method.steps=3 for example."),
]


def train(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's name, or a .toml file with the same fields.")] = None,
    model: Model = None,
    data: Data = None,
    val: Annotated[str | None, typer.Option(help="Validation images.  [default: a tenth of the data]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.  [default: the recipe's]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step, of all devices together.")] = None,
    lr: LearningRate = None,
    changes: Change = None,
    seed: Seed = None,
    device: Device = None,
    devices: Annotated[int | None, typer.Option(help="How many devices of that kind.  [default: 1]")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed.  [default: 32-true]")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that read images.  [default: 2]")] = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of lines.")] = False,
    quiet: Quiet = False,
) -> None:
    from poise.experiments.train import run_train

    fixed = {"epochs": epochs, "batch_size": batch_size, "optimizer.lr": number("lr", lr)}
    changed = _changes(changes or []) | {key: value for key, value in fixed.items() if value is not None}
    where = {"device": device, "devices": devices, "workers": workers}
    given = {"model": model, "data": data, "val": val, "seed": seed, "precision": precision} | where
    spec = _spec(recipe, changed, {key: value for key, value in given.items() if value is not None}, out, resume)
    folder = out or free_folder(f"{spec.recipe.name}-{spec.model.split(':', 1)[-1].split('?')[0]}")
    going_on = resumable(
        folder, "poise train", spec_file="train.toml", kept="the last checkpoint is", before="training began"
    )
    with going_on:
        summary = run_train(spec, folder, resume=resume, follow=partial(Bar, quiet))
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
        return
    for line in lines(summary):
        typer.echo(line)
    typer.echo(f"folder   {folder}")


def _spec(
    recipe: str | None, changed: dict[str, Any], given: dict[str, Any], out: Path | None, resume: bool
) -> TrainSpec:
    """The spec asked for; with --resume and nothing else, the one in the folder."""
    from poise.experiments.train_spec import make_train_spec, read_train_spec
    from poise.training import training_recipe

    if resume and out is None:
        raise InputError("resume: needs --out, the folder of the run to go on with, got none")
    if resume and out is not None and recipe is None:
        if not (out / "train.toml").exists():
            raise RunError(f"resume: '{out}' must hold a training run to go on with, found none")
        if changed:
            raise InputError(f"resume: takes the recipe in '{out}' as it is, got a change of {next(iter(changed))}")
        old, _ = read_train_spec(out / "train.toml")
        return make_train_spec(**(dict(old) | given))
    if recipe is None:
        raise InputError("train: needs the name of a recipe (`poise list training` shows them), got none")
    return make_train_spec(recipe=training_recipe(recipe, changed), **({"model": DIGITS, "data": DIGITS} | given))


def _changes(texts: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; a value is read as TOML, and as text where it is none."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key.strip() and equals and value.strip()):
            raise InputError(f"set: must be KEY=VALUE such as method.steps=3, got '{text}'")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value.strip()
    return found


class Bar(Shown):
    """A `Listener` that writes to the error stream: a bar on a terminal, and a line per epoch.

    Args:
        silent: write nothing.
    """

    def __init__(self, silent: bool) -> None:
        count = TextColumn("{task.completed:>6.0f}/{task.total:.0f} steps")
        super().__init__((TextColumn("{task.fields[epoch]:<14}"),), (count,), silent=silent, transient=True)

    def begin(self, done: int, steps: int, epochs: int) -> None:
        self._epochs = epochs
        self.open()
        self._task = self._bar.add_task("", total=steps, completed=done, epoch=f"of {epochs} epochs")
        if done:
            self.note(f"goes on after step {done:,} of {steps:,}")

    def step(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def epoch(self, row: dict[str, Any]) -> None:
        kept = "  kept" if row["best"] else ""
        self.note(
            f"epoch {row['epoch']:>3}/{self._epochs}  loss {row['loss']:.4f}  validation: accuracy "
            f"{row['val_accuracy']:.1%}, confidence {row['val_confidence']:.1%}, ECE {row['val_ece']:.3f}  "
            f"{row['seconds']:.0f} s, {row['images_per_second']:,.0f} images/s{kept}"
        )

    def end(self) -> None:
        self.close()


def lines(summary: dict[str, Any]) -> list[str]:
    """What a run came to, for a person."""
    best = summary["best"]
    return [
        f"{summary['recipe']} ({summary['paper']}): {summary['epochs']} epochs on {summary['data']['train']:,} images "
        f"of {summary['data']['name']}, {summary['seconds']:.0f} s",
        f"kept     epoch {best['epoch']}: validation accuracy {best['val_accuracy']:.1%}, confidence "
        f"{best['val_confidence']:.1%}, ECE {best['val_ece']:.3f}, NLL {best['val_nll']:.3f} "
        f"({summary['data']['val']:,} images)",
        f"audit    poise audit --model {shlex.quote(summary['address'])} --data …",
    ]
