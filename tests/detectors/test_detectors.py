"""The contract, on every detector: scores, refits, streams, modes, hooks, and bad input in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score

from detector_cases import checkered, hooks, network, pictures
from poise import data
from poise.detectors import DETECTORS, LID, InputMFS, gaussian_noise, make, perturbation_rms, summaries
from poise.detectors.logistic import fit_logistic
from poise.errors import InputError, NotFittedError
from poise.targets import FunctionTarget

N = 120
REFERENCE = pictures(150, seed=8)


def fitted(name: str, seed: int = 0, size: float = 0.1):
    images, _ = pictures(N, seed=seed)
    return make(name).fit(network(), images, gaussian_noise(images, 0.05), checkered(images, size), reference=REFERENCE)


@pytest.mark.parametrize("name", DETECTORS)
def test_attacked_images_are_more_suspicious(name: str) -> None:
    detector, (images, _) = fitted(name), pictures(90, seed=3)
    scores = np.concatenate([detector.score(images), detector.score(checkered(images))])
    assert scores.shape == (180,)
    assert scores.dtype == np.float64
    assert ((scores >= 0) & (scores <= 1)).all()
    assert roc_auc_score(np.repeat([0, 1], 90), scores) > 0.8


@pytest.mark.parametrize("name", DETECTORS)
def test_a_refit_forgets_and_a_row_stands_alone(name: str) -> None:
    twice, once = fitted(name, seed=1, size=0.3), fitted(name)
    images, _ = pictures(N, seed=0)
    attacked, noisy = checkered(images), gaussian_noise(images, 0.05)
    twice.fit(network(), images, noisy, attacked, reference=REFERENCE)
    probe, _ = pictures(30, seed=4)
    assert twice.chosen == once.chosen
    assert twice.score(probe) == pytest.approx(once.score(probe), abs=1e-9)
    assert once.score(probe[10:20]) == pytest.approx(once.score(probe)[10:20], abs=1e-5)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_target_is_left_as_it_was(name: str) -> None:
    detector, target = make(name), network()
    target.module.train()
    images, _ = pictures(N)
    state = torch.random.get_rng_state()
    detector.fit(target, images, None, checkered(images), reference=REFERENCE)
    detector.score(images)
    assert target.module.training
    assert hooks(target.module) == 0
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", DETECTORS)
def test_streamed_images_are_the_same_as_tensors(name: str) -> None:
    images, labels = pictures(N)
    pixels, bright = (np.asarray(part * 255, dtype=np.uint8) for part in (images[:, 0], checkered(images)[:, 0]))
    streams = [data.from_arrays(part, labels.numpy()) for part in (pixels, bright)]
    target = network()
    one = make(name).fit(target, streams[0], None, streams[1], reference=streams[0])
    tensors = [part.images for part in streams]
    other = make(name).fit(target, tensors[0], None, tensors[1], reference=(tensors[0], labels))
    assert one.score(streams[1]) == pytest.approx(other.score(tensors[1]), abs=1e-9)


@pytest.mark.parametrize("name", DETECTORS)
def test_before_a_fit_and_with_too_little_it_says_so(name: str) -> None:
    images, _ = pictures(9)
    with pytest.raises(NotFittedError, match=f"{make(name).name}: must be fitted before use"):
        make(name).score(images)
    with pytest.raises(InputError, match=r"must have at least 10 images of each kind to fit, got \[9, 9\]"):
        make(name).fit(network(), images, None, images, reference=REFERENCE)


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "input-mfs"])
def test_what_reads_layers_needs_a_module_with_layers(name: str) -> None:
    images, _ = pictures(20)
    blind = FunctionTarget(lambda x: np.full((len(x), 4), 0.25), num_classes=4, outputs="probabilities")
    with pytest.raises(InputError, match="reads layers, the target must be a module, got a FunctionTarget"):
        make(name).fit(blind, images, None, images, reference=REFERENCE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("lib"), "did you mean lid"),
        (lambda: InputMFS(max_iter=0), "input-mfs: max_iter and batch_size must be at least 1, got 0, None"),
        (lambda: LID(batch_size=0), "lid: max_iter and batch_size must be at least 1, got 1000, 0"),
        (lambda: InputMFS().fit(network(), torch.zeros(3, 4), None, torch.zeros(3, 4)), "got (3, 4) torch.float32"),
        (lambda: InputMFS().fit(network(), [1], None, [2]), "images: must be a tensor or have batches(), got list"),
        (lambda: gaussian_noise(torch.zeros(1, 1, 2, 2), -1), "noise: std must be at least 0 and finite, got -1"),
        (lambda: perturbation_rms(torch.zeros(1, 2), torch.zeros(2, 1)), "must have the shape of the clean ones"),
    ],
)
def test_bad_input_is_one_line(call, message) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_noise_has_its_size_and_is_drawn_by_id() -> None:
    images = torch.full((50, 1, 8, 8), 0.5)
    noisy = gaussian_noise(images, 0.05, ids=torch.arange(50) + 7, seed=1)
    assert perturbation_rms(images, noisy) == pytest.approx(0.05, rel=0.05)
    assert torch.equal(gaussian_noise(images[3:], 0.05, ids=torch.arange(47) + 10, seed=1), noisy[3:])
    assert float(gaussian_noise(images, 5.0).max()) == 1


def test_the_regression_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    rows, kinds = rng.normal(size=(80, 3)) + np.repeat([0, 1], 40)[:, None], np.repeat([0, 1], 40)
    found = fit_logistic(rows, kinds, cross_validated=True, scale=False, max_iter=1000)
    options = {"l1_ratios": (0,), "use_legacy_attributes": False}
    other = LogisticRegressionCV(cv=5, scoring="accuracy", max_iter=1000, **options).fit(rows, kinds)
    assert found.probability(rows) == pytest.approx(other.predict_proba(rows)[:, 1], abs=1e-12)
    short = fit_logistic(rows, kinds, cross_validated=False, scale=True, max_iter=1)
    assert not short.converged
    assert found.converged


def test_the_hyper_parameter_is_chosen_on_the_second_half() -> None:
    """A candidate that is perfect on the half that is fitted on, and useless on the other, is not chosen."""
    rng = np.random.default_rng(0)
    honest = {kind: rng.normal(size=(40, 1)) + kind for kind in (0, 1)}
    lucky = {kind: np.r_[np.full((20, 1), 9.0 * kind), rng.normal(size=(20, 1))] for kind in (0, 1)}
    groups = [{1.0: lucky[kind], 2.0: honest[kind]} for kind in (0, 1)]
    assert LID((2,)).learn(groups[0], None, groups[1]).chosen == 2.0


def test_every_detector_has_a_line() -> None:
    assert list(summaries()) == list(DETECTORS)
    assert all(summaries().values())
