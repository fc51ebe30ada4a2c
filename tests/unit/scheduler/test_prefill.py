from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from tandem.scheduler.line import Line
from tandem.scheduler.prefill import Admission, Chunk, RunningPrompt, WaitingPrompt, admit, share_budget
from tandem.scheduler.rank import rank_key

sizes = st.integers(0, 12)
orders = st.tuples(st.integers(-2, 2), st.integers(0, 5))


def waiting_of(entries: list[tuple[tuple[int, int], int]]) -> list[WaitingPrompt]:
    return [WaitingPrompt(i, priority, arrival, size) for i, ((priority, arrival), size) in enumerate(entries)]


def running_of(entries: list[tuple[tuple[int, int], int]]) -> list[RunningPrompt]:
    return [RunningPrompt(i, priority, arrival, size + 1) for i, ((priority, arrival), size) in enumerate(entries)]


prompts = st.lists(st.tuples(orders, sizes), max_size=12)


def in_line(prompts: Iterable[WaitingPrompt]) -> Line[WaitingPrompt]:
    line: Line[WaitingPrompt] = Line(rank_key)
    for prompt in prompts:
        line.add(prompt)
    return line


def admitted(waiting: Sequence[WaitingPrompt], num_places: int, num_spare: int) -> Admission:
    return admit(in_line(waiting), num_places=num_places, num_spare_blocks=num_spare)


def shared(running: Sequence[RunningPrompt], chunk_tokens: int) -> tuple[Chunk, ...]:
    return share_budget(sorted(running, key=rank_key), chunk_tokens)


def test_higher_priority_is_admitted_before_earlier_arrival() -> None:
    early, urgent = WaitingPrompt(1, 0, 10, 1), WaitingPrompt(2, 5, 20, 1)
    assert admitted([early, urgent], 1, 9).lease_ids == (2,)


def test_a_prompt_that_does_not_fit_holds_back_those_behind_it_and_says_what_it_lacks() -> None:
    admission = admitted([WaitingPrompt(1, 0, 10, 8), WaitingPrompt(2, 0, 20, 1)], 4, 5)
    assert admission.lease_ids == ()
    assert admission.demand.num_joining_blocks == 8


def test_a_full_phase_wants_no_blocks() -> None:
    admission = admitted([WaitingPrompt(1, 0, 10, 8)], 0, 0)
    assert admission.lease_ids == ()
    assert admission.demand.num_blocks == 0


def test_short_prompts_share_a_step_and_the_last_gets_the_rest() -> None:
    running = [RunningPrompt(1, 0, 1, 3), RunningPrompt(2, 0, 2, 4), RunningPrompt(3, 0, 3, 100)]
    assert shared(running, 10) == (Chunk(1, 3), Chunk(2, 4), Chunk(3, 3))


def test_the_first_finishes_first() -> None:
    running = [RunningPrompt(2, 0, 2, 2), RunningPrompt(1, 0, 1, 100)]
    assert shared(running, 10) == (Chunk(1, 10),)


@given(prompts, st.integers(0, 6), st.integers(0, 40))
def test_the_admitted_are_the_first_in_rank_and_fit(
    entries: list[tuple[tuple[int, int], int]], num_places: int, num_spare: int
) -> None:
    waiting = waiting_of(entries)
    admission = admitted(waiting, num_places, num_spare)
    order = sorted(waiting, key=rank_key)
    assert list(admission.lease_ids) == [p.lease_id for p in order[: len(admission.lease_ids)]]
    assert len(admission.lease_ids) <= num_places
    taken = sum(p.num_missing_blocks for p in order[: len(admission.lease_ids)])
    assert taken <= num_spare
    if len(admission.lease_ids) < min(num_places, len(waiting)):
        blocked = order[len(admission.lease_ids)]
        assert blocked.num_missing_blocks > num_spare - taken
        assert admission.demand.num_joining_blocks == blocked.num_missing_blocks


@given(prompts, st.integers(1, 50))
def test_the_budget_is_used_and_kept(entries: list[tuple[tuple[int, int], int]], chunk_tokens: int) -> None:
    running = running_of(entries)
    chunks = shared(running, chunk_tokens)
    left = {p.lease_id: p.num_tokens_left for p in running}
    assert sum(c.num_tokens for c in chunks) == min(chunk_tokens, sum(left.values()))
    assert all(1 <= c.num_tokens <= left[c.lease_id] for c in chunks)
    assert all(c.num_tokens == left[c.lease_id] for c in chunks[:-1])


@given(prompts.filter(bool), st.integers(1, 50))
def test_prompts_finish_in_rank_order(entries: list[tuple[tuple[int, int], int]], chunk_tokens: int) -> None:
    running = {p.lease_id: p for p in running_of(entries)}
    expected = [p.lease_id for p in sorted(running.values(), key=rank_key)]
    finished: list[int] = []
    while running:
        for chunk in shared(list(running.values()), chunk_tokens):
            prompt = running.pop(chunk.lease_id)
            left = prompt.num_tokens_left - chunk.num_tokens
            if left:
                running[prompt.lease_id] = RunningPrompt(prompt.lease_id, prompt.priority, prompt.arrival_unix_ns, left)
            else:
                finished.append(prompt.lease_id)
    assert finished == expected


@given(prompts, st.integers(0, 6), st.integers(0, 40))
def test_nobody_behind_the_first_that_does_not_fit_is_looked_at(
    entries: list[tuple[tuple[int, int], int]], num_places: int, num_spare: int
) -> None:
    order = sorted(waiting_of(entries), key=rank_key)
    seen = iter(order)
    admission = admit(seen, num_places=num_places, num_spare_blocks=num_spare)
    assert len(order) - len(list(seen)) <= len(admission.lease_ids) + 1


@given(prompts, st.integers(0, 50))
def test_nobody_behind_the_budget_is_looked_at(entries: list[tuple[tuple[int, int], int]], chunk_tokens: int) -> None:
    order = sorted(running_of(entries), key=rank_key)
    seen = iter(order)
    chunks = share_budget(seen, chunk_tokens)
    assert len(order) - len(list(seen)) <= len(chunks) + 1
