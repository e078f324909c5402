"""A run that is killed at any moment and resumed gives the tables of a run that was never interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path

import audit_cases
import polars as pl
import pytest
from audit_cases import Killed, assert_same_run, audit, killed_at, model, small_run, spec

from poise.errors import RunError
from poise.experiments import files
from poise.experiments.run_folder import RunFolder

WRITES = 26
"""Files of the small run: spec, three chunks with 4 undefended and 3 defended files each, 2 of the gallery, summary."""


@pytest.mark.parametrize("moment", range(WRITES))
def test_killed_at_every_write(moment: int, tmp_path: Path, monkeypatch) -> None:
    made, out = spec(), tmp_path / "run"
    with killed_at(moment, monkeypatch):
        audit(made, out)
    for table in out.rglob("*.parquet"):
        assert len(pl.read_parquet(table)), "a table is there in part"
    audit(made, out, resume=True)
    assert_same_run(out, small_run())


def test_no_write_comes_after_the_last_that_is_killed(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(AssertionError, match="no 27th write"), killed_at(WRITES, monkeypatch):
        audit(spec(), tmp_path / "run")


def test_killed_again_and_again(tmp_path: Path, monkeypatch) -> None:
    made, out = spec(), tmp_path / "run"
    for moment in (0, 3, 1, 6, 2, 8):
        with killed_at(moment, monkeypatch):
            audit(made, out, resume=True)
    audit(made, out, resume=True)
    assert_same_run(out, small_run())


def test_files_that_are_not_written_whole_are_noticed(tmp_path: Path, monkeypatch) -> None:
    """The broken twin: tables written in place leave half a table, and the checks above see it."""

    def in_place(path: Path, fill) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(path)
        if path.match("samples/sa-mma.none.aware.00001.parquet"):
            path.write_bytes(path.read_bytes()[:100])
            raise Killed
        return path

    made, out = spec(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(files, "write", in_place)
        with pytest.raises(Killed):
            audit(made, out)
    with pytest.raises(RunError, match="damaged"):
        audit(made, out, resume=True)
    with pytest.raises(pl.exceptions.PolarsError):
        assert_same_run(out, small_run())


def test_a_different_number_is_noticed(tmp_path: Path) -> None:
    """The broken twin of the comparison: one bit of one column, one image."""
    copy = shutil.copytree(small_run(), tmp_path / "copy")
    assert_same_run(copy, small_run())
    table = copy / "samples" / "sa-mma.cs.aware.00002.parquet"
    rows = pl.read_parquet(table)
    rows.with_columns(pl.col("seconds") + 1).write_parquet(table)
    assert_same_run(copy, small_run())
    rows.with_columns(pl.col("confidence_after") * (1 + 2**-52)).write_parquet(table)
    with pytest.raises(AssertionError, match="confidence_after"):
        assert_same_run(copy, small_run())


@pytest.mark.parametrize(
    "lost",
    [
        "samples/sa-mma.none.aware.00001.parquet",
        "samples/sa-mma.cs.unaware.00001.parquet",
        "samples/sa-mma.cs.aware.00002.parquet",
        "curves/sa-mma.cs.aware.00000.parquet",
        "adversarial/sa-mma.none.00002.safetensors",
        "summary.json",
        "gallery.parquet",
    ],
)
def test_what_was_lost_is_made_again(lost: str, tmp_path: Path) -> None:
    copy = shutil.copytree(small_run(), tmp_path / "copy")
    (copy / lost).unlink()
    audit(spec(), copy, resume=True)
    assert (copy / lost).exists()
    assert_same_run(copy, small_run())


@pytest.mark.parametrize(
    "damaged",
    [
        "samples/sa-mma.cs.unaware.00001.parquet",
        "curves/sa-mma.none.aware.00000.parquet",
        "adversarial/sa-mma.none.00000.safetensors",
    ],
)
def test_damage_is_named_and_the_advice_works(damaged: str, tmp_path: Path) -> None:
    copy = shutil.copytree(small_run(), tmp_path / "copy")
    whole = (copy / damaged).read_bytes()
    (copy / damaged).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"is damaged .*delete it and give --resume") as caught:
        audit(spec(), copy, resume=True)
    assert damaged in str(caught.value)
    assert "\n" not in str(caught.value)
    (copy / damaged).unlink()
    audit(spec(), copy, resume=True)
    assert_same_run(copy, small_run())


def test_a_chunk_with_other_columns_is_named(tmp_path: Path) -> None:
    """As of two versions in one folder: readable, but not of the same run."""
    copy = shutil.copytree(small_run(), tmp_path / "copy")
    table = copy / "samples" / "sa-mma.none.aware.00001.parquet"
    pl.read_parquet(table).with_columns(pl.col("queries").cast(pl.Int8)).write_parquet(table)
    with pytest.raises(RunError, match=r"its columns are not those of the chunks before") as caught:
        audit(spec(), copy, resume=True)
    assert "sa-mma.none.aware.00001.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_complete_run_attacks_nothing_again(tmp_path: Path) -> None:
    copy = shutil.copytree(small_run(), tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.safetensors") if "gallery" not in path.name}
    audit(spec(), copy, resume=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_without_resume_a_run_is_not_touched(tmp_path: Path) -> None:
    copy = shutil.copytree(small_run(), tmp_path / "copy")
    with pytest.raises(RunError, match="already holds this run; give --resume"):
        audit(spec(), copy)
    assert_same_run(copy, small_run())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"budget": 13}, "budget: 12 there, 13 given"),
        ({"eps": 0.2}, "eps: 0.1 there, 0.2 given"),
        ({"seed": 5}, "seed: 0 there, 5 given"),
        ({"defences": ("none",)}, "defences: .*'cs'.* there"),
        ({"batch_size": 17}, "batch_size: 16 there, 17 given"),
    ],
)
def test_another_spec_is_refused_with_the_field(changed, told: str) -> None:
    for resume in (False, True):
        with pytest.raises(RunError, match=told):
            audit(spec(**changed), small_run(), resume=resume)


def test_other_data_under_the_same_name_are_refused(tmp_path: Path) -> None:
    address = audit_cases.write_data(tmp_path / "data.npz", 20)
    audit(spec(address), tmp_path / "run")
    audit_cases.write_data(tmp_path / "data.npz", 20, seed=9)
    with pytest.raises(RunError, match=r"begun with other data \(sha256:"):
        audit(spec(address), tmp_path / "run", resume=True)


def test_other_held_out_data_are_refused(tmp_path: Path) -> None:
    fit = audit_cases.write_data(tmp_path / "fit.npz", 50)
    made = spec(fit_data=fit, defences=("none", "ts"))
    audit(made, tmp_path / "run")
    audit_cases.write_data(tmp_path / "fit.npz", 50, seed=9)
    with pytest.raises(RunError, match="begun with other fit_data"):
        audit(made, tmp_path / "run", resume=True)


def test_another_surrogate_under_the_same_name_is_refused(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(Path(audit_cases.TOYS).read_text())
    made = spec(surrogate=f"py:{code}:linear?num_classes=4", recipes=("learned-squares", "sa-mma"), defences=("none",))
    first = audit(made, tmp_path / "run")
    assert first["spec"]["surrogate"] == made.surrogate
    code.write_text(code.read_text().replace("manual_seed(7)", "manual_seed(8)"))
    with pytest.raises(RunError, match="begun with other surrogate"):
        audit(made, tmp_path / "run", resume=True)
    other = audit(spec(recipes=made.recipes, defences=("none",)), tmp_path / "without")
    for recipe, same in (("learned-squares", False), ("sa-mma", True)):  # it reaches those that can use it alone
        rows = [RunFolder(tmp_path / name).rows(recipe, "none", "aware") for name in ("run", "without")]
        assert (rows[0]["confidence_after"].to_list() == rows[1]["confidence_after"].to_list()) is same, recipe
        assert other["spec"]["surrogate"] is None


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(Path(audit_cases.TOYS).read_text())
    made = spec(model=f"py:{code}:linear?num_classes=4")
    audit(made, tmp_path / "run")
    code.write_text(code.read_text().replace("manual_seed(7)", "manual_seed(8)"))
    with pytest.raises(RunError, match="begun with other weights"):
        audit(made, tmp_path / "run", resume=True)


def test_foreign_files_are_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RunError, match=r"holds other files \('thesis\.tex'\)"):
            audit(spec(), tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with files.locked(tmp_path / "run"), pytest.raises(RunError, match="another poise process is writing"):
        audit(spec(), tmp_path / "run")
    audit(spec(samples=4), tmp_path / "run")


def test_a_misfit_found_late_leaves_no_run_behind(tmp_path: Path) -> None:
    """The fourth image of every batch is answered with NaN: seen on the clean images, before the folder is made."""
    from poise.errors import TargetError

    with pytest.raises(TargetError, match="NaN"):
        audit(spec(model=model("nan")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_chunks_do_not_change_results(tmp_path: Path) -> None:
    """Chunk size changes the files and, at most, the last digits of the model's own sums."""
    audit(spec(batch_size=40), tmp_path / "run")
    ours, theirs = audit_cases.tables(tmp_path / "run"), audit_cases.tables(small_run())
    for name in ("id", "label", "prediction_after", "queries", "queries_to_success", "stop"):
        assert ours[name].equals(theirs[name], null_equal=True), name
    assert (ours["confidence_after"] - theirs["confidence_after"]).abs().max() < 1e-5


def test_a_run_of_another_version_is_told_in_one_line(tmp_path: Path) -> None:
    """Its tables lack what this version reads."""
    made, out = spec(defences=("none",)), tmp_path / "run"
    audit(made, out)
    for file in (out / "samples").iterdir():
        pl.read_parquet(file).drop("zero_gradients").write_parquet(file)
    with pytest.raises(RunError, match=r"^samples: '.*run' must hold the column zero_gradients, another version of"):
        audit(made, out, resume=True)
