"""The routes without a network: parity with the model, batching, refusals in one line, tokens."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from poise import Access, ModuleTarget, __version__
from poise.errors import InputError
from poise.serve import Limits, ServedModel, create_app
from poise.types import OutputKind
from serve_cases import (
    CLASSES,
    JSON,
    NPY,
    PNG,
    SHAPE,
    Linear,
    ask,
    expected,
    from_npy,
    images,
    npy,
    png,
    served,
    without_network,
)


def assert_refused(answer: httpx.Response, status: int, told: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    (key, line), *more = answer.json().items()
    assert (key, more) == ("error", [])
    assert "\n" not in line
    assert len(line) < 300
    assert re.search(told, line), line
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text


@pytest.mark.parametrize("kind", [OutputKind.LOGITS, OutputKind.PROBABILITIES])
@pytest.mark.parametrize("n", [1, 7])
def test_answers_are_the_models(kind: OutputKind, n: int) -> None:
    model, sent = served(outputs=kind), images(n)
    answer = ask(create_app(model), npy(sent), NPY)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-npy")
    scores = from_npy(answer.content)
    assert (scores.dtype, scores.shape) == (np.float32, (n, CLASSES))
    assert np.abs(scores - expected(sent, kind)).max() < 1e-5
    ours = model.target.query(torch.from_numpy(sent), torch.arange(n))
    direct = ours.scores if kind is OutputKind.LOGITS else ours.probabilities
    assert np.abs(scores - direct.detach().numpy()).max() < 1e-6
    written = ask(create_app(model), json.dumps({"images": sent.tolist()}).encode(), JSON)
    assert written.headers["content-type"] == "application/json"
    assert written.json()["outputs"] == kind.value
    assert np.array_equal(np.array(written.json()["scores"], np.float32), scores)


def test_parity_would_notice_other_scores() -> None:
    """The broken twin of the test above: probabilities where logits are meant, and neighbours' rows."""
    sent = images(2)
    scores = from_npy(ask(create_app(served()), npy(sent), NPY).content)
    assert np.abs(scores - expected(sent, OutputKind.PROBABILITIES)).max() > 0.1
    assert np.abs(scores - expected(sent[::-1])).max() > 0.1


def test_a_model_of_probabilities_served_as_either() -> None:
    sent = images(3)
    target = ModuleTarget(nn.Sequential(Linear(), nn.Softmax(1)), num_classes=CLASSES, outputs="probabilities")
    for kind in (OutputKind.LOGITS, OutputKind.PROBABILITIES):
        scores = from_npy(ask(create_app(ServedModel(target, "toy", kind, SHAPE)), npy(sent), NPY).content)
        wanted = expected(sent, OutputKind.PROBABILITIES)
        assert np.abs(scores - (np.log(wanted) if kind is OutputKind.LOGITS else wanted)).max() < 1e-5


def test_a_png_is_the_image_it_shows() -> None:
    rows = np.random.default_rng(2).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    answer = ask(create_app(served()), png(5, 4, data=data), PNG)
    wanted = expected(rows.transpose(2, 0, 1)[None] / 255)
    assert np.abs(np.array(answer.json()["scores"]) - wanted).max() < 1e-5


def test_metadata_and_health() -> None:
    names = ("cat", "dog", "<b>", "ä")
    app = create_app(served(classes=names, outputs=OutputKind.PROBABILITIES), Limits(batch_size=64))

    async def talk(client: httpx.AsyncClient) -> None:
        assert (await client.get("/metadata")).json() == {
            "poise": __version__,
            "model": "toy",
            "num_classes": 4,
            "outputs": "probabilities",
            "bounds": [0.0, 1.0],
            "shape": [3, 4, 5],
            "max_batch": 64,
            "classes": list(names),
        }
        before = (await client.get("/health")).json()
        assert (before["status"], before["queries"], before["busy_seconds"]) == ("ok", 0, 0.0)
        await client.post("/predict", content=npy(images(5)), headers=NPY)
        after = (await client.get("/health")).json()
        assert after["queries"] == 5
        assert 0 < after["busy_seconds"] < after["up_seconds"]

    without_network(app, talk)


def test_max_batch_is_what_a_body_holds() -> None:
    limits = Limits(batch_size=64, body_bytes=2000)
    app = create_app(served(), limits)
    most = without_network(app, lambda client: client.get("/metadata")).json()["max_batch"]
    assert most == (2000 - 1024) // 240 == 4
    assert len(npy(images(most))) <= limits.body_bytes
    assert ask(app, npy(images(most)), NPY).status_code == 200
    assert_refused(ask(app, npy(images(most + 1)), NPY), 413, "1 to 4 per request, got 5")
    assert_refused(ask(app, npy(images(9)), NPY), 413, "at most 2000 bytes")
    with pytest.raises(InputError, match=r"must hold one image of shape \(3, 4, 5\), 1264 bytes, got 1263"):
        create_app(served(), Limits(body_bytes=1263))


@pytest.mark.parametrize(("batch_size", "most"), [(256, 4), (32, 8), (2, 32)])
def test_concurrent_requests_share_model_calls(batch_size: int, most: int) -> None:
    """32 requests of two images: as few calls as batches hold, and each gets its own answer."""
    module = Linear()
    app = create_app(served(module), Limits(batch_size=batch_size, wait_seconds=0.05))

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        posts = (client.post("/predict", content=npy(images(2, seed)), headers=NPY) for seed in range(32))
        return await asyncio.gather(*posts)

    for seed, answer in enumerate(without_network(app, talk)):
        assert np.abs(from_npy(answer.content) - expected(images(2, seed))).max() < 1e-5
    assert sum(module.calls) == 64
    assert 64 / batch_size <= len(module.calls) <= most
    assert max(module.calls) <= batch_size


def test_an_answer_depends_on_its_neighbours_by_rounding_alone() -> None:
    sent = images(64)
    together = from_npy(ask(create_app(served()), npy(sent), NPY).content)
    alone = np.concatenate([from_npy(ask(create_app(served()), npy(sent[i : i + 1]), NPY).content) for i in range(4)])
    assert np.abs(together[:4] - alone).max() < 1e-5


REFUSED = {
    "no type": ({}, npy(images(1)), 415, "Content-Type: must be one of application/x-npy, application/json, image/png"),
    "form": ({"Content-Type": "multipart/form-data; boundary=x"}, b"", 415, "got 'multipart/form-data'"),
    "markup": ({"Content-Type": "<script>"}, b"", 415, "got '<script>'"),
    "a long type": ({"Content-Type": "a" * 5000}, b"", 415, "aaa…'"),
    "gzip": ({**NPY, "Content-Encoding": "gzip"}, b"\x1f\x8b", 415, "Content-Encoding: must be identity, got 'gzip'"),
    "malformed npy": (NPY, npy(images(1))[:-2], 400, "must hold"),
    "malformed JSON": (JSON, b"{", 400, "must be JSON"),
    "malformed PNG": (PNG, b"GIF89a", 400, "must be a PNG"),
    "a PNG bomb": (PNG, png(50_000, 50_000, data=b""), 422, "must have shape"),
    "NaN": (NPY, npy(images(1) * np.float32(np.nan)), 422, "must be finite, got 60 NaN"),
    "another shape": (NPY, npy(images(1, shape=(1, 4, 5))), 422, r"must have shape \(m, 3, 4, 5\)"),
    "too many": (NPY, npy(images(17)), 413, "must be 1 to 16 per request, got 17"),
    "a pickle": (NPY, npy(np.array([{}], dtype=object), allow_pickle=True), 422, "must be float32"),
    "oversized": (NPY, bytes(20_001), 413, "body: must be at most 20000 bytes"),
    "oversized by far": (NPY, bytes(10**6), 413, "body: must be at most 20000 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_that_the_next_is_not(name: str) -> None:
    headers, body, status, told = REFUSED[name]
    app = create_app(served(), Limits(batch_size=16, body_bytes=20_000))

    async def talk(client: httpx.AsyncClient) -> None:
        assert_refused(await client.post("/predict", content=body, headers=headers), status, told)
        assert (await client.post("/predict", content=npy(images(1)), headers=NPY)).status_code == 200

    without_network(app, talk)


def test_a_type_with_parameters_and_an_accept_of_several() -> None:
    body = json.dumps({"images": images(1).tolist()}).encode()
    headers = {"Content-Type": "Application/JSON; charset=utf-8", "Accept": "text/html, application/x-npy;q=0.9, */*"}
    assert from_npy(ask(create_app(served()), body, headers).content).shape == (1, CLASSES)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/docs", 404), ("GET", "/openapi.json", 404), ("GET", "/redoc", 404),
        ("GET", "/predict", 405), ("POST", "/health", 405), ("DELETE", "/metadata", 405),
        ("GET", "/%0aTraceback%3Cb%3E", 404), ("GET", "/" + "x" * 3000, 404), ("GET", "/../../etc/passwd", 404),
    ],
)  # fmt: skip
def test_what_is_not_there(method: str, path: str, status: int) -> None:
    answer = without_network(create_app(served()), lambda client: client.request(method, path))
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert len(answer.text) < 300


def test_chunks_beyond_the_limit_are_refused_while_they_come() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1000
            yield bytes(1000)

    app = create_app(served(), Limits(body_bytes=20_000))
    answer = without_network(app, lambda client: client.post("/predict", content=endless(), headers=NPY))
    assert_refused(answer, 413, "at most 20000 bytes")
    assert answer.headers["connection"] == "close"
    assert taken <= 41_000, "it is not read to its end"


def test_a_slow_body_is_given_up() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield npy(images(1))[:100]
        await asyncio.sleep(30)

    app = create_app(served(), Limits(body_seconds=0.2))
    answer = without_network(app, lambda client: client.post("/predict", content=slow(), headers=NPY))
    assert_refused(answer, 408, "must arrive within 0.2 seconds")
    assert answer.headers["connection"] == "close"


def test_a_full_memory_is_503_and_is_given_back() -> None:
    """Two bodies that arrive together where one and a half fit; afterwards there is room again."""
    sent = npy(images(29))

    async def talk(client: httpx.AsyncClient) -> list[int]:
        both_began, count = asyncio.Event(), 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal count
            yield sent[:6000]
            count += 1
            if count == 2:
                both_began.set()
            await both_began.wait()
            yield sent[6000:]

        posts = [client.post("/predict", content=body(), headers=NPY) for _ in range(2)]
        answers = await asyncio.gather(*posts)
        for answer in answers:
            if answer.status_code == 503:
                assert_refused(answer, 503, "is full, try again")
                assert answer.headers["retry-after"] == "1"
        later = await client.post("/predict", content=sent, headers=NPY)
        return [*sorted(answer.status_code for answer in answers), later.status_code]

    limits = Limits(body_bytes=8000, held_bytes=11_000)
    assert without_network(create_app(served(), limits), talk) == [200, 503, 200]


def test_a_full_queue_is_503() -> None:
    class Slow(Linear):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.02)
            return super().forward(x)

    module = Slow()
    app = create_app(served(module), Limits(batch_size=1, waiting=3))

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        posts = (client.post("/predict", content=npy(images(1)), headers=NPY) for _ in range(12))
        return await asyncio.gather(*posts)

    answers = without_network(app, talk)
    assert {answer.status_code for answer in answers} == {200, 503}
    done = [answer for answer in answers if answer.status_code == 200]
    assert len(done) == len(module.calls), "no image is computed for nobody, no answer is lost"
    for answer in answers:
        if answer.status_code == 503:
            assert_refused(answer, 503, "3 requests wait already")
            assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("shape", [SHAPE, None])
def test_a_model_that_fails_tells_the_server_and_not_the_client(shape: tuple[int, int, int] | None) -> None:
    def secret(x: Tensor) -> None:
        if (x > 0.99).any():
            raise KeyError("a secret\nof the model.py")

    heard: list[str] = []
    app = create_app(served(Linear(secret), shape=shape), Limits(wait_seconds=0.1), on_failure=heard.append)
    good, bad = images(1) * np.float32(0.9), np.ones((1, *SHAPE), np.float32)

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        posts = (client.post("/predict", content=npy(part), headers=NPY) for part in (good, bad, good))
        return await asyncio.gather(*posts)

    first, failed, last = without_network(app, talk)
    assert_refused(failed, 500 if shape else 422, "the model (failed on these images|does not answer)")
    assert "secret" not in failed.text
    for answer in (first, last):
        assert np.abs(from_npy(answer.content) - expected(good)).max() < 1e-5
    assert heard == [r"the model failed on images of shape (3, 4, 5): KeyError: 'a secret\nof the model.py'"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_no_answer(value: float) -> None:
    class Broken(ModuleTarget):
        def _check_values(self, scores: Tensor) -> None:
            """Lets everything pass, as another kind of target may."""

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), CLASSES), value)

    model = ServedModel(Broken(Wrong(), num_classes=CLASSES), "toy", shape=SHAPE)
    for headers in (NPY, {**NPY, "Accept": "application/json"}):
        assert_refused(ask(create_app(model), npy(images(1)), headers), 500, "the model failed on these images")


def test_a_defect_of_the_server_shows_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in the middle of app.py")

    monkeypatch.setattr("poise.serve.app.encode", broken)
    assert_refused(ask(create_app(served()), npy(images(1)), NPY), 500, "^server: failed$")


TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize(
    "given",
    [None, "", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é"],
)
def test_without_the_token_nothing_is_told(given: str | None) -> None:
    app = create_app(served(), token=TOKEN)
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}

    async def talk(client: httpx.AsyncClient) -> None:
        for method, path in (("GET", "/health"), ("GET", "/metadata"), ("POST", "/predict")):
            content = npy(images(1)) if method == "POST" else b""
            answer = await client.request(
                method, path, content=content, headers={**headers, "Content-Type": NPY["Accept"]}
            )
            assert_refused(answer, 401, "^Authorization: must be a valid token$")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.text + str(answer.headers)

    without_network(app, talk)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_token_everything_is(scheme: str) -> None:
    app = create_app(served(), token=TOKEN)
    headers = {"Authorization": f"{scheme} {TOKEN}"}

    async def talk(client: httpx.AsyncClient) -> list[int]:
        found = [await client.get("/health", headers=headers), await client.get("/metadata", headers=headers)]
        found.append(await client.post("/predict", content=npy(images(1)), headers={**NPY, **headers}))
        return [answer.status_code for answer in found]

    assert without_network(app, talk) == [200, 200, 200]


@pytest.mark.parametrize("token", ["", " ", "é", "a\nb"])
def test_a_token_that_cannot_be_sent_is_refused(token: str) -> None:
    with pytest.raises(InputError, match="token: must be printable ASCII") as caught:
        create_app(served(), token=token)
    assert token.strip() == "" or token not in str(caught.value)


def test_noise_differs_between_calls_and_servers_and_the_random_state_is_put_back() -> None:
    class Noisy(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(len(x), CLASSES)

    app, before = create_app(served(Noisy())), torch.get_rng_state()

    async def talk(client: httpx.AsyncClient) -> list[bytes]:
        return [(await client.post("/predict", content=npy(images(1)), headers=NPY)).content for _ in range(2)]

    assert len({*without_network(app, talk), *without_network(app, talk)}) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_served() -> None:
    target = ModuleTarget(Linear(), num_classes=CLASSES)
    with pytest.raises(InputError, match="classes must be the model's 4 names, got 1"):
        ServedModel(target, "toy", classes=("a",))
    with pytest.raises(InputError, match="outputs must be logits or probabilities"):
        ServedModel(target, "toy", OutputKind.LABELS)
    with pytest.raises(InputError, match="must give scores, got one that gives labels only"):
        ServedModel(ModuleTarget(Linear(), num_classes=CLASSES, access=Access.LABELS), "toy")
    for name in ("batch_size", "wait_seconds", "body_bytes", "body_seconds", "waiting", "held_bytes"):
        with pytest.raises(InputError, match=rf"Limits: {name} must be positive, got -1"):
            Limits(**{name: -1})
    with pytest.raises(InputError, match="held_bytes must be at least body_bytes"):
        Limits(body_bytes=100, held_bytes=99)
