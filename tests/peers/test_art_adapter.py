"""ART through our targets: exact results, honest counts, nothing global left changed, one line where it cannot run."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poise
from poise import ModuleTarget
from poise.constraints import L2, Box, Constraint, Linf
from poise.errors import AccessError, InputError, MissingExtraError, PoiseError
from poise.peers import ART_ATTACKS, ArtAttack, PeerAttack, PeerSetting, any_norm, run_peer
from poise.peers.art_bridge import art_estimator
from poise.peers.bridge import Bridge
from poise.types import Access, AttackResult, OutputKind
from toys import (
    Case,
    Linear,
    Noisy,
    SmallCNN,
    Softmax,
    binary_case,
    generator,
    linear_case,
    random_states,
    untouched_generators,
)

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
IMAGES = torch.rand(6, 1, 8, 8, generator=generator(1))
QUICK = {"cw-l2": 5, "cw-l2-confident": 5, "zoo": 5, "newtonfool": 20}


def run_art(attack: PeerAttack | str, *data: Any, **run: Any) -> AttackResult:
    """`run_peer` by ART's own names."""
    return run_peer(ART_ATTACKS[attack] if isinstance(attack, str) else attack, *data, **run)


def cnn(**declared: Any) -> ModuleTarget:
    return ModuleTarget(SmallCNN(), num_classes=4, **declared)


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """numpy's and torch's global generators in a given state inside, as they were outside."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def labels_of(target: ModuleTarget, *, wrong: int | None = None) -> Tensor:
    """What the target says of IMAGES, so that every label is right but that of image `wrong`."""
    labels = target.query(IMAGES, torch.arange(6)).labels.clone()
    if wrong is not None:
        labels[wrong] = (labels[wrong] + 1) % target.num_classes
    return labels


def distance_of_boundary(case: Case) -> float:
    """|margin| / ||w||_2 of the two-class toy, whose margins are all 2."""
    return 2.0 / float((case.weight[1] - case.weight[0]).norm())


def check_result(result: AttackResult, target: ModuleTarget, constraint: Constraint, labels: Tensor) -> None:
    """Every row from the images alone: in ball and box, predictions and distances as told, the rest left clean."""
    table, answer = result.table, target.query(result.images, torch.arange(len(labels)))
    assert bool(constraint.contains(result.images, IMAGES).all())
    assert bool(Box(*target.bounds).contains(result.images).all())
    assert table["prediction_after"].to_list() == answer.labels.tolist()
    torch.testing.assert_close(result.scores, answer.scores)
    changed = (result.images - IMAGES).flatten(1)
    assert table["l2"].to_list() == pytest.approx(changed.norm(dim=1).tolist(), abs=1e-6)
    assert table["linf"].to_list() == pytest.approx(changed.abs().amax(dim=1).tolist(), abs=1e-6)
    right = torch.tensor(table["prediction_before"].to_list()) == labels
    assert table["queries"].to_numpy()[~right.numpy()].tolist() == [1] * int((~right).sum())
    assert torch.equal(result.images[~right], IMAGES[~right])
    assert [stop == "success" for stop in table["stop"]] == (answer.labels != labels).tolist()


@pytest.mark.parametrize("constraint", [Linf(0.3), L2(1.0)], ids=["linf", "l2"])
@pytest.mark.parametrize("name", sorted(ART_ATTACKS))
def test_each_attack_on_a_small_net(name: str, constraint: Constraint, capfd: pytest.CaptureFixture[str]) -> None:
    target = cnn()
    labels = labels_of(target, wrong=2)
    with untouched_generators():
        result = run_art(name, target, constraint, IMAGES, labels, steps=QUICK.get(name))
    check_result(result, target, constraint, labels)
    flipped = (torch.tensor(result.table["prediction_after"].to_list()) != labels).sum()
    assert flipped >= 3, "image 2 is wrong from the start: the attack flipped next to nothing"
    assert bool((result.table["gradients"] > 0).any()) == (ART_ATTACKS[name].access is Access.GRADIENTS)
    assert capfd.readouterr() == ("", "")


def test_the_check_of_results_would_notice_a_point_outside_and_a_wrong_row() -> None:
    target = cnn()
    labels = labels_of(target, wrong=2)
    result = run_art("apgd-ce", target, Linf(0.1), IMAGES, labels, steps=10)
    check_result(result, target, Linf(0.1), labels)
    with pytest.raises(AssertionError):
        check_result(result, target, Linf(0.05), labels)
    with pytest.raises(AssertionError):
        check_result(dataclasses.replace(result, images=IMAGES), target, Linf(0.1), labels)
    with pytest.raises(AssertionError):
        check_result(result, target, Linf(0.1), labels_of(target))


# --- distances on a linear model, against the closed form ---


def with_parameters(name: str, **changed: Any) -> ArtAttack:
    base = ART_ATTACKS[name]
    return dataclasses.replace(base, parameters=lambda setting: {**base.parameters(setting), **changed})


def nearest(attack: ArtAttack | str, case: Case) -> list[float]:
    """Distances found, in units of the distance of the boundary; every image is flipped."""
    result = run_art(attack, case.target(), L2(5.0), case.images, case.labels)
    assert bool((result.table["prediction_after"] != result.table["label"]).all())
    return [value / distance_of_boundary(case) for value in result.table["l2"]]


def test_deepfool_on_a_linear_model_is_the_closed_form_with_its_overshoot() -> None:
    case = binary_case(4)
    assert nearest("deepfool", case) == pytest.approx([1.02] * 4, rel=1e-4)
    assert nearest(with_parameters("deepfool", epsilon=0.1), case) == pytest.approx([1.1] * 4, rel=1e-4)


def test_newtonfool_of_two_classes_ends_on_the_boundary_itself() -> None:
    """It lowers the probability to 1/K and no further; shown logits instead, it would go on."""
    case = binary_case(4)
    table = run_art("newtonfool", case.target(), L2(5.0), case.images, case.labels).table
    assert (table["l2"] / distance_of_boundary(case)).to_list() == pytest.approx([1.0] * 4, rel=1e-4)
    assert table["confidence_after"].to_list() == pytest.approx([0.5] * 4, abs=1e-4)
    logits = dataclasses.replace(ART_ATTACKS["newtonfool"], outputs=OutputKind.LOGITS)
    other = run_art(logits, case.target(), L2(5.0), case.images, case.labels).table
    assert (other["l2"] / distance_of_boundary(case)).to_list() != pytest.approx([1.0] * 4, rel=1e-2)


def test_carlini_wagner_approaches_the_boundary_and_its_confident_variant_keeps_five_logits() -> None:
    case = binary_case(4)
    usual = nearest("cw-l2", case)
    fine = nearest(with_parameters("cw-l2", initial_const=0.001, binary_search_steps=20), case)
    assert all(1 <= value < 1.15 for value in usual)
    assert all(1 <= value < 1.02 for value in fine)
    assert not all(value < 1.02 for value in usual), "both settings are alike: the finer one shows nothing"
    result = run_art("cw-l2-confident", case.target(), L2(5.0), case.images, case.labels)
    gap = (result.scores[:, 1] - result.scores[:, 0]).abs()
    assert bool((gap >= 5 - 1e-4).all())
    assert all(value >= 3.5 - 1e-4 for value in nearest("cw-l2-confident", case))  # (2 + 5) / 2


def test_a_nearest_wrong_label_outside_the_ball_is_no_result() -> None:
    case = binary_case(3)
    for eps, flipped in ((0.9, 0), (1.1, 3)):
        result = run_art("deepfool", case.target(), L2(eps * distance_of_boundary(case)), case.images, case.labels)
        assert int((result.table["prediction_after"] != result.table["label"]).sum()) == flipped
        assert torch.equal(result.images, case.images) == (flipped == 0)


# --- counting ---


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "deepfool", "newtonfool", "cw-l2", "zoo"])
def test_counts_of_one_image_are_those_of_an_instrumented_module(name: str) -> None:
    case = linear_case(1, shape=(1, 8, 8), dtype=torch.float32)
    module = case.module()
    result = run_art(name, ModuleTarget(module, num_classes=3), Linf(0.3), case.images, case.labels, steps=4)
    assert result.table["queries"].to_list() == [module.passes["forward"]]
    assert result.table["gradients"].to_list() == [module.passes["backward"]]
    assert module.passes["forward"] > 3


def test_counts_of_a_batch_are_shared_by_those_attacked_and_rounded_up() -> None:
    case = linear_case(7, shape=(1, 8, 8), dtype=torch.float32)
    module = case.module()
    target = ModuleTarget(module, num_classes=3, batch_size=4)
    table = run_art("apgd-ce", target, Linf(0.3), case.images, case.labels, steps=4).table
    right = (table["prediction_before"] == table["label"]).to_numpy()
    assert table["queries"].to_numpy()[~right].tolist() == [1] * int((~right).sum())
    assert 0 < int((~right).sum()) < 7
    for column, kind in (("queries", "forward"), ("gradients", "backward")):
        surplus = int(table[column].sum()) - module.passes[kind]
        assert 0 <= surplus < right.sum(), (column, surplus)
    succeeded = table.filter(table["queries_to_success"].is_not_null())
    assert succeeded["queries_to_success"].to_list() == succeeded["queries"].to_list()


# --- what ART sees ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_art_receives_are_autograds_and_leave_no_trace_in_the_model(dtype: torch.dtype) -> None:
    module = SmallCNN().to(dtype).train()
    target = ModuleTarget(module, num_classes=4, batch_size=4, mean=[0.4], std=[0.3])
    bridge, labels = Bridge(target, OutputKind.LOGITS), torch.arange(6) % 4
    with target.session(0):
        estimator = art_estimator(bridge, IMAGES.shape[1:], "test")
        given = estimator.loss_gradient(IMAGES.numpy(), np.eye(4, dtype=np.float32)[labels])
        every = estimator.class_gradient(IMAGES.numpy())
        x = IMAGES.to(dtype, copy=True).requires_grad_(True)
        scores = target.module(x)
        (expected,) = torch.autograd.grad(nn.functional.cross_entropy(scores, labels), x, retain_graph=True)
        classes = [torch.autograd.grad(scores[:, k].sum(), x, retain_graph=True)[0] for k in range(4)]
    torch.testing.assert_close(torch.as_tensor(given), expected.float(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(torch.as_tensor(every), torch.stack(classes, 1).float(), rtol=1e-4, atol=1e-6)
    assert (bridge.forwards, bridge.backwards) == (12, 6 + 4 * 6)
    assert all(value.grad is None for value in module.parameters())


def test_mode_hooks_and_statistics_of_the_model_stay() -> None:
    target = cnn()
    labels = labels_of(target)
    target.module.train()
    before = {name: value.clone() for name, value in target.module.state_dict().items()}
    run_art("apgd-ce", target, Linf(0.1), IMAGES, labels, steps=3)
    assert all(part.training for part in target.module.modules())
    assert all(torch.equal(before[name], value) for name, value in target.module.state_dict().items())
    assert not any(part._forward_hooks or part._backward_hooks for part in target.module.modules())
    assert all(value.grad is None for value in target.module.parameters())


def test_probabilities_are_shown_to_art_as_logits() -> None:
    case = linear_case(5, shape=(1, 8, 8), dtype=torch.float32)
    plain = ModuleTarget(case.module(), num_classes=3)
    softmax = ModuleTarget(Softmax(case.module()), num_classes=3, outputs="probabilities")
    found = [run_art("apgd-dlr", t, Linf(0.2), case.images, case.labels, steps=5) for t in (plain, softmax)]
    torch.testing.assert_close(found[0].images, found[1].images)
    assert not torch.equal(found[0].images, case.images)


# --- randomness ---


def test_a_seed_fixes_the_result_and_another_seed_changes_it() -> None:
    """Whatever state the global generators are in, for numpy (ART's draws) and torch (the model's) each on its own."""
    labels = labels_of(cnn())
    for module, attack in ((SmallCNN(), "apgd-ce"), (Noisy(SmallCNN()), "deepfool")):
        target, found = ModuleTarget(module, num_classes=4), []
        for seed, state in ((1, 10), (1, 11), (2, 10)):
            with seeded_generators(state):
                found.append(run_art(attack, target, L2(1.0), IMAGES, labels, seed=seed, steps=4).images)
        first, again, other = found
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_generators_are_put_back_even_where_art_fails() -> None:
    target = cnn()
    labels, state = labels_of(target), random_states()
    with pytest.raises(PoiseError):
        run_art(fake("stops"), target, Linf(0.1), IMAGES, labels)
    assert random_states() == state


# --- what comes back from ART is not trusted ---


class _Fake:
    """Something that answers like an ART attack."""

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour

    def generate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        np.random.rand()  # noqa: NPY002 - as ART does
        if self.behaviour == "stops":
            raise IndexError("too many\nlines")
        return x + (np.nan if self.behaviour == "nan" else 0.5)


@dataclass(frozen=True, slots=True)
class _FakeAttack(ArtAttack):
    def make(self, estimator: Any, setting: PeerSetting) -> Any:
        return _Fake(self.name)


def fake(name: str, *, bounded: bool = False) -> ArtAttack:
    return _FakeAttack(name, "a test", "none", any_norm("None"), lambda setting: {}, bounded=bounded)


def test_points_outside_are_projected_for_attacks_of_the_ball_and_dropped_for_the_others() -> None:
    target = cnn()
    labels = labels_of(target)
    inside = run_art(fake("far", bounded=True), target, Linf(0.05), IMAGES, labels)
    dropped = run_art(fake("far"), target, Linf(0.05), IMAGES, labels)
    assert inside.table["linf"].max() == pytest.approx(0.05, abs=1e-6)
    assert torch.equal(dropped.images, IMAGES)
    assert dropped.table["queries"].to_list() == [2] * 6


def test_points_that_are_not_numbers_are_never_asked() -> None:
    result = run_art(fake("nan"), cnn(), Linf(0.05), IMAGES, labels_of(cnn()))
    assert torch.equal(result.images, IMAGES)
    assert result.table["queries"].to_list() == [1] * 6
    assert set(result.table["stop"]) == {"finished"}


def test_where_art_fails_the_clean_image_stays() -> None:
    case = binary_case(4)
    target = case.target()
    result = run_art("apgd-ce", target, L2(0.3 * distance_of_boundary(case)), case.images, case.labels, steps=3)
    assert result.table["prediction_after"].to_list() == case.labels.tolist()
    assert set(result.table["stop"]) == {"finished"}
    assert result.table["queries_to_success"].null_count() == 4


def test_batches_keep_labels_ids_and_order() -> None:
    target, ids = cnn(batch_size=2), torch.tensor([9, -4, 7, 0, 3, 100])
    labels = labels_of(target, wrong=3)
    result = run_art("deepfool", target, L2(2.0), IMAGES, labels, ids)
    check_result(result, target, L2(2.0), labels)
    assert result.table["id"].to_list() == ids.tolist()
    assert result.table["label"].to_list() == labels.tolist()
    whole = run_art("deepfool", cnn(), L2(2.0), IMAGES, labels, ids)
    torch.testing.assert_close(result.images, whole.images, rtol=0, atol=1e-5)
    told = run_art("apgd-ce", target, Linf(0.3), IMAGES, labels, ids, steps=10)  # follows the labels it is given
    assert (told.table["prediction_after"] != told.table["label"]).all()


def test_arts_calls_are_batches_of_the_target_even_where_art_asks_for_one_image_at_a_time() -> None:
    target, sizes = cnn(batch_size=50), []
    labels = labels_of(target)
    hook = target.module.register_forward_hook(lambda module, given, answer: sizes.append(len(given[0])))
    run_art("zoo", target, L2(1.0), IMAGES, labels, steps=1)
    hook.remove()
    assert max(sizes) == 50


def test_no_images_give_an_empty_table_and_doubles_stay_doubles() -> None:
    target = cnn()
    empty = run_art("apgd-ce", target, Linf(0.1), IMAGES[:0], torch.zeros(0, dtype=torch.int64))
    assert (len(empty.table), len(empty.images)) == (0, 0)
    double = run_art("deepfool", target, L2(2.0), IMAGES.double(), labels_of(target, wrong=0))
    assert double.images.dtype is torch.float64
    assert torch.equal(double.images[0], IMAGES[0].double())


# --- the spec ---


def test_the_spec_tells_attacks_and_parameters_apart_and_nothing_else() -> None:
    def spec(attack: ArtAttack | str, eps: float = 0.1, steps: int = 2, flip: bool = False, **run: Any) -> str:
        target = cnn(batch_size=run.pop("batch_size", 8))
        images, labels = (IMAGES.flip(0), labels_of(target).flip(0)) if flip else (IMAGES, labels_of(target))
        (found,) = run_art(attack, target, Linf(eps), images, labels, steps=steps, **run).table["spec"].unique()
        return str(found)

    base = spec("apgd-ce")
    assert {spec("apgd-ce", batch_size=3), spec("apgd-ce", seed=5), spec("apgd-ce", flip=True)} == {base}
    slower = with_parameters("apgd-ce", nb_random_init=2)
    others = {spec("apgd-dlr"), spec("apgd-ce", steps=3), spec("apgd-ce", eps=0.2), spec(slower)}
    assert len(others | {base}) == 5


# --- refusals ---


def test_without_art_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "art", None)
    with pytest.raises(MissingExtraError, match=r"^ART cw-l2 needs the extra 'peers': pip install 'poise\[peers\]'$"):
        run_art("cw-l2", cnn(), Linf(0.1), IMAGES, labels_of(cnn()))


def test_white_box_attacks_refuse_a_target_without_gradients_and_zoo_takes_it() -> None:
    target = cnn(access=Access.SCORES)
    labels = labels_of(target)
    for name, entry in ART_ATTACKS.items():
        if entry.access is Access.GRADIENTS:
            with pytest.raises(AccessError, match=rf"^ART {name}: needs .* access 'gradients', got 'scores'$"):
                run_art(name, target, Linf(0.1), IMAGES, labels)
    assert len(run_art("zoo", target, L2(1.0), IMAGES, labels, steps=1).table) == 6
    for level in (cnn(access=Access.LABELS), object()):
        with pytest.raises(AccessError, match=r"^ART zoo: needs a ModuleTarget with access 'scores', got "):
            run_art("zoo", level, L2(1.0), IMAGES, labels)  # type: ignore[arg-type]


def test_values_that_make_no_sense_are_refused_in_one_line() -> None:
    labels = labels_of(cnn())
    two = ModuleTarget(Linear(torch.rand(2, 1, 8, 8)), num_classes=2)
    for message, call in {
        r"^attack of another library: .* got 'art-apgd' \(did you mean": lambda: run_peer(
            "art-apgd", cnn(), Linf(0.1), IMAGES, labels
        ),
        "^ART apgd-ce: eps must be above 0, got 0": lambda: run_art("apgd-ce", cnn(), L2(0.0), IMAGES, labels),
        "^ART apgd-dlr: needs at least 3 classes, got 2$": lambda: run_art("apgd-dlr", two, L2(1), IMAGES, labels),
        "^ART deepfool: steps must be at least 1, got 0$": lambda: run_art(
            "deepfool", cnn(), L2(1), IMAGES, labels, steps=0
        ),
        "^ART deepfool: constraint must be Linf or L2, got Box$": lambda: run_art(
            "deepfool",
            cnn(),
            Box(),  # type: ignore[arg-type]
            IMAGES,
            labels,
        ),
        "^attack: images must be a torch tensor": lambda: run_art(
            "deepfool",
            cnn(),
            L2(1),
            IMAGES.numpy(),  # type: ignore[arg-type]
            labels,
        ),
        "^attack: labels must be in 0..3": lambda: run_art("deepfool", cnn(), L2(1), IMAGES, labels + 9),
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_an_error_inside_art_is_one_line_with_arts_words() -> None:
    with pytest.raises(PoiseError, match=r"^ART stops: stopped by an error inside ART: too many lines$") as caught:
        run_art(fake("stops"), cnn(), Linf(0.1), IMAGES, labels_of(cnn()))
    assert isinstance(caught.value.__cause__, IndexError)


# --- AutoAttack ---


def test_the_suite_is_arts_own_and_leaves_no_lent_module_behind() -> None:
    import art.attacks.evasion as evasion

    target = cnn()
    setting = PeerSetting(0.1, math.inf, 0, None, 8, 64, 4)
    made = ART_ATTACKS["autoattack"].make(
        art_estimator(Bridge(target, OutputKind.LOGITS), IMAGES.shape[1:], "test"), setting
    )
    assert [type(member).__name__ for member in made.attacks] == [
        "AutoProjectedGradientDescent",
        "AutoProjectedGradientDescent",
        "DeepFool",
        "SquareAttack",
    ]
    assert [member.max_iter for member in made.attacks] == [100, 100, 100, 5000]
    assert not [name for name in dir(evasion) if "fab" in name.lower()], "ART has FAB now: offer it"
    run_art("autoattack", target, Linf(0.1), IMAGES, labels_of(target), steps=2)
    assert sys.modules.get("multiprocess") is not multiprocessing


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is missing")
def test_autoattack_leaves_no_right_label_of_a_plain_resnet20() -> None:
    file = SHARED / "checkpoints" / "cifar10_resnet20.safetensors"
    target = poise.models.load(f"builtin:resnet20-cifar10?weights={file}", device="cpu")
    with np.load(SHARED / "cifar10_test_lossless_subset.npz") as data:
        images = torch.from_numpy(data["images"][:16]).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(data["labels"][:16])
    result = run_art("autoattack", target, Linf(8 / 255), images, labels, steps=20)
    assert int((result.table["prediction_before"] == result.table["label"]).sum()) == 16
    assert int((result.table["prediction_after"] == result.table["label"]).sum()) == 0
    assert result.table["linf"].max() <= 8 / 255 + 1e-6
