"""poise: attack, defend and audit the confidence of image classifiers.

Names are imported when they are first used: `import poise` is instant, and `poise.metrics` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise import checks, constraints, data, defenses, metrics, models, objectives, report, searches
    from poise.attacks import Watch, attack
    from poise.errors import PoiseError
    from poise.recipebook import Recipe, recipe, recipes, run_recipe
    from poise.targets import ModuleTarget, Target
    from poise.types import Access, AttackResult, OutputKind, Outputs

__version__ = "0.1.0"

__all__ = [
    "Access",
    "AttackResult",
    "ModuleTarget",
    "OutputKind",
    "Outputs",
    "PoiseError",
    "Recipe",
    "Target",
    "Watch",
    "attack",
    "checks",
    "constraints",
    "data",
    "defenses",
    "metrics",
    "models",
    "objectives",
    "recipe",
    "recipes",
    "report",
    "run_recipe",
    "searches",
]

_HOMES = {
    "poise.attacks": ("Watch", "attack"),
    "poise.errors": ("PoiseError",),
    "poise.recipebook": ("Recipe", "recipe", "recipes", "run_recipe"),
    "poise.targets": ("ModuleTarget", "Target"),
    "poise.types": ("Access", "AttackResult", "OutputKind", "Outputs"),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    if name in __all__:
        return import_module(f"poise.{name}")
    raise AttributeError(f"module 'poise' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
