"""A description of parts as plain data, and its fingerprint: what a result was made with, in twelve characters."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from hashlib import sha256
from typing import Any


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
