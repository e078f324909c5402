"""Defences around the model in audits and comparisons: noise, grey levels, DENT, temperatures read off features."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from audit_cases import Silent, audit, data, held_out, model, scratch, spec
from cli_cases import poise as poise_command
from safetensors.torch import load_file
from toy_models import layered, linear

import poise
from poise import data as sources
from poise.defenses import (
    ByFeatures,
    FeatureDefended,
    MultiDomainTemperature,
    Quantize,
    TemperatureScaling,
    make_domains,
)
from poise.errors import InputError
from poise.experiments.audit_spec import make_spec
from poise.experiments.defend import run_compare
from poise.experiments.prepare import load, prepare
from poise.types import Outputs

AROUND = ("none", "ts", "quantize", "rnd", "dent")


def made(**given: Any) -> Any:
    usual = {
        "fit_data": held_out(),
        "recipes": ("sa-mma", "pgd-mma"),
        "defences": AROUND,
        "samples": 12,
        "bootstrap": 10,
    }
    return spec(data(), **{**usual, **given})


@cache
def compared() -> Path:
    with pytest.warns(UserWarning, match="Dent: the model has no BatchNorm2d"):
        run_compare(made(), scratch() / "around", resume=False, listener=Silent())
    return scratch() / "around"


def rows(recipe: str, defence: str, view: str) -> pl.DataFrame:
    return pl.read_parquet(compared() / "samples" / f"{recipe}.{defence}.{view}.*.parquet")


def images(recipe: str, defence: str) -> torch.Tensor:
    (path,) = (compared() / "adversarial").glob(f"{recipe}.{defence}.*.safetensors")
    return load_file(path)["images"]


@pytest.mark.parametrize("recipe", ["sa-mma", "pgd-mma"])
def test_rows_of_grey_levels_are_the_models_answers_to_rounded_images(recipe: str) -> None:
    bare = linear()
    for view, source in (("aware", "quantize"), ("unaware", "none")):
        with torch.no_grad():
            expected = Outputs(bare(Quantize()(images(recipe, source))))
        found = rows(recipe, "quantize", view)
        assert found["confidence_after"].to_list() == pytest.approx(expected.confidence.tolist(), abs=1e-6)
        assert found["prediction_after"].to_list() == expected.labels.tolist()


def test_the_unaware_rows_of_noise_are_fresh_answers_and_repeat_with_the_run(tmp_path: Path) -> None:
    found = rows("sa-mma", "rnd", "unaware")
    with torch.no_grad():
        still = Outputs(linear()(images("sa-mma", "none"))).confidence
    far = (torch.tensor(found["confidence_after"].to_list()) - still).abs()
    assert 0 < far.max() < 0.5
    audit(made(recipes=("sa-mma",), defences=("none", "rnd")), tmp_path / "again")
    again = pl.read_parquet(tmp_path / "again" / "samples" / "sa-mma.rnd.unaware.*.parquet")
    assert again["confidence_after"].to_list() == found["confidence_after"].to_list()


def test_each_has_the_attacker_that_knows_it() -> None:
    chosen = pl.read_parquet(compared() / "adaptive" / "samples" / "*.parquet")
    for defence, further in (("ts", False), ("quantize", True), ("rnd", True), ("dent", True)):
        merit = chosen.filter((pl.col("recipe") == "pgd-mma") & (pl.col("defence") == defence))["merit_surrogate"]
        assert merit.is_null().all() is not further
    assert chosen.filter(pl.col("recipe") == "sa-mma")["merit_surrogate"].is_null().all()


def test_without_batch_norm_dent_is_the_model_itself() -> None:
    for view in ("aware", "unaware"):
        mine, bare = rows("sa-mma", "dent", view), rows("sa-mma", "none", "aware")
        assert mine["confidence_after"].to_list() == pytest.approx(bare["confidence_after"].to_list(), abs=1e-6)


def test_temperatures_are_read_off_the_models_own_features() -> None:
    """Against the same built by hand: domains from the recipes, the layer in front of the last linear one."""
    given = made(model=model("layered"), defences=("none", "md-ts"))
    prepared = prepare(load(given, lambda line: None), None)
    assert isinstance(prepared.defences["md-ts"], ByFeatures)
    bare = layered().eval()
    target = poise.ModuleTarget(bare, num_classes=4)
    rest = sources.load(held_out())
    attacks = {
        name: lambda x, y, recipe=recipe: poise.run_recipe(recipe, target, x, y, ids=rest.ids, eps=given.eps).images
        for name, recipe in (("under", "pgd-uca"), ("over", "pgd-oca"))
    }
    domains = make_domains(bare, "2", rest.images, rest.labels, attacks)
    expected = FeatureDefended(bare, "2", MultiDomainTemperature().fit_domains(list(domains.values())))
    x = sources.load(data()).images
    with torch.no_grad():
        answer = prepared.targets["md-ts"].query(x, torch.arange(len(x))).scores
        assert torch.allclose(answer, expected(x), atol=1e-5)
        ratio = (answer / bare(x)).mean(dim=1)
    assert ratio.max() / ratio.min() > 1.01  # not one temperature for all


def test_without_a_linear_layer_it_is_one_temperature() -> None:
    prepared = prepare(load(made(defences=("none", "ts", "md-ts")), lambda line: None), None)
    assert isinstance(prepared.defences["md-ts"], MultiDomainTemperature)
    assert isinstance(prepared.defences["ts"], TemperatureScaling)
    x = sources.load(data()).images
    one, other = (prepared.targets[name].query(x, torch.arange(len(x))).scores for name in ("ts", "md-ts"))
    assert torch.allclose(one, other, atol=1e-5)


def test_a_model_that_is_no_module_cannot_be_gone_around(tmp_path: Path) -> None:
    address = f"py:{Path(__file__).with_name('toy_endpoint.py')}:endpoint"
    given = made(model=address, defences=("none", "rnd"), recipes=("square",))
    with pytest.raises(InputError, match="RandomNoise goes around a PyTorch module"):
        audit(given, tmp_path / "run")


def test_names_of_both_registries_are_known_and_fit_says_what_needs_none() -> None:
    assert make_spec(defences=("rnd", "ts")).defences == ("none", "rnd", "ts")
    with pytest.raises(InputError, match=r"got 'rndd' \(did you mean rnd"):
        make_spec(defences=("rndd",))
    done = poise_command("defend", "fit", "rnd", "--out", "rnd.safetensors")
    assert done.code == 2
    assert "'rnd' goes around the model and needs no fit" in done.err
