"""Version, citation, templates, bounds, the list of RELEASE.md, and what lies in sdist and wheel."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import poise

ROOT = Path(__file__).resolve().parents[2]
DIST = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "check_dist.py")))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- the version and the citation ---


def changelog_faults(changelog: str, version: str) -> list[str]:
    """The newest heading is Unreleased or the version; the newest release, where there is one, is the version."""
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    releases = [re.fullmatch(r"(\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d", heading) for heading in headings]
    numbers = [found[1] for found in releases if found]
    faults = [f"heading {heading}" for heading, found in zip(headings[1:], releases[1:], strict=True) if not found]
    if headings[0] != "Unreleased" and not releases[0]:
        faults.append(f"heading {headings[0]}")
    if numbers and numbers[0] != version:
        faults.append(f"newest release {numbers[0]}")
    ordered = sorted(numbers, key=lambda number: [int(part) for part in number.split(".")], reverse=True)
    return faults + ([] if numbers == ordered else ["order"])


def test_one_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", poise.__version__)
    assert yaml.safe_load(text("CITATION.cff"))["version"] == poise.__version__
    assert changelog_faults(text("CHANGELOG.md"), poise.__version__) == []


@pytest.mark.parametrize(
    ("changelog", "fault"),
    [
        ("## 0.9.0 - 2026-01-01\n", "newest release 0.9.0"),
        ("## Unreleased\n## 0.9.0 - 2026-01-01\n", "newest release 0.9.0"),
        ("## 1.0.0\n", "heading 1.0.0"),
        ("## 1.0.0 - 2026-01-02\n## Unreleased\n", "heading Unreleased"),
        ("## 1.0.0 - 2026-01-02\n## 1.1.0 - 2026-01-01\n", "order"),
    ],
)
def test_a_changelog_that_says_otherwise_is_found(changelog: str, fault: str) -> None:
    assert fault in changelog_faults(changelog, "1.0.0")


def test_a_changelog_of_the_version_is_fine() -> None:
    released = "## 1.0.0 - 2026-02-01\n## 0.10.0 - 2026-01-02\n## 0.9.0 - 2026-01-01\n"
    assert changelog_faults(released, "1.0.0") == changelog_faults(f"## Unreleased\n{released}", "1.0.0") == []


def test_the_citation_is_a_citation() -> None:
    found = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "version", "license", "type"} <= set(found)
    assert found["cff-version"] == "1.2.0"
    assert found["title"] == PROJECT["name"]
    assert found["license"] == PROJECT["license"]
    assert found["authors"] == PROJECT["authors"] == [{"name": "The poise authors"}]
    assert not {"doi", "url", "repository-code", "identifiers"} & set(found), "nothing that does not exist"
    assert "Apache License" in text("LICENSE")


# --- issue and pull request templates ---


@pytest.mark.parametrize("name", ["bug_report", "feature_request"])
def test_an_issue_form_is_a_form(name: str) -> None:
    form = yaml.safe_load((TEMPLATES / f"{name}.yml").read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in form["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    assert len({part["id"] for part in fields}) == len(fields)
    assert all(part["attributes"]["label"] for part in fields)
    assert any(part.get("validations", {}).get("required") for part in fields)


def test_templates_name_what_exists() -> None:
    assert set(yaml.safe_load((TEMPLATES / "config.yml").read_text(encoding="utf-8"))) == {"blank_issues_enabled"}
    written = "".join(path.read_text(encoding="utf-8") for path in TEMPLATES.parent.rglob("*.*"))
    for name in set(re.findall(r"[\w/]+\.md", written)):
        assert (ROOT / name).is_file(), name
    for target in set(re.findall(r"`make (\w+)`", written)):
        assert target in targets(), target


# --- bounds ---


def bounds() -> dict[str, str]:
    """The lower bounds of pyproject.toml."""
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", line) for line in PROJECT["dependencies"]]
    assert all(found), "a core dependency has one lower bound and no upper one"
    return {line[1]: line[2] for line in found if line}


def pins(name: str) -> dict[str, tuple[int, ...]]:
    """The versions of a constraints file."""
    rows = re.findall(r"^([\w-]+)==(\d+(?:\.\d+)*)", text(name), re.MULTILINE)
    return {package.lower().replace("_", "-"): number(version) for package, version in rows}


def number(version: str) -> tuple[int, ...]:
    """The parts of a version, without zeros at its end."""
    return tuple(int(part) for part in re.sub(r"(\.0)+$", "", version).split("."))


def test_the_lowest_versions_are_the_bounds() -> None:
    assert pins("constraints-min.txt") == {name: number(version) for name, version in bounds().items()}


def test_the_pinned_versions_are_within_the_bounds() -> None:
    pinned = pins("constraints.txt")
    for name, version in bounds().items():
        assert pinned[name] >= number(version), name


# --- the list of RELEASE.md ---


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))


def steps(page: str) -> list[list[str]]:
    """The commands of a page's indented blocks, as words."""
    return [shlex.split(line) for line in re.findall(r"^    (\S.*)$", page, re.MULTILINE)]


def step_fault(words: list[str]) -> str | None:
    """What is wrong with a command of the list, as far as that shows without running it."""
    if words[0] == "make":
        return next((f"make {target}" for target in words[1:] if target not in targets()), None)
    if "tools/" in " ".join(words):
        return next((word for word in words if word.startswith("tools/") and not (ROOT / word).is_file()), None)
    if words[0] == "sed" and not words[2].startswith("0,"):
        pattern = words[2].split("/")[1]
        released = pattern.replace("Unreleased", r"(Unreleased|[\d.]+ - [\d-]+)")
        return None if re.search(released, text(words[3]), re.MULTILINE) else f"{pattern} in {words[3]}"
    known = {"git", "test", "export", "sed", ".venv/bin/python", "python3.11"}
    return None if words[0] in known or words[0].startswith("build/stranger/bin/") else words[0]


def test_every_step_of_a_release_exists() -> None:
    found = steps(text("RELEASE.md"))
    assert len(found) > 20
    assert [fault for words in found if (fault := step_fault(words))] == []
    assert {"lint", "test", "docs", "figures", "dist"} <= {words[1] for words in found if words[0] == "make"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("make parcel", "make parcel"),
        (".venv/bin/python tools/check_parcel.py --json x", "tools/check_parcel.py"),
        ("sed -i 's/^__edition__ = .*/x/' src/poise/__init__.py", "^__edition__ = .* in src/poise/__init__.py"),
        ("hope for the best", "hope"),
    ],
)
def test_a_step_that_does_not_exist_is_found(line: str, fault: str) -> None:
    assert [step_fault(words) for words in steps(f"    {line}\n")] == [fault]


# --- what is shipped ---


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Path]]:
    """sdist, wheel and the files they come from; built without an index."""
    pytest.importorskip("setuptools", minversion="77")
    files = DIST.tree()
    folder = tmp_path_factory.mktemp("dist")
    (folder / "work").mkdir()
    sdist, wheel = DIST.build(files, folder / "out", folder / "work", sys.executable)
    return sdist, wheel, files


def test_what_is_in_the_wheel(shipped: tuple[Path, Path, list[Path]]) -> None:
    _, wheel, files = shipped
    assert DIST.wheel_faults(wheel, files, PROJECT) == []
    held = zipfile.ZipFile(wheel).namelist()
    for name in (
        "py.typed", "report/page.html.j2", "report/page.css", "report/page.js", "training/recipes/at.toml",
        "experiments/papers/calibration/t1.toml", "experiments/published.csv",
    ):  # fmt: skip
        assert f"poise/{name}" in held


def test_what_is_in_the_sdist(shipped: tuple[Path, Path, list[Path]]) -> None:
    sdist, _, files = shipped
    assert DIST.sdist_faults(sdist, files) == []
    with tarfile.open(sdist) as archive:
        roots = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert not {"tests", "results", "docs", "benchmarks", "runs", ".github"} & roots


def test_a_file_that_is_not_shipped_is_found(shipped: tuple[Path, Path, list[Path]]) -> None:
    sdist, wheel, files = shipped
    more = [*files, Path("src/poise/forgotten.toml"), Path("experiments/calibration/t99.toml")]
    lost = {"poise/forgotten.toml", "poise/experiments/papers/calibration/t99.toml"}
    assert set(DIST.wheel_faults(wheel, more, PROJECT)) == {f"wheel: must hold {name}" for name in lost}
    assert set(DIST.sdist_faults(sdist, more)) == {f"sdist: must hold src/{name}" for name in lost}
    fewer = [file for file in files if file != Path("src/poise/py.typed")]
    assert DIST.wheel_faults(wheel, fewer, PROJECT) == ["wheel: must not hold poise/py.typed"]
    other = {**PROJECT, "dependencies": PROJECT["dependencies"][1:]}
    assert any("must require what pyproject.toml says" in fault for fault in DIST.wheel_faults(wheel, files, other))


def test_every_extra_is_asked_for() -> None:
    """What a person can install beside the core, without `docs` and `dev`, is named by some command or import."""
    named = {*DIST.NEEDS.values(), *DIST.IMPORTS.values()}
    assert named == set(PROJECT["optional-dependencies"]) - {"docs", "dev"}
