"""Other libraries' attacks on our targets: the same result table, verified by the same driver.

Extras: `peers` for ART and Foolbox; `torchattacks`, whose pins go with few other packages.
"""

from poise.peers.art_attacks import ART_ATTACKS, ArtAttack
from poise.peers.base import PeerAttack, PeerSetting, any_norm
from poise.peers.foolbox_attacks import FOOLBOX_ATTACKS, FoolboxAttack
from poise.peers.run import PEER_ATTACKS, run_peer
from poise.peers.torchattacks_attacks import TORCHATTACKS, TorchattacksAttack

__all__ = [
    "ART_ATTACKS",
    "FOOLBOX_ATTACKS",
    "PEER_ATTACKS",
    "TORCHATTACKS",
    "ArtAttack",
    "FoolboxAttack",
    "PeerAttack",
    "PeerSetting",
    "TorchattacksAttack",
    "any_norm",
    "run_peer",
]
