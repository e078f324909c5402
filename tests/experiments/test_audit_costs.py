"""Cost matrices from TOML, deferral tables in the summary, and the threshold for the worst case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_cases import audit, data, spec
from toy_models import CLASSES

from poise import metrics, report
from poise.cli.options import repeat_command
from poise.errors import InputError
from poise.experiments.audit_spec import make_spec, read_spec
from poise.experiments.costs import Costs, read_costs
from poise.experiments.run_folder import RunFolder
from poise.report import terminal

FILE = """
wrong_accepted = 50      # a wrong case that was accepted
deferred = 4
[classes.3]
wrong_accepted = 500
"""
GIVEN = {"wrong_accepted": 50, "deferred": 4, "classes": {"3": {"wrong_accepted": 500}}}


def test_a_file_is_read_and_completed(tmp_path: Path) -> None:
    file = tmp_path / "costs.toml"
    file.write_text(FILE)
    assert read_costs(file) == GIVEN
    costs = Costs(**read_costs(file))
    complete = {"wrong_accepted": 500.0, "deferred": 4.0, "right_accepted": 0.0}
    assert costs.plain() == {"wrong_accepted": 50.0, "deferred": 4.0, "right_accepted": 0.0, "classes": {"3": complete}}
    assert costs.matrix() == metrics.Costs(50, 4, 0, classes={3: metrics.Costs(500, 4, 0)})
    assert "classes" not in Costs(wrong_accepted=1, deferred=1).plain()


def test_the_spec_of_a_run_is_a_costs_file(tmp_path: Path) -> None:
    made = make_spec(costs=GIVEN, samples=3)
    (tmp_path / "audit.toml").write_text(made.to_toml({}))
    assert read_spec(tmp_path / "audit.toml")[0] == made
    assert Costs(**read_costs(tmp_path / "audit.toml")) == made.costs
    assert repeat_command(made).endswith("--costs audit.toml")
    assert repeat_command(make_spec(costs={"wrong_accepted": 1, "deferred": 2})).endswith(
        "--cost-wrong 1.0 --cost-deferred 2.0"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must set wrong_accepted and deferred, got neither"),
        ("wrong_accepted = ", "must be a readable TOML file"),
        ('model = "builtin:digits"', "must set wrong_accepted and deferred, got neither"),
        ("costs = 3", "must set wrong_accepted and deferred, got neither"),
    ],
)
def test_files_that_say_nothing(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "costs.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_costs(file)
    with pytest.raises(InputError, match=r"costs: '.*none.toml' must be a readable TOML file, got: .*No such file"):
        read_costs(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": {"cat": {"deferred": 2}}}, "costs.classes.cat.*: string should match"),
        ({"classes": {"1": {"deferred": -2}}}, "costs.classes.1.deferred: .*got -2"),
        ({"classes": {"1": {"refered": 2}}}, "costs.classes.1.refered: extra inputs"),
        ({"deferral": 1}, "costs.deferral: extra inputs"),
    ],
)
def test_costs_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_spec(costs={"wrong_accepted": 1, "deferred": 1, **given})


def test_costs_of_a_class_that_is_not_there(tmp_path: Path) -> None:
    costs = {"wrong_accepted": 1, "deferred": 1, "classes": {str(CLASSES): {"deferred": 2}}}
    with pytest.raises(InputError, match=r"costs: classes must be 0 to 3, got 4"):
        audit(spec(data(), costs=costs), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("costs") / "run"
    made = spec(costs=GIVEN, recipes=("sa-mma", "sa-oca", "pgd"), threshold=0.65)
    return out, audit(made, out)


def cost_by_loop(rows: Any, when: str, threshold: float) -> float:
    total = 0.0
    for row in rows.iter_rows(named=True):
        right = row[f"prediction_{when}"] == row["label"]
        accepted = 0.0 if right else (500.0 if row["label"] == 3 else 50.0)
        total += accepted if row[f"confidence_{when}"] > threshold else 4.0
    return total / len(rows)


def test_the_summary_holds_the_deferral_table_of_every_model(run: tuple[Path, dict[str, Any]]) -> None:
    out, summary = run
    sections = {(part["defence"], part["view"]): part for part in summary["deferral"]}
    assert list(sections) == [("none", "aware"), ("cs", "aware"), ("cs", "unaware")]
    folder = RunFolder(out)
    for (defence, view), section in sections.items():
        tables = {name: folder.rows(name, defence, view) for name in ("sa-mma", "sa-oca", "pgd")}
        for line in section["rows"]:
            rows, when = (tables["sa-mma"], "before") if line["case"] == "clean" else (tables[line["case"]], "after")
            accepted = (rows[f"confidence_{when}"] > line["threshold"]).to_numpy()
            right = (rows[f"prediction_{when}"] == rows["label"]).to_numpy()
            assert line["coverage"] == pytest.approx(accepted.mean())
            assert line["deferred"] == pytest.approx(1 - accepted.mean())
            risk = (accepted & ~right).sum() / accepted.sum() if accepted.any() else None
            assert line["risk"] == (None if risk is None else pytest.approx(risk))
            assert line["cost"] == pytest.approx(cost_by_loop(rows, when, line["threshold"]))
        assert {line["threshold"] for line in section["rows"]} >= {0.5, 0.65, 0.9, section["worst_case"]["threshold"]}


def test_the_worst_case_is_the_least_over_every_threshold(run: tuple[Path, dict[str, Any]]) -> None:
    out, summary = run
    folder, best = RunFolder(out), summary["deferral"][0]["worst_case"]
    tables = {name: folder.rows(name, "none", "aware") for name in ("sa-mma", "sa-oca", "pgd")}
    cases = [("clean", tables["sa-mma"], "before"), *((name, rows, "after") for name, rows in tables.items())]
    tried = {0.0, *np.linspace(0, 1, 21).tolist()}.union(
        *(rows[f"confidence_{when}"].to_list() for _, rows, when in cases)
    )
    worst = {t: max(cost_by_loop(rows, when, t) for _, rows, when in cases) for t in tried}
    assert best["cost"] == pytest.approx(min(worst.values()))
    assert worst[best["threshold"]] == pytest.approx(best["cost"])
    assert best["clean"] == pytest.approx(cost_by_loop(tables["sa-mma"], "before", best["threshold"]))


def test_page_and_terminal_tell_it(run: tuple[Path, dict[str, Any]]) -> None:
    out, summary = run
    (line,) = terminal.costs(summary)
    assert line.startswith("costs    Without attack, ")
    html = report.write(out).read_text(encoding="utf-8")
    assert line.removeprefix("costs    ").split(":")[0] in html
    assert "of the true class 3: wrong accepted 500" in html
    assert 'data-base="threshold"' in html
    assert html.count('<table class="deferral">') == 3


def test_without_costs_there_is_a_table_and_no_money(tmp_path: Path) -> None:
    summary = audit(spec(defences=("none",)), tmp_path / "run")
    (section,) = summary["deferral"]
    assert set(section) == {"defence", "view", "rows"}
    assert all(line["cost"] is None for line in section["rows"])
    assert terminal.costs(summary) == []
    html = report.write(tmp_path / "run").read_text(encoding="utf-8")
    assert '<table class="deferral">' in html
    assert "expected cost" not in html.split("<script")[0]
