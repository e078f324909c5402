"""The contract that every post-hoc defence inherits: validation, fitted state, loading, stacking."""

import pytest
import torch
from torch import nn

from poise.defenses import DEFENSES, CompressionScaling, Identity, PostHoc, TemperatureScaling, make, stack
from poise.defenses.base import keep_top
from poise.errors import InputError, NotFittedError

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.5], [0.2, 0.1, 3.0], [1.0, 0.9, 0.0]])
LABELS = torch.tensor([0, 1, 2, 1])


class ClassMeans(PostHoc):
    """Learns one number per class, so that its buffer's size and its K come from the data."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(0))

    def _fit(self, logits, labels):
        self.means = logits.mean(dim=0)

    def _map(self, logits):
        return logits - self.means

    def _fitted_classes(self):
        return self.means.shape[0]


def replaced(tensor, index, value):
    out = tensor.clone()
    out[index] = value
    return out


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS[:0], LABELS[:0], "fit needs at least one sample, got 0"),
        (LOGITS[:, :1], LABELS * 0, r"logits must have shape \(n, K\) with K >= 2, got \(4, 1\)"),
        (LOGITS[0], LABELS[:1], r"logits must have shape \(n, K\) with K >= 2, got \(3,\)"),
        (LOGITS.int(), LABELS, "floating-point numbers, got torch.int32"),
        (LOGITS.tolist(), LABELS, "floating-point numbers, got list"),
        (replaced(LOGITS, (2, 1), torch.nan), LABELS, r"finite, got NaN or inf in 1 rows \(first: row 2\)"),
        (replaced(LOGITS, (1, 0), torch.inf), LABELS, r"finite, got NaN or inf in 1 rows \(first: row 1\)"),
        (LOGITS, LABELS[:2], r"labels must be \(4,\) integers, one per row of logits, got \(2,\) torch.int64"),
        (LOGITS, LABELS.double(), "got .* torch.float64"),
        (LOGITS, LABELS.bool(), "got .* torch.bool"),
        (LOGITS, LABELS.tolist(), "got list"),
        (LOGITS, replaced(LABELS, 0, 3), r"labels must be in \[0, 3\), got values from 1 to 3"),
        (LOGITS, replaced(LABELS, 0, -1), r"labels must be in \[0, 3\), got values from -1 to 2"),
        (LOGITS, LABELS * 0 + 2, r"at least two classes, got only class 2 \(are the data sorted by class\?\)"),
        (LOGITS[:1], LABELS[:1], r"got only class 0 \(one sample is not enough\)"),
    ],
)
def test_fit_refuses_bad_data_with_one_line_and_keeps_its_state(logits, labels, message):
    defense = TemperatureScaling().fit(LOGITS, LABELS)
    before = float(defense.temperature)
    with pytest.raises(InputError, match=message) as caught:
        defense.fit(logits, labels)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("TemperatureScaling: ")
    assert float(defense.temperature) == before
    assert bool(defense.fitted)


@pytest.mark.parametrize("name", DEFENSES)
@pytest.mark.parametrize("bad", [LOGITS[0], LOGITS[:, :1], LOGITS.long(), LOGITS[None]])
def test_forward_refuses_another_shape_or_type(name, bad):
    defense = make(name).fit(LOGITS, LABELS)
    with pytest.raises(InputError):
        defense(bad)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int16])
def test_any_integer_type_of_label_will_do(kind):
    expected = TemperatureScaling().fit(LOGITS, LABELS).temperature
    assert torch.equal(TemperatureScaling().fit(LOGITS, LABELS.to(kind)).temperature, expected)


def test_unfitted_use_raises_and_says_what_to_do():
    with pytest.raises(NotFittedError, match=r"TemperatureScaling: must be fitted before use, call fit"):
        TemperatureScaling()(LOGITS)


def test_a_defence_that_needs_no_data_is_fitted_from_the_start_and_ignores_data():
    for defense in (Identity(), CompressionScaling()):
        assert bool(defense.fitted)
        assert defense.fit(None, None) is defense
        assert int(defense.fit_samples) == 0


def test_fit_counts_its_samples_and_leaves_no_gradient_behind():
    defense = TemperatureScaling().fit(LOGITS.clone().requires_grad_(), LABELS)
    assert int(defense.fit_samples) == 4
    assert not any(value.requires_grad for value in defense.state_dict().values())


def test_another_number_of_classes_than_fitted_is_refused_where_it_matters():
    defense = ClassMeans().fit(LOGITS, LABELS)
    with pytest.raises(InputError, match="ClassMeans: fitted for 3 classes, got logits of 2"):
        defense(LOGITS[:, :2])
    fitted = TemperatureScaling().fit(LOGITS, LABELS)
    assert torch.allclose(fitted(LOGITS[:, :2]), LOGITS[:, :2] / fitted.temperature)


def test_buffers_of_learned_size_load_into_a_new_defence():
    fitted = ClassMeans().fit(LOGITS, LABELS)
    fresh = ClassMeans()
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh(LOGITS), fitted(LOGITS))
    nested = stack(nn.Identity(), ClassMeans())
    nested.load_state_dict(stack(nn.Identity(), fitted).state_dict())
    assert torch.equal(nested(LOGITS), fitted(LOGITS))


def test_a_failed_fit_leaves_the_defence_unfitted():
    class Fails(ClassMeans):
        def _fit(self, logits, labels):
            raise RuntimeError("no")

    defense = Fails()
    defense.fitted.fill_(True)
    with pytest.raises(RuntimeError, match="no"):
        defense.fit(LOGITS, LABELS)
    assert not bool(defense.fitted)


def test_a_defence_that_forgot_to_define_fit_says_so():
    class NoFit(PostHoc):
        def _map(self, logits):
            return logits

    with pytest.raises(TypeError, match="NoFit declares needs_fit and must define _fit"):
        NoFit().fit(LOGITS, LABELS)


def test_hyperparameters_and_repr():
    defense = CompressionScaling(4, input_range="simplex")
    assert defense.hyperparameters() == {"bins": 4, "total": 15, "input_range": "simplex", "mode": "exact"}
    assert repr(defense) == "CompressionScaling(bins=4, total=15, input_range='simplex', mode='exact')"
    assert defense.unfitted().hyperparameters() == defense.hyperparameters()
    assert not bool(TemperatureScaling().fit(LOGITS, LABELS).unfitted().fitted)


def test_stack_is_the_model_then_the_defence_and_passes_gradients_to_the_image():
    model, defense = nn.Linear(5, 3), TemperatureScaling().fit(LOGITS, LABELS)
    stacked = stack(model, defense)
    assert stacked.defense is defense
    images = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = stacked(images)
    torch.testing.assert_close(out, model(images) / defense.temperature)
    (through,) = torch.autograd.grad(out[:, 0].sum(), images)
    torch.testing.assert_close(through, model.weight[0].div(defense.temperature).expand(2, -1))
    assert {"model.weight", "defense.temperature", "defense.fitted"} <= set(stacked.state_dict())


def test_keep_top_restores_what_rounding_closed_and_changes_nothing_else():
    before = torch.tensor([[1.0, 2.0, 0.0], [2.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    after = torch.tensor([[5.0, 5.0, 5.0], [4.0, 4.0, 4.0], [6.0, 2.0, 4.0]])
    kept = keep_top(before, after)
    assert kept.argmax(1).tolist() == before.argmax(1).tolist()
    assert torch.equal(kept[1, :2], after[1, :2])
    assert torch.equal(kept[2], after[2])
    assert float((kept - after).abs().max()) < 2e-6
    for value in (0.0, -1e30, 1e-45):
        same = torch.full((1, 3), value)
        assert keep_top(torch.tensor([[1.0, 0.0, 2.0]]), same).argmax(1).item() == 2


@pytest.mark.parametrize("defense", [TemperatureScaling(), CompressionScaling(), CompressionScaling(mode="released")])
def test_exports_with_the_model_for_any_batch_size_and_without_waiting_for_a_value(defense):
    stacked = stack(nn.Linear(4, 3), defense.fit(LOGITS, LABELS)).eval()
    exported = torch.export.export(stacked, (torch.zeros(6, 4),), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    images = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(exported(images), stacked(images))
    logits = stacked.model(images).detach()
    whole = torch.compile(defense, backend="eager", fullgraph=True)  # a read-back value would break the graph
    torch.testing.assert_close(whole(logits), defense(logits))
