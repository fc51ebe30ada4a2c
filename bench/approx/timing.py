"""What a call gave, and how long it took."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem.clock import Clock

MILLI = 1e3
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Timed(Generic[Value]):
    """See above."""

    value: Value
    ms: float


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Times calls."""

    clock: Clock

    def time(self, call: Callable[[], Value]) -> Timed[Value]:
        """Calls it once."""
        begin_s = self.clock.now()
        value = call()
        return Timed(value, (self.clock.now() - begin_s) * MILLI)
