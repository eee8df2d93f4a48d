"""Federated training: servers, whole rounds of clients, and what asynchrony asks for."""

from optkit.federated.rounds import RoundInfo, federated_round
from optkit.federated.server import Server, ServerState, server_step

__all__ = ["RoundInfo", "Server", "ServerState", "federated_round", "server_step"]
