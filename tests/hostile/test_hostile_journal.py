"""Journals that were damaged: what was answered before the damage is never asked for again."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import readers
from harness import examples
from hypothesis import given, strategies
from mutations import damaged

from poise.errors import RunError
from poise.targets.journal_file import JournalFile, records
from poise.types import OutputKind


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return readers.journal(tmp_path_factory.mktemp("journal"))


@examples(60)
@given(rng=strategies.randoms(use_true_random=False))
def test_every_answer_before_the_damage_is_kept(journal: Path, rng: Random) -> None:
    whole = journal.read_bytes()
    places = list(records(journal))
    broken = damaged(whole, rng)
    first = next(
        (at for at, (one, other) in enumerate(zip(whole, broken, strict=False)) if one != other),
        min(len(whole), len(broken)),
    )
    before = {name: sum(place) for name, place in places if sum(place) <= first}
    copy = journal.with_name("copy.log")
    copy.write_bytes(broken)
    try:
        opened = JournalFile(copy, 3, OutputKind.LOGITS)
    except RunError:
        assert copy.read_bytes() == broken, "what is refused is left as it is"
        return
    try:
        assert set(before) <= set(opened.recorded)
        assert all(np.isfinite(opened.take(name).numpy()).all() for name in before)
    finally:
        opened.close()
    kept = max(before.values(), default=0)
    assert copy.read_bytes()[:kept] == whole[:kept]
