"""What blocks and leases cost a phase, through a real memd."""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.load.metrics import distribution
from bench.micro.table import LeaseCost
from tandem.kv.store import SequenceUpdate
from tandem.rpc.memd_client import MemdClient
from tandem.types import Fingerprint, Phase

BLOCK_COUNTS = (1, 16, 64)
REPEATS_A_ROUND = 40
MS = 1e3

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class _Timed:
    call: str
    seconds: float


async def measure_leases(client: MemdClient, num_rounds: int) -> tuple[LeaseCost, ...]:
    """The calls of a sequence's life, by how many blocks it has; the pool must hold the largest number."""
    attachment = await client.attach(Phase.PREFILL, os.getpid(), Fingerprint())
    try:
        costs: list[LeaseCost] = []
        for num_blocks in BLOCK_COUNTS:
            timed = [
                each
                for lease_id in range(1, num_rounds * REPEATS_A_ROUND + 1)
                for each in await _life(client, attachment.holder_id, lease_id, num_blocks)
            ]
            costs += _costs(timed, num_blocks)
        return tuple(costs)
    finally:
        await attachment.detach()


async def _life(client: MemdClient, holder_id: int, lease_id: int, num_blocks: int) -> list[_Timed]:
    timed: list[_Timed] = []

    async def clocked(call: str, perform: Callable[[], Awaitable[_Value]]) -> _Value:
        started_s = time.perf_counter()
        value = await perform()
        timed.append(_Timed(call, time.perf_counter() - started_s))
        return value

    blocks = await clocked("lease_blocks", lambda: client.lease_blocks(holder_id, num_blocks))
    await clocked("acquire_sequence", lambda: client.acquire_sequence(holder_id, lease_id, "bench", True))
    update = SequenceUpdate(lease_id, blocks, 1)
    await clocked("update_sequences", lambda: client.update_sequences(holder_id, [update]))
    await clocked("renew_sequences", lambda: client.renew_sequences([lease_id]))
    await clocked("release_sequences", lambda: client.release_sequences([lease_id]))
    return timed


def _costs(timed: Sequence[_Timed], num_blocks: int) -> list[LeaseCost]:
    seconds: dict[str, list[float]] = {}
    for each in timed:
        seconds.setdefault(each.call, []).append(each.seconds * MS)
    found = ((call, distribution(values)) for call, values in seconds.items())
    return [LeaseCost(call, num_blocks, values.p50, values.p99) for call, values in found]
