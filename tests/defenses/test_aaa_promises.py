"""What AAA's exact solver promises: labels, gradients, types, export, and errors in one line."""

import math

import pytest
import torch
from torch import nn

from poise.checks.defenses import CHECKS, DefenseCheckError, check_defense, draw, hard_rows
from poise.defenses import AAA, make, stack
from poise.defenses.export import export_onnx
from poise.defenses.posthoc import aaa_exact
from poise.errors import InputError, NotFittedError

GIVEN = [AAA(temperature=2.0), AAA("sine", temperature=0.7), AAA(beta=3.0, tau=4.0, temperature=1.0)]
VARIANTS = ["linear", "sine"]


def wide(rows):
    return torch.tensor(rows, dtype=torch.float64)


def mixed(n, classes, seed, *, dtype=torch.float64):
    """Logits whose scale spans three orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (3 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 1.5)
    return (torch.randn(n, classes, generator=generator, dtype=torch.float64) * scale).to(dtype)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 3e-5), (torch.bfloat16, 0.5), (torch.float16, 0.06)])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_short_types_lose_no_more_than_their_rounding(classes, dtype, error):
    logits = mixed(200, classes, seed=classes).clamp(-60, 60).to(dtype)
    defense = AAA(temperature=2.0)
    exact, short = (defense.objective(logits, defense(given)) for given in (logits.double(), logits))
    assert float((short - exact).abs().amax()) < error


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("defense", [AAA(), *GIVEN], ids=repr)
def test_it_keeps_its_promises(defense, check):
    check_defense(defense, only=[check])


class DriftsApart(AAA):
    """The same outputs, gradients from somewhere else."""

    def _map(self, logits):
        return super()._map(logits).detach() + logits - logits.detach()


class LosesLabels(AAA):
    """Without the anchor: the runner-up may win."""

    def _target(self, margin):
        return super()._target(margin) - 5

    def _map(self, logits):
        return logits + (self._target(aaa_exact.read(logits).margin) < 0) * torch.arange(logits.shape[1])


@pytest.mark.parametrize(("twin", "check"), [(DriftsApart, "gradient"), (LosesLabels, "label")])
def test_broken_twins_fail(twin, check):
    with pytest.raises(DefenseCheckError):
        check_defense(twin(temperature=2.0), only=[check])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_every_kind_of_row(variant, temperature):
    logits = (20 * (mixed(60, 6, seed=3) / 20).tanh()).requires_grad_()
    assert torch.autograd.gradcheck(AAA(variant, temperature=temperature), (logits,), eps=1e-7, atol=1e-4, rtol=1e-3)


def test_tied_saturated_and_plain_rows_have_finite_gradients():
    rows = [[1.0, 1.0, 0.0, 0.0], [900.0, 0.0, 0.0, 0.0], [0.0] * 4, [1e-30, 0.0, 0.0, 0.0], [2.0, 1.0, 1.0, 1.0]]
    logits = wide(rows).requires_grad_()
    out = AAA(temperature=1.0)(logits)
    (gradient,) = torch.autograd.grad((out * wide([[1.0, 2.0, 3.0, 4.0]])).sum(), logits)
    assert bool(out.isfinite().all() & gradient.isfinite().all())
    assert out.argmax(1).tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_million_labels_stay(variant, classes):
    """Random, tied, nearly tied and saturated rows; a million over all cases of this test."""
    defense = AAA(variant, temperature=1.7)
    for n in range(2 if classes == 1000 else 7):
        for scale in (1e-4, 1.0, 30.0) if classes < 1000 else (1.0,):
            logits = mixed(8_200 if classes < 1000 else 3_000, classes, seed=n, dtype=torch.float32) * scale
            top, other = logits.topk(2).indices.T
            rows = torch.arange(len(logits))
            near = logits.clone()
            near[rows, other] = logits[rows, top].nextafter(torch.tensor(-torch.inf))
            near[rows[::3], other[::3]] = logits[rows[::3], top[::3]]
            for given in (logits, near) if classes < 1000 else (near,):
                assert torch.equal(defense(given).argmax(1), given.argmax(1))
    for _, given in hard_rows(classes):
        assert torch.equal(defense(given).argmax(1), given.argmax(1))


@pytest.mark.parametrize("defense", [AAA(temperature=2.0), AAA("sine").fit(*draw(60, 3))], ids=repr)
def test_exports_for_any_batch_size_and_without_waiting_for_a_value(defense):
    stacked = stack(nn.Linear(4, 3), defense).eval()
    exported = torch.export.export(stacked, (torch.zeros(6, 4),), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    images = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(exported(images), stacked(images))
    logits = stacked.model(images).detach()
    torch.testing.assert_close(torch.compile(defense, backend="eager", fullgraph=True)(logits), defense(logits))


@pytest.mark.parametrize(("variant", "classes"), [("linear", 2), ("sine", 10)])
def test_onnx_runtime_answers_the_same(variant, classes, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    weight = 3 * torch.randn(classes, 16, generator=torch.Generator().manual_seed(0))
    model[1].load_state_dict({"weight": weight, "bias": torch.zeros(classes)})
    parity = export_onnx(stack(model, AAA(variant, temperature=1.5)), tmp_path / "aaa.onnx", (1, 4, 4))
    assert parity.probability < 1e-5


def test_names_of_the_command_line():
    for name, variant in (("aaa-linear", "linear"), ("aaa-sine", "sine")):
        defense = make(name)
        assert (defense.variant, defense.solver, defense.tau, defense.beta) == (variant, "exact", 6.0, 5.0)
        with pytest.raises(NotFittedError):
            defense(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "sin"}, "did you mean sine"),
        ({"solver": "sgd"}, "known: adam, exact"),
        ({"alpha": -1.0}, "AAA: alpha must be at least 0 and finite, got -1.0"),
        ({"tau": 0.0}, "AAA: tau must be above 0 and finite, got 0.0"),
        ({"beta": math.inf}, "AAA: beta must be at least 0"),
        ({"steps": -1}, "AAA: steps must be at least 0"),
        ({"temperature": 0.0}, "AAA: temperature must be above 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        AAA(**arguments)
    assert "\n" not in str(caught.value)
