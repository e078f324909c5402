"""The resolved spec: what it refuses, what it fills in, and that its file gives it back to the last bit."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise import recipes
from poise.errors import InputError, RunError
from poise.experiments import AuditSpec, Costs
from poise.experiments.audit_spec import DEFAULT_DEFENCES, DEFAULT_RECIPES, differences, make_spec, read_spec

AWKWARD = "\"\\'\n\r\t\x00\x1f\x7f\x85 é→😀#[]=?&"
texts = st.text(st.characters(codec="utf-8")) | st.text(AWKWARD)
finite = {"allow_nan": False, "allow_infinity": False}

specs = st.builds(
    make_spec,
    model=texts,
    data=texts,
    fit_data=st.none() | texts,
    recipes=st.lists(st.sampled_from(sorted(recipes())), min_size=1, unique=True).map(tuple),
    defences=st.lists(st.sampled_from(["none", "ts", "cs"]), unique=True).map(tuple),
    eps=st.floats(1e-300, 1.0),
    norm=st.sampled_from(["linf", "l2"]),
    budget=st.integers(1, 2**62),
    steps=st.none() | st.integers(1, 2**62),
    samples=st.none() | st.integers(1, 2**62),
    threshold=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    device=texts,
    batch_size=st.integers(1, 2**62),
    bootstrap=st.integers(1, 2**62),
    costs=st.none()
    | st.builds(
        Costs,
        wrong_accepted=st.floats(0, **finite),
        deferred=st.floats(0, **finite),
        right_accepted=st.floats(**finite),
    ),
)


@given(made=specs, recorded=st.dictionaries(st.sampled_from(["data", "weights", "fit_data"]), texts))
def test_toml_gives_the_spec_back(tmp_path_factory, made: AuditSpec, recorded: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "audit.toml"
    path.write_text(made.to_toml(recorded), encoding="utf-8")
    assert read_spec(path) == (made, recorded)


@pytest.mark.parametrize("text", [*AWKWARD, 'C:\\new\\"x".npz', "two\nlines", 'model = "x"', "[costs]", "'''", '"""'])
def test_toml_of_awkward_texts(tmp_path: Path, text: str) -> None:
    made = make_spec(model=text, data=text, device=text)
    (tmp_path / "audit.toml").write_text(made.to_toml({"data": text}), encoding="utf-8")
    assert read_spec(tmp_path / "audit.toml") == (made, {"data": text})


def test_a_writer_that_only_quotes_would_be_noticed() -> None:
    """The broken twin: texts between quotation marks as they are."""
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(f'model = "{AWKWARD}"')


def test_defaults() -> None:
    made = make_spec()
    assert made.recipes == DEFAULT_RECIPES
    assert made.defences == DEFAULT_DEFENCES
    assert (made.eps, make_spec(norm="l2").eps) == (0.2, 1.0)
    assert (make_spec(data="npz:x").eps, make_spec(data="npz:x", norm="l2").eps) == (8 / 255, 0.5)
    assert make_spec(data="builtin:digits?split=val").eps == 0.2


def test_the_undefended_model_is_always_there_and_first() -> None:
    assert make_spec(defences=("cs",)).defences == ("none", "cs")
    assert make_spec(defences=("ts", "none", "cs")).defences == ("none", "ts", "cs")
    assert make_spec(defences=()).defences == ("none",)


@pytest.mark.parametrize(
    ("given_value", "told"),
    [
        ({"recipes": ("sa-mm",)}, r"recipe: must be one of the known names, got 'sa-mm' \(did you mean sa-mma"),
        ({"recipes": ()}, "recipes: must be at least one name, each once, got none"),
        ({"recipes": ("pgd", "pgd")}, "recipes: must be at least one name, each once, got pgd, pgd"),
        ({"recipes": "pgd"}, "recipes: input should be a valid tuple, got 'pgd'"),
        ({"defences": ("tss",)}, r"defense: must be one of the known names, got 'tss' \(did you mean ts"),
        ({"defences": ("ts", "ts")}, "defences: must be at least one name, each once"),
        ({"norm": "l1"}, "norm must be one of l2, linf, got 'l1'"),
        ({"eps": 8}, r"Linf: eps must be in \[?\(?0, 1\]?.*got 8.*did you mean 8/255"),
        ({"eps": 0.1, "norm": ["l2"]}, "norm: input should be a valid string"),
        ({"norm": ["l2"]}, "norm: input should be a valid string"),
        ({"eps": float("nan")}, "eps must be"),
        ({"eps": "big"}, "eps: input should be a valid number, .*got 'big'"),
        ({"budget": 0}, "budget: input should be greater than or equal to 1, got 0"),
        ({"budget": 1.5}, "budget: input should be a valid integer.*got 1.5"),
        ({"steps": 0}, "steps: .* got 0"),
        ({"samples": 0}, "samples: .* got 0"),
        ({"threshold": 1.5}, "threshold: input should be less than or equal to 1, got 1.5"),
        ({"threshold": float("nan")}, "threshold: .*got nan"),
        ({"seed": -1}, "seed: .* got -1"),
        ({"seed": 2**63}, "seed: .*got 9223372036854775808"),
        ({"batch_size": 0}, "batch_size: .* got 0"),
        ({"bootstrap": 0}, "bootstrap: .* got 0"),
        ({"costs": {"wrong_accepted": 1.0}}, "costs.deferred: field required"),
        ({"costs": {"wrong_accepted": -1, "deferred": 1}}, "costs.wrong_accepted: .*got -1"),
        ({"costs": {"wrong_accepted": float("inf"), "deferred": 1}}, "costs.wrong_accepted: .*finite.*got inf"),
        ({"costs": {"wrong_accepted": 1, "deferred": float("nan")}}, "costs.deferred: .*got nan"),
        ({"buget": 3}, "buget: extra inputs are not permitted, got 3"),
        ({"model": "npz:\udcff"}, r"names must be UTF-8 text, .*got 'npz:\\udcff'"),
    ],
)
def test_what_a_spec_refuses(given_value, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        make_spec(**given_value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"model = ", b"\xff\xfe", b"recipes = 'pgd'", b"model = 3", b"surprise = 1"])
def test_a_damaged_spec_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "audit.toml").write_bytes(content)
    with pytest.raises((InputError, RunError)) as caught:
        read_spec(tmp_path / "audit.toml")
    assert str(caught.value)


def test_differences_name_the_fields() -> None:
    assert differences(make_spec(), make_spec()) == []
    assert differences(make_spec(seed=1), make_spec(seed=2, budget=3)) == [
        "budget: 1000 there, 3 given", "seed: 1 there, 2 given"
    ]  # fmt: skip


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_spec().budget = 3
