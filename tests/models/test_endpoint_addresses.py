"""https://… and endpoint:FILE.toml: from an address to a target, against the server of poise and against others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fault_server import Endpoint, hang, json_answer, npy_answer, serving, status, text
from http_cases import CASE, NOWHERE, SECRET

import serve_cases
from poise import ModuleTarget
from poise.checks.targets import check_target
from poise.errors import InputError, TargetError
from poise.models import load, names
from poise.targets import HttpTarget
from poise.types import Access, OutputKind

TOLD = {"num_classes": 3, "outputs": "logits", "bounds": [0, 1], "max_batch": 4, "shape": [1, 4, 4], "poise": "9"}


def server(told: object = TOLD, **given) -> Endpoint:
    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    return Endpoint(npy_answer(CASE.module()), gets={"/metadata": body, "/deep/er/metadata": body}, **given)


@pytest.mark.parametrize("path", ["", "/", "/deep/er"])
def test_a_server_tells_its_declaration(path: str) -> None:
    notes: list[str] = []
    with serving(server()) as served:
        target = load(f"{served.url}{path}", batch_size=7, on_note=notes.append)
        assert isinstance(target, HttpTarget)
        scores = target.query(CASE.images, CASE.ids).scores
    assert (target.kind, target.access, target.num_classes) == (OutputKind.LOGITS, Access.SCORES, 3)
    assert (target.bounds, target.batch_size, target.endpoint.shape) == ((0.0, 1.0), 7, (1, 4, 4))
    assert {seen.path for seen in served.seen} == {f"{path.rstrip('/')}/{page}" for page in ("metadata", "predict")}
    assert notes == []
    assert torch.equal(scores.float(), CASE.target().query(CASE.images, CASE.ids).scores)


@pytest.mark.parametrize("kind", [OutputKind.LOGITS, OutputKind.PROBABILITIES])
def test_the_server_of_poise(kind: OutputKind) -> None:
    """The same scores as the model itself, and the contract of a target."""
    module = serve_cases.Linear()
    images = torch.from_numpy(serve_cases.images(6))
    with serve_cases.serving(serve_cases.served(module, outputs=kind), token=SECRET) as url:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("POISE_TEST_TOKEN", SECRET)
            target = load(f"{url}?token_env=POISE_TEST_TOKEN&connections=3")
        found = target.query(images, torch.arange(6))
        check_target(target, images)
        with pytest.raises(InputError, match="got 401 Unauthorized: Authorization: must be a valid token; it"):
            load(url)
    assert found.kind is kind
    expected = torch.from_numpy(serve_cases.expected(images.numpy(), kind))
    torch.testing.assert_close(found.scores, expected, atol=1e-5, rtol=1e-5)
    assert target.endpoint.connections == 3


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (b"<html>", "the metadata must be JSON; it must be a server of poise serve"),
        ([], "'' of the metadata|the metadata"),
        (TOLD | {"num_classes": 1}, "'num_classes' of the metadata: input should be greater than or equal to 2"),
        (TOLD | {"outputs": "scores"}, "'outputs' of the metadata: input should be 'logits'"),
        ({"num_classes": 3}, "'outputs' of the metadata: field required"),
        (TOLD | {"max_batch": 0}, "'max_batch' of the metadata: input should be greater than or equal to 1"),
        (TOLD | {"bounds": [0, "x"]}, "'bounds.1' of the metadata: input should be a valid number"),
        (TOLD | {"shape": [3, 4]}, "'shape.2' of the metadata: field required"),
        (TOLD | {"bounds": [1, 0]}, r"bounds: must be \[low, high\]"),
    ],
)
def test_metadata_that_makes_no_sense(told: object, message: str) -> None:
    with serving(server(told)) as served, pytest.raises(InputError, match=message) as caught:
        load(served.url)
    assert "\n" not in str(caught.value)


def test_another_server() -> None:
    message = "/metadata: must answer with status 200, got 404 Not Found: no such page; it must be a server of poise"
    with serving(Endpoint(json_answer(CASE.module()))) as served, pytest.raises(InputError, match=message):
        load(served.url)
    with pytest.raises(InputError, match=r"127.0.0.1:9/metadata: must answer, got ConnectError: .*\(after 1 try\)"):
        load("http://127.0.0.1:9?retries=0")


def test_addresses_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POISE_TEST_TOKEN", SECRET)
    for address, message in [
        ("https:host/path", "url: must read https://HOST/PATH"),
        (f"https://me:{SECRET}@example.org", "url: must hold no user name or password"),
        ("https://example.org?conections=3", r"https://example.org: query key: .* \(did you mean connections"),
        (f"https://me:{SECRET}@example.org?x=1", "https://example.org: query key"),
        ("https://example.org?connections=0", "connections: input should be greater than or equal to 1, got '0'"),
        ("https://example.org?allow_plain_http=1", "https://example.org: allow_plain_http must be one of true, false"),
        (f"https://example.org?token_env={SECRET}", "token_env must be the name of an environment variable"),
        ("https://example.org?token_env=POISE_NO_TOKEN", "variable 'POISE_NO_TOKEN' must be set, got none"),
        ("http://example.org?token_env=POISE_TEST_TOKEN", "url: must be https:// where secrets are sent"),
        ("endpoint:none.toml", "endpoint must be an existing file"),
        ("endpoint:none.toml?connections=3", "endpoint:none.toml: takes no query keys, got 'connections'"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(address)
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_described_endpoint(tmp_path: Path) -> None:
    file = tmp_path / "endpoint.toml"
    with serving(Endpoint(json_answer(CASE.module()))) as served:
        file.write_text(f'url = "{served.url}/v1/models/toy:predict"\nnum_classes = 3\noutputs = "logits"\n')
        target = load(f"endpoint:{file}", batch_size=5)
        scores = target.query(CASE.images, CASE.ids).scores
    assert target.batch_size == 5
    assert torch.equal(scores.float(), CASE.target().query(CASE.images, CASE.ids).scores)
    assert isinstance(target, HttpTarget)
    assert not isinstance(target, ModuleTarget)


@pytest.mark.parametrize(
    ("lines", "notes"),
    [
        ('url = "https://example.org/a"', []),
        ('url = "http://127.0.0.1/a"', []),
        ('url = "http://example.org/a"', ["http://example.org/a is asked without TLS"]),
        ('url = "https://example.org/a"\nbody = "png"', ["https://example.org/a is sent images rounded to 8 bits"]),
        ('url = "https://example.org/a"\npixels = "0-255"', ["https://example.org/a is sent images rounded to 8 bits"]),
    ],
)
def test_what_the_user_should_know(tmp_path: Path, lines: str, notes: list[str]) -> None:
    (tmp_path / "endpoint.toml").write_text(f"num_classes = 3\n{lines}\n")
    heard: list[str] = []
    load(f"endpoint:{tmp_path / 'endpoint.toml'}", on_note=heard.append)
    assert len(heard) == len(notes)
    assert all(line.startswith(note) for line, note in zip(heard, notes, strict=True))


def test_the_sources_are_listed() -> None:
    assert {"https://HOST/PATH?token_env=NAME", "endpoint:FILE.toml"} <= set(names())


def test_a_server_that_hangs_or_fails_is_asked_again() -> None:
    """The metadata too, though less often than images."""
    with serving(server(faults={1: status(503), 3: text(b"")})) as served:
        target = load(f"{served.url}?connections=1&retries=1")
        assert target.query(CASE.images, CASE.ids).scores.shape == (8, 3)
        assert target.retries == 2
    with serving(Endpoint(npy_answer(CASE.module()), always=hang, gets=server().gets)) as served:
        target = load(f"{served.url}?retries=0&timeout_seconds=0.1")
        with pytest.raises(TargetError, match=r"/predict: must answer within 0.1 s \(after 1 try\)"):
            target.query(CASE.images, CASE.ids)
    assert NOWHERE not in repr(target)
