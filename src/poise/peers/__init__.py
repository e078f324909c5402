"""Other libraries' attacks on our targets: the same result table, verified by the same driver (extra `peers`)."""

from poise.peers.art import ART_ATTACKS, ArtAttack, ArtSetting, run_art

__all__ = ["ART_ATTACKS", "ArtAttack", "ArtSetting", "run_art"]
