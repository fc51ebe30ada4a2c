"""Phases' engines without a memd: over blocks that are always there, for measuring what an engine itself costs."""

from collections.abc import Callable, Sequence
from typing import cast

from prometheus_client import CollectorRegistry

from tandem.clock import MonotonicClock
from tandem.kv.store import MemoryStore, PromptTokens, SequenceLease, SequenceUpdate
from tandem.phase.crew import Crew
from tandem.phase.joint import JointWork
from tandem.phase.limits import PhaseLimits
from tandem.phase.outfit import Outfit
from tandem.phase.supply import SupplyPolicy
from tandem.telemetry.metrics import PhaseMetrics
from tandem.types import Block, Phase

HOLDER_ID = 1
BLOCK_SIZE = 16


class Blocks:
    """What an engine asks of memd: `num_blocks` blocks over and over again, and leases of any name."""

    def __init__(self, num_blocks: int, adopted: Callable[[int], SequenceLease]) -> None:
        """`adopted` says what a lease brings along."""
        self._num_blocks = num_blocks
        self._adopted = adopted
        self._num_leased = 0

    async def lease_blocks(self, holder_id: int, num_blocks: int) -> tuple[Block, ...]:
        """Never fewer than asked for."""
        first = self._num_leased
        self._num_leased += num_blocks
        return tuple(Block(number % self._num_blocks, 1) for number in range(first, self._num_leased))

    async def acquire_sequence(
        self, holder_id: int, lease_id: int, request_id: str, create: bool, domain: bytes = b""
    ) -> SequenceLease:
        """Every lease is there."""
        return self._adopted(lease_id)

    async def claim_prefix(
        self, holder_id: int, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None = None
    ) -> SequenceLease:
        """Nothing is shared."""
        return self._adopted(lease_id)

    async def update_sequences(self, holder_id: int, updates: Sequence[SequenceUpdate]) -> frozenset[int]:
        """None is refused."""
        return frozenset()


def new_lease(lease_id: int) -> SequenceLease:
    """With no token of its own."""
    return SequenceLease(lease_id, (), 0)


def make_outfit(phase: Phase, blocks: Blocks, limits: PhaseLimits, num_ahead_blocks: int) -> Outfit:
    """An engine's surroundings, on the running loop."""
    return Outfit(
        store=cast(MemoryStore, blocks),  # an engine that runs undisturbed calls nothing else
        holder_id=HOLDER_ID,
        limits=limits,
        supply_policy=SupplyPolicy(num_ahead_blocks),
        steps=JointWork(),
        metrics=PhaseMetrics.create(CollectorRegistry(), phase),
        crew=Crew(),
        clock=MonotonicClock(),
    )
