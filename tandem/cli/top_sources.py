"""What `tandem top` asks, of whom, and what of it makes a curve. Nobody that is away or hangs holds it up for long."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from tandem.cli.asking import ask_controller, ask_gateway, ask_history, ask_memd
from tandem.cli.deployment import Deployment
from tandem.errors import TandemError
from tandem.kv.store import StorageStatistics
from tandem.partition.status import ControllerStatus, DecisionRecord, PhaseStatus
from tandem.rpc.gateway_values import ServerStatus
from tandem.types import Phase

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ControllerView:
    """What the controller says."""

    status: ControllerStatus
    history: tuple[DecisionRecord, ...]  # oldest first

    def phase(self, phase: Phase) -> PhaseStatus:
        """As the controller knows it."""
        return next((each for each in self.status.phases if each.phase is phase), PhaseStatus(phase))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The deployment at one moment; None for who did not answer."""

    gateway: ServerStatus | None
    controller: ControllerView | None
    storage: StorageStatistics | None

    @property
    def is_empty(self) -> bool:
        """Whether nobody answered."""
        return self.gateway is None and self.controller is None and self.storage is None


class Curve(StrEnum):
    """What is drawn over time."""

    PREFILL_PERCENT = "prefill_percent"
    TTFT_P90_MS = "ttft_p90_ms"
    TPOT_P90_MS = "tpot_p90_ms"
    ATTAINED_PERCENT = "attained_percent"
    NUM_WAITING = "num_waiting"
    TOKENS_PER_S = "tokens_per_s"
    KV_PERCENT = "kv_percent"
    PREFILL_STEP_MS = "prefill_step_ms"
    DECODE_STEP_MS = "decode_step_ms"


def ask_all(deployment: Deployment, replica: int) -> Snapshot:
    """Asks the gateway and one replica, all at once."""
    with ThreadPoolExecutor(3) as pool:
        gateway = pool.submit(_unless_away, lambda: ask_gateway(deployment.address("gateway")))
        controller = pool.submit(_unless_away, lambda: _view(deployment.address("controller", replica)))
        storage = pool.submit(_unless_away, lambda: ask_memd(deployment.address("memd", replica)))
        return Snapshot(gateway.result(), controller.result(), storage.result())


def attained_percent(status: ControllerStatus) -> float | None:
    """Of the newest requests; None when there were none."""
    num_requests = status.requests.num_in_window
    return 100 * status.requests.num_attained / num_requests if num_requests else None


def leased_percent(storage: StorageStatistics) -> float:
    """Of the pool's blocks."""
    return 100 * storage.num_leased_blocks / max(1, storage.num_blocks)


def points(snapshot: Snapshot) -> dict[Curve, float | None]:
    """One point for each curve; None where there is nothing to draw."""
    gateway, storage = snapshot.gateway, snapshot.storage
    drawn: dict[Curve, float | None] = dict.fromkeys(Curve)
    if gateway is not None:
        drawn[Curve.NUM_WAITING], drawn[Curve.TOKENS_PER_S] = gateway.num_waiting, gateway.tokens_per_s
    if storage is not None:
        drawn[Curve.KV_PERCENT] = leased_percent(storage)
    if snapshot.controller is not None:
        drawn |= _controller_points(snapshot.controller)
    return drawn


def _controller_points(view: ControllerView) -> dict[Curve, float | None]:
    requests = view.status.requests
    return {
        Curve.PREFILL_PERCENT: view.status.decision.split.prefill_percent,
        Curve.TTFT_P90_MS: requests.ttft.p90_ms or None,
        Curve.TPOT_P90_MS: requests.tpot.p90_ms or None,
        Curve.ATTAINED_PERCENT: attained_percent(view.status),
        Curve.PREFILL_STEP_MS: _step_ms(view.phase(Phase.PREFILL)),
        Curve.DECODE_STEP_MS: _step_ms(view.phase(Phase.DECODE)),
    }


def _step_ms(phase: PhaseStatus) -> float | None:
    return phase.statistics.step.p50_ms or None if phase.connected else None


def _unless_away(ask: Callable[[], _T]) -> _T | None:
    try:
        return ask()
    except TandemError:
        return None


def _view(address: str) -> ControllerView:
    return ControllerView(ask_controller(address), ask_history(address))
