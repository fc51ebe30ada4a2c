"""Values over the last minutes, and how they are drawn in one line of text."""

import math
from collections import deque
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"
Cells = Sequence[float | None]


class Series:
    """One curve. What is older than the span is forgotten; times do not go back."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._points: deque[tuple[float, float]] = deque()  # seconds, value

    def add(self, at_s: float, value: float | None) -> None:
        """A look at it; None leaves a gap."""
        if value is not None and math.isfinite(value):
            self._points.append((at_s, value))
        while self._points and self._points[0][0] <= at_s - self._span_s:
            self._points.popleft()

    def cells(self, now_s: float, num_cells: int) -> Cells:
        """The means of equal stretches of the span, oldest first; None where there was nothing.

        Stretches begin at multiples of their length, so that a value stays in its cell while the curve moves on.
        """
        if num_cells <= 0:
            return ()
        stretch_s = self._span_s / num_cells
        last = math.floor(now_s / stretch_s)
        values: list[list[float]] = [[] for _ in range(num_cells)]
        for at_s, value in self._points:
            place = num_cells - 1 - (last - math.floor(at_s / stretch_s))
            if 0 <= place < num_cells:
                values[place].append(value)
        return [sum(each) / len(each) if each else None for each in values]


def bar(value: float | None, full: float) -> str:
    """One sign: the height of `value` where `full` is the highest; a space for None."""
    if value is None:
        return " "
    height = value / full if full > 0 else 0.0
    return BARS[min(len(BARS) - 1, max(0, math.floor(height * len(BARS))))]
