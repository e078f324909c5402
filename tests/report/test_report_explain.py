"""Figures of explanations: what they draw is what the tables hold; damaged folders are one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from safetensors.numpy import save_file

from poise import metrics, report
from poise.errors import RunError
from poise.report.deferral import tables
from poise.report.explain_perturbations import signed
from poise.report.explain_scores import score_groups
from poise.report.threshold_figures import cost_over_threshold

RECIPES, SHOWN, N = ("sa-uca", "pgd-mma"), 3, 50


def write_explanation(run: Path, *, channels: int = 3, side: int = 10, inside: bool = True) -> Path:
    """`explain/` of a run as an audit writes it, from random numbers."""
    home, rng = run / "explain", np.random.default_rng(5)
    home.mkdir(parents=True)
    clean = rng.random((SHOWN, channels, side, side), dtype=np.float32)
    images, rows, similar, points = {"clean": clean}, [], [], []
    for k, recipe in enumerate(RECIPES):
        change = rng.uniform(-0.1, 0.1 + 0.1 * k, clean.shape).astype(np.float32)
        images[f"attacked.{recipe}"] = np.clip(clean + change, 0, 1)
        dw, ssim = metrics.delta_w(clean, images[f"attacked.{recipe}"]), rng.random(SHOWN)
        rows += [(recipe, 10 * i, i, i, i, 0.99, 0.4, float(dw[i]), float(ssim[i])) for i in range(SHOWN)]
        similar += [(recipe, 10 * i, None if i == 4 else 1 - 0.3 * k - i / 500, 0.8, 0.5) for i in range(N)]
        images[f"cam.{recipe}"] = rng.random((SHOWN, side, side), dtype=np.float32)
    images["cam"] = rng.random((SHOWN, side, side), dtype=np.float32)
    for version in ("clean", *RECIPES):
        places = rng.normal(size=(N, 4)).tolist()
        points += [(version, 10 * i, i % 4, (i + (i == 3)) % 4, 0.5, *places[i]) for i in range(N)]
    scores = [
        (d, i, float(p), int(p > 0.5)) for d in ("none", "ts") for i, p in enumerate(np.linspace(0.1, 1, N)[::-1])
    ]
    made = {"pictures": rows, "scores": scores} | ({"cams": similar, "features": points} if inside else {})
    for name, table in made.items():
        pl.DataFrame(table, schema=list(COLUMNS[name]), orient="row").write_parquet(home / f"{name}.parquet")
    kept = images if inside else {name: part for name, part in images.items() if not name.startswith("cam")}
    save_file(kept, home / "pictures.safetensors")
    facts = {
        "layer": "1.layer4", "layer_kind": "convolution", "cam_images": N, "feature_layer": "1.fc", "features": 64,
        "feature_images": N, "variance": [0.4, 0.2], "perplexity": 30.0,
        "separation": {"clean": 0.5, "sa-uca": 0.1, "pgd-mma": None}, "notes": [],
    }  # fmt: skip
    told = facts if inside else {"notes": ["Grad-CAM and features: left out, <they> need a PyTorch module"]}
    (home / "explain.json").write_text(json.dumps(told))
    return run


COLUMNS = report.explain_folder.COLUMNS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_explanation(tmp_path_factory.mktemp("explained") / "run")


@pytest.fixture(scope="module")
def explained(run: Path) -> report.Explanation:
    found = report.read_explanation(run)
    assert found is not None
    return found


def heat_maps(figure: go.Figure) -> list[np.ndarray]:
    return [np.array(trace.z, float) for trace in figure.data if trace.type == "heatmap"]


def told(figure: go.Figure) -> list[str]:
    return [note.text for note in figure.layout.annotations]


def test_a_run_without_explanations_has_none(tmp_path: Path) -> None:
    assert report.read_explanation(tmp_path) is None


def test_perturbations_lie_on_one_scale_with_their_size(explained: report.Explanation) -> None:
    figure = report.perturbation_maps(explained)
    drawn, clean = heat_maps(figure), explained.images["clean"]
    assert len(drawn) == SHOWN * len(RECIPES)
    assert {trace.coloraxis for trace in figure.data if trace.type == "heatmap"} == {"coloraxis"}
    expected = [
        signed(c, a) for name in RECIPES for c, a in zip(clean, explained.images[f"attacked.{name}"], strict=True)
    ]
    for found, wanted in zip(drawn, expected, strict=True):
        assert found == pytest.approx(wanted, abs=6e-4)
    most = max(np.abs(part).max() for part in expected)
    assert figure.layout.coloraxis.cmax == pytest.approx(most, abs=1e-6) == -figure.layout.coloraxis.cmin
    assert "units of the pixel range" in figure.layout.coloraxis.colorbar.title.text
    for row in explained.pictures.iter_rows(named=True):
        assert f"ΔW {row['delta_w']:.3f}<br>SSIM {row['ssim']:.2f}" in told(figure)
    assert figure.layout.title.text.startswith("pgd-mma changes these images most: ΔW ")


def test_the_channel_that_changes_most_is_shown() -> None:
    before = np.zeros((3, 1, 2), np.float32)
    after = np.array([[[0.1, 0.0]], [[-0.3, 0.0]], [[0.2, 0.05]]], np.float32)
    assert signed(before, after).tolist() == [[pytest.approx(-0.3), pytest.approx(0.05)]]


def test_similarity_boxes_are_quantiles(explained: report.Explanation) -> None:
    figure = report.cam_similarity(explained.cams)
    pearson = figure.data[0]
    for k, recipe in enumerate(RECIPES):
        values = explained.cams.filter(pl.col("recipe") == recipe)["pearson"].drop_nulls().to_numpy()
        assert len(values) == N - 1
        drawn = [getattr(pearson, name)[k] for name in ("lowerfence", "q1", "median", "q3", "upperfence")]
        assert drawn == pytest.approx(np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist(), abs=1e-4)
    assert "pgd-mma moves the Grad-CAM maps most" in figure.layout.title.text
    assert [figure.layout[f"xaxis{k}"].title.text for k in ("", "2", "3")] == ["Pearson", "SSIM", "IoU at 0.5"]


def test_similarities_that_are_all_undefined_are_drawn_as_nothing() -> None:
    empty = {name: pl.Series(name, [None, None], dtype=pl.Float64) for name in ("pearson", "ssim", "overlap")}
    figure = report.cam_similarity(pl.DataFrame({"recipe": ["a", "a"], "id": [0, 1], **empty}))
    assert all(not trace.y for trace in figure.data)


def test_maps_stand_under_their_image(explained: report.Explanation) -> None:
    figure = report.cam_maps(explained, "sa-uca")
    drawn = heat_maps(figure)
    assert len(drawn) == 2 * SHOWN
    for k in range(SHOWN):
        assert drawn[2 * k] == pytest.approx(explained.images["cam"][k], abs=6e-4)
        assert drawn[2 * k + 1] == pytest.approx(explained.images["cam.sa-uca"][k], abs=6e-4)
    assert sum(trace.type == "image" for trace in figure.data) == SHOWN
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert "40 % sure<br>r 1 IoU .50" in told(figure)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_features_in_one_frame(explained: report.Explanation, method: str) -> None:
    figure = report.feature_map(
        explained.features, method=method, class_names=["cat", "<dog>"], separation=explained.facts["separation"],
        variance=(0.4, 0.2),
    )  # fmt: skip
    for place, version in enumerate(("clean", *RECIPES)):
        rows = explained.features.filter(pl.col("version") == version)
        axis = f"x{place + 1}" if place else "x"
        drawn = [
            (x, y) for trace in figure.data[2:] if trace.xaxis == axis for x, y in zip(trace.x, trace.y, strict=True)
        ]
        wanted = list(zip(rows[f"{method}_x"].round(5), rows[f"{method}_y"].round(5), strict=True))
        assert np.array(sorted(drawn)) == pytest.approx(np.array(sorted(wanted)), abs=1e-5)
    ranges = {figure.layout[f"xaxis{k}"].range for k in ("", "2", "3")}
    assert len(ranges) == 1, "a place means the same in every panel"
    assert [len(trace.x) for trace in figure.data[2:] if trace.name == "wrong"] == [1, 1, 1]
    assert {trace.marker.symbol for trace in figure.data} == {"circle", "x"}
    assert "sa-uca · s 0.10" in told(figure)
    assert "pgd-mma" in told(figure)
    assert "<b>&lt;dog></b>" in told(figure)
    title = figure.layout.title.text
    if method == "pca":
        assert title == "Two directions that hold 60 % of what differs between all features"
        assert figure.layout.xaxis3.title.text == "component 1 (40 %)"
    else:
        assert title == "sa-uca mixes the classes: their separation (silhouette) is 0.50 before and 0.10 after"


def test_feature_titles_without_separation(explained: report.Explanation) -> None:
    assert report.feature_map(explained.features).layout.title.text == "Features before and after each attack, by t-SNE"
    same = report.feature_map(explained.features, separation={"clean": 0.5, "sa-uca": 0.6})
    assert same.layout.title.text.startswith("No attack mixes the classes")


def test_score_groups_by_hand() -> None:
    """Six images in two groups, by the undefended probability: ids 3, 1, 5 and 4, 2, 0."""
    bare, cold = [0.9, 0.2, 0.8, 0.1, 0.7, 0.3], [0.5, 0.1, 0.6, 0.9, 0.4, 0.2]
    scores = pl.DataFrame(
        {"defence": ["none"] * 6 + ["cs"] * 6, "id": [*range(6)] * 2, "probability": bare + cold, "right": [1, 0] * 6}
    )
    found = score_groups(scores)
    assert found["none"][0] == pytest.approx([0.2, 0.8])
    assert found["cs"][0] == pytest.approx([(0.9 + 0.1 + 0.2) / 3, (0.4 + 0.6 + 0.5) / 3])
    assert found["cs"][1] == pytest.approx([0, 1])
    shuffled = score_groups(
        scores.sample(fraction=1, shuffle=True, seed=1).sort("defence", descending=True, maintain_order=True)
    )
    assert all(np.array_equal(found[name][0], shuffled[name][0]) for name in found)


def test_score_change_draws_the_groups(explained: report.Explanation) -> None:
    figure, groups = report.score_change(explained.scores), score_groups(explained.scores)
    assert len(groups["none"][0]) == N // 3
    assert (np.diff(groups["none"][0]) > 0).all()
    for trace in figure.data:
        name, what = trace.name.split(": ")
        part = groups["none" if name == "no defence" else name][what == "accuracy"]
        assert list(trace.y) == pytest.approx(part, abs=1e-5)
    alone = report.score_change(explained.scores.filter(pl.col("defence") == "none"))
    assert alone.layout.title.text.endswith("no defence was tried")


def test_every_figure_has_a_text_alternative_and_labels(explained: report.Explanation) -> None:
    made = [
        report.perturbation_maps(explained),
        report.cam_similarity(explained.cams),
        report.cam_maps(explained, "sa-uca"),
        report.feature_map(explained.features),
        report.score_change(explained.scores),
    ]
    for figure in made:
        assert len(figure.layout.meta["alt"]) > 30
        assert len(figure.layout.title.text) > 20
        assert figure.layout.height > 100


# ---- the page ----


@pytest.fixture(scope="module")
def page_run(grey_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "run"
    shutil.copytree(grey_run, out)
    return write_explanation(out, channels=1)


def test_the_page_has_the_section_only_when_asked(page_run: Path, grey_run: Path) -> None:
    html = report.write(page_run).read_text(encoding="utf-8")
    assert 'id="explain"' in html
    assert "Grad-CAM is read at layer “1.layer4”, of 50 images." in html
    assert html.count('data-base="explain-') == 7
    assert "<td>0.50</td>" in html
    assert 'id="explain"' not in (grey_run / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_black_box_tells_what_is_missing(grey_run: Path, tmp_path: Path) -> None:
    shutil.copytree(grey_run, tmp_path / "run")
    write_explanation(tmp_path / "run", channels=1, inside=False)
    html = report.write(tmp_path / "run").read_text(encoding="utf-8")
    assert "Grad-CAM and features: left out, &lt;they&gt; need a PyTorch module." in html
    assert html.count('data-base="explain-') == 2


def damage(run: Path, name: str, how: str) -> None:
    path = run / "explain" / name
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:20])
    else:
        pl.read_parquet(path).drop(how).write_parquet(path)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("explain.json", "cut"), ("pictures.safetensors", "cut"), ("pictures.safetensors", "gone"),
        ("cams.parquet", "cut"), ("pictures.parquet", "gone"), ("scores.parquet", "gone"),
        ("features.parquet", "tsne_x"), ("pictures.parquet", "ssim"),
    ],
)  # fmt: skip
def test_damaged_folders_are_one_line(run: Path, tmp_path: Path, name: str, how: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run", name, how)
    with pytest.raises(RunError, match=r"^report: [^\n]+$"):
        report.read_explanation(tmp_path / "run")


# ---- thresholds ----


def test_costs_are_drawn_over_the_threshold() -> None:
    rng = np.random.default_rng(2)
    clean = report.Answers(rng.random(40), rng.integers(0, 2, 40))
    attacked = {"sa-mma": report.Answers(rng.random(40), rng.integers(0, 2, 40))}
    costs, labels = metrics.Costs(5, 1, classes={1: metrics.Costs(9, 2)}), rng.integers(0, 3, 40)
    figure = cost_over_threshold(clean, attacked, costs, labels=labels, threshold=0.8)
    grid = set(np.linspace(0, 1, 201).round(5).tolist())
    for trace, part in zip(figure.data, (clean, attacked["sa-mma"]), strict=False):
        drawn = {at: cost for at, cost in zip(trace.x, trace.y, strict=True) if at in grid}
        assert len(drawn) == 201
        for at, cost in drawn.items():
            wanted = metrics.expected_cost(part.confidence, part.correct, at, costs, labels)
            assert cost == pytest.approx(1000 * wanted, abs=1e-3)
        assert trace.line.shape == "hv"
    star = figure.data[2]
    cases = {
        "clean": (clean.confidence, clean.correct),
        "sa-mma": (attacked["sa-mma"].confidence, attacked["sa-mma"].correct),
    }
    best = metrics.worst_case_threshold(cases, costs, labels)
    assert (star.x[0], star.y[0]) == pytest.approx((best.threshold, 1000 * best.cost), abs=1e-4)
    assert figure.layout.yaxis.title.text == "expected cost per 1,000 cases"


def test_a_summary_without_deferral_has_no_table() -> None:
    assert tables({"threshold": 0.9}) == []


# ---- traces ----


def test_crossings_by_hand() -> None:
    """Image 0 crosses twice; image 1 never; of two points in one iteration the one of lower loss counts."""
    rows = {
        "id": [0, 0, 0, 1, 1, 1], "iteration": [0, 1, 2, 0, 1, 1], "loss": [0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "margin": [1.0, -1.0, 1.0, 1.0, -1.0, 1.0],
    }  # fmt: skip
    assert report.crossings(pl.DataFrame(rows)) == 1.0
    none = pl.DataFrame(rows).with_columns(pl.lit(None, pl.Float64).alias("margin"))
    assert report.crossings(none) is None
