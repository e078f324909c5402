"""Makes the project's own entries in leaderboard/ anew: one audit per network with the standard attack, then its files.

    python tools/leaderboard.py [NAME ...] [--samples 100] [--budget 400] [--device cpu] [--keep]

NAME is a key of NETWORKS. Without names, all of them: about half an hour on one core, most of it the three deep
networks. Run it again when the standard attack has changed. The CIFAR-10 ones need the files named in tools/results.py.
Then `make figures` renders the table in docs/leaderboard.md.
"""

from __future__ import annotations

import argparse
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs") / "leaderboard"
ENTRIES = ROOT / "leaderboard"
SHARED = Path("../shared/data")
DEFENCES = "none,ts,cs,aaa-linear"
AUTHOR = "poise"


@dataclass(frozen=True)
class Network:
    """A network of the leaderboard.

    Args:
        shown: its name there. address: for poise, without its weights. weights: file; None trains it at first use.
        url, note: where it comes from, how it was trained.
    """

    shown: str
    address: str
    weights: str | None = None
    url: str | None = None
    note: str | None = None


RESNETS = "https://github.com/akamaster/pytorch_resnet_cifar10"
CROWN = "https://github.com/Verified-Intelligence/alpha-beta-CROWN"
NETWORKS = {
    "digits": Network("Small CNN", "builtin:digits", note="Trained without attacks, at first use."),
    "cnn-a-adv": Network("CNN-A adv", "builtin:cnn-a-cifar10", "cnn_a_adv", CROWN, "Adversarially trained."),
    "cnn-a-mix": Network("CNN-A mix", "builtin:cnn-a-cifar10", "cnn_a_mix", CROWN, "Mixed training."),
    "resnet2b-adv": Network("ResNet-2B adv", "builtin:resnet2b-cifar10", "resnet2b_adv", CROWN, "No batch norm."),
    "resnet20": Network("ResNet-20", "builtin:resnet20-cifar10", "resnet20", RESNETS, "Trained without attacks."),
    "resnet32": Network("ResNet-32", "builtin:resnet32-cifar10", "resnet32", RESNETS, "Trained without attacks."),
    "resnet56": Network("ResNet-56", "builtin:resnet56-cifar10", "resnet56", RESNETS, "Trained without attacks."),
}


def audit(key: str, options: argparse.Namespace, *, keep: bool) -> Path:
    """The run folder of a network's audit; a finished one is taken as it is where `keep` says so."""
    network, run = NETWORKS[key], RUNS / key
    if keep and (ROOT / run / "summary.json").exists():
        return run
    shutil.rmtree(ROOT / run, ignore_errors=True)
    words = ["--model", network.address, "--data", network.address]
    if network.weights is not None:
        held_out = runpy.run_path(str(ROOT / "tools" / "results.py"))["_held_out"]()
        words[1] += f"?weights={SHARED}/checkpoints/cifar10_{network.weights}.safetensors"
        words[3] = f"npz:{SHARED}/cifar10_test_lossless_subset.npz"
        words += ["--fit-data", f"npz:{held_out}", "--samples", str(options.samples), "--eps", "8/255"]
        words += ["--budget", str(options.budget)]
    words += ["--recipes", "standard", "--defenses", DEFENCES, "--device", options.device, "--out", str(run), "--quiet"]
    subprocess.run([Path(sys.executable).parent / "poise", "audit", *words], cwd=ROOT, check=True)
    return run


def enter(key: str, run: Path) -> None:
    """Writes the entries of a finished audit, in the place of those that were there."""
    from poise.experiments.leaderboard import entries_from, file_name, write_entries
    from poise.report import read_summary

    network = NETWORKS[key]
    found = entries_from(
        read_summary(ROOT / run), name=network.shown, author=AUTHOR, url=network.url, note=network.note
    )
    for entry in found:  # those of other images stand in the way
        (ENTRIES / file_name(entry)).unlink(missing_ok=True)
    for path in write_entries(ENTRIES, found):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--samples", type=int, default=100, help="images, from the first; of the 300 there are")
    parser.add_argument("--budget", type=int, default=400, help="queries per image")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", action="store_true", help="take finished audits in runs/leaderboard as they are")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in NETWORKS]:
        parser.error(f"NAME must be one of {', '.join(NETWORKS)}, got {unknown[0]}")
    for name in given.names or NETWORKS:
        enter(name, audit(name, given, keep=given.keep))
