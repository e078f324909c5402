"""Penultimate features against an independent forward pass, and their place in two dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_models import SIDE, Convolved, Linear

from poise.errors import InputError
from poise.experiments.explain_features import embed, features, separation


def clusters(shift: float = 0.0, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Two classes of points in five dimensions, `6 - shift` apart."""
    rng = np.random.default_rng(1)
    labels = np.arange(n) % 2
    return rng.normal(size=(n, 5)) + (6 - shift) * labels[:, None], labels


def test_features_are_what_the_head_is_given() -> None:
    model, x = Convolved(), torch.rand(7, 1, SIDE, SIDE)
    layer, found, logits = features(model, x, batch_size=3)
    with torch.no_grad():
        expected = model.body(x).mean(dim=(2, 3))
        assert torch.allclose(logits, model(x), atol=1e-5)
    assert layer == "head"
    assert found == pytest.approx(expected.numpy(), abs=1e-6)
    assert model.training, "its mode is as it was"
    assert not any(part._forward_hooks for part in model.modules())


def test_a_model_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(InputError, match="the model must have a linear layer, got none"):
        features(Linear(), torch.rand(2, 1, SIDE, SIDE), batch_size=2)


def test_versions_share_one_frame_and_repeat_exactly() -> None:
    """The same features lie in the same place of every panel; so does all of a second run."""
    (points, labels), (moved, _) = clusters(), clusters(5.5)
    found = embed(
        {"clean": points, "same": points, "moved": moved}, dict.fromkeys(("clean", "same", "moved"), labels), seed=3
    )
    again = embed(
        {"clean": points, "same": points, "moved": moved}, dict.fromkeys(("clean", "same", "moved"), labels), seed=3
    )
    for name, part in found.tsne.items():
        assert np.array_equal(part, again.tsne[name])
    assert np.array_equal(found.pca["clean"], found.pca["same"])
    assert np.linalg.norm(found.tsne["clean"] - found.tsne["same"], axis=1).max() < 0.2 * np.ptp(found.tsne["clean"])
    assert found.separation["clean"] > 0.6 > 0.2 > found.separation["moved"]
    assert found.perplexity == pytest.approx((60 - 1) / 3)
    assert 0 < found.variance[1] <= found.variance[0] <= 1


def test_components_are_those_of_the_covariance() -> None:
    points, labels = clusters()
    found = embed({"clean": points}, {"clean": labels}, seed=0)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    along = (points - points.mean(axis=0)) @ vectors[:, ::-1][:, :2]
    assert np.abs(found.pca["clean"]) == pytest.approx(np.abs(along), abs=1e-9)
    assert found.variance == pytest.approx(values[::-1][:2] / values.sum())


def silhouette_by_loop(points: np.ndarray, labels: np.ndarray) -> float:
    scores = []
    for i in range(len(points)):
        far = np.linalg.norm(points - points[i], axis=1)
        own = (labels == labels[i]) & (np.arange(len(points)) != i)
        if not own.any():
            scores.append(0.0)
            continue
        a = far[own].mean()
        b = min(far[labels == k].mean() for k in set(labels) - {labels[i]})
        scores.append((b - a) / max(a, b))
    return float(np.mean(scores))


def test_separation_agrees_with_its_definition() -> None:
    points, labels = clusters(4.0)
    labels = np.where(np.arange(len(labels)) == 0, 2, labels)
    assert separation(points, labels) == pytest.approx(silhouette_by_loop(points, labels))
    assert separation(points, np.zeros(20, dtype=np.int64)) is None
    assert separation(points, np.arange(20)) is None


def test_too_few_or_equal_points_are_refused() -> None:
    labels = np.zeros(7, dtype=np.int64)
    for points in (np.ones((7, 3)), np.ones((30, 3)), np.arange(30.0)[:, None]):
        with pytest.raises(InputError, match="at least 8 different points of 2 features"):
            embed({"clean": points}, {"clean": labels}, seed=0)
