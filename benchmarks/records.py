"""Every post-hoc defence on the answers of real networks: fitted on one half, measured on the other.

    python benchmarks/records.py [--records FOLDER] [--seeds 5] [--json FILE]

The records are softmax outputs of four networks on the 10,000 test images of CIFAR-10 and CIFAR-100. For every seed
the two halves are drawn anew; figures are means over the seeds, with the lowest and the highest of them.
Exit code 1 where temperature scaling or splines do not lower the ECE of a network that has at least .02 to lower, or a
defence that promises labels moves one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise import defenses
from poise.defenses.base import PoiseWarning
from poise.experiments.defend_fit import Fitted, fit, from_logits

RECORDS = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "records"
METRICS = ("accuracy", "ece", "ks", "nll", "brier")
HELPS, WORTH = ("ts", "splines"), 0.02


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, lowest and highest."""
    return {"value": statistics.fmean(values), "low": min(values), "high": max(values)}


def row(record: str, name: str, runs: list[Fitted]) -> dict[str, Any]:
    reports = [run.report for run in runs]
    figures = {
        when: {metric: spread([report[when][metric]["value"] for report in reports]) for metric in METRICS}
        for when in ("before", "after")
    }
    about = {"record": record, "defence": name, "keeps_label": reports[0]["keeps_label"]}
    counts = {"n": reports[0]["measured_on"]["n"], "labels_changed": sum(r["labels_changed"] for r in reports)}
    return about | counts | figures


def failures(rows: list[dict[str, Any]]) -> list[str]:
    found = []
    for at in rows:
        before, after = at["before"]["ece"]["value"], at["after"]["ece"]["value"]
        if at["defence"] in HELPS and before >= WORTH and after >= before:
            found.append(f"{at['record']}: {at['defence']} must lower the ECE {before:.3f}, got {after:.3f}")
        if at["keeps_label"] and at["labels_changed"]:
            found.append(f"{at['record']}: {at['defence']} must keep labels, moved {at['labels_changed']}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for path in sorted(given.records.glob("*.npz")):
        parts = [from_logits(path, seed) for seed in range(given.seeds)]
        for name in defenses.DEFENSES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PoiseWarning)  # a fit that ends at a bound says so in its figures
                rows.append(row(path.stem, name, [fit(name, *part, bootstrap=1) for part in parts]))
            at = rows[-1]
            told = ", ".join(
                f"{metric} {at['before'][metric]['value']:.3f} -> {at['after'][metric]['value']:.3f}"
                for metric in METRICS
            )
            print(f"{path.stem:26} {name:10} {told}")
    if given.json is not None:
        given.json.write_text(json.dumps({"seeds": given.seeds, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    wrong = failures(rows)
    print("\n".join(wrong) or "everything holds")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
