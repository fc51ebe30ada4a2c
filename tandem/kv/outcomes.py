"""What a ledger says of itself and of what its operations have done."""

from dataclasses import dataclass

from tandem.kv.store import HolderStatistics


@dataclass(frozen=True, slots=True)
class LedgerStatistics:
    """``num_blocks = free + spare + leased + cached``, always."""

    epoch: int
    num_blocks: int
    num_free_blocks: int
    num_spare_blocks: int
    num_leased_blocks: int
    num_cached_blocks: int
    num_pinned_blocks: int
    num_segment_blocks: int  # published
    num_sequences: int
    holders: tuple[HolderStatistics, ...]


@dataclass(frozen=True, slots=True)
class EndedLease:
    """A lease that was ended, and the blocks that became free by it."""

    lease_id: int
    num_freed_blocks: int


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Blocks that are not found any more: those that are free by it, and those that leases still have."""

    num_freed_blocks: int
    num_leased_blocks: int


@dataclass(frozen=True, slots=True)
class Expiry:
    """What time has done."""

    ended: tuple[EndedLease, ...]
    revoked_lease_ids: tuple[int, ...]
