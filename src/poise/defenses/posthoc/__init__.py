"""Defences from logits to logits."""

from poise.defenses.posthoc.aaa import AAA
from poise.defenses.posthoc.compression import CompressionScaling
from poise.defenses.posthoc.histogram import HistogramBinning
from poise.defenses.posthoc.identity import Identity
from poise.defenses.posthoc.isotonic import Isotonic
from poise.defenses.posthoc.multi_domain import Domain, MultiDomainTemperature
from poise.defenses.posthoc.platt import Platt
from poise.defenses.posthoc.remap import TopScore, with_confidence
from poise.defenses.posthoc.scaling import MatrixScaling, VectorScaling
from poise.defenses.posthoc.splines import Splines
from poise.defenses.posthoc.temperature import TemperatureScaling

__all__ = [
    "AAA",
    "CompressionScaling",
    "Domain",
    "HistogramBinning",
    "Identity",
    "Isotonic",
    "MatrixScaling",
    "MultiDomainTemperature",
    "Platt",
    "Splines",
    "TemperatureScaling",
    "TopScore",
    "VectorScaling",
    "with_confidence",
]
