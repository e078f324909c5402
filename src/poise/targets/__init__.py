"""What is attacked: anything that answers with scores.

The HTTP client and its schema checks are imported when `HttpTarget` is first used.
"""

from typing import TYPE_CHECKING, Any

from poise.targets.base import DifferentiableTarget, Target
from poise.targets.batch_size import fitting_batch_size
from poise.targets.bpda import BPDA
from poise.targets.function import FunctionTarget
from poise.targets.journal import Journal
from poise.targets.mixed import Mixed
from poise.targets.module import ModuleTarget, Normalize
from poise.targets.onnx import OnnxTarget
from poise.targets.onnx_file import onnx_fingerprint
from poise.targets.purse import Purse
from poise.targets.views import LabelsOnly, Probabilities, Rounded, TopK, view

if TYPE_CHECKING:
    from poise.targets.http import HttpTarget

__all__ = [
    "BPDA",
    "DifferentiableTarget",
    "FunctionTarget",
    "HttpTarget",
    "Journal",
    "LabelsOnly",
    "Mixed",
    "ModuleTarget",
    "Normalize",
    "OnnxTarget",
    "Probabilities",
    "Purse",
    "Rounded",
    "Target",
    "TopK",
    "fitting_batch_size",
    "onnx_fingerprint",
    "view",
]


def __getattr__(name: str) -> Any:
    if name == "HttpTarget":
        from poise.targets.http import HttpTarget

        return HttpTarget
    raise AttributeError(f"module 'poise.targets' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
