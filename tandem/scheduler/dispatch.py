"""From the gateway's queue into prefill: whose turn it is, and how much work prefill may have at once. Pure.

Prefill's own line is first come, first served, so what is in it is decided. It gets no more than keeps it busy: beside
the prompt that it has had longest a bounded number of tokens to compute. All the others wait where a later request, or
a block that has just been computed, can still change the order.

Once a prompt has been sent, its blocks count as cached: those that share them go right behind it, as hits. (Prefill
lets them wait until the blocks are there.) Everything else that is cached is what the replica's memd tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from tandem.kv.cache_store import CacheNews
from tandem.scheduler.forecast import Forecast
from tandem.scheduler.prefix_view import PrefixView
from tandem.scheduler.reused_spans import ReusedSpan, num_saved_tokens
from tandem.scheduler.waiting import Item, OrderingPolicy, WaitingEntry

REFRESH_A_TURN = 16  # forecasts that are looked at again before a choice


@dataclass(frozen=True, slots=True)
class Claim:
    """A sequence that asks for prefill."""

    priority: int
    arrival_unix_ns: int
    index: int
    tenant: str
    num_tokens: int  # that KV is needed of
    keys: Sequence[bytes] = ()  # of the blocks that it may share
    block_size: int = 1
    num_held_tokens: int = 0  # whose KV its lease has already
    reused: Sequence[ReusedSpan] = ()  # in the order of the prompt
    num_certain_tokens: int | None = None  # KV behind them may turn out approximate, which is not published; None: none

    @property
    def certain_keys(self) -> Sequence[bytes]:
        """Of the blocks that are there when it has been computed."""
        return self.keys if self.num_certain_tokens is None else self.keys[: self.num_certain_tokens // self.block_size]

    def entry(self, num_present_blocks: int) -> WaitingEntry:
        """With what is expected to be found."""
        num_cached = max(self.num_held_tokens, num_present_blocks * self.block_size)
        if self.reused:
            num_cached += num_saved_tokens(self.reused, num_cached)
        return WaitingEntry(self.priority, self.arrival_unix_ns, self.index, self.tenant, self.num_tokens, num_cached)


@dataclass(frozen=True, slots=True)
class _Sent:
    """What prefill has: the entry by which it was taken, and the keys of the blocks that it will publish."""

    entry: WaitingEntry
    keys: Sequence[bytes]


class Dispatcher(Generic[Item]):
    """The waiting items and the work in prefill."""

    def __init__(self, policy: OrderingPolicy[Item], view: PrefixView, max_backlog_tokens: int) -> None:
        self._policy = policy
        self._view = view
        self._forecast: Forecast[Item] = Forecast(view)
        self._max_backlog_tokens = max_backlog_tokens
        self._waiting: dict[Item, Claim] = {}
        self._sent: dict[Item, _Sent] = {}  # in prefill, longest there first
        self._num_sent_tokens = 0  # work of all of them

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def num_backlog_tokens(self) -> int:
        """What prefill has to compute, as far as predicted, but for the prompt that it has had longest."""
        first = next(iter(self._sent.values()), None)
        return 0 if first is None else self._num_sent_tokens - first.entry.work_tokens

    def push(self, item: Item, claim: Claim) -> None:
        """It waits from now on. ValueError when it does already."""
        if item in self._waiting:
            raise ValueError(f"{item!r} is in the queue already")
        self._waiting[item] = claim
        self._policy.push(item, claim.entry(self._forecast.enter(item, claim.keys)))

    def discard(self, item: Item) -> None:
        """It waits no longer; nothing happens when it did not."""
        if self._policy.discard(item):
            del self._waiting[item]
            self._forecast.leave(item)

    def take(self, now_unix_ns: int) -> Item | None:
        """Whose turn it is: it counts as sent to prefill. None: nobody waits, or prefill has enough."""
        if not self._waiting or self.num_backlog_tokens >= self._max_backlog_tokens:
            return None
        for stale, num_present in self._forecast.refresh(REFRESH_A_TURN):
            self._policy.update(stale, self._waiting[stale].entry(num_present))
        item = self._policy.pop(now_unix_ns)
        claim = self._waiting.pop(item)
        entry = claim.entry(self._forecast.leave(item))
        sent = self._sent[item] = _Sent(entry, claim.certain_keys)
        self._num_sent_tokens += entry.work_tokens
        self._policy.charge(claim.tenant, entry.work_tokens)
        self._forecast.note(self._view.sent(sent.keys))
        return item

    def finish(self, item: Item, num_computed_tokens: int | None = None) -> None:
        """Prefill has it no more; nothing happens when it had not.

        None: it was not computed to its end, how far is not known; 0: prefill never had it.
        """
        sent = self._sent.pop(item, None)
        if sent is None:
            return
        self._num_sent_tokens -= sent.entry.work_tokens
        self._forecast.note((self._view.computed if num_computed_tokens else self._view.ended)(sent.keys))
        if num_computed_tokens is not None:
            self._policy.charge(sent.entry.tenant, num_computed_tokens - sent.entry.work_tokens)

    def sent_work_tokens(self, item: Item) -> int:
        """What of an item that is in prefill was expected to be computed. KeyError."""
        return self._sent[item].entry.work_tokens

    def charge(self, tenant: str, num_tokens: float) -> None:
        """Other work that was done for a tenant."""
        self._policy.charge(tenant, num_tokens)

    def hear(self, news: CacheNews) -> None:
        """What the replica's memd tells of its cache."""
        self._forecast.note(self._view.hear(news))
