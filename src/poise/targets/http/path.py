"""A path to a value in a JSON answer: names joined by dots, [n] and [*]."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from poise.errors import InputError, TargetError


@dataclass(frozen=True, slots=True)
class Each:
    """[*]: every element of a list."""


Step = str | int | Each

_STEP = re.compile(r"\.?(?P<name>[^.\[\]\s][^.\[\]]*)|\[(?P<index>\d{1,9}|\*)\]")


def parse_path(text: str) -> tuple[Step, ...]:
    """The steps of a path; "" has none.

    Raises:
        InputError: the text is no path.

    >>> parse_path("predictions[*].scores")
    ('predictions', Each(), 'scores')
    """
    steps: list[Step] = []
    at = 0
    while at < len(text):
        found = _STEP.match(text, at)
        if found is None or (at == 0 and text.startswith(".")) or (at > 0 and found["name"] and text[at] != "."):
            raise InputError(f"scores: must be a path such as predictions[*].scores, got {text!r}")
        index = found["index"]
        steps.append(found["name"] if index is None else Each() if index == "*" else int(index))
        at = found.end()
    return tuple(steps)


def follow(value: Any, steps: tuple[Step, ...]) -> Any:
    """The value at the end of the path; a list where the path holds [*].

    Raises:
        TargetError: one line that says at which step the answer differs from the path.

    >>> follow({"rows": [{"p": 1}, {"p": 2}]}, parse_path("rows[*].p"))
    [1, 2]
    """
    for number, step in enumerate(steps):
        if isinstance(step, Each):
            if not isinstance(value, list):
                raise _missing(steps, number, "a list", value)
            return [follow(part, steps[number + 1 :]) for part in value]
        if isinstance(step, int):
            if not isinstance(value, list) or len(value) <= step:
                raise _missing(steps, number, f"a list of at least {step + 1}", value)
        elif not isinstance(value, dict) or step not in value:
            raise _missing(steps, number, f"an object with the field '{step}'", value)
        value = value[step]
    return value


def _missing(steps: tuple[Step, ...], number: int, required: str, given: Any) -> TargetError:
    before = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in steps[:number]).lstrip(".")
    place = f"'{before}'" if before else "the answer"
    return TargetError(f"{place} must be {required}, got {describe(given)}")


def describe(value: Any) -> str:
    """What a JSON value is, without its content: an answer may repeat what it was sent.

    >>> describe({"a": 1}), describe([1, 2]), describe(None)
    ("an object with the fields 'a'", 'a list of 2', 'null')
    """
    if isinstance(value, dict):
        names = ", ".join(repr(str(name)[:40]) for name in list(value)[:5])
        return f"an object with the fields {names}" if names else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else {bool: "a truth value", str: "a text"}.get(type(value), "a number")
