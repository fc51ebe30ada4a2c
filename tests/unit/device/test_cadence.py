"""Who computes when: by the times alone, then by two backends over one folder."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.device.cpu.affinity import CpuAffinityBackend
from tandem.device.cpu.cadence import PERIOD_S, SPLITS, Room, slot
from tandem.device.cpu.cadence_backend import LONGEST_SILENCE_S, RETURN_S, CadenceClock, CpuCadenceBackend
from tandem.device.cpu.presence import Presence
from tandem.errors import DeviceError
from tandem.types import Phase, Split

NUM_MOMENTS = 1000
percents = st.integers(1, 100)
splits = st.builds(Split, percents, percents)


def rooms(phase: Phase, split: Split, *, peer_is_busy: bool = True) -> list[Room]:
    return [slot(phase, split, peer_is_busy, 7.0 + PERIOD_S * n / NUM_MOMENTS).room for n in range(NUM_MOMENTS)]


def cores_had(phase: Phase, split: Split) -> float:
    """Of the cores' time, where more cores are as much faster."""
    worth = {Room.NONE: 0.0, Room.HALF: 0.5, Room.ALL: 1.0}
    return sum(map(worth.__getitem__, rooms(phase, split))) / NUM_MOMENTS


@given(splits)
def test_the_cores_are_never_given_twice_nor_left_alone(split):
    together = {frozenset(pair) for pair in zip(rooms(Phase.PREFILL, split), rooms(Phase.DECODE, split), strict=True)}
    assert together <= {frozenset({Room.HALF}), frozenset({Room.ALL, Room.NONE})}


@given(st.integers(1, 99))
def test_shares_of_a_hundred_are_the_parts_of_the_cores_time(prefill_percent):
    split = Split(prefill_percent, 100 - prefill_percent)
    for phase in Phase:
        assert cores_had(phase, split) == pytest.approx(split.percent(phase) / 100, abs=0.01)


@given(splits, st.sampled_from(Phase))
def test_who_is_alone_has_everything(split, phase):
    assert set(rooms(phase, split, peer_is_busy=False)) == {Room.ALL}


@given(splits, st.sampled_from(Phase), st.booleans(), st.floats(0, 1e6))
def test_a_slot_ends_within_a_period(split, phase, peer_is_busy, now_s):
    assert now_s <= slot(phase, split, peer_is_busy, now_s).end_s + 1e-9
    assert slot(phase, split, peer_is_busy, now_s).end_s <= now_s + PERIOD_S + 1e-9


def test_five_splits_are_on_offer_in_order():
    assert len(SPLITS) == 5
    for phase in Phase:
        assert len({cores_had(phase, split) for split in SPLITS}) == 5


class SleepingClock:
    """Stands still but for sleeping."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s = 0.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds
        self.slept_s += seconds


class FewThreads(CpuAffinityBackend):
    """Binds nothing: tests share their process."""

    def apply(self, phase, split):
        return None

    def share(self, phase, split):
        shared = super().share(phase, split)
        return type(shared)(tuple(sorted(os.sched_getaffinity(0))), 1)


def backend_of(phase, tmp_path, clock) -> CpuCadenceBackend:
    made = CpuCadenceBackend(phase, Presence(tmp_path, phase), CadenceClock(clock, clock.sleep), FewThreads())
    made.apply(phase, Split(20, 80))
    return made


@pytest.fixture
def clock():
    return SleepingClock()


def test_the_smaller_share_rests_while_its_peer_is_at_work(tmp_path, clock):
    prefill, decode = (backend_of(phase, tmp_path, clock) for phase in Phase)
    with decode.turn():
        assert clock.slept_s == 0
        with prefill.turn():
            assert clock.slept_s == pytest.approx(PERIOD_S * 0.6)


def test_it_does_not_rest_when_its_peer_has_nothing_to_do(tmp_path, clock):
    prefill, decode = (backend_of(phase, tmp_path, clock) for phase in Phase)
    with decode.turn():
        pass
    clock.now_s += RETURN_S
    with prefill.turn():
        assert clock.slept_s == 0


def test_a_peer_that_died_or_hangs_in_a_step_is_waited_for_no_longer_than_it_said(tmp_path, clock):
    prefill, decode = (backend_of(phase, tmp_path, clock) for phase in Phase)
    decode.turn().__enter__()  # and never again
    for _ in range(20):
        with prefill.turn():
            clock.now_s += 0.02
    assert 0 < clock.slept_s <= LONGEST_SILENCE_S + PERIOD_S


def test_a_long_step_rests_in_its_middle(tmp_path, clock):
    prefill, decode = (backend_of(phase, tmp_path, clock) for phase in Phase)
    with prefill.turn():
        with decode.turn():
            prefill.pause()
        assert clock.slept_s == pytest.approx(PERIOD_S * 0.6)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DeviceError, match="cannot meet"):
        Presence(tmp_path / "missing", Phase.DECODE)
