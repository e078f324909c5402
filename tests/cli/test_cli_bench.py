"""poise bench: run, go on, status, table, figure, dry run; and what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_cases import environment, poise

SPEC = """
paper = "mine"
shows = "Table 9"
title = "Mine <b>bold</b>"
setting = "none"
[table]
rows = ["model", "attack"]
metrics = ["ece", "avg_queries"]
[figure]
draw = "lines"
x = "eps"
[[trends]]
text = "The attack raises the ECE"
metric = "ece"
more = { attack = "SA-MMA" }
less = { attack = "none" }
[grid]
eps = [0.1]
budgets = [BUDGET]
attacks = [{ name = "SA-MMA", recipe = "sa-mma" }]
[full]
samples = 400
[[full.victims]]
dataset = "digits"
model = "CNN"
source = "builtin:digits"
data = "builtin:digits"
[small]
samples = 12
shard = 4
differs = "everything"
[[small.victims]]
dataset = "digits"
model = "CNN"
source = "builtin:digits"
data = "builtin:digits"
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(SPEC.replace("BUDGET", "10"), encoding="utf-8")
    return str(path)


def test_a_run_ends_with_a_table_and_another_does_nothing(spec: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    first = poise("bench", "run", spec, "--out", out, "--save", str(tmp_path / "saved"))
    assert first.code == 0
    assert "SA-MMA" in first.out
    assert "The attack raises the ECE" in first.out
    assert "3 shards run, 0 were there" in first.err
    again = poise("bench", "run", spec, "--out", out)
    assert "nothing to do: all 3 shards" in again.err
    assert again.out == first.out
    state = poise("bench", "status", spec, "--out", out)
    assert "done     3 of 3 shards, 0 waiting" in state.out
    told = json.loads(poise("bench", "status", spec, "--out", out, "--json").out)
    assert (told["done"], told["total"], told["waiting"], told["failed"]) == (3, 3, 0, {})
    for form in ("markdown", "latex", "csv", "html", "json"):
        shown = poise("bench", "table", spec, "--out", out, "--format", form)
        kept = poise("bench", "table", spec, "--results", str(tmp_path / "saved"), "--format", form)
        assert shown.code == 0
        assert shown.out
        assert "<b>bold</b>" not in shown.out or form in ("markdown", "csv", "json", "latex")
        if form in ("markdown", "latex", "csv"):
            assert kept.out == shown.out
    assert json.loads(poise("bench", "table", spec, "--out", out, "--format", "json").out)["trends"][0]["of"] == 1
    shown, file = poise("bench", "table", spec, "--out", out), tmp_path / "new" / "table.txt"
    assert poise("bench", "table", spec, "--out", out, "--to", str(file)).out == f"table    {file}\n"
    assert file.read_text(encoding="utf-8") == shown.out
    page = tmp_path / "figure.html"
    assert poise("bench", "figure", spec, "--out", out, "--to", str(page)).code == 0
    assert "<b>bold</b>" not in page.read_text(encoding="utf-8")


def test_a_dry_run_prices_and_writes_nothing(spec: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = poise("bench", "run", spec, "--profile", "full", "--dry-run", "--rate", "1000", "--out", str(out), "--json")
    priced = json.loads(found.out)
    assert priced["queries"] == 400 * 10
    assert priced["hours"] == pytest.approx(4000 / 1000 / 3600)
    assert not out.exists()
    measured = poise("bench", "run", spec, "--dry-run", "--out", str(out))
    assert "images/s (CNN on cpu" in measured.out


REFUSED = {
    "unknown spec": (["run", "calibration/t11"], "did you mean calibration/t1"),
    "unknown profile": (["run", "SPEC", "--profile", "big"], "profile: must be one of"),
    "unknown format": (["table", "SPEC", "--results", "X", "--format", "word"], "must be a saved result"),
    "workers without ray": (["run", "SPEC", "--workers", "2"], "workers: needs --ray"),
    "nothing there": (["table", "SPEC", "--out", "OUT"], "must hold a finished cell"),
    "bad rate": (["run", "SPEC", "--dry-run", "--rate", "-1"], "rate: must be a number of images per second"),
    "a file in the way": (["run", "SPEC", "--out", "SPEC"], "out: "),
    "no file system": (["run", "SPEC", "--out", "nowhere://x"], "a URL that fsspec opens"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_one_line(spec: str, tmp_path: Path, kind: str) -> None:
    words, says = REFUSED[kind]
    places = {"SPEC": spec, "OUT": str(tmp_path / "none"), "X": str(tmp_path / "x")}
    found = poise("bench", *(places.get(word, word) for word in words))
    assert found.code == 2
    assert says in found.err
    assert len(found.err.strip().splitlines()) == 1


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SPEC.replace("BUDGET", "10").replace('data = "builtin:digits"', 'data = "npz:{files}/no.npz"'))
    found = poise("bench", "run", str(path), "--out", str(tmp_path / "out"), "--files", str(tmp_path / "files"))
    assert found.code == 2
    assert f"nothing can be run without '{tmp_path}/files/no.npz'" in found.err


def test_a_failing_shard_is_exit_code_1_and_named_in_status(tmp_path: Path) -> None:
    path, archive = tmp_path / "mine.toml", tmp_path / "broken.npz"
    archive.write_bytes(b"not an archive")
    path.write_text(SPEC.replace("BUDGET", "10").replace('data = "builtin:digits"', f'data = "npz:{archive}"'))
    found = poise("bench", "run", str(path), "--out", str(tmp_path / "out"))
    assert found.code == 1
    assert "3 of 3 shards failed" in found.err
    state = poise("bench", "status", str(path), "--out", str(tmp_path / "out"))
    assert "failed   digits CNN" in state.out
    assert "readable .npz archive" in state.out


def test_every_spec_is_listed() -> None:
    listed = json.loads(poise("bench", "list", "--json").out)
    assert "calibration/t1" in listed
    assert len(listed) >= 45
    assert "calibration/t1" in poise("bench", "list").out


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A spec of twelve shards, and its table in one go; the embedded model is in the cache from then on."""
    folder = tmp_path_factory.mktemp("twelve")
    path = folder / "mine.toml"
    path.write_text(SPEC.replace("BUDGET", "150").replace("samples = 12\nshard = 4", "samples = 24\nshard = 2"))
    whole = poise("bench", "run", str(path), "--out", str(folder / "whole"))
    assert "12 shards run, 0 were there" in whole.err
    return path, whole.out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on(twelve: tuple[Path, str], tmp_path: Path, how: signal.Signals) -> None:
    """Stopped once a shard is there; what is there then is not computed again, and the table is that of one run."""
    path, out = twelve[0], tmp_path / "out"
    command = [sys.executable, "-c", "from poise.cli import main; main()", "bench", "run", str(path)]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--quiet"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**environment(), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("shards/*/*/done.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    there = len(list(out.glob("shards/*/*/done.json")))
    assert 1 <= there < 12
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert errors.decode().strip().endswith("the same command goes on")
    found = poise("bench", "run", str(path), "--out", str(out))
    assert f"{12 - there} shards run, {there} were there" in found.err
    assert not list(out.glob("shards/*/.*"))
    assert found.out == twelve[1]


def test_without_a_command_it_helps() -> None:
    assert poise("bench").out == poise("bench", "--help").out


def test_a_spec_without_a_figure_has_none_to_draw(tmp_path: Path) -> None:
    path, figure = tmp_path / "mine.toml", '[figure]\ndraw = "lines"\nx = "eps"\n'
    assert figure in SPEC
    path.write_text(SPEC.replace("BUDGET", "10").replace(figure, ""))
    assert poise("bench", "run", str(path), "--out", str(tmp_path / "out"), "--quiet").code == 0
    found = poise("bench", "figure", str(path), "--out", str(tmp_path / "out"), "--to", str(tmp_path / "page.html"))
    assert found.code == 2
    assert found.err == "poise: error: figure: mine is a table; poise bench table mine shows it\n"
    assert not (tmp_path / "page.html").exists()


def test_without_its_files_the_price_has_no_time_and_the_status_names_them(tmp_path: Path) -> None:
    path, missing = tmp_path / "mine.toml", tmp_path / "files" / "no.npz"
    path.write_text(SPEC.replace("BUDGET", "10").replace('data = "builtin:digits"', 'data = "npz:{files}/no.npz"'))
    given = [str(path), "--out", str(tmp_path / "out"), "--files", str(missing.parent)]
    priced = poise("bench", "run", *given, "--dry-run")
    assert priced.code == 0
    assert "time     unknown: no model's files are there; give --rate" in priced.out
    assert "plan     1 cells" in priced.out
    assert f"left out 1 of the cells, as long as {missing} is missing" in priced.out
    state = poise("bench", "status", *given)
    assert f"left out 3 shards for want of {missing}" in state.out
    assert "done     0 of " in state.out


def test_a_dry_run_tells_what_lacks_its_files_from_what_would_run_now(tmp_path: Path) -> None:
    path, missing = tmp_path / "mine.toml", tmp_path / "files" / "no.npz"
    victim = SPEC[SPEC.index("[[small.victims]]") :].replace('data = "builtin:digits"', 'data = "npz:{files}/no.npz"')
    path.write_text(SPEC.replace("BUDGET", "10") + victim.replace('"CNN"', '"another"'))
    given = ["bench", "run", str(path), "--files", str(missing.parent), "--dry-run", "--rate", "1"]
    told = poise(*given).out
    assert "plan     2 cells" in told
    assert f"left out 1 of the cells, as long as {missing} is missing" in told
    assert f"now      1 cells, {120 / 3600:.2f} cpu hours at that rate" in told
    priced = json.loads(poise(*given, "--json").out)
    assert priced["left_out"] == {str(missing): 1}
    assert priced["hours"] == pytest.approx(240 / 3600)
    assert priced["hours_now"] == pytest.approx(120 / 3600)
    (tmp_path / "whole.toml").write_text(SPEC.replace("BUDGET", "10"))
    assert "left out" not in poise("bench", "run", str(tmp_path / "whole.toml"), "--dry-run", "--rate", "1").out
