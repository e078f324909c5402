"""The grammar of addresses."""

import pytest

from poise.data.uri import Uri, parse
from poise.errors import InputError

SCHEMES = ("builtin", "npz", "py")


def read(text: str) -> Uri:
    return parse(text, what="data", schemes=SCHEMES, later=("hf",))


@pytest.mark.parametrize(
    ("text", "rest", "query"),
    [
        ("npz:a.npz", "a.npz", {}),
        ("npz:/some/dir/a.npz?images=x&labels=y", "/some/dir/a.npz", {"images": "x", "labels": "y"}),
        ("npz:C:\\sets\\a.npz", "C:\\sets\\a.npz", {}),
        ("npz:what%3F%20100%25.npz", "what? 100%.npz", {}),
        ("npz:a+b.npz", "a+b.npz", {}),
        ("npz:a%2Bb?images=x%26y", "a+b", {"images": "x&y"}),
        ("py:model.py:make?outputs=a=b", "model.py:make", {"outputs": "a=b"}),
        ("npz:ü%C3%BC.npz", "üü.npz", {}),
    ],
)
def test_parts(text: str, rest: str, query: dict[str, str]) -> None:
    uri = read(text)
    assert (uri.rest, dict(uri.query)) == (rest, query)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digits", r"data: must be SCHEME:NAME such as builtin:digits .*, got 'digits'"),
        ("", r"data: must be SCHEME:NAME .*, got ''"),
        ("builtn:digits", r"data: source: .* got 'builtn' \(did you mean builtin\?"),
        ("hf:x", r"data: source 'hf:' is not in this version of poise \(sources: builtin, npz, py\)"),
        ("npz:", r"'npz:' must be followed by a name"),
        ("npz:?images=x", r"'npz:' must be followed by a name"),
        ("npz:a?images", r"a query must read key=value&key=value, got 'images'"),
        ("npz:a?images=", r"a query must read key=value"),
        ("npz:a?=x", r"a query must read key=value"),
        ("npz:a?images=x&&labels=y", r"a query must read key=value&key=value, got ''"),
        ("npz:a?images=x&images=y", r"must be given once, got 'images' twice"),
        ("npz:a%00b", r"must not hold control characters"),
        ("npz:a%0Ab", r"must not hold control characters"),
    ],
)
def test_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "getter", "message"),
    [
        ("n=x", lambda uri: uri.integer("n", low=2), r"npz:a: n must be a whole number, at least 2, got 'x'"),
        ("n=1", lambda uri: uri.integer("n", low=2), r"at least 2, got '1'"),
        ("n=-3", lambda uri: uri.integer("n", low=0), r"at least 0, got '-3'"),
        ("n=²", lambda uri: uri.integer("n", low=0), r"must be a whole number"),
        ("n=99999999999", lambda uri: uri.integer("n", low=0), r"must be a whole number"),
        ("n=yes", lambda uri: uri.flag("n"), r"n must be one of true, false, got 'yes'"),
        ("n=1,,2", lambda uri: uri.floats("n"), r"n must be numbers separated by commas, got '1,,2'"),
        ("n=nan", lambda uri: uri.floats("n"), r"n must be numbers"),
        ("n=1e999", lambda uri: uri.floats("n"), r"n must be numbers"),
        ("mean=0.5", lambda uri: uri.normalisation(), r"must be given together, got only mean"),
        ("std=0.5", lambda uri: uri.normalisation(), r"must be given together, got only std"),
        ("mean=0&std=0", lambda uri: uri.normalisation(), r"std must be positive"),
        ("mean=0,0&std=1", lambda uri: uri.normalisation(), r"must have one length"),
        ("sise=1", lambda uri: uri.allow("size", "resize"), r"query key: .* got 'sise' \(did you mean size"),
        ("n=1", lambda uri: uri.allow(), r"takes no query keys, got 'n'"),
    ],
)
def test_getters_refuse(query: str, getter, message: str) -> None:
    with pytest.raises(InputError, match=message):
        getter(read(f"npz:a?{query}"))


def test_getters_read() -> None:
    uri = read("npz:a?n=12&f=true&mean=0.5,0.25&std=1,2")
    assert uri.integer("n", low=2) == 12
    assert uri.flag("f") is True
    assert uri.flag("g") is False
    assert uri.integer("missing", low=0) is None
    assert uri.normalisation() == ((0.5, 0.25), (1.0, 2.0))
    assert str(uri) == "npz:a"


def test_files_and_folders(tmp_path) -> None:
    (tmp_path / "f").write_bytes(b"")
    uri = read("npz:x")
    assert uri.file(str(tmp_path / "f"), role="data") == tmp_path / "f"
    assert uri.folder(str(tmp_path), role="data") == tmp_path
    for call in (
        lambda: uri.file(str(tmp_path), role="data"),
        lambda: uri.file(str(tmp_path / "no"), role="data"),
        lambda: uri.folder(str(tmp_path / "f"), role="data"),
        lambda: uri.folder(str(tmp_path / "no"), role="data"),
    ):
        with pytest.raises(InputError, match="npz:x: data must be"):
            call()
