"""AAA's published Adam procedure against autograd and torch.optim, and how the temperature is tuned."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.checks.defenses import CHECKS, check_defense, draw, hard_rows
from poise.defenses import AAA, load, save
from poise.defenses.posthoc import aaa as module
from poise.defenses.posthoc import aaa_exact
from poise.metrics import ece

RECORDS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "records"
ADAM = AAA(solver="adam", temperature=2.0)


def wide(rows):
    return torch.tensor(rows, dtype=torch.float64)


def published(logits, defense, *, steps=100, anchored=True, mean=False):
    """Algorithm 1 with autograd and torch's own Adam, class-anchored or on the current top two."""
    rows = aaa_exact.read(logits)
    target = defense.target(logits)
    confidence = (logits / defense.used_temperature).softmax(1).amax(1)
    z = logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        top, probability = z.gather(1, rows.top), z.softmax(1)
        if anchored:
            margin = top - z.scatter(1, rows.top, -torch.inf).amax(1, keepdim=True)
            own = probability.gather(1, rows.top)[:, 0]
        else:
            high = z.topk(2).values
            margin, own = high[:, :1] - high[:, 1:], probability.amax(1)
        far = (margin[:, 0] - target).abs() + defense.beta * (own - confidence).abs()
        (far.mean() if mean else far.sum()).backward()
        optimizer.step()
    return z.detach()


@pytest.mark.parametrize("variant", ["linear", "sine"])
@pytest.mark.parametrize(("classes", "temperature"), [(2, 1.0), (10, 2.0), (50, 0.7)])
def test_it_is_the_published_procedure(variant, classes, temperature):
    logits, _ = draw(40, classes, seed=classes, dtype=torch.float64)
    defense = AAA(variant, "adam", temperature=temperature)
    expected = published(logits, defense)
    kept = expected.argmax(1) == logits.argmax(1)
    assert int(kept.sum()) > 30
    torch.testing.assert_close(defense(logits)[kept], expected[kept], atol=1e-6, rtol=0)
    fewer = published(logits, defense, steps=90)
    assert float((defense(logits) - fewer)[kept].abs().amax()) > 0.02  # the number of steps is seen


def test_no_steps_change_nothing():
    logits, _ = draw(20, 5)
    assert torch.equal(AAA(solver="adam", steps=0, temperature=1.0)(logits), logits)


@pytest.mark.parametrize(
    ("row", "temperature", "adam", "exact"),
    [
        ([3.0, 2.5, 2.0, 0.0, 0.0], 1.0, (1.34, 0.494, 4.22), (5.5, 0.984, 2.51)),
        ([6.0, 0.5, 0.0, 0.0, -1.0], 2.0, (0.957, 0.719, 1.051), (0.962, 0.7236, 1.033)),
    ],
)
def test_it_is_a_local_solver(row, temperature, adam, exact):
    logits = wide([row])
    for solver, expected in (("adam", adam), ("exact", exact)):
        defense = AAA(solver=solver, temperature=temperature)
        out = defense(logits)
        margin = -out.topk(2).values.diff().item()
        found = (margin, out.softmax(1).amax().item(), defense.objective(logits, out).item())
        assert found == pytest.approx(expected, abs=6e-3)


def test_both_solvers_agree_in_the_upper_half_of_an_interval():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 10, generator=generator, dtype=torch.float64)
    top, other = logits.topk(2).indices.T
    margin = 6 * torch.randint(0, 2, (200,), generator=generator) + 3 + 2.9 * torch.rand(200, generator=generator)
    logits[range(200), top] = logits[range(200), other] + margin
    adam, exact = AAA(solver="adam", temperature=1.0), AAA(temperature=1.0)
    margins = [-defense(logits).topk(2).values.diff()[:, 0] for defense in (adam, exact)]
    objectives = [defense.objective(logits, defense(logits)) for defense in (adam, exact)]
    assert float((margins[0] - margins[1]).abs().quantile(0.95)) < 0.15
    assert float((objectives[0] - objectives[1]).quantile(0.95)) < 0.1
    assert bool((objectives[1] <= objectives[0] + 1e-9).all())


def test_the_anchor_and_the_guard_keep_the_labels_that_the_published_margin_loses():
    logits = 2 * torch.randn(400, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moved = published(logits, ADAM, anchored=False).argmax(1) != logits.argmax(1)
    assert int(moved.sum()) > 10
    anchored = published(logits, ADAM).argmax(1) != logits.argmax(1)
    assert int(anchored.sum()) < int(moved.sum())
    assert torch.equal(ADAM(logits).argmax(1), logits.argmax(1))


def test_a_row_that_lost_its_label_takes_the_exact_output():
    logits = 0.7 * torch.randn(3000, 10, generator=torch.Generator().manual_seed(2))
    rows, exact = aaa_exact.read(logits), AAA(temperature=2.0)
    lost = ADAM._descend(logits, rows, ADAM._confidence(rows)).argmax(1) != logits.argmax(1)
    crossed = AAA("sine", "adam", alpha=3.0, temperature=2.0)  # some targets are negative: the row wants another label
    for defense, least in ((ADAM, 0), (crossed, 1)):
        found = defense._descend(logits, rows, defense._confidence(rows)).argmax(1) != logits.argmax(1)
        assert int(found.sum()) >= least
        twin = AAA(defense.variant, alpha=defense.alpha, temperature=2.0)
        assert torch.equal(defense(logits)[found], twin(logits)[found])
    assert torch.equal(ADAM(logits)[lost], exact(logits)[lost])


def test_a_row_that_overflows_leaves_the_others_alone(monkeypatch):
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, exact = ADAM(logits), AAA(temperature=2.0)(logits)
    descend = AAA._descend
    spoilt = torch.tensor([[0.0], [torch.inf], [0.0]], dtype=torch.float64)
    monkeypatch.setattr(AAA, "_descend", lambda *arguments: descend(*arguments) + spoilt)
    found = ADAM(logits)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert torch.equal(found[1], exact[1])
    assert not torch.equal(expected[0], exact[0])


def test_the_sum_makes_rows_independent_and_the_mean_does_not():
    logits, _ = draw(64, 10, seed=1, dtype=torch.float64)
    alone = torch.cat([ADAM(row[None]) for row in logits])
    assert torch.equal(ADAM(logits), alone)
    twin = torch.cat([published(row[None], ADAM, mean=True) for row in logits[:12]])
    assert float((published(logits, ADAM, mean=True)[:12] - twin).abs().amax()) > 1e-3


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("defense", [ADAM, AAA("sine", "adam", steps=20, temperature=1.0)], ids=repr)
def test_it_keeps_its_promises(defense, check):
    check_defense(defense, only=[check])


def test_it_is_cut_off_from_the_logits_and_says_so():
    assert AAA.differentiable
    assert AAA().differentiable
    assert not ADAM.differentiable
    logits = draw(3, 4)[0].requires_grad_()
    assert not ADAM(logits).requires_grad
    assert AAA(temperature=1.0)(logits).requires_grad


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_no_label_moves(classes):
    defense = AAA("sine", "adam", steps=30, temperature=0.5)
    logits = torch.randn(20_000 if classes < 1000 else 500, classes, generator=torch.Generator().manual_seed(3))
    for given in (logits * 0.1, logits * 3, *(rows for _, rows in hard_rows(classes))):
        assert torch.equal(defense(given).argmax(1), given.argmax(1))


# --- the temperature ---


def test_the_grid_is_the_papers_and_one():
    grid = module.grid()
    assert len(grid) == 1999
    assert bool((grid.diff() > 0).all())
    assert set(np.round(grid[:1000].numpy() * 1000)) == set(range(1, 1001))
    torch.testing.assert_close(grid, grid.flip(0).reciprocal(), rtol=1e-15, atol=0)


def test_the_error_is_the_metric():
    confidence = torch.rand(7, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    confidence[0, :30] = torch.arange(30) % 16 / 15  # on the edges
    correct = (torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.6).double()
    expected = [ece(row.numpy(), correct.numpy(), bins=15) for row in confidence]
    np.testing.assert_allclose(module.calibration_errors(confidence, correct).numpy(), expected, atol=1e-12)


def output_error(defense, logits, labels):
    confidence = defense(logits).double().softmax(1).amax(1)
    return ece(confidence.clamp_max(1).numpy(), (logits.argmax(1) == labels).numpy(), bins=15)


@pytest.mark.parametrize("variant", ["linear", "sine"])
def test_no_temperature_of_the_grid_calibrates_the_output_better(variant):
    logits, labels = draw(150, 6, seed=3, dtype=torch.float64)
    logits = 0.5 * logits
    defense = AAA(variant).fit(logits, labels)
    fitted = float(defense.used_temperature)
    assert fitted in module.grid().tolist()
    errors = {
        t: output_error(AAA(variant, temperature=t), logits, labels) for t in [*module.grid()[::7].tolist(), fitted]
    }
    assert errors[fitted] <= min(errors.values()) + 1e-9
    assert max(errors.values()) > errors[fitted] + 0.01


def test_blocks_do_not_change_the_fit(monkeypatch):
    data = draw(100, 5, seed=1)
    whole = AAA().fit(*data).used_temperature
    monkeypatch.setattr(module, "_BLOCK", 700)
    assert torch.equal(AAA().fit(*data).used_temperature, whole)


def test_adam_is_tuned_in_two_passes_around_the_best():
    logits, labels = draw(60, 4, seed=2, dtype=torch.float64)
    defense = AAA(solver="adam", steps=10).fit(0.5 * logits, labels)
    fitted = float(defense.used_temperature)
    grid = module.grid().tolist()
    at = grid.index(fitted)
    error = output_error(defense, 0.5 * logits, labels)
    for t in [*grid[999 % 20 :: 100], *grid[max(at - 5, 0) : at + 6]]:
        other = AAA(solver="adam", steps=10, temperature=t)
        assert error <= output_error(other, 0.5 * logits, labels) + 1e-9
    assert float(AAA().fit(0.5 * logits, labels).used_temperature) != fitted


def test_ties_go_to_the_temperature_nearest_one():
    temperatures = wide([0.25, 0.5, 1.5, 4.0])
    assert module._best(temperatures, wide([0.1, 0.0, 0.0, 0.0])) == 1.5


def test_a_given_temperature_needs_no_fit_and_is_not_forgotten(tmp_path):
    defense = AAA(temperature=2.5)
    assert not defense.needs_fit
    assert AAA.needs_fit
    assert float(defense.fit(*draw(20, 3)).used_temperature) == 2.5
    for given in (defense, AAA("sine", tau=4.0).fit(*draw(50, 3))):
        save(given, tmp_path / "aaa.safetensors")
        loaded, logits = load(tmp_path / "aaa.safetensors"), draw(5, 3)[0]
        assert torch.equal(loaded(logits), given(logits))
        assert loaded.hyperparameters() == given.hyperparameters()
    assert math.isnan(float(AAA().used_temperature))


@pytest.mark.parametrize("variant", ["linear", "sine"])
def test_real_records(variant):
    """A wide ResNet's recorded probabilities: labels stay, and the fit helps, on held-out rows too."""
    file = RECORDS / "wideresnet-16-4-cifar-10.npz"
    if not file.is_file():
        pytest.skip("the recorded probabilities in ../shared/data/records are not here")
    with np.load(file, allow_pickle=False) as data:
        logits = torch.from_numpy(data["probabilities"]).clamp_min(torch.finfo(torch.float32).tiny).log()
        labels = torch.from_numpy(data["labels"]).flatten()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        defense = AAA(variant).fit(logits[:5000], labels[:5000])
    held, truth = logits[5000:], labels[5000:]
    out = defense(held)
    assert torch.equal(out.argmax(1), held.argmax(1))
    plain = output_error(AAA(variant, temperature=1.0), logits[:5000], labels[:5000])
    assert output_error(defense, logits[:5000], labels[:5000]) < plain
    assert output_error(defense, held, truth) < output_error(AAA(variant, temperature=1.0), held, truth) + 0.002
