"""What is sent with every request and shown nowhere: headers and query values taken from the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NoReturn
from urllib.parse import quote

import httpx

from poise.errors import InputError
from poise.targets.http.encode import Content
from poise.targets.http.endpoint import Endpoint, fill


class Credentials:
    """Makes requests that carry an endpoint's headers and query.

    The values live in a closure: no attribute, no repr and no pickle holds them.

    Args:
        endpoint: names the variables.
        environment: where they are looked up, once; None is the process's own.

    Raises:
        InputError: a variable is missing or cannot be sent; the message names it and never its value.

    >>> endpoint = Endpoint(url="https://example.org", num_classes=2, headers={"Authorization": "Bearer ${TOKEN}"})
    >>> Credentials(endpoint, {"TOKEN": "abcdef"}).redacted("no such user: abcdef")
    'no such user: ***'
    """

    __slots__ = ("_build", "_redact")

    _build: Callable[[Content | None], httpx.Request]
    _redact: Callable[[str], str]

    def __init__(self, endpoint: Endpoint, environment: Mapping[str, str] | None = None) -> None:
        values = _looked_up(endpoint, os.environ if environment is None else environment)
        given = {name: fill(value, values) for name, value in endpoint.headers.items()}
        query = {name: fill(value, values) for name, value in endpoint.query.items()}
        usual = {"Accept": "application/json", "User-Agent": "poise", "Accept-Encoding": "identity"}
        if endpoint.answer == "npy":
            usual["Accept"] = "application/x-npy"
        taken = {name.lower() for name in given}
        headers = {name: value for name, value in usual.items() if name.lower() not in taken} | given
        with_type = "content-type" not in taken

        def build(content: Content | None) -> httpx.Request:
            url = httpx.URL(endpoint.url).copy_merge_params(query) if query else endpoint.url
            if content is None:
                return httpx.Request("GET", url, headers=headers)
            media = {"Content-Type": content.media_type} if with_type else {}
            return httpx.Request(endpoint.method, url, headers=headers | media, content=content.body)

        def redact(text: str) -> str:
            for value in sorted({*values.values(), *map(quote, values.values())}, key=len, reverse=True):
                text = text.replace(value, "***")
            return text

        self._build, self._redact = build, redact

    def request(self, content: Content | None) -> httpx.Request:
        """The request that sends the content to the endpoint; without content, a GET."""
        return self._build(content)

    def redacted(self, text: str) -> str:
        """The text with every value that was taken from the environment replaced by ***."""
        return self._redact(text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("Credentials are never pickled")


def _looked_up(endpoint: Endpoint, environment: Mapping[str, str]) -> dict[str, str]:
    values = {}
    for name in endpoint.variables:
        value = environment.get(name)
        if not value:
            raise InputError(
                f"endpoint: the environment variable '{name}' must be set, got {'none' if value is None else 'nothing'}"
            )
        if not (value.isascii() and value.isprintable()):
            raise InputError(f"endpoint: the environment variable '{name}' must hold printable ASCII on one line")
        values[name] = value
    return values
