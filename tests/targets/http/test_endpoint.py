"""The description of an endpoint: what is refused, and in which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from http_cases import SECRET, write

from poise.errors import InputError
from poise.targets.http import Endpoint, make_endpoint, read_endpoint
from poise.targets.http.credentials import Credentials
from poise.targets.http.encode import Content
from poise.targets.http.endpoint import Answer
from poise.targets.http.urls import is_loopback, shown
from poise.types import OutputKind

URL = "https://example.org/predict"


def test_a_file_becomes_an_endpoint(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    endpoint = read_endpoint(
        write(
            tmp_path,
            f"""
            url = "{URL}"
            outputs = "top-k"
            scores = "predictions[*].top"
            classes = ["cat", "dog", "owl"]
            layout = "hwc"
            pixels = "0-255"
            shape = [3, 8, 8]
            verify = "ca.pem"
            requests_per_second = 5
            [headers]
            Authorization = "Bearer ${{TOKEN}}"
            X-Client = "poise"
            """,
        )
    )
    assert (endpoint.num_classes, endpoint.kind, endpoint.eight_bit) == (3, OutputKind.PROBABILITIES, True)
    assert endpoint.variables == ("TOKEN",)
    assert endpoint.verify == tmp_path / "ca.pem"
    assert endpoint.where == URL


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "num_classes: must be given, or classes"),
        ({"num_classes": 1}, "num_classes: input should be greater than or equal to 2, got 1"),
        ({"num_classes": 3, "classes": ["a", "b"]}, "num_classes: must be 2 as classes has names, got 3"),
        ({"classes": ["a", "a"]}, "classes: must be the names of all classes, each once"),
        ({"num_classes": 3, "conections": 2}, r"endpoint: key: .* got 'conections' \(did you mean connections"),
        ({"num_classes": 3, "body": "xml"}, "body: input should be 'json', 'npy', 'png' or 'raw', got 'xml'"),
        ({"num_classes": 3, "outputs": "top-5"}, "outputs: input should be 'logits', .* got 'top-5'"),
        ({"num_classes": 3, "method": "GET"}, "method: input should be 'POST', 'PUT' or 'PATCH', got 'GET'"),
        ({"num_classes": 3, "template": "$images"}, "template: must be JSON"),
        ({"num_classes": 3, "template": '{"a": "images"}'}, 'template: must hold "\\$images" once'),
        ({"num_classes": 3, "item": '{"a": "$images"}'}, 'item: must hold "\\$image" once'),
        (
            {"num_classes": 3, "template": '{"a": "$image"}', "images_per_request": 2},
            r'images_per_request: must be 1 where the template holds "\$image", got 2',
        ),
        ({"num_classes": 3, "body": "png", "images_per_request": 2}, "images_per_request: must be 1 with body = 'png'"),
        ({"num_classes": 3, "form_field": "file"}, "form_field: goes with body = 'png' alone, got body = 'json'"),
        ({"num_classes": 3, "form_field": 'a"b', "body": "png"}, "form_field: string should match pattern"),
        ({"num_classes": 3, "answer": "npy", "outputs": "top-k"}, "outputs: must be logits, .* got 'top-k'"),
        ({"num_classes": 3, "scores": "a..b"}, "scores: must be a path such as .*, got 'a..b'"),
        ({"num_classes": 3, "bounds": [1, 0]}, r"bounds: must be \[low, high\]"),
        ({"num_classes": 3, "shape": [0, 2, 2]}, r"shape: must be \[channels, height, width\], got \[0, 2, 2\]"),
        ({"num_classes": 3, "timeout_seconds": 0}, "timeout_seconds: input should be greater than 0, got 0"),
        ({"num_classes": 3, "verify": "no.pem"}, "verify: must be a file with CA certificates, got 'no.pem'"),
        ({"num_classes": 3, "headers": {"Host": "a"}}, "headers: must be names of headers other than host"),
        ({"num_classes": 3, "headers": {"A b": "a"}}, "headers: must be names of headers .* got 'A b'"),
        ({"num_classes": 3, "headers": {"A": "a\nb"}}, "headers: the value of 'A' must be printable ASCII"),
        ({"num_classes": 3, "headers": {"A": 5}}, "headers.A: input should be a valid string$"),
    ],
)
def test_refused_in_one_line(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_endpoint(url=URL, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("example.org/predict", "url: must read https://HOST/PATH"),
        ("ftp://example.org", "url: must read https://HOST/PATH"),
        ("https:///predict", "url: must read https://HOST/PATH"),
        ("https://example.org:port/", "url: must be a valid address"),
        ("https://example.org/a b", "url: must be ASCII without spaces"),
        (f"https://user:{SECRET}@example.org", "url: must hold no user name or password"),
        (f"https://example.org/?api_key={SECRET}", r"url: must hold no secret in its query: write it into \[query\]"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_endpoint(url=url, num_classes=3)
    assert SECRET not in str(caught.value)


def test_the_examples_of_the_documentation(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "endpoints.md"
    blocks = re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    found = [read_endpoint(write(tmp_path, block)) for block in blocks]
    assert {endpoint.outputs for endpoint in found} == set(Answer)


def test_every_key_is_documented() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "endpoints.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {key for row in rows for key in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    assert set(Endpoint.model_fields) <= named


@pytest.mark.parametrize("table", ["headers", "query"])
@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "Cookie", "access_token", "client-secret"])
def test_a_secret_must_come_from_the_environment(table: str, name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}': must take its value from the environment") as caught:
        make_endpoint(url=URL, num_classes=3, **{table: {name: SECRET}})
    assert SECRET not in str(caught.value)
    assert make_endpoint(url=URL, num_classes=3, **{table: {name: "${TOKEN}"}}).variables == ("TOKEN",)


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("http://example.org", True),
        ("http://10.0.0.1", True),
        ("http://127.0.0.1.example.org", True),
        ("https://example.org", False),
        ("http://127.0.0.1:8000", False),
        ("http://127.8.8.8", False),
        ("http://[::1]:8000", False),
        ("http://localhost:8000", False),
    ],
)
def test_secrets_stay_on_this_machine_or_are_encrypted(url: str, refused: bool) -> None:
    given = {"url": url, "num_classes": 3, "headers": {"Authorization": "Bearer ${TOKEN}"}}
    if refused:
        with pytest.raises(InputError, match="url: must be https:// where secrets are sent to another machine"):
            make_endpoint(**given)
    assert make_endpoint(**given, allow_plain_http=refused).is_private is not refused
    assert make_endpoint(url=url, num_classes=3).url == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url = ", "endpoint.toml' must be a readable TOML file, got: "),
        ('url = "https://example.org"', "endpoint.toml: num_classes: must be given"),
        ("num_classes = 3", "endpoint.toml: url: field required"),
    ],
)
def test_a_file_is_named_in_its_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_endpoint(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"endpoint: '.*none.toml' must be a readable TOML file"):
        read_endpoint(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'url = "\xe9"')
    with pytest.raises(InputError, match=r"latin.toml' must be a readable TOML file"):
        read_endpoint(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "the environment variable 'TOKEN' must be set, got none"),
        ({"TOKEN": ""}, "the environment variable 'TOKEN' must be set, got nothing"),
        ({"TOKEN": f"{SECRET}\n"}, "the environment variable 'TOKEN' must hold printable ASCII on one line"),
        ({"TOKEN": f"{SECRET}é"}, "the environment variable 'TOKEN' must hold printable ASCII on one line"),
    ],
)
def test_the_variable_is_named_and_its_value_is_not(environment: dict[str, str], message: str) -> None:
    endpoint = make_endpoint(url=URL, num_classes=3, headers={"Authorization": "Bearer ${TOKEN}"})
    with pytest.raises(InputError, match=message) as caught:
        Credentials(endpoint, environment)
    assert SECRET not in str(caught.value)


def test_a_request_carries_headers_and_query() -> None:
    endpoint = make_endpoint(
        url="https://example.org/predict?model=a",
        num_classes=3,
        method="PUT",
        headers={"Authorization": "Bearer ${TOKEN}", "content-type": "application/vnd.images"},
        query={"key": "${KEY}", "version": "2"},
    )
    request = Credentials(endpoint, {"TOKEN": SECRET, "KEY": "a&b"}).request(Content(b"x", "application/json"))
    assert request.method == "PUT"
    assert dict(request.url.params) == {"model": "a", "key": "a&b", "version": "2"}
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    assert request.headers.get_list("content-type") == ["application/vnd.images"]
    assert request.headers["accept-encoding"] == "identity"


def test_what_may_be_shown_of_a_url() -> None:
    assert shown(f"https://u:{SECRET}@example.org:1/a?k={SECRET}#{SECRET}") == "https://example.org:1/a"
    assert is_loopback("http://localhost")
    assert not is_loopback("http://localhost.example.org")
