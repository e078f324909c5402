"""How bad calibration can get while every predicted label stays."""

from __future__ import annotations

from poise.errors import InputError


def mma_bound(accuracy: float, num_classes: int) -> float:
    """Largest ECE that an attacker who changes no label can reach: 1 - q / K.

    Calibration Attacks, proposition 3.1: the correct answers at confidence 1/K, the wrong ones at 1. No classifier with
    this accuracy has a larger ECE, for ECE <= mean |correct - confidence| and confidences lie in [1/K, 1]. It is
    reached if 1/K and 1 fall in different bins, and only in the limit: at exactly 1/K all K classes tie.

    Args:
        accuracy: share q of correct predictions, in [0, 1].
        num_classes: number K of classes, at least 2.

    Returns:
        The bound, in [1 - 1/K, 1].

    Raises:
        InputError: accuracy outside [0, 1] or fewer than two classes.

    >>> round(mma_bound(0.7, 10), 2)
    0.93
    """
    _check("mma_bound", accuracy, num_classes)
    return 1 - accuracy / num_classes


def mma_ks(accuracy: float, num_classes: int) -> float:
    """KS error of the configuration that reaches `mma_bound`: max(q (1 - 1/K), |q (1 - 1/K) - (1 - q)|).

    This is what `ks_error` shows when the attack has done all it can, not the largest KS error there is: that is
    max(q (1 - 1/K), 1 - q), for the running sum never leaves [-(1 - q), q (1 - 1/K)].

    Args:
        accuracy: share q of correct predictions, in [0, 1].
        num_classes: number K of classes, at least 2.

    Returns:
        The error, in [0, 1].

    Raises:
        InputError: accuracy outside [0, 1] or fewer than two classes.

    >>> round(mma_ks(0.7, 10), 2)
    0.63
    """
    _check("mma_ks", accuracy, num_classes)
    up = accuracy * (1 - 1 / num_classes)
    return max(up, abs(up - (1 - accuracy)))


def _check(caller: str, accuracy: float, num_classes: int) -> None:
    if not 0 <= accuracy <= 1:
        raise InputError(f"{caller}: accuracy must be in [0, 1], got {accuracy}")
    if isinstance(num_classes, bool) or num_classes != int(num_classes) or num_classes < 2:
        raise InputError(f"{caller}: num_classes must be a whole number of at least 2, got {num_classes}")
