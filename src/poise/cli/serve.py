"""poise serve: a model, with its defence, behind HTTP on this machine."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise.cli.options import DIGITS, Device, Model
from poise.errors import InputError

if TYPE_CHECKING:
    from poise.serve import ServedModel
    from poise.types import OutputKind

HELP = """Serve a model, with its defence, over HTTP, so that an attack can be tried on the real thing.

\b
Examples:
  poise serve --model builtin:digits --defense ts.safetensors
  poise audit --model http://127.0.0.1:8000 --data builtin:digits     (in another terminal)
  MY_TOKEN=… poise serve --model … --data folder:test --outputs probabilities --host 0.0.0.0 --token-env MY_TOKEN

Routes: GET /health, GET /metadata, POST /predict. Interrupt (Ctrl-C) or terminate it to stop.
"""


def serve(
    model: Model = None,
    defense: Annotated[
        Path | None, typer.Option("--defense", "--defence", help="File that `poise defend fit` wrote.  [default: none]")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data that tells the images' shape and the classes' names.  [default: none]")
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(help="logits or probabilities.  [default: what the model returns]")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8000,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the token clients must send.  [default: none]")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Allow a --host that other machines reach without a token.")
    ] = False,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(help="Most images per forward pass and per request.")] = 256,
    max_wait_ms: Annotated[float, typer.Option(help="How long a request waits for others to share a pass with.")] = 2.0,
    max_body_mb: Annotated[float, typer.Option(help="Largest body of a request, in MB.")] = 16.0,
) -> None:
    from poise.serve import Limits, bind, create_app, is_loopback, run
    from poise.serve.load import load_served

    kind = _kind(outputs)
    token = _token(token_env)
    if token is None and not public and not is_loopback(host):
        raise InputError(f"host: must be a loopback address, or be given with --token-env or --public, got '{host}'")
    if batch_size < 1:
        raise InputError(f"batch-size: must be at least 1, got {batch_size}")
    body = round(max_body_mb * 1e6) if 0 < max_body_mb < 1e6 else 0
    if body < 1:
        raise InputError(f"max-body-mb: must be positive and below a million, got {max_body_mb:g}")
    limits = Limits(batch_size, max_wait_ms / 1000, body, held_bytes=max(2**28, 8 * body))
    served = load_served(
        model or DIGITS, defense=defense, images=data, outputs=kind, device=device or "cpu", batch_size=batch_size,
        on_note=_note,
    )  # fmt: skip
    app = create_app(served, limits, token=token, on_failure=_FirstLines(20))
    with bind(host, port) as listening:
        if token is None and not is_loopback(host):
            _note(f"warning: other machines reach {host}, and no token is asked for")
        _announce(served, model or DIGITS, data, defense, token_env, listening)
        interrupted = run(app, listening)
    if interrupted:
        raise typer.Exit(130)


def _kind(outputs: str | None) -> OutputKind | None:
    from poise.types import OutputKind

    kinds = {kind.value: kind for kind in (OutputKind.LOGITS, OutputKind.PROBABILITIES)}
    if outputs is not None and outputs not in kinds:
        raise InputError(f"outputs: must be logits or probabilities, got '{outputs}'")
    return None if outputs is None else kinds[outputs]


def _token(name: str | None) -> str | None:
    """The token in an environment variable; it appears in no message."""
    if name is None:
        return None
    token = os.environ.get(name, "").strip()
    if not token:
        raise InputError(f"token-env: the environment variable must hold a token, got none in '{name}'")
    return token


def _announce(
    served: ServedModel, model: str, data: str | None, defense: Path | None, token_env: str | None, at: socket.socket
) -> None:
    from poise.serve import url

    shown = f"{served.name}" + ("" if defense is None else f" behind {defense.name}")
    typer.echo(f"serving  {shown}: {served.target.num_classes} classes, {served.outputs.value}")
    typer.echo(f"address  {url(at)}")
    asked = url(at) + ("" if token_env is None else f"?token_env={token_env}")
    images = data or (model if model == DIGITS else "DATA")
    typer.echo(f"audit    {shlex.join(['poise', 'audit', '--model', asked, '--data', images])}")


class _FirstLines:
    """Writes the first few different lines to the error stream: a client must not be able to fill a log."""

    def __init__(self, most: int) -> None:
        self._most, self._seen = most, set[str]()

    def __call__(self, line: str) -> None:
        if line not in self._seen and len(self._seen) < self._most:
            self._seen.add(line)
            _note(f"warning: {line}")


def _note(line: str) -> None:
    typer.echo(line, err=True)
