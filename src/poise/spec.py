"""What a result was made with: parts as plain data, their fingerprint, specs as TOML, and what is wrong with one."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.errors import InputError, PoiseError, brief

if TYPE_CHECKING:
    from pydantic import ValidationError

LARGEST_TOML, DEEPEST_TOML = 2**20, 32
"""Bytes of a TOML file and levels of tables and lists in it, at most: no spec comes near, and a parser is not tried."""


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


def read_toml(path: Path, what: str, kind: type[PoiseError] = InputError) -> dict[str, Any]:
    """What a TOML file holds, of at most `LARGEST_TOML` bytes and `DEEPEST_TOML` levels.

    Args:
        path: of the file.
        what: begins the message where it cannot be read.
        kind: of the error.

    Raises:
        PoiseError: of that kind: the file is missing, larger, deeper, or no TOML in UTF-8.
    """
    try:
        with path.open("rb") as handle:
            content = handle.read(LARGEST_TOML + 1)
        if len(content) > LARGEST_TOML:
            raise ValueError(f"more than {LARGEST_TOML} bytes")
        text = content.decode("utf-8")
        if _LONG_KEY.search(text):
            raise RecursionError
        found = tomllib.loads(text)
        _check_plain(found)
    except RecursionError:
        raise kind(f"{what}: '{path}' must be a readable TOML file, got: tables or lists nested too deeply") from None
    except (OSError, ValueError) as error:  # UnicodeDecodeError, TOMLDecodeError, a number of thousands of digits
        raise kind(f"{what}: '{path}' must be a readable TOML file, got: {brief(error)}") from None
    return found


def take_recorded(given: dict[str, Any], path: Path, kind: type[PoiseError]) -> dict[str, str]:
    """Takes the table [recorded], the fingerprints of what a run was made with, out of what its file holds.

    Raises:
        PoiseError: of that kind: it is no table.
    """
    recorded = given.pop("recorded", {})
    if not isinstance(recorded, dict):
        raise kind(f"{path.name}: '{path}' must hold recorded as a table, got {brief(repr(recorded))}")
    return {str(key): str(value) for key, value in recorded.items()}


_KEY = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(rf"(?<![\w-])(?:{_KEY}){{{DEEPEST_TOML}}}")
"""A key of more parts than levels are allowed: the parser's time grows with their square."""


def _check_plain(value: Any, levels: int = DEEPEST_TOML) -> None:
    """Refuses tables and lists in more levels than these, and numbers that TOML does not have."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a whole number of more than 64 bits")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if inner and not levels:
        raise RecursionError
    for part in inner:
        _check_plain(part, levels - 1)


def refusal(error: ValidationError, what: str = "spec", *, inside: str = "") -> InputError:
    """What pydantic found first, as one line: the field (of the table `inside`), what it must be, what was given."""
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        return inner
    where = brief(".".join(filter(None, (inside, *map(str, first["loc"])))) or what)
    return InputError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, got {brief(repr(first['input']))}")
