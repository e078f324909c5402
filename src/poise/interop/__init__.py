"""poise in other people's code: attacks as torchattacks has them, torchmetrics' metrics, a pytest fixture.

`poise.interop.torchmetrics` needs torchmetrics (extra `metrics`); the fixture `poise_audit` is there in every test run
of an environment that has poise.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.interop.torchattack import TorchAttack

__all__ = ["TorchAttack"]


def __getattr__(name: str) -> Any:
    if name == "TorchAttack":  # pytest imports this package, and must not wait for torch
        from poise.interop.torchattack import TorchAttack

        return TorchAttack
    raise AttributeError(f"module 'poise.interop' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
