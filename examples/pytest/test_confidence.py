"""Gates a model's confidence in one's own test suite: `pytest examples/pytest`.

The fixture `poise_audit` is there as soon as poise is installed. A network that is made in Python is given by this very
file: replace FACTORY by what loads yours, and the digits by your images.
"""

from pathlib import Path

import pytest

FACTORY = f"py:{Path(__file__).as_posix()}:network?num_classes=10"


def network():
    """An nn.Module from images in [0, 1] to logits; here, the embedded one."""
    import poise

    return poise.models.load("builtin:digits").module


@pytest.fixture(scope="module")
def audit(poise_audit):
    return poise_audit(FACTORY, "builtin:digits", recipes=("standard", "sa-mma"), samples=64, eps=0.05, budget=100)


def test_confidence_keeps_its_limits(audit):
    audit.check(most={"ece_after": 0.6}, least={"accuracy_after": 0.8})


def test_the_label_keeping_attack_moves_no_label(audit):
    assert audit.value("accuracy_after", "sa-mma") == audit.value("accuracy_before", "sa-mma")
