"""Foolbox and torchattacks through our targets: verified, counted, nothing global changed, refusals in one line."""

from __future__ import annotations

import dataclasses
import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import poise
from libraries import peer
from poise import ModuleTarget
from poise.constraints import L2, Box, Constraint, Linf
from poise.errors import AccessError, InputError, MissingExtraError, PoiseError
from poise.objectives import UCA, KeepLabel
from poise.peers import FOOLBOX_ATTACKS, PEER_ATTACKS, TORCHATTACKS, PeerAttack, run_peer
from poise.types import Access, AttackResult
from toys import SmallCNN, binary_case, generator, linear_case, random_states, untouched_generators

IMAGES = torch.rand(6, 3, 8, 8, generator=generator(1))
FEW = {"cw-l2": 20, "ead": 20, "contrast": 50, "salt-and-pepper": 50, "fmn": 30, "ddn": 30, "square": 100}
"""Fewer steps than the table's, for the slow ones."""

WITHIN: dict[str, Constraint] = {"linf": Linf(0.3), "l2": L2(1.5)}


def cnn(**declared: Any) -> ModuleTarget:
    return ModuleTarget(SmallCNN(channels=3), num_classes=4, **declared)


def labels_of(target: ModuleTarget, *, wrong: int | None = None) -> Tensor:
    labels = target.query(IMAGES, torch.arange(6)).labels.clone()
    if wrong is not None:
        labels[wrong] = (labels[wrong] + 1) % target.num_classes
    return labels


def cases(attacks: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(name, norm, id=f"{name}-{norm}")
        for name, one in sorted(attacks.items())
        for norm, value in (("linf", math.inf), ("l2", 2))
        if value in one.kinds
    ]


def check(result: AttackResult, target: ModuleTarget, constraint: Constraint, labels: Tensor) -> None:
    """Every row from the images alone: in ball and box, predictions as told, what was wrong before left clean."""
    table, answer = result.table, target.query(result.images, torch.arange(len(labels)))
    assert bool(constraint.contains(result.images, IMAGES).all())
    assert bool(Box(*target.bounds).contains(result.images).all())
    assert table["prediction_after"].to_list() == answer.labels.tolist()
    right = torch.tensor(table["prediction_before"].to_list()) == labels
    assert table["queries"].to_numpy()[~right.numpy()].tolist() == [1] * int((~right).sum())
    assert torch.equal(result.images[~right], IMAGES[~right])
    assert [stop == "success" for stop in table["stop"]] == (answer.labels != labels).tolist()


def run_and_check(attack: PeerAttack, norm: str) -> None:
    """One attack on a small net whose third label is wrong, with no trace in model and generators."""
    target, constraint = cnn(), WITHIN[norm]
    labels = labels_of(target, wrong=2)
    target.module.train()
    weights = {name: value.clone() for name, value in target.module.state_dict().items()}
    with untouched_generators():
        result = run_peer(attack, target, constraint, IMAGES, labels, steps=FEW.get(attack.name))
        again = run_peer(attack, target, constraint, IMAGES, labels, steps=FEW.get(attack.name))
    assert torch.equal(result.images, again.images), "one seed, two results"
    assert all(part.training for part in target.module.modules())
    assert all(torch.equal(weights[name], value) for name, value in target.module.state_dict().items())
    assert all(value.grad is None for value in target.module.parameters())
    target.module.eval()
    check(result, target, constraint, labels)
    assert bool((result.table["gradients"] > 0).any()) == (attack.access is Access.GRADIENTS)
    if attack.access is Access.GRADIENTS:
        assert (result.table["prediction_after"] != result.table["label"]).sum() >= 3, "flipped next to nothing"


@pytest.mark.parametrize(("name", "norm"), cases(FOOLBOX_ATTACKS))
def test_each_attack_of_foolbox_on_a_small_net(name: str, norm: str, capfd: pytest.CaptureFixture[str]) -> None:
    run_and_check(FOOLBOX_ATTACKS[name], norm)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "norm"), cases(TORCHATTACKS))
def test_each_attack_of_torchattacks_on_a_small_net(
    name: str, norm: str, real_torchattacks: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    run_and_check(TORCHATTACKS[name], norm)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["fgsm", "pgd", "square"])
def test_torchattacks_and_its_stand_in(name: str, torchattacks: ModuleType) -> None:
    run_and_check(TORCHATTACKS[name], "linf")


def test_the_check_of_results_would_notice_a_point_outside_and_a_wrong_row() -> None:
    target = cnn()
    labels = labels_of(target)
    result = run_peer("foolbox-pgd", target, Linf(0.1), IMAGES, labels, steps=5)
    check(result, target, Linf(0.1), labels)
    for images, constraint in ((result.images, Linf(0.05)), (IMAGES, Linf(0.1))):
        with pytest.raises(AssertionError):
            check(dataclasses.replace(result, images=images), target, constraint, labels)


# --- distances on a linear model, against the closed form ---


def test_nearest_wrong_labels_are_the_closed_form(real_torchattacks: ModuleType) -> None:
    case = binary_case(4)
    boundary = 2.0 / float((case.weight[1] - case.weight[0]).norm())
    for name, slack in (("foolbox-deepfool", 0.021), ("torchattacks-deepfool", 0.021), ("torchattacks-fab", 0.06)):
        result = run_peer(name, case.target(), L2(1.1 * boundary), case.images, case.labels)
        assert all(1 <= value / boundary <= 1 + slack for value in result.table["l2"]), name
        nearer = run_peer(name, case.target(), L2(0.9 * boundary), case.images, case.labels)
        assert nearer.table["prediction_after"].to_list() == case.labels.tolist(), "a point outside is no result"


# --- counting ---


@pytest.mark.parametrize("name", ["foolbox-pgd", "foolbox-deepfool", "foolbox-noise", "foolbox-ddn"])
def test_counts_of_one_image_are_those_of_an_instrumented_module(name: str) -> None:
    case = linear_case(1, shape=(3, 8, 8), dtype=torch.float32)
    module = case.module()
    result = run_peer(name, ModuleTarget(module, num_classes=3), L2(0.3), case.images, case.labels, steps=4)
    assert result.table["queries"].to_list() == [module.passes["forward"]]
    assert result.table["gradients"].to_list() == [module.passes["backward"]]
    assert module.passes["forward"] > 3


@pytest.mark.parametrize("name", ["torchattacks-pgd", "torchattacks-square"])
def test_counts_with_torchattacks_are_those_of_an_instrumented_module(name: str, torchattacks: ModuleType) -> None:
    case = linear_case(1, shape=(3, 8, 8), dtype=torch.float32)
    module = case.module()
    result = run_peer(name, ModuleTarget(module, num_classes=3), Linf(1e-3), case.images, case.labels, steps=4)
    assert result.table["queries"].to_list() == [module.passes["forward"]]
    assert result.table["gradients"].to_list() == [module.passes["backward"]]
    assert module.passes["forward"] > 3


# --- what the library is told ---


def test_foolbox_finds_what_foolbox_finds_by_itself() -> None:
    """The basic iterative method draws nothing, so that its points must be the same to rounding."""
    foolbox, target = peer("foolbox"), cnn()
    labels = labels_of(target)
    target.module.eval()
    model = foolbox.PyTorchModel(target.module, bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.LinfBasicIterativeAttack(steps=7)(model, IMAGES, labels, epsilons=0.02)[1]
    ours = run_peer("foolbox-bim", target, Linf(0.02), IMAGES, labels, steps=7)
    flipped = torch.tensor([stop == "success" for stop in ours.table["stop"]])
    assert bool(flipped.any())
    torch.testing.assert_close(ours.images[flipped], theirs[flipped], atol=1e-6, rtol=0)


def test_torchattacks_finds_what_torchattacks_finds_by_itself(real_torchattacks: ModuleType) -> None:
    target = cnn()
    labels = labels_of(target)
    target.module.eval()
    theirs = real_torchattacks.BIM(target.module, eps=0.02, alpha=0.005, steps=7)(IMAGES, labels)
    ours = run_peer("torchattacks-bim", target, Linf(0.02), IMAGES, labels, steps=7)
    flipped = torch.tensor([stop == "success" for stop in ours.table["stop"]])
    assert bool(flipped.any())
    torch.testing.assert_close(ours.images[flipped], theirs[flipped], atol=1e-6, rtol=0)


def test_normalisation_and_device_batches_are_ours() -> None:
    target = ModuleTarget(SmallCNN(channels=3), num_classes=4, mean=[0.5] * 3, std=[0.25] * 3, batch_size=2)
    labels = labels_of(target)
    result = run_peer("foolbox-pgd", target, Linf(0.2), IMAGES, labels)
    check(result, target, Linf(0.2), labels)
    assert (result.table["prediction_after"] != result.table["label"]).all()


def test_bounds_are_the_targets_with_foolbox_and_refused_with_torchattacks(torchattacks: ModuleType) -> None:
    target = cnn(bounds=(-1.0, 2.0))
    labels = labels_of(target)
    found = run_peer("foolbox-pgd", target, Linf(1.0), IMAGES, labels).images
    assert float(found.min()) < -0.5
    assert float(found.max()) > 1.5
    with pytest.raises(InputError, match=r"^torchattacks pgd: needs a target with bounds \(0, 1\), got \(-1.0, 2.0\)$"):
        run_peer("torchattacks-pgd", target, Linf(0.1), IMAGES, labels)


def test_results_may_be_judged_by_any_objective() -> None:
    """A short step lowers the confidence: with KeepLabel(UCA()) what keeps its label is kept, and nothing else."""
    target = cnn()
    labels = labels_of(target)
    table = run_peer("foolbox-fgsm", target, Linf(0.01), IMAGES, labels, objective=KeepLabel(UCA())).table
    assert (table["prediction_after"] == table["prediction_before"]).all()
    assert (table["confidence_after"] <= table["confidence_before"]).all()
    assert (table["confidence_after"] < table["confidence_before"] - 0.01).any()


def test_seeds_and_the_spec() -> None:
    def run(attack: str = "foolbox-pgd", eps: float = 0.02, **given: Any) -> AttackResult:
        target = cnn(batch_size=given.pop("batch_size", 256))
        return run_peer(attack, target, Linf(eps), IMAGES, labels_of(target), steps=given.pop("steps", 3), **given)

    def spec(result: AttackResult) -> str:
        return str(result.table["spec"].unique().item())

    first, other = run(seed=1), run(seed=2)
    assert not torch.equal(first.images, other.images)
    same = {spec(result) for result in (first, other, run(batch_size=2))}
    others = {spec(run("foolbox-bim")), spec(run(eps=0.03)), spec(run(steps=4))}
    assert len(same) == 1
    assert len(others | same) == 4


# --- refusals ---


def test_names_are_recipes_and_an_unknown_one_is_told_the_nearest() -> None:
    assert poise.recipe("foolbox-pgd").access is Access.GRADIENTS
    assert poise.recipe("torchattacks-square").access is Access.SCORES
    assert not set(PEER_ATTACKS) & set(poise.recipes())
    for name, nearest in (("foolbox-pdg", "foolbox-pgd"), ("torchattack-fab", "torchattacks-fab")):
        with pytest.raises(InputError, match=rf"^recipe: .* got '{name}' \(did you mean [^?]*{nearest}") as caught:
            poise.recipe(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("foolbox-pgd", "foolbox", "peers"), ("torchattacks-pgd", "torchattacks", "torchattacks")],
)
def test_without_the_library_one_line_says_what_to_install(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    library = PEER_ATTACKS[name].library
    with pytest.raises(
        MissingExtraError, match=rf"^{library} pgd needs the extra '{extra}': pip install 'poise\[{extra}\]'$"
    ):
        run_peer(name, cnn(), Linf(0.1), IMAGES, labels_of(cnn()))


def test_values_that_make_no_sense_are_refused_in_one_line(torchattacks: ModuleType) -> None:
    labels, case = labels_of(cnn()), binary_case(2)
    for message, error, call in (
        (
            "^Foolbox vat: the norm must be l2, got linf$",
            InputError,
            lambda: run_peer("foolbox-vat", cnn(), Linf(0.1), IMAGES, labels),
        ),
        (
            "^torchattacks fgsm: the norm must be linf, got l2$",
            InputError,
            lambda: run_peer("torchattacks-fgsm", cnn(), L2(0.1), IMAGES, labels),
        ),
        (
            "^Foolbox pgd: eps must be above 0, got 0",
            InputError,
            lambda: run_peer("foolbox-pgd", cnn(), Linf(0.0), IMAGES, labels),
        ),
        (
            "^Foolbox pgd: needs a ModuleTarget with access 'gradients', got 'scores'$",
            AccessError,
            lambda: run_peer("foolbox-pgd", cnn(access=Access.SCORES), Linf(0.1), IMAGES, labels),
        ),
        (
            "^torchattacks apgdt: needs at least 4 classes, got 2$",
            InputError,
            lambda: run_peer("torchattacks-apgdt", case.target(), Linf(0.1), case.images, case.labels),
        ),
        (
            "^Foolbox pgd: steps must be at least 1, got 0$",
            InputError,
            lambda: run_peer("foolbox-pgd", cnn(), Linf(0.1), IMAGES, labels, steps=0),
        ),
        (
            "^Foolbox pgd: constraint must be Linf or L2, got Box$",
            InputError,
            lambda: run_peer("foolbox-pgd", cnn(), Box(), IMAGES, labels),  # type: ignore[arg-type]
        ),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_an_error_inside_a_library_is_one_line_with_its_words(real_torchattacks: ModuleType) -> None:
    grey = ModuleTarget(SmallCNN(channels=1), num_classes=4)
    images, state = IMAGES[:, :1], random_states()
    labels = grey.query(images, torch.arange(6)).labels
    with pytest.raises(
        PoiseError, match=r"^torchattacks tifgsm: stopped by an error inside torchattacks: Given"
    ) as error:
        run_peer("torchattacks-tifgsm", grey, Linf(0.1), images, labels)
    assert "\n" not in str(error.value)
    assert random_states() == state


@dataclasses.dataclass(frozen=True, slots=True)
class _Cropping(PeerAttack):
    """A library that answers with images of another size."""

    library, package, extra = "cropping", "poise", "peers"

    def points(self, bridge: Any, clean: Tensor, labels: Tensor, setting: Any) -> Tensor:
        return clean[..., :-1]


def test_points_of_another_shape_are_refused() -> None:
    attack = _Cropping("crop", "a test", "none", {math.inf: "None"}, lambda setting: {})
    with pytest.raises(PoiseError, match=r"^cropping crop: must return points \(6, 3, 8, 8\), got \(6, 3, 8, 7\)$"):
        run_peer(attack, cnn(), Linf(0.1), IMAGES, labels_of(cnn()))
