"""poise audit and attack as a user drives them: options, folders, resuming, gates, interrupts."""

from __future__ import annotations

import json
import re
import shlex
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cli_cases import MODEL, data, fast, finished, poise
from hypothesis import given
from hypothesis import strategies as st

from poise import recipes
from poise.cli import audit as audit_command
from poise.cli.app import run
from poise.cli.listing import KINDS
from poise.cli.options import free_folder, names, number, repeat_command
from poise.errors import InputError
from poise.experiments import AuditSpec, Costs
from poise.experiments.audit_spec import make_spec, read_spec

audit_module, attack_module = import_module("poise.cli.audit"), import_module("poise.cli.attack")


class _Seen(Exception):
    def __init__(self, spec: AuditSpec, folder: Path, resume: bool) -> None:
        super().__init__()
        self.spec, self.folder, self.resume = spec, folder, resume


@pytest.fixture
def resolved(monkeypatch):
    """What the command would run: its spec, folder and resume flag."""

    def stop(spec: AuditSpec, folder: Path, *, resume: bool, quiet: bool) -> dict[str, Any]:
        raise _Seen(spec, folder, resume)

    def call(*words: object) -> _Seen:
        for module in (audit_module, attack_module):  # both imported: one imports the name from the other
            monkeypatch.setattr(module, "watched_run", stop)
        with pytest.raises(_Seen) as caught:
            run([str(word) for word in words], None)
        return caught.value

    return call


def test_a_file_of_costs_reaches_the_spec_and_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "costs.toml"
    file.write_text("wrong_accepted = 50\ndeferred = 4\n[classes.3]\nwrong_accepted = 500\n")
    done = poise("audit", *fast(), "--costs", file, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert len([line for line in done.out.splitlines() if line.startswith("costs    Without attack, ")]) == 1
    costs = read_spec(tmp_path / "run" / "audit.toml")[0].costs
    assert costs.plain()["classes"]["3"] == {"wrong_accepted": 500.0, "deferred": 4.0, "right_accepted": 0.0}


def test_options_reach_the_spec(resolved, tmp_path: Path) -> None:
    seen = resolved(
        "audit", "--model", "builtin:digits", "--data", "npz:x", "--fit-data", "npz:y", "--recipes", "sa-mma, pgd",
        "--defenses", "cs", "--eps", "8/255", "--norm", "l2", "--budget", 7, "--steps", 3, "--samples", 5,
        "--threshold", "0.25", "--cost-wrong", 10, "--cost-deferred", "0.5", "--seed", 4, "--device", "cuda:1",
        "--batch-size", 9, "--bootstrap", 11, "--trace", "--out", tmp_path / "run", "--resume",
    )  # fmt: skip
    assert seen.spec == AuditSpec(
        model="builtin:digits", data="npz:x", fit_data="npz:y", recipes=("sa-mma", "pgd"), defences=("none", "cs"),
        eps=8 / 255, norm="l2", budget=7, steps=3, samples=5, threshold=0.25, seed=4, device="cuda:1", batch_size=9,
        bootstrap=11, costs=Costs(wrong_accepted=10, deferred=0.5), trace=True,
    )  # fmt: skip
    assert (seen.folder, seen.resume) == (tmp_path / "run", True)


def test_without_options_the_defaults_run(resolved, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = resolved("audit")
    assert seen.spec == make_spec()
    assert (seen.folder, seen.resume) == (Path("runs") / f"digits-{date.today()}", False)
    assert resolved("attack", "pgd").spec == make_spec(recipes=("pgd",), defences=("none",))
    assert resolved("attack", "pgd").folder == Path("runs") / f"digits-pgd-{date.today()}"


@pytest.mark.parametrize("spelling", ["--defenses", "--defences"])
def test_both_spellings(resolved, spelling: str) -> None:
    assert resolved("audit", spelling, "ts").spec.defences == ("none", "ts")


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.05", 0.05), ("1", 1.0), ("5e-2", 0.05), (" 1/4 ", 0.25), (None, None), ("2/255", 2 / 255)],
)
def test_number(text: str | None, value: float | None) -> None:
    assert number("eps", text) == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "1/2/3", "0.5/2", "1,5", "8 / / 255"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(InputError, match=rf"^eps: must be a number such as 0.05 or 8/255, got '{re.escape(text)}'$"):
        number("eps", text)


def test_names() -> None:
    assert names("a, b ,,c") == ("a", "b", "c")
    assert names("") == ()
    assert names(None) is None


@pytest.mark.parametrize(
    ("model", "stem"),
    [
        ("builtin:digits", "digits"),
        ("builtin:resnet20-cifar10?weights=/a/b.safetensors", "resnet20-cifar10"),
        ("py:/srv/me/my model.py:make?num_classes=3", "my-model-py-make"),
        ("timm:vit/..%2F?x", "2F"),
        ("py:??", "model"),
        ("torchvision:éàü", "model"),
    ],
)
def test_free_folder_is_named_after_the_model(tmp_path: Path, model: str, stem: str) -> None:
    folder = free_folder(model, tmp_path / "runs")
    assert folder == tmp_path / "runs" / f"{stem}-{date.today()}"
    assert not folder.parent.exists(), "choosing a name makes nothing"


def test_free_folder_takes_the_next_number(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        seen.append(free_folder("builtin:digits", tmp_path))
        seen[-1].mkdir()
    assert [path.name.removeprefix(f"digits-{date.today()}") for path in seen] == ["", "-2", "-3"]


def test_resume_needs_no_spec(resolved) -> None:
    seen = resolved("audit", "--out", finished(), "--resume")
    assert seen.spec == read_spec(finished() / "audit.toml")[0]
    seen = resolved("attack", "sa-uca", "--out", finished(), "--resume")
    assert seen.spec == read_spec(finished() / "audit.toml")[0]


def test_resume_where_nothing_lies_starts_what_the_options_say(resolved, tmp_path: Path) -> None:
    assert resolved("audit", "--out", tmp_path, "--resume", "--budget", 3).spec == make_spec(budget=3)


def test_a_finished_run_is_shown_again(tmp_path: Path) -> None:
    before = pl.read_parquet(finished() / "samples" / "*.parquet")
    first = json.loads((finished() / "summary.json").read_text(encoding="utf-8"))
    done = poise("audit", "--out", finished(), "--resume", "--quiet", "--json")
    assert (done.code, done.err) == (0, "")
    again = json.loads(done.out)
    for summary in (first, again):
        del summary["created"], summary["seconds"]
    assert again == first
    assert pl.read_parquet(finished() / "samples" / "*.parquet").equals(before)


def test_a_run_made_by_attack_can_become_an_audit(tmp_path: Path) -> None:
    options = ["--model", MODEL, "--data", data(), "--budget", 4, "--samples", 3, "--quiet", "--out", tmp_path / "run"]
    assert poise("attack", "sa-uca", *options).code == 0
    done = poise("audit", "--out", tmp_path / "run", "--resume", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "run" / "report.html").exists()


finite = {"allow_nan": False, "allow_infinity": False}
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))
specs = st.builds(
    make_spec,
    model=texts,
    data=texts | st.just("builtin:digits"),
    fit_data=st.none() | texts,
    recipes=st.lists(st.sampled_from(sorted(recipes())), min_size=1, unique=True).map(tuple),
    defences=st.lists(st.sampled_from(["none", "ts", "cs"]), unique=True).map(tuple),
    eps=st.none() | st.floats(1e-300, 1.0),
    norm=st.sampled_from(["linf", "l2"]),
    budget=st.integers(1, 2**40),
    steps=st.none() | st.integers(1, 99),
    samples=st.none() | st.integers(1, 99),
    threshold=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    device=st.sampled_from(["cpu", "cuda:1"]),
    batch_size=st.integers(1, 999),
    bootstrap=st.integers(1, 999),
    costs=st.none() | st.builds(Costs, wrong_accepted=st.floats(0, **finite), deferred=st.floats(0, **finite)),
)


@given(made=specs)
def test_the_command_in_the_summary_repeats_the_run(made: AuditSpec) -> None:
    """Whatever the spec, the shell and the parser give it back to the last bit."""
    words = shlex.split(repeat_command(made))
    assert words[0] == "poise"
    with pytest.MonkeyPatch.context() as patch:

        def stop(spec: AuditSpec, folder: Path, *, resume: bool, quiet: bool) -> dict[str, Any]:
            raise _Seen(spec, folder, resume)

        patch.setattr(audit_command, "watched_run", stop)
        with pytest.raises(_Seen) as caught:
            run(words[1:], None)
    assert caught.value.spec == made
    assert not caught.value.resume


def test_the_command_names_what_differs_from_the_defaults() -> None:
    assert repeat_command(make_spec()) == "poise audit --model builtin:digits --data builtin:digits"
    made = make_spec(data="npz:my file.npz", eps=0.05, norm="l2", defences=("none", "cs"), batch_size=3)
    assert repeat_command(made) == (
        "poise audit --model builtin:digits --data 'npz:my file.npz' --defenses none,cs --eps 0.05 --norm l2 "
        "--batch-size 3"
    )


def test_repeating_a_run_by_its_command_gives_its_tables(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(json.loads((finished() / "summary.json").read_text(encoding="utf-8"))["command"])
    assert poise(*words[1:], "--quiet").code == 0
    (out,) = Path("runs").iterdir()
    ours, theirs = (pl.read_parquet(run / "samples" / "*.parquet").drop("seconds") for run in (out, finished()))
    assert ours.equals(theirs, null_equal=True)


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("ece_after = 1.0", 0, []),
        ("[min]\naccuracy_after = 0", 0, []),
        ("ece_after = 0.0001", 1, ["gate     sa-uca × none: ece_after must be at most 0.0001, got "]),
        (
            "confidence_after = 0\n[min]\naccuracy_after = 1",
            1,
            ["gate     sa-uca × none: confidence_after must be", "gate     sa-uca × none: accuracy_after must be at l"],
        ),
        ("queries_mean_success = 9", 1, ["gate     sa-uca × none: queries_mean_success must be at most 9, got undef"]),
    ],
)
def test_gate(text: str, code: int, told: list[str], tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text(text, encoding="utf-8")
    done = poise("audit", "--out", finished(), "--resume", "--quiet", "--gate", tmp_path / "gate.toml")
    assert done.code == code
    lines = done.err.splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True))
    assert "report   " in done.out, "the table is printed whatever the gate says"


def test_a_reader_that_has_gone_does_not_hide_a_broken_limit(tmp_path: Path, capsys, monkeypatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    (tmp_path / "gate.toml").write_text("ece_after = 0.0001")
    monkeypatch.setattr(audit_command, "show", gone)
    words = ["audit", "--out", str(finished()), "--resume", "--quiet"]
    assert run(words, None) == 0
    assert run([*words, "--gate", str(tmp_path / "gate.toml")], None) == 1
    assert "ece_after must be at most" in capsys.readouterr().err


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_says_how_to_go_on(begun: bool, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "my run"

    def interrupted(*_: object, **__: object) -> None:
        if begun:
            out.mkdir()
            (out / "audit.toml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("poise.experiments.run_audit", interrupted)
    done = poise("audit", *fast(), "--out", out)
    assert (done.code, done.out) == (130, "")
    command = f"poise audit --out '{out}' --resume"
    told = f"finished chunks are kept, go on with: {command}" if begun else "interrupted before the first attack"
    assert told in done.err
    assert done.err.count("\n") == 1


def test_an_interrupt_while_the_report_is_written(monkeypatch) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    out = finished()
    monkeypatch.setattr("poise.report.write", interrupted)
    done = poise("audit", "--out", out, "--resume", "--quiet")
    assert (done.code, done.out) == (130, "")
    assert "--resume" in done.err


def test_an_interrupt_elsewhere(monkeypatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(KINDS, "recipes", interrupted)
    assert poise("list", "recipes").code == 130


def test_the_embedded_default_runs(tmp_path: Path) -> None:
    words = ["--samples", 12, "--budget", 4, "--recipes", "sa-mma", "--defenses", "none,ts", "--bootstrap", 10]
    done = poise("audit", *words, "--out", tmp_path / "run", "--json")
    assert done.code == 0
    summary = json.loads(done.out)
    assert summary["data"]["fit_samples"] == 400, "the embedded validation part"
    assert summary["data"]["available"] == 497
    assert summary["spec"]["eps"] == 0.2


def test_attack_writes_its_trace(tmp_path: Path) -> None:
    words = [word for word in fast() if word not in ("--recipes", "sa-uca", "--defenses", "none", "--bootstrap", "10")]
    file = tmp_path / "there" / "trace.parquet"
    done = poise("attack", "adaptive", *words, "--out", tmp_path / "run", "--trace", file)
    assert (done.code, done.err) == (0, "")
    trace = pl.read_parquet(file)
    assert {"id", "iteration", "queries", "margin", "confidence", "loss", "step"} <= set(trace.columns)
    assert trace["id"].n_unique() == 8
    assert trace["step"].drop_nulls().len() > 0
    again = poise(
        "attack", "adaptive", *words, "--out", tmp_path / "run", "--resume", "--trace", tmp_path / "b.parquet"
    )
    assert again.code == 0
    assert pl.read_parquet(tmp_path / "b.parquet").equals(trace)


def test_the_command_that_repeats_a_traced_run() -> None:
    assert repeat_command(make_spec(trace=True)).endswith(" --trace")
    assert "--trace" not in repeat_command(make_spec())


@pytest.mark.parametrize(("recipe", "gradients"), [("sa-uca", False), ("pgd-uca", True)])
def test_a_batch_size_is_found_by_trying(recipe: str, gradients: bool, resolved, monkeypatch) -> None:
    asked = {}

    def found(target, shape, **named) -> int:
        asked.update(named, shape=shape)
        return 48

    monkeypatch.setattr("poise.targets.fitting_batch_size", found)
    seen = resolved("attack", recipe, "--batch-size", "auto")
    assert seen.spec.batch_size == 48
    assert asked == {"shape": (1, 8, 8), "gradients": gradients, "most": 1024}
    assert resolved("attack", recipe, "--batch-size", "7").spec.batch_size == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "many"], "batch-size: must be a whole number of at least 1, or auto, got 'many'"),
        (["--batch-size", "0"], "batch-size: must be a whole number of at least 1, or auto, got '0'"),
        (["--batch-size", "auto", "--resume"], "batch-size: must be a number, or left out to go on"),
        (["--batch-size", "auto", "--model", "https://x.org/v1"], "batch-size: must be a number where questions are"),
    ],
)
def test_batch_sizes_that_cannot_be_meant(words: list[str], message: str) -> None:
    done = poise("audit", *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
