"""The shipped checks pass our defences, and every check fails a twin that is broken in that one respect."""

import pytest
import torch

from poise.checks.defenses import CHECKS, DefenseCheckError, Subject, check_defense, draw, hard_rows
from poise.defenses import CompressionScaling, Identity, PostHoc, TemperatureScaling
from poise.errors import InputError

OURS = [
    Identity(),
    TemperatureScaling(),
    CompressionScaling(3),
    CompressionScaling(4, input_range="simplex"),
    CompressionScaling(12),
    CompressionScaling(mode="released"),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("defense", OURS, ids=repr)
def test_our_defences_keep_their_promises(defense, check):
    check_defense(defense, only=[check])


class Twin(TemperatureScaling):
    """Temperature scaling; each subclass breaks one thing."""

    def __init__(self):
        super().__init__()


class HidesArgument(PostHoc):
    needs_fit = False

    def __init__(self, strength=1.0):
        super().__init__()
        self.hidden = strength

    def _map(self, logits):
        return logits


class HasParameter(Twin):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))


class VaguePromise(Twin):
    keeps_label = "mostly"


class StateOutside(Twin):
    """`fitted` is not in the state dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("fitted", torch.tensor(False), persistent=False)


class WorksUnfitted(Twin):
    def forward(self, logits):
        return logits / self.temperature.nan_to_num(1.0)


class ReturnsNothing(Twin):
    def fit(self, logits, labels):
        super().fit(logits, labels)


class Remembers(Twin):
    def _fit(self, logits, labels):
        before = self.temperature.nan_to_num(0.0).clone()
        super()._fit(logits, labels)
        self.temperature += 0.5 * before


class WritesIntoData(Twin):
    def _fit(self, logits, labels):
        super()._fit(logits, labels)
        logits.div_(2)


class DrawsGlobally(Twin):
    def _fit(self, logits, labels):
        super()._fit(logits, labels)
        torch.rand(1)


class MiscountsSamples(Twin):
    def _fit(self, logits, labels):
        super()._fit(logits, labels)

    def fit(self, logits, labels):
        super().fit(logits, labels)
        self.fit_samples += 1
        return self


class AcceptsAnything(Twin):
    def fit(self, logits, labels):
        if len(logits) and logits.isfinite().all():
            labels = (
                labels[:1].expand(len(logits)) if len(labels) < len(logits) else labels.clamp_max(logits.shape[1] - 1)
            )
            self._fit(logits, labels)
        self.fitted.fill_(True)
        return self


class SeveralLines(Twin):
    def fit(self, logits, labels):
        try:
            return super().fit(logits, labels)
        except InputError as error:
            raise InputError(f"{error}\nplease") from error


class TakesAnyShape(Twin):
    def forward(self, logits):
        self.require_fitted()
        return logits / self.temperature


class Widens(Twin):
    def _map(self, logits):
        return super()._map(logits).float()


class WritesIntoLogits(Twin):
    def _map(self, logits):
        return logits.mul_(1 / self.temperature.item())


class Overflows(Twin):
    def _map(self, logits):
        return logits * 10


class FavoursFirstClass(Twin):
    def _map(self, logits):
        return torch.cat([logits[:, :1] + 0.01, logits[:, 1:]], dim=1)


class PlainDivision(Twin):
    """The textbook line: rounding makes neighbours equal, and the lower index wins."""

    def _map(self, logits):
        return (logits / self.temperature).clamp(torch.finfo(logits.dtype).min, torch.finfo(logits.dtype).max)


class SwapsLast(Twin):
    """Reverses the order of the classes below the top."""

    def _map(self, logits):
        top = logits.amax(1, keepdim=True)
        return torch.where(logits == top, logits, logits.amin(1, keepdim=True) + logits.amin(1, keepdim=True) - logits)


class BreaksTies(Twin):
    def _map(self, logits):
        return logits - 1e-3 * torch.arange(logits.shape[1], dtype=logits.dtype)


class FalselyMonotone(Twin):
    """True of one temperature for K = 2, not beyond."""

    monotone = True


class ReleasedButMonotone(CompressionScaling):
    def __init__(self):
        super().__init__(mode="released")
        self.monotone = True

    def unfitted(self):
        return type(self)()

    def hyperparameters(self):
        return {}


class CutsGradient(Twin):
    @torch.no_grad()
    def _map(self, logits):
        return super()._map(logits)


class HoldsTemperature(CompressionScaling):
    """The scale is right, its gradient is forgotten."""

    def _map(self, logits):
        return self.scale(logits).detach()[:, None].to(logits.dtype) * (logits - logits.amax(1, keepdim=True))


class GradientOfNan(Twin):
    def _map(self, logits):
        return torch.where(logits > 1e3, (logits - 1e3).sqrt(), super()._map(logits))


class StochasticWithoutGradient(Twin):
    stochastic = True

    def _map(self, logits):
        return logits.detach() + torch.rand(()) + 0 * logits


class CentresOnBatch(Twin):
    def _map(self, logits):
        return super()._map(logits) - logits.mean(dim=0, keepdim=True)


class SpreadsNan(Twin):
    def _map(self, logits):
        return super()._map(logits) + 0 * logits.sum()


class SecretlyRandom(Twin):
    def _map(self, logits):
        return super()._map(logits) + 1e-3 * torch.rand(
            1, generator=torch.Generator().manual_seed(torch.seed() % 2**31)
        )


class FalselyStochastic(Twin):
    stochastic = True


class DrawsInForward(Twin):
    def _map(self, logits):
        return super()._map(logits) + 0 * torch.rand(1)


class LearnsOutsideBuffers(Twin):
    factor = 1.0

    def _fit(self, logits, labels):
        super()._fit(logits, labels)
        self.factor = float(self.temperature)

    def _map(self, logits):
        return logits / self.factor


class Unpicklable(Twin):
    def _fit(self, logits, labels):
        super()._fit(logits, labels)
        self.helper = lambda: None


class ForgetsFitted(Twin):
    def load_state_dict(self, state_dict, *rest):
        return super().load_state_dict(state_dict | {"fitted": torch.tensor(False)}, *rest)


TWINS = [
    ("contract", HidesArgument, "every constructor argument must be an attribute"),
    ("contract", HasParameter, "must have no parameters"),
    ("contract", VaguePromise, "the promise keeps_label must be True or False"),
    ("contract", StateOutside, "the buffer 'fitted' must be in the state dict"),
    ("unfitted", WorksUnfitted, "forward before fit must raise NotFittedError"),
    ("fit", ReturnsNothing, "fit must return self"),
    ("fit", Remembers, "a refit must forget the fit before it, but 'temperature' differs"),
    ("fit", WritesIntoData, "fit must not write into its arguments"),
    ("fit", DrawsGlobally, "fit must not touch the global random state"),
    ("fit", MiscountsSamples, "fit must set 'fit_samples' to 200"),
    ("bad input", AcceptsAnything, "must raise InputError"),
    ("bad input", SeveralLines, "must be one line"),
    ("bad input", TakesAnyShape, "forward with one row must raise InputError"),
    ("types", Widens, "shape, type and device must stay"),
    ("types", WritesIntoLogits, "forward must not write into its argument"),
    ("finite", Overflows, "outputs must be finite"),
    ("label", FavoursFirstClass, "promises keeps_label, but the label of"),
    ("label", PlainDivision, "promises keeps_label, but the label of"),
    ("order", SwapsLast, "promises keeps_order, but classes change order"),
    ("order", BreaksTies, "promises keeps_order, but classes change order"),
    ("monotone", FalselyMonotone, r"promises monotone, .* \(K = 10\)"),
    ("monotone", ReleasedButMonotone, r"promises monotone"),
    ("gradient", CutsGradient, "the output is cut off from the logits"),
    ("gradient", HoldsTemperature, "autograd is not the finite difference"),
    ("gradient", GradientOfNan, "gradients must be finite"),
    ("gradient", StochasticWithoutGradient, "the gradient is 0 everywhere"),
    ("rows", CentresOnBatch, "a row must not depend on other rows, but alone"),
    ("rows", SpreadsNan, "beside a row of NaN it differs by inf"),
    ("repeat", SecretlyRandom, "does not declare stochastic, but two calls differ|global random state"),
    ("repeat", FalselyStochastic, "declares stochastic, but two calls give the same"),
    ("repeat", DrawsInForward, "forward must not touch the global random state"),
    ("state", LearnsOutsideBuffers, "a copy through its state dict must give the same"),
    ("state", Unpicklable, "must pickle"),
    ("state", ForgetsFitted, "a copy through its state dict must be fitted"),
]


@pytest.mark.parametrize(("check", "twin", "message"), TWINS, ids=[twin.__name__ for _, twin, _ in TWINS])
def test_a_broken_twin_fails_its_check(check, twin, message):
    with pytest.raises(DefenseCheckError, match=message) as caught:
        check_defense(twin(), only=[check])
    assert str(caught.value).startswith(f"{twin.__name__}: ")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, AssertionError)


def test_the_unbroken_twin_passes_and_every_check_has_a_broken_one():
    check_defense(Twin())
    assert {check for check, _, _ in TWINS} == set(CHECKS)


def test_checks_leave_the_defence_as_it_was():
    defense = TemperatureScaling().fit(*draw(100, 5))
    before = {name: value.clone() for name, value in defense.state_dict().items()}
    check_defense(defense)
    assert all(torch.equal(value, before[name]) for name, value in defense.state_dict().items())


def test_unknown_check_names_get_the_nearest():
    with pytest.raises(InputError, match="did you mean label"):
        check_defense(Identity(), only=["labels"])


def test_the_hard_rows_are_hard():
    """Each batch is what its name says, so that the checks see what they claim to see."""
    for classes in (2, 10):
        rows = dict(hard_rows(classes))
        top = {name: logits.topk(2, dim=1).values for name, logits in rows.items()}
        assert bool((top["exact ties of two classes"].diff(dim=1) == 0).any())
        gap = -top["ties up to one rounding step"].diff(dim=1) / top["ties up to one rounding step"].abs()[:, :1]
        assert bool(((gap > 0) & (gap < 3e-7)).any())
        assert bool((rows["saturated rows"].softmax(1).amax(1) == 1).all())
        assert float(rows["rows at the end of the type's range"].abs().amax()) > 3e38
        assert bool((rows["all classes equal"].diff(dim=1) == 0).all())
    accuracy = float((draw(2000, 10)[0].argmax(1) == draw(2000, 10)[1]).double().mean())
    assert 0.4 < accuracy < 0.95


def test_a_subject_hands_out_copies():
    subject = Subject(TemperatureScaling())
    subject.fitted().temperature.fill_(7.0)
    assert float(subject.fitted().temperature) != 7.0
    assert not bool(subject.fresh().fitted)
