"""torchmetrics' classes against poise.metrics on the same rows, against torchmetrics itself, and over processes."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from poise import metrics
from poise.errors import InputError, MissingExtraError
from poise.interop import torchmetrics as ours
from poise.types import Outputs
from toys import generator

PAIRS: dict[str, tuple[Callable[[], Any], Callable[..., float]]] = {
    "ece": (ours.ECE, metrics.ece),
    "ece-5": (lambda: ours.ECE(5), lambda c, h: metrics.ece(c, h, 5)),
    "mce": (ours.MCE, metrics.mce),
    "adaptive-ece": (ours.AdaptiveECE, metrics.adaptive_ece),
    "debiased-ece": (ours.DebiasedECE, metrics.debiased_ece),
    "ks-error": (ours.KSError, metrics.ks_error),
    "smooth-ece": (ours.SmoothECE, metrics.smooth_ece),
    "aurc": (ours.AURC, metrics.aurc),
    "streamed-ece": (ours.StreamedECE, metrics.ece),
}
WHOLE: dict[str, tuple[Callable[[], Any], Callable[..., float]]] = {
    "classwise-ece": (ours.ClasswiseECE, metrics.classwise_ece),
    "brier": (ours.Brier, metrics.brier),
    "nll": (ours.NLL, metrics.nll),
}
EVERY = [make for make, _ in (PAIRS | WHOLE).values()] + [ours.StreamedKSError]


def answers(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An overconfident model: logits (n, 4), labels of which about half are right; a few confidences are exactly 1."""
    source = generator(seed)
    logits = 3 * torch.randn(n, 4, generator=source)
    logits[::10] *= 1000
    labels = torch.where(
        torch.rand(n, generator=source) < 0.5, logits.argmax(dim=1), torch.randint(4, (n,), generator=source)
    )
    return logits, labels


def columns(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    outputs = Outputs(logits)
    return outputs.confidence.numpy(), (outputs.labels == labels).numpy().astype(float)


def filled(metric: Any, logits: Tensor, labels: Tensor, chunk: int = 37) -> Any:
    for start in range(0, len(logits), chunk):
        metric.update(logits[start : start + chunk], labels[start : start + chunk])
    return metric


@pytest.mark.parametrize("n", [1, 2, 500])
@pytest.mark.parametrize("name", PAIRS)
def test_metrics_of_rows_are_those_of_poise(name: str, n: int) -> None:
    make, reference = PAIRS[name]
    logits, labels = answers(n)
    assert float(filled(make(), logits, labels).compute()) == pytest.approx(
        reference(*columns(logits, labels)), abs=1e-12
    )


@pytest.mark.parametrize("name", WHOLE)
def test_metrics_of_probabilities_are_those_of_poise(name: str) -> None:
    make, reference = WHOLE[name]
    logits, labels = answers(300)
    wanted = reference(Outputs(logits).probabilities.numpy(), labels.numpy())
    assert float(filled(make(), logits, labels).compute()) == pytest.approx(wanted, rel=1e-12)


def test_the_streamed_ks_error_is_within_its_slack() -> None:
    logits, labels = answers(2000)
    metric, exact = filled(ours.StreamedKSError(cells=40), logits, labels), metrics.ks_error(*columns(logits, labels))
    low, slack = float(metric.compute()), metric.stream.ks_slack
    assert low - 1e-12 <= exact <= low + slack + 1e-12
    assert slack > 0
    interval = metric.stream.intervals(metrics.Bootstrap(resamples=50)).ece
    assert interval.low <= float(filled(ours.ECE(), logits, labels).compute()) <= interval.high


def test_probabilities_are_declared() -> None:
    """Logits in [0, 1] that sum to 1 are logits all the same: nothing is guessed from values."""
    rows, labels = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])
    as_logits, as_probabilities = ours.ECE(), ours.ECE(outputs="probabilities")
    as_logits.update(rows, labels)
    as_probabilities.update(rows, labels)
    assert float(as_probabilities.compute()) == pytest.approx(metrics.ece([0.9, 0.8], [1, 0]))
    assert float(as_logits.compute()) == pytest.approx(metrics.ece(rows.double().softmax(1).amax(1).numpy(), [1, 0]))


@pytest.mark.parametrize("bins", [10, 15])
def test_against_the_ece_of_torchmetrics(bins: int) -> None:
    """Away from a confidence of exactly 1, which they put in a bin of its own."""
    from torchmetrics.classification import MulticlassCalibrationError

    source = generator(5)
    logits, labels = 2 * torch.randn(400, 4, generator=source), torch.randint(4, (400,), generator=source)
    theirs = filled(MulticlassCalibrationError(4, n_bins=bins, norm="l1"), logits, labels)
    assert float(filled(ours.ECE(bins), logits, labels).compute()) == pytest.approx(float(theirs.compute()), abs=1e-6)


def test_a_confidence_of_one_is_where_both_differ() -> None:
    """The twin of the test above: 1 and 0.99 share our last bin."""
    from torchmetrics.classification import MulticlassCalibrationError

    rows, labels = torch.tensor([[1.0, 0.0], [0.01, 0.99]]), torch.tensor([1, 1])
    theirs = MulticlassCalibrationError(2, n_bins=15, norm="l1")
    metric = ours.ECE(outputs="probabilities")
    for one in (theirs, metric):
        one.update(rows, labels)
    assert float(metric.compute()) == pytest.approx(0.495)
    assert float(theirs.compute()) == pytest.approx(0.505)


# --- states ---


@pytest.mark.parametrize("make", EVERY)
def test_merged_states_are_those_of_all_rows(make: Callable[[], Any]) -> None:
    logits, labels = answers(200)
    whole = filled(make(), logits, labels)
    first, second = filled(make(), logits[:70], labels[:70]), filled(make(), logits[70:], labels[70:])
    first.merge_state(second)  # before any compute(), whose answer torchmetrics keeps
    assert float(first.compute()) == pytest.approx(float(whole.compute()), abs=1e-12)
    assert float(first.compute()) != float(second.compute())


@pytest.mark.parametrize("make", EVERY)
def test_reset_pickle_and_forward(make: Callable[[], Any]) -> None:
    logits, labels = answers(60)
    metric = filled(make(), logits, labels)
    value = float(metric.compute())
    assert float(pickle.loads(pickle.dumps(metric)).compute()) == value
    metric.reset()
    batch = float(metric(logits[:20], labels[:20]))
    assert batch == pytest.approx(float(filled(make(), logits[:20], labels[:20]).compute()), abs=1e-12)
    filled(metric, logits[20:], labels[20:])
    assert float(metric.compute()) == pytest.approx(value, abs=1e-12)
    assert metric.compute().dtype is torch.float64
    assert (metric.higher_is_better, metric.is_differentiable) == (False, False)


def test_a_collection_keeps_the_rows_once() -> None:
    from torchmetrics import MetricCollection

    logits, labels = answers(90)
    several = MetricCollection([ours.ECE(), ours.KSError(), ours.SmoothECE(), ours.AURC()])
    filled(several, logits, labels)
    assert [sorted(group) for group in several.compute_groups.values()] == [["AURC", "ECE", "KSError", "SmoothECE"]]
    found = {name: float(value) for name, value in several.compute().items()}
    assert found["KSError"] == pytest.approx(metrics.ks_error(*columns(logits, labels)), abs=1e-12)


WORKER = """
import sys, warnings
warnings.simplefilter("error")
import torch
from poise.interop import torchmetrics as ours
rank, file = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
logits, labels = torch.load(file + ".rows", weights_only=True)
rows = slice(0, 37) if rank == 0 else slice(37, None)
for name in ("ECE", "KSError", "ClasswiseECE", "Brier", "StreamedECE", "StreamedKSError"):
    metric = getattr(ours, name)()
    for part in (slice(0, 11), slice(11, None)):
        metric.update(logits[rows][part], labels[rows][part])
    print(name, repr(float(metric.compute())))
torch.distributed.destroy_process_group()
"""


def test_two_processes_compute_what_one_does(tmp_path: Any) -> None:
    """Each has some of the rows, not equally many; both answer for all of them."""
    logits, labels = answers(90)
    torch.save((logits, labels), tmp_path / "meet.rows")
    command = [sys.executable, "-c", textwrap.dedent(WORKER)]
    running = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    told = [worker.communicate(timeout=400) for worker in running]
    assert [worker.returncode for worker in running] == [0, 0], [err.decode()[-2000:] for _, err in told]
    for out, _ in told:
        for line in out.decode().splitlines():
            name, value = line.split()
            alone = float(filled(getattr(ours, name)(), logits, labels).compute())
            assert float(value) == pytest.approx(alone, abs=1e-12), name
        assert len(out.decode().splitlines()) == 6


# --- refusals ---


def test_what_makes_no_sense_is_refused_in_one_line() -> None:
    rows, labels = torch.tensor([[0.9, 0.3], [0.2, 0.8]]), torch.tensor([0, 1])
    metric, shown = ours.ECE(), ours.KSError(outputs="probabilities")
    for message, call in (
        (
            r"^ECE: preds must be \(m, K\) floats .* got \(2,\) torch.float32$",
            lambda: metric.update(rows[:, 0], labels),
        ),
        (
            r"^ECE: preds must be \(m, K\) floats .* got \(2, 2\) torch.int64$",
            lambda: metric.update(rows.long(), labels),
        ),
        (r"^ECE: target must be \(2,\) integers, got \(1,\) torch.int64$", lambda: metric.update(rows, labels[:1])),
        (r"^ECE: target must be \(2,\) integers, got \(2,\) torch.bool$", lambda: metric.update(rows, labels > 0)),
        (r"^ECE: target must be in 0..1, got values in 0..2$", lambda: metric.update(rows, 2 * labels)),
        ("^ECE: preds must be finite", lambda: metric.update(rows / 0, labels)),
        ("^KSError: preds must be probabilities", lambda: shown.update(rows, labels)),
        ("^KSError: preds must be probabilities", lambda: shown.update(rows - torch.tensor([1.0, -1.0]), labels)),
        ("^ECE: outputs must be 'logits' or 'probabilities', got 'scores'$", lambda: ours.ECE(outputs="scores")),
        ("^ECE: bins must be a whole number of at least 1, got 0$", lambda: ours.ECE(0)),
        ("^Streamed: bins must be", lambda: ours.StreamedECE(0)),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", EVERY)
def test_nothing_to_compute_from(make: Callable[[], Any]) -> None:
    metric = make()
    metric.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match=r"at least one row must be added before compute\(\), got none$"):
        metric.compute()


def test_without_torchmetrics_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "poise.interop.torchmetrics")
    told = r"^poise.interop.torchmetrics needs the extra 'metrics': pip install 'poise\[metrics\]'$"
    with pytest.raises(MissingExtraError, match=told):
        import poise.interop.torchmetrics  # noqa: F401
