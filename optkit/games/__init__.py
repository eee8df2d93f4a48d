"""Variational inequalities and consensus: solvers for many nodes with an operator of their own."""

from optkit.games.admm import DualFreeState, dual_free_admm
from optkit.games.base import Solver, average, on_nodes
from optkit.games.gossip import (
    DadaoState,
    GossipSolver,
    dadao,
)
from optkit.games.graphs import Events, Graph, graph, sample_events
from optkit.games.local import (
    LocalState,
    ProxSkipState,
    extragradient,
    fedgda_gt,
    local_gda,
    proxskip_vip,
)
from optkit.games.reduced import Loopless, LooplessState, loopless

__all__ = [
    "DadaoState",
    "DualFreeState",
    "Events",
    "GossipSolver",
    "Graph",
    "LocalState",
    "Loopless",
    "LooplessState",
    "ProxSkipState",
    "Solver",
    "average",
    "dadao",
    "dual_free_admm",
    "extragradient",
    "fedgda_gt",
    "graph",
    "local_gda",
    "loopless",
    "on_nodes",
    "proxskip_vip",
    "sample_events",
]
