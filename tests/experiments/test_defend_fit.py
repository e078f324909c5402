"""Fitting from saved answers and from a model: halves that share nothing, provenance, figures, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_cases import held_out, model

from poise import data as sources
from poise import defenses, metrics, models
from poise.errors import InputError
from poise.experiments.defend_fit import (
    Answers,
    fit,
    from_logits,
    from_model,
    halves,
    save,
)

RECORDS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "records"


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def overconfident(n: int = 400, classes: int = 4, sharpness: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose temperature-`sharpness` softmax is the truth."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(n, classes)) * 1.5
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, classes - 1)
    return z * sharpness, labels


def test_a_saved_fit_finds_the_temperature_that_was_put_in(tmp_path: Path) -> None:
    logits, labels = overconfident(4000)
    path = write(tmp_path / "answers.npz", logits=logits, labels=labels)
    fitted = fit("ts", *from_logits(path), bootstrap=20)
    assert float(fitted.defence.temperature) == pytest.approx(3.0, rel=0.1)
    before, after = fitted.report["before"], fitted.report["after"]
    assert after["ece"]["value"] < 0.3 * before["ece"]["value"]
    assert after["nll"]["value"] < before["nll"]["value"]
    assert after["accuracy"] == before["accuracy"]
    assert fitted.report["labels_changed"] == 0


def test_the_figures_come_from_the_other_half(tmp_path: Path) -> None:
    """Labels of the measured half are replaced: the figures follow them, the fit does not."""
    logits, labels = overconfident(200)
    path = write(tmp_path / "answers.npz", logits=logits, labels=labels)
    held_out_half, measured = from_logits(path)
    rows = {tuple(row) for row in held_out_half.logits.tolist()}
    assert not rows & {tuple(row) for row in measured.logits.tolist()}
    assert len(held_out_half.labels) + len(measured.labels) == 200
    wrong = Answers(measured.logits, (measured.logits.argmax(1) + 1) % 4, {})
    first, second = (fit("ts", held_out_half, part, bootstrap=5) for part in (measured, wrong))
    assert float(first.defence.temperature) == float(second.defence.temperature)
    assert second.report["after"]["accuracy"]["value"] == 0
    assert first.report["after"]["accuracy"]["value"] > 0.4
    defended = first.defence(measured.logits).softmax(1)
    right = (defended.argmax(1) == measured.labels).double().numpy()
    assert first.report["after"]["ece"]["value"] == pytest.approx(
        metrics.ece(defended.amax(1).numpy(), right), abs=1e-9
    )


def test_halves_are_drawn_and_follow_the_seed() -> None:
    answers = Answers(torch.arange(20.0).view(10, 2), torch.tensor([0, 1] * 5), {})
    one, two = halves(answers)
    assert sorted(torch.cat([one.logits, two.logits])[:, 0].tolist()) == list(range(0, 20, 2))
    assert not torch.equal(one.logits, halves(answers, seed=1)[0].logits)
    assert torch.equal(one.logits, halves(answers)[0].logits)
    with pytest.raises(InputError, match="at least 4 samples, got 3"):
        halves(answers.part(torch.arange(3)))


def test_probabilities_stand_for_their_logarithms(tmp_path: Path) -> None:
    logits, labels = overconfident(100)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    first = from_logits(write(tmp_path / "z.npz", logits=logits, labels=labels))[0]
    second = from_logits(write(tmp_path / "p.npz", probabilities=p, labels=labels))[0]
    assert torch.allclose(first.logits.softmax(1), second.logits.softmax(1), atol=1e-12)


@pytest.mark.parametrize("record", ["wideresnet-16-4-cifar-10", "lenet-5-cifar-10"])
def test_temperature_scaling_helps_a_real_network(record: str) -> None:
    if not RECORDS.is_dir():
        pytest.skip("the shared records of real networks are not beside the repository")
    fitted = fit("ts", *from_logits(RECORDS / f"{record}.npz"), bootstrap=10)
    before, after = fitted.report["before"], fitted.report["after"]
    for metric in ("ece", "ks", "nll"):
        assert after[metric]["value"] < before[metric]["value"]


def test_what_is_saved_says_where_it_comes_from(tmp_path: Path) -> None:
    target = models.load(model())
    parts = from_model(model(), held_out(), None, target=target, batch_size=64)
    path = tmp_path / "new" / "ts.safetensors"
    fitted = fit("ts", *parts, bootstrap=5)
    save(fitted, path)
    assert [file.name for file in path.parent.iterdir()] == ["ts.safetensors"]
    found = defenses.provenance(path)
    assert found == json.loads(json.dumps(fitted.report))
    assert found["fitted_on"]["n"] == found["measured_on"]["n"] == 100
    assert found["fitted_on"]["weights"] == models.fingerprint(target)
    assert found["fitted_on"]["data_fingerprint"] == sources.load(held_out()).fingerprint()
    assert found["num_classes"] == 4
    assert {"poise", "created", "hyperparameters", "before", "after"} <= found.keys()
    logits = parts[1].logits
    assert torch.equal(defenses.load(path)(logits), fitted.defence(logits))


def test_named_data_to_fit_on_is_all_used() -> None:
    target = models.load(model())
    first, second = from_model(model(), held_out(), held_out(), target=target, batch_size=64)
    assert len(first.labels) == len(second.labels) == 200
    digits = models.load("builtin:digits")
    parts = from_model("builtin:digits", "builtin:digits", None, target=digits, batch_size=256)
    assert [len(part.labels) for part in parts] == [400, 497]
    assert parts[0].origin["data_fingerprint"] != parts[1].origin["data_fingerprint"]


GOOD = np.zeros((6, 3)), np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"logits": GOOD[0]}, "must hold the array labels, got logits"),
        ({"labels": GOOD[1]}, "must hold one of the arrays logits and probabilities, got labels"),
        ({"logits": GOOD[0], "probabilities": GOOD[0], "labels": GOOD[1]}, "must hold one of the arrays"),
        ({"logits": GOOD[0], "labels": GOOD[1][:5]}, r"labels must be \(6,\) integers, got \(5,\)"),
        ({"logits": GOOD[0], "labels": GOOD[1] * 1.0}, "labels must be .* got .* float64"),
        ({"logits": GOOD[0], "labels": GOOD[1] + 1}, r"labels must be in 0..2 for 3 classes, got values in 1..3"),
        ({"logits": GOOD[0][:, 0], "labels": GOOD[1]}, r"logits must be \(n, K\) floats"),
        ({"logits": np.zeros((6, 3), dtype=np.int64), "labels": GOOD[1]}, r"logits must be \(n, K\) floats"),
        ({"logits": np.full((6, 3), np.nan), "labels": GOOD[1]}, "must be finite"),
        ({"probabilities": GOOD[0], "labels": GOOD[1]}, "rows that sum to 1"),
        ({"logits": GOOD[0][:2], "labels": GOOD[1][:2]}, "at least 4 samples, got 2"),
        ({"logits": np.array([{}] * 6), "labels": GOOD[1]}, "must be numbers or texts, got Python objects"),
    ],
)
def test_bad_archives_are_told_in_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], told: str) -> None:
    path = write(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=told) as caught:
        from_logits(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello", encoding="utf-8")
    for path, told in ((tmp_path / "text.npz", "readable .npz"), (tmp_path, "a folder"), (tmp_path / "x", "nothing")):
        with pytest.raises(InputError, match=told):
            from_logits(path)


def test_one_class_and_different_classes_are_refused() -> None:
    rows = Answers(torch.randn(8, 3), torch.zeros(8, dtype=torch.int64), {})
    with pytest.raises(InputError, match="at least two classes"):
        fit("ts", rows, rows)
    other = Answers(torch.randn(8, 4), torch.tensor([0, 1] * 4), {})
    with pytest.raises(InputError, match="got 4 to fit on, 3 to measure on"):
        fit("ts", other, rows)
    with pytest.raises(InputError, match="did you mean ts"):
        fit("tss", other, other)
