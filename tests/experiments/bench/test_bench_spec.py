"""Specs: what is read, what is refused, and that every spec of the project is sound."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_cases import TINY

from poise.errors import InputError, PoiseError
from poise.experiments.bench.catalog import find, names, shipped
from poise.experiments.bench.plan import Place, make_plan
from poise.experiments.bench.published import table
from poise.experiments.bench.reduce import METRICS
from poise.experiments.bench.spec import PROFILES, read_bench_spec
from poise.experiments.bench.trends import judge


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_stands_in_grid_holds_for_both_profiles(tmp_path: Path) -> None:
    name, spec = find(str(written(tmp_path, TINY)))
    assert name == "mine"
    assert spec.full.eps == spec.small.eps == (8 / 255,)
    assert spec.full.samples is None
    assert spec.small.samples == 4


REFUSED = {
    "unknown key": ('title = "Mine"', 'titel = "Mine"', "titel.*did you mean title"),
    "unknown key of a profile": ("samples = 4", "sample = 4", "profile key.*sample.*did you mean samples"),
    "unknown key of a victim": ('model = "CNN"', 'modell = "CNN"', "victim key.*did you mean model"),
    "unknown recipe": ('recipe = "sa-mma"', 'recipe = "sa-mm"', "did you mean sa-mma"),
    "no victim": ('[[small.victims]]\ndataset = "digits"', '[[small.nothing]]\ndataset = "digits"', "nothing"),
    "both source and trained": ('source = "builtin:digits"', 'source = "x"\ntrained = "y"', "either source or trained"),
    "training that is not there": ('source = "builtin:digits"', 'trained = "y"', "trained: must be"),
    "bad eps": ('eps = ["8/255"]', 'eps = ["8/0"]', "eps"),
    "negative eps": ('eps = ["8/255"]', "eps = [-0.1]", "eps.*greater than 0"),
    "bad norm": ("eps =", 'norm = "l7"\neps =', "norm must be one of"),
    "bad defence": ("eps =", 'defences = [{ name = "x", use = "tss" }]\neps =', "did you mean ts"),
    "nothing shown": ('[table]\nrows = ["attack"]\nmetrics = ["ece"]', "", r"needs a table \[table\]"),
    "not TOML": ('title = "Mine"', "title = ", "must be a readable TOML file"),
    "no budget": ("eps =", "budgets = []\neps =", "at least one"),
    "unknown objective": ('recipe = "sa-mma" }', 'recipe = "sa-mma", objective = "Mrgin" }', "did you mean Margin"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    old, new, says = REFUSED[kind]
    assert old in TINY
    with pytest.raises(PoiseError, match=says) as caught:
        read_bench_spec(written(tmp_path, TINY.replace(old, new)))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean calibration/t1"):
        find("calibration/t11")
    with pytest.raises(InputError, match="existing TOML file"):
        find("nowhere.toml")


def test_every_table_and_figure_of_the_papers_has_a_spec() -> None:
    there = {(shipped(name).paper, shipped(name).shows.split(",")[0]) for name in names()}
    wanted = {
        "calibration": ("Table", (1, 2, 3, 4, 5, 6), "Figure", (1, 2, 3, 4, 5, 6, 7)),
        "uat": ("Table", (1, 2, 3, 4, "S1", "S2", "S3"), "Figure", (1, 2, "S1", "S2")),
        "aaa": ("Table", (2, 3, 4, 5, 6, 7, 8, 9), "Figure", (2, 3, 4, 5, 6, 7)),
        "thresholding": ("Table", (), "Figure", (1, 2, 3)),
    }
    for paper, (one, tables, other, figures) in wanted.items():
        for kind, numbers in ((one, tables), (other, figures)):
            assert {(paper, f"{kind} {at}") for at in numbers} <= there
    assert {name for name in names() if name.startswith("illusion/")} == {
        "illusion/cal-opt", "illusion/high-t", "illusion/temperature-sweep",
    }  # fmt: skip


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("profile", PROFILES)
def test_every_spec_expands(name: str, profile: str) -> None:
    spec = shipped(name)
    plan = make_plan(spec, profile, Place("nowhere"))
    assert plan.cells
    assert len(plan.fingerprint) == 12
    assert spec.paper == name.split("/")[0]
    known = {*METRICS, "detection_auc", "detection_accuracy", "certified_lower", "certified_upper", "certified"}
    known |= {"smoothed_confidence", "cam_pearson", "cam_ssim", "cam_overlap", "separation", "opposite_steps"}
    known |= {"temperature", "recovered", "p_value", "confidence", "margin"}
    shown = (*(spec.table.metrics if spec.table else ()), *(trend.metric for trend in spec.trends))
    assert {*shown} <= known
    if profile == "small":
        assert spec.small.differs, "a small profile says what it does otherwise"


@pytest.mark.parametrize("name", [name for name in names() if shipped(name).key])
def test_the_full_profile_has_the_papers_own_cells(name: str) -> None:
    """Every published row of a table has a cell of the full profile under its name."""
    spec = shipped(name)
    rows = table(spec.paper, spec.key)
    assert len(rows)
    plan = make_plan(spec, "full", Place("nowhere"))
    ours = {(c.keys["dataset"], c.keys["model"], c.keys["defence"]) for c in plan.cells}
    attacks = {c.keys["attack"] for c in plan.cells} | {"none"}
    if spec.task == "detect":
        ours = {(dataset, model, d) for dataset, model, _ in ours for d in rows["defence"].unique().to_list()}
        attacks |= {attack.name for attack in spec.full.attacks}
    theirs = {(row["dataset"], row["model"], row["defence"]) for row in rows.iter_rows(named=True)}
    assert theirs - ours == set()
    assert set(rows["attack"].to_list()) - attacks == set()


@pytest.mark.parametrize("name", [name for name in names() if shipped(name).key and shipped(name).trends])
def test_a_trend_is_in_the_papers_own_numbers(name: str) -> None:
    """What a spec says that the paper shows holds in most of its published rows, wherever it printed them."""
    spec = shipped(name)
    rows = table(spec.paper, spec.key)
    for trend in spec.trends:
        found = judge(trend, rows)
        assert found.of, f"{trend.text}: no published row can show it"
        assert found.holds > found.of / 2, f"{trend.text}: {found.holds} of {found.of}, not in {found.against}"
