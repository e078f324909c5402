"""Settings of every test: one reproducible hypothesis profile, one thread per worker, audits with few temperatures."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "poise",
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("poise")

AUDITING = {"cli", "experiments", "interop", "peers", "report", "serve"}
"""Folders whose tests make audits."""


@pytest.fixture(scope="module", autouse=True)
def few_temperatures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Audits look for an illusion of robustness through 1 and `cal` alone, by short attacks: else 27 attacks of each.

    Not in `test_audit_trust`, whose subject it is.
    """
    if request.path.parent.name not in AUDITING or request.path.stem == "test_audit_trust":
        yield
        return
    from poise import illusion
    from poise.experiments.trust import by_temperature

    whole = illusion.illusion_of_robustness

    def searched(short: Any, cal: float) -> float:
        return min((1.0, cal), key=lambda temperature: short.cost(math.log10(temperature)))

    def quick(*given: Any, **named: Any) -> illusion.Illusion:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(illusion, "_searched", searched)
            return whole(*given, **{"steps": 2, **named})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_temperature, "illusion_of_robustness", quick)
        yield
