from dataclasses import replace

import pytest

from tandem.errors import LeaseError
from tandem.kv.store import SequenceLease
from tandem.phase.keys import SequenceKeys
from tandem.phase.limits import PhaseLimits, problem_of
from tandem.phase.sequence import SequenceState, WorkingSequence
from tandem.phase.session import Session
from tandem.phase.stopping import banned_tokens, finish_reason
from tandem.types import Block, DecodeResult, FinishReason, StopSpec
from tests.support.phase_fakes import make_spec

LIMITS = PhaseLimits(max_sequences=4, block_size=4, num_pool_blocks=5, vocab_size=10, max_context_tokens=30)


def working(num_prompt: int = 6, num_output: int = 2) -> WorkingSequence[DecodeResult]:
    spec = make_spec(1, [1] * num_prompt, output=[2] * num_output)
    return WorkingSequence(spec, Session(), 0.0, SequenceKeys(b"", 4))


def test_a_state_follows_the_table() -> None:
    sequence = working()
    sequence.enter(SequenceState.WAITING)
    with pytest.raises(LeaseError, match="waiting does not lead to sealing"):
        sequence.enter(SequenceState.SEALING)


def test_a_lease_is_adopted_and_one_row_is_left_at_least() -> None:
    sequence = working()
    sequence.adopt(SequenceLease(1, (Block(7, 1), Block(3, 2)), num_sealed_tokens=8))
    assert sequence.block_ids == [7, 3]
    assert sequence.num_computed == 7
    assert sequence.num_missing_blocks(4) == 0
    assert sequence.rows(1).start == 7


def test_a_draw_tells_prompt_and_output_apart() -> None:
    sequence = working()
    sequence.append(9)
    draw = sequence.draw(())
    assert draw.position == 9
    assert tuple(draw.prompt_token_ids) == (1,) * 6
    assert list(draw.output_token_ids) == [2, 2, 9]


@pytest.mark.parametrize(
    ("num_output", "token_id", "room", "reason"),
    [
        (1, 0, 9, FinishReason.NONE),
        (3, 0, 9, FinishReason.LENGTH),
        (1, 5, 9, FinishReason.STOP),
        (3, 5, 9, FinishReason.STOP),
        (1, 0, 0, FinishReason.LENGTH),
    ],
)
def test_finish_reasons(num_output: int, token_id: int, room: int, reason: FinishReason) -> None:
    assert finish_reason(StopSpec(3, 0, (5,)), token_id, num_output, room) is reason


def test_stop_tokens_are_banned_until_min_tokens_are_out() -> None:
    stop = StopSpec(9, 2, (5, 6))
    assert [banned_tokens(stop, n) for n in range(4)] == [(5, 6), (5, 6), (), ()]


@pytest.mark.parametrize(
    ("num_prompt", "token_id", "problem"),
    [(0, 1, "num_prompt_tokens"), (30, 1, "context"), (3, 10, "vocabulary"), (21, 1, "6 blocks"), (20, 9, "")],
)
def test_problems_are_named(num_prompt: int, token_id: int, problem: str) -> None:
    found = problem_of(make_spec(1, [token_id] * num_prompt), LIMITS)
    assert problem in found
    assert bool(problem) == bool(found)


def test_a_domain_is_of_one_length() -> None:
    assert problem_of(replace(make_spec(1, [1]), domain=b"short"), LIMITS) == "domain: 5 bytes, not 16"
    assert problem_of(replace(make_spec(1, [1]), domain=bytes(16)), LIMITS) == ""
