"""What the phase did to its leases, told to memd in the background and in order."""

import asyncio
from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace

import structlog

from tandem.errors import NotReadyError, TandemError
from tandem.kv.store import HolderStore, SequenceUpdate
from tandem.types import Block

_log = structlog.get_logger()

RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class LostLease:
    """memd refused the update: the lease is not ours any more. `blocks` are still our spare ones."""

    lease_id: int
    blocks: tuple[Block, ...]


@dataclass(slots=True, eq=False)
class _Batch:
    """The updates that memd has not answered yet, by lease."""

    updates: dict[int, SequenceUpdate] = field(default_factory=dict)
    answered: asyncio.Event = field(default_factory=asyncio.Event)


class UpdateSender:
    """Merges the updates of a lease until the one RPC under way has been answered, then sends them as one batch.

    `on_lost` is called on the loop, possibly while a step is under way. A batch is sent until memd has answered it.
    """

    def __init__(self, store: HolderStore, holder_id: int, on_lost: Callable[[LostLease], None]) -> None:
        self._store = store
        self._holder_id = holder_id
        self._on_lost = on_lost
        self._pending = _Batch()
        self._sending: _Batch | None = None
        self._kick = asyncio.Event()

    def push(self, update: SequenceUpdate) -> None:
        """Will be sent after everything pushed before it."""
        earlier = self._pending.updates.get(update.lease_id)
        self._pending.updates[update.lease_id] = update if earlier is None else _merge(earlier, update)
        self._kick.set()

    def discard(self, lease_id: int) -> tuple[Block, ...]:
        """Forgets what was not sent yet of a lease that is let go; its blocks are spare again."""
        update = self._pending.updates.pop(lease_id, None)
        return () if update is None else update.add_blocks

    async def flush(self) -> None:
        """Returns when memd has answered everything pushed so far, `on_lost` called where it refused."""
        batch = self._pending if self._pending.updates else self._sending
        if batch is not None:
            await batch.answered.wait()

    def resume(self, spare: Set[Block]) -> frozenset[Block]:
        """memd is back, and `spare` is what it has as this holder's: whatever is not has joined its lease already.

        Returns the blocks that updates still name. What is sealed and published is said once more in any case.
        """
        named: set[Block] = set()
        for batch in (self._pending,) if self._sending is None else (self._sending, self._pending):
            for lease_id, update in batch.updates.items():
                left = tuple(block for block in update.add_blocks if block in spare)
                batch.updates[lease_id] = replace(update, add_blocks=left)
                named.update(left)
        return frozenset(named)

    async def run(self) -> None:
        """Sends until cancelled."""
        while True:
            await self._kick.wait()
            self._kick.clear()
            batch, self._pending = self._pending, _Batch()
            self._sending = batch
            await self._send(batch, tuple(batch.updates))
            self._sending = None
            batch.answered.set()

    async def _send(self, batch: _Batch, lease_ids: tuple[int, ...]) -> None:
        if not lease_ids:
            return
        try:
            lost = await self._until_answered(batch, lease_ids)
        except TandemError as error:
            await self._isolate(batch, lease_ids, error)
            return
        for lease_id in lease_ids:
            update = batch.updates.pop(lease_id)
            if lease_id in lost and not update.let_go:
                self._on_lost(LostLease(lease_id, update.add_blocks))

    async def _isolate(self, batch: _Batch, lease_ids: tuple[int, ...], error: TandemError) -> None:
        """One bad update spoils its whole batch: the others are sent alone. Its blocks are nobody's to keep."""
        if len(lease_ids) > 1:
            for lease_id in lease_ids:
                await self._send(batch, (lease_id,))
            return
        _log.error("updates.refused", lease_id=lease_ids[0], error=str(error))
        del batch.updates[lease_ids[0]]
        self._on_lost(LostLease(lease_ids[0], ()))

    async def _until_answered(self, batch: _Batch, lease_ids: tuple[int, ...]) -> frozenset[int]:
        """A memd that comes back may have changed what there is to say."""
        while True:
            try:
                updates = [batch.updates[lease_id] for lease_id in lease_ids]
                return await self._store.update_sequences(self._holder_id, updates)
            except NotReadyError:
                await asyncio.sleep(RETRY_S)


def _merge(earlier: SequenceUpdate, later: SequenceUpdate) -> SequenceUpdate:
    return SequenceUpdate(
        later.lease_id,
        earlier.add_blocks + later.add_blocks,
        max(earlier.num_sealed_tokens, later.num_sealed_tokens),
        earlier.publish + later.publish,
        earlier.let_go or later.let_go,
        (*earlier.copied_from, *later.copied_from),
    )
