"""Audits of what is no module: journaled, limited in queries and in money, and gone on with after any kill."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import journal_cases
import numpy as np
import polars as pl
import pytest
import torch
from audit_cases import Killed, Silent, assert_same_run, audit, model, scratch, spec, tables
from journal_cases import assert_asked_once, calls, kill_after, processes, questions, remote, start
from safetensors.torch import load_file
from toy_endpoint import LOG, STAMP
from toy_models import Linear

from poise import Access, recipes
from poise.defenses import make
from poise.errors import AccessError, BudgetError, InputError, RunError
from poise.experiments import run_audit
from poise.experiments.audit_spec import BLACK_BOX_RECIPES, DEFAULT_RECIPES, make_spec, read_spec
from poise.targets.journal_file import JournalFile, records

KILLS = 20


@pytest.fixture
def log(tmp_path: Path, monkeypatch) -> Path:
    """Where the endpoint of this test writes down what it answered."""
    monkeypatch.setenv(LOG, str(tmp_path / "asked.log"))
    return tmp_path / "asked.log"


@cache
def reference() -> Path:
    """The run of `remote()`, never interrupted, with the endpoint's log beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOG, str(scratch() / "remote.log"))
        audit(remote(), scratch() / "remote")
    return scratch() / "remote"


def reference_calls() -> list[journal_cases.Call]:
    return calls(reference().with_suffix(".log"))


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def figures(run: Path) -> dict[str, Any]:
    """The summary without what differs from run to run by itself."""
    found = summary_of(run)
    return {name: value for name, value in found.items() if name not in ("created", "seconds", "command", "spec")}


# --- kill -9 ---


def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    """Another process each time, killed by the system in its start, in a question or while it writes."""
    made = spec(model=remote().model, samples=24, batch_size=8, budget=24)
    whole, whole_log = tmp_path / "whole", tmp_path / "whole.log"
    out, log, context, draw = tmp_path / "run", tmp_path / "run.log", processes(), random.Random(0)
    first = start(context, made, whole, whole_log, seconds=0.0)
    first.join()
    assert first.exitcode == 0
    killed = set()
    for kill in range(KILLS):
        if kill % 4 == 0:  # while it starts
            process = start(context, made, out, log, seconds=0.04)
            killed.add(kill_after(process, log, 0, delay=draw.uniform(0, 0.25)))
        else:
            process = start(context, made, out, log, seconds=0.003)
            killed.add(kill_after(process, log, draw.randrange(1, 5), delay=draw.uniform(0, 0.006)))
        assert process.exitcode == -9, "it must still have been at work"
    last = start(context, made, out, log, seconds=0.0)
    last.join()
    assert last.exitcode == 0
    assert_same_run(out, whole)
    again = assert_asked_once(calls(log), calls(whole_log), killed)
    assert again <= KILLS * made.batch_size
    assert figures(out)["rows"] == figures(whole)["rows"]
    assert figures(out)["endpoint"] == figures(whole)["endpoint"]


@pytest.mark.parametrize("phase", ["before", "torn", "after"])
@pytest.mark.parametrize("write", [0, 7, 30, 90])
def test_killed_at_a_record(write: int, phase: str, log: Path, tmp_path: Path, monkeypatch) -> None:
    """In the probe, the clean images, the fit, both defences; before, in the middle of, and after the write."""
    append, left = JournalFile.append, write

    def killed(file: JournalFile, answers: list[tuple[bytes, torch.Tensor]]) -> None:
        nonlocal left
        left -= 1
        if left >= 0 or phase != "before":
            append(file, answers)
        if left < 0:
            if phase == "torn":
                file.path.write_bytes(file.path.read_bytes()[:-5])
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(JournalFile, "append", killed)
        with pytest.raises(Killed):
            audit(remote(), tmp_path / "run")
    in_flight = calls(log)[-1]
    audit(remote(), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", reference())
    assert figures(tmp_path / "run") == figures(reference())
    again = questions(calls(log)) - questions(reference_calls())
    lost = {"before": len(in_flight.points), "torn": 1, "after": 0}[phase]
    assert again.total() == lost
    assert not again - questions([in_flight])


def test_a_journal_that_forgets_is_noticed(log: Path, tmp_path: Path) -> None:
    """The broken twins: answers that are lost, or another call asked again than the one in flight."""
    made, out = remote(), tmp_path / "run"
    audit(made, out)
    assert assert_asked_once(calls(log), reference_calls(), killed=set()) == 0
    (out / "samples" / "sa-mma.none.aware.00001.parquet").unlink()
    (out / "journal" / "sa-mma.none.00001.log").unlink()
    audit(made, out, resume=True)
    with pytest.raises(AssertionError, match="a recorded question was asked again"):
        assert_asked_once(calls(log), reference_calls(), killed={calls(log)[-1].run})
    with pytest.raises(AssertionError, match="was never asked"):
        assert_asked_once(calls(log)[:40], reference_calls(), killed=set())


def test_a_finished_run_asks_nothing_again(log: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(reference(), tmp_path / "copy")
    audit(remote(), copy, resume=True)
    assert calls(log) == []
    assert figures(copy) == figures(reference())


def test_a_lost_table_is_made_from_the_journal(log: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(reference(), tmp_path / "copy")
    for lost in (copy / "samples").iterdir():
        lost.unlink()
    audit(remote(), copy, resume=True)
    assert calls(log) == []
    assert_same_run(copy, reference())


def test_a_damaged_journal_is_named_and_the_advice_works(log: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(reference(), tmp_path / "copy")
    file = copy / "journal" / "sa-mma.ts.00001.log"
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"sa-mma\.ts\.00001\.log' is damaged at byte .*delete it and give --resume"):
        audit(remote(), copy, resume=True)
    assert calls(log) == []
    file.unlink()
    audit(remote(), copy, resume=True)
    assert_same_run(copy, reference())


# --- what a run may ask and spend ---


def test_the_estimate_is_an_upper_bound_and_the_summary_tells_what_was_asked(log: Path, tmp_path: Path) -> None:
    listener, made = Silent(), remote(cost_per_query=0.5)
    summary = run_audit(made, tmp_path / "run", resume=False, listener=listener)
    asked = questions(calls(log)).total()
    assert summary["endpoint"] == {"queries": asked, "cost": asked / 2}
    attacks, around = 40 * 12 * 2, 2 + 40 + 200 + (3 * 16 + 2 * 40 + 32)
    assert listener.notes == [
        f"asks at most {attacks + around:,} queries: 40 images × 12 × 1 recipe × 2 defences, and {around} before and "
        f"after; {(attacks + around) / 2:,.2f} in all"
    ]
    assert attacks < asked <= attacks + around
    again = Silent()
    run_audit(made, tmp_path / "run", resume=True, listener=again)
    assert again.notes == [f"{listener.notes[0]}; {asked:,} are answered already"]


@pytest.mark.parametrize("limits", [{"max_queries": 700}, {"cost_per_query": 0.01, "max_cost": 7.0}])
def test_where_the_money_ends_it_stops_and_goes_on(limits: dict[str, float], log: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(BudgetError, match=r"are spent and the next call needs .*, beyond .*give --resume$") as caught:
        audit(remote(**limits), out)
    assert "\n" not in str(caught.value)
    spent = questions(calls(log)).total()
    assert 700 - 16 < spent <= 700
    assert sum(1 for file in (out / "journal").iterdir() for _ in records(file)) == spent
    kept = sorted(path.name for path in (out / "samples").iterdir())
    assert kept == [f"sa-mma.{of}.{at:05d}.parquet" for of in ("none.aware", "ts.unaware") for at in range(2)]
    with pytest.raises(BudgetError):  # the same limit, again
        audit(remote(**limits), out, resume=True)
    assert questions(calls(log)).total() == spent
    more = {name: 10 * value if name.startswith("max") else value for name, value in limits.items()}
    summary = audit(remote(**more), out, resume=True)
    assert_same_run(out, reference())
    assert assert_asked_once(calls(log), reference_calls(), killed=set()) == 0
    assert summary["endpoint"]["queries"] == questions(reference_calls()).total()
    assert read_spec(out / "audit.toml")[0] == remote(**more)


def test_limits_are_no_part_of_what_is_measured() -> None:
    """They may change on resume; everything else may not."""
    limited = remote(max_queries=5000, cost_per_query=1.0, max_cost=9000.0)
    assert limited.measured() == remote().measured()
    with pytest.raises(RunError, match="view: None there, top:2 given"):
        audit(remote(view="top:2"), reference(), resume=True)


@pytest.mark.parametrize("name", ["max_queries", "cost_per_query"])
def test_a_module_has_no_limits_unless_it_is_journaled(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{name.replace('_', '-')}: needs a model that is asked from outside .*Mod"):
        audit(spec(**{name: 500}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_module_may_be_journaled(tmp_path: Path) -> None:
    """Its answers alone are asked then, and its tables are those of the module up to rounding."""
    made, out = spec(journal=True, max_queries=400), tmp_path / "run"
    with pytest.raises(BudgetError):
        audit(made, out)
    summary = audit(made.model_copy(update={"max_queries": None}), out, resume=True)
    assert summary["endpoint"]["queries"] > 400
    audit(spec(), tmp_path / "plain")
    assert not (tmp_path / "plain" / "journal").exists()
    assert summary_of(tmp_path / "plain")["endpoint"] is None
    assert_close(tables(out), tables(tmp_path / "plain"))
    for recipe, given in (("pgd", "the model gives 'scores'"), ("art-deepfool", "gives 'scores'|is journaled")):
        with pytest.raises(AccessError, match=given):
            audit(spec(journal=True, recipes=(recipe,)), tmp_path / "other")


def assert_close(ours: pl.DataFrame, theirs: pl.DataFrame) -> None:
    for name in ("id", "label", "prediction_before", "prediction_after", "queries", "queries_to_success", "stop"):
        assert ours[name].equals(theirs[name], null_equal=True), name
    for name in ("confidence_before", "confidence_after", "nll_after", "linf"):
        assert np.allclose(ours[name], theirs[name], atol=1e-5), name


# --- defences, views and 8-bit images ---


def test_a_defence_behind_an_endpoint_is_the_one_behind_the_module(log: Path, tmp_path: Path) -> None:
    given = {"defences": ("none", "ts", "cs", "aaa-linear"), "fit_data": remote().fit_data, "samples": 16}
    audit(remote(**given), tmp_path / "endpoint")
    audit(spec(**given), tmp_path / "module")
    assert_close(tables(tmp_path / "endpoint"), tables(tmp_path / "module"))


def test_labels_alone_carry_no_defence(log: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a model that answers labels alone cannot carry a defence, got Temperature"):
        audit(remote("labels", recipes=("negative",)), tmp_path / "run")
    with pytest.raises(AccessError, match="sa-mma needs access 'scores', the model gives 'labels'"):
        audit(remote("labels", defences=("none",)), tmp_path / "run")
    assert calls(log) == []
    assert not (tmp_path / "run").exists()
    summary = audit(remote("labels", recipes=("negative",), defences=("none",)), tmp_path / "run")
    assert summary["endpoint"]["queries"] == questions(calls(log)).total()
    assert summary["target"]["access"] == "labels"


def seen_logits(run: Path, recipe: str = "sa-mma") -> torch.Tensor:
    """What the linear model answers at the undefended model's adversarial images, all chunks."""
    chunks = [load_file(path)["images"] for path in sorted((run / "adversarial").glob(f"{recipe}.none.*"))]
    with torch.no_grad():
        return Linear()(torch.cat(chunks))


def view_case(view: str, run: Path) -> pl.DataFrame:
    made = {"model": model()} if run.name == "module" else {}
    audit(remote(view=view, defences=("none", "cs"), **made), run)
    return tables(run).sort("defence", "view", "id")


@pytest.mark.parametrize("kind", ["endpoint", "module"])
def test_the_attacker_sees_the_view_and_the_defence_is_fitted_before_it(kind: str, log: Path, tmp_path: Path) -> None:
    """Two classes are shown: the label's confidence is whole, bare and behind the defence."""
    rows = view_case("top:2", tmp_path / kind)
    logits = seen_logits(tmp_path / kind)
    for (defence, view), expected in {
        ("none", "aware"): logits.softmax(dim=1).amax(dim=1),
        ("cs", "unaware"): make("cs")(logits).softmax(dim=1).amax(dim=1),
    }.items():
        part = rows.filter((pl.col("defence") == defence) & (pl.col("view") == view))
        assert np.allclose(part["confidence_after"], expected, atol=1e-5)
    assert summary_of(tmp_path / kind)["target"]["description"].endswith("seen as top:2")
    if kind == "endpoint":
        asked = questions(calls(log)).total()
        assert summary_of(tmp_path / kind)["endpoint"]["queries"] == asked
        assert asked > 2 * 40 + 40 * 12 * 2, "the images shown to the defence are asked again"


def test_a_view_changes_what_the_attack_follows(log: Path, tmp_path: Path) -> None:
    rows = view_case("round:1", tmp_path / "endpoint")
    plain = tables(reference()).filter(pl.col("defence") == "none").sort("id")
    seen = rows.filter(pl.col("defence") == "none")
    assert seen["confidence_before"].n_unique() < 20 < plain["confidence_before"].n_unique()
    assert not seen["confidence_after"].equals(plain["confidence_after"])


def test_labels_as_a_view(log: Path, tmp_path: Path) -> None:
    """Whatever carries a defence may be shown by its labels alone."""
    audit(remote(view="labels", recipes=("negative",), defences=("none", "ts")), tmp_path / "run")
    assert set(tables(tmp_path / "run")["confidence_before"]) == {1.0}
    with pytest.raises(InputError, match=r"view: must be one of labels, probabilities, .*got 'lables'"):
        audit(remote(view="lables"), tmp_path / "other")


def grey_levels(run: Path) -> torch.Tensor:
    """Distance of every value of the attacked images from the nearest k/255."""
    values = torch.cat([load_file(path)["images"].flatten() for path in (run / "adversarial").iterdir()]) * 255
    return (values - values.round()).abs().max()


def test_eight_bit_images(log: Path, tmp_path: Path) -> None:
    audit(remote(eight_bit=True), tmp_path / "run")
    assert grey_levels(tmp_path / "run") < 1e-4
    assert grey_levels(reference()) > 0.1, "without it, they are not"
    moved = tables(tmp_path / "run").filter(pl.col("view") == "aware")["linf"]
    assert 0 < moved.max() <= 0.1


def test_another_librarys_attack_knows_no_grey_levels() -> None:
    with pytest.raises(InputError, match=r"^eight-bit: .* cannot be kept to 8-bit values, got art-deepfool$"):
        spec(eight_bit=True, recipes=("sa-mma", "art-deepfool"))


# --- what an audit assumes of a module ---


def test_what_needs_gradients_is_left_out_and_says_why() -> None:
    checks = {check["name"]: check for check in summary_of(reference())["checks"]}
    assert checks["illusion of robustness"]["figure"].startswith("not tested: the attacker gets scores alone")
    assert checks["gradients"]["figure"] == "no white-box recipe was run"
    assert checks["randomness"]["status"] == "passed"
    assert checks["labels at batch size 1"]["figure"].startswith("0 of 16 images")


def test_a_model_file_is_told_by_its_hash(log: Path, tmp_path: Path, monkeypatch) -> None:
    made, out = remote("stamped", defences=("none",), samples=4), tmp_path / "run"
    monkeypatch.setenv(STAMP, "sha256:1")
    audit(made, out)
    assert read_spec(out / "audit.toml")[1]["weights"] == "sha256:1"
    monkeypatch.setenv(STAMP, "sha256:2")
    with pytest.raises(RunError, match="begun with other weights"):
        audit(made, out, resume=True)
    assert {"weights"}.isdisjoint(read_spec(reference() / "audit.toml")[1]), "an endpoint shows none"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, DEFAULT_RECIPES),
        *(({"model": f"{scheme}:x"}, BLACK_BOX_RECIPES) for scheme in ("onnx", "http", "https", "endpoint")),
        ({"model": "py:x.py:f"}, DEFAULT_RECIPES),
        ({"view": "top:5"}, BLACK_BOX_RECIPES),
        ({"journal": True}, BLACK_BOX_RECIPES),
        ({"model": "onnx:x", "recipes": ("pgd",)}, ("pgd",)),
    ],
)
def test_the_attacks_that_run_where_none_is_named(given: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert make_spec(**given).recipes == expected


def test_labels_are_attacked_by_what_needs_no_scores() -> None:
    names = make_spec(view="labels").recipes
    assert "negative" in names
    assert all(recipes()[name].access is Access.LABELS for name in names)


def test_the_journal_holds_answers_alone() -> None:
    """Nothing of the model's address, of the data's, or of the environment."""
    for file in (reference() / "journal").iterdir():
        first, body = file.read_bytes().split(b"\n", 1)
        assert first == b"poise journal 1, 4 classes, logits"
        sizes = {size for _, (_, size) in records(file)}
        assert sizes == {8 + 16 + 4 + 1 + 4 * 4}, "sample, digest, count, type, four scores"
        assert len(body) == (8 + sizes.pop()) * len(list(records(file)))
