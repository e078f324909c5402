"""HttpTarget against a toy server: the same answers as the module itself, however they are sent."""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fault_server import Endpoint, json_answer, npy_answer, remade, scored, serving
from http_cases import CASE, NOWHERE, asking, described
from PIL import Image

import poise
from poise.checks.targets import CheckError, check_target
from poise.constraints import Linf
from poise.errors import AccessError, InputError, TargetError
from poise.objectives import UCA, KeepLabel
from poise.searches import Square
from poise.targets.http import HttpTarget
from poise.types import Access, OutputKind
from toys import Softmax, untouched_generators

IDS = torch.arange(8)
IMAGES = CASE.images
SAME = ("prediction_before", "prediction_after", "confidence_after", "loss_after", "queries", "linf")


def attacked(target: poise.Target) -> poise.AttackResult:
    return poise.attack(
        target, KeepLabel(UCA()), Square(), Linf(0.1), IMAGES, CASE.labels, ids=CASE.ids, budget=12, seed=3
    )


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        (json_answer, {}),
        (json_answer, {"images_per_request": 3}),
        (json_answer, {"images_per_request": 100, "connections": 1}),
        (npy_answer, {"body": "npy", "answer": "npy", "images_per_request": 2}),
    ],
)
def test_an_attack_through_http_is_the_attack_itself(answer: Callable, given: dict) -> None:
    """Bit by bit: the toy's answer does not depend on the batch, and floats survive JSON."""
    with serving(Endpoint(answer(CASE.module()))) as served, untouched_generators():
        target = asking(served, **given)
        found = attacked(target)
    direct = attacked(CASE.target(access=Access.SCORES))
    assert found.table.select(SAME).equals(direct.table.select(SAME))
    assert torch.equal(found.images, direct.images)
    assert torch.equal(found.scores, direct.scores.double())
    assert target.retries == 0
    assert target.requests_sent == len(served.seen) == served.answered


@pytest.mark.parametrize("given", [{}, {"images_per_request": 2}, {"connections": 1}])
def test_keeps_the_contract_of_a_target(given: dict) -> None:
    with serving(Endpoint(json_answer(CASE.module()))) as served:
        check_target(asking(served, **given), IMAGES)


def test_an_endpoint_that_answers_differently_each_time_is_seen_as_such() -> None:
    with serving(noisy()) as served:
        check_target(asking(served), IMAGES, stochastic=True)
        with pytest.raises(CheckError):
            check_target(asking(served), IMAGES)


def noisy() -> Endpoint:
    source = np.random.default_rng(0)

    def stir(answer: dict) -> dict:
        return {"scores": [[value + source.normal() for value in row] for row in answer["scores"]]}

    return Endpoint(json_answer(CASE.module()), always=remade(stir))


def test_an_endpoint_that_answers_differently_each_time_is_attacked_within_the_budget() -> None:
    with serving(noisy()) as served:
        result = attacked(asking(served))
    assert result.table["queries"].max() <= 12
    assert result.table["accepted"].all()
    assert bool(((result.images - IMAGES).abs().flatten(1).amax(dim=1) <= 0.1 + 1e-6).all())


def test_a_png_upload_with_top_k() -> None:
    """The endpoint sees the rounded image; what it answers is what the target answers."""
    model = Softmax(CASE.module())

    def answer(body: bytes) -> bytes:
        pixels = np.asarray(Image.open(io.BytesIO(body)))[None, None] / 255
        row = scored(model, pixels)[0]
        best = np.argsort(-row)[:2]
        top = [{"name": "abc"[k], "p": float(row[k])} for k in best]
        return json.dumps({"result": {"top": top}}).encode()

    with serving(Endpoint(answer)) as served:
        target = asking(
            served, body="png", outputs="top-k", classes=["a", "b", "c"], scores="result.top",
            label_field="name", score_field="p",
        )  # fmt: skip
        found = target.query(IMAGES, IDS)
    rounded = (IMAGES.double() * 255).round() / 255
    expected = torch.from_numpy(scored(model, rounded.numpy()))
    assert (target.kind, target.access) == (OutputKind.PROBABILITIES, Access.SCORES)
    assert torch.equal(found.labels, expected.argmax(dim=1))
    torch.testing.assert_close(found.scores, expected.double(), atol=1e-6, rtol=0)  # K - 1 classes tell the last


def test_labels_alone() -> None:
    def answer(body: bytes) -> bytes:
        pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in json.loads(body)["images"]]
        return json.dumps(
            [int(k) for k in scored(CASE.module(), np.stack(pixels)[:, None] / 255).argmax(axis=1)]
        ).encode()

    with serving(Endpoint(answer)) as served:
        target = asking(served, image="png", outputs="labels", scores="", images_per_request=4)
        found = target.query(IMAGES, IDS)
        with pytest.raises(AccessError, match="needs access 'scores', the target gives 'labels'"):
            attacked(target)
    assert (target.kind, target.access, found.kind) == (OutputKind.LABELS, Access.LABELS, OutputKind.LABELS)
    assert found.scores.sum(dim=1).tolist() == [1.0] * 8


def test_logits_that_are_probabilities() -> None:
    with serving(Endpoint(json_answer(Softmax(CASE.module().double())))) as served:
        with pytest.raises(TargetError, match="declared to be logits, but are probabilities"):
            asking(served).query(IMAGES, IDS)
        assert asking(served, outputs="probabilities").query(IMAGES, IDS).kind is OutputKind.PROBABILITIES


# --- the stream ---


def test_the_stream_holds_each_position_once() -> None:
    with serving(Endpoint(json_answer(CASE.module()))) as served:
        target = asking(served, images_per_request=3, connections=2)
        parts = list(target.stream(IMAGES, IDS))
        whole = target.query(IMAGES, IDS)
    rows = torch.cat([rows for rows, _ in parts])
    assert sorted(rows.tolist()) == list(range(8))
    assert torch.equal(torch.cat([answer.scores for _, answer in parts]), whole.scores[rows])
    assert max(len(rows) for rows, _ in parts) == 3


def test_no_points_no_request() -> None:
    target = HttpTarget(described(NOWHERE))
    assert target.query(IMAGES[:0], IDS[:0]).scores.shape == (0, 3)
    assert target.requests_sent == 0


def test_images_of_another_shape_are_not_sent() -> None:
    target = HttpTarget(described(NOWHERE, shape=(3, 4, 4)))
    with pytest.raises(InputError, match=r"127.0.0.1:9/predict: images must be \(m, 3, 4, 4\), got \(8, 1, 4, 4\)"):
        target.query(IMAGES, IDS)
    with pytest.raises(InputError, match="HttpTarget: batch_size must be at least 1, got 0"):
        HttpTarget(described(NOWHERE), batch_size=0)


def test_a_pickle_asks_the_same_endpoint() -> None:
    with serving(Endpoint(json_answer(CASE.module()))) as served:
        target = asking(served)
        again = pickle.loads(pickle.dumps(target))
        assert torch.equal(again.query(IMAGES, IDS).scores, target.query(IMAGES, IDS).scores)
    assert repr(again) == repr(target) == f"HttpTarget({served.url}/predict)"
