"""Defences of a classifier's confidence."""

from poise.defenses.base import PoiseWarning, PostHoc, stack
from poise.defenses.io import load, save
from poise.defenses.posthoc import CompressionScaling, Identity, TemperatureScaling
from poise.defenses.registry import DEFENSES, make

__all__ = [
    "DEFENSES",
    "CompressionScaling",
    "Identity",
    "PoiseWarning",
    "PostHoc",
    "TemperatureScaling",
    "load",
    "make",
    "save",
    "stack",
]
