"""The journal: what was answered once is on the disk before it is used, and is never asked for again."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import poise
from poise import Access
from poise.checks.targets import check_target
from poise.errors import RunError, TargetError
from poise.objectives import UCA, KeepLabel
from poise.targets import DifferentiableTarget, Journal, Purse
from poise.targets import journal_file as format_module
from poise.targets.journal_file import records
from poise.types import OutputKind, Outputs
from toys import Noisy, RecordingTarget, linear_case

CASE = linear_case(6, dtype=torch.float32)


def target(**declared) -> RecordingTarget:
    return CASE.target(**declared)


def asked(inner: RecordingTarget) -> list[tuple[int, bytes]]:
    """Every question the target was asked, in order: sample and point."""
    return [
        (sample, x.numpy().tobytes())
        for ids, points, *_ in inner.log
        for sample, x in zip(ids.tolist(), points, strict=True)
    ]


def once(journal: Journal) -> Tensor:
    return journal.query(CASE.images, CASE.ids).scores


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "sa-mma.none.00000.log"


@pytest.fixture
def written(file: Path) -> Path:
    """A journal of six answers."""
    with Journal(target(), file) as journal:
        once(journal)
    return file


# --- what is recorded, and what is asked ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_answers_come_back_bit_by_bit(dtype: torch.dtype, file: Path) -> None:
    class Typed(RecordingTarget):
        def query(self, x: Tensor, ids: Tensor) -> Outputs:
            answer = super().query(x, ids)
            return Outputs((answer.scores / 3).to(dtype), answer.kind)

    inner = Typed(CASE.module(), num_classes=3)
    with Journal(inner, file) as journal:
        first = once(journal)
    with Journal(inner, file) as journal:
        again = once(journal)
    assert len(asked(inner)) == 6
    assert first.dtype is again.dtype is dtype
    assert torch.equal(first, (target().query(CASE.images, CASE.ids).scores / 3).to(dtype))
    assert torch.equal(first, again)


@given(calls=st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=6), cut=st.integers(0, 6))
def test_a_repeated_run_asks_only_what_is_new(tmp_path_factory, calls: list[list[int]], cut: int) -> None:
    """Any calls, broken off after `cut` of them and repeated: all questions once, all answers as without a journal."""
    place = tmp_path_factory.mktemp("run") / "a.log"
    inner, plain = target(), target()
    for part in (calls[:cut], calls):
        with Journal(inner, place) as journal:
            answers = [journal.query(CASE.images[rows], CASE.ids[rows]).scores for rows in part]
    expected = [plain.query(CASE.images[rows], CASE.ids[rows]).scores for rows in calls]
    assert sorted(asked(inner)) == sorted(asked(plain))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(answers, expected, strict=True))


def test_the_same_point_asked_twice_is_two_questions(file: Path) -> None:
    """A random target's second answer is not its first; both come back."""

    class Counts(RecordingTarget):
        def query(self, x: Tensor, ids: Tensor) -> Outputs:
            answer = super().query(x, ids)
            return Outputs(answer.scores + len(self.log), answer.kind)

    inner = Counts(CASE.module(), num_classes=3)
    twice = torch.tensor([0, 1, 0])
    with Journal(inner, file) as journal:
        first = [journal.query(CASE.images[twice], CASE.ids[twice]).scores, once(journal)]
    with Journal(inner, file) as journal:
        again = [journal.query(CASE.images[twice], CASE.ids[twice]).scores, once(journal)]
    assert len(asked(inner)) == 9
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], first[1][0])


def test_a_random_target_is_replayed(file: Path) -> None:
    runs = []
    for seed in (0, 1):
        with Journal(RecordingTarget(Noisy(CASE.module()), num_classes=3), file) as journal, journal.session(seed):
            runs.append(once(journal))
    assert torch.equal(*runs)


@pytest.mark.parametrize("change", ["sample", "pixel", "shape", "type"])
def test_another_question_is_another_question(change: str, written: Path) -> None:
    images, ids = CASE.images.clone(), CASE.ids.clone()
    if change == "sample":
        ids += 10_000
    elif change == "pixel":
        images.view(torch.int32)[:, 0, 0, 0] += 1  # by one bit
    elif change == "shape":
        images = images.reshape(6, 1, 2, 8)
    else:
        images = images.double()
    inner = RecordingTarget(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), num_classes=3)
    with Journal(inner, written) as journal:
        journal.query(images, ids)
    assert len(asked(inner)) == 6


def test_no_points_are_no_question(file: Path) -> None:
    inner = target()
    with Journal(inner, file) as journal:
        assert journal.query(CASE.images[:0], CASE.ids[:0]).scores.shape == (0, 3)
    assert inner.log == []


def test_it_is_a_target_that_serves_answers_alone(file: Path) -> None:
    inner = target()
    with Journal(inner, file) as journal:
        check_target(journal, CASE.images)
        assert journal.access is Access.SCORES
        assert not isinstance(journal, DifferentiableTarget)
        with journal.session(0):
            assert inner._open


def test_an_attack_through_it_gives_the_same_result_and_a_second_one_asks_nothing(file: Path) -> None:
    def attacked(through: poise.targets.Target) -> poise.types.AttackResult:
        goal, search, ball = KeepLabel(UCA()), poise.searches.Square(), poise.constraints.Linf(0.1)
        return poise.attack(through, goal, search, ball, CASE.images, CASE.labels, CASE.ids, budget=15)

    plain, inner = attacked(target()), target()
    for _ in range(2):
        with Journal(Purse(inner), file) as journal:
            found = attacked(journal)
        assert torch.equal(found.images, plain.images)
        assert found.table.drop("seconds").equals(plain.table.drop("seconds"), null_equal=True)
    assert len(asked(inner)) == int(plain.table["queries"].sum())


# --- answers as they arrive ---


class Failing(RecordingTarget):
    """Streams two points at a time, the later ones first, and fails once so many were answered."""

    fails_after = 4

    def stream(self, x: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
        for rows in torch.arange(len(x)).flip(0).split(2):
            if len(asked(self)) >= self.fails_after:
                raise TargetError("Failing: the line is dead")
            yield rows, self.query(x[rows], ids[rows])


@pytest.mark.parametrize("streams", [True, False])
def test_what_was_answered_before_a_failure_stays(streams: bool, file: Path) -> None:
    """The same question, in the same object or after a new start, asks for the rest alone."""

    class Breaks(RecordingTarget):
        fails_after = 4

        def query(self, x: Tensor, ids: Tensor) -> Outputs:
            if len(asked(self)) >= self.fails_after:
                raise TargetError("Breaks: the line is dead")
            return super().query(x, ids)

    inner = (Failing if streams else Breaks)(CASE.module(), num_classes=3, batch_size=2)
    with Journal(Purse(inner), file) as journal:
        for _ in range(2):
            with pytest.raises(TargetError, match="the line is dead"):
                once(journal)
        assert len(list(records(file))) == 4
        inner.fails_after = 5  # the last two come in one part
        found = once(journal)
    with Journal(Purse(inner), file) as journal:
        assert torch.equal(once(journal), found)
    assert torch.equal(found, target().query(CASE.images, CASE.ids).scores)
    assert sorted(asked(inner)) == sorted(asked_once())


def asked_once() -> list[tuple[int, bytes]]:
    plain = target()
    plain.query(CASE.images, CASE.ids)
    return asked(plain)


def test_every_part_is_on_the_disk_before_the_next_is_asked(file: Path, monkeypatch) -> None:
    """fsync, once per part; the target sees a file that holds all its earlier answers."""
    synced, seen = [], []
    monkeypatch.setattr(format_module.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))

    class Looks(RecordingTarget):
        def query(self, x: Tensor, ids: Tensor) -> Outputs:
            seen.append((len(list(records(file))), file.stat().st_size == synced[-1]))
            return super().query(x, ids)

    with Journal(Looks(CASE.module(), num_classes=3, batch_size=2), file) as journal:
        opened = len(synced)
        once(journal)
    assert seen == [(0, True), (2, True), (4, True)]
    assert len(synced) == opened + 3


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda rows: torch.zeros(rows, 4), r"must answer \(6, 3\) scores, got \(6, 4\)"),
        (lambda rows: torch.zeros(rows - 1, 3), r"must answer \(6, 3\) scores, got \(5, 3\)"),
        (lambda rows: torch.zeros(rows, 3, dtype=torch.long), "must be floats of a usual type, got torch.int64"),
    ],
)
def test_answers_that_do_not_fit_are_refused(answer, told: str, file: Path) -> None:
    class Odd(RecordingTarget):
        def query(self, x: Tensor, ids: Tensor) -> Outputs:
            return Outputs(answer(len(x)))

    with Journal(Odd(CASE.module(), num_classes=3), file) as journal, pytest.raises(TargetError, match=told):
        once(journal)
    assert list(records(file)) == []


def test_a_stream_that_forgets_a_point_is_refused(file: Path) -> None:
    class Forgets(RecordingTarget):
        def stream(self, x: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
            yield torch.arange(5), self.query(x[:5], ids[:5])

    told = "must answer every point, 1 of 6 are missing"
    with Journal(Forgets(CASE.module(), num_classes=3), file) as journal, pytest.raises(TargetError, match=told):
        once(journal)


# --- what a killed process leaves ---


def test_cut_off_anywhere_it_goes_on(written: Path, monkeypatch) -> None:
    """Every length that a kill can leave, from the empty file: whole records stay, the rest is asked for again."""
    monkeypatch.setattr(format_module.os, "fsync", lambda handle: None)  # saves time, and is tested elsewhere
    whole, ends = written.read_bytes(), [sum(place) for _, place in records(written)]
    expected = target().query(CASE.images, CASE.ids).scores
    for length in range(len(whole) + 1):
        written.write_bytes(whole[:length])
        inner, kept = target(), sum(end <= length for end in ends)
        assert len(list(records(written))) == kept
        with Journal(inner, written) as journal:
            assert torch.equal(once(journal), expected)
        assert len(asked(inner)) == 6 - kept
        assert written.read_bytes() == whole


def test_a_journal_that_keeps_its_torn_end_is_noticed(written: Path, monkeypatch) -> None:
    """The broken twin: without the cut, what follows the torn end is lost."""
    whole = written.read_bytes()
    written.write_bytes(whole[:-3])
    monkeypatch.setattr(format_module.os, "ftruncate", lambda handle, size: None)
    with Journal(target(), written) as journal:
        once(journal)
    with pytest.raises(RunError, match="damaged"):
        list(records(written))


@pytest.mark.parametrize("garbage", [b"\0" * 37, b"\xff" * 64, random.Random(0).randbytes(200)])
def test_a_damaged_end_is_cut_off(garbage: bytes, written: Path) -> None:
    """A power cut may leave other bytes than were written."""
    whole = written.read_bytes()
    last = sum([place for _, place in records(written)][-2])
    for content in (whole + garbage, whole[:last] + garbage):
        written.write_bytes(content)
        inner = target()
        with Journal(inner, written) as journal:
            once(journal)
        assert written.read_bytes() == whole
        assert len(asked(inner)) == (0 if content.startswith(whole) else 1)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_believed(tmp_path_factory, at: int, bit: int) -> None:
    """In the last record it is cut off; anywhere else the file is refused by name."""
    place = tmp_path_factory.mktemp("run") / "a.log"
    with Journal(target(), place) as journal:
        once(journal)
    content = bytearray(place.read_bytes())
    start = [sum(found) for _, found in records(place)][-2]
    at %= len(content)
    content[at] ^= 1 << bit
    place.write_bytes(content)
    if at >= start:
        with Journal(target(), place) as journal:
            assert torch.equal(once(journal), target().query(CASE.images, CASE.ids).scores)
        return
    with pytest.raises(RunError) as caught, Journal(target(), place):
        pass
    told = str(caught.value)
    assert str(place) in told
    assert "\n" not in told
    assert place.read_bytes() == bytes(content), "nothing is cut off"


def test_damage_before_the_end_names_the_file_and_what_to_do(written: Path) -> None:
    content = bytearray(written.read_bytes())
    (_, (first, size)), *_ = records(written)
    content[first : first + size] = bytes(size)
    written.write_bytes(content)
    for read in (lambda: Journal(target(), written), lambda: list(records(written))):
        with pytest.raises(RunError) as caught:
            read()
        assert str(caught.value) == (
            f"journal: '{written}' is damaged at byte {first - 8} of {len(content)}, which is not its end; "
            "delete it and give --resume: its answers are then asked for again"
        )


# --- whose journal it is ---


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda: RecordingTarget(linear_case(2, classes=4).module(), num_classes=4), "(4 classes, logits), got 3 "),
        (lambda: target(outputs="probabilities"), "(3 classes, probabilities), got 3 classes, logits"),
    ],
)
def test_another_targets_journal_is_refused(other, told: str, written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(RunError) as caught:
        Journal(other(), written)
    assert told in str(caught.value)
    assert written.read_bytes() == before


@pytest.mark.parametrize("content", [b"thesis\n", b"x", b"\n", b"poise journal 2, 3 classes, logits\n", b"\0" * 500])
def test_another_file_is_refused_and_kept(content: bytes, file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"must be this target's .*, got another file"):
        Journal(target(), file)
    assert file.read_bytes() == content


def test_one_process_at_a_time(file: Path) -> None:
    with Journal(target(), file), pytest.raises(RunError, match="must not be in use"):
        Journal(target(), file)
    with Journal(target(), file):
        pass


def test_what_the_system_refuses_is_one_line(tmp_path: Path, file: Path, monkeypatch) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(RunError, match="must be a file that can be read and written, got: "):
        Journal(target(), tmp_path / "taken" / "a.log")
    with pytest.raises(RunError, match="No such file"):
        list(records(tmp_path / "nothing.log"))

    def full(handle: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with Journal(target(), file) as journal:
        monkeypatch.setattr(format_module.os, "write", full)
        with pytest.raises(RunError, match="got: No space left on device"):
            once(journal)


def test_a_closed_journal_says_so(file: Path) -> None:
    journal = Journal(target(), file)
    journal.close()
    journal.close()
    with pytest.raises(RunError, match="must be a file that can be read and written"):
        once(journal)


def test_labels_are_recorded_too(file: Path) -> None:
    inner = target()
    inner.kind, inner.access = OutputKind.LABELS, Access.LABELS
    with Journal(inner, file) as journal:
        assert journal.query(CASE.images, CASE.ids).kind is OutputKind.LABELS
        assert journal.access is Access.LABELS
    assert file.read_bytes().startswith(b"poise journal 1, 3 classes, labels\n")
