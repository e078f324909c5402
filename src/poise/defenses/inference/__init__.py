"""Inference-time defences: what happens to images, or to the model, while it answers."""

from poise.defenses.inference.base import InferenceDefense, InputDefense, defended
from poise.defenses.inference.dent import Dent, Dented
from poise.defenses.inference.quantize import Quantize
from poise.defenses.inference.random_noise import RandomNoise

__all__ = ["Dent", "Dented", "InferenceDefense", "InputDefense", "Quantize", "RandomNoise", "defended"]
