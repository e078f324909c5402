"""Training recipes: what the library brings, changes, a user's own file, and a line for everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poise.errors import InputError
from poise.training import METHODS, UPDATES, training_recipe, training_recipes
from poise.training.methods import AT, CAAT, CCAT, DCA, MMCE, TRADES, TRS, UAT, Copies, Mixup, NoisyPairing, Standard
from poise.training.recipe import from_table
from poise.training.updates import SAM, CommonDescent, Plain

PUBLISHED = {
    "at": AT(eps=8 / 255, step=5 / 255, steps=10),
    "trades": TRADES(eps=8 / 255, step=0.007, steps=10, beta=6),
    "uat-gap": UAT("gap", eps=8 / 255, step=5 / 255, steps=10),
    "uat-smooth": UAT("smooth", eps=8 / 255, step=5 / 255, steps=5, smoothing=0.98),
    "caat": CAAT(eps=0.05, step=5 / 255, steps=10, keep_under=0.05, keep_over=0.8),
    "caat-under": CAAT(eps=8 / 255, step=5 / 255, steps=10, keep_under=0.05, directions="under"),
    "ccat": CCAT(eps=0.03, step=0.005, steps=40, rho=10),
    "ddi-at": Copies(copies=10, eps=0.031, step=0.00797, steps=7),
    "dca": DCA(weight=10),
    "mmce": MMCE(weight=2),
    "mixup": Mixup(alpha=0.2),
    "noisy-logit-pairing": NoisyPairing(clean=0.25, noisy=0.75, weight=1.2, std=8 / 255, clip=True),
    "noisy-logit-pairing-mnist": NoisyPairing(clean=0.3, noisy=0.4, weight=1, std=0.5, clip=False),
    "pni": AT(eps=0.031, step=0.01, steps=7, clean_weight=0.5, after=5),
    "trs": TRS(coeff=2, lamda=2, scale=5),
    "high-temperature": Standard(temperature=20),
}
"""The specification's numbers (R1 to R14, T3, T4)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    assert training_recipe(name).made_method() == PUBLISHED[name]


def test_updates_of_the_recipes() -> None:
    expected = {"sam": SAM(0.05), "ddi-at": CommonDescent(), "ddi-at-unnormalised": CommonDescent(normalise=False)}
    for name, recipe in training_recipes().items():
        assert recipe.made_update() == expected.get(name, Plain())
        assert recipe.name == name
        assert recipe.summary
        assert recipe.paper


def test_every_method_and_update_has_a_recipe() -> None:
    recipes = training_recipes().values()
    assert {recipe.method["name"] for recipe in recipes} == set(METHODS)
    assert {recipe.update["name"] for recipe in recipes} == set(UPDATES)
    assert {recipe.variant for recipe in recipes} == {None, "pni", "denoise", "trs"}


@pytest.mark.parametrize("name", ["at", "trades", "uat-gap", "uat-smooth", "robustaugmix", "standard"])
def test_the_uat_papers_set_up(name: str) -> None:
    """200 epochs, SGD with Nesterov momentum, lr .1, wd 5e-4, cosine, batch 128."""
    recipe = training_recipe(name)
    assert (recipe.epochs, recipe.batch_size, recipe.schedule.name) == (200, 128, "cosine")
    spec = recipe.optimizer
    assert (spec.name, spec.lr, spec.momentum, spec.nesterov, spec.weight_decay) == ("sgd", 0.1, 0.9, True, 5e-4)


# --- changes and files ---


def test_dotted_changes() -> None:
    changes = {"method.steps": 3, "method.eps": "4/255", "optimizer.lr": 0.01, "epochs": 2, "clip_norm": 1.0}
    changed = training_recipe("at", changes | {"update.name": "sam", "update.rho": "1/8", "augment": ["flip"]})
    assert changed.made_method() == AT(eps=4 / 255, step=5 / 255, steps=3)
    assert changed.made_update() == SAM(0.125)
    assert (changed.optimizer.lr, changed.optimizer.momentum) == (0.01, 0.9)
    assert (changed.epochs, changed.clip_norm, changed.augment) == (2, 1.0, ("flip",))
    assert training_recipe("at").made_method() == PUBLISHED["at"]  # the recipe itself is as before
    assert training_recipe("at").epochs == 200


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.5/4", 0.125), ("1/3", 1 / 3)])
def test_fractions(text: str, value: float) -> None:
    assert training_recipe("at", {"method.eps": text}).made_method().eps == value
    assert training_recipe("at", {"schedule.milestones": [text, "1/2"]}).schedule.milestones == (value, 0.5)


OWN = """
epochs = 7
[method]
name = "uat"
goal = "gap"
eps = "2/255"
[schedule]
name = "steps"
milestones = [0.2, "3/4"]
warmup = 0.5
"""


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(OWN, encoding="utf-8")
    recipe = training_recipe(str(file), {"method.steps": 4})
    assert recipe.made_method() == UAT("gap", eps=2 / 255, steps=4)
    assert (recipe.name, recipe.epochs, recipe.batch_size) == ("mine", 7, 128)
    assert (recipe.schedule.milestones, recipe.schedule.warmup) == ((0.2, 0.75), 0.5)
    assert recipe.made_update() == Plain()


def test_files_that_are_none(tmp_path: Path) -> None:
    broken, binary, empty = tmp_path / "broken.toml", tmp_path / "binary.toml", tmp_path / "empty.toml"
    broken.write_text("epochs = = 3", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00")
    empty.write_text("", encoding="utf-8")
    for path, message in (
        (tmp_path / "absent.toml", "absent.toml' must be a readable TOML file, got: "),
        (broken, "broken.toml' must be a readable TOML file, got: "),
        (binary, "binary.toml' must be a readable TOML file, got: "),
        (tmp_path, "must be one of the known names"),  # no .toml: taken for a name
        (empty, "method: field required"),
    ):
        refused(str(path), {}, message)


# --- errors ---


def refused(name: str, changes: dict[str, Any], *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        training_recipe(name, changes)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("att", {}, ["training recipe", "got 'att'", "did you mean at", "known: at, caat"]),
        ("at", {"method.esp": 0.1}, ["'at'", "got 'esp'", "did you mean eps", "clean_weight, eps, norm"]),
        ("at", {"optimizer.rate": 0.1}, ["got 'rate'", "known: lr, momentum, name, nesterov, weight_decay"]),
        ("at", {"schedule.milestone": 0.1}, ["got 'milestone'", "did you mean milestones", "warmup"]),
        ("at", {"epoch": 3}, ["got 'epoch'", "did you mean epochs", "batch_size"]),
        ("sam", {"update.roh": 0.1}, ["'sam'", "got 'roh'", "did you mean rho"]),
        ("at", {"method.name": "att"}, ["method.name", "got 'att'", "known: at, caat"]),
        ("at", {"method.name": 3}, ["method.name", "got '3'"]),
        ("at", {"method.name": ["at"]}, ["method.name", "known: at, caat"]),
        ("at", {"method": {"eps": 0.1}}, ["method must have a name, one of at, caat"]),
        ("at", {"update.name": "sma"}, ["update.name", "did you mean sam", "known: common-descent, plain, sam"]),
        ("at", {"augment": ["flips"]}, ["augment", "did you mean flip", "crop"]),
        ("at", {"method": "at"}, ["method", "dictionary", "got 'at'"]),
        ("at", {"epochs.first": 1}, ["'epochs.first' must name a field, 'epochs' is a value"]),
        ("at", {"method.steps": "many"}, ["steps", "integer", "got 'many'"]),
        ("at", {"method.steps": 2.5}, ["steps", "integer", "got 2.5"]),
        ("at", {"method.eps": "8/0"}, ["eps", "number", "got '8/0'"]),
        ("at", {"method.eps": "eight"}, ["eps", "number", "got 'eight'"]),
        ("at", {"optimizer.nesterov": "perhaps"}, ["optimizer.nesterov", "boolean", "got 'perhaps'"]),
        ("at", {"optimizer.name": "sgdd"}, ["optimizer.name", "'sgd', 'adam' or 'adamw'", "got 'sgdd'"]),
        ("at", {"schedule.name": "step"}, ["schedule.name", "'cosine', 'steps' or 'constant'"]),
        ("at", {"best": "ece"}, ["best", "'accuracy' or 'nll'", "got 'ece'"]),
        ("uat-gap", {"method.goal": "gaps"}, ["goal", "'gap', 'smooth' or 'standard'", "got 'gaps'"]),
        ("at", {"method.eps": 8}, ["eps must be in", "8/255", "got 8"]),
        ("at", {"method.norm": "l1"}, ["norm must be one of l2, linf", "got 'l1'"]),
        ("at", {"method.steps": 0}, ["AT: steps must be at least 1, got 0"]),
        ("sam", {"update.rho": -1}, ["SAM: rho must be a number of at least 0, got -1"]),
        ("at", {"optimizer.lr": 0}, ["optimizer.lr", "greater than 0", "got 0"]),
        ("at", {"optimizer.lr": float("inf")}, ["optimizer.lr", "finite", "got inf"]),
        ("at", {"optimizer.momentum": 1}, ["optimizer.momentum", "less than 1", "got 1"]),
        ("at", {"epochs": 0}, ["epochs", "greater than or equal to 1", "got 0"]),
        ("at", {"batch_size": 0}, ["batch_size", "greater than or equal to 1", "got 0"]),
        ("at", {"clip_norm": 0}, ["clip_norm", "greater than 0", "got 0"]),
        ("at", {"schedule.factor": 0}, ["schedule.factor", "greater than 0", "got 0"]),
        ("at", {"schedule.warmup": float("inf")}, ["schedule.warmup", "finite"]),
        # the papers' epochs, 100 and 150, where shares of the run are meant
        ("at", {"schedule.milestones": [100, 150]}, ["schedule.milestones", "less than 1", "got 100"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name: str, changes: dict[str, Any], parts: list[str]) -> None:
    refused(name, changes, *parts)


def test_a_table_needs_a_method() -> None:
    with pytest.raises(InputError, match="method: field required"):
        from_table({"name": "x", "summary": "", "paper": ""})
