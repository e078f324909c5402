"""Vector and matrix scaling against scikit-learn, closed forms, and their two limits."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from poise.checks.defenses import CHECKS, check_defense, draw
from poise.defenses import MatrixScaling, PoiseWarning, TemperatureScaling, VectorScaling
from poise.errors import InputError
from poise.metrics import ece

RECORDS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "records"
BOTH = [VectorScaling, MatrixScaling]


def nll(defense, logits, labels):
    out = log_softmax(defense(logits).numpy(), axis=1)
    return -out[np.arange(len(labels)), labels.numpy()].mean()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("defense", [VectorScaling(), MatrixScaling()], ids=repr)
def test_promises(defense, check):
    check_defense(defense, only=[check])


def test_without_ridge_matrix_scaling_is_multinomial_logistic_regression():
    logits, labels = draw(800, 4, seed=1, dtype=torch.float64)
    defense = MatrixScaling(ridge=0.0).fit(logits, labels)
    model = LogisticRegression(C=np.inf, solver="newton-cg", tol=1e-12, max_iter=5000).fit(logits, labels)
    expected = model.predict_proba(logits.numpy())
    np.testing.assert_allclose(defense(logits).softmax(1), expected, atol=2e-5)
    assert np.abs(softmax(logits.numpy(), axis=1) - expected).max() > 0.1


def test_vector_scaling_of_two_classes_is_logistic_regression_on_both_logits():
    """ln(p_1 / p_0) = w_1 z_1 - w_0 z_0 + b: two features, one of them with its sign turned."""
    logits, labels = draw(800, 2, seed=2, dtype=torch.float64)
    defense = VectorScaling(ridge=0.0).fit(logits, labels)
    model = LogisticRegression(C=np.inf, solver="newton-cg", tol=1e-12).fit(logits, labels)
    assert defense.weight.tolist() == pytest.approx([-model.coef_[0, 0], model.coef_[0, 1]], abs=1e-5)
    assert float(defense.bias.diff()) == pytest.approx(float(model.intercept_[0]), abs=1e-5)


@pytest.mark.parametrize("scaling", BOTH)
@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_the_penalised_objective_is_at_its_minimum(scaling, ridge):
    logits, labels = draw(300, 5, seed=3, dtype=torch.float64)
    temperature = float(TemperatureScaling().fit(logits, labels).temperature)
    defense = scaling(ridge=ridge).fit(logits, labels)
    start = torch.ones(5) if scaling is VectorScaling else torch.eye(5)

    def objective(weight, bias):
        line = logits * weight + bias if scaling is VectorScaling else logits @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(line, labels)
        penalty = (weight * temperature - start).square().sum() + bias.square().sum()
        return loss + ridge / 2 * penalty

    def steepest(weight, bias):
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        gradients = torch.autograd.grad(objective(weight, bias), (weight, bias))
        return max(float(gradient.abs().max()) for gradient in gradients)

    assert steepest(defense.weight, defense.bias) < 1e-6
    assert steepest(1.001 * defense.weight, defense.bias) > 1e-5  # the condition sees an error of 0.1 %


@pytest.mark.parametrize("scaling", BOTH)
def test_a_large_ridge_is_temperature_scaling(scaling):
    logits, labels = draw(200, 5, seed=4, dtype=torch.float64)
    defense = scaling(ridge=1e9).fit(logits, labels)
    torch.testing.assert_close(defense(logits), TemperatureScaling().fit(logits, labels)(logits), atol=1e-6, rtol=0)
    free = scaling().fit(logits, labels)
    assert nll(free, logits, labels) < nll(defense, logits, labels) - 1e-4


@pytest.mark.parametrize("scaling", BOTH)
@pytest.mark.parametrize("factor", [1e-2, 30.0])
def test_logits_of_another_scale_give_the_same_probabilities(scaling, factor):
    logits, labels = draw(200, 5, seed=5, dtype=torch.float64)
    base, scaled = scaling().fit(logits, labels), scaling().fit(logits * factor, labels)
    torch.testing.assert_close(scaled(logits * factor).softmax(1), base(logits).softmax(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.weight * factor, base.weight, atol=1e-5, rtol=0)


def test_with_fewer_samples_than_classes_the_weights_are_still_the_best_of_all():
    """The search is in the span of the samples; the slope outside of it is 0 as well."""
    logits, labels = draw(30, 50, seed=6, dtype=torch.float64)
    temperature = float(TemperatureScaling().fit(logits, labels).temperature)
    defense = MatrixScaling(ridge=0.01).fit(logits, labels)
    weight = defense.weight.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits @ weight.T + defense.bias, labels)
    loss = loss + 0.005 * (weight * temperature - torch.eye(50)).square().sum()
    (slope,) = torch.autograd.grad(loss, weight)
    assert float(slope.abs().max()) < 1e-6
    assert int(torch.linalg.matrix_rank(weight.detach() * temperature - torch.eye(50), atol=1e-9)) <= 30


def test_vector_scaling_finds_a_known_bias():
    """Calibrated logits, then class 0 shifted up by 1.5: the bias takes it back."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40000, 3, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    defense = VectorScaling(ridge=0.0).fit(logits + torch.tensor([1.5, 0.0, 0.0]), labels)
    assert (defense.bias - defense.bias[1]).tolist() == pytest.approx([-1.5, 0.0, 0.0], abs=0.06)
    assert defense.weight.tolist() == pytest.approx([1.0] * 3, abs=0.04)


def test_matrix_scaling_finds_a_known_mixing():
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(40000, 3, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    mixing = torch.tensor([[1.0, 0.4, 0.0], [0.0, 1.0, -0.3], [0.2, 0.0, 1.0]], dtype=torch.float64)
    mixed = logits @ mixing.T
    out, vector = (
        scaling(ridge=1e-6).fit(mixed, labels)(mixed).softmax(1) for scaling in (MatrixScaling, VectorScaling)
    )
    assert float((out - logits.softmax(1)).abs().max()) < 0.03
    assert float((vector - logits.softmax(1)).abs().max()) > 0.1


@pytest.mark.parametrize("scaling", BOTH)
def test_the_label_may_change_and_nothing_says_otherwise(scaling):
    logits = torch.tensor([[1.0, 0.0]] * 10 + [[0.0, 1.0]] * 10)
    labels = torch.tensor([0] * 3 + [1] * 7 + [1] * 9 + [0])
    out = scaling().fit(logits, labels)(logits)
    assert out[0].argmax() == 1
    assert not scaling.keeps_label
    assert not scaling.keeps_order
    assert not scaling.monotone


@pytest.mark.parametrize("scaling", BOTH)
def test_all_right_warns_once_and_separable_data_without_ridge_are_clamped(scaling):
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [2.0, 1.0]])
    with pytest.warns(PoiseWarning, match=f"{scaling.__name__}: every sample is right") as caught:
        defense = scaling().fit(logits, torch.tensor([0, 1, 0]))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert bool(defense(logits).isfinite().all())
    assert torch.equal(defense(logits).argmax(1), logits.argmax(1))


@pytest.mark.parametrize("scaling", BOTH)
def test_separable_data_stay_finite_with_and_without_ridge(scaling, recwarn):
    """One sample on the wrong side of the prediction, yet an affine map tells the classes apart."""
    logits = torch.tensor([[3.0, 0.0], [2.5, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    for ridge in (0.0, 1e-3):
        defense = scaling(ridge=ridge).fit(logits, labels)
        assert bool(defense(logits).isfinite().all())
        assert torch.equal(defense(logits).argmax(1), labels)
    most = float(defense.weight.abs().max())
    assert most < float(scaling(ridge=0.0).fit(logits, labels).weight.abs().max())
    assert all(issubclass(warning.category, PoiseWarning) for warning in recwarn)


@pytest.mark.parametrize("scaling", BOTH)
def test_another_number_of_classes_is_refused_and_a_refit_takes_it(scaling):
    defense = scaling().fit(*draw(100, 5))
    with pytest.raises(InputError, match=rf"{scaling.__name__}: fitted for 5 classes, got logits of 3"):
        defense(draw(4, 3)[0])
    assert defense.fit(*draw(100, 3))(draw(4, 3)[0]).shape == (4, 3)
    assert defense(draw(4, 3)[0][:0]).shape == (0, 3)


@pytest.mark.parametrize("scaling", BOTH)
@pytest.mark.parametrize("ridge", [-1.0, math.inf, math.nan])
def test_bad_ridge(scaling, ridge):
    with pytest.raises(InputError, match=f"{scaling.__name__}: ridge must be at least 0 and finite, got"):
        scaling(ridge=ridge)


@pytest.mark.parametrize("scaling", BOTH)
def test_exports_for_any_batch_size(scaling):
    fitted, (logits, _) = scaling().fit(*draw(200, 10)), draw(9, 10, seed=2)
    exported = torch.export.export(fitted, (logits[:6],), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    torch.testing.assert_close(exported(logits), fitted(logits))


@pytest.mark.parametrize("scaling", BOTH)
def test_held_out_error_falls_on_real_records(scaling):
    file = RECORDS / "wideresnet-16-4-cifar-10.npz"
    if not file.is_file():
        pytest.skip("the recorded probabilities in ../shared/data/records are not here")
    with np.load(file, allow_pickle=False) as data:
        logits = torch.from_numpy(data["probabilities"]).double().clamp_min(1e-38).log()
        labels = torch.from_numpy(data["labels"]).flatten()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    half, test = order[:5000], order[5000:]
    defense, single = scaling().fit(logits[half], labels[half]), TemperatureScaling().fit(logits[half], labels[half])
    assert nll(defense, logits[test], labels[test]) < nll(single, logits[test], labels[test])
    confidence, top = defense(logits[test]).softmax(1).max(1)
    assert ece(confidence, (top == labels[test]).numpy()) < 0.015
