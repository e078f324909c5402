"""A secret of the environment is sent, and shown nowhere."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from typing import Any

import pytest
from fault_server import Endpoint, Fault, cut_json, hang, hang_up, json_answer, serving, status, text
from http_cases import CASE, SECRET, described

from poise.data.uri import parse
from poise.errors import TargetError
from poise.models.endpoints import load_served
from poise.targets.http import HttpTarget

OTHER = "0pen/sesame+1"
ENVIRONMENT = {"POISE_TEST_TOKEN": SECRET, "POISE_TEST_KEY": OTHER}
SHOWN = (SECRET, OTHER, "0pen%2Fsesame%2B1")


def secretive(served: Endpoint) -> HttpTarget:
    endpoint = described(
        f"{served.url}/predict",
        headers={"Authorization": "Bearer ${POISE_TEST_TOKEN}", "X-Key": "${POISE_TEST_KEY}"},
        query={"key": "${POISE_TEST_KEY}"},
        timeout_seconds=0.3,
        retries=1,
    )
    return HttpTarget(endpoint, environment=ENVIRONMENT)


def echoing(code: int) -> Fault:
    """An endpoint that repeats what it was sent, at length."""

    def answer(handler: Any, right: bytes) -> None:
        told = f"{'no ' * 40}{handler.headers['Authorization']} at {handler.path} with {handler.headers['X-Key']}"
        handler.reply(code, json.dumps({"error": told}).encode())

    return answer


FAULTS: dict[str, Fault | None] = {
    "none": None,
    "401 with an echo": echoing(401),
    "500 with an echo": echoing(500),
    "200 with an echo": echoing(200),
    "hang": hang,
    "hang up": hang_up,
    "cut JSON": cut_json,
    "redirect with an echo": status(307, Location=f"https://elsewhere.example/?key={OTHER}"),
    "NaN": text(b'{"scores": [[NaN, 0, 0]]}'),
}


@pytest.mark.parametrize("name", FAULTS)
def test_shown_nowhere(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts = []
    with serving(Endpoint(json_answer(CASE.module()), always=FAULTS[name])) as served:
        target = secretive(served)
        error = failure(target)
        assert (error is None) is (FAULTS[name] is None)
        if error is not None:
            texts += chain(error, locals_too="echo" not in name)
        with target.session():
            texts += [line for line in dump(target) if line]
    texts += [repr(target), str(target.endpoint), repr(vars(target)), repr(pickle.dumps(target))]
    texts += [record.getMessage() for record in caplog.records]
    assert any("httpcore" in record.name for record in caplog.records)
    assert [part for part in texts if any(secret in part for secret in SHOWN)] == []
    assert served.seen[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert served.seen[0].path == "/predict?key=0pen%2Fsesame%2B1"


def failure(target: HttpTarget) -> TargetError | None:
    """What a query raises; the only frame of this file in its traceback."""
    try:
        target.query(CASE.images, CASE.ids)
    except TargetError as error:
        return error
    return None


def chain(error: BaseException, *, locals_too: bool) -> list[str]:
    """Everything that a traceback of the error can show, causes and contexts included."""
    found = [*traceback.TracebackException.from_exception(error, capture_locals=locals_too).format(), repr(error)]
    for inner in (error.__cause__, error.__context__):
        if inner is not None:
            found += [*dump(inner), *chain(inner, locals_too=locals_too)]
    return found


def dump(thing: object, depth: int = 8, seen: set[int] | None = None) -> list[str]:
    """Texts in the attributes, slots and elements of a thing, all the way down."""
    seen = set() if seen is None else seen
    if id(thing) in seen or depth == 0:
        return []
    seen.add(id(thing))
    if isinstance(thing, str | bytes):
        return [thing if isinstance(thing, str) else repr(thing)]
    inner: list[object] = []
    if isinstance(thing, dict):
        inner += [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        inner += thing
    inner += vars(thing).values() if hasattr(thing, "__dict__") and not isinstance(thing, type) else ()
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    inner += [getattr(thing, name, None) for name in slots]
    return [repr(thing), *(text for part in inner for text in dump(part, depth - 1, seen))]


def test_the_dump_finds_what_is_not_hidden() -> None:
    """The twin: a target that kept its headers as they are would be caught."""
    with serving(Endpoint(json_answer(CASE.module()))) as served:
        target = secretive(served)
    target._sender.last = {"headers": [("Authorization", f"Bearer {SECRET}")]}
    assert any(SECRET in text for text in dump(target))


def test_the_secrets_are_looked_up_again_where_a_pickle_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, f"{value}-there")
    with serving(Endpoint(json_answer(CASE.module()))) as served:
        pickle.loads(pickle.dumps(secretive(served))).query(CASE.images, CASE.ids)
    assert served.seen[0].headers["Authorization"] == f"Bearer {SECRET}-there"


def test_a_token_of_an_address_is_sent_to_both_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POISE_TEST_TOKEN", SECRET)
    told = {"num_classes": 3, "outputs": "logits", "bounds": [0, 1], "max_batch": 4}
    with serving(Endpoint(json_answer(CASE.module()), gets={"/metadata": json.dumps(told).encode()})) as served:
        uri = parse(f"{served.url}?token_env=POISE_TEST_TOKEN&retries=0", what="model", schemes=("http",))
        target = load_served(uri, batch_size=8, note=lambda line: None)
        with pytest.raises(TargetError):  # the toy answers JSON, .npy was asked for
            target.query(CASE.images, CASE.ids)
    assert {seen.headers["Authorization"] for seen in served.seen} == {f"Bearer {SECRET}"}
    assert {seen.method for seen in served.seen} == {"GET", "POST"}
    assert [line for line in dump(target) if SECRET in line] == []
