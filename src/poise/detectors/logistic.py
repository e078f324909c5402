"""The regression behind every detector: scikit-learn's, with or without cross-validated strength."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Logistic:
    """A fitted regression.

    Args:
        model: scikit-learn's.
        centre, width: (F,) what features are standardised with; None where they are not.
        converged: every fit ended before its last iteration.
    """

    model: Any
    centre: NDArray[np.float64] | None
    width: NDArray[np.float64] | None
    converged: bool

    def probability(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, F) to the probability (n,) that a row is of the second kind."""
        found = self.model.predict_proba(_standardised(features, self.centre, self.width))[:, 1]
        return np.asarray(found, dtype=np.float64)

    def auroc(self, features: NDArray[np.floating], kinds: NDArray[np.int64]) -> float:
        """How well it orders rows of both kinds, by the score before the logistic function, which never saturates."""
        from sklearn.metrics import roc_auc_score

        scores = self.model.decision_function(_standardised(features, self.centre, self.width))
        return float(roc_auc_score(kinds, scores))


def fit_logistic(
    features: NDArray[np.floating],
    kinds: NDArray[np.int64],
    *,
    cross_validated: bool,
    scale: bool,
    max_iter: int,
) -> Logistic:
    """Fits a regression with scikit-learn's defaults; the strength by five folds and accuracy where cross-validated.

    Args:
        features: (n, F).
        kinds: (n,) in {0, 1}, at least two of each.
        cross_validated: `LogisticRegressionCV`, as Lee et al. 2018; else `LogisticRegression`, as Harder et al. 2021.
        scale: standardise the features first.
        max_iter: of each fit; one that needs more is kept as it is, and `converged` says so.

    >>> rows = np.array([[0.0], [0.1], [0.9], [1.0]])
    >>> found = fit_logistic(rows, np.array([0, 0, 1, 1]), cross_validated=False, scale=False, max_iter=100)
    >>> found.auroc(rows, np.array([0, 0, 1, 1])), found.converged
    (1.0, True)
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

    centre = width = None
    if scale:
        centre, width = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        width[width == 0] = 1
    model: Any
    if cross_validated:
        folds = int(min(FOLDS, np.bincount(kinds, minlength=2).min()))
        model = LogisticRegressionCV(cv=folds, max_iter=max_iter, scoring="accuracy", **_newer(LogisticRegressionCV))
    else:
        model = LogisticRegression(max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(_standardised(features, centre, width), kinds)
    return Logistic(model, centre, width, bool((np.asarray(model.n_iter_) < max_iter).all()))


def _standardised(
    features: NDArray[np.floating], centre: NDArray[np.float64] | None, width: NDArray[np.float64] | None
) -> NDArray[np.floating]:
    return features if centre is None or width is None else (features - centre) / width


def _newer(kind: Any) -> dict[str, Any]:
    """What scikit-learn from 1.8 on wants to be told, so as not to warn of its coming defaults."""
    known = inspect.signature(kind).parameters
    return {"l1_ratios": (0,), "use_legacy_attributes": False} if "use_legacy_attributes" in known else {}
