"""Answers: what is taken, what is refused and in which words."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from poise.errors import InputError, TargetError
from poise.targets.http import make_endpoint
from poise.targets.http.decode import UnreadableError, decode
from poise.targets.http.path import Each, follow, parse_path

EVEN = [[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]]


def read(sent: object, count: int = 2, **given) -> list[list[float]]:
    raw = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    endpoint = make_endpoint(url="https://example.org", **{"num_classes": 3} | given)
    return decode(raw, count, endpoint).tolist()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# --- paths ---


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", ()),
        ("scores", ("scores",)),
        ("a.b-c.d_e", ("a", "b-c", "d_e")),
        ("[*]", (Each(),)),
        ("a[0].b[*]", ("a", 0, "b", Each())),
        ("[2][*].p", (2, Each(), "p")),
    ],
)
def test_paths(text: str, steps: tuple) -> None:
    assert parse_path(text) == steps


@pytest.mark.parametrize("text", [".", ".a", "a.", "a..b", "a[", "a[]", "a[-1]", "a[x]", "a[0]b", "[*]]", " "])
def test_no_paths(text: str) -> None:
    with pytest.raises(InputError, match="scores: must be a path"):
        parse_path(text)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("b", "the answer must be an object with the field 'b', got an object with the fields 'a'"),
        ("a[*].q", r"'a\[\*\]|the answer must be an object with the field 'q', got an object with the fields 'p'"),
        ("a[2]", "'a' must be a list of at least 3, got a list of 2"),
        ("a.p", "'a' must be an object with the field 'p', got a list of 2"),
        ("a[0].p[*]", r"'a\[0\].p' must be a list, got a number"),
    ],
)
def test_what_is_missing_is_named(path: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        follow({"a": [{"p": 1}, {"p": 2}]}, parse_path(path))


# --- scores ---


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        ({"scores": EVEN}, {}),
        ({"predictions": [{"p": row} for row in EVEN]}, {"scores": "predictions[*].p"}),
        (EVEN, {"scores": ""}),
        (npy(np.array(EVEN, dtype=np.float32)), {"answer": "npy"}),
        (npy(np.asfortranarray(EVEN)), {"answer": "npy"}),
    ],
)
def test_probabilities(answer: object, given: dict) -> None:
    assert read(answer, **given) == EVEN
    assert read(answer, outputs="logits", **given) == EVEN


def test_a_single_image_without_the_outer_list() -> None:
    assert read({"scores": EVEN[0]}, 1) == EVEN[:1]
    assert read({"scores": 2}, 1, outputs="labels") == [[0, 0, 1]]
    assert read({"scores": [{"label": 1, "score": 1.0}]}, 1, outputs="top-k") == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (EVEN[:1], r"the scores of 2 images must be \(2, 3\), got \(1, 3\)"),
        ([row[:2] for row in EVEN], r"must be \(2, 3\), got \(2, 2\)"),
        ([[*row, 0.0] for row in EVEN], r"must be \(2, 3\), got \(2, 4\)"),
        ([EVEN[0], EVEN[1][:2]], "got rows of different lengths"),
        ([[0.25, None, 0.25], EVEN[1]], "numbers, got null"),
        ([["0.25", 0.5, 0.25], EVEN[1]], "numbers, got a text"),
        ([[float("nan"), 0.5, 0.25], EVEN[1]], "must be finite, got 1 NaN or infinite values in 'scores'"),
        ([[1e999, 0.5, 0.25], EVEN[1]], "must be finite, got 1 NaN"),
        ([[10**400, 0.5, 0.25], EVEN[1]], "numbers, got"),
        ([[0.5, 0.5, 0.5], EVEN[1]], "at least 0 and sum to 1 within 0.001, got a sum of 1.5"),
        ([[1.25, -0.25, 0.0], EVEN[1]], "at least 0 and sum to 1 within 0.001, got -0.25"),
        (3, "numbers, got|got"),
        (None, "numbers, got null"),
        ([], r"must be \(2, 3\), got \(0,\)"),
        ({"a": 1}, "numbers, got an object with the fields 'a'"),
        ([[True, False, False]] * 2, "numbers, got a truth value"),
    ],
)
def test_scores_that_are_refused(scores: object, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        read({"scores": scores})
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, UnreadableError)


def test_rounded_probabilities_need_a_wider_tolerance() -> None:
    rows = [[0.33, 0.33, 0.33], [0.1, 0.1, 0.8]]
    with pytest.raises(TargetError, match="sum to 1"):
        read({"scores": rows})
    assert read({"scores": rows}, sum_tolerance=0.011) == rows


@pytest.mark.parametrize("raw", [b"", b"{", b'{"scores": [[0.2', b"<html>", b"\xff\xfe", b"1" * 5000])
def test_no_json_may_be_asked_again(raw: bytes) -> None:
    with pytest.raises(UnreadableError, match=f"the answer must be JSON, got {len(raw)} bytes"):
        read(raw)


def test_deep_json_is_no_crash() -> None:
    with pytest.raises(TargetError, match="must not be nested so deeply"):
        read(b"[" * 200_000)


def header(text: str) -> bytes:
    body = text.encode() + b" " * 10 + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "must be a .npy file, got 0 bytes"),
        (b'{"scores": 1}', "must be a .npy file"),
        (npy(np.array(EVEN))[:-1], "must hold 48 bytes of scores, got 47"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999, 9999999999)}"), "must hold 7.*, got 0"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}") + bytes(8), "must hold 8 bytes"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}"), "the scores must be floats, got object"),
        (npy(np.array(EVEN).astype("U4")), "the scores must be floats, got <U4"),
        (npy(np.array(EVEN)[:, :2]), r"must be \(2, 3\), got \(2, 2\)"),
    ],
)
def test_npy_that_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        read(raw, answer="npy")


# --- top-k and labels ---


def entries(*pairs: tuple[object, float]) -> list[dict[str, object]]:
    return [{"label": label, "score": score} for label, score in pairs]


def test_top_k_shares_out_what_is_left() -> None:
    answer = {"scores": [entries((2, 0.5), (0, 0.25)), entries(("b", 0.75), ("c", 0.125), ("a", 0.125))]}
    found = read(answer, classes=["a", "b", "c", "d", "e"], num_classes=5, outputs="top-k")
    np.testing.assert_allclose(found, [[0.25, 1 / 12, 0.5, 1 / 12, 1 / 12], [0.125, 0.75, 0.125, 0, 0]])


def test_top_k_keeps_the_label_where_all_is_equal() -> None:
    (row,) = read({"scores": [entries((4, 0.2))]}, 1, num_classes=5, outputs="top-k")
    assert np.argmax(row) == 4
    np.testing.assert_allclose(row, 0.2, rtol=1e-12)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([entries((0, 0.5))], "'scores' must be a list of 2, one per image, got a list of 1"),
        ([[], entries((0, 0.5))], "the top-k classes of an image must be a list of at least one, got a list of 0"),
        ([entries((0, 0.5), (0, 0.4))] * 2, "each be named once, got class 0 twice"),
        ([entries((3, 0.5))] * 2, r"a class must be a number in 0..2, got 3"),
        ([entries(("cat", 0.5))] * 2, "a class must be a number in 0..2, got 'cat'"),
        ([entries((True, 0.5))] * 2, "a class must be a number in 0..2, got a truth value"),
        ([entries((0, float("nan")))] * 2, "'score' must be a probability, got nan"),
        ([entries((0, 1.5))] * 2, "'score' must be a probability, got 1.5"),
        ([entries((0, "0.5"))] * 2, "'score' must be a probability, got a text"),
        ([entries((0, 0.75), (1, 0.75))] * 2, "must sum to 1 at most, got 1.5"),
        ([entries((0, 0.5), (1, 0.25), (2, 0.1))] * 2, "must sum to 1 at most, got 0.85"),
        ([[{"name": 0, "score": 0.5}]] * 2, "must be an object with 'label' and 'score'"),
        ([[5]] * 2, "must be an object with 'label' and 'score', got a number"),
    ],
)
def test_top_k_that_is_refused(scores: object, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        read({"scores": scores}, outputs="top-k")


def test_labels() -> None:
    expected = [[0, 0, 1], [1, 0, 0]]
    assert read({"scores": [2, 0]}, outputs="labels") == expected
    assert read({"scores": [2.0, 0.0]}, outputs="labels") == expected
    assert read({"scores": ["c", "a"]}, outputs="labels", classes=["a", "b", "c"]) == expected
    assert read(npy(np.array([2, 0])), outputs="labels", answer="npy") == expected


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0], "'scores' must be a list of 2, one per image"),
        ([0, 3], "a class must be a number in 0..2 or a known name, got 3"),
        ([0, -1], "or a known name, got -1"),
        ([0, 0.5], "or a known name, got 0.5"),
        ([0, "d"], "or a known name, got 'd'"),
        ([0, None], "or a known name, got null"),
    ],
)
def test_labels_that_are_refused(scores: object, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        read({"scores": scores}, outputs="labels", classes=["a", "b", "c"])
