"""`MemoryStore` over the ledger: who is asked to give blocks back, and what time ends."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import structlog

from services.memd.cache import LocalCache
from services.memd.holders import Holders, LocalAttachment
from tandem.clock import Clock
from tandem.errors import FingerprintMismatchError
from tandem.kv.ledger import Ledger
from tandem.kv.policy import reclaim_shares
from tandem.kv.store import Holding, PromptTokens, SequenceLease, SequenceUpdate, StorageStatistics
from tandem.types import Block, Fingerprint

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """What does not change while memd runs."""

    fingerprint: Fingerprint
    weight_bytes: int
    kv_bytes: int
    num_reserve_blocks: int
    lease_ttl_s: float
    num_pinnable_blocks: int = 0
    max_segment_blocks: int = 0
    wipe_between_tenants: bool = True


@dataclass(slots=True)
class ClaimTotals:
    """What was asked for in claims so far, and what of it was there."""

    num_asked_blocks: int = 0
    num_claimed_blocks: int = 0
    num_asked_tokens: int = 0
    num_claimed_tokens: int = 0

    def count(self, lease: SequenceLease, num_keys: int, prompt: PromptTokens | None, block_size: int) -> None:
        """The answer to one claim; with nothing asked for, nothing is counted."""
        num_claimed = min(len(lease.blocks), num_keys)
        self.num_asked_blocks += num_keys
        self.num_claimed_blocks += num_claimed
        if prompt is not None:
            self.num_asked_tokens += len(prompt.token_ids)
            num_copied = lease.copy_source.num_tokens if lease.copy_source else 0
            self.num_claimed_tokens += num_claimed * block_size + num_copied


class LocalStore:
    """The pool as memd itself has it. Every method runs to its end without awaiting, so each is atomic."""

    def __init__(self, ledger: Ledger, facts: StorageFacts, clock: Clock) -> None:
        self.facts = facts
        self._ledger = ledger
        self._clock = clock
        self._holders = Holders(ledger, clock)
        self._claims = ClaimTotals()
        ledger.published.cut_segments(facts.max_segment_blocks)
        ledger.occupants.are_told = facts.wipe_between_tenants
        self.cache = LocalCache(
            ledger, clock, num_pinnable_blocks=facts.num_pinnable_blocks, stream_id=secrets.randbits(63)
        )

    def attach(self, service: str, pid: int, claim: Fingerprint) -> LocalAttachment:
        """A new holder. FingerprintMismatchError; LeaseError when too many are attached; NotReadyError."""
        refuse_mismatch(service, replace(claim, version=""), self.facts.fingerprint)
        return self._holders.attach(service, pid)

    def attach_again(self, holder_id: int) -> LocalAttachment:
        """A holder of this ledger. StorageLostError when it was given up; NotReadyError."""
        return self._holders.attach_again(holder_id)

    def holding(self, holder_id: int) -> Holding:
        """What the ledger says that an attached holder has."""
        return self._holders.holding(holder_id)

    def detach(self, attachment: LocalAttachment) -> None:
        """The attachment has ended, by whatever cause."""
        self._holders.detach(attachment)

    def leave(self, holder_id: int) -> None:
        """A holder is done. NotFoundError: it is not attached."""
        self._holders.leave(holder_id)

    def admit(self, holder_id: int, pid: int) -> bool:
        """Whether the holder, which is the process that the kernel calls `pid`, may have the segments."""
        return self._holders.admit(holder_id, pid)

    def is_attached(self, holder_id: int) -> bool:
        """Whether it is there."""
        return self._holders.is_attached(holder_id)

    def close(self) -> None:
        """Ends every attachment and watch; what the holders have is the next memd's to give them."""
        self._holders.close()
        self.cache.close()

    def expire(self) -> int:
        """Ends and revokes the leases that nobody renewed in time, gives up who did not come back and cannot be seen.

        Returns how many leases ended.
        """
        self._holders.give_up_absent()
        expiry = self._ledger.expire(self._clock.now(), self.facts.lease_ttl_s, self._holders.absent)
        for lease_id in expiry.revoked_lease_ids:
            _log.warning("lease.revoked", lease_id=lease_id)
        for lease in expiry.ended:
            _log.warning("lease.expired", lease_id=lease.lease_id, num_freed_blocks=lease.num_freed_blocks)
        return len(expiry.ended)

    async def lease_blocks(self, holder_id: int, num_blocks: int) -> tuple[Block, ...]:
        """See `MemoryStore`. What is missing is asked back from the other holders."""
        self._holders.check(holder_id)
        blocks = self._ledger.lease_blocks(holder_id, num_blocks, self.facts.num_reserve_blocks)
        if len(blocks) < num_blocks:
            self._reclaim(holder_id, num_blocks - len(blocks))
        return blocks

    async def return_blocks(self, holder_id: int, blocks: Sequence[Block]) -> None:
        """See `MemoryStore`."""
        self._holders.check(holder_id)
        self._ledger.return_blocks(holder_id, blocks)

    async def acquire_sequence(
        self, holder_id: int, lease_id: int, request_id: str, create: bool, domain: bytes = b""
    ) -> SequenceLease:
        """See `MemoryStore`."""
        self._holders.check(holder_id)
        lease = self._ledger.acquire_sequence(
            holder_id, lease_id, request_id, create, now_s=self._clock.now(), domain=domain
        )
        _log.debug("lease.acquired", lease_id=lease_id, request_id=request_id, holder_id=holder_id, create=create)
        return lease

    async def claim_prefix(
        self, holder_id: int, lease_id: int, keys: Sequence[bytes], prompt: PromptTokens | None = None
    ) -> SequenceLease:
        """See `MemoryStore`."""
        self._holders.check(holder_id)
        lease = self._ledger.claim_prefix(
            holder_id, lease_id, keys, self.facts.num_reserve_blocks, prompt=prompt, now_s=self._clock.now()
        )
        self._claims.count(lease, len(keys), prompt, self._ledger.block_size)
        _log.debug("prefix.claimed", lease_id=lease_id, num_keys=len(keys), num_blocks=len(lease.blocks))
        return lease

    async def find_blocks(self, holder_id: int, runs: Sequence[Sequence[bytes]]) -> tuple[tuple[Block, ...], ...]:
        """See `MemoryStore`."""
        self._holders.check(holder_id)
        now_s = self._clock.now()
        return tuple(self._ledger.published.find(keys, now_s) for keys in runs)

    async def update_sequences(self, holder_id: int, updates: Sequence[SequenceUpdate]) -> frozenset[int]:
        """See `MemoryStore`."""
        self._holders.check(holder_id)
        lost = self._ledger.update_sequences(holder_id, updates, self._clock.now(), self.facts.max_segment_blocks)
        if lost:
            _log.info("lease.refused", holder_id=holder_id, lease_ids=sorted(lost))
        return lost

    async def fork_sequence(self, parent_lease_id: int, child_lease_id: int, request_id: str, num_tokens: int) -> int:
        """See `MemoryStore`."""
        num_shared = self._ledger.fork_sequence(
            parent_lease_id, child_lease_id, request_id, num_tokens, self._clock.now()
        )
        _log.debug("lease.forked", lease_id=child_lease_id, request_id=request_id, num_shared_tokens=num_shared)
        return num_shared

    async def renew_sequences(self, lease_ids: Sequence[int]) -> frozenset[int]:
        """See `MemoryStore`."""
        return self._ledger.renew_sequences(lease_ids, self._clock.now())

    async def release_sequences(self, lease_ids: Sequence[int]) -> int:
        """See `MemoryStore`."""
        ended = self._ledger.release_sequences(lease_ids)
        for lease in ended:
            _log.debug("lease.released", lease_id=lease.lease_id, num_freed_blocks=lease.num_freed_blocks)
        return sum(lease.num_freed_blocks for lease in ended)

    async def abandon_sequences(self, lease_ids: Sequence[int]) -> None:
        """See `MemoryStore`."""
        ended = self._ledger.abandon_sequences(lease_ids)
        _log.info("lease.abandoned", lease_ids=list(lease_ids), num_ended=len(ended))

    async def statistics(self) -> StorageStatistics:
        """See `MemoryStore`."""
        return self.current_statistics()

    def current_statistics(self) -> StorageStatistics:
        """The pool as it is now."""
        counted = self._ledger.statistics()
        return StorageStatistics(
            fingerprint=self.facts.fingerprint,
            epoch=counted.epoch,
            num_blocks=counted.num_blocks,
            num_free_blocks=counted.num_free_blocks,
            num_spare_blocks=counted.num_spare_blocks,
            num_leased_blocks=counted.num_leased_blocks,
            num_cached_blocks=counted.num_cached_blocks,
            num_sequences=counted.num_sequences,
            weight_bytes=self.facts.weight_bytes,
            kv_bytes=self.facts.kv_bytes,
            holders=counted.holders,
            num_asked_blocks=self._claims.num_asked_blocks,
            num_claimed_blocks=self._claims.num_claimed_blocks,
            num_asked_tokens=self._claims.num_asked_tokens,
            num_claimed_tokens=self._claims.num_claimed_tokens,
            num_evictions=self._ledger.published.num_evictions,
            num_pinned_blocks=counted.num_pinned_blocks,
            num_pinnable_blocks=self.facts.num_pinnable_blocks,
            num_segment_blocks=counted.num_segment_blocks,
            max_segment_blocks=self.facts.max_segment_blocks,
            num_reserve_blocks=self.facts.num_reserve_blocks,
            lease_ttl_s=self.facts.lease_ttl_s,
        )

    def _reclaim(self, holder_id: int, num_missing: int) -> None:
        spare = self._ledger.num_spare_by_holder()
        others = {other: num for other, num in spare.items() if other != holder_id and self.is_attached(other)}
        for other, num_blocks in reclaim_shares(num_missing, others).items():
            self._holders.ask(other, num_blocks)


def refuse_mismatch(service: str, claim: Fingerprint, actual: Fingerprint) -> None:
    """FingerprintMismatchError that names each field in which a claim is not what memd has, with both values."""
    differences = [
        f"{field.name}: {service} has {claimed!r}, memd has {having!r}"
        for field in fields(Fingerprint)
        if (claimed := getattr(claim, field.name)) and claimed != (having := getattr(actual, field.name))
    ]
    if differences:
        raise FingerprintMismatchError("; ".join(differences))
