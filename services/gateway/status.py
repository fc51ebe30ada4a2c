"""What `tandem status` shows of the gateway."""

from dataclasses import dataclass

from services.gateway.load import Load
from services.gateway.replicas import ReplicaSet
from services.gateway.reporting import Throughput
from tandem.routing.membership import ReplicaState


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica, now."""

    name: str
    state: ReplicaState
    is_ready: bool
    load: Load


@dataclass(frozen=True, slots=True)
class Status:
    """Now; the totals count from the gateway's start. A service is connected when it is in every replica."""

    load: Load
    num_requests_total: int
    num_output_tokens_total: int
    prefill_connected: bool
    decode_connected: bool
    memd_connected: bool
    requests_per_s: float
    tokens_per_s: float
    replicas: tuple[ReplicaStatus, ...]


class StatusView:
    """Gathers what others know."""

    def __init__(self, replicas: ReplicaSet, throughput: Throughput) -> None:
        self._replicas = replicas
        self._throughput = throughput

    def now(self) -> Status:
        """See `Status`."""
        return Status(
            load=self._replicas.load,
            num_requests_total=self._throughput.requests.num_total,
            num_output_tokens_total=self._throughput.tokens.num_total,
            prefill_connected=self._connected("prefill"),
            decode_connected=self._connected("decode"),
            memd_connected=self._connected("memd"),
            requests_per_s=self._throughput.requests.per_second(),
            tokens_per_s=self._throughput.tokens.per_second(),
            replicas=tuple(
                ReplicaStatus(each.name, self._replicas.state(each), each.is_ready, each.orchestrator.load)
                for each in self._replicas
            ),
        )

    def _connected(self, peer: str) -> bool:
        links = [replica.peers.connected(peer) for replica in self._replicas]
        return bool(links) and all(links)
