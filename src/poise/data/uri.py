"""The addresses of models and data: SCHEME:REST?key=value&key=value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

from poise.errors import InputError, brief, one_of, printable

LONGEST = 4096
"""Characters of an address, at most: as many as a path may have."""


@dataclass(frozen=True, slots=True)
class Uri:
    """A parsed address; every getter raises an `InputError` that names the address, the key and its value.

    Args:
        what: "model" or "data", for messages.
        scheme: what comes before the first colon.
        rest: a name, a file or a folder, percent-decoded.
        query: the keys after the question mark and their percent-decoded values.
        common: keys that every address takes, whatever `allow` is told.
    """

    what: str
    scheme: str
    rest: str
    query: Mapping[str, str]
    common: tuple[str, ...] = ()

    def __str__(self) -> str:
        return printable(f"{self.scheme}:{self.rest}")

    def fail(self, message: str) -> InputError:
        """An error that starts with the address."""
        return InputError(f"{self}: {printable(' '.join(message.split()))}")

    def allow(self, *keys: str) -> None:
        """Refuses every query key that is not named here and not common to all addresses."""
        known = [*keys, *self.common]
        for key in self.query:
            if key not in known and known:
                raise one_of(f"{self}: query key", key, known)
            if key not in known:
                raise self.fail(f"takes no query keys, got '{brief(key)}'")

    def text(self, key: str, default: str | None = None) -> str | None:
        """The value of a key; `default` where the key is not given."""
        return self.query.get(key, default)

    def choice(self, key: str, valid: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        value = self.query.get(key, default)
        if value not in valid:
            raise self.fail(f"{key} must be one of {', '.join(valid)}, got '{brief(value)}'")
        return value

    def integer(self, key: str, *, low: int) -> int | None:
        """A whole number, at least `low`."""
        value = self.query.get(key)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) < 10) or int(value) < low:
            raise self.fail(f"{key} must be a whole number, at least {low}, got '{brief(value)}'")
        return int(value)

    def flag(self, key: str) -> bool:
        """true or false; false where the key is not given."""
        return self.choice(key, ("true", "false"), "false") == "true"

    def floats(self, key: str) -> tuple[float, ...] | None:
        """Finite numbers separated by commas."""
        value = self.query.get(key)
        if value is None:
            return None
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(map(math.isfinite, numbers)):
            raise self.fail(f"{key} must be numbers separated by commas, got '{brief(value)}'")
        return numbers

    def normalisation(self) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """The keys mean and std: both or neither, of one length, std positive."""
        mean, std = self.floats("mean"), self.floats("std")
        if (mean is None) != (std is None):
            raise self.fail(f"mean and std must be given together, got only {'mean' if std is None else 'std'}")
        if mean is not None and std is not None and (len(mean) != len(std) or min(std) <= 0):
            raise self.fail(
                f"mean and std must have one length and std must be positive, got mean={list(mean)}, std={list(std)}"
            )
        return mean, std

    def file(self, path: str, *, role: str) -> Path:
        """An existing file; `role` says in a message what it is."""
        found = Path(path).expanduser()
        if found.is_dir():
            raise self.fail(f"{role} must be a file, got the folder '{path}'")
        if not found.is_file():
            raise self.fail(f"{role} must be an existing file, got '{path}'")
        return found

    def folder(self, path: str, *, role: str) -> Path:
        """An existing folder."""
        found = Path(path).expanduser()
        if found.is_file():
            raise self.fail(f"{role} must be a folder, got the file '{path}'")
        if not found.is_dir():
            raise self.fail(f"{role} must be an existing folder, got '{path}'")
        return found


def parse(text: str, *, what: str, schemes: tuple[str, ...], later: tuple[str, ...] = ()) -> Uri:
    """Takes an address apart.

    REST and the values are percent-decoded ('?' is %3F, '&' is %26, '%' is %25); a plus sign stays a plus sign.

    Args:
        text: SCHEME:REST or SCHEME:REST?key=value&key=value.
        what: "model" or "data", for messages.
        schemes: the valid schemes.
        later: schemes that are known but not in this version.

    Raises:
        InputError: for an unknown scheme, an empty REST, a key without a value or given twice.

    >>> uri = parse("npz:my%20set.npz?images=x", what="data", schemes=("npz",))
    >>> uri.scheme, uri.rest, dict(uri.query)
    ('npz', 'my set.npz', {'images': 'x'})
    """
    if len(text) > LONGEST:
        raise InputError(f"{what}: an address must have at most {LONGEST} characters, got {len(text)}")
    scheme, colon, tail = text.partition(":")
    if not colon:
        raise InputError(
            f"{what}: must be SCHEME:NAME such as builtin:digits (schemes: {', '.join(schemes)}), got '{brief(text)}'"
        )
    if scheme in later:
        raise InputError(f"{what}: source '{scheme}:' is not in this version of poise (sources: {', '.join(schemes)})")
    if scheme not in schemes:
        raise one_of(f"{what}: source", scheme, list(schemes))
    rest, _, tail = tail.partition("?")
    if not rest:
        raise InputError(f"{what}: '{scheme}:' must be followed by a name, a file or a folder, got '{brief(text)}'")
    query: dict[str, str] = {}
    where = f"{what}: {scheme}:{brief(rest)}"
    for part in tail.split("&") if tail else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise InputError(f"{where}: a query must read key=value&key=value, got '{brief(part)}'")
        if key in query:
            raise InputError(f"{where}: a query key must be given once, got '{brief(key)}' twice")
        query[key] = _decoded(value, what)
    return Uri(what, scheme, _decoded(rest, what), MappingProxyType(query))


def _decoded(text: str, what: str) -> str:
    decoded = unquote(text, errors="surrogateescape")
    if any(ord(sign) < 32 for sign in decoded):
        raise InputError(f"{what}: an address must not hold control characters, got {brief(repr(decoded))}")
    return decoded
