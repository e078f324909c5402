"""Defences of a classifier's confidence."""

from poise.defenses.base import PoiseWarning, PostHoc, stack
from poise.defenses.features import ByFeatures, FeatureDefended, features_and_logits, last_linear, make_domains
from poise.defenses.inference import Dent, InferenceDefense, Quantize, RandomNoise, defended
from poise.defenses.io import load, provenance, save
from poise.defenses.posthoc import (
    AAA,
    CompressionScaling,
    Domain,
    HistogramBinning,
    Identity,
    Isotonic,
    MatrixScaling,
    MultiDomainTemperature,
    Platt,
    Splines,
    TemperatureScaling,
    TopScore,
    VectorScaling,
    with_confidence,
)
from poise.defenses.registry import DEFENSES, INFERENCE, make, make_any, summaries

__all__ = [
    "AAA",
    "DEFENSES",
    "INFERENCE",
    "ByFeatures",
    "CompressionScaling",
    "Dent",
    "Domain",
    "FeatureDefended",
    "HistogramBinning",
    "Identity",
    "InferenceDefense",
    "Isotonic",
    "MatrixScaling",
    "MultiDomainTemperature",
    "Platt",
    "PoiseWarning",
    "PostHoc",
    "Quantize",
    "RandomNoise",
    "Splines",
    "TemperatureScaling",
    "TopScore",
    "VectorScaling",
    "defended",
    "features_and_logits",
    "last_linear",
    "load",
    "make",
    "make_any",
    "make_domains",
    "provenance",
    "save",
    "stack",
    "summaries",
    "with_confidence",
]
