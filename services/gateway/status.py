"""What `tandem status` shows of the gateway."""

from dataclasses import dataclass

from services.gateway.load import Load
from services.gateway.orchestrator import Orchestrator
from services.gateway.peers import Peers
from services.gateway.reporting import Reporter


@dataclass(frozen=True, slots=True)
class Status:
    """Now; the totals count from the gateway's start."""

    load: Load
    num_requests_total: int
    num_output_tokens_total: int
    prefill_connected: bool
    decode_connected: bool
    memd_connected: bool
    requests_per_s: float
    tokens_per_s: float


class StatusView:
    """Gathers what others know."""

    def __init__(self, orchestrator: Orchestrator, reporter: Reporter, peers: Peers) -> None:
        self._orchestrator = orchestrator
        self._reporter = reporter
        self._peers = peers

    def now(self) -> Status:
        """See `Status`."""
        return Status(
            load=self._orchestrator.load,
            num_requests_total=self._reporter.requests.num_total,
            num_output_tokens_total=self._reporter.tokens.num_total,
            prefill_connected=self._peers.connected("prefill"),
            decode_connected=self._peers.connected("decode"),
            memd_connected=self._peers.connected("memd"),
            requests_per_s=self._reporter.requests.per_second(),
            tokens_per_s=self._reporter.tokens.per_second(),
        )
