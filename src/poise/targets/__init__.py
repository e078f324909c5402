"""What is attacked: anything that answers with scores."""

from poise.targets.base import DifferentiableTarget, Target
from poise.targets.bpda import BPDA
from poise.targets.module import ModuleTarget, Normalize

__all__ = ["BPDA", "DifferentiableTarget", "ModuleTarget", "Normalize", "Target"]
