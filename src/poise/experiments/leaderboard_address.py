"""Names of models and data that tell nothing of the machine they lay on."""

from __future__ import annotations

import re

FILES = frozenset({"py", "onnx", "endpoint", "hf", "http", "https"})
"""Schemes of models behind which stands a place and no architecture."""


def public_address(address: str) -> str:
    """A model's address without anything local: files, folders and hosts become FILE, FOLDER or HOST.

    >>> public_address("builtin:resnet20-cifar10?weights=/srv/me/resnet20.safetensors&variant=pni")
    'builtin:resnet20-cifar10?weights=FILE&variant=pni'
    >>> public_address("py:nets/mine.py:make?num_classes=10"), public_address("https://me:pw@host/x")
    ('py:FILE:make?num_classes=10', 'https://HOST')
    """
    scheme, _, tail = address.partition(":")
    rest, question, query = tail.partition("?")
    parts = (part.partition("=") for part in query.split("&")) if question else ()
    options = [f"{_word(key, 'KEY')}={_option(key, value)}" for key, _, value in parts]
    return f"{_word(scheme, 'SCHEME')}:{_where(scheme, rest)}" + ("?" + "&".join(options) if options else "")


def _where(scheme: str, rest: str) -> str:
    if scheme == "py":
        return f"FILE:{_word(rest.rpartition(':')[2], 'FACTORY')}"
    if scheme in FILES:
        return {"http": "//HOST", "https": "//HOST", "hf": "FOLDER"}.get(scheme, "FILE")
    return _word(rest, "NAME")


def _option(key: str, value: str) -> str:
    plain = key != "weights" and "token" not in key and re.fullmatch(r"[\w+-]{1,40}|\d+\.\d+", value)
    return value if plain else "FILE"


def _word(text: str, otherwise: str) -> str:
    return text if re.fullmatch(r"\w[\w.+-]{0,79}", text) else otherwise


def data_name(address: str) -> str:
    """What a data set is called: the last part of its address, without folders and options.

    >>> data_name("npz:../data/cifar10_test.npz?images=x"), data_name("builtin:digits"), data_name("folder:a/test/")
    ('cifar10_test', 'digits', 'test')
    """
    rest = address.partition(":")[2].partition("?")[0].rstrip("/\\")
    last = re.split(r"[/\\]", rest)[-1]
    return re.sub(r"[^\w.+-]+", "-", last.removesuffix(".npz")).strip("-")[:80] or "data"
