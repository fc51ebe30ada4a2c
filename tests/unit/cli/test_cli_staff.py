"""Which workers a phase has, over every order in which they may speak and end."""

from hypothesis import given
from hypothesis import strategies as st

from tandem.cli.staff import End, Kill, Staff, Start, Tell, Terminate
from tandem.phase.stewardship import Role, Word

FIRST, SPARE, THIRD = 1, 2, 3


def serving_first() -> Staff:
    staff = Staff()
    assert staff.open() == [Start(FIRST, Role.FIRST)]
    assert staff.heard(FIRST, Word.SERVING) == []
    return staff


def with_spare() -> Staff:
    staff = serving_first()
    assert staff.heard(FIRST, Word.SUCCESSOR_WANTED) == [Start(SPARE, Role.SPARE)]
    return staff


def test_the_first_serves_until_the_spare_one_does():
    staff = with_spare()
    assert staff.heard(SPARE, Word.SERVING) == [Tell(FIRST, Word.RETIRE)]
    assert staff.ended(FIRST, 0) == []
    assert staff.ended(SPARE, 75) == [End(75)]


def test_one_spare_worker_at_a_time():
    staff = with_spare()
    assert staff.heard(FIRST, Word.SUCCESSOR_WANTED) == []
    staff.heard(SPARE, Word.SERVING)
    assert staff.heard(FIRST, Word.SUCCESSOR_WANTED) == [], "who retires wants nothing"
    assert staff.heard(SPARE, Word.SUCCESSOR_WANTED) == [Start(THIRD, Role.SPARE)]
    assert staff.heard(THIRD, Word.SERVING) == [Tell(SPARE, Word.RETIRE)], "the first has been told before"


def test_a_worker_that_does_not_serve_yet_may_want_another():
    staff = Staff()
    staff.open()
    assert staff.heard(FIRST, Word.SUCCESSOR_WANTED) == []
    assert staff.heard(FIRST, Word.SERVING) == [Start(SPARE, Role.SPARE)]
    assert staff.heard(SPARE, Word.SUCCESSOR_WANTED) == []
    assert staff.heard(SPARE, Word.SERVING) == [Tell(FIRST, Word.RETIRE), Start(THIRD, Role.SPARE)]


def test_a_spare_worker_that_ends_too_soon_is_told_of_and_may_be_tried_again():
    staff = with_spare()
    assert staff.ended(SPARE, 1) == [Tell(FIRST, Word.NO_SUCCESSOR)]
    assert staff.heard(FIRST, Word.SUCCESSOR_WANTED) == [Start(THIRD, Role.SPARE)]


def test_a_spare_worker_that_is_late_is_killed_and_one_that_serves_is_not():
    staff = with_spare()
    assert staff.late(SPARE) == [Kill(SPARE)]
    assert staff.ended(SPARE, 137) == [Tell(FIRST, Word.NO_SUCCESSOR)]
    assert staff.late(SPARE) == []
    staff.heard(FIRST, Word.SUCCESSOR_WANTED)
    staff.heard(THIRD, Word.SERVING)
    assert staff.late(THIRD) == []


def test_a_spare_worker_goes_on_when_the_first_one_dies():
    staff = with_spare()
    assert staff.ended(FIRST, -9) == []
    assert staff.heard(SPARE, Word.SERVING) == []
    assert staff.ended(SPARE, 0) == [End(0)]


def test_the_end_is_told_to_all_and_nobody_is_started_any_more():
    staff = with_spare()
    assert staff.end() == [Terminate(FIRST), Terminate(SPARE)]
    assert staff.ended(SPARE, 0) == [Tell(FIRST, Word.NO_SUCCESSOR)]
    assert staff.heard(FIRST, Word.SUCCESSOR_WANTED) == []
    assert staff.ended(FIRST, 0) == [End(0)]


@given(st.lists(st.tuples(st.sampled_from([*Word, "ended"]), st.integers(0, 2)), max_size=30))
def test_whatever_happens_one_end_comes_when_nobody_is_left_and_no_more_than_one_is_not_told_to_retire(happenings):
    staff, alive, serving, retiring = Staff(), {FIRST}, set(), set()
    effects = staff.open()
    for what, place in happenings:
        if not alive:
            break
        worker_id = sorted(alive)[place % len(alive)]
        if what == "ended":
            alive.discard(worker_id)
            effects = staff.ended(worker_id, 0)
        else:
            serving |= {worker_id} if what is Word.SERVING else set()
            effects = staff.heard(worker_id, what)
        alive |= {effect.worker_id for effect in effects if isinstance(effect, Start)}
        retiring |= {each.worker_id for each in effects if isinstance(each, Tell) and each.word is Word.RETIRE}
        assert (End(0) in effects) == (not alive)
        assert len((serving & alive) - retiring) <= 1
        assert len(alive - serving) <= 1
