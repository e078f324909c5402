"""Models as targets: architectures that no library has, and loading from everywhere else."""

from poise.models.builtin import BUILTIN, Builtin
from poise.models.sources import code_fingerprint, load, names
from poise.models.weights import fingerprint, load_weights, read_state

__all__ = ["BUILTIN", "Builtin", "code_fingerprint", "fingerprint", "load", "load_weights", "names", "read_state"]
