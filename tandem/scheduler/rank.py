"""Who comes first: the higher priority, then the earlier arrival; the lease id settles what is left."""

from typing import Protocol


class Ranked(Protocol):
    """What has a place in the order."""

    @property
    def lease_id(self) -> int:
        """Names the sequence."""
        ...

    @property
    def priority(self) -> int:
        """Higher is more urgent."""
        ...

    @property
    def arrival_unix_ns(self) -> int:
        """Of the request at the gateway: a sequence sent again keeps it, which is what keeps it from starving.

        In prefill it is when the gateway sent the sequence, which has been ordered before (`dispatch`).
        """
        ...


def rank_key(item: Ranked) -> tuple[int, int, int]:
    """To sort by, first come first."""
    return (-item.priority, item.arrival_unix_ns, item.lease_id)
