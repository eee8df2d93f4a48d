"""Which entries train: the wrapper ``update_mask`` and the policies that it takes."""

from optkit.masks.entries import fixed, magnitude, own, random
from optkit.masks.greedy import (
    curvature_search,
    greedy_blocks,
)
from optkit.masks.id3 import (
    Id3State,
    id3,
)
from optkit.masks.ist import IstState, ist, ist_scores, ist_sets
from optkit.masks.lift import lift
from optkit.masks.paca import paca
from optkit.masks.policy import Active, Look, Policy
from optkit.masks.progressive import decayed_weights
from optkit.masks.s2ft import (
    s2ft,
    s2ft_permute,
)
from optkit.masks.snella import SnellaState, snella, snella_share
from optkit.masks.wrapper import UpdateMaskState, update_mask

__all__ = [
    "Active",
    "Id3State",
    "IstState",
    "Look",
    "Policy",
    "SnellaState",
    "UpdateMaskState",
    "curvature_search",
    "decayed_weights",
    "fixed",
    "greedy_blocks",
    "id3",
    "ist",
    "ist_scores",
    "ist_sets",
    "lift",
    "magnitude",
    "own",
    "paca",
    "random",
    "s2ft",
    "s2ft_permute",
    "snella",
    "snella_share",
    "update_mask",
]
