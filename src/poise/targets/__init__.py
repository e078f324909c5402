"""What is attacked: anything that answers with scores."""

from poise.targets.base import DifferentiableTarget, Target
from poise.targets.bpda import BPDA
from poise.targets.function import FunctionTarget
from poise.targets.http import HttpTarget
from poise.targets.journal import Journal
from poise.targets.module import ModuleTarget, Normalize
from poise.targets.onnx import OnnxTarget
from poise.targets.onnx_file import onnx_fingerprint
from poise.targets.purse import Purse
from poise.targets.views import LabelsOnly, Probabilities, Rounded, TopK, view

__all__ = [
    "BPDA",
    "DifferentiableTarget",
    "FunctionTarget",
    "HttpTarget",
    "Journal",
    "LabelsOnly",
    "ModuleTarget",
    "Normalize",
    "OnnxTarget",
    "Probabilities",
    "Purse",
    "Rounded",
    "Target",
    "TopK",
    "onnx_fingerprint",
    "view",
]
