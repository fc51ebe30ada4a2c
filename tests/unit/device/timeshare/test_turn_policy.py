import heapq
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.device.timeshare.policy import RETURN_S, Account, Stage, ask, end, turn_from_s
from tandem.types import Phase

GAP_S = 0.001  # a phase's own work between two steps


class Simulation:
    """Two phases with steps of fixed length over the policy, event by event; time stands still in between."""

    def __init__(self, step_s: dict[Phase, float], percent: dict[Phase, int]) -> None:
        self.step_s, self.percent = step_s, percent
        self.accounts = {phase: Account().enter(Stage.AWAY) for phase in step_s}
        self.turns: list[tuple[Phase, float]] = []  # with the time of its start

    def run(self, until_s: float, starts: dict[Phase, float] | None = None, pause_from_s: float = math.inf) -> None:
        """`starts`: when each first asks. Decode asks no more from `pause_from_s` on."""
        events = [(start_s, phase, "ask") for phase, start_s in (starts or dict.fromkeys(self.step_s, 0.0)).items()]
        heapq.heapify(events)
        while events and events[0][0] < until_s:
            now_s, phase, what = heapq.heappop(events)
            if what == "ask" and phase is Phase.DECODE and now_s >= pause_from_s:
                continue
            getattr(self, f"_{what}")(phase, now_s, events)

    def _ask(self, phase, now_s, events) -> None:
        self.accounts[phase] = ask(self.accounts[phase], self._peer(phase), now_s)
        heapq.heappush(events, (now_s, phase, "look"))

    def _look(self, phase, now_s, events) -> None:
        if self.accounts[phase].stage is not Stage.WAITING:
            return
        from_s = turn_from_s(self.accounts[phase], self._peer(phase))
        if from_s <= now_s:
            self.accounts[phase] = self.accounts[phase].enter(Stage.RUNNING)
            self.turns.append((phase, now_s))
            heapq.heappush(events, (now_s + self.step_s[phase], phase, "end"))
        elif from_s < math.inf:
            heapq.heappush(events, (from_s, phase, "look"))

    def _end(self, phase, now_s, events) -> None:
        self.accounts[phase] = end(self.accounts[phase], self.step_s[phase], self.percent[phase], now_s)
        heapq.heappush(events, (now_s + GAP_S, phase, "ask"))
        for other in self.step_s:
            if other is not phase:
                heapq.heappush(events, (now_s, other, "look"))

    def _peer(self, phase) -> Account:
        return next((account for each, account in self.accounts.items() if each is not phase), Account())

    def had_s(self, phase: Phase, since_s: float = 0.0) -> float:
        return sum(self.step_s[each] for each, start_s in self.turns if each is phase and start_s >= since_s)


def simulate(prefill_s: float, decode_s: float, prefill_percent: int = 50, decode_percent: int = 50) -> Simulation:
    return Simulation(
        {Phase.PREFILL: prefill_s, Phase.DECODE: decode_s},
        {Phase.PREFILL: prefill_percent, Phase.DECODE: decode_percent},
    )


def test_a_chunk_then_as_many_steps_as_make_up_for_it():
    simulation = simulate(0.1, 0.01)
    simulation.run(10.0)
    order = "".join(phase[0] for phase, _ in simulation.turns[2:])
    assert all(len(steps) in (9, 10, 11) for steps in order.split("p")[1:-1])


@settings(max_examples=30)
@given(
    st.floats(0.01, 0.2), st.floats(0.002, 0.05), st.integers(5, 100), st.integers(5, 100)
)  # fmt: skip
def test_the_time_is_shared_in_the_ratio_of_the_shares(prefill_s, decode_s, prefill_percent, decode_percent):
    simulation = simulate(prefill_s, decode_s, prefill_percent, decode_percent)
    simulation.run(10.0)
    owed_s = abs(simulation.had_s(Phase.PREFILL) / prefill_percent - simulation.had_s(Phase.DECODE) / decode_percent)
    assert owed_s <= prefill_s / prefill_percent + decode_s / decode_percent + 1e-9


@settings(max_examples=30)
@given(st.floats(0.01, 0.2), st.floats(0.002, 0.05), st.integers(1, 100), st.integers(1, 100))
def test_turns_never_overlap(prefill_s, decode_s, prefill_percent, decode_percent):
    simulation = simulate(prefill_s, decode_s, prefill_percent, decode_percent)
    simulation.run(5.0)
    for (phase, start_s), (_, next_s) in pairwise(simulation.turns):
        assert next_s >= start_s + simulation.step_s[phase]


def test_a_phase_that_is_alone_never_waits():
    simulation = Simulation({Phase.DECODE: 0.01}, {Phase.DECODE: 1})
    simulation.run(11.0)
    assert abs(len(simulation.turns) - 1000) <= 1


def test_an_idle_peer_is_waited_for_once_and_briefly():
    simulation = simulate(0.05, 0.01)
    simulation.run(20.0, pause_from_s=10.0)
    prefill_starts = [start_s for phase, start_s in simulation.turns if phase is Phase.PREFILL and start_s > 10.0]
    pauses_s = [b - a - 0.05 - GAP_S for a, b in pairwise(prefill_starts)]
    assert sum(pauses_s) <= RETURN_S
    assert simulation.had_s(Phase.PREFILL, since_s=10.1) > 9.5


def test_who_was_away_has_no_claim_on_the_time_before():
    simulation = simulate(0.05, 0.01)
    simulation.run(20.0, starts={Phase.PREFILL: 0.0, Phase.DECODE: 10.0})
    had_s = [simulation.had_s(phase, since_s=10.0) for phase in (Phase.PREFILL, Phase.DECODE)]
    assert had_s[0] == pytest.approx(had_s[1], rel=0.05)


def test_a_dead_peer_has_no_say():
    dead = Account()
    assert turn_from_s(Account(Stage.WAITING, had_s=1e9), dead) == -math.inf


def test_a_running_peer_is_always_waited_for():
    assert turn_from_s(Account(Stage.WAITING), Account(Stage.RUNNING, had_s=1e9)) == math.inf


def test_of_two_that_wait_one_may_run():
    for had_s in (0.0, 1.0, 2.0):
        first, second = Account(Stage.WAITING, had_s=1.0), Account(Stage.WAITING, had_s=had_s)
        assert -math.inf in (turn_from_s(first, second), turn_from_s(second, first))


def test_a_turn_cannot_end_that_has_not_begun():
    with pytest.raises(ValueError, match="WAITING is not followed by AWAY"):
        end(Account(Stage.WAITING), 1.0, 50, 1.0)
