"""One step for both phases: who comes first, who gets which token, and what is left of the budget."""

from collections.abc import Sequence

from tandem.model.batch import SequenceRows
from tandem.phase.joint import JointWork
from tandem.phase.loop import Load
from tandem.phase.stepper import StepPart
from tandem.runner.sampler import SampledToken
from tandem.types import Phase


class Work:
    """Takes part with rows of the given lengths."""

    def __init__(self, *num_rows: int) -> None:
        self.num_rows = num_rows
        self.finished: list[Sequence[SampledToken | None]] = []
        self.failures: list[str] = []

    def prepare(self) -> Sequence[StepPart]:
        return [StepPart(SequenceRows([7] * rows, 0, [0]), None) for rows in self.num_rows]

    def finish(self, tokens: Sequence[SampledToken | None]) -> None:
        self.finished.append(tokens)

    def fail(self, message: str) -> None:
        self.failures.append(message)

    def deliver(self) -> None:
        pass

    def load(self) -> Load:
        return Load(1, len(self.num_rows), 2)


def token(token_id: int) -> SampledToken:
    return SampledToken(token_id, None)


async def test_decode_comes_first_and_each_gets_its_own_tokens() -> None:
    steps, prefill, decode = JointWork(), Work(5), Work(1, 1)
    steps.enlist(Phase.PREFILL, prefill)
    steps.enlist(Phase.DECODE, decode)
    assert [len(part.rows.token_ids) for part in steps.prepare()] == [1, 1, 5]
    steps.finish([token(1), token(2), None])
    assert decode.finished == [[token(1), token(2)]]
    assert prefill.finished == [[None]]
    assert steps.load() == Load(2, 3, 4)


async def test_prefill_sees_how_many_rows_decode_has_taken() -> None:
    steps = JointWork()
    seen: list[int] = []

    class Asking(Work):
        def prepare(self) -> Sequence[StepPart]:
            seen.append(steps.num_rows)
            return super().prepare()

    steps.enlist(Phase.PREFILL, Asking(4))
    steps.enlist(Phase.DECODE, Work(1, 1, 3))
    steps.prepare()
    steps.prepare()
    assert seen == [5, 5]
    assert steps.num_rows == 9


async def test_who_joins_while_a_step_is_under_way_has_no_part_in_it() -> None:
    steps, first, late = JointWork(), Work(2), Work(1)
    steps.enlist(Phase.PREFILL, first)
    steps.prepare()
    steps.wake.clear()
    steps.enlist(Phase.DECODE, late)
    assert steps.wake.is_set()
    steps.finish([token(3)])
    assert (first.finished, late.finished) == ([[token(3)]], [])
    steps.prepare()
    steps.fail("broken")
    assert first.failures == late.failures == ["broken"]
