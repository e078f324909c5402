"""poise audit on what costs: the estimate, the line where the money ends, and how the run goes on."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from cli_cases import MODEL, data, poise
from hypothesis import given
from hypothesis import strategies as st

from poise.cli import audit as audit_command
from poise.cli.app import run
from poise.cli.options import repeat_command
from poise.experiments import AuditSpec
from poise.experiments.audit_spec import make_spec

ENDPOINT = Path(__file__).resolve().parents[1] / "experiments" / "toy_endpoint.py"


def options(*more: object, factory: str = "endpoint") -> list[str]:
    words = "--recipes sa-uca --defenses none --eps 0.1 --budget 6 --samples 8 --bootstrap 10 --batch-size 4"
    return ["--model", f"py:{ENDPOINT}:{factory}", "--data", data(), *words.split(), *map(str, more)]


@pytest.fixture
def log(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("POISE_TOY_LOG", str(tmp_path / "asked.log"))
    return tmp_path / "asked.log"


def asked(log: Path) -> int:
    return sum(len(json.loads(line)["points"]) for line in log.read_text().splitlines())


def test_the_money_ends_with_one_line_and_the_run_goes_on(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = poise("audit", *options("--cost-per-query", 0.5, "--max-cost", 20, "--out", out))
    assert (done.code, done.out) == (2, "")
    estimate, clean, *rest = done.err.splitlines()
    assert estimate == (
        "asks at most 106 queries: 8 images × 6 × 1 recipe × 1 defence, and 58 before and after; 53.00 in all; "
        "stops at --max-cost 20"
    )
    assert clean.startswith("8 images")
    assert rest == [
        "poise: error: Purse: 38 queries (19) are spent and the next call needs 4 more (2), beyond max-cost 20; "
        "raise --max-cost and give --resume"
    ]
    assert asked(log) == 38
    done = poise("audit", "--out", out, "--resume", "--max-cost", 90, "--json")
    assert done.code == 0
    assert "; 38 are answered already; stops at --max-cost 90" in done.err
    endpoint = json.loads(done.out)["endpoint"]
    assert endpoint == {"queries": asked(log), "cost": asked(log) / 2}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"{asked(log)} queries, for {asked(log) / 2:.2f} in all" in page
    again = poise("audit", "--out", out, "--resume", "--quiet", "--json")
    assert json.loads(again.out)["endpoint"] == endpoint


def test_attack_has_the_same_limits(log: Path, tmp_path: Path) -> None:
    words = options("--max-queries", 20, "--out", tmp_path / "run")
    for name in ("--recipes", "--defenses", "--bootstrap"):
        del words[words.index(name) : words.index(name) + 2]
    done = poise("attack", "sa-uca", *words)
    assert done.code == 2
    assert re.search(r"beyond max-queries 20; raise --max-queries and give --resume$", done.err.strip())
    assert poise("attack", "sa-uca", "--out", tmp_path / "run", "--resume", "--max-queries", 500).code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-cost", "5"], "max-cost: needs cost-per-query, the price of one query, got 5 without it"),
        (["--max-queries", "0"], "max-queries: must be at least 1, got 0"),
        (["--cost-per-query", "-1"], "cost-per-query: must be a finite number, at least 0, got -1.0"),
        (["--cost-per-query", "nan"], "cost-per-query: must be a finite number, at least 0, got nan"),
        (["--view", "top"], "view: 'top:' must be followed by a whole number, got 'top'"),
        (["--view", "top:9"], "TopK: k must be an integer in 1..4, got 9"),
        (["--eight-bit", "--recipes", "art-deepfool"], "eight-bit: an attack of another library cannot be kept to"),
        (["--recipes", "pgd"], "recipes: pgd needs access 'gradients', the model gives 'scores'"),
    ],
)
def test_what_is_refused_is_one_line_and_leaves_nothing(words, told: str, log: Path, tmp_path: Path) -> None:
    done = poise("audit", *options(*words), "--out", tmp_path / "run")
    assert done.code == 2
    assert done.err.startswith(f"poise: error: {told}")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert not log.exists()


def test_a_module_is_limited_by_its_budget(tmp_path: Path) -> None:
    words = ["--model", MODEL, "--data", data(), "--defenses", "none", "--max-queries", 9]
    done = poise("audit", *words, "--out", tmp_path / "run")
    assert done.code == 2
    assert "max-queries: needs a model that is asked from outside" in done.err
    assert "or --journal; the model is a ModuleTarget, whose queries --budget limits" in done.err


class _Seen(Exception):
    pass


prices = st.floats(0, 1e6, allow_nan=False)
specs = st.builds(
    lambda price, cost, **given: make_spec(**given, cost_per_query=price, max_cost=None if price is None else cost),
    price=st.none() | prices,
    cost=st.none() | prices,
    model=st.sampled_from(["builtin:digits", "onnx:m.onnx", "endpoint:a.toml", "https://host/x", "py:a.py:b"]),
    recipes=st.none() | st.sampled_from([("sa-mma",), ("standard-light", "sa-mma", "sa-oca", "square")]),
    view=st.none() | st.sampled_from(["labels", "top:5", "round:3", "top:5,round:2"]),
    eight_bit=st.booleans(),
    journal=st.booleans(),
    max_queries=st.none() | st.integers(1, 2**40),
)


@given(made=specs)
def test_the_command_in_the_summary_repeats_the_run(made: AuditSpec) -> None:
    seen = []

    def stop(spec: AuditSpec, *_: object, **__: object) -> dict[str, Any]:
        seen.append(spec)
        raise _Seen

    words = shlex.split(repeat_command(made))[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_command, "watched_run", stop)
        with pytest.raises(_Seen):
            run(words, None)
    assert seen == [made]
