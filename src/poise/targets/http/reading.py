"""Endpoints from keyword arguments and from TOML files, with one line for whatever does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from poise.errors import InputError, brief, one_of
from poise.spec import read_toml
from poise.targets.http.endpoint import Endpoint


def make_endpoint(**given: Any) -> Endpoint:
    """An endpoint from keyword arguments.

    Raises:
        InputError: one line that names the field and what it must be; values of headers, query and url are not shown.

    >>> make_endpoint(url="https://example.org", num_classes=1)
    Traceback (most recent call last):
    poise.errors.InputError: num_classes: input should be greater than or equal to 2, got 1
    """
    for key in given:
        if key not in Endpoint.model_fields:
            raise one_of("endpoint: key", key, list(Endpoint.model_fields))
    try:
        return Endpoint(**given)
    except ValidationError as error:
        raise _one_line(error) from None


def read_endpoint(file: Path) -> Endpoint:
    """An endpoint from a TOML file; `verify` is looked for beside it.

    Raises:
        InputError: one line that starts with the file's name.
    """
    given = read_toml(file, "endpoint")
    if isinstance(given.get("verify"), str):
        given["verify"] = file.parent / Path(given["verify"]).expanduser()
    try:
        return make_endpoint(**given)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _one_line(error: ValidationError) -> InputError:
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        return inner
    name = str(first["loc"][0]) if first["loc"] else "endpoint"
    given = "" if name in ("url", "headers", "query") else f", got {brief(first['input'], 80)!r}"
    if isinstance(first["input"], int | float):
        given = given.replace("'", "")
    return InputError(
        f"{brief('.'.join(str(part) for part in first['loc']))}: {first['msg'][0].lower()}{first['msg'][1:]}{given}"
    )
