"""The adaptive attacker: the worst per sample, never an image that breaks the goal's condition, and what he knows."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from poise import ModuleTarget
from poise.defenses import (
    HistogramBinning,
    Identity,
    InferenceDefense,
    Isotonic,
    PostHoc,
    Quantize,
    TemperatureScaling,
    make_any,
    summaries,
)
from poise.experiments.defend_adaptive import Member, judge
from poise.experiments.defend_attackers import KNOWLEDGE, Averaged, Gradient, knowledge, surrogate
from poise.experiments.served import behind
from poise.recipebook import Setting, ball, recipe

SETTING = Setting(ball("linf", 0.2), 40, 10)


class Pixels(nn.Module):
    """The pixels of (n, 1, 1, 2) images are the logits, three times."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1)


def pixels(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows).view(-1, 1, 1, 2)


def target() -> ModuleTarget:
    return ModuleTarget(Pixels(), num_classes=2)


CLEAN = pixels((0.9, 0.1), (0.9, 0.1), (0.9, 0.1))
TRUTH = torch.zeros(3, dtype=torch.int64), torch.arange(3)
MEMBERS = {
    "through": Member(pixels((0.8, 0.2), (0.6, 0.4), (0.7, 0.3))),  # margins 0.6, 0.2, 0.4
    "bare": Member(pixels((0.7, 0.3), (0.7, 0.3), (0.3, 0.7))),  # margins 0.4, 0.4, and a label that changed
}


def test_the_worst_is_taken_for_every_sample_and_a_changed_label_is_not() -> None:
    judged = judge(target(), recipe("pgd-uca"), CLEAN, MEMBERS, TRUTH, 0)
    assert judged.rows["attack"].to_list() == ["bare", "through", "through"]
    assert judged.rows["accepted_bare"].to_list() == [True, True, False]
    assert torch.equal(judged.images, pixels((0.7, 0.3), (0.6, 0.4), (0.7, 0.3)))
    expected = torch.sigmoid(3 * torch.tensor([0.4, 0.2, 0.4]))
    assert torch.allclose(judged.rows["confidence_after"].to_torch().float(), expected, atol=1e-6)


def test_one_column_for_all_samples_would_be_weaker() -> None:
    """The broken twin: the better of the two attacks as a whole is worse than the choice for every sample."""
    both = judge(target(), recipe("pgd-uca"), CLEAN, MEMBERS, TRUTH, 0).rows["confidence_after"].mean()
    for name, member in MEMBERS.items():
        found = {name: Member(member.images[:2])}
        alone = judge(target(), recipe("pgd-uca"), CLEAN[:2], found, (TRUTH[0][:2], TRUTH[1][:2]), 0)
        assert alone.rows["confidence_after"].mean() > both - 1e-9


def test_an_attack_on_labels_takes_the_changed_label() -> None:
    judged = judge(target(), recipe("pgd"), CLEAN, MEMBERS, TRUTH, 0)
    assert judged.rows["attack"].to_list() == ["bare", "through", "bare"]
    assert judged.rows["prediction_after"].to_list() == [0, 0, 1]


def test_where_no_attack_is_accepted_one_is_taken_all_the_same() -> None:
    flipped = {"through": Member(pixels((0.2, 0.8))), "bare": Member(pixels((0.1, 0.9)))}
    judged = judge(target(), recipe("pgd-uca"), CLEAN[:1], flipped, (TRUTH[0][:1], TRUTH[1][:1]), 0)
    assert judged.rows["attack"].to_list() == ["bare"]  # the lower gap of the two
    assert not judged.rows["accepted_bare"][0]


def test_what_was_recorded_at_the_boundary_counts() -> None:
    """The label of a tie depends on the batch; without the record the image would be refused."""
    record = pl.DataFrame(
        {
            "prediction_before": [0],
            "prediction_after": [0],
            "confidence_after": [0.5],
            "brier_after": [0.5],
            "nll_after": [0.7],
        }
    )
    one, tie = (TRUTH[0][:1], TRUTH[1][:1]), pixels((0.49999, 0.50001))
    for recorded, chosen in ((record, "bare"), (None, "through")):
        found = {"through": Member(pixels((0.8, 0.2))), "bare": Member(tie, recorded)}
        rows = judge(target(), recipe("pgd-uca"), CLEAN[:1], found, one, 0).rows
        assert rows["attack"].to_list() == [chosen]
        assert rows["prediction_after"].to_list() == [0]
    assert (
        judge(target(), recipe("pgd-uca"), CLEAN[:1], {"bare": Member(tie, record)}, one, 0).rows["nll_after"][0] == 0.7
    )


def test_every_defence_of_the_registry_has_its_attacker() -> None:
    assert KNOWLEDGE.keys() == summaries().keys()


@pytest.mark.parametrize("name", summaries())
def test_straight_through_is_said_of_differentiable_defences_alone(name: str) -> None:
    known, defence = KNOWLEDGE[name], make_any(name)
    if known.gradient is Gradient.STRAIGHT:
        assert defence.differentiable
        assert not defence.stochastic
    assert known.why


class Noisy(PostHoc):
    stochastic = True
    needs_fit = False

    def _map(self, logits: Tensor) -> Tensor:
        return logits + 0.1 * torch.randn_like(logits)


class Rounded(PostHoc):
    differentiable = False
    needs_fit = False

    def _map(self, logits: Tensor) -> Tensor:
        return logits.round()


def test_an_unknown_defence_is_attacked_by_its_promises() -> None:
    found = [knowledge("mine", defence).gradient for defence in (Identity(), Rounded(), Noisy())]
    assert found == [Gradient.STRAIGHT, Gradient.BPDA, Gradient.EOT]


def test_bpda_moves_what_a_flat_defence_stops() -> None:
    """Values of the defended model, gradient of the bare one; through the defence alone the gradient is zero."""
    bare, defence = target(), Rounded()
    served = behind(bare, defence)
    pair = surrogate(knowledge("mine", defence), recipe("adaptive"), bare, served, defence)
    assert pair is not None
    changed, stand_in = pair
    images, ids = pixels((0.9, 0.1)), torch.arange(1)
    for gradient_of, moves in ((served, False), (stand_in, True)):
        outputs, slope = gradient_of.gradient(images, ids, lambda answer: answer.logits[:, 0] - answer.logits[:, 1])
        assert torch.equal(outputs.scores, served.query(images, ids).scores)
        assert bool(slope.any()) is moves
    result = changed.run(stand_in, images, torch.tensor([0]), SETTING)
    assert result.table["gradients"][0] > 0
    stuck = recipe("adaptive").run(served, images, torch.tensor([0]), SETTING)
    assert result.table["confidence_after"][0] < stuck.table["confidence_after"][0]


class Halved(InferenceDefense):
    """Answers with half the logits; says that its gradient is of no use, and gives none."""

    differentiable = False

    def around(self, model: nn.Module) -> nn.Module:
        class Half(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                answer: Tensor = model(x).detach() / 2 + 0 * x.sum()
                return answer

        return Half()


@pytest.mark.parametrize("defence", [Quantize(2), Halved()], ids=["input", "around"])
def test_bpda_goes_around_defences_in_front_of_and_around_the_model(defence: InferenceDefense) -> None:
    bare = target()
    served = behind(bare, defence)
    pair = surrogate(knowledge("mine", defence), recipe("adaptive"), bare, served, defence)
    assert pair is not None
    images, ids = pixels((0.9, 0.1)), torch.arange(1)
    for gradient_of, slope in ((served, [0.0, 0.0]), (pair[1], [3.0, -3.0])):
        outputs, found = gradient_of.gradient(images, ids, lambda answer: answer.logits[:, 0] - answer.logits[:, 1])
        assert torch.equal(outputs.scores, served.query(images, ids).scores)
        assert found.flatten().tolist() == pytest.approx(slope)


def test_eot_averages_and_is_charged_for_it() -> None:
    bare, defence = target(), Noisy()
    pair = surrogate(knowledge("mine", defence), recipe("pgd-uca"), bare, behind(bare, defence), defence)
    assert pair is not None
    search = pair[0].search(SETTING)
    assert isinstance(search, Averaged)
    assert search.source.samples > 1
    table = pair[0].run(pair[1], pixels((0.9, 0.1)), torch.tensor([0]), SETTING).table
    assert table["gradients"][0] >= search.source.samples
    assert table["queries"][0] <= SETTING.budget


@pytest.mark.parametrize(("name", "defence"), [("isotonic", Isotonic()), ("histogram", HistogramBinning())])
def test_black_box_attacks_and_straight_defences_need_nothing_more(name: str, defence: PostHoc) -> None:
    bare = target()
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]] * 20), torch.tensor([0, 1, 1, 1] * 10)
    served = behind(bare, defence.fit(logits, labels))
    assert surrogate(KNOWLEDGE[name], recipe("sa-uca"), bare, served, defence) is None
    assert surrogate(KNOWLEDGE[name], recipe("pgd-uca"), bare, served, defence) is not None
    straight = TemperatureScaling().fit(logits, labels)
    assert surrogate(KNOWLEDGE["ts"], recipe("pgd-uca"), bare, behind(bare, straight), straight) is None


def test_a_model_of_probabilities_is_defended_on_its_logits() -> None:
    class Soft(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(dim=1)

    soft = ModuleTarget(Soft(), num_classes=2, outputs="probabilities")
    images, ids = pixels((0.9, 0.1)), torch.arange(1)
    answer = behind(soft, Identity()).query(images, ids)
    assert torch.allclose(answer.probabilities, soft.query(images, ids).probabilities, atol=1e-6)
