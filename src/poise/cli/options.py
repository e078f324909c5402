"""What several commands share: their common options, lists, fractions, and where a run lies."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise.errors import InputError

if TYPE_CHECKING:
    from poise.experiments import AuditSpec

DIGITS = "builtin:digits"

Model = Annotated[str | None, typer.Option(help="Where the model comes from.  [default: builtin:digits]")]
Data = Annotated[str | None, typer.Option(help="Where the images come from.  [default: builtin:digits]")]
Surrogate = Annotated[
    str | None, typer.Option(help="The attacker's own model, for black-box attacks that can use one.  [default: none]")
]
Precision = Annotated[
    str | None,
    typer.Option(help="Compute searches in bfloat16 or float16, results in the model's own.  [default: float32]"),
]
Eps = Annotated[str | None, typer.Option(help="Radius in pixel units, 0.05 or 8/255.  [default: 8/255; digits 0.2]")]
Norm = Annotated[str | None, typer.Option(help="linf or l2.  [default: linf]")]
Budget = Annotated[int | None, typer.Option(help="Most queries per image.  [default: 1000]")]
Steps = Annotated[int | None, typer.Option(help="Gradient steps.  [default: each paper's]")]
Samples = Annotated[int | None, typer.Option(help="How many images, from the first.  [default: all]")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random draw.  [default: 0]")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.  [default: cpu]")]
BatchSize = Annotated[int | None, typer.Option(help="Images per forward pass and per saved chunk.  [default: 256]")]
AnyBatchSize = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto", help="Images per forward pass and per saved chunk; auto tries out what fits.  [default: 256]"
    ),
]
Out = Annotated[Path | None, typer.Option(help="Run folder.  [default: runs/MODEL-DATE]")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; its spec need not be repeated.")]
View = Annotated[
    str | None, typer.Option(help="What the attacker sees: labels, probabilities, top:5, round:3.  [default: all]")
]
EightBit = Annotated[bool, typer.Option("--eight-bit", help="Attacked images hold 8-bit values, as a file does.")]
Journaled = Annotated[bool, typer.Option("--journal", help="Ask a PyTorch module for answers alone, and journal them.")]
MaxQueries = Annotated[int | None, typer.Option(help="Most queries of the whole run to a model that is no module.")]
CostPerQuery = Annotated[float | None, typer.Option(help="Price of one query, in any currency.")]
MaxCost = Annotated[float | None, typer.Option(help="Most that the run may cost; needs --cost-per-query.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print summary.json instead of the table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


AUTO = 0
"""A batch size that is still to be found."""


def number(name: str, text: str | None) -> float | None:
    """A number or a fraction such as 8/255.

    >>> number("eps", "8/255") == 8 / 255
    True
    """
    if text is None:
        return None
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{name}: must be a number such as 0.05 or 8/255, got '{text}'") from None


def size(name: str, text: str | None) -> int | None:
    """A whole number, or 0 for `auto`.

    >>> size("batch-size", "64"), size("batch-size", "auto")
    (64, 0)
    """
    if text is None:
        return None
    if text == "auto":
        return AUTO
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{name}: must be a whole number of at least 1, or auto, got '{text}'")
    return int(text)


def names(text: str | None) -> tuple[str, ...] | None:
    """Names separated by commas.

    >>> names("none, ts")
    ('none', 'ts')
    """
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


@contextmanager
def resumable(
    folder: Path,
    command: str,
    *,
    spec_file: str = "audit.toml",
    kept: str = "finished chunks are",
    before: str = "the first attack",
) -> Iterator[None]:
    """Answers an interrupt with how to go on, and exits with 130.

    Args:
        folder: of the run.
        command: what goes on with it, without its options.
        spec_file: what the folder holds once a run has begun.
        kept: what is kept. before: what had not begun where there is no spec yet.
    """
    try:
        yield
    except KeyboardInterrupt:
        if (folder / spec_file).exists():
            again = shlex.join([*command.split(), "--out", str(folder), "--resume"])
            typer.echo(f"interrupted; {kept} kept, go on with: {again}", err=True)
        else:
            typer.echo(f"interrupted before {before}; nothing was written", err=True)
        raise typer.Exit(130) from None


def free_folder(model: str, parent: Path = Path("runs")) -> Path:
    """A folder that is not there yet: runs/MODEL-DATE, with a number where that is taken."""
    stem = re.sub(r"[^a-zA-Z0-9]+", "-", model.split("?")[0].split(":", 1)[-1].split("/")[-1]).strip("-") or "model"
    base = parent / f"{stem}-{date.today().isoformat()}"
    tries = (base if count == 1 else base.with_name(f"{base.name}-{count}") for count in range(1, 10_000))
    return next(path for path in tries if not path.exists())


def repeat_command(spec: AuditSpec) -> str:
    """The command that repeats a run of this spec, in a folder of its own: what differs from the defaults.

    >>> from poise.experiments.audit_spec import make_spec
    >>> repeat_command(make_spec(samples=60, recipes=("sa-mma", "pgd-mma")))
    'poise audit --model builtin:digits --data builtin:digits --recipes sa-mma,pgd-mma --samples 60'
    """
    from poise.experiments.audit_spec import make_spec

    usual = make_spec(model=spec.model, data=spec.data, norm=spec.norm, view=spec.view, journal=spec.journal)
    usual = usual.model_copy(update={name: getattr(make_spec(), name) for name in ("norm", "view", "journal")})
    words = ["poise", "audit", "--model", spec.model, "--data", spec.data]
    for name, value in spec:
        if name not in ("model", "data", "costs") and value != getattr(usual, name):
            option = {"defences": "defenses"}.get(name, name).replace("_", "-")
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            words += [f"--{option}"] if value is True else [f"--{option}", text]
    if spec.costs is not None and (spec.costs.classes or spec.costs.right_accepted):
        words += ["--costs", "audit.toml"]  # the run folder's own: no option says so much
    elif spec.costs is not None:
        words += ["--cost-wrong", str(spec.costs.wrong_accepted), "--cost-deferred", str(spec.costs.deferred)]
    return shlex.join(words)
