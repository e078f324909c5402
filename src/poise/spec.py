"""What a result was made with: parts as plain data, their fingerprint, specs as TOML, and what is wrong with one."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from poise.errors import InputError, brief

if TYPE_CHECKING:
    from pydantic import ValidationError


def describe(part: Any) -> Any:
    """Plain data (dicts, lists, numbers, strings) of a part: a frozen dataclass with its fields, or any other value.

    >>> from poise.constraints import Linf
    >>> describe(Linf(0.05))
    {'type': 'Linf', 'eps': 0.05}
    """
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {field.name: describe(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return {"type": type(part).__name__, **fields}
    if isinstance(part, Enum):
        return part.value
    if isinstance(part, dict):
        return {str(key): describe(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [describe(value) for value in part]
    return part if isinstance(part, str | int | float | bool | None) else repr(type(part))


def fingerprint(*parts: Any) -> str:
    """Twelve hexadecimal digits that change with any field of any part.

    >>> from poise.constraints import Linf
    >>> fingerprint(Linf(0.05)) == fingerprint(Linf(0.06))
    False
    """
    text = json.dumps([describe(part) for part in parts], sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:12]


def to_toml(table: dict[str, Any]) -> str:
    """Plain data as TOML: first the values, then the tables in it under their dotted names. None is left out.

    >>> print(to_toml({"seed": 0, "costs": {"wrong": 2.5}}), end="")
    seed = 0
    <BLANKLINE>
    [costs]
    wrong = 2.5
    """
    return "\n".join(_lines(table, ())) + "\n"


def _lines(table: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    given = {key: value for key, value in table.items() if value is not None}
    lines = [f"{key} = {_value(value)}" for key, value in given.items() if not isinstance(value, dict)]
    for key, inner in given.items():
        if isinstance(inner, dict) and inner:
            where = (*path, key)
            lines += ["", f"[{'.'.join(where)}]", *_lines(inner, where)]
    return lines


def _value(value: Any) -> str:
    """Numbers, texts and lists as JSON writes them, which is TOML but for one character that only TOML escapes."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def refusal(error: ValidationError, what: str = "spec", *, inside: str = "") -> InputError:
    """What pydantic found first, as one line: the field (of the table `inside`), what it must be, what was given."""
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        return inner
    where = ".".join(filter(None, (inside, *map(str, first["loc"])))) or what
    return InputError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, got {brief(repr(first['input']))}")
