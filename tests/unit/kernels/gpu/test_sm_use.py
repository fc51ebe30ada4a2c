"""What is concluded from where programs ran."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.gpu.sm_use import ProgramRun, SmUse, share_faults, sm_overlap, sm_use

runs = st.builds(ProgramRun, st.integers(0, 131), st.integers(0, 1000), st.integers(1000, 2000))


def use(sm_ids: range, started_ns: int = 0, ended_ns: int = 100) -> SmUse:
    return SmUse(frozenset(sm_ids), started_ns, ended_ns)


@given(st.lists(runs, min_size=1))
def test_a_use_spans_its_programs(programs: list[ProgramRun]) -> None:
    found = sm_use(programs)
    assert all(run.sm_id in found.sm_ids for run in programs)
    assert len(found.sm_ids) <= len(programs)
    assert all(found.started_ns <= run.started_ns and run.ended_ns <= found.ended_ns for run in programs)


def test_a_probe_without_programs_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        sm_use([])


@given(st.lists(runs, min_size=1), st.lists(runs, min_size=1))
def test_overlap_is_symmetric(first: list[ProgramRun], second: list[ProgramRun]) -> None:
    assert sm_overlap(sm_use(first), sm_use(second)) == sm_overlap(sm_use(second), sm_use(first))


def test_overlap_is_what_both_have() -> None:
    overlap = sm_overlap(use(range(0, 10), 0, 100), use(range(8, 20), 60, 200))
    assert overlap.shared_sm_ids == {8, 9}
    assert overlap.common_ns == 40
    assert sm_overlap(use(range(4), 0, 50), use(range(4), 70, 90)).common_ns == 0


def test_disjoint_shares_within_their_quotas_have_no_faults() -> None:
    assert share_faults(use(range(0, 32)), use(range(32, 132)), first_quota=32, second_quota=100) == ()


def test_each_fault_is_told() -> None:
    faults = share_faults(use(range(0, 40)), use(range(39, 132), 100, 200), first_quota=32, second_quota=100)
    assert faults == (
        "the first share ran on 40 SMs and owns 32",
        "both ran on SMs [39]",
        "the two took turns: they never ran at the same time",
    )
