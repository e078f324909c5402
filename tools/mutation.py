"""Mutation check: how many of mutmut's mutants of the central code do the tests find?

    pip install 'mutmut>=3.8'                               # where the tests run; no extra of poise needs it
    python tools/mutation.py                                # every area, 100 mutants of each
    python tools/mutation.py --areas driver --sample 400    # more of one; what results/mutation.json holds is kept
    python tools/mutation.py --again                        # those that survived, after tests were added
    python tools/mutation.py --judge NAME 'equivalent: …'   # what a reader found about a survivor

mutmut makes the mutants: of every function and method without a decorator other than staticmethod and classmethod;
not of the body of a class or module, annotations, docstrings, or calls of len and isinstance. The sample of an area is
drawn by hashes of the seed and the mutant's name, so it is the same on every machine, a larger one holds the smaller,
and a change of one function draws the mutants of no other anew. The tests run in a copy of the checkout by
tools/mutation_runner.py: those of the area that call the mutated function. Results are kept after every mutant; to go
on after an interruption, give the same command. Exit code 0 where every area has the score that is required.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from check_dist import ROOT, tree
from mutation_figures import Score, wilson

REQUIRED = 0.85
"""The least share of an area's sampled mutants that the tests must kill."""


@dataclass(frozen=True)
class Area:
    """Code (files or folders), the tests that are there for it, and pytest's -k."""

    code: tuple[str, ...]
    tests: tuple[str, ...]
    only: str = ""


POSTHOC = (
    "aaa", "aaa_adam", "aaa_promises", "compression", "defense_base", "defense_checks", "histogram", "isotonic",
    "multi_domain", "platt", "remap", "scaling", "splines", "temperature",
)  # fmt: skip

AREAS = {
    "objectives": Area(("src/poise/objectives",), ("tests/objectives",)),
    "constraints": Area(("src/poise/constraints",), ("tests/constraints",)),
    "driver": Area(
        ("src/poise/searches/driver.py", "src/poise/searches/base.py"),
        (
            "tests/searches/test_driver.py", "tests/searches/test_check_search.py", "tests/test_attack.py",
            "tests/test_attack_trace.py",
        ),
    ),
    "metrics": Area(("src/poise/metrics",), ("tests/metrics",), "not torchmetrics"),
    "posthoc": Area(
        ("src/poise/defenses/posthoc",),
        tuple(f"tests/defenses/test_{name}.py" for name in POSTHOC),
        "not onnx and not export",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one file. Its name is mutmut's; what it changes is a libcst node."""

    name: str
    file: str
    change: Any


@dataclass(frozen=True)
class Source:
    """A file, its libcst module and all its mutants."""

    file: str
    module: Any
    mutants: list[Mutant]


def sources(area: Area) -> Iterator[Source]:
    """The files of an area with what mutmut would change in them, in mutmut's order."""
    from mutmut.mutation import file_mutation as mutmut

    for place in area.code:
        for path in sorted((ROOT / place).rglob("*.py")) if (ROOT / place).is_dir() else [ROOT / place]:
            file = path.relative_to(ROOT).as_posix()
            module, changes, *_ = mutmut.create_mutations(file, path.read_text(encoding="utf-8"))
            grouped = mutmut.group_by_top_level_node(changes)
            dotted = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
            mutants = [
                Mutant(f"{dotted}.{mutmut.mangle_function_name(name=name, class_name=owner)}__mutmut_{n}", file, change)
                for owner, name, function in _functions(module)
                for n, change in enumerate(grouped.get(function, ()), 1)
            ]
            yield Source(file, module, mutants)


def _functions(module: Any) -> Iterator[tuple[str | None, str, Any]]:
    """(class or None, name, node) of the functions that mutmut mutates."""
    import libcst

    for node in module.body:
        if isinstance(node, libcst.FunctionDef):
            yield None, node.name.value, node
        elif isinstance(node, libcst.ClassDef) and isinstance(node.body, libcst.IndentedBlock):
            methods = (at for at in node.body.body if isinstance(at, libcst.FunctionDef))
            yield from ((node.name.value, method.name.value, method) for method in methods)


def drawn(names: list[str], seed: int, sample: int) -> list[str]:
    """The names with the smallest hashes: a random sample that the seed and the names alone decide.

    >>> drawn(["a", "b", "c", "d"], 0, 4)[:2] == drawn(["d", "c", "b", "a"], 0, 2)
    True
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())[:sample]


def difference(module: Any, change: Any) -> tuple[int, str]:
    """The first line that a mutant changes, and the lines taken and put."""
    from mutmut.mutation.file_mutation import deep_replace

    after = deep_replace(module, change.original_node, change.mutated_node).code.splitlines()
    lines = list(difflib.unified_diff(module.code.splitlines(), after, lineterm="", n=0))[2:]
    at = int(lines[0].split()[1].lstrip("-").split(",")[0])
    return at, "\n".join(line[0] + " " + line[1:].strip() for line in lines if line[0] in "+-")


def copy(work: Path) -> None:
    """The checkout as git would commit it now."""
    for file in tree():
        (work / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, work / file, follow_symlinks=False)


def run(area: Area, found: list[Source], names: list[str], work: Path) -> Iterator[dict[str, Any]]:
    """Tests these mutants in the copy, and gives each row as it comes."""
    from mutmut.mutation.file_mutation import combine_mutations_to_source

    wanted, own = set(names), {}
    for source in found:
        chosen = [mutant for mutant in source.mutants if mutant.name in wanted]
        if chosen:  # mutmut counts those it is given from 1 again
            made = combine_mutations_to_source(source.module, [mutant.change for mutant in chosen])
            (work / source.file).write_text(made.code, encoding="utf-8")
            dotted = chosen[0].name.rpartition(".")[0]
            own |= {f"{dotted}.{name}": mutant.name for name, mutant in zip(made.mutant_names, chosen, strict=True)}
    (work / "names.json").write_text(json.dumps(sorted(own, key=lambda name: names.index(own[name]))), encoding="utf-8")
    results = work / "results.jsonl"
    results.unlink(missing_ok=True)
    here = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(work / "src"), str(work / "tools"), os.environ.get("PYTHONPATH", "")]),
        "MUTATION_NAMES": str(work / "names.json"), "MUTATION_RESULTS": str(results), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    words = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "mutation_runner", "--basetemp", str(work / "base")]
    at, ended = 0, None
    with subprocess.Popen([*words, "-k", area.only, *area.tests], cwd=work, env=here) as tests:
        while ended is None:
            time.sleep(1)
            ended = tests.poll()
            rows = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
            yield from ({**row, "name": own[row["name"]]} for row in map(json.loads, rows[at:]))
            at = len(rows)
    if at < len(own):
        sys.exit(f"{at} of {len(own)} mutants were tested, then pytest ended with exit code {ended}")
    for source in found:
        shutil.copy2(ROOT / source.file, work / source.file)


def check(name: str, given: argparse.Namespace, record: dict[str, Any], work: Path) -> None:
    """Tests what the record lacks of an area's sample, or its survivors again, and writes the record row by row."""
    area, found = AREAS[name], list(sources(AREAS[name]))
    area = replace(area, tests=tuple(given.tests.split(",")), only="") if given.tests else area
    mutants = {mutant.name: (source, mutant) for source in found for mutant in source.mutants}
    new: dict[str, Any] = {"killed": {}, "timed_out": {}, "survived": []}
    kept = record["areas"].setdefault(name, new)
    kept["mutants"] = len(mutants)
    survived = {row["name"]: row for row in kept["survived"]}
    names = drawn(list(mutants), given.seed, given.sample)
    if given.again:
        names = [key for key, row in survived.items() if not row["by"] and key in mutants]
    else:
        names = [key for key in names if key not in kept["killed"] | kept["timed_out"] | survived]
    for row in run(area, found, names, work) if names else ():
        unfit = json.loads((work / "results.unfit").read_text(encoding="utf-8"))
        kept["unfit"] = sorted({*kept.get("unfit", []), *unfit})
        key, outcome, by = row["name"], row["outcome"], row["by"].partition("[")[0]
        if key in survived:
            survived[key]["by"] = by
        elif outcome == "survived":
            source, mutant = mutants[key]
            line, diff = difference(source.module, mutant.change)
            lived = {"name": key, "file": mutant.file, "line": line, "diff": diff, "by": "", "judgement": ""}
            kept["survived"].append(lived)
        else:
            kept["timed_out" if outcome == "timed out" else "killed"][key] = by  # one that crashed was noticed as well
        print(f"{name}: {outcome:9} {row['seconds']:6.1f} s  {key}  {by}", flush=True)
        write(given.out, record)
    write(given.out, record)


def write(out: Path, record: dict[str, Any]) -> None:
    """The record as a file, complete at every moment."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(out)


def main(given: argparse.Namespace) -> int:
    """Checks the areas; returns the exit code."""
    record: dict[str, Any] = {"seed": given.seed, "areas": {}}
    if given.out.is_file():
        record = json.loads(given.out.read_text(encoding="utf-8"))
    if record["seed"] != given.seed:
        sys.exit(f"{given.out} was drawn with --seed {record['seed']}, {given.seed} was given")
    if given.judge:
        name, text = given.judge
        rows = [row for found in record["areas"].values() for row in found["survived"] if row["name"] == name]
        if not rows:
            sys.exit(f"--judge needs the name of a survivor in {given.out}, {name!r} was given")
        rows[0]["judgement"] = text
        write(given.out, record)
        return 0
    try:
        from mutmut import __version__
    except ImportError:
        sys.exit("mutation.py needs mutmut: pip install 'mutmut>=3.8'")
    record["mutmut"] = __version__
    with tempfile.TemporaryDirectory(prefix="poise-mutation-") as folder:
        copy(Path(folder))
        for name in given.areas.split(","):
            check(name, given, record, Path(folder))
    scores = {name: Score.of(record["areas"][name]) for name in given.areas.split(",")}
    for name, score in scores.items():
        low, high = wilson(score.now, score.sampled)
        print(f"{name}: {score.now} of {score.sampled} killed, {score.now / score.sampled:.3f} [{low:.3f}, {high:.3f}]")
    return 0 if all(score.now >= REQUIRED * score.sampled for score in scores.values()) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--areas", default=",".join(AREAS), help="some of " + ", ".join(AREAS))
    parser.add_argument("--sample", type=int, default=100, help="mutants of each area")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="test the recorded survivors again")
    parser.add_argument("--tests", default="", help="test files to use instead of the area's, to be quick with --again")
    parser.add_argument("--judge", nargs=2, metavar=("NAME", "TEXT"), help="write down what a survivor is")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "mutation.json", dest="out")
    sys.exit(main(parser.parse_args()))
