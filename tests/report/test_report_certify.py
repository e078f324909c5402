"""The certificate's chart and page: what is drawn, in words and lines that need no colour, in one file."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from poise.report.certify_figures import about, certified_confidence, head, markdown, notes, page, table_rows

RADII, LOW, HIGH = [0.0, 0.25, 0.5], [0.8, 0.5, 0.2], [0.85, 0.93, 0.98]
ATTACKED = ([0.0, 0.25, 0.5], [0.82, 0.7, 0.5], [0.82, 0.88, 0.92])


def summary(measure: str = "pred_score", *, attacked: bool = True) -> dict:
    def figure(value: float | None) -> dict:
        return {"value": value, "low": value, "high": value}

    rows = []
    for place, radius in enumerate(RADII):
        shown = {
            "lower": LOW[place], "upper": HIGH[place], "naive_lower": LOW[place] - 0.05,
            "lower_abstentions_zero": LOW[place] - 0.1, "lower_without_abstentions": LOW[place] + 0.1,
            "upper_abstentions_zero": 0.7, "upper_without_abstentions": 0.99, "certified_accuracy": 0.8 - place / 5,
            "brier_certified_images": 0.04, "brier_all_images": 0.3, "ece_bound_certified_images": 0.2,
            "ece_bound_all_images": 0.5, "ece_found_certified_images": None,
        }  # fmt: skip
        if attacked and radius:
            shown |= {"attacked_down": ATTACKED[1][place], "attacked_up": ATTACKED[2][place]}
        rows.append({"radius": radius, "metrics": {name: figure(value) for name, value in shown.items()}})
    return {
        "target": {"model": "builtin:digits?a=b", "num_classes": 10}, "data": {"name": "some & <b>data</b>"},
        "images": 20, "command": "poise certify --model 'a<b'", "rows": rows, "judged_with": 1000 if attacked else None,
        "spec": {"measure": measure, "sigma": 0.25, "n": 10_000, "alpha": 0.001, "attack_steps": 20,
                 "attack_draws": 16},
        "smoothed": {"confidence": figure(0.82), "accuracy": figure(0.9), "abstained": figure(0.05)},
    }  # fmt: skip


def test_what_is_proved_and_what_was_seen_are_on_one_chart() -> None:
    figure = certified_confidence(RADII, LOW, HIGH, attacked=ATTACKED, naive=[0.7, 0.4, 0.1])
    by = {trace.name: trace for trace in figure.data}
    assert list(by["certified, at least"].y) == LOW
    assert list(by["certified, at most"].y) == HIGH
    assert list(by["attacks down"].y) == ATTACKED[1]
    assert list(by["attacks up"].y) == ATTACKED[2]
    assert by["certified, at least"].fill == "tonexty"
    assert figure.data[0].name == "certified, at most", "the band is filled up to the line before it"
    assert figure.layout.xaxis.title.text == "l2 radius of the attack (pixel units, images in [0, 1])"
    assert figure.layout.yaxis.title.text == "mean smoothed confidence"
    assert "radius 0.25: 50 % to 93 %" in figure.layout.meta["alt"]
    assert "Attacks: radius 0: 82 % to 82 %" in figure.layout.meta["alt"]


def test_lines_are_told_apart_without_colour() -> None:
    figure = certified_confidence(RADII, LOW, HIGH, attacked=ATTACKED, naive=[0.7, 0.4, 0.1])
    looks = {(trace.line.dash, trace.marker.symbol, trace.mode) for trace in figure.data}
    assert len(looks) == len(figure.data) == 5


@pytest.mark.parametrize(
    ("low", "attacked", "title"),
    [
        (LOW, ATTACKED, "At radius 0.25 a mean confidence of at least 50 % is proved, attacks leave 70 %"),
        (LOW, None, "At radius 0.25 a mean confidence of at least 50 % is proved"),
        ([0.8, 0.1, 0.0], ATTACKED, "At radius 0.25 a mean confidence of at least 10 % is proved, attacks leave 70 %"),
    ],
)
def test_the_title_says_both(low: list[float], attacked: tuple | None, title: str) -> None:
    assert certified_confidence(RADII, low, HIGH, attacked=attacked).layout.title.text == title


def test_one_radius_alone_and_a_negative_margin() -> None:
    assert certified_confidence([0.0], [0.8], [0.9]).layout.title.text.startswith("At radius 0 a mean")
    figure = certified_confidence(RADII, np.array([0.5, -0.2, -0.8]), HIGH, measure="margin")
    assert figure.layout.yaxis.title.text == "mean smoothed margin"
    assert figure.layout.yaxis.range[0] < -0.8


def test_the_table() -> None:
    rows = table_rows(summary())
    assert len(rows) == 3
    assert all(len(cells) == len(head(summary())) for cells in rows)
    assert rows[1] == ["0.25", "40 % / 60 %", "70 % / 99 %", "60 %", "0.040 / 0.30", "0.20 / 0.50", "–", "70 % / 88 %"]
    assert table_rows(summary(attacked=False))[1][-1] == "– / –"
    assert table_rows(summary("margin"))[1][1] == "0.40 / 0.60"


def test_words() -> None:
    assert "its mean confidence is 82 %, it abstains on 5 %" in about(summary())
    assert "its mean margin is 0.82" in about(summary("margin"))
    assert notes(summary())[-1].endswith("judged with 1,000 fresh draws; none got outside the bounds.")
    assert len(notes(summary(attacked=False))) == 3
    broken = copy.deepcopy(summary())
    broken["rows"][1]["attacks_outside_the_bounds"] = 2
    assert notes(broken)[-1].endswith("2 results outside the bounds.")
    text = markdown(summary())
    assert text.startswith("# Certificate of builtin:digits\n")
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 5


def test_the_page_is_one_file_that_loads_nothing() -> None:
    html = page(summary())
    before = html.split("<script>", 1)[0]
    assert "some &amp; &lt;b&gt;data" in before
    assert not re.search(r"""(src|href)=["']""", before)
    assert "default-src 'none'" in before
    assert html.count("<script") == 3
    assert "a&lt;b" in before
