"""Entries of the leaderboard: made from an audit, checked field by field, ranked with ties."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import leaderboard_cases as cases
from poise import metrics
from poise.errors import InputError, RunError
from poise.experiments.leaderboard import (
    Entry,
    data_name,
    entries_from,
    file_name,
    rank,
    read_entries,
    write_entries,
)
from poise.experiments.leaderboard_address import public_address
from poise.experiments.leaderboard_entry import expected_cost, parse
from poise.report.leaderboard import rank_text

ROOT = Path(__file__).resolve().parents[2]


def plain(**told: Any) -> dict[str, Any]:
    return cases.entry(**told).model_dump(mode="json")


def test_an_entry_holds_the_figures_of_the_worse_attacker() -> None:
    summary = cases.made()
    none, ts = entries_from(summary, name="Net", author="A", url="https://example.org", note="A note.")
    by = {(row["defence"], row["view"]): row["metrics"] for row in summary["rows"]}
    assert (none.view, ts.view) == ("aware", "unaware"), "the unaware attacker was made the stronger one"
    for entry, found in ((none, by["none", "aware"]), (ts, by["ts", "unaware"])):
        assert entry.attacked.ece.value == pytest.approx(found["ece_after"]["value"], abs=1e-6)
        assert entry.attacked.ece.low == pytest.approx(found["ece_after"]["low"], abs=1e-6)
        assert entry.clean.ece.value == pytest.approx(found["ece_before"]["value"], abs=1e-6)
        assert entry.accuracy.value == pytest.approx(0.9, abs=1e-6)
        ratio = found["confidence_right_after"]["value"] / found["confidence_right_before"]["value"]
        assert entry.kept.value == pytest.approx(ratio, abs=1e-5)
        assert entry.kept.low is not None
        assert entry.kept.high is not None
        assert entry.kept.low < ratio < entry.kept.high
        assert entry.bound_share.value == pytest.approx(entry.attacked.ece.value / 0.91, abs=1e-5)
    assert (none.n, none.author, none.note, none.warned) == (cases.N, "A", "A note.", ("budget",))


def test_the_cost_is_that_of_the_metrics() -> None:
    rows, costs = cases.rows(0.8), metrics.Costs(wrong_accepted=10, deferred=1)
    right = (rows["prediction_after"] == rows["label"]).to_numpy()
    for when, state in (("before", cases.entry().clean), ("after", cases.entry().attacked)):
        expected = metrics.expected_cost(rows[f"confidence_{when}"].to_numpy(), right, 0.9, costs)
        assert state.cost == pytest.approx(expected, abs=1e-4)


def test_no_path_leaks() -> None:
    text = json.dumps(plain())
    assert "secret" not in text
    assert "somebody" not in text
    assert "builtin:resnet20-cifar10?weights=FILE" in text
    assert '"cifar10"' in text


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("builtin:digits", "builtin:digits"),
        ("builtin:resnet20-cifar10?weights=a/b.safetensors&variant=trs&members=3", None),
        (
            "torchvision:resnet18?weights=C:\\me\\w.pt&num_classes=10",
            "torchvision:resnet18?weights=FILE&num_classes=10",
        ),
        ("timm:/srv/me/net", "timm:NAME"),
        ("timm:../net", "timm:NAME"),
        ("hf:/srv/me/net", "hf:FOLDER"),
        ("onnx:/srv/me/net.onnx?outputs=logits", "onnx:FILE?outputs=logits"),
        ("py:/srv/me/net.py:make?weights=w.pt", "py:FILE:make?weights=FILE"),
        ("https://me:password@inside.example/net?token_env=SECRET", "https://HOST?token_env=FILE"),
        ("builtin:x?/srv/me=1", "builtin:x?KEY=1"),
        ("/srv/me/net", "SCHEME:NAME"),
    ],
)
def test_public_addresses(address: str, public: str | None) -> None:
    found = public_address(address)
    assert found == (public or "builtin:resnet20-cifar10?weights=FILE&variant=trs&members=3")
    assert public_address(found) == found


def test_data_names_hold_no_folder() -> None:
    assert data_name("npz:/a/b c.npz?images=x/y") == "b-c"
    assert data_name("torchvision:CIFAR10?root=/a/b") == "CIFAR10"
    assert data_name("folder:C:\\a\\test\\") == "test"
    assert data_name("npz:/") == "data"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["recipes"].pop("standard"), "recipes must include 'standard'"),
        (lambda s: s["data"].update(samples=99), "samples must be at least 100, got 99"),
        (lambda s: s["spec"].update(budget=399), "budget must be at least 400, got 399"),
        (lambda s: s["spec"].update(steps=5), "steps must be left out, the same for all entries, got 5"),
        (lambda s: s["spec"].update(view="top:5"), "view must be left out"),
        (lambda s: s["spec"].update(eight_bit=True), "eight_bit must be off"),
        (lambda s: s["spec"].update(threshold=0.8), "threshold must be 0.9"),
        (lambda s: s["fingerprints"].pop("weights"), "weights have a fingerprint"),
        (lambda s: s["rows"][0]["metrics"].pop("ece_after"), "lacks 'ece_after'"),
        (lambda s: s.pop("checks"), "lacks 'checks'"),
        (lambda s: s["rows"][0]["metrics"]["ece_after"].update(value=None), "attacked.ece.value"),
    ],
)
def test_audits_that_cannot_be_ranked(change: Callable[[Any], Any], message: str) -> None:
    summary = cases.made()
    change(summary)
    with pytest.raises(InputError) as caught:
        entries_from(summary, name="Net")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(entry: dict[str, Any]) -> None:
        for part in path[:-1]:
            entry = entry[part]
        entry[path[-1]] = to

    return change


BROKEN: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (_set("ecee", to=1), "entry.key: must be one of the known names, got 'ecee'"),
    (_set("clean", "eec", to=1), "entry.clean.key: must be one of the known names, got 'eec' (did you mean ece?"),
    (_set("clean", "ece", "hi", to=1), "known: high, low, value"),
    (_set("fingerprints", "x", to="y"), "known: code, data, fit_data, spec, weights"),
    (lambda e: e.pop("n"), "n: must be given, is missing"),
    (lambda e: e.pop("poise"), "poise: must be given"),
    (_set("format", to=2), "format: "),
    (_set("recipe", to="sa-mma"), "recipe: "),
    (_set("steps", to=3), "steps: "),
    (_set("n", to=99), "n: "),
    (_set("n", to="500"), "n: "),
    (_set("n", to=True), "n: "),
    (_set("budget", to=100), "budget: "),
    (_set("eps", to=8.0), "eps must be at most 1 in linf, got 8 (did you mean 8/255?)"),
    (_set("eps", to=0), "eps: "),
    (_set("norm", to="l1"), "norm: "),
    (_set("view", to="unaware"), "view must be 'aware' without a defence"),
    (_set("accuracy", "value", to=1.2), "accuracy.value: "),
    (_set("clean", "ece", "low", to=0.9), "clean.ece: low must be at most high"),
    (_set("attacked", "ece", "value", to=0.1), "attacked.ece: value must lie between low and high"),
    (_set("attacked", "ece", to={"value": 0.95, "low": 0.94, "high": 0.96}), "attacked.ece must be at most 0.9100"),
    (_set("bound_share", to={"value": 0.5, "low": 0.4, "high": 0.6}), "bound_share must be"),
    (_set("kept", to={"value": 0.9, "low": 0.8, "high": 1.0}), "kept must be what"),
    (_set("kept", "low", to=None), "kept: must have both low and high"),
    (_set("clean", "cost", to=0.0), "clean: cost must be what"),
    (_set("clean", "cost", to=float("inf")), "clean.cost: "),
    (
        lambda e: e["clean"].update(accepted_wrong=0.6, deferred=0.5, cost=expected_cost(0.6, 0.5)),
        "accepted_wrong and deferred must be shares of the same cases, at most 1 together",
    ),
    (_set("model", to="builtin:x?weights=/srv/me/w.pt"), "model: must name no file or place"),
    (_set("name", to="two\nlines"), "name: must be one line"),
    (_set("name", to="x" * 81), "name: "),
    (_set("name", to=""), "name: "),
    (_set("note", to="x" * 301), "note: "),
    (_set("author", to="a\x1b[31m"), "author: must be one line"),
    (_set("url", to="javascript:alert(1)"), "url: must be an http:// or https:// address"),
    (_set("url", to="https://"), "url: "),
    (_set("url", to="https://me:pw@example.org"), "url: "),
    (_set("url", to='https://example.org/"onclick'), "url: "),
    (_set("url", to="https://[1"), "url: "),
    (_set("data", to="../data"), "data: "),
    (_set("date", to="yesterday"), "date: "),
    (_set("fingerprints", "weights", to="sha256:12"), "fingerprints.weights: "),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_file_is_named_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    entry = plain()
    change(entry)
    (tmp_path / "mine.json").write_text(json.dumps(entry))
    with pytest.raises(InputError) as caught:
        read_entries(tmp_path)
    assert str(caught.value).startswith("mine.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xef\xbb\xbf{}", b"\xff\xfe", b'{"n": NaN}', b"[" * 9000, b"x" * 70_000]
)
def test_a_file_that_is_no_entry(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "mine.json").write_bytes(text)
    with pytest.raises(InputError, match=r"^mine\.json: "):
        read_entries(tmp_path)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.json").mkdir()
    with pytest.raises(RunError, match=r"^mine\.json: must be readable, got: "):
        read_entries(tmp_path)


def test_every_entry_survives_its_file(tmp_path: Path) -> None:
    found = entries_from(cases.made(), name="Net", url="https://example.org/?a=1&b=2", note="Ünïcode <b>")
    paths = write_entries(tmp_path / "new", found)
    assert [path.name for path in paths] == ["cifar10-linf-8-255-net-none.json", "cifar10-linf-8-255-net-ts.json"]
    assert read_entries(tmp_path / "new") == sorted(found, key=file_name)
    assert parse(paths[0].read_bytes()) == found[0]


def test_a_wrong_name_and_a_duplicate(tmp_path: Path) -> None:
    (path, _) = write_entries(tmp_path, entries_from(cases.made(), name="Net"))
    path.rename(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"other\.json: must be named after its entry, 'cifar10-linf-8-255-net-none"):
        read_entries(tmp_path)
    (tmp_path / "other.json").rename(path)
    again = cases.entry(name="Another name")
    (tmp_path / file_name(again)).write_text(again.model_dump_json())
    with pytest.raises(InputError, match="must measure what no other entry does, got the same as"):
        read_entries(tmp_path)


def test_a_newer_measurement_takes_the_place_of_the_older_and_nothing_else_does(tmp_path: Path) -> None:
    write_entries(tmp_path, entries_from(cases.made(), name="Net"))
    newer = cases.made() | {"created": "2026-12-01T00:00:00Z"}
    write_entries(tmp_path, entries_from(newer, name="Net"))
    assert {entry.date.isoformat() for entry in read_entries(tmp_path)} == {"2026-12-01"}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for summary, name, message in (
        (cases.summary(weights="9"), "Net", "name: must be one that no other model has, got 'Net'"),
        (cases.made(), "Net 2", "must measure what no other entry does"),
        (cases.summary(weights="8", data="npz:other.npz"), "Third", "data must be 'cifar10' as in other entries"),
    ):
        with pytest.raises(InputError, match=message):
            write_entries(tmp_path, entries_from(summary, name=name))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_file_names_stay_in_the_folder() -> None:
    entry = cases.entry(name="../../Net / 5 %")
    assert file_name(entry) == "cifar10-linf-8-255-net-5-none.json"
    assert file_name(entry.model_copy(update={"eps": 0.2})) == "cifar10-linf-0.2-net-5-none.json"


def _ranked(*intervals: tuple[float, float, float]) -> list[str]:
    """The ranks of entries with these attacked ECEs (low, value, high), each of other weights."""
    entry = cases.entry()
    made = []
    for at, (low, value, high) in enumerate(intervals):
        ece = entry.attacked.ece.model_copy(update={"low": low, "value": value, "high": high})
        attacked = entry.attacked.model_copy(update={"ece": ece})
        made.append(entry.model_copy(update={"attacked": attacked, "name": f"{at}"}))
    (group,) = rank(reversed(made))
    assert [e.name for e in group.entries] == [f"{at}" for at in range(len(made))], "ascending"
    return [rank_text(line) for line in group.plain()["entries"]]


def test_ranks_and_ties() -> None:
    assert _ranked((0.1, 0.2, 0.3)) == ["1"]
    assert _ranked((0.1, 0.2, 0.3), (0.31, 0.4, 0.5)) == ["1", "2"]
    assert _ranked((0.1, 0.2, 0.3), (0.3, 0.4, 0.5)) == ["1=", "1="]
    assert _ranked((0.1, 0.15, 0.2), (0.3, 0.35, 0.4), (0.38, 0.45, 0.5)) == ["1", "2=", "2="]


def test_the_ends_of_a_chain_of_overlaps_have_different_ranks() -> None:
    chain = (0.1, 0.2, 0.3), (0.25, 0.4, 0.5), (0.45, 0.6, 0.7), (0.71, 0.8, 0.9)
    assert _ranked(*chain) == ["1=", "1=", "2=", "4"]


def test_groups_are_of_the_same_images_and_ball() -> None:
    def of(**told: Any) -> Entry:
        return entries_from(cases.summary(**told), name="Net")[0]

    entries = [of(), of(weights="5"), of(eps=4 / 255), of(norm="l2"), of(images="7")]
    groups = rank(entries)
    assert sorted(len(group.entries) for group in groups) == [1, 1, 1, 2]
    assert rank([]) == []
    (first, *_) = [group.plain() for group in groups if len(group.entries) == 2]
    assert [(line["rank"], line["shared"]) for line in first["entries"]] == [(1, True), (1, True)]
    json.dumps(first, allow_nan=False)


def test_the_projects_own_entries() -> None:
    entries = read_entries(ROOT / "leaderboard")
    assert {entry.defence for entry in entries} >= {"none", "ts", "cs", "aaa-linear"}
    assert {entry.data for entry in entries} == {"digits", "cifar10_test_lossless_subset"}
