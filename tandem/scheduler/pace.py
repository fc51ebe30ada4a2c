"""How fast something gets done while there is something to do."""

from tandem.clock import Clock


class Pace:
    """Seconds a unit takes, of late above all: each note makes those before weigh less by `decay`."""

    def __init__(self, clock: Clock, decay: float) -> None:
        self._clock = clock
        self._decay = decay
        self._since_s: float | None = None  # None: nothing is under way
        self._seconds = 0.0
        self._amount = 0.0

    def go_on(self) -> None:
        """There is something to do; time counts from here, or goes on."""
        if self._since_s is None:
            self._since_s = self._clock.now()

    def note(self, amount: float) -> None:
        """So much got done since the last note, or since `go_on`; nothing happens while nothing is under way."""
        if self._since_s is None:
            return
        now_s = self._clock.now()
        self._seconds = self._seconds * self._decay + now_s - self._since_s
        self._amount = self._amount * self._decay + amount
        self._since_s = now_s

    def pause(self) -> None:
        """There is nothing to do."""
        self._since_s = None

    @property
    def seconds_each(self) -> float:
        """0 before anything is known."""
        return self._seconds / self._amount if self._amount else 0.0
