"""Figures of defences and of black-box attacks, for tools/render.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poise.report.markdown_table import markdown_table

RESULTS = Path(__file__).resolve().parent.parent / "results"
HEADLINES = ("ece", "ks", "nll", "brier")


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _ordered(rows: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def records(metric: str) -> str:
    """One metric of every post-hoc defence on the records, measured on the half that was not fitted on."""
    found = _read("records.json")["rows"]
    names, by = _ordered(found, "record"), {(row["record"], row["defence"]): row for row in found}
    body = [
        [f"`{defence}`", *(f"{by[name, defence]['after'][metric]['value']:.3f}" for name in names)]
        for defence in _ordered(found, "defence")
    ]
    return markdown_table([metric.upper() if len(metric) < 4 else metric, *names], body)


def query_attacks(attacks: tuple[str, ...], defences: tuple[str, ...]) -> str:
    """Accuracy left after 100 and 1,000 queries."""
    by = {(row["attack"], row["defence"]): row for row in _read("query_attacks.json")}
    columns = [(defence, queries) for defence in defences for queries in ("100", "1000")]
    body = [
        [f"`{attack}`", *(f"{100 * by[attack, defence]['left'][queries]:.1f}" for defence, queries in columns)]
        for attack in attacks
    ]
    head = ["accuracy left, %", *(f"{defence}, {int(queries):,}" for defence, queries in columns)]
    return markdown_table(head, body)


def asked_again(attacks: tuple[str, ...], defences: tuple[str, ...]) -> str:
    """Accuracy on the returned images, asked again."""
    by = {(row["attack"], row["defence"]): row for row in _read("query_attacks.json")}
    body = [
        ["clean", *(f"{100 * by[attacks[0], defence]['clean']:.1f}" for defence in defences)],
        *(
            [f"`{attack}`", *(f"{100 * by[attack, defence]['again']:.1f}" for defence in defences)]
            for attack in attacks
        ),
    ]
    return markdown_table(["accuracy on the returned images, %", *defences], body)


def comparison(name: str, recipe: str) -> str:
    """Clean and attacked ECE of every defence, the attacker who does not know it beside the one who does."""
    held = _read(f"compare/{name}.json")["defences"]

    def value(figure: dict[str, Any]) -> str:
        return f"{figure['value']:.3f} [{figure['low']:.2f}, {figure['high']:.2f}]"

    def worse(defence: str) -> float:
        return float(held[defence]["attacked"][recipe]["headline"]["ece"]["value"])

    body = []
    for defence in sorted(held, key=worse):
        at, attacked = held[defence], held[defence]["attacked"][recipe]
        body.append(
            [
                f"`{defence}`", f"{100 * at['clean']['accuracy']['value']:.1f}", value(at["clean"]["ece"]),
                value(attacked["unaware"]["ece"]), value(attacked["adaptive"]["ece"]),
                f"**{worse(defence):.3f}**", f"{100 * attacked['adaptive']['accuracy']['value']:.1f}",
                f"{at['ms_per_image']:.4f}",
            ]
        )  # fmt: skip
    head = ["defence", "accuracy, %", "ECE clean", "unaware", "adaptive", "worse", "accuracy left, %", "ms per image"]
    return markdown_table(head, body)


def comparison_about(name: str) -> str:
    """What was compared on what, in a sentence."""
    found = _read(f"compare/{name}.json")
    spec = found["spec"]
    return (
        f"{found['samples']} CIFAR-10 test images, defences fitted on {found['fit_samples']} others; "
        f"{spec['norm']} eps {spec['eps']:.3g}, {spec['budget']} queries per image and run, 95 % intervals.\n"
    )


def exact_aaa() -> str:
    """AAA's exact solution against the published procedure."""
    found = _read("aaa.json")
    body = [
        [
            f"{row['spread']:g}", f"{row['temperature']:g}", f"{row['published_seconds'] / row['exact_seconds']:.0f}×",
            f"{row['exact_objective']:.4f}", f"{row['adam_objective']:.4f}", f"{100 * row['feasible']:.0f} %",
            f"{row['worse_feasible']}",
        ]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["spread of the logits", "T", "times faster", "mean Eq. 6, exact", "mean Eq. 6, 100 Adam steps"]
    share = f"It adds {100 * found['resnet20_share']:.2f} % to a ResNet-20 at batch 256.\n"
    return markdown_table([*head, "rows that can reach 0", "of these higher than Adam's"], body, "r") + "\n" + share


def square_peers() -> str:
    """Square beside the same attack of other libraries."""
    found = _read("square_peers.json")
    by, budgets = {(row["attack"], row["budget"]): row for row in found}, sorted({row["budget"] for row in found})
    body = [
        [attack, *(f"{100 * by[attack, budget]['left']:.1f}" for budget in budgets)]
        for attack in _ordered(found, "attack")
    ]
    return markdown_table(["Square of", *(f"left after {budget:,}, %" for budget in budgets)], body)


def query_speed() -> str:
    """Query attacks against bare passes, and against one image at a time."""
    found = _read("query_speed.json")
    body = [[f"`{row['attack']}`", f"{100 * row['share']:.1f} %", f"{row['faster']:.1f}×"] for row in found["rows"]]
    table = markdown_table(["attack", "share of the forward rate", "faster than one by one"], body)
    return table + f"\nART's SimBA takes {found['art_simba']:.1f} times as long per query as ours.\n"


def targets() -> str:
    """One attack through the module, a file and an endpoint."""
    body = [
        [
            row["target"], str(row["labels_differ"]), str(row["queries_differ"]), str(row["images_differ"]),
            f"{max(row['confidence_before'], row['confidence_after']):.0e}" if number else "–",
            f"{100 * row['busy']:.0f} %" if "busy" in row else "–",
        ]
        for number, row in enumerate(_read("targets.json"))
    ]  # fmt: skip
    head = ["through", "labels differ", "query counts differ", "images differ", "largest difference of a confidence"]
    return markdown_table([*head, "served model busy"], body)


SCORES, DEFENDED = ("square", "bi-square", "op-square"), ("none", "rnd", "aaa-linear", "aaa-sine")
BLACK_BOX = ("square", "signhunter", "simba", "bandits", "nes", "spsa")

FIGURES: dict[str, Callable[[], str]] = {
    "records-ece": lambda: records("ece"),
    "records-ks": lambda: records("ks"),
    "query-defences": lambda: query_attacks(SCORES, DEFENDED),
    "query-defences-again": lambda: asked_again((*SCORES, "apgd", "apgd-bare"), DEFENDED),
    "black-box": lambda: query_attacks(BLACK_BOX, ("none",)),
    "square-peers": square_peers,
    "query-speed": query_speed,
    "targets": targets,
    "aaa-exact": exact_aaa,
    **{
        f"compare-{name}-{recipe}": lambda name=name, recipe=recipe: comparison(name, recipe)  # type: ignore[misc]
        for name in ("resnet20", "cnn-a")
        for recipe in ("sa-mma", "standard")
    },
    "compare-resnet20-about": lambda: comparison_about("resnet20"),
    "compare-cnn-a-about": lambda: comparison_about("cnn-a"),
}
