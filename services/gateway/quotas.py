"""Bounds on one tenant: how fast it may ask, and how much of it may run at once."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sortedcontainers import SortedKeyList

from services.gateway.requests import Arrival, Sequence
from tandem.clock import Clock
from tandem.config.tenants import Quotas
from tandem.errors import InvalidRequestError, QueueFullError

QuotasOf = Callable[[str], Quotas]
SECONDS_A_MINUTE = 60.0


class TokenBucket:
    """Holds what may be used in a minute, and fills in a minute. More than is in it may be used at once, and is paid
    before anything else is."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._filled_s = clock.now()

    def wait_s(self) -> float:
        """Until one more may be used; 0 when it may now."""
        self._fill()
        return max(0.0, 1.0 - self._level) * SECONDS_A_MINUTE / self.per_minute

    def use(self, amount: float) -> None:
        """It is used now."""
        self._fill()
        self._level -= amount

    def _fill(self) -> None:
        now_s = self._clock.now()
        gained = (now_s - self._filled_s) * self.per_minute / SECONDS_A_MINUTE
        self._level = min(float(self.per_minute), self._level + gained)
        self._filled_s = now_s


class RateQuotas:
    """Requests and tokens a minute, of the tenants that have such bounds."""

    def __init__(self, quotas_of: QuotasOf, clock: Clock) -> None:
        self._quotas_of = quotas_of
        self._clock = clock
        self._buckets: dict[tuple[str, str], TokenBucket] = {}  # by tenant and quota

    def check(self, tenant: str) -> None:
        """For one more request. QueueFullError names the quota and says when to come back."""
        for quota, bucket in self._of(tenant):
            wait_s = bucket.wait_s()
            if wait_s > 0:
                problem = f"quota {quota} of tenant {tenant!r} is used up ({bucket.per_minute})"
                raise QueueFullError(f"{problem}; try again in {wait_s:.1f} s", wait_s)

    def note_request(self, tenant: str, num_prompt_tokens: int) -> None:
        """It was taken on."""
        amounts = {"requests_per_minute": 1, "tokens_per_minute": num_prompt_tokens}
        for quota, bucket in self._of(tenant):
            bucket.use(amounts[quota])

    def note_answer(self, tenant: str, num_tokens: int) -> None:
        """Of one answer, at its end."""
        for quota, bucket in self._of(tenant):
            if quota == "tokens_per_minute":
                bucket.use(num_tokens)

    def _of(self, tenant: str) -> list[tuple[str, TokenBucket]]:
        quotas = self._quotas_of(tenant)
        rates = {"requests_per_minute": quotas.requests_per_minute, "tokens_per_minute": quotas.tokens_per_minute}
        return [(quota, self._bucket(tenant, quota, rate)) for quota, rate in rates.items() if rate is not None]

    def _bucket(self, tenant: str, quota: str, per_minute: int) -> TokenBucket:
        """A full one where the quota is another than before."""
        bucket = self._buckets.get((tenant, quota))
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[tenant, quota] = TokenBucket(per_minute, self._clock)
        return bucket


@dataclass(slots=True)
class _Use:
    """What a tenant has running, and what waits for that."""

    blocks: dict[Sequence, int] = field(default_factory=dict)  # at their longest
    num_blocks: int = 0
    parked: SortedKeyList = field(default_factory=lambda: SortedKeyList(key=_order))
    doors: dict[Sequence, Callable[[Sequence], None]] = field(default_factory=dict)  # of the parked, into their queues


class RunningQuotas:
    """Lets a tenant's sequences into the queue as far as its quotas reach; the others are parked, best first.

    A place is kept from then until the sequence has ended, through all of its ways back to the queue. So what is in the
    queue may always go on, and no other tenant ever waits behind a quota.
    """

    def __init__(self, quotas_of: QuotasOf, block_size: Callable[[], int]) -> None:
        """`block_size` is known when there are sequences."""
        self._quotas_of = quotas_of
        self._block_size = block_size
        self._tenants: dict[str, _Use] = {}

    def __len__(self) -> int:
        return sum(len(use.parked) for use in self._tenants.values())

    def check(self, arrival: Arrival) -> None:
        """InvalidRequestError when one answer alone has more blocks than its tenant may ever have."""
        bound = self._quotas_of(arrival.tenant).max_kv_blocks
        num_blocks = 0 if bound is None else self._num_blocks(arrival)
        if bound is not None and num_blocks > bound:
            problem = f"takes an answer to {num_blocks} KV blocks, and max_kv_blocks of {arrival.tenant!r} is {bound}"
            raise InvalidRequestError("sampling.max_tokens", f"{problem}; ask for less, or send a shorter prompt")

    def enter(self, sequence: Sequence, let_in: Callable[[Sequence], None]) -> None:
        """It is let in as soon as it may wait for prefill: now, or when others have left. Again is at once."""
        tenant = sequence.arrival.tenant
        quotas = self._quotas_of(tenant)
        use = self._tenants.get(tenant)
        if use is None:
            use = self._tenants[tenant] = _Use()
        if sequence in use.blocks:
            let_in(sequence)
        elif use.parked or not self._take(use, quotas, sequence):
            use.parked.add(sequence)
            use.doors[sequence] = let_in
        else:
            let_in(sequence)

    def leave(self, sequence: Sequence) -> None:
        """It has ended. Those that have a place by that are let in."""
        tenant = sequence.arrival.tenant
        use = self._tenants.get(tenant)
        if use is None:
            return
        use.num_blocks -= use.blocks.pop(sequence, 0)
        use.parked.discard(sequence)
        use.doors.pop(sequence, None)
        entered = self._unpark(use, self._quotas_of(tenant))
        if not use.blocks and not use.parked:
            del self._tenants[tenant]
        for each in entered:
            use.doors.pop(each)(each)

    def _unpark(self, use: _Use, quotas: Quotas) -> tuple[Sequence, ...]:
        entered: list[Sequence] = []
        while use.parked and self._take(use, quotas, use.parked[0]):
            entered.append(use.parked.pop(0))
        return tuple(entered)

    def _take(self, use: _Use, quotas: Quotas, sequence: Sequence) -> bool:
        """Gives it a place if there is one."""
        num_blocks = self._num_blocks(sequence.arrival)
        if not _has_room(use, quotas, num_blocks):
            return False
        use.blocks[sequence] = num_blocks
        use.num_blocks += num_blocks
        return True

    def _num_blocks(self, arrival: Arrival) -> int:
        """Of one answer that has grown as long as it may."""
        num_tokens = len(arrival.prompt_token_ids) + arrival.resolved.stop.max_tokens
        return -(-num_tokens // self._block_size())


@dataclass(frozen=True, slots=True)
class TenantQuotas:
    """All of them."""

    of: QuotasOf
    rates: RateQuotas
    running: RunningQuotas

    @classmethod
    def create(cls, quotas_of: QuotasOf, block_size: Callable[[], int], clock: Clock) -> "TenantQuotas":
        """With nothing used."""
        return cls(quotas_of, RateQuotas(quotas_of, clock), RunningQuotas(quotas_of, block_size))


def _has_room(use: _Use, quotas: Quotas, num_blocks: int) -> bool:
    if quotas.max_running is not None and len(use.blocks) >= quotas.max_running:
        return False
    fits = quotas.max_kv_blocks is None or use.num_blocks + num_blocks <= quotas.max_kv_blocks
    return fits or not use.blocks  # a quota that was made smaller meanwhile stops nothing for ever


def _order(sequence: Sequence) -> tuple[int, int, int, str]:
    arrival = sequence.arrival
    return (-arrival.priority, arrival.unix_ns, sequence.index, arrival.request_id)
