"""Defences from logits to logits."""

from poise.defenses.posthoc.compression import CompressionScaling
from poise.defenses.posthoc.identity import Identity
from poise.defenses.posthoc.temperature import TemperatureScaling

__all__ = ["CompressionScaling", "Identity", "TemperatureScaling"]
