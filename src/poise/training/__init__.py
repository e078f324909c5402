"""Training-time defences: recipes, methods and their losses, adversarial batches, and one loop on Lightning Fabric."""

from poise.training.base import Batch, Method, Update
from poise.training.methods import METHODS
from poise.training.recipe import UPDATES, TrainingRecipe, training_recipe, training_recipes

__all__ = [
    "METHODS",
    "UPDATES",
    "Batch",
    "Method",
    "TrainingRecipe",
    "Update",
    "training_recipe",
    "training_recipes",
]
