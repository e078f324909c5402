"""What shards measure themselves, held against the parts of the library asked by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import polars as pl
import pytest
import torch
from bench_drawn import AAA, CLEAN, EPS, SQUARE, UCA, left, plan_of, spec
from sklearn.metrics import silhouette_score

from poise import data, defenses, metrics, models, run_recipe
from poise.certify import Smoothing, certify
from poise.constraints import Linf
from poise.errors import InputError
from poise.experiments.audit_spec import make_spec
from poise.experiments.bench.tasks import perform
from poise.experiments.bench.tasks.detect import _Silent, _spec
from poise.experiments.bench.tasks.margins import _metrics
from poise.experiments.bench.workbench import Workbench
from poise.experiments.detect import run_detect
from poise.experiments.detect_spec import make_options
from poise.experiments.explain_cams import cams, map_layer
from poise.experiments.served import behind
from poise.illusion import illusion_of_robustness


def digits(count: int = 12):
    part = data.load("builtin:digits").mixed()[:count]
    return models.load("builtin:digits", device="cpu", batch_size=16), part.images, part.labels, part.ids


def metric(table: pl.DataFrame, name: str, **keys: str | float) -> dict:
    rows = table.filter(pl.col("metric") == name)
    for key, value in keys.items():
        rows = rows.filter(pl.col(key) == value)
    assert len(rows) == 1
    return rows.row(0, named=True)


def test_detect_is_poise_detect(tmp_path, monkeypatch):
    monkeypatch.setattr("poise.experiments.trust.by_temperature._why_not", lambda prepared: "not of interest here")
    names = ["mahalanobis", "input-mfs"]
    options = {"detectors": names, "magnitudes": [0.0], "fit_share": 0.25}
    fgsm = {"name": "FGSM!", "recipe": "fgsm"}
    (found,) = left(spec("detect", attacks=[UCA, fgsm], samples=24, options=options))
    given = make_spec(
        model="builtin:digits", data="builtin:digits", recipes=("sa-uca", "fgsm"), defences=("none",), eps=EPS,
        budget=25, samples=24, batch_size=16,
    )  # fmt: skip
    expected = run_detect(given, make_options(**options), tmp_path / "run", resume=False, listener=_Silent())
    for ours, theirs, figure in (
        ("mahalanobis", "detector-MD", "detection_accuracy"),
        ("input-mfs", "detector-SpectralDefense", "accuracy_at_half"),
    ):
        for recipe, name in (("sa-uca", "SA-UCA"), ("fgsm", "FGSM!")):
            tested = expected["detectors"][ours]["trained"][recipe]["tested"][recipe]
            for column, at in (("detection_auc", "auroc"), ("detection_accuracy", figure)):
                row = metric(found["metrics.parquet"], column, defence=theirs, attack=name)
                assert {key: row[key] for key in ("value", "low", "high")} == tested[at]
                assert row["n"] == expected["detectors"][ours]["test"]
    queries = dict(found["metrics.parquet"].select("attack", "queries").unique().iter_rows())
    assert queries == {"SA-UCA": 25.0, "FGSM!": None}


def test_detect_refuses_what_it_would_ignore():
    with pytest.raises(InputError, match=r"the defence must be none, got 'ts'"):
        left(spec("detect", defences=[{"name": "TS", "use": "ts"}]))
    with pytest.raises(InputError, match=r"recipes as they are, got 'SA-UCA' with \['moves'\]"):
        left(spec("detect", attacks=[{**UCA, "moves": 0.1}]))


def test_detect_takes_the_weights_that_a_shard_has_trained():
    plan = plan_of(spec("detect"))
    (shard,) = plan.shards()
    one = {**shard.settings, "attack": shard.settings["attacks"][0]}
    trained = {"model.safetensors": b"weights", "address.txt": b"builtin:lenet?weights={weights}&num_classes=10"}
    bench = Workbench(plan.place)
    with bench.address_of(shard.settings, trained) as model:
        given = _spec(bench, shard, model, [one])
        address, query = given.model.split("?")
        found = parse_qs(query)
        assert (address, found["num_classes"]) == ("builtin:lenet", ["10"])
        assert Path(found["weights"][0]).read_bytes() == b"weights"


def test_certify_bounds_the_images_that_the_attack_leaves():
    options = {"sigma": 0.25, "n": 200, "n0": 10, "alpha": 0.01, "radii": [0.0, 0.2]}
    clean, attacked = left(spec("certify", attacks=[CLEAN, UCA], samples=4, options=options))
    target, images, labels, ids = digits(4)
    smoothing = Smoothing(sigma=0.25, n=200, n0=10, alpha=0.01)
    moved = run_recipe("sa-uca", target, images, labels, eps=EPS, budget=25, seed=0, ids=ids).images
    assert not torch.equal(moved, images)
    for found, version in ((clean, images), (attacked, moved)):
        by_hand = certify(target, version, ids, smoothing)
        points = found["points.parquet"]
        for radius in (0.0, 0.2):
            here = points.filter(pl.col("radius") == radius)
            lower = [float(one.lower(radius)) for one in by_hand]
            assert here["lower"].to_list() == pytest.approx(lower)
            assert here["upper"].to_list() == pytest.approx([float(one.upper(radius)) for one in by_hand])
            row = metric(found["metrics.parquet"], "certified_lower", x=radius)
            assert row["value"] == pytest.approx(np.mean(lower))
            assert row["low"] <= row["value"] <= row["high"]
    assert clean["points.parquet"]["smoothed"].to_list() != attacked["points.parquet"]["smoothed"].to_list()


def test_certify_refuses_unknown_options():
    with pytest.raises(InputError, match=r"options must be sigma, n, n0, alpha, radii, measure .* got draws"):
        left(spec("certify", options={"draws": 10}))


def test_margins_are_those_of_both_models_at_every_query():
    (found,) = left(spec("margins", attacks=[SQUARE], defences=[AAA], options={"images": 2}))
    points = found["points.parquet"]
    target, images, labels, ids = digits(2)
    assert points.group_by("id", maintain_order=True).len().rows() == [(name, 25) for name in ids.tolist()]

    def margin(scores):
        own = scores.gather(1, labels[:, None])[:, 0]
        return (own - scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1)).double()

    scores = target.query(images, ids).scores
    first = points.filter(pl.col("queries") == 1)
    assert first["bare"].to_list() == pytest.approx(margin(scores).tolist(), rel=1e-5)
    rest = data.load("builtin:digits", split="train")
    logits = target.query(rest.images, rest.ids).scores
    assert defenses.AAA("linear").fit(logits, rest.labels)(scores).argmax(dim=1).equal(scores.argmax(dim=1))
    assert ((points["seen"] > 0) == (points["bare"] > 0)).all()  # AAA keeps every label
    assert (points["seen"] != points["bare"]).any()
    result = run_recipe("square", target, images, labels, eps=EPS, budget=25, seed=0, ids=ids)
    after = margin(result.scores)  # the attack keeps the lowest margin that it asked for
    least = points.group_by("id", maintain_order=True).agg(pl.col("bare").min())["bare"]
    assert least.to_list() == pytest.approx(after.tolist(), rel=1e-4)


def test_steps_shown_reversed_are_counted_by_hand():
    points = pl.DataFrame({"id": [7] * 5, "seen": [1.0, 2.0, 1.0, 1.0, 3.0], "bare": [4.0, 3.0, 2.0, 2.0, 1.0]})
    assert _metrics(points).row(0, named=True)["value"] == pytest.approx(2 / 3)  # of three steps two go the other way
    still = points.with_columns(pl.lit(4.0).alias("bare"))
    assert _metrics(still).row(0, named=True)["value"] is None


def test_margins_against_the_defended_model_take_another_way():
    own = {**SQUARE, "against": "defended"}
    (bare,), (defended,) = (left(spec("margins", attacks=[one], defences=[AAA])) for one in (SQUARE, own))
    assert bare["points.parquet"].row(0) == defended["points.parquet"].row(0)
    assert not bare["points.parquet"].equals(defended["points.parquet"])


def test_cams_compare_the_maps_of_clean_and_attacked_images():
    (found,) = left(spec("explain", options={"what": "cams", "images": [3], "side": 4}))
    target, images, labels, ids = digits()
    layer = map_layer(target.module, images[:2])
    before = cams(target.module, layer, images)
    moved = run_recipe("sa-oca", target, images, labels, eps=EPS, budget=25, seed=0, ids=ids).images
    after = cams(target.module, layer, moved)
    row = metric(found["metrics.parquet"], "cam_pearson", attack="SA-OCA")
    assert row["value"] == pytest.approx(np.nanmean(metrics.map_correlation(before, after)), abs=1e-4)
    points = found["points.parquet"]
    assert points["attack"].unique(maintain_order=True).to_list() == ["image", "none", "SA-UCA", "SA-OCA"]
    assert points["id"].unique().to_list() == [int(ids[3])]
    for name, maps in (("image", images[3, 0].numpy()), ("none", before[3]), ("SA-OCA", after[3])):
        small = maps.reshape(4, 2, 4, 2).mean(axis=(1, 3))
        drawn = points.filter(pl.col("attack") == name).sort("row", "column")["value"].to_numpy().reshape(4, 4)
        assert drawn == pytest.approx(small, abs=1e-4)


def test_embedding_holds_every_version_and_its_separation():
    (found,) = left(spec("explain", options={"what": "embedding", "method": "pca"}))
    points = found["points.parquet"]
    assert points.group_by("attack", maintain_order=True).len().rows() == [("none", 12), ("SA-UCA", 12), ("SA-OCA", 12)]
    target, images, _, _ = digits()
    kept = {}
    last = [part for part in target.module.modules() if isinstance(part, torch.nn.Linear)][-1]
    hook = last.register_forward_hook(lambda part, given, answer: kept.update(it=given[0].detach(), answer=answer))
    target.query(images, torch.arange(12))
    hook.remove()
    expected = silhouette_score(kept["it"].double().numpy(), kept["answer"].argmax(dim=1).numpy())
    assert metric(found["metrics.parquet"], "separation", attack="none")["value"] == pytest.approx(expected, abs=1e-6)


def test_explain_says_what_it_can_do():
    with pytest.raises(InputError, match="what"):
        left(spec("explain", options={"what": "maps"}))
    with pytest.raises(InputError, match=r"places in 0\.\.11, got \[12\]"):
        left(spec("explain", options={"what": "cams", "images": [12]}))


def test_illusion_is_that_of_the_model_as_served():
    cold = {"name": "T = 0.001", "temperature": 0.001, "x": 0.001}
    (found,) = left(spec("illusion", attacks=[], defences=[cold], steps=4, samples=8))
    target, images, labels, _ = digits(8)
    served = defenses.TemperatureScaling()
    served.temperature.fill_(0.001)
    served.fitted.fill_(True)
    expected = illusion_of_robustness(behind(target, served), images, labels, Linf(EPS), steps=4)
    for name, one in (("PGD", expected.plain), ("PGD, cal", expected.cal), ("PGD, opt", expected.opt)):
        row = metric(found["metrics.parquet"], "adv_accuracy", attack=name)
        assert row["low"] <= row["value"] == one.accuracy <= row["high"]
        assert metric(found["metrics.parquet"], "temperature", attack=name)["value"] == one.temperature
        assert metric(found["metrics.parquet"], "avg_confidence", attack=name)["value"] == one.confidence
    assert metric(found["metrics.parquet"], "accuracy", attack="none")["value"] == expected.clean_accuracy
    assert expected.found


def test_illusion_chooses_on_images_beyond_the_attacked_ones():
    given = spec("illusion", attacks=[], samples=6, shard=6, steps=2, options={"validation": 4})
    (found,) = left(given)
    target, images, labels, _ = digits(10)
    kept = {"validation": (images[6:], labels[6:]), "steps": 2}
    expected = illusion_of_robustness(target, images[:6], labels[:6], Linf(EPS), **kept)
    assert metric(found["metrics.parquet"], "temperature", attack="PGD, cal")["value"] == expected.cal.temperature


def test_illusion_refuses_half_a_cell():
    plan = plan_of(spec("illusion", attacks=[], shard=6))
    with pytest.raises(InputError, match=r"must hold all 12 images of a cell, got 0:6"):
        perform(Workbench(plan.place), plan.shards()[0], {})


def test_a_choice_by_confidence_may_leave_no_image():
    given = spec("certify", attacks=[CLEAN], options={"n": 200})
    (shard,) = plan_of(given).shards()
    empty = dataclasses.replace(shard, settings={**shard.settings, "confidence": [2.0, 3.0]})
    assert perform(Workbench(plan_of(given).place), empty, {}).keys() == {"points.parquet"}
