"""poise: attack, defend and audit the confidence of image classifiers."""

from poise import constraints, data, defenses, metrics, models, objectives, searches
from poise.attacks import Watch, attack
from poise.errors import PoiseError
from poise.recipes import Recipe, recipe, recipes, run_recipe
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
    "constraints",
    "data",
    "defenses",
    "metrics",
    "models",
    "objectives",
    "recipe",
    "recipes",
    "run_recipe",
    "searches",
]
