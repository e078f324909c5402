"""What is attacked: anything that answers with scores."""

from poise.targets.base import DifferentiableTarget, Target
from poise.targets.module import ModuleTarget, Normalize

__all__ = ["DifferentiableTarget", "ModuleTarget", "Normalize", "Target"]
