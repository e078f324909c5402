"""Models as targets: architectures that no library has, and loading from everywhere else."""

from poise.models.builtin import BUILTIN, Builtin
from poise.models.heads import freeze_backbone, head_name, renew_head
from poise.models.robustbench import ROBUSTBENCH
from poise.models.sources import blank, code_fingerprint, load, names
from poise.models.variants import VARIANTS, DenoisingBlock, Ensemble, Variant, add_denoising, inject_noise
from poise.models.weights import bare, fingerprint, load_weights, read_state

__all__ = [
    "BUILTIN",
    "ROBUSTBENCH",
    "VARIANTS",
    "Builtin",
    "DenoisingBlock",
    "Ensemble",
    "Variant",
    "add_denoising",
    "bare",
    "blank",
    "code_fingerprint",
    "fingerprint",
    "freeze_backbone",
    "head_name",
    "inject_noise",
    "load",
    "load_weights",
    "names",
    "read_state",
    "renew_head",
]
