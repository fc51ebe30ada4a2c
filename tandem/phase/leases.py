"""The leases and blocks of this phase's sequences: what it holds of memd, in one place."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import structlog

from tandem.errors import LeaseError, NotFoundError, NotReadyError, TandemError
from tandem.kv.occupants import ANYBODYS, domain_in, entered
from tandem.kv.store import HolderStore, Holding, KeyedBlock, PromptTokens, SequenceLease, SequenceUpdate
from tandem.phase.supply import BlockSupply, SupplyPolicy
from tandem.phase.updates import LostLease, UpdateSender
from tandem.types import Block, DropReason, SequenceDropped, SequenceSpec

_log = structlog.get_logger()

RETRY_S = 0.05

AnswerT = TypeVar("AnswerT")


class Leases:
    """Joins the supply of spare blocks and the updates that turn them into sequences' blocks.

    A block that comes back (its update was refused, or never sent) is spare again only between two steps: a step that
    is under way may be writing to it.
    """

    def __init__(self, store: HolderStore, holder_id: int, policy: SupplyPolicy, on_change: Callable[[], None]) -> None:
        """`on_change` is called when blocks have come, were refused, or a lease was lost."""
        self.supply = BlockSupply(store, holder_id, policy, on_change)
        self.updates = UpdateSender(store, holder_id, self._note_lost)
        self._store = store
        self._holder_id = holder_id
        self._on_change = on_change
        self._held: dict[int, bytes] = {}  # by lease: the domain of its sequence
        self._lost: list[LostLease] = []
        self._regained: list[Block] = []

    async def acquire(self, spec: SequenceSpec, *, create: bool) -> SequenceLease | SequenceDropped:
        """The lease as the ledger has it, or why the sequence cannot be worked on. Waits for a memd that is away."""
        domain = domain_in(spec.cache_namespace, spec.domain)
        call = partial(self._store.acquire_sequence, self._holder_id, spec.lease_id, spec.request_id, create, domain)
        try:
            lease = await _until_answered(call)
        except NotFoundError as error:
            return SequenceDropped(spec.lease_id, DropReason.LEASE_LOST, str(error))
        except TandemError as error:
            _log.error("lease.refused", lease_id=spec.lease_id, request_id=spec.request_id, error=str(error))
            return SequenceDropped(spec.lease_id, DropReason.FAILED, str(error))
        self._held[spec.lease_id] = domain
        return lease

    async def claim(self, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None) -> SequenceLease | None:
        """What others have of a prompt; with nothing asked for, what it shares is given up. None: it cannot be done.

        Waits for a memd that is away: it may have done it, and then the lease is longer than the phase knows.
        """
        try:
            return await _until_answered(partial(self._store.claim_prefix, self._holder_id, lease_id, keys, prompt))
        except TandemError as error:
            _log.info("prefix.not_claimed", lease_id=lease_id, error=str(error))
            return None

    async def find_blocks(self, runs: Sequence[Sequence[bytes]]) -> tuple[tuple[Block, ...], ...]:
        """Published blocks to copy from: of each run of keys as many as follow one another. Nobody keeps them.

        What is copied is named when it is sealed. Waits for a memd that is away; nothing is found where it refuses.
        """
        try:
            return await _until_answered(partial(self._store.find_blocks, self._holder_id, runs))
        except TandemError as error:
            _log.info("blocks.not_found", error=str(error))
            return ((),) * len(runs)

    def grow(
        self, lease_id: int, num_blocks: int, num_sealed_tokens: int, publish: tuple[KeyedBlock, ...] = ()
    ) -> tuple[Block, ...]:
        """Spare blocks for a sequence, at its end; as `seal`, too. LeaseError when there are fewer.

        The answer names their occupants, by which the sequence knows what its next step must wipe.
        """
        blocks = self.supply.take(num_blocks)
        if blocks is None:
            raise LeaseError(f"lease {lease_id} wants {num_blocks} blocks of {self.supply.num_spare} spare ones")
        domain = self._held.get(lease_id, ANYBODYS)
        added = tuple(entered(block, domain) for block in blocks)
        self.updates.push(SequenceUpdate(lease_id, added, num_sealed_tokens, publish))
        return blocks

    def seal(
        self, lease_id: int, num_tokens: int, publish: tuple[KeyedBlock, ...] = (), copied_from: tuple[Block, ...] = ()
    ) -> None:
        """The first `num_tokens` tokens' KV is complete, and others may find the blocks in `publish`.

        Some of it was copied out of `copied_from`: the lease is lost when one of them was another's by then.
        """
        self.updates.push(SequenceUpdate(lease_id, (), num_tokens, publish, copied_from=copied_from))

    def let_go(self, lease_id: int) -> None:
        """Between steps: the sequence is not worked on any more; its lease stays, to be released by its owner."""
        self._held.pop(lease_id, None)
        self.supply.give_back(self.updates.discard(lease_id))
        self.updates.push(SequenceUpdate(lease_id, (), 0, let_go=True))

    def collect_lost(self) -> tuple[int, ...]:
        """Between steps: the leases lost since the last call; blocks memd refused to add to them are spare again."""
        self.supply.give_back(self._regained)
        self._regained = []
        lost, self._lost = self._lost, []
        for lease in lost:
            self.supply.give_back(lease.blocks)
        return tuple(lease.lease_id for lease in lost)

    def is_lost(self, lease_id: int) -> bool:
        """Whether `collect_lost` is about to name it."""
        return any(lost.lease_id == lease_id for lost in self._lost)

    def resume(self, holding: Holding) -> None:
        """memd is back, and no call is under way: what it says that this phase has is what it has.

        A grant whose answer was cut off is taken in; a block that was returned, or has joined its lease, is spare no
        more; a lease that memd has given to somebody else is lost.
        """
        known = self.supply.resume(holding.spare) | self.updates.resume(holding.spare)
        known = known.union(*(lost.blocks for lost in self._lost))
        self._regained = sorted(holding.spare - known, key=lambda block: block.block_id)
        for lease_id in sorted(self._held.keys() - holding.lease_ids):
            self._note_lost(LostLease(lease_id, ()))
        self._on_change()

    def _note_lost(self, lost: LostLease) -> None:
        self._lost.append(lost)
        self._on_change()


async def _until_answered(call: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    while True:
        try:
            return await call()
        except NotReadyError:
            await asyncio.sleep(RETRY_S)
