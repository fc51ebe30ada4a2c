"""What the pool grants to whom, which leases have ended by themselves, and who is asked to give blocks back."""

from collections.abc import Mapping
from enum import Enum, auto

from tandem.types import Phase


def grant_size(service: str, num_asked: int, num_free: int, num_reserve_blocks: int) -> int:
    """Blocks to grant. Running sequences must be able to grow: only decode may take the last blocks."""
    num_open = num_free if service == Phase.DECODE else num_free - num_reserve_blocks
    return max(0, min(num_asked, num_open))


class LeaseFate(Enum):
    """What becomes of a lease by itself."""

    GOES_ON = auto()
    REVOKED = auto()  # taken from its holder, which learns of it at its next update; a last time to live begins
    ENDED = auto()  # its blocks go


def lease_fate(holder_id: int, renewed_at_s: float, now_s: float, ttl_s: float) -> LeaseFate:
    """Of a lease that nobody renews. Blocks are never taken from under an attached phase that could still write."""
    if now_s - renewed_at_s <= ttl_s:
        return LeaseFate.GOES_ON
    return LeaseFate.ENDED if holder_id == 0 else LeaseFate.REVOKED


def reclaim_shares(num_missing: int, num_spare_by_holder: Mapping[int, int]) -> dict[int, int]:
    """How many blocks to ask back from each holder, from those with the most first."""
    shares: dict[int, int] = {}
    for holder_id, num_spare in sorted(num_spare_by_holder.items(), key=lambda item: (-item[1], item[0])):
        share = min(num_missing, num_spare)
        if share > 0:
            shares[holder_id] = share
            num_missing -= share
    return shares
