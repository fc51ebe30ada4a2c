"""Simulated time."""

import heapq
from collections.abc import Callable


class EventQueue:
    """What happens when; what falls on the same instant happens in the order in which it was planned."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._num_planned = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def now(self) -> float:
        """It is a `Clock`."""
        return self.now_s

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Plans it. ValueError for a time that has passed."""
        if delay_s < 0:
            raise ValueError(f"{delay_s} s from now has passed")
        self._num_planned += 1
        heapq.heappush(self._heap, (self.now_s + delay_s, self._num_planned, action))

    def run(self, until_s: float) -> None:
        """Until nothing is planned any more, or that time has come."""
        while self._heap and self._heap[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._heap)
            action()
