"""torchattacks for the tests of this folder."""

from libraries import real_torchattacks, torchattacks

__all__ = ["real_torchattacks", "torchattacks"]
