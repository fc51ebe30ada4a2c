"""What was routed to a replica and has not ended: prompts to be computed, and blocks that decode goes on with."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem.clock import Clock
from tandem.scheduler.pace import Pace

Item = TypeVar("Item", bound=Hashable)
PACE_DECAY = 0.95  # a prompt: the last twenty or so count
RECENT_S = 10.0  # what was routed longer ago counts little for the use that is made of a replica


@dataclass(frozen=True, slots=True)
class Sent:
    """What a sequence was expected to be when it was routed."""

    num_work_tokens: int
    num_blocks: int  # of its prompt
    certain_keys: Sequence[bytes]


class ReplicaLoad(Generic[Item]):
    """One replica's. `last_turn` is the number of the choice that fell on it last, 0 before the first."""

    def __init__(self, clock: Clock) -> None:
        self.last_turn = 0
        self.num_decode_blocks = 0
        self._clock = clock
        self._pace = Pace(clock, PACE_DECAY)
        self._num_queued_tokens = 0  # of prompts, to be computed
        self._since_s = clock.now()  # when the prompt that is computed now had its turn
        self._num_recent_tokens = 0.0  # to be computed, of all that was routed, those of long ago fading
        self._routed_s = clock.now()  # the last time
        self._queued: dict[Item, Sent] = {}
        self._decoding: dict[Item, Sent] = {}

    @property
    def items(self) -> tuple[Item, ...]:
        """All that have not ended."""
        return (*self._queued, *self._decoding)

    @property
    def seconds_a_token(self) -> float:
        """Of prompts, while there are some; 0 before anything is known."""
        return self._pace.seconds_each

    def wait_s(self, seconds_a_token: float) -> float:
        """Until all that is queued is computed; the longest queued is held to be under way."""
        first = next(iter(self._queued.values()), None)
        if first is None:
            return 0.0
        done_s = min(self._clock.now() - self._since_s, first.num_work_tokens * seconds_a_token)
        return self._num_queued_tokens * seconds_a_token - done_s

    def utilisation(self, seconds_a_token: float) -> float:
        """Of its time, how much prompts take at the rate at which they were routed of late; above 1: too much."""
        return self._recent_tokens() * seconds_a_token / RECENT_S

    def route(self, item: Item, sent: Sent) -> None:
        """It is queued from now on."""
        if not self._queued:
            self._since_s = self._clock.now()
        self._queued[item] = sent
        self._num_queued_tokens += sent.num_work_tokens
        self._num_recent_tokens = self._recent_tokens() + sent.num_work_tokens
        self._routed_s = self._clock.now()
        self._pace.go_on()

    def prefilled(self, item: Item, num_computed_tokens: int) -> None:
        """It has its first token; nothing happens when it had one before."""
        if item not in self._queued:
            return
        self._since_s = self._clock.now()
        self._pace.note(num_computed_tokens)
        sent = self._decoding[item] = self._unqueue(item)
        self.num_decode_blocks += sent.num_blocks

    def end(self, item: Item) -> Sent:
        """It is under way no more. KeyError when it was not."""
        if item in self._queued:
            return self._unqueue(item)
        sent = self._decoding.pop(item)
        self.num_decode_blocks -= sent.num_blocks
        return sent

    def _recent_tokens(self) -> float:
        return self._num_recent_tokens * math.exp((self._routed_s - self._clock.now()) / RECENT_S)

    def _unqueue(self, item: Item) -> Sent:
        sent = self._queued.pop(item)
        self._num_queued_tokens -= sent.num_work_tokens
        if not self._queued:
            self._pace.pause()
        return sent
