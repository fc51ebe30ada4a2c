"""How much happened lately: what `tandem status` shows, and what a refused client's delay is made of."""

from collections import deque

from tandem.clock import Clock

WINDOW_S = 10.0
RESOLUTION_S = 0.1
MIN_RETRY_DELAY_S = 1.0
MAX_RETRY_DELAY_S = 30.0


class RateMeter:
    """Events a second over the last `WINDOW_S`, in constant memory."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start_s = clock.now()
        self._slots: deque[tuple[int, int]] = deque()  # number of the slot, events in it
        self._num_recent = 0
        self.num_total = 0

    def add(self, num_events: int = 1) -> None:
        """They happened now."""
        slot = int(self._clock.now() / RESOLUTION_S)
        if self._slots and self._slots[-1][0] == slot:
            num_events_before = self._slots.pop()[1]
            self._slots.append((slot, num_events_before + num_events))
        else:
            self._slots.append((slot, num_events))
        self._num_recent += num_events
        self.num_total += num_events
        self._forget()

    def per_second(self) -> float:
        """The mean over the window, or over the time since the start while that is shorter."""
        self._forget()
        seconds = min(WINDOW_S, max(RESOLUTION_S, self._clock.now() - self._start_s))
        return self._num_recent / seconds

    def _forget(self) -> None:
        oldest = int((self._clock.now() - WINDOW_S) / RESOLUTION_S)
        while self._slots and self._slots[0][0] <= oldest:
            self._num_recent -= self._slots.popleft()[1]


def retry_delay_s(num_waiting: int, completions_per_s: float) -> float:
    """When a refused client should try again: half the queue has gone by then, at the recent rate of completions."""
    if completions_per_s <= 0:
        return MIN_RETRY_DELAY_S
    return min(MAX_RETRY_DELAY_S, max(MIN_RETRY_DELAY_S, num_waiting / 2 / completions_per_s))
