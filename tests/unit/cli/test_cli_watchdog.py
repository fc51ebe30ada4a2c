"""How soon a service that hangs is ended."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.cli.watchdog import LONGEST_LOOK_S, Watchdog
from tandem.clock import ManualClock
from tandem.rpc.vigil import ProcessFacts, Sight

LIMIT_S = 20.0
SERVICES = ("gateway", "prefill", "decode", "controller", "memd")


class Machine:
    """Five services, of which some hang from a moment on; a look at one of those takes as long as a look may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock(100.0)
        self.hung: tuple[str, ...] = ()
        self.ended_s: dict[str, float] = {}
        self.watchdog = Watchdog({0: Path("/run")}, LIMIT_S, self.clock)
        monkeypatch.setattr("tandem.cli.watchdog.sight_of", self._sight_of)
        monkeypatch.setattr("tandem.cli.watchdog.facts_of_listener", self._facts_of_listener)
        monkeypatch.setattr("tandem.cli.watchdog.end_hung", self._end_hung)

    def _sight_of(self, path: Path, _name: str, deadline_s: float) -> Sight:
        if path.stem not in SERVICES:
            return Sight.ABSENT
        if path.stem not in self.hung:
            return Sight.SERVING
        self.clock.advance(deadline_s)
        return Sight.SILENT

    def _facts_of_listener(self, path: Path) -> ProcessFacts | None:
        return ProcessFacts(SERVICES.index(path.stem), False, 0.0) if path.stem in SERVICES else None

    def _end_hung(self, name: str, _pid: int, _silent_s: float, _environ: object) -> None:
        self.ended_s.setdefault(name, self.clock.now())

    def rounds(self) -> Iterator[None]:
        while True:
            self.watchdog.look()
            yield
            self.clock.advance(self.watchdog.look_s)


@pytest.mark.parametrize(("num_hung", "latest_s"), [(1, 24.0), (5, 60.0)])
def test_whoever_hangs_is_ended_in_the_time_that_is_stated(monkeypatch, num_hung, latest_s):
    machine = Machine(monkeypatch)
    rounds = machine.rounds()
    for _ in range(3):
        next(rounds)
    began_s = machine.clock.now()  # just after a look: the worst moment
    machine.hung = SERVICES[:num_hung]
    while len(machine.ended_s) < num_hung:
        next(rounds)
        assert machine.clock.now() - began_s <= latest_s + LONGEST_LOOK_S * num_hung
    took_s = [ended_s - began_s for ended_s in machine.ended_s.values()]
    assert min(took_s) >= LIMIT_S
    assert max(took_s) <= latest_s
    assert machine.ended_s.keys() == set(machine.hung)


def test_who_answers_again_in_time_is_left_alone(monkeypatch):
    machine = Machine(monkeypatch)
    rounds = machine.rounds()
    next(rounds)
    for _ in range(3):
        began_s = machine.clock.now()
        machine.hung = ("decode",)
        while machine.clock.now() - began_s < LIMIT_S - 2 * LONGEST_LOOK_S:
            next(rounds)
        machine.hung = ()
        next(rounds)
    assert machine.ended_s == {}
